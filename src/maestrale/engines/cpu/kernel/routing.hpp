// Which experts each row goes to, and with what weight.

#pragma once

#include <vector>

#include "maestrale.h"
#include "pool.hpp"
#include "vectors.hpp"

namespace mst::LEVEL {

constexpr size_t kRoutersTogether = 16;  // experts that one task asks

// A row's place among an expert's.
struct Choice {
    uint32_t expert;
    uint32_t index;   // among the expert's rows
    float weight;
};

class Routing {
public:
    // rows [count, hidden] of floats.
    void choose(Pool& pool, const mst_model& model, const mst_layer& layer, const float* rows,
                size_t count) {
        const size_t experts = model.experts, hidden = model.hidden, used = model.experts_used;
        const size_t parts = (experts + kRoutersTogether - 1) / kRoutersTogether;
        m_used = used;
        m_scores.resize(count * experts);
        m_choices.resize(count * used);
        pool.run(count * parts, [&](size_t task, size_t) {
            const size_t row = task / parts, first = task % parts * kRoutersTogether;
            for (size_t i = first; i < std::min(first + kRoutersTogether, experts); ++i)
                m_scores[row * experts + i] =
                    sum_of_products(rows + row * hidden, layer.router + i * hidden, hidden) +
                    (layer.router_bias ? layer.router_bias[i] : 0.0f);
        });
        m_counts.assign(experts, 0);
        for (size_t row = 0; row < count; ++row) {
            Choice* const choices = m_choices.data() + row * used;
            take(model, m_scores.data() + row * experts, choices);
            for (size_t k = 0; k < used; ++k) choices[k].index = m_counts[choices[k].expert]++;
        }
    }

    // Those of a row, the likeliest first.
    const Choice* of(size_t row) const { return m_choices.data() + row * m_used; }
    // How many rows an expert has.
    size_t count(size_t expert) const { return m_counts[expert]; }

private:
    static void take(const mst_model& model, float* scores, Choice* choices) {
        const size_t experts = model.experts, used = model.experts_used;
        if (model.gating == MST_SOFTMAX_THEN_TOP) softmax(scores, experts);
        for (size_t k = 0; k < used; ++k) {
            size_t best = experts;
            for (size_t i = 0; i < experts; ++i) {
                bool taken = false;
                for (size_t j = 0; j < k; ++j) taken |= choices[j].expert == i;
                if (!taken && (best == experts || scores[i] > scores[best])) best = i;
            }
            choices[k] = {uint32_t(best), 0, scores[best]};
        }
        std::vector<float> weights(used);
        for (size_t k = 0; k < used; ++k) weights[k] = choices[k].weight;
        if (model.gating == MST_TOP_THEN_SOFTMAX) softmax(weights.data(), used);
        float sum = 1;
        if (model.renormalise) {
            sum = 0;
            for (size_t k = 0; k < used; ++k) sum += weights[k];
        }
        for (size_t k = 0; k < used; ++k) choices[k].weight = weights[k] / sum * model.expert_scale;
    }

    static void softmax(float* x, size_t width) {
        const F8 most = all(*std::max_element(x, x + width));
        F8 sum = all(0.0f);
        for_eights(width, [&](size_t i, size_t count) {
            const F8 power = exponential(load_some(x + i, count) - most);
            sum = sum + between(power, all(0.0f), 0, int(count));
            store_some(x + i, power, count);
        });
        const F8 whole = all(sum_of(sum));
        for_eights(width, [&](size_t i, size_t count) {
            store_some(x + i, load_some(x + i, count) / whole, count);
        });
    }

    size_t m_used = 0;
    std::vector<float> m_scores;    // [rows, experts]
    std::vector<Choice> m_choices;  // [rows, used]
    std::vector<uint32_t> m_counts;
};

}  // namespace mst::LEVEL
