// Float16, without the instructions for it.

#pragma once

#include <cstdint>
#include <cstring>

namespace mst {

// To the nearest, the even one of two; too large ones become the largest.
inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);  // not a number
    if (bits >= 0x477ff000) return uint16_t(sign | 0x7bff);
    if (bits < 0x38800000) {  // subnormal: the float's own addition rounds it
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, sizeof bits);
        return uint16_t(sign | (bits - 0x3f000000));
    }
    const uint32_t even = bits >> 13 & 1;
    return uint16_t(sign | ((bits + 0xfff + even - 0x38000000) >> 13));
}

}  // namespace mst
