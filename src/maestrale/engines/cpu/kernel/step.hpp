// A step of a decoder: from tokens to logits.
//
// What is done to a row by itself (adding what the last part gave, norm, rounding) is done in one go
// between products; products that read the same rows are one stage.

#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "attention_plan.hpp"
#include "cache.hpp"
#include "feed_forward.hpp"
#include "heads.hpp"
#include "level.hpp"
#include "rotary.hpp"
#include "routing.hpp"
#include "vectors.hpp"

#ifdef LEVEL_EXACT
#include "exact_attention.hpp"
#else
#include "attention.hpp"
#endif

namespace mst::LEVEL {

constexpr size_t kWorthRows = 1 << 13;   // floats; fewer are done faster by one thread
constexpr size_t kNeighbours = 16;       // rows that write to the same lines of the cache

class LevelDecoder final : public Decoder {
public:
    LevelDecoder(Pool& pool, const Model& model)
        : m_pool(pool),
          m_model(model),
          m_heads{size_t(model.heads),  size_t(model.kv_heads),    size_t(model.head_dim),
                  model.attention_scale, model.attention_soft_cap, model.norm_epsilon},
          m_attention(pool, m_heads),
          m_stages(pool, m_model),
          m_scratch(pool.threads()) {
        for (const mst_layer& layer : model.own_layers) {
            size_t plan = 0;
            while (plan < m_plans.size() && m_plans[plan].window != size_t(layer.window)) ++plan;
            if (plan == m_plans.size()) {
                m_plans.emplace_back();
                m_plans.back().window = layer.window;
            }
            m_plan_of.push_back(plan);
        }
        // The last layer's, whose rows are not all wanted.
        m_plans.emplace_back();
        m_plans.back().window = model.own_layers.back().window;
        m_plan_of.back() = m_plans.size() - 1;
        m_cosines.resize(model.own_ropes.size());
        m_sines.resize(model.own_ropes.size());
    }

    size_t block_bytes() const override {
        return m_model.own_layers.size() * m_attention.block_bytes_of_layer();
    }
    void open_cache(size_t blocks) override {
        m_cache.open(m_model.own_layers.size(), blocks, m_attention.block_bytes_of_layer());
    }
    void copy_block(size_t source, size_t target) override { m_cache.copy(source, target); }
    size_t blocks() const override { return m_cache.blocks(); }

    void step(const mst_batch& batch, float* logits, float* hidden) override {
        const Awake awake(m_pool);
        const size_t tokens = batch.tokens, wanted = logits || hidden ? batch.rows : 0;
        plan(batch, wanted);
        embed(batch);
        turn_positions(batch);
        m_count = tokens;
        m_pending = {};
        const size_t layers = m_model.own_layers.size();
        for (size_t i = 0; i < layers; ++i) {
            const mst_layer& layer = m_model.own_layers[i];
            attend(layer, m_plans[m_plan_of[i]], m_cache.layer(i), i + 1 == layers, batch, wanted);
            if (m_count == 0) return;
            feed_forward(layer);
        }
        finish(logits, hidden, wanted - size_t(batch.hidden_rows));
    }

private:
    // Threads wait actively while a step is computed.
    struct Awake {
        explicit Awake(Pool& pool) : pool(pool) { pool.wake(); }
        ~Awake() { pool.rest(); }
        Pool& pool;
    };

    // Results that are still to be added to the rows.
    struct Pending {
        const float* result = nullptr;  // [rows, hidden]
        const float* gain = nullptr;    // of the norm before
        const Routing* routing = nullptr;  // with experts: of their results
        const float* shared_router = nullptr;
    };

    // Of one thread.
    struct Scratch {
        std::vector<float> row, sum;
    };

    size_t hidden() const { return size_t(m_model.hidden); }

    template <typename Work>
    void for_rows(size_t count, size_t width, const Work& work) {
        if (count * width >= kWorthRows)
            m_pool.run_together(count, std::min(kNeighbours, count / m_pool.threads() + 1), work);
        else
            for (size_t row = 0; row < count; ++row) work(row, size_t(0));
    }

    void plan(const mst_batch& batch, size_t wanted) {
        const size_t tokens = batch.tokens;
        m_first_of.assign(tokens, -1);
        m_next_of.assign(wanted, -1);
        m_is_wanted.assign(tokens, 0);
        for (size_t i = wanted; i-- > 0;) {
            int32_t& first = m_first_of[batch.wanted_rows[i]];
            m_next_of[i] = first;
            first = int32_t(i);
            m_is_wanted[batch.wanted_rows[i]] = 1;
        }
        for (AttentionPlan& plan : m_plans)
            plan.make(batch, kSpan, m_heads.queries, m_heads.kept, m_heads.width,
                      &plan == &m_plans.back() ? m_is_wanted.data() : nullptr);
        m_attention.prepare(batch, m_plans);
    }

    void embed(const mst_batch& batch) {
        const size_t width = hidden();
        m_rows.resize(std::max(m_rows.size(), batch.tokens * width));
        for_rows(batch.tokens, width, [&](size_t row, size_t) {
            float* const x = m_rows.data() + row * width;
            mst_matrix_unpack(m_model.embedding, batch.token_ids[row], 1, x);
            if (m_model.embedding_scale != 1) scale(x, m_model.embedding_scale, width);
        });
    }

    static void scale(float* x, float factor, size_t width) {
        for_eights(width, [&](size_t i, size_t count) {
            store_some(x + i, load_some(x + i, count) * all(factor), count);
        });
    }

    // Angles and temperatures of each row.
    void turn_positions(const mst_batch& batch) {
        m_positions.resize(batch.tokens);
        for (int32_t i = 0; i < batch.sequences; ++i)
            for (int32_t row = batch.begins[i]; row < batch.begins[i + 1]; ++row)
                m_positions[row] = batch.past[i] + row - batch.begins[i];
        for (size_t i = 0; i < m_cosines.size(); ++i) {
            const mst_rope& rope = m_model.own_ropes[i];
            const size_t half = rope.dims / 2;
            m_cosines[i].resize(batch.tokens * half);
            m_sines[i].resize(batch.tokens * half);
            for_rows(batch.tokens, 32 * half, [&](size_t row, size_t) {
                turn(rope, m_positions[row], m_cosines[i].data() + row * half,
                     m_sines[i].data() + row * half);
            });
        }
        if (!m_model.temperature_length) return;
        m_temperatures.resize(batch.tokens);
        for (size_t row = 0; row < m_temperatures.size(); ++row)
            m_temperatures[row] =
                m_model.temperatures[std::min(m_positions[row] / m_model.temperature_length,
                                              m_model.temperature_count - 1)];
    }

    // Adds what is pending to a row.
    void add_pending(size_t row, Scratch& scratch) {
        const size_t width = hidden();
        float* const x = m_rows.data() + row * width;
        scratch.sum.resize(width);
        const float* result = scratch.sum.data();
        if (m_pending.routing)
            add_experts(row, scratch.sum.data());
        else
            result = m_pending.result + row * width;
        if (m_pending.gain) {
            norm(result, m_pending.gain, m_model.norm_epsilon, width, scratch.sum.data());
            result = scratch.sum.data();
        }
        const F8 factor = all(m_model.residual_scale);
        for_eights(width, [&](size_t i, size_t count) {
            store_some(x + i, fma(load_some(result + i, count), factor, load_some(x + i, count)),
                       count);
        });
    }

    // The results of a row's experts, weighted, the likeliest first; of the shared one before.
    void add_experts(size_t row, float* sum) const {
        const size_t width = hidden();
        if (m_pending.result) {
            const float* const shared = m_pending.result + row * width;
            F8 weight = all(1.0f);
            if (m_pending.shared_router)
                weight = times_sigmoid(weight, all(sum_of_products(m_normed.data() + row * width,
                                                                   m_pending.shared_router, width)));
            for_eights(width, [&](size_t i, size_t count) {
                store_some(sum + i, load_some(shared + i, count) * weight, count);
            });
        } else {
            std::fill_n(sum, width, 0.0f);
        }
        const Choice* const choices = m_routing.of(row);
        for (size_t k = 0; k < size_t(m_model.experts_used); ++k) {
            const float* const result =
                m_expert_results.data() + (m_first_result[choices[k].expert] + choices[k].index) * width;
            const F8 weight = all(choices[k].weight);
            for_eights(width, [&](size_t i, size_t count) {
                store_some(sum + i, fma(load_some(result + i, count), weight, load_some(sum + i, count)),
                           count);
            });
        }
    }

    // What is pending, then `gain`'s norm, then work(row, float[hidden], thread).
    template <typename Work>
    void between_products(const float* gain, const Work& work) {
        const size_t width = hidden();
        const bool pending = m_pending.result || m_pending.routing;
        for_rows(m_count, width, [&](size_t row, size_t thread) {
            Scratch& scratch = m_scratch[thread];
            if (pending) add_pending(row, scratch);
            const float* x = m_rows.data() + row * width;
            if (gain) {
                scratch.row.resize(width);
                norm(x, gain, m_model.norm_epsilon, width, scratch.row.data());
                x = scratch.row.data();
            }
            work(row, x, thread);
        });
        m_pending = {};
    }

    // Where a product's result goes: to the rows at once, or to where it waits.
    Target result_target(bool direct, const float* gain) {
        const size_t width = hidden();
        if (direct) return {m_rows.data(), m_rows.data(), width};
        if (m_results.size() < m_count * width) m_results.resize(m_count * width);
        m_pending = {m_results.data(), gain, nullptr, nullptr};
        return {m_results.data(), nullptr, width};
    }

    // Attention, its output's product behind it. Of the last layer it leaves the wanted rows alone.
    void attend(const mst_layer& layer, const AttentionPlan& plan, uint8_t* cache, bool last,
                const mst_batch& batch, size_t wanted) {
        const size_t queries = m_heads.queries * m_heads.width, kept = m_heads.kept * m_heads.width;
        m_activations.resize(m_count, hidden(), true);
        between_products(layer.attention_norm, [&](size_t row, const float* x, size_t) {
            m_activations.round(x, row);
        });
        for (const auto& [buffer, width] : {std::pair{&m_queries, queries}, {&m_keys, kept}, {&m_values, kept}})
            if (buffer->size() < m_count * width) buffer->resize(m_count * width);
        const Product products[] = {
            {layer.query, &m_activations, layer.query_bias, {m_queries.data(), nullptr, queries}},
            {layer.key, &m_activations, layer.key_bias, {m_keys.data(), nullptr, kept}},
            {layer.value, &m_activations, layer.value_bias, {m_values.data(), nullptr, kept}}};
        m_stages.multiply_all(products, 3);
        if (layer.whole_head_norm) norm_whole_heads(layer);
        const bool rotated = layer.rope >= 0;
        const HeadInputs inputs{m_queries.data(),
                                m_keys.data(),
                                m_values.data(),
                                layer.whole_head_norm ? nullptr : layer.query_norm,
                                layer.whole_head_norm ? nullptr : layer.key_norm,
                                rotated ? m_cosines[layer.rope].data() : nullptr,
                                rotated ? m_sines[layer.rope].data() : nullptr,
                                rotated ? size_t(m_model.own_ropes[layer.rope].dims) / 2 : 0,
                                m_model.temperature_length ? m_temperatures.data() : nullptr};
        m_attended.resize(last ? wanted : m_count, queries);
        m_attention.compute(plan, inputs, layer.sinks, cache,
                            [&](size_t row, const float* result, size_t) {
                                if (!last) return m_attended.round(result, row);
                                for (int32_t i = m_first_of[row]; i >= 0; i = m_next_of[i])
                                    m_attended.round(result, size_t(i));
                            });
        if (last) pick(batch, wanted);
        if (m_count == 0) return;
        const bool direct =
            !layer.output_bias && !layer.post_attention_norm && m_model.residual_scale == 1;
        const Product product{layer.output, &m_attended, layer.output_bias,
                              result_target(direct, layer.post_attention_norm)};
        m_stages.multiply_all(&product, 1);
    }

    void norm_whole_heads(const mst_layer& layer) {
        const size_t queries = m_heads.queries * m_heads.width, kept = m_heads.kept * m_heads.width;
        const float epsilon = m_model.norm_epsilon;
        for_rows(m_count, queries + kept, [&](size_t row, size_t) {
            float *const query = m_queries.data() + row * queries, *const key = m_keys.data() + row * kept;
            if (layer.query_norm) norm(query, layer.query_norm, epsilon, queries, query);
            if (layer.key_norm) norm(key, layer.key_norm, epsilon, kept, key);
        });
    }

    void pick(const mst_batch& batch, size_t wanted) {
        const size_t width = hidden();
        m_picked.resize(std::max(m_picked.size(), wanted * width));
        for (size_t i = 0; i < wanted; ++i)
            std::copy_n(m_rows.data() + batch.wanted_rows[i] * width, width, m_picked.data() + i * width);
        std::swap(m_rows, m_picked);
        m_count = wanted;
    }

    void feed_forward(const mst_layer& layer) {
        const size_t width = hidden();
        const bool experts = m_model.experts > 0;
        m_activations.resize(m_count, width, true);
        if (experts && m_normed.size() < m_count * width) m_normed.resize(m_count * width);
        between_products(layer.mlp_norm, [&](size_t row, const float* x, size_t) {
            if (layer.up) m_activations.round(x, row);
            if (experts) std::copy_n(x, width, m_normed.data() + row * width);
        });
        m_parts.clear();
        if (layer.up) {
            const bool direct = !experts && !layer.down_bias && !layer.post_mlp_norm &&
                                m_model.residual_scale == 1;
            m_parts.push_back({layer.gate, layer.up, layer.down, layer.gate_bias, layer.up_bias,
                               layer.down_bias, &m_activations,
                               result_target(direct, layer.post_mlp_norm)});
        }
        if (experts) {
            route(layer);
            m_pending.gain = layer.post_mlp_norm;
            m_pending.routing = &m_routing;
            m_pending.shared_router = layer.shared_router;
        }
        m_stages.feed_forward(m_parts.data(), m_parts.size());
    }

    // Adds the experts that rows go to, each with its rows.
    void route(const mst_layer& layer) {
        const size_t width = hidden(), experts = m_model.experts, used = m_model.experts_used;
        const size_t inner = layer.expert_up[0]->rows;
        m_routing.choose(m_pool, m_model, layer, m_normed.data(), m_count);
        if (m_expert_rows.size() < experts) m_expert_rows.resize(experts);
        m_first_result.resize(experts);
        m_expert_results.resize(std::max(m_expert_results.size(), m_count * used * width));
        size_t first = 0;
        for (size_t i = 0; i < experts; ++i) {
            const size_t count = m_routing.count(i);
            m_first_result[i] = first;
            if (count == 0) continue;
            m_expert_rows[i].resize(count, width, true);
            const auto bias = [&](const float* all, size_t length) { return all ? all + i * length : nullptr; };
            m_parts.push_back({layer.expert_gate[i], layer.expert_up[i], layer.expert_down[i],
                               bias(layer.expert_gate_bias, inner), bias(layer.expert_up_bias, inner),
                               bias(layer.expert_down_bias, width), &m_expert_rows[i],
                               {m_expert_results.data() + first * width, nullptr, width}});
            first += count;
        }
        for_rows(m_count, used * width, [&](size_t row, size_t) {
            const Choice* const choices = m_routing.of(row);
            for (size_t k = 0; k < used; ++k)
                m_expert_rows[choices[k].expert].round(m_normed.data() + row * width, choices[k].index);
        });
    }

    // The first `scored` rows' logits, and the others as they are behind the final norm.
    void finish(float* logits, float* hidden_rows, size_t scored) {
        const size_t width = hidden();
        m_activations.resize(scored, width, true);
        between_products(m_model.final_norm, [&](size_t row, const float* x, size_t) {
            if (row < scored)
                m_activations.round(x, row);
            else if (hidden_rows)
                std::copy_n(x, width, hidden_rows + (row - scored) * width);
        });
        if (!logits || scored == 0) return;
        const size_t vocab = m_model.vocab;
        const Product product{m_model.logits, &m_activations, m_model.logits_bias, {logits, nullptr, vocab}};
        m_stages.multiply_all(&product, 1, [&](const Product&, size_t first, size_t last) {
            if (m_model.logit_scale == 1 && m_model.logit_soft_cap <= 0) return;
            for (size_t row = 0; row < scored; ++row) {
                float* const x = logits + row * vocab + first;
                for_eights(last - first, [&](size_t i, size_t count) {
                    F8 part = load_some(x + i, count) * all(m_model.logit_scale);
                    if (m_model.logit_soft_cap > 0) part = soft_cap(part, m_model.logit_soft_cap);
                    store_some(x + i, part, count);
                });
            }
        });
    }

    Pool& m_pool;
    const Model& m_model;
    const Heads m_heads;
    Attention m_attention;
    Stages m_stages;
    Routing m_routing;
    Cache m_cache;
    std::vector<AttentionPlan> m_plans;  // for each window; the last layer's at the end
    std::vector<size_t> m_plan_of;       // [layers]
    std::vector<Scratch> m_scratch;
    // Of a step.
    size_t m_count = 0;  // of rows
    Pending m_pending;
    std::vector<int32_t> m_first_of, m_next_of;  // of the wanted rows that are a token's
    std::vector<uint8_t> m_is_wanted;
    std::vector<int32_t> m_positions;
    std::vector<float> m_temperatures;
    std::vector<std::vector<float>> m_cosines, m_sines;  // for each rope [rows, half]
    std::vector<float> m_rows, m_picked;                 // [rows, hidden]
    std::vector<float> m_queries, m_keys, m_values, m_results, m_normed, m_expert_results;
    std::vector<size_t> m_first_result;  // [experts]
    std::vector<FeedForward> m_parts;
    Rows m_activations, m_attended;
    std::vector<Rows> m_expert_rows;
};

inline std::unique_ptr<Decoder> open_decoder(Pool& pool, const Model& model) {
    return std::make_unique<LevelDecoder>(pool, model);
}

inline void multiply_floats(Pool& pool, const mst_matrix& matrix, const float* x, size_t count,
                            float* out) {
    Rows rows;
    rows.resize(count, matrix.columns, true);
    for (size_t row = 0; row < count; ++row) rows.round(x + row * matrix.columns, row);
    const mst_model none{};
    const Product product{&matrix, &rows, nullptr, {out, nullptr, matrix.rows}};
    Stages(pool, none).multiply_all(&product, 1);
}

}  // namespace mst::LEVEL
