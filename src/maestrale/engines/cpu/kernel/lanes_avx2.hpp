// Eight outputs in a register: AVX2 with FMA and F16C.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define MST_INLINE inline __attribute__((always_inline))

namespace mst::LEVEL {

constexpr size_t kLanes = 8;
constexpr size_t kColumns = 1;  // registers of outputs that a kernel computes
constexpr int kBlockRows = 4;     // of unpacked weights: rows, and registers
constexpr int kBlockColumns = 1;
constexpr size_t kMostRows = 4;
using Floats = __m256;
using Ints = __m256i;
using Bytes = __m256i;

MST_INLINE Bytes load_bytes(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
MST_INLINE void store_bytes(uint8_t* to, Bytes bytes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
}
MST_INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
MST_INLINE void store_floats(float* to, Floats floats) { _mm256_storeu_ps(to, floats); }
MST_INLINE Floats splat(float one) { return _mm256_set1_ps(one); }
MST_INLINE Ints splat(int32_t one) { return _mm256_set1_epi32(one); }
MST_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
MST_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
MST_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
MST_INLINE Floats as_floats(Ints ints) { return _mm256_castsi256_ps(ints); }

// float16, unsigned or signed bytes, or nibbles, one for each output.
MST_INLINE __m128i load_8(const uint8_t* from) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
}
MST_INLINE Floats load_halves(const uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
MST_INLINE Ints load_unsigned(const uint8_t* from) { return _mm256_cvtepu8_epi32(load_8(from)); }
MST_INLINE Ints load_signed(const uint8_t* from) { return _mm256_cvtepi8_epi32(load_8(from)); }
// Of register `part` of the tile: byte i has output i in its low half, output i + 8 in its high one.
MST_INLINE Ints load_nibbles(const uint8_t* from, size_t part) {
    const Ints bytes = load_unsigned(from);
    return _mm256_and_si256(part ? _mm256_srli_epi32(bytes, 4) : bytes, _mm256_set1_epi32(15));
}
// Byte `index` of each output's four.
MST_INLINE Ints byte_of(Bytes bytes, size_t index) {
    const __m128i count = _mm_cvtsi32_si128(int(8 * index));
    return _mm256_and_si256(_mm256_srl_epi32(bytes, count), splat(255));
}
MST_INLINE Floats to_floats(Ints ints) { return _mm256_cvtepi32_ps(ints); }
MST_INLINE Ints and_(Ints a, int32_t mask) { return _mm256_and_si256(a, splat(mask)); }
MST_INLINE Ints or_(Ints a, Ints b) { return _mm256_or_si256(a, b); }
MST_INLINE Ints plus_one(Ints ints) {
    return _mm256_add_epi32(ints, splat(1));
}
MST_INLINE Ints negative(Ints ints) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), ints);
}
template <int Count>
MST_INLINE Ints shift(Ints a) {  // to the left; below 0 to the right
    if constexpr (Count >= 0) return _mm256_slli_epi32(a, Count);
    else return _mm256_srli_epi32(a, -Count);
}

// Bits of bytes, shifted to the left, masked.
template <int Count>
MST_INLINE Bytes bits(Bytes bytes, uint8_t mask) {
    if constexpr (Count > 0) bytes = _mm256_slli_epi16(bytes, Count);
    if constexpr (Count < 0) bytes = _mm256_srli_epi16(bytes, -Count);
    return _mm256_and_si256(bytes, _mm256_set1_epi8(char(mask)));
}
MST_INLINE Bytes join(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }

using Table = __m256i;
MST_INLINE Table load_table(const uint8_t* from) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
MST_INLINE Bytes look_up(Table table, Bytes places) { return _mm256_shuffle_epi8(table, places); }

MST_INLINE __m256i quad_of(const int8_t* row) {
    int32_t four;
    std::memcpy(&four, row, sizeof four);
    return _mm256_set1_epi32(four);
}

// Without this the compiler adds in another order, and runs out of registers.
MST_INLINE void keep(__m256i& value) { asm("" : "+x"(value)); }

// The largest value for which products are compiled.
constexpr int kept_most(int most) { return most <= 15 ? 15 : most <= 31 ? 31 : most <= 63 ? 63 : 255; }

// Sums of products of bytes up to `Most` with four signed bytes, in 16 bits as long as they fit, in
// two halves of a byte where one product does not.
template <int Most>
struct Dots {
    static constexpr int kPair = 2 * 127 * (Most > 127 ? 15 : Most);
    static constexpr int kFit = 32767 / kPair;  // instructions that 16 bits hold
    static constexpr bool kHalves = Most > 127;
    static_assert(kFit >= 1, "a product must fit");
    struct Halves {
        Bytes low, high;
    };
    using Weights = std::conditional_t<kHalves, Halves, Bytes>;

    MST_INLINE static Weights prepare(Bytes bytes) {
        if constexpr (kHalves)
            return {bits<0>(bytes, 15), bits<-4>(bytes, 15)};
        else
            return bytes;
    }

    int32_t first;
    Ints low, high, done;

    MST_INLINE void start(const int32_t* at) {
        first = *at;
        low = high = done = _mm256_setzero_si256();
    }
    template <int Quad, int Uses>
    MST_INLINE static Bytes four(const int8_t* row) { return quad_of(row + 4 * Quad); }
    template <int Turn>  // how many were added since the start
    MST_INLINE void add(const Weights& weights, Bytes four) {
        if constexpr (kHalves) {
            low = _mm256_add_epi16(low, _mm256_maddubs_epi16(weights.low, four));
            keep(low);
            high = _mm256_add_epi16(high, _mm256_maddubs_epi16(weights.high, four));
            keep(high);
        } else {
            if constexpr (Turn > 0 && Turn % kFit == 0) spill();
            low = _mm256_add_epi16(low, _mm256_maddubs_epi16(weights, four));
            keep(low);
        }
    }
    MST_INLINE Ints whole() const {
        Ints sum = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)), splat(first));
        if constexpr (kHalves)
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
        else if constexpr (kFit < 8)
            sum = _mm256_add_epi32(sum, done);
        return sum;
    }

private:
    MST_INLINE void spill() {
        done = _mm256_add_epi32(done, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
        low = _mm256_setzero_si256();
    }
};

MST_INLINE void prefetch_line(const uint8_t* from) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
}

}  // namespace mst::LEVEL
