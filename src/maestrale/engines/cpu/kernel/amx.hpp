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

// The shapes of the eight tiles: sums 0 to 3, activations 4 and 5, weights 6 and 7.
class Tiles {
public:
    // `inputs`: of a product, 32 or 16.
    Tiles(size_t rows, size_t inputs) {
        alignas(64) uint8_t config[64] = {1};
        for (const int tile : {0, 1, 2, 3, 4, 5}) config[48 + tile] = uint8_t(rows);
        for (const int tile : {6, 7}) config[48 + tile] = uint8_t(inputs / 4);
        for (const int tile : {0, 1, 2, 3, 6, 7}) config[16 + 2 * tile] = kVector;
        for (const int tile : {4, 5}) config[16 + 2 * tile] = uint8_t(inputs);
        asm volatile("ldtilecfg %0" : : "m"(config));
    }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

using Sums = int32_t[kTogether][kOutputs];

struct Starts {
    alignas(64) Sums all;

    constexpr Starts() : all() {
        for (auto& row : all)
            for (int32_t& sum : row) sum = kStart;
    }
};
constexpr Starts kStarts;  // what every sum begins with

constexpr size_t kBatch = 2;  // groups (of 32 inputs, or of 16) whose sums wait together, in the first cache

// Up to 16 rows that lie together times C tiles of 16 outputs, of kBatch groups at a time.
//
// AMX's registers are not renamed: four sums take turns, and each is stored two products after its
// own. In between, the vectors do their part for the batch before: a tile's total of each row stays in
// a register, tile after tile.
template <int C, typename Source>
class AmxKernel {
public:
    AmxKernel(const Source& source, size_t groups, const Some& rows)
        : m_source(source), m_rows(rows), m_groups(groups * kHalves) {}

    // Not inlined: it needs every register.
    [[gnu::noinline]] void run(float (&totals)[C][kTogether][kOutputs]) {
        unrolled<kUnits>([&](auto unit) MST_LAMBDA { issue<unit>(0); });
        for (size_t begin = 0; begin < m_groups; begin += kBatch) {
            const bool more = begin + kBatch < m_groups;
            if (!more)
                unrolled<2>([&](auto unit) MST_LAMBDA { store_behind<unit>(begin + kBatch); });
            unrolled<C>([&](auto c) MST_LAMBDA {
                Floats total[kTogether];
                unrolled<kTogether>([&](auto r) MST_LAMBDA { total[r] = load_floats(totals[c][r]); });
                unrolled<kBatch>([&](auto i) MST_LAMBDA {
                    if constexpr (i % 2 == 0)
                        if (more) {
                            issue<kBatch * c + i>(begin + kBatch);
                            issue<kBatch * c + i + 1>(begin + kBatch);
                        }
                    if (begin + i < m_groups) add_sums<c>(begin + i, total);
                });
                unrolled<kTogether>([&](auto r) MST_LAMBDA { store_floats(totals[c][r], total[r]); });
            });
        }
    }

private:
    static constexpr Traits traits = Source::traits;
    static constexpr size_t kHalves = traits.halves();
    static constexpr size_t kInputs = kGroup / kHalves;
    static constexpr int kUnits = kBatch * C;  // products of a batch: tiles of a group, then the next

    // The product of a unit of the batch at `begin`. Behind the last group it is the last one's.
    template <int Unit>
    MST_INLINE void issue(size_t begin) {
        constexpr int kSum = Unit % 4, kRows = 4 + Unit / C % 2, kWeights = 6 + Unit % 2;
        size_t group = begin + Unit / C;
        group = group < m_groups ? group : m_groups - 1;
        if constexpr (Unit % C == 0)
            load_tile<kRows>(m_rows.values + group / kHalves * m_rows.beside * kGroup +
                                 group % kHalves * kInputs,
                             kGroup);
        load_tile<kWeights>(m_source.bytes + group / kHalves * kTiles * kGroup * kOutputs +
                                Unit % C * kGroup * kOutputs + group % kHalves * kInputs * kOutputs,
                            kVector);
        load_tile<kSum>(kStarts.all, kVector);
        multiply_tiles<kSum, kRows, kWeights>();
        if (Unit >= 2 || begin) store_behind<Unit>(begin);
    }

    // The sums of the product two before.
    template <int Unit>
    MST_INLINE void store_behind(size_t begin) {
        constexpr int kBefore = (Unit + kUnits - 2) % kUnits;
        const size_t batch = begin / kBatch - (Unit < 2);
        store_tile<kBefore % 4>(m_sums[batch % 2][kBefore / C][kBefore % C], kVector);
    }

    // What the sums of a group make, for tile `Tile`.
    template <int Tile>
    MST_INLINE void add_sums(size_t group, Floats (&total)[kTogether]) const {
        const Sums& sums = m_sums[group / kBatch % 2][group % kBatch][Tile];
        const float* const scales = m_rows.scales + group / kHalves * m_rows.beside;
        const float* const weighted = m_rows.weighted + group * m_rows.beside;
        Floats scale, minimum;
        m_source.scales({group / kHalves}, group % kHalves, Tile, scale, minimum);
        const Floats less = mul(scale, splat(-kStartFloat));
        // Behind the last row there are others' numbers, or none: nobody takes the results.
        unrolled<kTogether>([&](auto r) MST_LAMBDA {
            const Ints sum = _mm512_load_si512(sums[r]);
            total[r] = fma(splat(scales[r]), scaled(sum, scale, less), total[r]);
            if constexpr (traits.minimum)
                total[r] = fma(minimum, splat(weighted[r]), total[r]);
        });
    }

    const Source m_source;
    const Some m_rows;
    const size_t m_groups;  // of kInputs inputs
    alignas(64) Sums m_sums[2][kBatch][C];
};

// As `many_chunk`.
template <typename Source>
void amx_chunk(Source source, size_t tiles, size_t begin, size_t end, const Rows& rows,
               const Prepared& prepared, float* totals, const Target& target, size_t outputs) {
    constexpr size_t kHalves = Source::traits.halves();
    const bool last = end == rows.groups;
    const auto some = [&](size_t row, size_t count, auto columns) {
        constexpr int C = decltype(columns)::value;
        float* const totals_of = totals + row * kBlocked;
        alignas(64) float sums[C][kTogether][kOutputs];
        for (size_t r = 0; r < kTogether; ++r)
            for (size_t c = 0; c < C; ++c)
                store_floats(sums[c][r], begin && r < count
                                             ? load_floats(totals_of + r * kBlocked + c * kOutputs)
                                             : splat(0.0f));
        AmxKernel<C, Source>(source, end - begin, prepared.some(rows, row).after(begin, kHalves))
            .run(sums);
        for (size_t r = 0; r < count; ++r)
            for (size_t c = 0; c < tiles; ++c) {
                const size_t column = c * kOutputs;
                const Floats sum = load_floats(sums[c][r]);
                if (!last)
                    store_floats(totals_of + r * kBlocked + column, sum);
                else if (column < outputs)
                    store_some(sum, target.at(row + r, column), outputs - column);
            }
    };
    const auto with = [&](size_t row, size_t count) {
        if (tiles > 2)
            some(row, count, std::integral_constant<int, kTiles>{});
        else
            some(row, count, std::integral_constant<int, 2>{});
    };
    const size_t whole = rows.count / kTogether * kTogether;
    if (whole) {
        const Tiles shapes(kTogether, kGroup / kHalves);
        for (size_t row = 0; row < whole; row += kTogether) with(row, kTogether);
    }
    if (whole < rows.count) {
        const Tiles shapes(rows.count - whole, kGroup / kHalves);
        with(whole, rows.count - whole);
    }
}

}  // namespace mst::LEVEL
