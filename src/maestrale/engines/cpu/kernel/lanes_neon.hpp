// Four outputs in a register: NEON with dot products.

#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define MST_INLINE inline __attribute__((always_inline))

namespace mst::LEVEL {

constexpr size_t kLanes = 4;
constexpr size_t kColumns = 2;  // registers of outputs that a kernel computes
constexpr int kBlockRows = 4;   // of unpacked weights: rows, and registers
constexpr int kBlockColumns = 2;
constexpr size_t kMostRows = 4;
using Floats = float32x4_t;
using Ints = int32x4_t;
using Bytes = uint8x16_t;

MST_INLINE Bytes load_bytes(const uint8_t* from) { return vld1q_u8(from); }
MST_INLINE void store_bytes(uint8_t* to, Bytes bytes) { vst1q_u8(to, bytes); }
MST_INLINE Floats load_floats(const float* from) { return vld1q_f32(from); }
MST_INLINE void store_floats(float* to, Floats floats) { vst1q_f32(to, floats); }
MST_INLINE Floats splat(float one) { return vdupq_n_f32(one); }
MST_INLINE Ints splat(int32_t one) { return vdupq_n_s32(one); }
MST_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
MST_INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
MST_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
MST_INLINE Floats as_floats(Ints ints) { return vreinterpretq_f32_s32(ints); }

// float16, unsigned or signed bytes, or nibbles, one for each output.
MST_INLINE uint8x8_t load_4(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, sizeof four);
    return vcreate_u8(four);
}
MST_INLINE Floats load_halves(const uint8_t* from) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)));
}
MST_INLINE Ints load_unsigned(const uint8_t* from) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_4(from)))));
}
MST_INLINE Ints load_signed(const uint8_t* from) {
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_4(from)))));
}
// Of the low or the high halves of bytes.
MST_INLINE Ints load_nibbles(const uint8_t* from, size_t high) {
    const Ints bytes = load_unsigned(from);
    return vandq_s32(high ? vshrq_n_s32(bytes, 4) : bytes, vdupq_n_s32(15));
}
// Byte `index` of each output's four.
MST_INLINE Ints byte_of(Bytes bytes, size_t index) {
    const uint32x4_t first = vshlq_u32(vreinterpretq_u32_u8(bytes), vdupq_n_s32(-8 * int(index)));
    return vreinterpretq_s32_u32(vandq_u32(first, vdupq_n_u32(255)));
}
MST_INLINE Floats to_floats(Ints ints) { return vcvtq_f32_s32(ints); }
MST_INLINE Ints and_(Ints a, int32_t mask) { return vandq_s32(a, splat(mask)); }
MST_INLINE Ints or_(Ints a, Ints b) { return vorrq_s32(a, b); }
MST_INLINE Ints plus_one(Ints ints) { return vaddq_s32(ints, splat(1)); }
MST_INLINE Ints negative(Ints ints) { return vnegq_s32(ints); }
template <int Count>
MST_INLINE Ints shift(Ints a) {  // to the left; below 0 to the right
    if constexpr (Count >= 0)
        return vshlq_n_s32(a, Count);
    else
        return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), -Count));
}

// Bits of bytes, shifted to the left, masked.
template <int Count>
MST_INLINE Bytes bits(Bytes bytes, uint8_t mask) {
    if constexpr (Count > 0) bytes = vshlq_n_u8(bytes, Count);
    if constexpr (Count < 0) bytes = vshrq_n_u8(bytes, -Count);
    return vandq_u8(bytes, vdupq_n_u8(mask));
}
MST_INLINE Bytes join(Bytes a, Bytes b) { return vorrq_u8(a, b); }

using Table = uint8x16_t;
MST_INLINE Table load_table(const uint8_t* from) { return vld1q_u8(from); }
MST_INLINE Bytes look_up(Table table, Bytes places) { return vqtbl1q_u8(table, places); }

// The largest value for which products are compiled.
constexpr int kept_most(int most) { return most > 127 ? 255 : 127; }

// Sixteen values of a row, of which a product takes four.
template <int Lane>
struct Four {
    int8x16_t sixteen;
};

// Sums of products of bytes up to `Most` with four signed bytes. Above 127 they become signed by their
// zero point, which is 128, instead of it being multiplied by the sum of the row.
template <int Most>
struct Dots {
    static constexpr bool kCentred = Most > 127;
    using Weights = int8x16_t;
    MST_INLINE static Weights prepare(Bytes bytes) {
        return vreinterpretq_s8_u8(kCentred ? veorq_u8(bytes, vdupq_n_u8(128)) : bytes);
    }

    Ints sum;

    MST_INLINE void start(const int32_t* at) { sum = kCentred ? splat(kStart) : vld1q_dup_s32(at); }
    template <int Quad, int Uses>
    MST_INLINE static Four<Quad % 4> four(const int8_t* row) {
        return {vld1q_s8(row + 16 * (Quad / 4))};
    }
    template <int Turn, int Lane>
    MST_INLINE void add(const Weights& weights, Four<Lane> four) {
        sum = vdotq_laneq_s32(sum, weights, four.sixteen, Lane);
    }
    MST_INLINE Ints whole() const { return sum; }
};

MST_INLINE void prefetch_line(const uint8_t* from) { __builtin_prefetch(from); }

}  // namespace mst::LEVEL
