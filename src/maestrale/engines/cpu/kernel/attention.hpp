// Attention to what the KV cache holds of a sequence, in 8 bits a value: two matrix products, with a
// softmax in float32 between them.
//
// Each token by itself, in spans of the cache of one size that begin at the same tokens in every
// step, whose results are joined in one order. So its bits depend neither on what is computed
// beside it, nor on how many tokens of its sequence are, nor on the number of threads.

#pragma once

#include <limits>
#include <vector>

#include "attention_plan.hpp"
#include "half.hpp"
#include "heads.hpp"
#include "pool.hpp"
#include "products.hpp"
#include "vectors.hpp"

namespace mst::LEVEL {

constexpr size_t kSpan = 8 * kBlock;    // tokens that are summed up by themselves
constexpr float kLog2E = 1.44269504f;   // scores are powers of two, which are less work
constexpr float kSpread = kGroup;       // what the transform of queries and keys makes of their products
constexpr size_t kWorthThreads = 1 << 17;  // products; fewer are done faster by one thread

static_assert(kBlock == kGroup, "a block of values is one group of the second product's inputs");

// What a block of the cache holds of a head, in this order: its keys, tokens for outputs (form
// zero8); its values, tokens for inputs (plain8); the values' scales, float32 [kBlock]. Those are of
// a token, as nothing may depend on the tokens behind it.
struct CacheLayout {
    size_t width;  // of a head, filled up to whole groups

    static constexpr size_t kKeyUnit = traits_of(Form::zero8).unit_bytes();
    static constexpr size_t kValueUnit = traits_of(Form::plain8).unit_bytes();

    size_t key_tile() const { return width / kGroup * kKeyUnit; }
    size_t values() const { return kBlock / kOutputs * key_tile(); }
    size_t scales() const { return values() + width / kOutputs * kValueUnit; }
    size_t bytes() const { return scales() + kBlock * sizeof(float); }
};

// The tiles of the keys of some blocks, in their order.
struct KeyTiles {
    const uint8_t* const* places;
    size_t tile_bytes;
    const uint8_t* first;

    KeyTiles at(size_t offset) const {
        constexpr size_t kTiles = kBlock / kOutputs;  // of a block
        const size_t tile = offset / tile_bytes;
        return {places, tile_bytes, places[tile / kTiles] + tile % kTiles * tile_bytes};
    }
    const uint8_t* operator()(size_t unit) const { return first + unit * CacheLayout::kKeyUnit; }
};

class Attention {
public:
    Attention(Pool& pool, const Heads& heads)
        : m_pool(pool),
          m_heads(heads),
          m_scale(heads.scale / kSpread),
          m_padded((heads.width + kGroup - 1) / kGroup * kGroup),
          m_layout{m_padded},
          m_scratch(pool.threads()) {}

    // Of one layer.
    size_t block_bytes_of_layer() const { return m_heads.kept * m_layout.bytes(); }

    // For the layers of one step. What it needs is kept from step to step.
    void prepare(const mst_batch& batch, const std::vector<AttentionPlan>& plans) {
        m_batch = &batch;
        size_t queries = 0, partials = 0;
        for (const AttentionPlan& plan : plans) {
            queries = std::max(queries, plan.pieces.size() * m_heads.kept);
            partials = std::max(partials, plan.most_partials);
        }
        if (m_queries.size() < queries) m_queries.resize(queries);
        if (m_partials.size() < partials) m_partials.resize(partials);
        if (m_weighted.size() < partials * m_padded) m_weighted.resize(partials * m_padded);
    }

    // Keys and values of all rows enter the cache first: rows of one sequence see those before
    // them. Then emit(row, float[heads * width], thread) for each row that the plan wants.
    template <typename Emit>
    void compute(const AttentionPlan& plan, const HeadInputs& inputs, const float* sinks,
                 uint8_t* cache, const Emit& emit) {
        const size_t threads = plan.products >= kWorthThreads ? m_pool.threads() : 1;
        for_all(threads, plan.pieces.size() * m_heads.kept, 4, [&](size_t i, size_t thread) {
            const Piece& piece = plan.pieces[i / m_heads.kept];
            const size_t head = i % m_heads.kept;
            Scratch& scratch = m_scratch[thread];
            for (size_t token = 0; token < piece.tokens; ++token)
                keep(inputs, piece, token, head, cache, scratch);
            if (piece.wanted) round_queries(inputs, piece, head, m_queries[i], scratch);
        });
        for (size_t batch = 0; batch + 1 < plan.batches.size(); ++batch) {
            const auto from = plan.batches[batch], to = plan.batches[batch + 1];
            for_all(threads, (to.span - from.span) * m_heads.kept, 8, [&](size_t i, size_t thread) {
                attend(plan, plan.spans[from.span + i / m_heads.kept], i % m_heads.kept, cache,
                       m_scratch[thread]);
            });
            for_all(threads, to.piece - from.piece, 2, [&](size_t i, size_t thread) {
                const Piece& piece = plan.pieces[from.piece + i];
                if (piece.wanted) join(plan, piece, sinks, m_scratch[thread], thread, emit);
            });
        }
    }

private:
    // What a query has of one span, beside the sum of values, weighted by 2^(score - most) [width]:
    // the sum of the weights; the largest score.
    struct Partial {
        float sum;
        float most;
    };

    // Of one thread.
    struct Scratch {
        std::vector<float> scores;  // [queries, kSpan]
        std::vector<const uint8_t*> places;
        std::vector<float> result;
        std::vector<float> head;  // filled up with zeros
        Rows odds;
    };

    // In some `parts` for each of `threads`: a task by itself is short.
    template <typename Work>
    void for_all(size_t threads, size_t count, size_t parts, const Work& work) const {
        if (threads > 1)
            m_pool.run_together(count, count / (threads * parts) + 1, work);
        else
            for (size_t i = 0; i < count; ++i) work(i, size_t(0));
    }

    uint8_t* place(uint8_t* cache, const Piece& piece, size_t token, size_t head) const {
        const int32_t* const blocks = m_batch->blocks + m_batch->block_begins[piece.sequence];
        const size_t block = blocks[token / kBlock];
        return cache + (block * m_heads.kept + head) * m_layout.bytes();
    }

    size_t partial(const Piece& piece, size_t span, size_t head) const {
        return piece.partials +
               ((span - piece.first_span) * m_heads.kept + head) * piece.tokens * m_heads.group();
    }

    void round_queries(const HeadInputs& inputs, const Piece& piece, size_t head, Rows& rows,
                       Scratch& scratch) const {
        const size_t group = m_heads.group();
        rows.resize(piece.tokens * group, m_padded);
        for (size_t token = 0; token < piece.tokens; ++token)
            for (size_t i = 0; i < group; ++i) {
                float* const query =
                    inputs.queries + ((piece.row + token) * m_heads.queries + head * group + i) *
                                         m_heads.width;
                prepare_query(m_heads, inputs, piece.row + token, query);
                rows.round(spread(query, scratch), token * group + i);
            }
    }

    void keep(const HeadInputs& inputs, const Piece& piece, size_t index, size_t head,
              uint8_t* cache, Scratch& scratch) const {
        const size_t width = m_heads.width;
        const size_t token = (piece.past + index) % kBlock;
        const size_t row = (piece.row + index) * m_heads.kept + head;
        uint8_t* const found = place(cache, piece, piece.past + index, head);
        float* const key = inputs.keys + row * width;
        prepare_key(m_heads, inputs, piece.row + index, key);
        const float* const elements = spread(key, scratch);
        for (size_t group = 0; group < m_padded / kGroup; ++group)
            keep_key(elements + group * kGroup,
                     found + token / kOutputs * m_layout.key_tile() + group * m_layout.kKeyUnit,
                     token % kOutputs);
        keep_value(filled_up(inputs.values + row * width, scratch), found, token);
    }

    // With zeros behind it.
    float* filled_up(const float* head, Scratch& scratch) const {
        scratch.head.assign(m_padded, 0.0f);
        std::copy_n(head, m_heads.width, scratch.head.data());
        return scratch.head.data();
    }

    // A query or a key whose elements are each spread over their group: a few are many times as large
    // as all others, and whole groups would be rounded as coarsely.
    const float* spread(const float* head, Scratch& scratch) const {
        float* const filled = filled_up(head, scratch);
        for (size_t i = 0; i < m_padded; i += kGroup) hadamard(filled + i);
        return filled;
    }

    // A group of a token's key into its lane of a unit.
    static void keep_key(const float* key, uint8_t* unit, size_t lane) {
        alignas(8) uint8_t bytes[kGroup];
        const float largest = round_bytes(key, kGroup, bytes);
        for (size_t i = 0; i < kGroup; i += 4)
            std::memcpy(unit + kOutputs * i + 4 * lane, bytes + i, 4);
        const uint16_t scale = to_half(largest / 127.0f);
        std::memcpy(unit + kOutputs * kGroup + 2 * lane, &scale, sizeof scale);
    }

    void keep_value(const float* value, uint8_t* found, size_t token) const {
        const float largest = largest_in(value, m_padded);
        const F8 factor = all(factor_of(largest));
        for (size_t i = 0; i < m_padded; i += kEight) {
            uint8_t* const unit = found + m_layout.values() + i / kOutputs * m_layout.kValueUnit;
            uint8_t bytes[kEight];
            store_bytes(bytes, nearest(load(value + i) * factor));
            for (size_t k = 0; k < kEight; ++k)
                unit[kVector * (token / 4) + 4 * (i % kOutputs + k) + token % 4] = bytes[k];
        }
        const float scale = largest / 127.0f;
        std::memcpy(found + m_layout.scales() + token * sizeof scale, &scale, sizeof scale);
    }

    static float factor_of(float largest) { return largest >= kLeast ? 127.0f / largest : 0.0f; }

    static float largest_in(const float* x, size_t count) {
        F8 most = all(0.0f);
        for (size_t i = 0; i < count; i += kEight) most = larger(most, magnitude(load(x + i)));
        return largest_of(most);
    }

    // Returns the largest magnitude.
    static float round_bytes(const float* x, size_t count, uint8_t* bytes) {
        const float largest = largest_in(x, count);
        const F8 factor = all(factor_of(largest));
        for (size_t i = 0; i < count; i += kEight)
            store_bytes(bytes + i, nearest(load(x + i) * factor));
        return largest;
    }

    // The queries of a piece that share kept head `head`, over one span.
    void attend(const AttentionPlan& plan, const Span& span, size_t head, uint8_t* cache,
                Scratch& scratch) {
        const Piece& piece = plan.pieces[span.piece];
        const Rows& queries = m_queries[span.piece * m_heads.kept + head];
        // Of the span: what the piece's first token sees at most, and its last.
        const size_t begin =
            std::max(span.first, plan.first_seen(piece.past) / kBlock * kBlock);
        const size_t end = std::min(piece.past + piece.tokens, span.first + kSpan);
        if (scratch.scores.size() < queries.count * kSpan)
            scratch.scores.resize(queries.count * kSpan);
        scratch.places.clear();
        for (size_t token = begin; token < end; token += kBlock)
            scratch.places.push_back(place(cache, piece, token, head));
        const size_t tokens = scratch.places.size() * kBlock;
        products<Form::zero8>(KeyTiles{scratch.places.data(), m_layout.key_tile(), nullptr},
                              m_layout.key_tile(), queries, 0, tokens / kOutputs,
                              Target{scratch.scores.data(), nullptr, kSpan}, tokens);
        const size_t first = partial(piece, span.first / kSpan, head);
        scratch.odds.resize(queries.count, tokens);
        for (size_t row = 0; row < queries.count; ++row) {
            const size_t position = piece.past + row / m_heads.group();
            const size_t from = std::max(begin, plan.first_seen(position)) - begin;
            const size_t to = std::max(begin, std::min(end, position + 1)) - begin;
            m_partials[first + row] = soften(scratch.scores.data() + row * kSpan, from, to,
                                             scratch.places.data(), scratch.odds, row);
        }
        products<Form::plain8>(Scattered{scratch.places.data(), m_layout.values()},
                               m_layout.kValueUnit, scratch.odds, 0, m_padded / kOutputs,
                               Target{m_weighted.data() + first * m_padded, nullptr, m_padded},
                               m_padded);
    }

    // A row of `odds`: 2^(score - most), times the scale of the value, of the tokens from `from`
    // up to `to`; 0 of the others.
    Partial soften(float* scores, size_t from, size_t to, const uint8_t* const* places, Rows& odds,
                   size_t row) const {
        const Rows::Place at = odds.place(row);
        if (from >= to) {
            const float nothing[kBlock] = {};
            for (size_t group = 0; group < odds.groups; ++group) odds.put(nothing, at, group);
            return {0.0f, -std::numeric_limits<float>::infinity()};
        }
        const F8 none = all(-std::numeric_limits<float>::infinity());
        const F8 factor = all(m_scale * kLog2E);
        const auto partly = [&](size_t i) { return i < from || i + kEight > to; };
        const auto seen = [&](F8 x, F8 other, size_t i) {
            return between(x, other, int(from) - int(i), int(to) - int(i));
        };
        F8 most = none;
        for (size_t i = from / kEight * kEight; i < to; i += kEight) {
            F8 score = load(scores + i);
            if (m_heads.soft_cap > 0)
                score = soft_cap(score * all(m_scale), m_heads.soft_cap) * all(kLog2E);
            else
                score = score * factor;
            store(scores + i, score);
            most = larger(most, partly(i) ? seen(score, none, i) : score);
        }
        const float largest = largest_of(most);
        F8 sum = all(0.0f);
        for (size_t group = 0; group < odds.groups; ++group) {
            const auto* scales = reinterpret_cast<const float*>(places[group] + m_layout.scales());
            alignas(32) float part[kBlock] = {};
#pragma GCC unroll 4
            for (size_t k = 0; k < kBlock; k += kEight) {
                const size_t i = group * kBlock + k;
                if (i + kEight <= from || i >= to) continue;
                F8 score = load(scores + i) - all(largest);
                if (partly(i)) score = seen(score, all(0.0f), i);
                F8 odd = power_of_two(score);
                F8 scaled = odd * load(scales + k);
                if (partly(i)) {
                    odd = seen(odd, all(0.0f), i);
                    scaled = seen(scaled, all(0.0f), i);
                }
                sum = sum + odd;
                store(part + k, scaled);
            }
            odds.put(part, at, group);
        }
        return {sum_of(sum), largest};
    }

    // The spans of a piece's queries.
    template <typename Emit>
    void join(const AttentionPlan& plan, const Piece& piece, const float* sinks, Scratch& scratch,
              size_t thread, const Emit& emit) const {
        const size_t group = m_heads.group();
        // The last head is filled up, too.
        scratch.result.resize(m_heads.queries * m_heads.width + m_padded);
        for (size_t token = 0; token < piece.tokens; ++token) {
            const size_t position = piece.past + token;
            const size_t first = plan.first_seen(position) / kSpan, last = position / kSpan;
            for (size_t head = 0; head < m_heads.queries; ++head) {
                const auto at = [&](size_t span) {
                    return partial(piece, span, head / group) + token * group + head % group;
                };
                join_spans(first, last, at, sinks ? sinks + head : nullptr,
                           scratch.result.data() + head * m_heads.width);
            }
            emit(piece.row + token, scratch.result.data(), thread);
        }
    }

    template <typename At>
    void join_spans(size_t first, size_t last, const At& at, const float* sink,
                    float* result) const {
        const float none = sink ? *sink * kLog2E : -std::numeric_limits<float>::infinity();
        float most = none;
        for (size_t span = first; span <= last; ++span)
            most = std::max(most, m_partials[at(span)].most);
        float sum = sink ? first_of(power_of_two(all(none - most))) : 0.0f;
        std::fill_n(result, m_padded, 0.0f);
        for (size_t span = first; span <= last; ++span) {
            const Partial& partial = m_partials[at(span)];
            const float* weighted = m_weighted.data() + at(span) * m_padded;
            const F8 factor = power_of_two(all(partial.most - most));
            sum += first_of(factor) * partial.sum;
            for (size_t i = 0; i < m_padded; i += kEight)
                store(result + i, fma(factor, load(weighted + i), load(result + i)));
        }
        for (size_t i = 0; i < m_padded; i += kEight)
            store(result + i, load(result + i) / all(sum));
    }

    static float first_of(F8 x) {
        float lanes[kEight];
        store(lanes, x);
        return lanes[0];
    }

    Pool& m_pool;
    const Heads m_heads;
    const float m_scale;  // of the products of queries and keys
    const size_t m_padded;
    const CacheLayout m_layout;
    const mst_batch* m_batch = nullptr;
    std::vector<Scratch> m_scratch;
    std::vector<Rows> m_queries;  // [pieces, kept]
    std::vector<Partial> m_partials;
    std::vector<float> m_weighted;
};

}  // namespace mst::LEVEL
