#include "iq_types.hpp"

#include <cstring>

#include "iq_grids.hpp"

namespace mst {

// The lower half: what a codebook's number stands for; the upper half: the same with a sign, or for
// IQ1 (in eighths) with the other sign of the shift.
const int8_t kTableIq1[16] = {-7, 1, 9, 0, -9, -1, 7};
const int8_t kTableIq2[16] = {8, 25, 43, 0, -8, -25, -43};
const int8_t kTableIq3xxs[16] = {4,  12,  20,  28,  36,  44,  52,  62,
                                 -4, -12, -20, -28, -36, -44, -52, -62};
const int8_t kTableIq3s[16] = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15};
const int8_t kTableTernary[16] = {-1, 0, 1, 2};

namespace {

template <typename T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

bool finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

int nibble(const uint8_t* from, size_t index) { return from[index / 2] >> (index % 2 * 4) & 15; }

// Seven signs, and the eighth that makes their number even.
unsigned signs_of(unsigned seven) {
    seven &= 127;
    return seven | unsigned(__builtin_parity(seven)) << 7;
}

// Eight values of two bits, whose signs become the bit above.
void write_eight(uint16_t code, unsigned signs, uint8_t* values) {
    for (size_t i = 0; i < 8; ++i)
        values[i] = uint8_t((code >> (2 * i) & 3) | (signs >> i & 1) << 2);
}

// Four values of three bits.
void write_four(uint16_t code, unsigned signs, uint8_t* values) {
    for (size_t i = 0; i < 4; ++i)
        values[i] = uint8_t((code >> (4 * i) & 7) | (signs >> i & 1) << 3);
}

uint8_t odd(unsigned scale) { return uint8_t(2 * scale + 1); }

}  // namespace

bool read_iq1_s(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t group = 0; group < 8; ++group) {
        const unsigned high = load<uint16_t>(block + 34 + 2 * group);
        unit.scales[group] = odd(high >> 12 & 7);
        for (size_t i = 0; i < 4; ++i) {
            const unsigned code = block[2 + 4 * group + i] | (high >> (3 * i) & 7) << 8;
            write_eight(kGrid1[code], high >> 15 ? 255 : 0, unit.values + 32 * group + 8 * i);
        }
    }
    return finite(unit.scale);
}

bool read_iq1_m(const uint8_t* block, Unit& unit) {
    unsigned scale = 0;
    for (size_t i = 0; i < 4; ++i) {
        const unsigned word = load<uint16_t>(block + 48 + 2 * i);
        scale |= word >> 12 << (4 * i);
        for (size_t k = 0; k < 4; ++k) unit.scales[4 * i + k] = odd(word >> (3 * k) & 7);
    }
    unit.scale = uint16_t(scale);
    for (size_t i = 0; i < 32; ++i) {
        const unsigned high = unsigned(nibble(block + 32, i));
        const unsigned code = block[i] | (high & 7) << 8;
        write_eight(kGrid1[code], high & 8 ? 255 : 0, unit.values + 8 * i);
    }
    return finite(unit.scale);
}

bool read_iq2_xxs(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t group = 0; group < 8; ++group) {
        const uint8_t* const codes = block + 2 + 8 * group;
        const uint32_t signs = load<uint32_t>(codes + 4);
        unit.scales[group] = odd(signs >> 28);
        for (size_t i = 0; i < 4; ++i)
            write_eight(kGrid2xxs[codes[i]], signs_of(signs >> (7 * i)),
                        unit.values + 32 * group + 8 * i);
    }
    return finite(unit.scale);
}

bool read_iq2_xs(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t i = 0; i < 32; ++i) {
        const unsigned code = load<uint16_t>(block + 2 + 2 * i);
        write_eight(kGrid2xs[code & 511], signs_of(code >> 9), unit.values + 8 * i);
    }
    for (size_t i = 0; i < 16; ++i) unit.scales[i] = odd(unsigned(nibble(block + 66, i)));
    return finite(unit.scale);
}

bool read_iq2_s(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t i = 0; i < 32; ++i) {
        const unsigned high = block[66 + i / 4] >> (i % 4 * 2) & 3;
        write_eight(kGrid2s[block[2 + i] | high << 8], block[34 + i], unit.values + 8 * i);
    }
    for (size_t i = 0; i < 16; ++i) unit.scales[i] = odd(unsigned(nibble(block + 74, i)));
    return finite(unit.scale);
}

bool read_iq3_xxs(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t group = 0; group < 8; ++group) {
        const uint32_t word = load<uint32_t>(block + 66 + 4 * group);
        unit.scales[group] = odd(word >> 28);
        for (size_t i = 0; i < 8; ++i) {
            const unsigned signs = signs_of(word >> (i / 2 * 7)) >> (i % 2 * 4);
            write_four(kGrid3xxs[block[2 + 8 * group + i]], signs, unit.values + 32 * group + 4 * i);
        }
    }
    return finite(unit.scale);
}

bool read_iq3_s(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block);
    for (size_t i = 0; i < 64; ++i) {
        const unsigned high = block[66 + i / 8] >> (i % 8) & 1;
        const unsigned signs = block[74 + i / 2] >> (i % 2 * 4);
        write_four(kGrid3s[block[2 + i] | high << 8], signs, unit.values + 4 * i);
    }
    for (size_t i = 0; i < 8; ++i) unit.scales[i] = odd(unsigned(nibble(block + 106, i)));
    return finite(unit.scale);
}

bool read_tq1_0(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block + 52);
    std::memset(unit.scales, 1, sizeof unit.scales);
    // Bytes of five digits to the base of 3 each, as fractions; the last four have four.
    uint8_t* to = unit.values;
    const auto digits = [&](const uint8_t* from, size_t count, size_t places) {
        uint8_t power = 1;
        for (size_t place = 0; place < places; ++place, power = uint8_t(3 * power))
            for (size_t i = 0; i < count; ++i)
                *to++ = uint8_t(unsigned(uint8_t(from[i] * power)) * 3 >> 8);
    };
    digits(block, 32, 5);
    digits(block + 32, 16, 5);
    digits(block + 48, 4, 4);
    return finite(unit.scale);
}

bool read_tq2_0(const uint8_t* block, Unit& unit) {
    unit.scale = load<uint16_t>(block + 64);
    std::memset(unit.scales, 1, sizeof unit.scales);
    for (size_t i = 0; i < kSuper; ++i)
        unit.values[i] = block[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    return finite(unit.scale);
}

}  // namespace mst
