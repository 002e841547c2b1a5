// Eight floats at once, on every level with the same bits: sums go over eight lanes and then one
// tree, fused multiply-adds stand where they are written, and exp, tanh and 2^x are polynomials of
// our own. Of a row whose width eight doesn't divide, the last vector is filled up with zeros.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(LEVEL_AVX2) || defined(LEVEL_AVX512)
#include <immintrin.h>
#elif defined(LEVEL_NEON) || defined(LEVEL_I8MM)
#include <arm_neon.h>
#endif

namespace mst::LEVEL {

constexpr size_t kEight = 8;

// 1.5 * 2^23: what is added to a float below 2^22 rounds it to a whole number, ties to even.
constexpr float kRounder = 12582912.0f;

#if defined(LEVEL_AVX2) || defined(LEVEL_AVX512)

struct F8 {
    __m256 v;
};

inline F8 load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline void store(float* to, F8 x) { _mm256_storeu_ps(to, x.v); }
inline F8 all(float x) { return {_mm256_set1_ps(x)}; }
inline F8 operator+(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 operator-(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 operator*(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 operator/(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
// a * b + c, and c - a * b, rounded once.
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 fnma(F8 a, F8 b, F8 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline F8 larger(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 smaller(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 magnitude(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F8 nearest(F8 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^power, for whole numbers; both are normal floats.
inline F8 scale_by_power(F8 x, F8 power) {
    return {_mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(x.v), _mm256_slli_epi32(_mm256_cvtps_epi32(power.v), 23)))};
}
// Of the lanes from `first` up to `last`, x; of the others, y.
inline F8 between(F8 x, F8 y, int first, int last) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                               _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
    return {_mm256_blendv_ps(y.v, x.v, _mm256_castsi256_ps(inside))};
}
// Lane i is lane i ^ Distance: 1, 2 or 4.
template <int Distance>
inline F8 swapped(F8 x) {
    if constexpr (Distance == 4) return {_mm256_permute2f128_ps(x.v, x.v, 1)};
    return {_mm256_permute_ps(x.v, Distance == 2 ? 0x4e : 0xb1)};
}
inline float sum_of(F8 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float largest_of(F8 x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
// Of whole numbers from -127 to 127, each plus 128.
inline void store_bytes(uint8_t* to, F8 x) {
    const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(128));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                          _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}

#elif defined(LEVEL_NEON) || defined(LEVEL_I8MM)

struct F8 {
    float32x4_t low, high;
};

inline F8 load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
inline void store(float* to, F8 x) {
    vst1q_f32(to, x.low);
    vst1q_f32(to + 4, x.high);
}
inline F8 all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F8 operator+(F8 a, F8 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline F8 operator-(F8 a, F8 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline F8 operator*(F8 a, F8 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline F8 operator/(F8 a, F8 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline F8 fma(F8 a, F8 b, F8 c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline F8 fnma(F8 a, F8 b, F8 c) {
    return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
// As on x86: the second where neither is larger.
inline F8 larger(F8 a, F8 b) {
    return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low),
            vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
}
inline F8 smaller(F8 a, F8 b) {
    return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low),
            vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
}
inline F8 magnitude(F8 a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
inline F8 nearest(F8 a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
inline F8 scale_by_power(F8 x, F8 power) {
    const auto with = [](float32x4_t a, float32x4_t b) {
        return vreinterpretq_f32_s32(
            vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtnq_s32_f32(b), 23)));
    };
    return {with(x.low, power.low), with(x.high, power.high)};
}
inline F8 between(F8 x, F8 y, int first, int last) {
    const int32_t counted[4] = {0, 1, 2, 3};
    const auto with = [&](float32x4_t a, float32x4_t b, int32_t from) {
        const int32x4_t lane = vaddq_s32(vld1q_s32(counted), vdupq_n_s32(from));
        const uint32x4_t inside =
            vandq_u32(vcgeq_s32(lane, vdupq_n_s32(first)), vcltq_s32(lane, vdupq_n_s32(last)));
        return vbslq_f32(inside, a, b);
    };
    return {with(x.low, y.low, 0), with(x.high, y.high, 4)};
}
template <int Distance>
inline F8 swapped(F8 x) {
    if constexpr (Distance == 4) return {x.high, x.low};
    if constexpr (Distance == 2) return {vextq_f32(x.low, x.low, 2), vextq_f32(x.high, x.high, 2)};
    return {vrev64q_f32(x.low), vrev64q_f32(x.high)};
}
inline float sum_of(F8 x) {
    const float32x4_t four = vaddq_f32(x.low, x.high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest_of(F8 x) { return vmaxvq_f32(vmaxq_f32(x.low, x.high)); }
inline void store_bytes(uint8_t* to, F8 x) {
    const int16x8_t words = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.low)),
                                         vmovn_s32(vcvtnq_s32_f32(x.high)));
    vst1_u8(to, vqmovun_s16(vaddq_s16(words, vdupq_n_s16(128))));
}

#else

struct F8 {
    float v[kEight];
};

template <typename Of>
inline F8 each(const Of& of) {
    F8 result;
    for (size_t i = 0; i < kEight; ++i) result.v[i] = of(i);
    return result;
}

inline F8 load(const float* from) { return each([&](size_t i) { return from[i]; }); }
inline void store(float* to, const F8& x) { std::memcpy(to, x.v, sizeof x.v); }
inline F8 all(float x) { return each([&](size_t) { return x; }); }
inline F8 operator+(const F8& a, const F8& b) {
    return each([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline F8 operator-(const F8& a, const F8& b) {
    return each([&](size_t i) { return a.v[i] - b.v[i]; });
}
inline F8 operator*(const F8& a, const F8& b) {
    return each([&](size_t i) { return a.v[i] * b.v[i]; });
}
inline F8 operator/(const F8& a, const F8& b) {
    return each([&](size_t i) { return a.v[i] / b.v[i]; });
}
// a * b + c, and c - a * b, rounded once.
inline F8 fma(const F8& a, const F8& b, const F8& c) {
    return each([&](size_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline F8 fnma(const F8& a, const F8& b, const F8& c) {
    return each([&](size_t i) { return std::fma(-a.v[i], b.v[i], c.v[i]); });
}
inline F8 larger(const F8& a, const F8& b) {
    return each([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F8 smaller(const F8& a, const F8& b) {
    return each([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F8 magnitude(const F8& a) { return each([&](size_t i) { return std::fabs(a.v[i]); }); }
// To the nearest whole number, ties to even; below 2^22.
inline F8 nearest(const F8& a) {
    return each([&](size_t i) { return std::copysign((a.v[i] + kRounder) - kRounder, a.v[i]); });
}
// x * 2^power, for whole numbers; both are normal floats.
inline F8 scale_by_power(const F8& x, const F8& power) {
    return each([&](size_t i) {
        uint32_t bits;
        std::memcpy(&bits, &x.v[i], sizeof bits);
        bits += static_cast<uint32_t>(static_cast<int32_t>(power.v[i])) << 23;
        float result;
        std::memcpy(&result, &bits, sizeof result);
        return result;
    });
}
// Of the lanes from `first` up to `last`, x; of the others, y.
inline F8 between(const F8& x, const F8& y, int first, int last) {
    return each([&](size_t i) { return int(i) >= first && int(i) < last ? x.v[i] : y.v[i]; });
}
// Lane i is lane i ^ Distance: 1, 2 or 4.
template <int Distance>
inline F8 swapped(const F8& x) {
    return each([&](size_t i) { return x.v[i ^ Distance]; });
}
inline float sum_of(const F8& x) {
    const float* v = x.v;
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
inline float largest_of(const F8& x) { return *std::max_element(x.v, x.v + kEight); }
// Of whole numbers from -127 to 127, each plus 128.
inline void store_bytes(uint8_t* to, const F8& x) {
    for (size_t i = 0; i < kEight; ++i) to[i] = static_cast<uint8_t>(static_cast<int32_t>(x.v[i]) + 128);
}

#endif

// The first `count` lanes; zeros behind them.
inline F8 load_some(const float* from, size_t count) {
    if (count >= kEight) return load(from);
    float lanes[kEight] = {};
    std::memcpy(lanes, from, count * sizeof(float));
    return load(lanes);
}
inline void store_some(float* to, F8 x, size_t count) {
    if (count >= kEight) return store(to, x);
    float lanes[kEight];
    store(lanes, x);
    std::memcpy(to, lanes, count * sizeof(float));
}

// e^x (Cephes' polynomial for float32), from e^-87 up to e^88.
inline F8 exponential(F8 x) {
    x = larger(smaller(x, all(88.0f)), all(-87.0f));
    const F8 power = nearest(x * all(1.44269504f));
    x = fnma(power, all(0.693359375f), x);
    x = fnma(power, all(-2.12194440e-4f), x);
    F8 sum = all(1.9875691500e-4f);
#pragma GCC unroll 5
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        sum = fma(sum, x, all(term));
    sum = fma(sum, x * x, x + all(1.0f));
    return sum * scale_by_power(all(1.0f), power);
}

// 2^x for x up to 0, to four in a million: softmax rounds it to 8 bits. Below -125 as there.
inline F8 power_of_two(F8 x) {
    x = larger(x, all(-125.0f));
    const F8 power = nearest(x);
    x = x - power;
    F8 sum = all(9.676037e-3f);
#pragma GCC unroll 4
    for (float term : {5.5922036e-2f, 2.4022107e-1f, 6.9312103e-1f, 1.0f})
        sum = fma(sum, x, all(term));
    return scale_by_power(sum, power);
}

// 1 / (1 + e^-x), times y.
inline F8 times_sigmoid(F8 y, F8 x) { return y / (all(1.0f) + exponential(all(0.0f) - x)); }

inline F8 hyperbolic_tangent(F8 x) {
    return all(1.0f) - all(2.0f) / (all(1.0f) + exponential(x + x));
}

// limit * tanh(x / limit)
inline F8 soft_cap(F8 x, float limit) {
    return all(limit) * hyperbolic_tangent(x / all(limit));
}

// work(element, how many) for each eight of a row; fewer at its end.
template <typename Work>
inline void for_eights(size_t width, const Work& work) {
    size_t i = 0;
    for (; i + kEight <= width; i += kEight) work(i, kEight);
    if (i < width) work(i, width - i);
}

inline float sum_of_products(const float* x, const float* y, size_t width) {
    F8 sum = all(0.0f);
    for_eights(width, [&](size_t i, size_t count) {
        sum = fma(load_some(x + i, count), load_some(y + i, count), sum);
    });
    return sum_of(sum);
}

// x / sqrt(mean(x^2) + epsilon) * gain; may be in place.
inline void norm(const float* x, const float* gain, float epsilon, size_t width, float* result) {
    const float mean = sum_of_products(x, x, width) / static_cast<float>(width);
    const F8 factor = all(1.0f / std::sqrt(mean + epsilon));
    for_eights(width, [&](size_t i, size_t count) {
        const F8 part = load_some(x + i, count) * factor;
        store_some(result + i, part * load_some(gain + i, count), count);
    });
}

// The Hadamard transform of 32 elements, not normalised, in place: sums and differences of elements 1,
// 2, 4, 8, 16 apart. The products of two vectors become 32 times what they were.
inline void hadamard(float* x) {
    const auto within = [](F8 part) {
        const auto turn = [&](F8 other, float second, float third, float fifth) {
            const float signs[kEight] = {1,     second,         third,         second * third,
                                         fifth, second * fifth, third * fifth, second * third * fifth};
            part = fma(part, load(signs), other);
        };
        turn(swapped<1>(part), -1, 1, 1);
        turn(swapped<2>(part), 1, -1, 1);
        turn(swapped<4>(part), 1, 1, -1);
        return part;
    };
    const F8 a = within(load(x)), b = within(load(x + 8));
    const F8 c = within(load(x + 16)), d = within(load(x + 24));
    const F8 ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
    store(x, ab + cd);
    store(x + 8, a_b + c_d);
    store(x + 16, ab - cd);
    store(x + 24, a_b - c_d);
}

// Rotary embedding of the first 2 * half elements of a head, in place:
// first * cos - second * sin, second * cos + first * sin.
inline void rotate(float* head, size_t half, const float* cos, const float* sin) {
    for_eights(half, [&](size_t i, size_t count) {
        const F8 first = load_some(head + i, count), second = load_some(head + half + i, count);
        const F8 c = load_some(cos + i, count), s = load_some(sin + i, count);
        store_some(head + i, fnma(second, s, first * c), count);
        store_some(head + half + i, fma(first, s, second * c), count);
    });
}

}  // namespace mst::LEVEL
