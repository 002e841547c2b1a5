#include "types.hpp"

#include <cstring>

#include "iq_types.hpp"

namespace mst {
namespace {

enum : int32_t {
    kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10,
    kQ3_K = 11, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kIQ2_XXS = 16, kIQ2_XS = 17, kIQ3_XXS = 18,
    kIQ1_S = 19, kIQ4_NL = 20, kIQ3_S = 21, kIQ2_S = 22, kIQ4_XS = 23, kIQ1_M = 29, kBF16 = 30,
    kTQ1_0 = 34, kTQ2_0 = 35, kMXFP4 = 39,
};

constexpr int8_t kMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// An exponent above this, 2^72, can't be a weight's: sums would overflow.
constexpr uint8_t kMostExponent = 200;

template <typename T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename T>
void store(uint8_t* to, T value) {
    std::memcpy(to, &value, sizeof value);
}

bool finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

constexpr uint64_t kEach = 0x0101010101010101;  // of eight bytes

// `count` bytes, of which each has a value in its low half, and one in its high half.
void halves(const uint8_t* from, size_t count, uint8_t* low, uint8_t* high) {
    for (size_t i = 0; i < count; i += 8) {
        const uint64_t eight = load<uint64_t>(from + i);
        store(low + i, eight & 15 * kEach);
        store(high + i, eight >> 4 & 15 * kEach);
    }
}

// Eight bytes, byte i being bit i.
uint64_t spread(uint8_t bits) {
    const uint64_t each = (bits * kEach) & 0x8040201008040201;
    return (each + 0x7f * kEach) >> 7 & kEach;
}

// A fifth bit for 32 values.
void add_fifth(const uint8_t* bits, uint8_t* values) {
    for (size_t i = 0; i < 4; ++i)
        store(values + 8 * i, load<uint64_t>(values + 8 * i) | spread(bits[i]) << 4);
}

bool read_q4_0(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    halves(block + 2, 16, unit.values, unit.values + 16);
    return finite(unit.scale);
}

bool read_q4_1(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    unit.minimum = load<uint16_t>(block + 2);
    halves(block + 4, 16, unit.values, unit.values + 16);
    return finite(unit.scale) && finite(unit.minimum);
}

bool read_q5_0(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    halves(block + 6, 16, unit.values, unit.values + 16);
    add_fifth(block + 2, unit.values);
    return finite(unit.scale);
}

bool read_q5_1(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    unit.minimum = load<uint16_t>(block + 2);
    halves(block + 8, 16, unit.values, unit.values + 16);
    add_fifth(block + 4, unit.values);
    return finite(unit.scale) && finite(unit.minimum);
}

bool read_q8_0(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t i = 0; i < kGroup; i += 8)
        store(unit.values + i, load<uint64_t>(block + 2 + i) ^ 0x80 * kEach);
    return finite(unit.scale);
}

bool read_mxfp4(const uint8_t* block, Unit& unit) {
    unit.scale = block[0];
    halves(block + 1, 16, unit.values, unit.values + 16);
    return block[0] <= kMostExponent;
}

// Bits `at` and above of 32 bytes, `mask` of them.
void crumbs(const uint8_t* from, int at, uint8_t mask, uint8_t* to) {
    for (size_t i = 0; i < 32; i += 8) store(to + i, load<uint64_t>(from + i) >> at & mask * kEach);
}

bool read_q2_k(const uint8_t* block, Unit& unit) {
    halves(block, 16, unit.scales, unit.minimums);
    for (size_t i = 0; i < 8; ++i)
        crumbs(block + 16 + i / 4 * 32, int(2 * (i % 4)), 3, unit.values + 32 * i);
    unit.scale = load<uint16_t>(block + 80);
    unit.minimum = load<uint16_t>(block + 82);
    return finite(unit.scale) && finite(unit.minimum);
}

bool read_q3_k(const uint8_t* block, Unit& unit) {
    const uint8_t* const scales = block + 96;
    for (size_t i = 0; i < 8; ++i) {
        uint8_t* const values = unit.values + 32 * i;
        crumbs(block + 32 + i / 4 * 32, int(2 * (i % 4)), 3, values);
        for (size_t k = 0; k < 32; k += 8)
            store(values + k,
                  load<uint64_t>(values + k) | (load<uint64_t>(block + k) >> i & kEach) << 2);
    }
    for (size_t i = 0; i < 16; ++i) {
        const int low = scales[i % 8] >> (i < 8 ? 0 : 4) & 15;
        const int high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        unit.scales[i] = uint8_t((low | high << 4) - 32);
    }
    unit.scale = load<uint16_t>(block + 108);
    return finite(unit.scale);
}

void read_six(const uint8_t* from, Unit& unit) {
    for (size_t i = 0; i < 4; ++i) {
        unit.scales[i] = from[i] & 63;
        unit.minimums[i] = from[4 + i] & 63;
        unit.scales[4 + i] = uint8_t((from[8 + i] & 15) | (from[i] >> 2 & 48));
        unit.minimums[4 + i] = uint8_t(from[8 + i] >> 4 | (from[4 + i] >> 2 & 48));
    }
}

bool read_q4_k(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    unit.minimum = load<uint16_t>(block + 2);
    read_six(block + 4, unit);
    for (size_t i = 0; i < 4; ++i)
        halves(block + 16 + 32 * i, 32, unit.values + 64 * i, unit.values + 64 * i + 32);
    return finite(unit.scale) && finite(unit.minimum);
}

bool read_q5_k(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    unit.minimum = load<uint16_t>(block + 2);
    read_six(block + 4, unit);
    for (size_t i = 0; i < 8; ++i) {
        uint8_t* const values = unit.values + 32 * i;
        if (i % 2 == 0) halves(block + 48 + 16 * i, 32, values, values + 32);
        for (size_t k = 0; k < 32; k += 8)
            store(values + k,
                  load<uint64_t>(values + k) | (load<uint64_t>(block + 16 + k) >> i & kEach) << 4);
    }
    return finite(unit.scale) && finite(unit.minimum);
}

bool read_q6_k(const uint8_t* block, Unit& unit) {
    for (size_t part = 0; part < 2; ++part) {
        uint8_t* const values = unit.values + 128 * part;
        halves(block + 64 * part, 64, values, values + 64);
        for (size_t i = 0; i < 4; ++i)
            for (size_t k = 0; k < 32; k += 8) {
                const uint64_t high = load<uint64_t>(block + 128 + 32 * part + k) >> (2 * i) & 3 * kEach;
                store(values + 32 * i + k, load<uint64_t>(values + 32 * i + k) | high << 4);
            }
    }
    std::memcpy(unit.scales, block + 192, 16);
    unit.scale = load<uint16_t>(block + 208);
    return finite(unit.scale);
}

bool read_iq4_xs(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    const uint16_t high = load<uint16_t>(block + 2);
    for (size_t i = 0; i < 8; ++i) {
        const int low = block[4 + i / 2] >> (i % 2 * 4) & 15;
        unit.scales[i] = uint8_t((low | (high >> (2 * i) & 3) << 4) - 32);
        halves(block + 8 + 16 * i, 16, unit.values + 32 * i, unit.values + 32 * i + 16);
    }
    return finite(unit.scale);
}

const Type kTypes[] = {
    {kF32, "F32", Form::zero8, 1, 4, false, nullptr},
    {kF16, "F16", Form::zero8, 1, 2, false, nullptr},
    {kBF16, "BF16", Form::zero8, 1, 2, false, nullptr},
    {kQ4_0, "Q4_0", Form::zero4, 32, 18, true, read_q4_0},
    {kQ4_1, "Q4_1", Form::minimum4, 32, 20, true, read_q4_1},
    {kQ5_0, "Q5_0", Form::zero5, 32, 22, true, read_q5_0},
    {kQ5_1, "Q5_1", Form::minimum5, 32, 24, true, read_q5_1},
    {kQ8_0, "Q8_0", Form::zero8, 32, 34, true, read_q8_0},
    {kQ2_K, "Q2_K", Form::nested2, 256, 84, true, read_q2_k},
    {kQ3_K, "Q3_K", Form::nested3, 256, 110, true, read_q3_k},
    {kQ4_K, "Q4_K", Form::nested4, 256, 144, true, read_q4_k},
    {kQ5_K, "Q5_K", Form::nested5, 256, 176, true, read_q5_k},
    {kQ6_K, "Q6_K", Form::nested6, 256, 210, true, read_q6_k},
    {kMXFP4, "MXFP4", Form::table_exponent, 32, 17, true, read_mxfp4, 1.0f, kMxfp4},
    {kIQ4_NL, "IQ4_NL", Form::table_half, 32, 18, true, read_q4_0, 1.0f, kIq4},
    {kIQ4_XS, "IQ4_XS", Form::table32, 256, 136, true, read_iq4_xs, 1.0f, kIq4},
    {kIQ1_S, "IQ1_S", Form::table32, 256, 50, true, read_iq1_s, 0.125f, kTableIq1},
    {kIQ1_M, "IQ1_M", Form::table16, 256, 56, true, read_iq1_m, 0.125f, kTableIq1},
    {kIQ2_XXS, "IQ2_XXS", Form::table32, 256, 66, true, read_iq2_xxs, 0.125f, kTableIq2},
    {kIQ2_XS, "IQ2_XS", Form::table16, 256, 74, true, read_iq2_xs, 0.125f, kTableIq2},
    {kIQ2_S, "IQ2_S", Form::table16, 256, 82, true, read_iq2_s, 0.125f, kTableIq2},
    {kIQ3_XXS, "IQ3_XXS", Form::table32, 256, 98, true, read_iq3_xxs, 0.25f, kTableIq3xxs},
    {kIQ3_S, "IQ3_S", Form::table32, 256, 110, true, read_iq3_s, 1.0f, kTableIq3s},
    {kTQ1_0, "TQ1_0", Form::table32, 256, 54, true, read_tq1_0, 1.0f, kTableTernary},
    {kTQ2_0, "TQ2_0", Form::table32, 256, 66, true, read_tq2_0, 1.0f, kTableTernary},
};

}  // namespace

const Type* find_type(int32_t number) {
    for (const Type& type : kTypes)
        if (type.number == number) return &type;
    return nullptr;
}

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half >> 15) << 31, exponent = half >> 10 & 31;
    const uint32_t fraction = half & 1023;
    uint32_t bits;
    if (exponent == 0) {  // fraction * 2^-24
        const float value = float(fraction) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
    if (bits < 0x38800000) {                       // subnormal: multiples of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        const float moved = magnitude + 0.5f;  // whose last bit is 2^-24
        uint32_t whole;
        std::memcpy(&whole, &moved, sizeof whole);
        return sign | uint16_t(whole - 0x3f000000);
    }
    const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
    return sign | uint16_t((rounded - 0x38000000) >> 13);
}

void read_floats(int32_t number, const uint8_t* from, size_t count, float* to) {
    switch (number) {
        case kF32: std::memcpy(to, from, count * sizeof(float)); break;
        case kF16:
            for (size_t i = 0; i < count; ++i) to[i] = half_to_float(load<uint16_t>(from + 2 * i));
            break;
        default:  // BF16
            for (size_t i = 0; i < count; ++i) {
                const uint32_t bits = uint32_t(load<uint16_t>(from + 2 * i)) << 16;
                std::memcpy(to + i, &bits, sizeof bits);
            }
    }
}

}  // namespace mst
