// Sixteen outputs in a register: AVX-512 with VNNI.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define MST_INLINE inline __attribute__((always_inline))

namespace mst::LEVEL {

constexpr size_t kLanes = 16;
constexpr size_t kColumns = 1;  // registers of outputs that a kernel computes
constexpr int kBlockRows = 6;     // of unpacked weights: rows, and registers
constexpr int kBlockColumns = 2;
constexpr size_t kMostRows = 8;
using Floats = __m512;
using Ints = __m512i;
using Bytes = __m512i;

MST_INLINE Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
MST_INLINE void store_bytes(uint8_t* to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }
MST_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
MST_INLINE void store_floats(float* to, Floats floats) { _mm512_storeu_ps(to, floats); }
MST_INLINE Floats splat(float one) { return _mm512_set1_ps(one); }
MST_INLINE Ints splat(int32_t one) { return _mm512_set1_epi32(one); }
MST_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
MST_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
MST_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
MST_INLINE Floats as_floats(Ints ints) { return _mm512_castsi512_ps(ints); }

// float16, unsigned or signed bytes, or nibbles, one for each output.
MST_INLINE __m128i load_16(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
MST_INLINE Floats load_halves(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
MST_INLINE Ints load_unsigned(const uint8_t* from) { return _mm512_cvtepu8_epi32(load_16(from)); }
MST_INLINE Ints load_signed(const uint8_t* from) { return _mm512_cvtepi8_epi32(load_16(from)); }
// Byte i has output i in its low half, output i + 8 in its high one.
MST_INLINE Ints load_nibbles(const uint8_t* from, size_t) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepu8_epi32(
        _mm_and_si128(_mm_unpacklo_epi64(eight, _mm_srli_epi16(eight, 4)), _mm_set1_epi8(15)));
}
// Byte `index` of each output's four.
MST_INLINE Ints byte_of(Bytes bytes, size_t index) {
    const __m128i count = _mm_cvtsi32_si128(int(8 * index));
    return _mm512_and_si512(_mm512_srl_epi32(bytes, count), splat(255));
}
MST_INLINE Floats to_floats(Ints ints) { return _mm512_cvtepi32_ps(ints); }
MST_INLINE Ints and_(Ints a, int32_t mask) { return _mm512_and_si512(a, splat(mask)); }
MST_INLINE Ints or_(Ints a, Ints b) { return _mm512_or_si512(a, b); }
MST_INLINE Ints plus_one(Ints ints) {
    return _mm512_add_epi32(ints, splat(1));
}
MST_INLINE Ints negative(Ints ints) {
    return _mm512_sub_epi32(_mm512_setzero_si512(), ints);
}
template <int Count>
MST_INLINE Ints shift(Ints a) {  // to the left; below 0 to the right
    if constexpr (Count >= 0) return _mm512_slli_epi32(a, Count);
    else return _mm512_srli_epi32(a, -Count);
}

// Bits of bytes, shifted to the left, masked.
template <int Count>
MST_INLINE Bytes bits(Bytes bytes, uint8_t mask) {
    if constexpr (Count > 0) bytes = _mm512_slli_epi16(bytes, Count);
    if constexpr (Count < 0) bytes = _mm512_srli_epi16(bytes, -Count);
    return _mm512_and_si512(bytes, _mm512_set1_epi8(char(mask)));
}
MST_INLINE Bytes join(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }

using Table = __m512i;
MST_INLINE Table load_table(const uint8_t* from) { return _mm512_broadcast_i32x4(load_16(from)); }
MST_INLINE Bytes look_up(Table table, Bytes places) { return _mm512_shuffle_epi8(table, places); }

// The largest value that any are: it makes no difference.
constexpr int kept_most(int) { return 255; }

// Sums of products of bytes up to `Most` with four signed bytes.
template <int Most>
struct Dots {
    using Weights = Bytes;
    MST_INLINE static Weights prepare(Bytes bytes) { return bytes; }

    Ints sum;

    MST_INLINE void start(const int32_t* at) { sum = splat(*at); }
    // Four values of a row: for one use from memory, for more from a register.
    template <int Quad, int Uses>
    MST_INLINE static auto four(const int8_t* row) {
        const auto* const quad = reinterpret_cast<const int32_t*>(row + 4 * Quad);
        if constexpr (Uses == 1)
            return quad;
        else
            return splat(*quad);
    }
    template <int Turn>
    MST_INLINE void add(const Weights& weights, const int32_t* quad) {
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*quad));
    }
    template <int Turn>
    MST_INLINE void add(const Weights& weights, Ints quad) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(quad));
    }
    MST_INLINE Ints whole() const { return sum; }
};

MST_INLINE void prefetch_line(const uint8_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
}

}  // namespace mst::LEVEL
