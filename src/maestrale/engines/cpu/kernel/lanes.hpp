// The registers of a level, as the products see them.

#pragma once

#include <cstdint>

namespace mst::LEVEL {

// A sum of products becomes a float without an instruction: it is summed up from the bits of
// 1.5 * 2^23 on, where a float's last bit is 1, so that its bits are those of 1.5 * 2^23 + sum.
constexpr int32_t kStart = 0x4b400000;
constexpr float kStartFloat = 12582912.0f;

}  // namespace mst::LEVEL

#if defined(LEVEL_AVX512)
#include "lanes_avx512.hpp"
#elif defined(LEVEL_AVX2)
#include "lanes_avx2.hpp"
#elif defined(LEVEL_NEON) || defined(LEVEL_I8MM)
#include "lanes_neon.hpp"
#else
#include "lanes_scalar.hpp"
#endif

#include <utility>

#include "layout.hpp"

namespace mst::LEVEL {

template <typename Work, size_t... I>
MST_INLINE void unrolled(const Work& work, std::index_sequence<I...>) {
    (work(std::integral_constant<size_t, I>{}), ...);
}

// work(0), work(1), ... with constants.
template <size_t Count, typename Work>
MST_INLINE void unrolled(const Work& work) {
    unrolled(work, std::make_index_sequence<Count>{});
}

#define MST_LAMBDA __attribute__((always_inline))

// scale * sum, rounded once, where sum < 2^22: `less` is -scale * kStartFloat, which is exact.
MST_INLINE Floats scaled(const Ints& from_start, const Floats& scale, const Floats& less) {
    return fma(scale, as_floats(from_start), less);
}

// Whether values that are unpacked for many rows are signed, without their zero point: matrices are
// multiplied with those.
#if defined(LEVEL_AMX) || defined(LEVEL_I8MM)
constexpr bool kSigned = true;
#else
constexpr bool kSigned = false;
#endif

// Unpacked values of 32 inputs of a tile to `to`: of its outputs in register `part`, inputs 8 * Pair
// up to 8 * Pair + 7, which are in two registers.
template <int Pair>
MST_INLINE void store_pair(uint8_t* to, size_t part, Bytes low, Bytes high,
                           [[maybe_unused]] int zero) {
#if defined(LEVEL_I8MM)  // two outputs of eight inputs each side by side
    const auto word = [&](Bytes bytes) MST_LAMBDA {
        return vreinterpretq_u32_u8(vsubq_u8(bytes, vdupq_n_u8(uint8_t(zero))));
    };
    to += (Pair * 8 + 2 * part) * 16;
    vst1q_u8(to, vreinterpretq_u8_u32(vzip1q_u32(word(low), word(high))));
    vst1q_u8(to + 16, vreinterpretq_u8_u32(vzip2q_u32(word(low), word(high))));
#else
#if defined(LEVEL_AMX)
    low = _mm512_sub_epi8(low, _mm512_set1_epi8(char(zero)));
    high = _mm512_sub_epi8(high, _mm512_set1_epi8(char(zero)));
#endif
    to += 2 * Pair * kVector + part * sizeof(Bytes);
    store_bytes(to, low);
    store_bytes(to + kVector, high);
#endif
}

}  // namespace mst::LEVEL
