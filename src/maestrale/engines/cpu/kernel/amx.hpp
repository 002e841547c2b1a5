// Products of many rows by AMX: a tile of 16 rows times 16 outputs at once, to the same whole numbers.
// What was unpacked is signed here, its zero point being subtracted.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "lanes.hpp"
#include "layout.hpp"
#include "rows.hpp"

namespace mst::LEVEL {

// In assembler, as compilers' own functions for these don't say which memory they read.
template <int Tile>
MST_INLINE void load_tile(const void* from, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
MST_INLINE void store_tile(void* to, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
MST_INLINE void zero_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
// Adds the products of signed bytes of tile A and tile B.
template <int Sum, int A, int B>
MST_INLINE void multiply_tiles() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
}

// The shapes of the eight tiles: sums 0 and 1, activations 4, weights 6 and 7.
class Tiles {
public:
    // `inputs`: of a product, 32 or 16.
    Tiles(size_t rows, size_t inputs) {
        alignas(64) uint8_t config[64] = {1};
        for (const int tile : {0, 1, 4}) config[48 + tile] = uint8_t(rows);
        for (const int tile : {6, 7}) config[48 + tile] = uint8_t(inputs / 4);
        for (const int tile : {0, 1, 6, 7}) config[16 + 2 * tile] = kVector;
        config[16 + 2 * 4] = uint8_t(inputs);
        asm volatile("ldtilecfg %0" : : "m"(config));
    }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

constexpr size_t kBatch = 4;  // groups whose whole numbers wait together

// Up to 16 rows that lie together times C tiles of 16 outputs. `rows` and `weights` begin with the
// first group; the weights' tiles are kChunk groups apart.
template <int C, typename Source>
[[gnu::noinline]] void amx_kernel(const Source& source, size_t groups, const Some& rows, size_t count,
                                  const float* begun, const Target& target, size_t outputs) {
    constexpr Traits traits = Source::traits;
    constexpr size_t kHalves = traits.halves();
    constexpr size_t kInputs = kGroup / kHalves;
    constexpr size_t kTile = 8 * kVector;  // bytes of a group's weights
    alignas(64) int32_t sums[2][kBatch][kHalves][C][kTogether][kOutputs];
    alignas(64) float totals[C][kTogether][kOutputs];
    for (int c = 0; c < C; ++c)
        for (size_t r = 0; r < count; ++r)
            store_floats(totals[c][r],
                         begun ? load_floats(begun + r * kBlocked + c * kOutputs) : splat(0.0f));
    const auto multiply_group = [&](size_t group) MST_LAMBDA {
        for (size_t half = 0; half < kHalves; ++half) {
            const int8_t* const values = rows.values + group * rows.beside * kGroup + half * kInputs;
            const uint8_t* const weights =
                source.bytes + (source.first * kChunk + group) * kTile + half * kTile / 2;
            auto& to = sums[group / kBatch % 2][group % kBatch][half];
            load_tile<4>(values, kGroup);
            load_tile<6>(weights, kVector);
            zero_tile<0>();
            multiply_tiles<0, 4, 6>();
            if constexpr (C == 2) {
                load_tile<7>(weights + kChunk * kTile, kVector);
                zero_tile<1>();
                multiply_tiles<1, 4, 7>();
            }
            store_tile<0>(to[0], kVector);
            if constexpr (C == 2) store_tile<1>(to[C - 1], kVector);
        }
    };
    // Tiles are multiplied a batch ahead of what is done with their sums, in between.
    for (size_t group = 0; group < kBatch && group < groups; ++group) multiply_group(group);
    for (size_t begin = 0; begin < groups; begin += kBatch) {
        size_t next = begin + kBatch;
        unrolled<C>([&](auto c) MST_LAMBDA {
            Floats total[kTogether];
            unrolled<kTogether>([&](auto r) MST_LAMBDA { total[r] = load_floats(totals[c][r]); });
            for (size_t i = 0; i < kBatch; ++i) {
                if ((C == 1 || i % 2 == 0) && next < groups) multiply_group(next++);
                const size_t group = begin + i;
                if (group >= groups) break;
                const float* const scales = rows.scales + group * rows.beside;
                for (size_t half = 0; half < kHalves; ++half) {
                    const float* const weighted =
                        rows.weighted + (group * kHalves + half) * rows.beside;
                    const auto& from = sums[group / kBatch % 2][i][half][c];
                    Floats scale, minimum;
                    source.scales({group}, half, c, scale, minimum);
                    // The last rows' are followed by others, whose results nobody takes.
                    unrolled<kTogether>([&](auto r) MST_LAMBDA {
                        const Ints sum = _mm512_load_si512(from[r]);
                        const Floats product = fma(scale, to_floats(sum), splat(0.0f));
                        total[r] = fma(splat(scales[r]), product, total[r]);
                        if constexpr (traits.minimum)
                            total[r] = fma(minimum, splat(weighted[r]), total[r]);
                    });
                }
            }
            unrolled<kTogether>([&](auto r) MST_LAMBDA { store_floats(totals[c][r], total[r]); });
        });
    }
    for (int c = 0; c < C; ++c)
        for (size_t r = 0; r < count; ++r)
            if (outputs > c * kOutputs)
                store_some(load_floats(totals[c][r]), target.at(r, c * kOutputs),
                           outputs - c * kOutputs);
}

// As `many_chunk`.
template <typename Source>
void amx_chunk(Source source, size_t tiles, size_t begin, size_t end, const Rows& rows,
               const Prepared& prepared, float* totals, const Target& target, size_t outputs) {
    constexpr size_t kHalves = Source::traits.halves();
    const bool last = end == rows.groups;
    const auto some = [&](size_t row, size_t count) {
        const Some together = prepared.some(rows, row).after(begin, kHalves);
        const auto with = [&](size_t tile, auto columns) {
            constexpr int C = decltype(columns)::value;
            const size_t column = tile * kOutputs;
            if (last && column >= outputs) return;
            source.first = tile;
            float* const total = totals + row * kBlocked + column;
            amx_kernel<C>(source, end - begin, together, count, begin ? total : nullptr,
                          last ? target.at(row, column) : Target{total, nullptr, kBlocked},
                          last ? outputs - column : C * kOutputs);
        };
        size_t tile = 0;
        for (; tile + 2 <= tiles; tile += 2) with(tile, std::integral_constant<int, 2>{});
        if (tile < tiles) with(tile, std::integral_constant<int, 1>{});
    };
    const size_t whole = rows.count / kTogether * kTogether;
    if (whole) {
        const Tiles shapes(kTogether, kGroup / kHalves);
        for (size_t row = 0; row < whole; row += kTogether) some(row, kTogether);
    }
    if (whole < rows.count) {
        const Tiles shapes(rows.count - whole, kGroup / kHalves);
        some(whole, rows.count - whole);
    }
}

}  // namespace mst::LEVEL
