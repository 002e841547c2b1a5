// Products of a few rows by AMX: weights are unpacked where they are multiplied, for a tile of outputs
// and up to 16 rows, as reading them is most of the work.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "amx.hpp"

namespace mst::LEVEL {

// Up to R rows that lie together times a tile of 16 outputs.
//
// What is done for a group of inputs is spread over four turns, so that nothing waits for what was
// just begun: its weights are unpacked to the first cache, AMX multiplies them, its sums are stored,
// and the vectors add them to the totals.
template <int R, typename Source>
class AmxFewKernel {
public:
    AmxFewKernel(const Source& source, size_t groups, const Some& rows)
        : m_source(source), m_rows(rows), m_groups(groups) {}

    // Not inlined: it needs every register. `count`: of the rows, up to R.
    [[gnu::noinline]] void run(size_t count, const Target& target, size_t outputs) {
        Floats total[R];
        unrolled<R>([&](auto r) MST_LAMBDA { total[r] = splat(0.0f); });
        unpack(0);
        if (m_groups > 1) unpack(1);
        multiply<0>(0);
        const auto turn = [&](size_t group, auto parity) MST_LAMBDA {
            if (group + 2 < m_groups) unpack(group + 2);
            if (group + 1 < m_groups) multiply<1 - parity>(group + 1);
            store_sums<parity>();
            if (group) add_sums<1 - parity>(group - 1, total);
        };
        for (size_t group = 0; group < m_groups; group += 2) {
            turn(group, std::integral_constant<int, 0>{});
            if (group + 1 < m_groups) turn(group + 1, std::integral_constant<int, 1>{});
        }
        if (m_groups % 2)
            add_sums<0>(m_groups - 1, total);
        else
            add_sums<1>(m_groups - 1, total);
        unrolled<R>([&](auto r) MST_LAMBDA {
            if (r < count) store_some(total[r], target.at(r, 0), outputs);
        });
    }

private:
    static constexpr Traits traits = Source::traits;
    static constexpr size_t kHalves = traits.halves();
    static constexpr size_t kInputs = kGroup / kHalves;
    static constexpr size_t kUnpacked = 4;  // groups: a power of two

    MST_INLINE void unpack(size_t group) {
        const auto at = m_source.at(group);
        uint8_t* const to = m_bytes[group % kUnpacked];
        unrolled<8>([&](auto quad) MST_LAMBDA {
            Bytes bytes = m_source.template values<quad>(at, 0);
            if constexpr (traits.zero != 0)
                bytes = _mm512_sub_epi8(bytes, _mm512_set1_epi8(char(traits.zero)));
            store_bytes(to + quad * kVector, bytes);
        });
        m_source.look_ahead(at);
    }

    // Parity: of the group.
    template <int Parity>
    MST_INLINE void multiply(size_t group) {
        unrolled<kHalves>([&](auto half) MST_LAMBDA {
            constexpr int kSum = 2 * Parity + half, kSide = kHalves == 2 ? half : Parity;
            load_tile<4 + kSide>(m_rows.values + group * m_rows.beside * kGroup + half * kInputs,
                                 kGroup);
            load_tile<6 + kSide>(m_bytes[group % kUnpacked] + half * kInputs * kOutputs, kVector);
            zero_tile<kSum>();
            multiply_tiles<kSum, 4 + kSide, 6 + kSide>();
        });
    }

    template <int Parity>
    MST_INLINE void store_sums() {
        unrolled<kHalves>([&](auto half) MST_LAMBDA {
            store_tile<2 * Parity + half>(m_sums[Parity][half], kVector);
        });
    }

    template <int Parity>
    MST_INLINE void add_sums(size_t group, Floats (&total)[R]) const {
        const float* const scales = m_rows.scales + group * m_rows.beside;
        unrolled<kHalves>([&](auto half) MST_LAMBDA {
            const float* const weighted =
                m_rows.weighted + (group * kHalves + half) * m_rows.beside;
            Floats scale, minimum;
            m_source.scales(m_source.at(group), half, 0, scale, minimum);
            // Behind the last row there are others' numbers, or none: nobody takes the results.
            unrolled<R>([&](auto r) MST_LAMBDA {
                const Ints sum = _mm512_load_si512(m_sums[Parity][half][r]);
                total[r] = fma(splat(scales[r]), mul(scale, to_floats(sum)), total[r]);
                if constexpr (traits.minimum)
                    total[r] = fma(minimum, splat(weighted[r]), total[r]);
            });
        });
    }

    const Source m_source;
    const Some m_rows;
    const size_t m_groups;
    alignas(64) uint8_t m_bytes[kUnpacked][kGroup * kOutputs];
    alignas(64) int32_t m_sums[2][kHalves][R][kOutputs];
};

// The tiles' shapes for blocks of rows, one after the other: set only where they change.
class FewTiles {
public:
    void shape(size_t rows, size_t inputs) {
        if (m_tiles && m_rows == rows) return;
        m_tiles.emplace(rows, inputs);
        m_rows = rows;
    }

private:
    std::optional<Tiles> m_tiles;
    size_t m_rows = 0;
};

// Whether AMX is quicker for so many rows that lie together. Of short rows a few are not worth what
// begins and ends with each tile.
inline bool amx_is_quicker(size_t count, size_t groups) {
    return count > 8 || count == 7 || (count > 4 && count < 7 && groups >= 64);
}

// The first rows times a tile, as many as AMX is quicker for; how many.
template <typename Source>
size_t amx_few_rows(const Source& source, const Rows& rows, const Prepared& prepared,
                    const Target& target, size_t outputs, FewTiles& tiles) {
    for (size_t row = 0; row < rows.count; row += kTogether) {
        const size_t left = rows.count - row, count = left < kTogether ? left : kTogether;
        if (!amx_is_quicker(count, rows.groups)) return row;
        tiles.shape(count, kGroup / Source::traits.halves());
        const auto with = [&](auto most) {
            AmxFewKernel<decltype(most)::value, Source>(source, rows.groups, prepared.some(rows, row))
                .run(count, target.at(row, 0), outputs);
        };
        if (count > 12)
            with(std::integral_constant<int, 16>{});
        else if (count > 8)
            with(std::integral_constant<int, 12>{});
        else
            with(std::integral_constant<int, 8>{});
    }
    return rows.count;
}

}  // namespace mst::LEVEL
