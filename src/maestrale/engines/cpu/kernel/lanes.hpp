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

// Whether values are signed when they were unpacked for many rows, without their zero point, as AMX
// wants them.
#ifdef LEVEL_AMX
constexpr bool kSigned = true;
MST_INLINE Bytes unpacked_bytes(Bytes bytes, int zero) {
    return _mm512_sub_epi8(bytes, _mm512_set1_epi8(char(zero)));
}
#else
constexpr bool kSigned = false;
MST_INLINE Bytes unpacked_bytes(const Bytes& bytes, int) { return bytes; }
#endif

}  // namespace mst::LEVEL
