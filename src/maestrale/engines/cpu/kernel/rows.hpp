// Rows of activations, rounded to 8 bits in groups of 32: q = nearest(x * (127 / largest)), where
// `largest` is the largest magnitude in the group, and the scale is largest / 127. A group that holds
// something that is not finite is NaN as a whole.
//
// Of rows with outliers the value of the largest magnitude (the first of several) is held apart, in
// float32, and is 0 in its group: norms leave a few inputs that are many times as large as all others,
// and whose groups would be rounded as coarsely.

#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "lanes.hpp"
#include "layout.hpp"
#include "vectors.hpp"

namespace mst::LEVEL {

// Memory that grows, and is not initialised: lines of the cache of its own.
template <typename T>
class Buffer {
public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept : m_data(other.m_data), m_size(other.m_size) {
        other.m_data = nullptr;
        other.m_size = 0;
    }
    Buffer& operator=(Buffer&& other) noexcept {
        if (this != &other) {
            std::free(m_data);
            m_data = other.m_data;
            m_size = other.m_size;
            other.m_data = nullptr;
            other.m_size = 0;
        }
        return *this;
    }
    ~Buffer() { std::free(m_data); }

    // At least so many; what was there is lost where it grows.
    void reserve(size_t count) {
        if (count <= m_size) return;
        std::free(m_data);
        m_data = nullptr;
        m_size = 0;
        const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
        m_data = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (!m_data) throw std::bad_alloc();
        m_size = count;
    }

    T* data() { return m_data; }
    const T* data() const { return m_data; }

private:
    T* m_data = nullptr;
    size_t m_size = 0;
};

// Groups whose largest magnitude is below this are 0.
constexpr float kLeast = 1e-30f;
constexpr float kNan = __builtin_nanf("");

// To the nearest whole number, the even one of two; for small numbers.
MST_INLINE int32_t nearest(float value) { return int32_t((value + 12582912.0f) - 12582912.0f); }

constexpr size_t kTogether = 16;  // rows that lie beside each other

inline std::atomic<uint64_t> last_version{0};

// Rows lie together sixteen by sixteen, the rest by themselves: group by group, in it row by row.
struct Rows {
    size_t count = 0;
    size_t inputs = 0;  // up to a whole group
    size_t groups = 0;
    uint64_t version = 0;  // of the contents, of all rows of the process
    Buffer<int8_t> values;    // of rows together: [groups, rows, 32]
    Buffer<float> scales;     // [groups, rows]
    Buffer<float> weighted;   // the sum of a group's values times its scale, [groups, rows]
    Buffer<int32_t> sums;     // of 16 values, [2 * groups, rows]
    bool has_outliers = false;
    Buffer<float> outliers;      // [rows]
    Buffer<uint32_t> outlier_of;  // [rows]: which input that is

    // Before rows are rounded, each time. `width`: of a row; what is missing to a whole group is 0.
    void resize(size_t rows, size_t width, bool with_outliers = false) {
        version = ++last_version;
        has_outliers = with_outliers;
        count = rows;
        m_width = width;
        groups = (width + kGroup - 1) / kGroup;
        inputs = groups * kGroup;
        values.reserve(rows * inputs);
        scales.reserve(rows * groups);
        weighted.reserve(rows * groups);
        sums.reserve(2 * rows * groups);
        if (has_outliers) outliers.reserve(rows);
        if (has_outliers) outlier_of.reserve(rows);
    }

    // Where a row is: behind the rows before those that it lies together with.
    struct Place {
        size_t before;
        size_t beside;  // how many lie together
        size_t index;   // among them
    };

    Place place(size_t row) const {
        const size_t before = row / kTogether * kTogether;
        const size_t left = count - before;
        return {before, left < kTogether ? left : kTogether, row - before};
    }

    void round(const float* source, size_t row) {
        const Place at = place(row);
        const size_t whole = m_width / kGroup;
        const size_t apart = has_outliers ? hold_apart(source, row) : inputs;
        for (size_t group = 0; group < groups; ++group) {
            if (group < whole && group != apart / kGroup) {
                put(source + group * kGroup, at, group);
                continue;
            }
            float part[kGroup] = {};
            const size_t count = group < whole ? kGroup : m_width % kGroup;
            std::memcpy(part, source + group * kGroup, count * sizeof(float));
            if (group == apart / kGroup) part[apart % kGroup] = 0;
            put(part, at, group);
        }
    }

    // A group of a row, rounded.
    void put(const float* part, const Place& at, size_t group);

private:
    size_t m_width = 0;

    // The input that is a row's outlier; none where one isn't finite.
    size_t hold_apart(const float* source, size_t row) {
        float largest = 0;
        size_t first = m_width;  // of the eight that it is among
        for_eights(m_width, [&](size_t i, size_t count) {
            const float most = largest_of(magnitude(load_some(source + i, count)));
            if (most > largest) {
                largest = most;
                first = i;
            }
        });
        size_t index = largest < INFINITY ? first : m_width;
        while (index < m_width && std::fabs(source[index]) != largest) ++index;
        const bool found = index < m_width;
        outliers.data()[row] = found ? source[index] : 0.0f;
        outlier_of.data()[row] = found ? uint32_t(index) : 0;
        return found ? index : inputs;
    }

    MST_INLINE int8_t* values_of(const Place& at, size_t group) {
        return values.data() + at.before * inputs + (group * at.beside + at.index) * kGroup;
    }

    // What is known of a group beside its values.
    MST_INLINE void note(const Place& at, size_t group, float scale, int32_t first, int32_t second) {
        const size_t i = at.before * groups + group * at.beside + at.index;
        scales.data()[i] = scale;
        weighted.data()[i] = scale * float(first + second);
        int32_t* const sum = sums.data() + 2 * (at.before * groups + group * at.beside) + at.index;
        sum[0] = first;
        sum[at.beside] = second;
    }
};

#if defined(LEVEL_AVX2) || defined(LEVEL_AVX512)

inline void Rows::put(const float* part, const Place& at, size_t group) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256 parts[4];
    __m256i most = _mm256_setzero_si256();  // as whole numbers: not a number is above all others
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        parts[i] = _mm256_loadu_ps(part + 8 * i);
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(parts[i]), magnitude));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    float largest = _mm_cvtss_f32(_mm_castsi128_ps(four));
    const bool finite = _mm_cvtsi128_si32(four) < 0x7f800000;
    if (!finite)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) parts[i] = _mm256_setzero_ps();
    const __m256 factor = _mm256_set1_ps(finite && largest >= kLeast ? 127.0f / largest : 0.0f);
    __m256i whole[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(parts[i], factor));
    const __m256i first = _mm256_add_epi32(whole[0], whole[1]);
    const __m256i second = _mm256_add_epi32(whole[2], whole[3]);
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                       _mm256_packs_epi32(whole[2], whole[3]));
    // The packs work on halves of a vector: bring their quarters back in order.
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values_of(at, group)), bytes);
    const __m256i both = _mm256_hadd_epi32(first, second);  // first's pairs, then second's, twice
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    note(at, group, finite ? largest / 127.0f : kNan, _mm_cvtsi128_si32(sum), _mm_extract_epi32(sum, 2));
}

#elif defined(LEVEL_NEON) || defined(LEVEL_I8MM)

inline void Rows::put(const float* part, const Place& at, size_t group) {
    float32x4_t parts[8];
    uint32x4_t most = vdupq_n_u32(0);  // as whole numbers: not a number is above all others
    for (int i = 0; i < 8; ++i) {
        parts[i] = vld1q_f32(part + 4 * i);
        most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(parts[i])));
    }
    const uint32_t bits = vmaxvq_u32(most);
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    const bool finite = bits < 0x7f800000;
    if (!finite)
        for (float32x4_t& four : parts) four = vdupq_n_f32(0.0f);
    const float factor = finite && largest >= kLeast ? 127.0f / largest : 0.0f;
    int32x4_t whole[8];
    for (int i = 0; i < 8; ++i) whole[i] = vcvtnq_s32_f32(vmulq_n_f32(parts[i], factor));
    int8_t* const to = values_of(at, group);
    int32_t sums_of[2];
    for (int half = 0; half < 2; ++half) {
        const int32x4_t* const four = whole + 4 * half;
        const int16x8_t low = vcombine_s16(vmovn_s32(four[0]), vmovn_s32(four[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(four[2]), vmovn_s32(four[3]));
        vst1q_s8(to + 16 * half, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        sums_of[half] = vaddvq_s32(vaddq_s32(vaddq_s32(four[0], four[1]), vaddq_s32(four[2], four[3])));
    }
    note(at, group, finite ? largest / 127.0f : kNan, sums_of[0], sums_of[1]);
}

#else

inline void Rows::put(const float* part, const Place& at, size_t group) {
    uint32_t most = 0;  // as whole numbers: not a number is above all others
    for (size_t i = 0; i < kGroup; ++i) {
        uint32_t bits;
        std::memcpy(&bits, part + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    const bool finite = most < 0x7f800000;
    const float factor = finite && largest >= kLeast ? 127.0f / largest : 0.0f;
    int8_t* const to = values_of(at, group);
    int32_t sum[2] = {0, 0};
    for (size_t i = 0; i < kGroup; ++i) {
        const float value = finite ? part[i] * factor : 0.0f;
        to[i] = int8_t(nearest(value));
        sum[i / 16] += to[i];
    }
    note(at, group, finite ? largest / 127.0f : kNan, sum[0], sum[1]);
}

#endif

}  // namespace mst::LEVEL
