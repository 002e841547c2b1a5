// Attention to what the KV cache holds of a sequence, in 8 bits a value: the two products of
// `products.hpp`, with a softmax in float32 between them.
//
// Each token by itself, in spans of the cache of one size, whose results are joined in one order.
// So its bits depend neither on what is computed beside it, nor on how many tokens of its sequence
// are, nor on the number of threads.

#pragma once

#include <immintrin.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "products.hpp"
#include "vectors.hpp"

namespace {

constexpr size_t kBlock = kGroup;     // tokens of a block of the KV cache
constexpr size_t kSpan = 8 * kBlock;  // tokens that are summed up by themselves
constexpr size_t kTokens = 8;         // of a sequence, that read the cache together
constexpr size_t kPartials = 1 << 20;  // floats of the results of spans that wait to be joined
constexpr size_t kWorthThreads = 1 << 17;  // products; fewer are done faster by one thread
constexpr uint8_t kMiddle = 128;           // the zero point of 8 bits
constexpr float kLog2E = 1.44269504f;      // scores are powers of two, which are less work

// How many heads there are, and how wide each is.
struct Heads {
    size_t queries = 0;
    size_t kept = 0;  // that the cache keeps, each for several of the queries
    size_t width = 0;
    float scale = 0;

    size_t group() const { return queries / kept; }
};

// What a block of the cache holds of a head, in this order, as weights of 8 bits: its keys, tokens
// for outputs; its values, tokens for inputs, with scales of 1; the values' own scales, float32
// [kBlock]. Those are of a token, as nothing may depend on the tokens behind it.
struct Layout {
    size_t width;

    size_t key_tile() const { return width / kGroup * block_bytes(8); }
    size_t values() const { return kBlock / kOutputs * key_tile(); }
    size_t scales() const { return values() + width / kOutputs * block_bytes(8); }
    size_t bytes() const { return scales() + kBlock * sizeof(float); }
};

// Rows of queries [queries, width], or of keys or values [kept, width], `stride` floats apart.
struct Part {
    const float* first;
    size_t stride;

    const float* row(size_t index) const { return first + index * stride; }
};

struct Given {
    Part queries;
    Part keys;
    Part values;
};

// Whose tokens the rows are: of each sequence those from `begins` on, behind `past` others, in the
// blocks from `block_begins` on. The cache [blocks, kept] holds what `Layout` says.
struct Sequences {
    size_t count;
    const int32_t* past;
    const int32_t* begins;
    const int32_t* blocks;
    const int32_t* block_begins;
};

class Attention {
public:
    // For the steps of one call. What it needs is kept from call to call.
    void prepare(const Heads& heads, const Sequences& sequences) {
        m_heads = heads;
        m_sequences = sequences;
        m_layout = {heads.width};
        m_pieces.clear();
        m_spans.clear();
        m_batches.clear();
        size_t partials = 0, most = 0, products = 0;
        for (size_t i = 0; i < sequences.count; ++i)
            for (int32_t row = sequences.begins[i]; row < sequences.begins[i + 1]; row += kTokens) {
                const size_t tokens = std::min<size_t>(kTokens, sequences.begins[i + 1] - row);
                const size_t past = sequences.past[i] + row - sequences.begins[i];
                Piece piece{i, size_t(row), past, tokens, partials};
                const size_t more = tokens * piece.spans() * heads.queries;
                if (m_batches.empty() || (partials + more) * heads.width > kPartials) {
                    m_batches.push_back({m_pieces.size(), m_spans.size()});
                    partials = piece.partials = 0;
                }
                for (size_t first = 0; first < past + tokens; first += kSpan)
                    m_spans.push_back({m_pieces.size(), first});
                partials += more;
                most = std::max(most, partials);
                products += 2 * (past + tokens) * tokens * heads.queries * heads.width;
                m_pieces.push_back(piece);
            }
        grow(m_queries, m_pieces.size() * heads.kept);
        m_batches.push_back({m_pieces.size(), m_spans.size()});
        grow(m_partials, most);
        grow(m_weighted, most * heads.width);
        m_threads = products >= kWorthThreads;
    }

    // `result` [rows, queries * width]. Keys and values of all rows enter the cache first: rows of
    // one sequence see those before them.
    void compute(const Given& given, uint8_t* cache, float* result) {
        for_all(m_pieces.size() * m_heads.kept, [&](size_t i) {
            const Piece& piece = m_pieces[i / m_heads.kept];
            const size_t head = i % m_heads.kept;
            for (size_t token = 0; token < piece.tokens; ++token)
                keep(given, piece, token, head, cache);
            round_queries(given.queries, piece, head, m_queries[i]);
        });
        for (size_t batch = 0; batch + 1 < m_batches.size(); ++batch) {
            const Batch from = m_batches[batch], to = m_batches[batch + 1];
            for_all((to.span - from.span) * m_heads.kept, [&](size_t i) {
                attend(m_spans[from.span + i / m_heads.kept], i % m_heads.kept, cache);
            });
            for_all(to.piece - from.piece, [&](size_t i) { join(m_pieces[from.piece + i], result); });
        }
    }

private:
    // Where pieces begin whose spans wait together.
    struct Batch {
        size_t piece;
        size_t span;
    };

    // Tokens of a sequence that follow each other; their results begin at `partials`.
    struct Piece {
        size_t sequence;
        size_t row;
        size_t past;
        size_t tokens;
        size_t partials;

        size_t spans() const { return (past + tokens + kSpan - 1) / kSpan; }
    };

    struct Span {
        size_t piece;
        size_t first;  // token
    };

    // What a query has of one span, beside the sum of values, weighted by 2^(score - most) [width]:
    // the sum of the weights; the largest score.
    struct Partial {
        float sum;
        float most;
    };

    // Of one thread.
    struct Scratch {
        std::vector<float> scores;  // [queries, kSpan], then their exponentials
        std::vector<const uint8_t*> places;
        Rows odds;
    };

    template <typename T>
    static void grow(std::vector<T>& values, size_t count) {
        if (values.size() < count) values.resize(count);
    }

    template <typename Work>
    void for_all(size_t count, const Work& work) const {
        if (m_threads)
            tbb::parallel_for(size_t(0), count, work);
        else
            for (size_t i = 0; i < count; ++i) work(i);
    }

    uint8_t* place(uint8_t* cache, const Piece& piece, size_t token, size_t head) const {
        const int32_t* const blocks =
            m_sequences.blocks + m_sequences.block_begins[piece.sequence];
        const size_t block = blocks[token / kBlock];
        return cache + (block * m_heads.kept + head) * m_layout.bytes();
    }

    size_t partial(const Piece& piece, size_t span, size_t head) const {
        return piece.partials + (span * m_heads.kept + head) * piece.tokens * m_heads.group();
    }

    void round_queries(const Part& queries, const Piece& piece, size_t head, Rows& rows) const {
        const size_t group = m_heads.group();
        rows.resize(piece.tokens * group, m_heads.width);
        for (size_t row = 0; row < rows.count; ++row)
            rows.round(queries.row(piece.row + row / group) +
                           (head * group + row % group) * m_heads.width,
                       row);
    }

    void keep(const Given& given, const Piece& piece, size_t index, size_t head,
              uint8_t* cache) const {
        const size_t width = m_heads.width;
        const size_t token = (piece.past + index) % kBlock;
        uint8_t* const found = place(cache, piece, piece.past + index, head);
        const float* keys = given.keys.row(piece.row + index) + head * width;
        for (size_t group = 0; group < width / kGroup; ++group) {
            uint8_t* const block =
                found + token / kOutputs * m_layout.key_tile() + group * block_bytes(8);
            const float largest = largest_of(keys + group * kGroup, kGroup);
            const size_t lane = token % kOutputs;
            for (size_t i = 0; i < kGroup; ++i)
                block[32 * (i / 4) + 4 * lane + i % 4] =
                    rounded(keys[group * kGroup + i], largest);
            const uint16_t scale = _cvtss_sh(largest / 127.0f, _MM_FROUND_TO_NEAREST_INT);
            std::memcpy(block + 32 * 8 + 2 * lane, &scale, sizeof scale);
            block[32 * 8 + 2 * kOutputs + lane] = kMiddle;
        }
        const float* values = given.values.row(piece.row + index) + head * width;
        const float largest = largest_of(values, width);
        for (size_t i = 0; i < width; ++i) {
            uint8_t* const block = found + m_layout.values() + i / kOutputs * block_bytes(8);
            block[32 * (token / 4) + 4 * (i % kOutputs) + token % 4] = rounded(values[i], largest);
            if (token == 0 && i % kOutputs == 0) {
                const uint16_t one = 0x3c00;
                for (size_t k = 0; k < kOutputs; ++k)
                    std::memcpy(block + 32 * 8 + 2 * k, &one, sizeof one);
                std::memset(block + 32 * 8 + 2 * kOutputs, kMiddle, kOutputs);
            }
        }
        const float scale = largest / 127.0f;
        std::memcpy(found + m_layout.scales() + token * sizeof scale, &scale, sizeof scale);
    }

    static float largest_of(const float* x, size_t count) {
        __m256 most = _mm256_setzero_ps();
        for (size_t i = 0; i < count; i += 8)
            most = _mm256_max_ps(
                most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + i)));
        return most_of(most);
    }

    static uint8_t rounded(float value, float largest) {
        const float factor = largest > 0 ? 127.0f / largest : 0.0f;
        return uint8_t(_mm_cvtss_si32(_mm_set_ss(value * factor)) + kMiddle);
    }

    // The queries of a piece that share kept head `head`, over one span.
    void attend(const Span& span, size_t head, uint8_t* cache) {
        thread_local Scratch kept;
        Scratch& scratch = kept;
        const Piece& piece = m_pieces[span.piece];
        const Rows& queries = m_queries[span.piece * m_heads.kept + head];
        const size_t last = std::min(piece.past + piece.tokens, span.first + kSpan);
        grow(scratch.scores, queries.count * kSpan);
        scratch.places.clear();
        const auto product = [](const auto& blocks, auto... rest) {
            using Blocks = std::decay_t<decltype(blocks)>;
            (has_vnni() ? tiles<true, 8, Blocks> : tiles<false, 8, Blocks>)(blocks, rest...);
        };
        for (size_t token = span.first; token < last; token += kBlock) {
            const uint8_t* found = place(cache, piece, token, head);
            scratch.places.push_back(found);
            const Target target{scratch.scores.data() + token - span.first, nullptr, kSpan};
            product(Run{found, block_bytes(8)}, m_layout.key_tile(), std::cref(queries), 0,
                    kBlock / kOutputs, target, kBlock);
        }
        const size_t first = partial(piece, span.first / kSpan, head);
        scratch.odds.resize(queries.count, scratch.places.size() * kBlock);
        for (size_t row = 0; row < queries.count; ++row) {
            const size_t length = piece.past + row / m_heads.group() + 1;
            const size_t count = std::min(kSpan, std::max(length, span.first) - span.first);
            m_partials[first + row] = soften(scratch.scores.data() + row * kSpan, count,
                                             scratch.places.data(), scratch.odds, row);
        }
        product(Scattered{scratch.places.data(), m_layout.values()}, block_bytes(8),
                std::cref(scratch.odds), 0, m_heads.width / kOutputs,
                Target{m_weighted.data() + first * m_heads.width, nullptr, m_heads.width},
                m_heads.width);
    }

    // A row of `odds`: 2^(score - most), times the scale of the value, of the first `count` tokens;
    // 0 of the others, up to the end of the last block. Not inlined, as threads' own variables are
    // looked up anew where a loop reads them.
    [[gnu::noinline]] Partial soften(float* scores, size_t count, const uint8_t* const* places,
                                     Rows& odds, size_t row) const {
        const __m256 none = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
        const __m256 factor = _mm256_set1_ps(m_heads.scale * kLog2E);
        const auto score = [&](size_t i) {
            return _mm256_mul_ps(_mm256_loadu_ps(scores + i), factor);
        };
        const size_t whole = count / 8 * 8;
        __m256 most = none;
        for (size_t i = 0; i < whole; i += 8) most = _mm256_max_ps(most, score(i));
        const __m256 rest = there(count - whole);
        if (whole < count) most = _mm256_max_ps(most, _mm256_blendv_ps(none, score(whole), rest));
        const float largest = most_of(most);
        const size_t scales = m_layout.scales();
        const Rows::Place at = odds.place(row);
        __m256 sum = _mm256_setzero_ps();
        for (size_t group = 0; group < odds.groups; ++group) {
            const auto* scale = reinterpret_cast<const float*>(places[group] + scales);
            __m256 part[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                const size_t i = group * kBlock + 8 * k;
                if (i >= count) {
                    part[k] = _mm256_setzero_ps();
                    continue;
                }
                part[k] = power_of_two(_mm256_sub_ps(score(i), _mm256_set1_ps(largest)));
                if (i >= whole) part[k] = _mm256_and_ps(part[k], rest);
                sum = _mm256_add_ps(sum, part[k]);
                part[k] = _mm256_mul_ps(part[k], _mm256_loadu_ps(scale + 8 * k));
                if (i >= whole) part[k] = _mm256_and_ps(part[k], rest);
            }
            odds.put(part, at, group);
        }
        return {sum_of(sum), largest};
    }

    // The spans of a piece's queries into their rows of `result`.
    void join(const Piece& piece, float* result) const {
        const size_t group = m_heads.group();
        for (size_t token = 0; token < piece.tokens; ++token)
            for (size_t head = 0; head < m_heads.queries; ++head) {
                const auto at = [&](size_t span) {
                    return partial(piece, span, head / group) + token * group + head % group;
                };
                const size_t count = (piece.past + token + kSpan) / kSpan;
                const size_t row = (piece.row + token) * m_heads.queries + head;
                join_spans(count, at, result + row * m_heads.width);
            }
    }

    template <typename At>
    void join_spans(size_t count, const At& at, float* result) const {
        float most = m_partials[at(0)].most;
        for (size_t span = 1; span < count; ++span) most = std::max(most, m_partials[at(span)].most);
        float sum = 0;
        std::fill_n(result, m_heads.width, 0.0f);
        for (size_t span = 0; span < count; ++span) {
            const Partial& partial = m_partials[at(span)];
            const float* weighted = m_weighted.data() + at(span) * m_heads.width;
            const __m256 factor = power_of_two(_mm256_set1_ps(partial.most - most));
            sum += _mm256_cvtss_f32(factor) * partial.sum;
            for (size_t i = 0; i < m_heads.width; i += 8) {
                const __m256 part = _mm256_loadu_ps(weighted + i);
                _mm256_storeu_ps(result + i,
                                 _mm256_fmadd_ps(factor, part, _mm256_loadu_ps(result + i)));
            }
        }
        const __m256 whole = _mm256_set1_ps(sum);
        for (size_t i = 0; i < m_heads.width; i += 8)
            _mm256_storeu_ps(result + i, _mm256_div_ps(_mm256_loadu_ps(result + i), whole));
    }

    // All bits of the first `count` of eight places.
    static __m256 there(size_t count) {
        const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i first = _mm256_set1_epi32(int(std::min<size_t>(count, 8)));
        return _mm256_castsi256_ps(_mm256_cmpgt_epi32(first, places));
    }

    static float most_of(__m256 eight) {
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }

    Heads m_heads;
    Sequences m_sequences{};
    Layout m_layout{};
    bool m_threads = false;
    std::vector<Piece> m_pieces;
    std::vector<Span> m_spans;
    std::vector<Batch> m_batches;  // and the end of the last
    std::vector<Rows> m_queries;  // [pieces, kept]
    std::vector<Partial> m_partials;
    std::vector<float> m_weighted;
};

}  // namespace
