// Products of many rows by I8MM, whose instruction multiplies eight inputs of two outputs with those of
// two rows, to the same whole numbers. What was unpacked is signed here, its zero point being
// subtracted, and lies as that instruction takes it.

#pragma once

#include <cstddef>
#include <cstdint>

#include "lanes.hpp"
#include "layout.hpp"
#include "rows.hpp"

namespace mst::LEVEL {

// `2 * Pairs` rows that lie together, of which `count` are there, times eight outputs of a tile, from
// its output 8 * half_tile on.
template <int Pairs, typename Source>
[[gnu::noinline]] void i8mm_kernel(Source source, size_t half_tile, size_t groups, const Some& rows,
                                   size_t count, const float* begun, const Target& target,
                                   size_t outputs) {
    constexpr Traits traits = Source::traits;
    constexpr size_t kHalves = traits.halves();
    constexpr int kSteps = 4 / kHalves;  // of eight inputs
    constexpr int kRows = 2 * Pairs;
    const size_t tile = half_tile / 2;
    const uint8_t* bytes = source.bytes + tile * kGroup * kOutputs + half_tile % 2 * 64;
    source.first = 2 * half_tile;
    // The last row stands for those that are missing.
    const auto present = [&](int r) MST_LAMBDA {
        return size_t(r) < count ? size_t(r) : count - 1;
    };
    Floats total[kRows][2];
    unrolled<kRows>([&](auto r) MST_LAMBDA {
        for (int c = 0; c < 2; ++c)
            total[r][c] = begun ? load_floats(begun + present(r) * kBlocked + c * kLanes) : splat(0.0f);
    });
    for (size_t group = 0; group < groups; ++group) {
        const int8_t* const values = rows.values + group * rows.beside * kGroup;
        const float* const scales = rows.scales + group * rows.beside;
        unrolled<kHalves>([&](auto half) MST_LAMBDA {
            Ints sums[Pairs][4];
            for (auto& pair : sums)
                for (Ints& sum : pair) sum = splat(kStart);
            unrolled<kSteps>([&](auto i) MST_LAMBDA {
                constexpr int step = half * kSteps + i;
                int8x16_t weights[4];
                unrolled<4>([&](auto k) MST_LAMBDA {
                    weights[k] = vreinterpretq_s8_u8(load_bytes(bytes + step * 128 + k * 16));
                });
                unrolled<Pairs>([&](auto pair) MST_LAMBDA {
                    const int8x16_t two =
                        vcombine_s8(vld1_s8(values + present(2 * pair) * kGroup + 8 * step),
                                    vld1_s8(values + present(2 * pair + 1) * kGroup + 8 * step));
                    unrolled<4>([&](auto k) MST_LAMBDA {
                        sums[pair][k] = vmmlaq_s32(sums[pair][k], weights[k], two);
                    });
                });
            });
            unrolled<2>([&](auto c) MST_LAMBDA {
                Floats scale, minimum;
                source.scales({group}, half, c, scale, minimum);
                const Floats less = mul(scale, splat(-kStartFloat));
                unrolled<kRows>([&](auto r) MST_LAMBDA {
                    // [output, row] of two outputs each: the row's four.
                    const Ints first = sums[r / 2][2 * c], second = sums[r / 2][2 * c + 1];
                    const Ints sum = r % 2 ? vuzp2q_s32(first, second) : vuzp1q_s32(first, second);
                    Floats& into = total[r][c];
                    into = fma(splat(scales[present(r)]), scaled(sum, scale, less), into);
                    if constexpr (traits.minimum) {
                        const float* const weighted =
                            rows.weighted + (group * kHalves + half) * rows.beside;
                        into = fma(minimum, splat(weighted[present(r)]), into);
                    }
                });
            });
        });
        bytes += kTiles * kGroup * kOutputs;
    }
    unrolled<kRows>([&](auto r) MST_LAMBDA {
        for (size_t c = 0; size_t(r) < count && c < 2 && outputs > c * kLanes; ++c)
            store_some(total[r][c], target.at(r, c * kLanes), outputs - c * kLanes);
    });
}

// As `many_chunk`.
template <typename Source>
void i8mm_chunk(Source source, size_t tiles, size_t begin, size_t end, const Rows& rows,
                const Prepared& prepared, float* totals, const Target& target, size_t outputs) {
    constexpr size_t kColumnsOf = 2 * kLanes;
    const bool last = end == rows.groups;
    for (size_t half_tile = 0; half_tile < 2 * tiles; ++half_tile) {
        const size_t column = half_tile * kColumnsOf;
        if (last && column >= outputs) return;
        for (size_t row = 0; row < rows.count; row += 4) {
            const size_t count = rows.count - row < 4 ? rows.count - row : 4;
            float* const total = totals + row * kBlocked + column;
            i8mm_kernel<2>(source, half_tile, end - begin,
                           prepared.some(rows, row).after(begin, Source::traits.halves()), count,
                           begin ? total : nullptr,
                           last ? target.at(row, column) : Target{total, nullptr, kBlocked},
                           last ? outputs - column : kColumnsOf);
        }
    }
}

}  // namespace mst::LEVEL
