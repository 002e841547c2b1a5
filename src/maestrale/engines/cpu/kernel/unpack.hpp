// What the products read of packed weights: registers of values from 0 on, scales, minimums.

#pragma once

#include <type_traits>

#include "lanes.hpp"
#include "layout.hpp"

namespace mst::LEVEL {

constexpr size_t kRegisters = kOutputs / kLanes;  // that a tile's 16 outputs take
constexpr size_t kRegister = 4 * kLanes;          // bytes

// The units of a tile: one behind the other, or each behind one of `places`.
struct Run {
    const uint8_t* first;
    size_t bytes;  // of a unit

    Run at(size_t offset) const { return {first + offset, bytes}; }
    const uint8_t* operator()(size_t unit) const { return first + unit * bytes; }
};

struct Scattered {
    const uint8_t* const* places;
    size_t offset;

    Scattered at(size_t further) const { return {places, offset + further}; }
    const uint8_t* operator()(size_t unit) const { return places[unit] + offset; }
};

// Register `J` of the values of 32 inputs: inputs 4J to 4J + 3, as they are stored.
template <int Bits, int J>
MST_INLINE Bytes stored(const uint8_t* planes) {
    const auto plane = [&](size_t vector) MST_LAMBDA { return load_bytes(planes + kVector * vector); };
    if constexpr (Bits == 8)
        return plane(J);
    else if constexpr (Bits == 2)
        return bits<-2 * (J % 4)>(plane(J / 4), 3);
    else if constexpr (Bits == 3)
        return join(bits<-2 * (J % 4)>(plane(J / 4), 3), bits<2 - J>(plane(2), 4));
    else {
        const Bytes low = bits<J % 2 ? -4 : 0>(plane(J / 2), 15);
        if constexpr (Bits == 5) return join(low, bits<4 - J>(plane(4), 16));
        if constexpr (Bits == 6) return join(low, bits<4 - 2 * (J % 4)>(plane(4 + J / 4), 48));
        return low;
    }
}

// Packed weights: the tile at `blocks`, register by register from `first` on, over the tiles that
// lie `tile_bytes` apart.
template <Form F, typename Blocks>
struct Packed {
    static constexpr Traits traits = traits_of(F);

    Blocks blocks;
    size_t tile_bytes;
    size_t first;
    Table table;
    float factor;
    size_t ahead;  // bytes; 0: nothing is read ahead

    struct At {
        const uint8_t* unit;
        size_t group;  // in it
    };

    MST_INLINE At at(size_t group) const {
        if constexpr (traits.nested())
            return {blocks(group / 8), group % 8};
        else
            return {blocks(group), 0};
    }

    // A group's lines at a time: many at once would hold up the loads of this tile. Beyond the end of
    // the weights it does nothing.
    MST_INLINE void look_ahead(const At& at) const {
        if (!std::is_same_v<Blocks, Run> || !ahead) return;
        constexpr size_t bytes = traits.unit_bytes() / (traits.unit_inputs() / kGroup);
        const uint8_t* const from = at.unit + at.group * bytes + ahead;
        unrolled<(bytes + 63) / 64>([&](auto line) MST_LAMBDA { prefetch_line(from + 64 * line); });
    }

    template <int J>
    MST_INLINE Bytes values(const At& at, size_t index) const {
        const size_t part = first + index;
        size_t offset = part / kRegisters * tile_bytes + part % kRegisters * kRegister;
        if constexpr (traits.nested())
            offset += traits.head_bytes() + 8 * traits.scale_bytes() + at.group * traits.plane_bytes();
        const Bytes bytes = stored<traits.bits, J>(at.unit + offset);
        if constexpr (traits.table) return look_up(table, bytes);
        return bytes;
    }

    // The weights of one of the inputs, of `parts` registers of outputs, as floats.
    MST_INLINE void column(size_t input, size_t parts, float* to) {
        const At place = at(input / kGroup);
        const size_t half = traits.halves() == 2 ? input % kGroup / 16 : 0;
        const auto with = [&](auto quad) MST_LAMBDA {
            for (size_t part = 0; part < parts; ++part) {
                first = part;
                Floats scale, minimum;
                scales(place, half, 0, scale, minimum);
                Floats whole = to_floats(byte_of(values<quad>(place, 0), input % 4));
                if constexpr (traits.zero != 0) whole = add(whole, splat(-float(traits.zero)));
                if constexpr (traits.minimum)
                    store_floats(to + part * kLanes, fma(scale, whole, minimum));
                else
                    store_floats(to + part * kLanes, mul(scale, whole));
            }
        };
        const size_t quad = input % kGroup / 4;
        unrolled<8>([&](auto one) MST_LAMBDA {
            if (one == quad) with(one);
        });
    }

    // Of the 16 or 32 inputs `half`.
    MST_INLINE void scales(const At& at, size_t half, size_t index, Floats& scale,
                           Floats& minimum) const {
        const size_t part = first + index;
        const size_t output = part % kRegisters * kLanes;
        const uint8_t* const unit = at.unit + part / kRegisters * tile_bytes;
        if constexpr (traits.scales == Scales::none) {
            scale = splat(1.0f);
        } else if constexpr (traits.scales == Scales::half) {
            const uint8_t* const from = unit + traits.plane_bytes() + 2 * output;
            scale = load_halves(from);
            if constexpr (traits.minimum) minimum = load_halves(from + 2 * kOutputs);
        } else if constexpr (traits.scales == Scales::exponent) {
            const Ints exponent = load_unsigned(unit + traits.plane_bytes() + output);
            // 2^(e - 126) and then a quarter: the least ones are subnormal.
            scale = mul(as_floats(shift<23>(plus_one(exponent))), splat(0.25f));
        } else {
            const uint8_t* const from =
                unit + traits.head_bytes() + at.group * traits.scale_bytes() + half * kOutputs;
            Ints whole;
            if constexpr (traits.scales == Scales::whole8) {
                whole = load_signed(from + output);
            } else {
                const Ints byte = load_unsigned(from + output);
                Ints less;
                if constexpr (traits.scales == Scales::four) {
                    whole = and_(byte, 15);
                    less = shift<-4>(byte);
                } else {
                    whole = and_(byte, 63);
                    const size_t within = output % 8;
                    less = or_(shift<4>(shift<-6>(byte)),
                               load_nibbles(from + kOutputs + within, output / 8));
                }
                minimum = mul(load_halves(unit + 2 * kOutputs + 2 * output),
                              to_floats(negative(less)));
            }
            scale = mul(load_halves(unit + 2 * output), to_floats(whole));
            if constexpr (traits.table) scale = mul(scale, splat(factor));
        }
    }
};

}  // namespace mst::LEVEL
