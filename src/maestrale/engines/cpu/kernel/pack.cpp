#include "pack.hpp"

#include <cmath>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace mst {
namespace {

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

// 32 floats, rounded to 8 bits.
Packing round_group(const float* from, Unit& unit) {
    float largest = 0;
    for (size_t i = 0; i < kGroup; ++i) {
        const float magnitude = std::fabs(from[i]);
        if (!(magnitude < INFINITY)) return Packing::not_finite;
        largest = magnitude > largest ? magnitude : largest;
    }
    unit.scale = float_to_half(largest / 127.0f);
    const float scale = half_to_float(unit.scale);
    if (!(scale < INFINITY)) return Packing::too_large;
    const float factor = scale > 0 ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < kGroup; ++i) {
        float value = from[i] * factor;
        value = value > 127 ? 127 : value < -127 ? -127 : value;
        const float nearest = (value + 12582912.0f) - 12582912.0f;  // the even one of two
        unit.values[i] = uint8_t(int(nearest) + 128);
    }
    return Packing::done;
}

// Four values of an output, side by side.
uint32_t four(const uint8_t* values, size_t quad) { return load<uint32_t>(values + 4 * quad); }

constexpr uint32_t kEach = 0x01010101;

// The planes of 32 inputs of one output.
template <int Bits>
void write_planes(const uint8_t* values, uint8_t* planes) {
    if constexpr (Bits == 8)
        for (size_t j = 0; j < 8; ++j) store(planes + kVector * j, four(values, j));
    if constexpr (Bits >= 4 && Bits <= 6)
        for (size_t v = 0; v < 4; ++v)
            store(planes + kVector * v, (four(values, 2 * v) & 15 * kEach) |
                                            (four(values, 2 * v + 1) & 15 * kEach) << 4);
    if constexpr (Bits == 6 || Bits <= 3)
        for (size_t v = 0; v < 2; ++v) {
            constexpr int low = Bits == 6 ? 4 : 0;
            uint32_t crumbs = 0;
            for (size_t k = 0; k < 4; ++k)
                crumbs |= (four(values, 4 * v + k) >> low & 3 * kEach) << (2 * k);
            store(planes + kVector * (v + (Bits == 6 ? 4 : 0)), crumbs);
        }
    if constexpr (Bits == 5 || Bits == 3) {
        uint32_t bits = 0;
        for (size_t j = 0; j < 8; ++j) bits |= (four(values, j) >> (Bits - 1) & kEach) << j;
        store(planes + kVector * (Bits == 5 ? 4 : 2), bits);
    }
}

// A unit of one output of a tile.
template <Form F>
void write_unit(const Unit& unit, size_t output, uint8_t* to) {
    constexpr Traits traits = traits_of(F);
    if constexpr (!traits.nested()) {
        write_planes<traits.bits>(unit.values, to + 4 * output);
        uint8_t* const scales = to + traits.plane_bytes();
        if constexpr (traits.scales == Scales::exponent)
            scales[output] = uint8_t(unit.scale);
        else
            store(scales + 2 * output, unit.scale);
        if constexpr (traits.minimum) store(scales + 2 * (kOutputs + output), unit.minimum);
        return;
    }
    store(to + 2 * output, unit.scale);
    if constexpr (traits.minimum) store(to + 2 * (kOutputs + output), unit.minimum);
    uint8_t* const scales = to + traits.head_bytes();
    for (size_t group = 0; group < 8; ++group) {
        uint8_t* const of = scales + group * traits.scale_bytes();
        if constexpr (traits.scales == Scales::six) {
            const uint8_t minimum = unit.minimums[group];
            of[output] = uint8_t(unit.scales[group] | minimum >> 4 << 6);
            uint8_t& pair = of[kOutputs + output % 8];
            if (output < 8)
                pair = minimum & 15;
            else
                pair = uint8_t(pair | minimum << 4);
        } else {
            constexpr size_t halves = traits.halves();
            for (size_t half = 0; half < halves; ++half) {
                const size_t i = halves * group + half;
                of[half * kOutputs + output] =
                    traits.scales == Scales::four ? uint8_t(unit.scales[i] | unit.minimums[i] << 4)
                                                  : unit.scales[i];
            }
        }
        write_planes<traits.bits>(unit.values + kGroup * group,
                                  scales + 8 * traits.scale_bytes() + group * traits.plane_bytes() +
                                      4 * output);
    }
}

// Types whose block ends in 16 bytes of two values each, before which stand halves: a scale, and a
// minimum in some. A tile's are packed together.
template <Form F>
constexpr bool is_plain4() {
    return F == Form::zero4 || F == Form::minimum4 || F == Form::table_half;
}

constexpr bool finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

#if defined(__SSE2__)

// Such blocks of the 16 outputs of a tile, from `at` of each row on: what `read` and `write_unit` do,
// four outputs at a time. Half of the time that it takes to start a large model would go there.
template <Form F>
bool write_plain4(const uint8_t* const (&rows)[kOutputs], size_t at, uint8_t* to) {
    constexpr Traits traits = traits_of(F);
    const __m128i low = _mm_set1_epi8(15);
    for (size_t first = 0; first < kOutputs; first += 4) {
        __m128i one[4];
        for (size_t i = 0; i < 4; ++i)
            one[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(
                rows[first + i] + at + (traits.minimum ? 4 : 2)));
        const __m128i a = _mm_unpacklo_epi32(one[0], one[1]), b = _mm_unpacklo_epi32(one[2], one[3]);
        const __m128i c = _mm_unpackhi_epi32(one[0], one[1]), d = _mm_unpackhi_epi32(one[2], one[3]);
        // Bytes 4i to 4i + 3 of each output.
        const __m128i fours[4] = {_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b),
                                  _mm_unpacklo_epi64(c, d), _mm_unpackhi_epi64(c, d)};
        const auto plane = [&](size_t vector, __m128i value) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kVector * vector + 4 * first), value);
        };
        for (size_t i = 0; i < 2; ++i) {
            const __m128i even = fours[2 * i], odd = fours[2 * i + 1];
            plane(i, _mm_or_si128(_mm_and_si128(even, low),
                                  _mm_slli_epi16(_mm_and_si128(odd, low), 4)));
            plane(2 + i, _mm_or_si128(_mm_and_si128(_mm_srli_epi16(even, 4), low),
                                      _mm_andnot_si128(low, odd)));
        }
    }
    uint8_t* const scales = to + traits.plane_bytes();
    bool good = true;
    for (size_t i = 0; i < kOutputs; ++i) {
        const auto scale = load<uint16_t>(rows[i] + at);
        store(scales + 2 * i, scale);
        good &= finite(scale);
        if constexpr (traits.minimum) {
            const auto minimum = load<uint16_t>(rows[i] + at + 2);
            store(scales + 2 * (kOutputs + i), minimum);
            good &= finite(minimum);
        }
    }
    return good;
}

#else

// The same, output by output.
template <Form F>
bool write_plain4(const uint8_t* const (&rows)[kOutputs], size_t at, uint8_t* to) {
    constexpr Traits traits = traits_of(F);
    constexpr uint64_t low = 0x0f0f0f0f0f0f0f0f;
    uint8_t* const scales = to + traits.plane_bytes();
    bool good = true;
    for (size_t i = 0; i < kOutputs; ++i) {
        const uint8_t* const block = rows[i] + at;
        const uint8_t* const values = block + (traits.minimum ? 4 : 2);
        const uint64_t first = load<uint64_t>(values), second = load<uint64_t>(values + 8);
        const auto plane = [&](size_t vector, uint64_t eight) {
            store(to + 4 * i + kVector * vector, uint32_t(eight) | uint32_t(eight >> 32) << 4);
        };
        plane(0, first & low);
        plane(1, second & low);
        plane(2, first >> 4 & low);
        plane(3, second >> 4 & low);
        const auto scale = load<uint16_t>(block);
        store(scales + 2 * i, scale);
        good &= finite(scale);
        if constexpr (traits.minimum) {
            const auto minimum = load<uint16_t>(block + 2);
            store(scales + 2 * (kOutputs + i), minimum);
            good &= finite(minimum);
        }
    }
    return good;
}

#endif

template <Form F>
Packing pack(const Matrix& matrix, const Source& source, size_t tile, uint8_t* to) {
    constexpr Traits traits = traits_of(F);
    const Type& type = *source.type;
    constexpr size_t inputs = traits.unit_inputs();
    const size_t units = matrix.groups * kGroup / inputs;
    if constexpr (is_plain4<F>()) {
        if ((tile + 1) * kOutputs <= matrix.rows) {
            const uint8_t* rows[kOutputs];
            for (size_t i = 0; i < kOutputs; ++i) rows[i] = source.row(tile * kOutputs + i);
            bool good = true;
            for (size_t i = 0; i < units; ++i)
                good &= write_plain4<F>(rows, i * type.block_bytes, to + i * traits.unit_bytes());
            return good ? Packing::done : Packing::not_finite;
        }
    }
    Unit unit;
    for (size_t output = 0; output < kOutputs; ++output) {
        const size_t row = tile * kOutputs + output;
        if (row >= matrix.rows) {
            std::memset(&unit, 0, sizeof unit);
            for (size_t i = 0; i < units; ++i) write_unit<F>(unit, output, to + i * traits.unit_bytes());
            continue;
        }
        const uint8_t* from = source.row(row);
        for (size_t i = 0; i < units; ++i, to += traits.unit_bytes()) {
            if (type.read) {
                if (!type.read(from, unit)) return Packing::not_finite;
                from += type.block_bytes;
            } else {
                float floats[kGroup] = {};
                const size_t left = matrix.columns - i * kGroup;
                const size_t count = left < kGroup ? left : kGroup;
                read_floats(type.number, from, count, floats);
                const Packing packing = round_group(floats, unit);
                if (packing != Packing::done) return packing;
                from += count * type.block_bytes;
            }
            write_unit<F>(unit, output, to);
        }
        to -= units * traits.unit_bytes();
    }
    return Packing::done;
}

// What is stored for input `j` of 32 of one output.
template <int Bits>
uint8_t stored(const uint8_t* planes, size_t j) {
    const size_t quad = j / 4;
    const auto plane = [&](size_t vector) { return planes[kVector * vector + j % 4]; };
    const auto crumb = [&](size_t first) {
        return plane(first + quad / 4) >> (2 * (quad % 4)) & 3;
    };
    if constexpr (Bits == 8) return plane(quad);
    if constexpr (Bits == 2) return uint8_t(crumb(0));
    if constexpr (Bits == 3) return uint8_t(crumb(0) | (plane(2) >> quad & 1) << 2);
    const int low = plane(quad / 2) >> (quad % 2 * 4) & 15;
    if constexpr (Bits == 5) return uint8_t(low | (plane(4) >> quad & 1) << 4);
    if constexpr (Bits == 6) return uint8_t(low | crumb(4) << 4);
    return uint8_t(low);
}

template <Form F>
void unpack(const Matrix& matrix, size_t row, float* out) {
    constexpr Traits traits = traits_of(F);
    const size_t output = row % kOutputs;
    const uint8_t* const tile = matrix.data + row / kOutputs * matrix.tile_bytes;
    const auto half = [](const uint8_t* from) { return half_to_float(load<uint16_t>(from)); };
    for (size_t group = 0; group < matrix.groups; ++group) {
        const uint8_t* unit = tile + group * kGroup / traits.unit_inputs() * traits.unit_bytes();
        const size_t in = group % (traits.unit_inputs() / kGroup);
        const uint8_t* planes = unit;
        float scale[2], minimum[2] = {0, 0};
        if constexpr (traits.nested()) {
            const uint8_t* const scales = unit + traits.head_bytes() + in * traits.scale_bytes();
            planes += traits.head_bytes() + 8 * traits.scale_bytes() + in * traits.plane_bytes();
            for (size_t k = 0; k < 2; ++k) {
                const uint8_t byte = scales[(traits.halves() == 2 ? k : 0) * kOutputs + output];
                int whole = int8_t(byte), less = 0;
                if constexpr (traits.scales == Scales::four) {
                    whole = byte & 15;
                    less = byte >> 4;
                }
                if constexpr (traits.scales == Scales::six) {
                    whole = byte & 63;
                    less = byte >> 6 << 4 |
                           (scales[kOutputs + output % 8] >> (output < 8 ? 0 : 4) & 15);
                }
                scale[k] = half(unit + 2 * output) * float(whole);
                if constexpr (traits.table) scale[k] = scale[k] * matrix.factor;
                if constexpr (traits.minimum)
                    minimum[k] = half(unit + 2 * (kOutputs + output)) * float(-less);
            }
        } else {
            const uint8_t* const scales = unit + traits.plane_bytes();
            if constexpr (traits.scales == Scales::exponent)
                scale[0] = std::ldexp(1.0f, int(scales[output]) - 128);
            else if constexpr (traits.scales == Scales::half)
                scale[0] = half(scales + 2 * output);
            else
                scale[0] = 1;
            if constexpr (traits.minimum) minimum[0] = half(scales + 2 * (kOutputs + output));
            scale[1] = scale[0];
            minimum[1] = minimum[0];
        }
        for (size_t j = 0; j < kGroup && group * kGroup + j < matrix.columns; ++j) {
            const uint8_t raw = stored<traits.bits>(planes + 4 * output, j);
            const int value = (traits.table ? matrix.table[raw] : raw) - traits.zero;
            const float product = scale[j / 16] * float(value);
            out[group * kGroup + j] = traits.minimum ? product + minimum[j / 16] : product;
        }
    }
}

template <typename Work>
auto with_form(Form form, const Work& work) {
    switch (form) {
#define MST_FORM(name) \
    case Form::name: return work(std::integral_constant<Form, Form::name>{});
        MST_FORMS(MST_FORM)
#undef MST_FORM
    }
    __builtin_unreachable();
}

}  // namespace

Packing pack_tile(const Matrix& matrix, const Source& source, size_t tile, uint8_t* to) {
    return with_form(matrix.form,
                     [&](auto form) { return pack<decltype(form)::value>(matrix, source, tile, to); });
}

void unpack_row(const Matrix& matrix, size_t row, float* out) {
    with_form(matrix.form, [&](auto form) { unpack<decltype(form)::value>(matrix, row, out); });
}

uint64_t digest_of(const uint8_t* bytes, size_t count, uint64_t seed) {
    static constexpr uint64_t kPrimes[4] = {0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
                                     0x85ebca77c2b2ae63};
    uint64_t lanes[4];
    for (int i = 0; i < 4; ++i) lanes[i] = seed + kPrimes[i];
    const auto mix = [](uint64_t sum, uint64_t word) {
        sum = (sum ^ word) * kPrimes[0];
        return sum ^ sum >> 29;
    };
    for (size_t i = 0; i < count; i += 32)
        for (size_t k = 0; k < 4; ++k) lanes[k] = mix(lanes[k], load<uint64_t>(bytes + i + 8 * k));
    uint64_t sum = count;
    for (const uint64_t lane : lanes) sum = mix(sum, lane);
    return sum ^ sum >> 32;
}

}  // namespace mst
