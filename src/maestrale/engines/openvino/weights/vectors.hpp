// What is done to rows of floats beside the products: norm, gate, rotary embedding. Each row by
// itself, in one order only.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstddef>

namespace {

inline __m256 exponential(__m256 x) {  // Cephes' polynomial, for float32
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.0f)), _mm256_set1_ps(-87.0f));
    const __m256 power = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_fnmadd_ps(power, _mm256_set1_ps(0.693359375f), x);
    x = _mm256_fnmadd_ps(power, _mm256_set1_ps(-2.12194440e-4f), x);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        sum = _mm256_fmadd_ps(sum, x, _mm256_set1_ps(term));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(x, x), _mm256_add_ps(x, _mm256_set1_ps(1.0f)));
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
}

// 2^x for x up to 0, to four in a million: softmax rounds it to 8 bits. Below -125 as there.
inline __m256 power_of_two(__m256 x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-125.0f));
    const __m256 power = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_sub_ps(x, power);
    __m256 sum = _mm256_set1_ps(9.676037e-3f);
    for (float term : {5.5922036e-2f, 2.4022107e-1f, 6.9312103e-1f, 1.0f})
        sum = _mm256_fmadd_ps(sum, x, _mm256_set1_ps(term));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum),
                                                _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23)));
}

inline float sum_of(__m256 eight) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// x / sqrt(mean(x^2) + epsilon) * gain
inline void norm(const float* x, const float* gain, float epsilon, size_t width, float* result) {
    __m256 squares = _mm256_setzero_ps();
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(part, part, squares);
    }
    const float mean = sum_of(squares) / static_cast<float>(width);
    const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(mean + epsilon));
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
        _mm256_storeu_ps(result + i, _mm256_mul_ps(part, _mm256_loadu_ps(gain + i)));
    }
}

// x1 / (1 + exp(-x1)) * x2, where the row is x1 and then x2
inline void gate(const float* x, size_t width, float* result) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_loadu_ps(x + i);
        const __m256 power = exponential(_mm256_sub_ps(_mm256_setzero_ps(), part));
        const __m256 swish = _mm256_div_ps(part, _mm256_add_ps(one, power));
        _mm256_storeu_ps(result + i, _mm256_mul_ps(swish, _mm256_loadu_ps(x + width + i)));
    }
}

// Rotary embedding of each head of a row [count * width], in place:
// first * cos - second * sin, second * cos + first * sin, of the first and second half of a head.
inline void rotate(float* row, size_t count, size_t width, const float* cos, const float* sin) {
    const size_t half = width / 2;
    for (float* head = row; head < row + count; head += width)
        for (size_t i = 0; i < half; i += 8) {
            const __m256 first = _mm256_loadu_ps(head + i);
            const __m256 second = _mm256_loadu_ps(head + half + i);
            const __m256 one = _mm256_mul_ps(first, _mm256_loadu_ps(cos + i));
            const __m256 other = _mm256_mul_ps(second, _mm256_loadu_ps(cos + half + i));
            _mm256_storeu_ps(head + i, _mm256_fnmadd_ps(second, _mm256_loadu_ps(sin + i), one));
            _mm256_storeu_ps(head + half + i,
                             _mm256_fmadd_ps(first, _mm256_loadu_ps(sin + half + i), other));
        }
}

}  // namespace
