// Attention of single tokens to what the KV cache holds of their sequences, in float32.
//
// Each token by itself, in spans of the cache of one size, whose results are joined in one order:
// so its bits depend neither on what is computed beside it nor on the number of threads.

#pragma once

#include <immintrin.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "vectors.hpp"

namespace {

constexpr size_t kBlock = 32;         // tokens of a block of the KV cache
constexpr size_t kSpan = 8 * kBlock;  // tokens that are summed up by themselves
constexpr size_t kWorthThreads = 1 << 17;  // products; fewer are done faster by one thread

// How many heads there are, and how wide each is.
struct Heads {
    size_t queries = 0;
    size_t kept = 0;  // that the cache keeps, each for several of the queries
    size_t width = 0;
    float scale = 0;

    size_t group() const { return queries / kept; }
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

// Of one layer, as OpenVINO lays it out: [blocks, kept, kBlock, width].
struct Cache {
    float* keys;
    float* values;
};

// The sequences whose next token each row is: `past` tokens [rows] lie in the cache, in the blocks
// from `begins[row]` on.
struct Sequences {
    const int32_t* past;
    const int32_t* blocks;
    const int32_t* begins;
};

// `query` times the keys [8, width] of eight tokens.
inline __m256 eight_scores(const float* query, const float* keys, size_t width) {
    __m256 sums[8];
    for (__m256& sum : sums) sum = _mm256_setzero_ps();
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_loadu_ps(query + i);
#pragma GCC unroll 8
        for (size_t t = 0; t < 8; ++t)
            sums[t] = _mm256_fmadd_ps(part, _mm256_loadu_ps(keys + t * width + i), sums[t]);
    }
    for (size_t t = 0; t < 4; ++t) sums[t] = _mm256_hadd_ps(sums[2 * t], sums[2 * t + 1]);
    const __m256 first = _mm256_hadd_ps(sums[0], sums[1]);
    const __m256 second = _mm256_hadd_ps(sums[2], sums[3]);
    return _mm256_add_ps(_mm256_permute2f128_ps(first, second, 0x20),
                         _mm256_permute2f128_ps(first, second, 0x31));
}

// The sum of values [count, width] times their weights, added to 8 * Parts columns of `result`.
template <int Parts>
void add_weighted(const float* weights, const float* values, size_t count, size_t width,
                  float* result) {
    __m256 sums[Parts];
    for (int i = 0; i < Parts; ++i) sums[i] = _mm256_loadu_ps(result + 8 * i);
    for (size_t t = 0; t < count; ++t) {
        const __m256 weight = _mm256_set1_ps(weights[t]);
#pragma GCC unroll 8
        for (int i = 0; i < Parts; ++i)
            sums[i] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + t * width + 8 * i), sums[i]);
    }
    for (int i = 0; i < Parts; ++i) _mm256_storeu_ps(result + 8 * i, sums[i]);
}

// What a query head has of one span: the sum of values, weighted by exp(score - most) [width];
// the sum of the weights; the largest score.
struct Partial {
    float* weighted;
    float sum;
    float most;
};

class Attention {
public:
    Attention(const Heads& heads, const Sequences& sequences, size_t rows)
        : m_heads(heads), m_sequences(sequences), m_rows(rows) {
        for (size_t row = 0; row < rows; ++row)
            for (size_t first = 0; first < length(row); first += kSpan)
                m_spans.push_back({row, first});
        m_partials.resize(m_spans.size() * heads.queries);
        m_weighted.resize(m_partials.size() * heads.width);
        for (size_t i = 0; i < m_partials.size(); ++i)
            m_partials[i].weighted = m_weighted.data() + i * heads.width;
        size_t products = 0;
        for (size_t row = 0; row < rows; ++row)
            products += 2 * length(row) * heads.queries * heads.width;
        m_threads = products >= kWorthThreads;
    }

    // `result` [rows, queries * width]. Keys and values of all rows enter the cache first: rows of
    // one sequence see those before them.
    void compute(const Given& given, const Cache& cache, float* result) {
        for (size_t row = 0; row < m_rows; ++row) keep(given, row, cache);
        for_all(m_spans.size() * m_heads.kept, [&](size_t i) {
            const Span& span = m_spans[i / m_heads.kept];
            attend(given.queries.row(span.row), span, i / m_heads.kept, i % m_heads.kept, cache);
        });
        size_t first = 0;
        for (size_t row = 0; row < m_rows; ++row) {
            const size_t count = (length(row) + kSpan - 1) / kSpan;
            for (size_t head = 0; head < m_heads.queries; ++head)
                join(first, count, head, result + (row * m_heads.queries + head) * m_heads.width);
            first += count;
        }
    }

private:
    struct Span {
        size_t row;
        size_t first;  // token
    };

    size_t length(size_t row) const { return size_t(m_sequences.past[row]) + 1; }

    template <typename Work>
    void for_all(size_t count, const Work& work) const {
        if (m_threads)
            tbb::parallel_for(size_t(0), count, work);
        else
            for (size_t i = 0; i < count; ++i) work(i);
    }

    // Where the cache holds what a head keeps of a token.
    float* place(float* cache, size_t row, size_t token, size_t head) const {
        const size_t block = m_sequences.blocks[m_sequences.begins[row] + token / kBlock];
        return cache + ((block * m_heads.kept + head) * kBlock + token % kBlock) * m_heads.width;
    }

    void keep(const Given& given, size_t row, const Cache& cache) const {
        const size_t token = length(row) - 1;
        const float* keys = given.keys.row(row);
        const float* values = given.values.row(row);
        for (size_t head = 0; head < m_heads.kept; ++head) {
            const size_t offset = head * m_heads.width;
            const size_t bytes = m_heads.width * sizeof(float);
            std::memcpy(place(cache.keys, row, token, head), keys + offset, bytes);
            std::memcpy(place(cache.values, row, token, head), values + offset, bytes);
        }
    }

    // The query heads that share kept head `head`, over one span.
    void attend(const float* queries, const Span& span, size_t index, size_t head, const Cache& cache) {
        const size_t width = m_heads.width;
        const size_t last = std::min(length(span.row), span.first + kSpan);
        for (size_t i = 0; i < m_heads.group(); ++i) {
            const size_t query_head = head * m_heads.group() + i;
            const float* query = queries + query_head * width;
            Partial& partial = m_partials[index * m_heads.queries + query_head];
            alignas(32) float scores[kSpan];
            __m256 most = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
            for (size_t token = span.first; token < last; token += 8) {
                const float* keys = place(cache.keys, span.row, token, head);
                __m256 eight = _mm256_mul_ps(eight_scores(query, keys, width),
                                             _mm256_set1_ps(m_heads.scale));
                eight = _mm256_blendv_ps(_mm256_set1_ps(-std::numeric_limits<float>::infinity()),
                                         eight, there(last - token));
                _mm256_store_ps(scores + token - span.first, eight);
                most = _mm256_max_ps(most, eight);
            }
            partial.most = most_of(most);
            __m256 sum = _mm256_setzero_ps();
            for (size_t token = span.first; token < last; token += 8) {
                float* place = scores + token - span.first;
                const __m256 below = _mm256_sub_ps(_mm256_load_ps(place), _mm256_set1_ps(partial.most));
                const __m256 weights = _mm256_and_ps(exponential(below), there(last - token));
                _mm256_store_ps(place, weights);
                sum = _mm256_add_ps(sum, weights);
            }
            partial.sum = sum_of(sum);
            std::fill_n(partial.weighted, width, 0.0f);
            for (size_t token = span.first; token < last; token += kBlock) {
                const float* values = place(cache.values, span.row, token, head);
                const size_t count = std::min(kBlock, last - token);
                const float* weights = scores + token - span.first;
                size_t column = 0;
                for (; column + 64 <= width; column += 64)
                    add_weighted<8>(weights, values + column, count, width, partial.weighted + column);
                for (; column < width; column += 8)
                    add_weighted<1>(weights, values + column, count, width, partial.weighted + column);
            }
        }
    }

    // The `count` spans from `first` on, of one query head, into `result` [width].
    void join(size_t first, size_t count, size_t head, float* result) const {
        const auto partial = [&](size_t span) -> const Partial& {
            return m_partials[(first + span) * m_heads.queries + head];
        };
        float most = partial(0).most;
        for (size_t span = 1; span < count; ++span) most = std::max(most, partial(span).most);
        float sum = 0;
        std::fill_n(result, m_heads.width, 0.0f);
        for (size_t span = 0; span < count; ++span) {
            const __m256 factor = exponential(_mm256_set1_ps(partial(span).most - most));
            sum += _mm256_cvtss_f32(factor) * partial(span).sum;
            for (size_t i = 0; i < m_heads.width; i += 8) {
                const __m256 part = _mm256_loadu_ps(partial(span).weighted + i);
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

    const Heads& m_heads;
    const Sequences& m_sequences;
    size_t m_rows;
    bool m_threads;
    std::vector<Span> m_spans;
    std::vector<Partial> m_partials;
    std::vector<float> m_weighted;
};

}  // namespace
