// In place of `attention.hpp`: the KV cache holds float32, and everything is computed in double
// precision, in the plain way. The reference for tests; slow.

#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "attention_plan.hpp"
#include "heads.hpp"
#include "pool.hpp"

namespace mst::LEVEL {

constexpr size_t kSpan = 8 * kBlock;

class Attention {
public:
    Attention(Pool& pool, const Heads& heads) : m_pool(pool), m_heads(heads) {}

    // Of each kept head keys, then values [kBlock, width].
    size_t block_bytes_of_layer() const {
        return m_heads.kept * 2 * kBlock * m_heads.width * sizeof(float);
    }

    void prepare(const mst_batch& batch, const std::vector<AttentionPlan>&) { m_batch = &batch; }

    template <typename Emit>
    void compute(const AttentionPlan& plan, const HeadInputs& inputs, const float* sinks,
                 uint8_t* cache, const Emit& emit) {
        const size_t width = m_heads.width;
        for (const Piece& piece : plan.pieces)
            for (size_t i = 0; i < piece.tokens * m_heads.kept; ++i) {
                const size_t row = piece.row + i / m_heads.kept, head = i % m_heads.kept;
                float* const key = inputs.keys + (row * m_heads.kept + head) * width;
                prepare_key(m_heads, inputs, row, key);
                float* const found = place(cache, piece, piece.past + i / m_heads.kept, head);
                std::copy_n(key, width, found);
                std::copy_n(inputs.values + (row * m_heads.kept + head) * width, width,
                            found + kBlock * width);
            }
        for (const Piece& piece : plan.pieces)
            m_pool.run(piece.tokens, [&](size_t token, size_t thread) {
                std::vector<float> result(m_heads.queries * width);
                for (size_t head = 0; head < m_heads.queries; ++head) {
                    float* const query =
                        inputs.queries + ((piece.row + token) * m_heads.queries + head) * width;
                    prepare_query(m_heads, inputs, piece.row + token, query);
                    attend(plan, piece, piece.past + token, head, query,
                           sinks ? sinks[head] : -std::numeric_limits<float>::infinity(), cache,
                           result.data() + head * width);
                }
                emit(piece.row + token, result.data(), thread);
            });
    }

private:
    float* place(uint8_t* cache, const Piece& piece, size_t token, size_t head) const {
        const int32_t* const blocks = m_batch->blocks + m_batch->block_begins[piece.sequence];
        const size_t block = blocks[token / kBlock];
        return reinterpret_cast<float*>(cache) +
               ((block * m_heads.kept + head) * 2 * kBlock + token % kBlock) * m_heads.width;
    }

    void attend(const AttentionPlan& plan, const Piece& piece, size_t position, size_t head,
                const float* query, double sink, uint8_t* cache, float* result) const {
        const size_t first = plan.first_seen(position), width = m_heads.width;
        std::vector<double> scores(position + 1 - first);
        double most = sink;
        for (size_t i = 0; i < scores.size(); ++i) {
            const float* const key = place(cache, piece, first + i, head / m_heads.group());
            double score = 0;
            for (size_t k = 0; k < width; ++k) score += double(query[k]) * double(key[k]);
            score *= double(m_heads.scale);
            const double cap = double(m_heads.soft_cap);
            if (cap > 0) score = cap * std::tanh(score / cap);
            scores[i] = score;
            most = std::max(most, score);
        }
        double sum = std::exp(sink - most);
        std::vector<double> total(width);
        for (size_t i = 0; i < scores.size(); ++i) {
            const double odd = std::exp(scores[i] - most);
            const float* const value =
                place(cache, piece, first + i, head / m_heads.group()) + kBlock * width;
            sum += odd;
            for (size_t k = 0; k < width; ++k) total[k] += odd * double(value[k]);
        }
        for (size_t k = 0; k < width; ++k) result[k] = float(total[k] / sum);
    }

    Pool& m_pool;
    const Heads m_heads;
    const mst_batch* m_batch = nullptr;
};

}  // namespace mst::LEVEL
