// Sixteen outputs in an array, in C++ alone: what the other levels are compared with.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define MST_INLINE inline __attribute__((always_inline))

namespace mst::LEVEL {

constexpr size_t kLanes = 16;

template <typename T, size_t Count>
struct Array {
    T at[Count];
};
constexpr size_t kColumns = 1;  // registers of outputs that a kernel computes
constexpr int kBlockRows = 0;  // weights are not unpacked for many rows
constexpr int kBlockColumns = 1;
constexpr size_t kMostRows = 1;  // more take a compiler minutes
using Floats = Array<float, kLanes>;
using Ints = Array<int32_t, kLanes>;
using Bytes = Array<uint8_t, 4 * kLanes>;

template <typename Result, size_t Count, typename Of>
MST_INLINE Array<Result, Count> each_lane(const Of& of) {
    Array<Result, Count> result;
    for (size_t i = 0; i < Count; ++i) result.at[i] = of(i);
    return result;
}
template <typename Of>
MST_INLINE Floats each_float(const Of& of) { return each_lane<float, kLanes>(of); }
template <typename Of>
MST_INLINE Ints each_int(const Of& of) { return each_lane<int32_t, kLanes>(of); }

MST_INLINE Bytes load_bytes(const uint8_t* from) {
    Bytes bytes;
    std::memcpy(bytes.at, from, sizeof bytes.at);
    return bytes;
}
MST_INLINE void store_bytes(uint8_t* to, const Bytes& bytes) {
    std::memcpy(to, bytes.at, sizeof bytes.at);
}
MST_INLINE Floats load_floats(const float* from) {
    return each_float([&](size_t i) { return from[i]; });
}
MST_INLINE void store_floats(float* to, const Floats& floats) {
    for (size_t i = 0; i < kLanes; ++i) to[i] = floats.at[i];
}
MST_INLINE Floats splat(float one) {
    return each_float([&](size_t) { return one; });
}
MST_INLINE Ints splat(int32_t one) {
    return each_int([&](size_t) { return one; });
}
MST_INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each_float([&](size_t i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
}
MST_INLINE Floats mul(const Floats& a, const Floats& b) {
    return each_float([&](size_t i) { return a.at[i] * b.at[i]; });
}
MST_INLINE Floats add(const Floats& a, const Floats& b) {
    return each_float([&](size_t i) { return a.at[i] + b.at[i]; });
}
MST_INLINE Floats as_floats(const Ints& ints) {
    Floats floats;
    std::memcpy(floats.at, ints.at, sizeof floats.at);
    return floats;
}

// float16, unsigned or signed bytes, or nibbles, one for each output.
MST_INLINE float half(const uint8_t* from) {
    uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    const uint32_t sign = uint32_t(bits >> 15) << 31, exponent = bits >> 10 & 31;
    const uint32_t fraction = bits & 1023;
    if (exponent == 0) {  // fraction * 2^-24
        const float value = float(fraction) * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    const uint32_t whole = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
}
MST_INLINE Floats load_halves(const uint8_t* from) {
    return each_float([&](size_t i) { return half(from + 2 * i); });
}
MST_INLINE Ints load_unsigned(const uint8_t* from) {
    return each_int([&](size_t i) { return from[i]; });
}
MST_INLINE Ints load_signed(const uint8_t* from) {
    return each_int([&](size_t i) { return int8_t(from[i]); });
}
// Byte i has output i in its low half, output i + 8 in its high one.
MST_INLINE Ints load_nibbles(const uint8_t* from, size_t) {
    return each_int([&](size_t i) { return from[i % 8] >> (i < 8 ? 0 : 4) & 15; });
}
// Byte `index` of each output's four.
MST_INLINE Ints byte_of(const Bytes& bytes, size_t index) {
    return each_int([&](size_t i) { return bytes.at[4 * i + index]; });
}
MST_INLINE Floats to_floats(const Ints& ints) {
    return each_float([&](size_t i) { return float(ints.at[i]); });
}
MST_INLINE Ints and_(const Ints& a, int32_t mask) {
    return each_int([&](size_t i) { return a.at[i] & mask; });
}
MST_INLINE Ints or_(const Ints& a, const Ints& b) {
    return each_int([&](size_t i) { return a.at[i] | b.at[i]; });
}
MST_INLINE Ints plus_one(const Ints& ints) {
    return each_int([&](size_t i) { return ints.at[i] + 1; });
}
MST_INLINE Ints negative(const Ints& ints) {
    return each_int([&](size_t i) { return -ints.at[i]; });
}
template <int Count>
MST_INLINE Ints shift(const Ints& a) {  // to the left; below 0 to the right
    return each_int([&](size_t i) {
        const uint32_t bits = uint32_t(a.at[i]);
        return int32_t(Count >= 0 ? bits << (Count & 31) : bits >> (-Count & 31));
    });
}

// Bits of bytes, shifted to the left, masked.
template <int Count>
MST_INLINE Bytes bits(const Bytes& bytes, uint8_t mask) {
    return each_lane<uint8_t, 4 * kLanes>([&](size_t i) {
        return uint8_t((Count >= 0 ? bytes.at[i] << (Count & 7) : bytes.at[i] >> (-Count & 7)) & mask);
    });
}
MST_INLINE Bytes join(const Bytes& a, const Bytes& b) {
    return each_lane<uint8_t, 4 * kLanes>([&](size_t i) { return uint8_t(a.at[i] | b.at[i]); });
}

using Table = Array<uint8_t, 16>;
MST_INLINE Table load_table(const uint8_t* from) {
    return each_lane<uint8_t, 16>([&](size_t i) { return from[i]; });
}
MST_INLINE Bytes look_up(const Table& table, const Bytes& places) {
    return each_lane<uint8_t, 4 * kLanes>([&](size_t i) { return table.at[places.at[i]]; });
}

// The largest value that any are: it makes no difference.
constexpr int kept_most(int) { return 255; }

// Sums of products of bytes with four signed bytes.
template <int Most>
struct Dots {
    using Weights = Bytes;
    MST_INLINE static Weights prepare(const Bytes& bytes) { return bytes; }

    Ints sum;

    MST_INLINE void start(const int32_t* at) { sum = splat(*at); }
    template <int Quad, int Uses>
    MST_INLINE static const int8_t* four(const int8_t* row) { return row + 4 * Quad; }
    template <int Turn>
    MST_INLINE void add(const Weights& weights, const int8_t* four) {
        for (size_t i = 0; i < kLanes; ++i)
            for (size_t k = 0; k < 4; ++k)
                sum.at[i] += int32_t(weights.at[4 * i + k]) * four[k];
    }
    MST_INLINE Ints whole() const { return sum; }
};

MST_INLINE void prefetch_line(const uint8_t*) {}

}  // namespace mst::LEVEL
