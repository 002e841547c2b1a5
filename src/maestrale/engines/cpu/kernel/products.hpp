// Products of packed weights with rows of activations: what all of the engine's time goes to.
//
// The arithmetic, which every level follows to the bit. For each output of each row, group by group
// (of 32 inputs, or of 16 where the weights' scales are of 16), in ascending order:
//   total = fma(scale of the row's 32, round(scale of the weights * sum), total)
//   total = fma(minimum of the weights, round(scale of the row's 32 * sum of its values), total)
// from total = 0 on, the second line where there are minimums; `sum` is the whole number of the
// products of (stored - zero) and the row's values in the group. Then the residual is added; then, where
// rows have outliers:
//   total = fma(the row's outlier, its weight, total)
// with weight = round(scale * (stored - zero)), or fma(scale, stored, minimum).
// So a row's result depends neither on what is computed beside it nor on the number of threads.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lanes.hpp"
#include "layout.hpp"
#include "rows.hpp"
#include "unpack.hpp"

namespace mst::LEVEL {

// Where results are written: rows of `stride` floats. `residual`, of the same shape, is added.
struct Target {
    float* out;
    const float* residual;
    size_t stride;

    Target at(size_t row, size_t column) const {
        const size_t offset = row * stride + column;
        return {out + offset, residual ? residual + offset : nullptr, stride};
    }
};

// Some rows that lie together, from `index` on, as a kernel reads them.
struct Some {
    const int8_t* values;
    const float* scales;
    const float* weighted;  // [groups], or [2 * groups] where the weights' groups are of 16
    const int32_t* starts;  // the same: what a sum of products begins with
    size_t beside;

    // The same rows, `groups` further on.
    Some after(size_t groups, size_t halves) const {
        const size_t count = groups * beside;
        return {values + count * kGroup, scales + count, weighted + halves * count,
                starts + halves * count, beside};
    }
};

constexpr size_t kAhead = 2560;                    // bytes; tried: less and more are slower
constexpr size_t kTiles = 4;                       // that many rows are multiplied by together
constexpr size_t kBlocked = kTiles * kOutputs;     // their outputs
constexpr size_t kChunk = 32;                      // groups of inputs at a time
// So many rows are. AMX multiplies fewer where it unpacks them.
#if defined(LEVEL_AMX)
constexpr size_t kMany = 3 * kTogether + 1;
#else
constexpr size_t kMany = 2 * kTogether;
#endif

// In what numbers of tiles products of so many rows are cut best.
inline size_t tiles_together(size_t rows) { return rows >= kMany ? kTiles : 1; }

// The first `count` of a register's outputs, beside the residual.
MST_INLINE void store_some(const Floats& floats, const Target& target, size_t count) {
    if (count >= kLanes) {
        store_floats(target.out,
                     target.residual ? add(floats, load_floats(target.residual)) : floats);
        return;
    }
    float lanes[kLanes];
    store_floats(lanes, floats);
    for (size_t i = 0; i < count; ++i)
        target.out[i] = target.residual ? lanes[i] + target.residual[i] : lanes[i];
}

// R rows times C registers of outputs, from the totals `begun` on (null: 0), as `target` has them. Not
// inlined: it needs every register.
template <int R, int C, typename Source>
[[gnu::noinline]] void kernel(const Source& source, size_t groups, const Some& rows,
                              const float* begun, const Target& target,
                              size_t outputs) {
    constexpr Traits traits = Source::traits;
    constexpr size_t kHalves = traits.halves();
    constexpr size_t kQuads = 8 / kHalves;
    using Sum = Dots<traits.most>;
    static constexpr int32_t kNoZero = kStart;
    const int8_t* values = rows.values;
    const float* scales = rows.scales;
    const float* weighted = rows.weighted;
    const int32_t* starts = rows.starts;
    Floats total[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            total[r][c] = begun ? load_floats(begun + r * kBlocked + c * kLanes) : splat(0.0f);
    for (size_t group = 0; group < groups; ++group) {
        const auto at = source.at(group);
        unrolled<kHalves>([&](auto half) MST_LAMBDA {
            Sum sums[R][C];
            unrolled<R>([&](auto r) MST_LAMBDA {
                unrolled<C>([&](auto c) MST_LAMBDA {
                    sums[r][c].start(traits.zero ? starts + half * rows.beside + r : &kNoZero);
                });
            });
            unrolled<kQuads>([&](auto turn) MST_LAMBDA {
                constexpr int quad = half * kQuads + turn;
                typename Sum::Weights weights[C];
                unrolled<C>([&](auto c) MST_LAMBDA {
                    weights[c] = Sum::prepare(source.template values<quad>(at, c));
                });
                unrolled<R>([&](auto r) MST_LAMBDA {
                    const auto four = Sum::template four<quad, C>(values + kGroup * r);
                    unrolled<C>([&](auto c) MST_LAMBDA {
                        sums[r][c].template add<turn>(weights[c], four);
                    });
                });
            });
            unrolled<C>([&](auto c) MST_LAMBDA {
                Floats scale, minimum;
                source.scales(at, half, c, scale, minimum);
                const Floats less = mul(scale, splat(-kStartFloat));
                unrolled<R>([&](auto r) MST_LAMBDA {
                    Floats& sum = total[r][c];
                    sum = fma(splat(scales[r]), scaled(sums[r][c].whole(), scale, less), sum);
                    if constexpr (traits.minimum)
                        sum = fma(minimum, splat(weighted[half * rows.beside + r]), sum);
                });
            });
        });
        source.look_ahead(at);
        values += kGroup * rows.beside;
        scales += rows.beside;
        weighted += kHalves * rows.beside;
        starts += kHalves * rows.beside;
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            if (outputs > c * kLanes)
                store_some(total[r][c], target.at(r, c * kLanes), outputs - c * kLanes);
}

// What a form's zero point and groups make of rows; of one thread and form.
class Prepared {
public:
    void prepare(const Traits& traits, const Rows& rows, bool starts) {
        if (m_version == rows.version) return;
        m_version = rows.version;
        m_halves = traits.halves();
        m_groups = rows.groups;
        const size_t count = rows.count * rows.groups;
        if (rows.has_outliers) note_outliers(rows);
        if (traits.zero && starts) {
            m_starts.reserve(m_halves * count);
            each_block(rows, [&](size_t before, size_t beside) {
                const int32_t* sums = rows.sums.data() + 2 * before * rows.groups;
                int32_t* starts = m_starts.data() + m_halves * before * rows.groups;
                if (m_halves == 2)
                    for (size_t i = 0; i < 2 * beside * rows.groups; ++i)
                        starts[i] = kStart - traits.zero * sums[i];
                else
                    for (size_t group = 0; group < rows.groups; ++group)
                        for (size_t i = 0; i < beside; ++i)
                            starts[group * beside + i] =
                                kStart - traits.zero * (sums[2 * group * beside + i] +
                                                        sums[(2 * group + 1) * beside + i]);
            });
        }
        if (traits.minimum && m_halves == 2) {
            m_weighted.reserve(2 * count);
            each_block(rows, [&](size_t before, size_t beside) {
                const size_t first = before * rows.groups;
                for (size_t half = 0; half < 2 * rows.groups; ++half)
                    for (size_t i = 0; i < beside; ++i)
                        m_weighted.data()[2 * first + half * beside + i] =
                            rows.scales.data()[first + half / 2 * beside + i] *
                            float(rows.sums.data()[2 * first + half * beside + i]);
            });
        }
    }

    Some some(const Rows& rows, size_t row) const {
        const Rows::Place at = rows.place(row);
        const size_t first = at.before * m_groups + at.index;
        const size_t half = m_halves * at.before * m_groups + at.index;
        // What nobody asked for is anything that is there.
        const int32_t* const starts = m_starts.data() ? m_starts.data() : rows.sums.data();
        return {rows.values.data() + at.before * rows.inputs + at.index * kGroup,
                rows.scales.data() + first,
                m_weighted.data() ? m_weighted.data() + half : rows.weighted.data() + first,
                starts + half, at.beside};
    }

    // The inputs that are some row's outlier, each once; and which of them each row's is.
    const std::vector<uint32_t>& outliers() const { return m_outliers; }
    size_t outlier_of(size_t row) const { return m_outlier_of[row]; }

private:
    void note_outliers(const Rows& rows) {
        for (const uint32_t input : m_outliers) m_numbers[input] = 0;
        m_outliers.clear();
        m_outlier_of.resize(rows.count);
        if (m_numbers.size() < rows.inputs) m_numbers.resize(rows.inputs);
        for (size_t row = 0; row < rows.count; ++row) {
            const uint32_t input = rows.outlier_of.data()[row];
            if (!m_numbers[input]) {
                m_outliers.push_back(input);
                m_numbers[input] = uint32_t(m_outliers.size());
            }
            m_outlier_of[row] = m_numbers[input] - 1;
        }
    }

    template <typename Work>
    static void each_block(const Rows& rows, const Work& work) {
        for (size_t row = 0; row < rows.count; row += kTogether) {
            const size_t left = rows.count - row;
            work(row, left < kTogether ? left : kTogether);
        }
    }

    uint64_t m_version = 0;  // of the rows that were prepared last
    size_t m_halves = 1;
    size_t m_groups = 0;
    Buffer<int32_t> m_starts;
    Buffer<float> m_weighted;
    std::vector<uint32_t> m_outliers, m_outlier_of;
    std::vector<uint32_t> m_numbers;  // of an input: where it is among the outliers, from 1 on
};

// Memory of a thread.
struct Scratch {
    Buffer<float> columns;  // [outliers, kBlocked]: their weights
    Buffer<uint8_t> bytes;  // what is unpacked for many rows
    Buffer<float> scales, minimums;
    Buffer<float> totals;  // [rows, kBlocked]
};

// Adds the outliers' part to results of `tiles` tiles, from the one at `source` on. It comes last, as
// the weights are in the cache then.
template <typename Source>
[[gnu::noinline]] void add_outliers(Source source, const Rows& rows, const Prepared& prepared,
                                    size_t tiles, const Target& target, size_t outputs,
                                    Scratch& scratch) {
    const std::vector<uint32_t>& outliers = prepared.outliers();
    scratch.columns.reserve(outliers.size() * kBlocked);
    for (size_t i = 0; i < outliers.size(); ++i)
        source.column(outliers[i], tiles * kRegisters, scratch.columns.data() + i * kBlocked);
    const size_t columns = outputs < tiles * kOutputs ? outputs : tiles * kOutputs;
    for (size_t row = 0; row < rows.count; ++row) {
        const Floats outlier = splat(rows.outliers.data()[row]);
        const float* const weights = scratch.columns.data() + prepared.outlier_of(row) * kBlocked;
        float* const out = target.at(row, 0).out;
        for (size_t i = 0; i < columns; i += kLanes) {
            if (columns - i >= kLanes) {
                store_floats(out + i, fma(outlier, load_floats(weights + i), load_floats(out + i)));
                continue;
            }
            float lanes[kLanes] = {};
            std::memcpy(lanes, out + i, (columns - i) * sizeof(float));
            store_floats(lanes, fma(outlier, load_floats(weights + i), load_floats(lanes)));
            std::memcpy(out + i, lanes, (columns - i) * sizeof(float));
        }
    }
}

// All rows times C registers, R rows at a time, then the rest by halves of it.
template <int R, int C, typename Source>
MST_INLINE size_t some_rows(const Source& source, const Rows& rows, const Prepared& prepared,
                            size_t row, const Target& target, size_t outputs) {
    while (true) {
        const size_t left = kTogether - row % kTogether;  // lie together
        if (row + R > rows.count || left < R) return row;
        kernel<R, C>(source, rows.groups, prepared.some(rows, row), nullptr, target.at(row, 0), outputs);
        row += R;
    }
}

// From `row` on.
template <int C, typename Source>
void all_rows(const Source& source, const Rows& rows, const Prepared& prepared, size_t row,
              const Target& target, size_t outputs) {
    if constexpr (kMostRows >= 8)
        row = some_rows<8, C>(source, rows, prepared, row, target, outputs);
    if constexpr (kMostRows >= 4)
        row = some_rows<4, C>(source, rows, prepared, row, target, outputs);
    if constexpr (kMostRows >= 2)
        row = some_rows<2, C>(source, rows, prepared, row, target, outputs);
    some_rows<1, C>(source, rows, prepared, row, target, outputs);
}

#if defined(LEVEL_AMX)
class FewTiles;
template <typename Source>
size_t amx_few_rows(const Source& source, const Rows& rows, const Prepared& prepared,
                    const Target& target, size_t outputs, FewTiles& tiles);
#else
struct FewTiles {};
#endif

// Tiles `first` to `last` of a form's weights, whose first is written to the first column of
// `target`; `outputs`: how many columns it has from there on.
template <typename Source, typename Blocks>
void few_rows(Source source, const Blocks& blocks, const Rows& rows, const Prepared& prepared,
              size_t first, size_t last, const Target& target, size_t outputs, Scratch& scratch,
              [[maybe_unused]] FewTiles& tiles) {
    for (size_t tile = first; tile < last; ++tile) {
        source.blocks = blocks.at(tile * source.tile_bytes);
        const size_t begin = (tile - first) * kOutputs;
        for (size_t part = 0; part < kRegisters; part += kColumns) {
            const size_t column = begin + part * kLanes;
            if (column >= outputs) break;
            source.first = part;
            const Target to = target.at(0, column);
            size_t row = 0;
#if defined(LEVEL_AMX)
            if constexpr (std::is_same_v<Blocks, Run>)
                row = amx_few_rows(source, rows, prepared, to, outputs - column, tiles);
#endif
            all_rows<kColumns>(source, rows, prepared, row, to, outputs - column);
        }
        if constexpr (std::is_same_v<Blocks, Run>)
            if (rows.has_outliers)
                add_outliers(source, rows, prepared, 1, target.at(0, begin), outputs - begin, scratch);
    }
}

// Weights of kTiles tiles and up to kChunk groups, unpacked to a byte each. Not of a form, as what
// kernels do with it is the same for many.
template <int Most, int Group, bool Minimum, bool Zero>
struct Unpacked {
    static constexpr Traits traits{8, Scales::none, Group, Minimum, Zero, false, Most};
    static constexpr size_t kScales = traits.halves() * kOutputs;

    const uint8_t* bytes;
    const float* scale;
    const float* minimum;
    size_t first = 0;

    struct At {
        size_t group;
    };

    MST_INLINE At at(size_t group) const { return {group}; }
    MST_INLINE void look_ahead(const At&) const {}

    template <int J>
    MST_INLINE Bytes values(const At& at, size_t index) const {
        const size_t part = first + index;
        const size_t tile = at.group * kTiles + part / kRegisters;
        return load_bytes(bytes + tile * 8 * kVector + J * kVector + part % kRegisters * kRegister);
    }

    MST_INLINE void scales(const At& at, size_t half, size_t index, Floats& to,
                           Floats& to_minimum) const {
        const size_t part = first + index;
        const size_t i = (at.group * kTiles + part / kRegisters) * kScales + half * kOutputs +
                         part % kRegisters * kLanes;
        to = load_floats(scale + i);
        if constexpr (traits.minimum) to_minimum = load_floats(minimum + i);
    }
};

template <Form F>
using UnpackedOf = Unpacked<kept_most(traits_of(F).most), traits_of(F).group, traits_of(F).minimum,
                            traits_of(F).zero != 0>;

// Groups [begin, end) of `tiles` tiles into `scratch`.
template <Form F, typename Source>
[[gnu::noinline]] void unpack_chunk(Source source, size_t tiles, size_t begin, size_t end,
                                    Scratch& scratch) {
    constexpr Traits traits = traits_of(F);
    constexpr size_t kScales = UnpackedOf<F>::kScales;
    uint8_t* bytes = scratch.bytes.data();
    float* scales = scratch.scales.data();
    float* minimums = scratch.minimums.data();
    for (size_t tile = 0; tile < tiles; ++tile)
        for (size_t group = begin; group < end; ++group) {
            const size_t to = (group - begin) * kTiles + tile;
            const auto at = source.at(group);
            for (size_t part = 0; part < kRegisters; ++part) {
                source.first = tile * kRegisters + part;
                unrolled<4>([&](auto pair) MST_LAMBDA {
                    store_pair<pair>(bytes + 8 * to * kVector, part,
                                     source.template values<2 * pair>(at, 0),
                                     source.template values<2 * pair + 1>(at, 0), traits.zero);
                });
                unrolled<traits.halves()>([&](auto half) MST_LAMBDA {
                    Floats scale, minimum;
                    source.scales(at, half, 0, scale, minimum);
                    const size_t i = to * kScales + half * kOutputs + part * kLanes;
                    store_floats(scales + i, scale);
                    if constexpr (traits.minimum) store_floats(minimums + i, minimum);
                });
            }
        }
}

// What was unpacked times all rows: to the totals, or to the target where it is the last.
template <typename Source>
void many_chunk(Source source, size_t tiles, size_t begin, size_t end, const Rows& rows,
                const Prepared& prepared, float* totals, const Target& target, size_t outputs) {
    const bool last = end == rows.groups;
    const auto with = [&](size_t row, size_t part, auto count, auto columns) {
        constexpr int R = decltype(count)::value, C = decltype(columns)::value;
        source.first = part;
        const size_t column = part * kLanes;
        if (last && column >= outputs) return;
        float* const total = totals + row * kBlocked + column;
        kernel<R, C>(source, end - begin,
                     prepared.some(rows, row).after(begin, Source::traits.halves()),
                     begin ? total : nullptr,
                     last ? target.at(row, column) : Target{total, nullptr, kBlocked},
                     last ? outputs - column : C * kLanes);
    };
    // All rows times some registers of weights, which stay in the first cache meanwhile.
    const auto all = [&](size_t part, auto columns) {
        size_t row = 0;
        const auto some = [&](auto count) {
            with(row, part, count, columns);
            row += count;
        };
        while (row < rows.count) {
            const size_t beside = kTogether - row % kTogether;  // that lie together
            const size_t left = rows.count - row < beside ? rows.count - row : beside;
            if (kBlockRows > 4 && left >= 16)  // 6 + 5 + 5
                some(std::integral_constant<int, kBlockRows>{});
            else if (kBlockRows > 4 && left >= 5)
                some(std::integral_constant<int, kBlockRows - 1>{});
            else if (left >= 4)
                some(std::integral_constant<int, 4>{});
            else if (left >= 2)
                some(std::integral_constant<int, 2>{});
            else
                some(std::integral_constant<int, 1>{});
        }
    };
    const size_t parts = tiles * kRegisters;
    size_t part = 0;
    for (; part + kBlockColumns <= parts; part += kBlockColumns)
        all(part, std::integral_constant<int, kBlockColumns>{});
    for (; part < parts; ++part) all(part, std::integral_constant<int, 1>{});
}

}  // namespace mst::LEVEL

#if defined(LEVEL_AMX)
#include "amx.hpp"
#include "amx_few.hpp"
#elif defined(LEVEL_I8MM)
#include "i8mm.hpp"
#endif

namespace mst::LEVEL {

// The same for many rows: weights are unpacked once for all of them, as many at a time as stay in the
// second cache.
template <Form F, typename Source, typename Blocks>
void many_rows(Source source, const Blocks& blocks, const Rows& rows, const Prepared& prepared,
               size_t first, size_t last, const Target& target, size_t outputs, Scratch& scratch) {
    constexpr Traits traits = traits_of(F);
    constexpr size_t kScales = UnpackedOf<F>::kScales;
#if defined(LEVEL_AMX)
    const auto chunk = amx_chunk<UnpackedOf<F>>;
#elif defined(LEVEL_I8MM)
    const auto chunk = i8mm_chunk<UnpackedOf<F>>;
#else
    const auto chunk = many_chunk<UnpackedOf<F>>;
#endif
    scratch.bytes.reserve(kTiles * kChunk * 8 * kVector);
    scratch.scales.reserve(kTiles * kChunk * kScales);
    if (traits.minimum) scratch.minimums.reserve(kTiles * kChunk * kScales);
    scratch.totals.reserve(rows.count * kBlocked);
    UnpackedOf<F> unpacked{scratch.bytes.data(), scratch.scales.data(), scratch.minimums.data()};
    for (size_t tile = first; tile < last; tile += kTiles) {
        source.blocks = blocks.at(tile * source.tile_bytes);
        const size_t tiles = last - tile < kTiles ? last - tile : kTiles;
        const Target from = target.at(0, (tile - first) * kOutputs);
        const size_t columns = outputs - (tile - first) * kOutputs;
        for (size_t begin = 0; begin < rows.groups; begin += kChunk) {
            const size_t end = begin + kChunk < rows.groups ? begin + kChunk : rows.groups;
            unpack_chunk<F>(source, tiles, begin, end, scratch);
            chunk(unpacked, tiles, begin, end, rows, prepared, scratch.totals.data(), from, columns);
        }
        if (rows.has_outliers) add_outliers(source, rows, prepared, tiles, from, columns, scratch);
    }
}

// As `few_rows` or `many_rows`.
template <Form F, typename Blocks>
void products(const Blocks& blocks, size_t tile_bytes, const Rows& rows, size_t first, size_t last,
              const Target& target, size_t outputs, const Matrix* matrix = nullptr) {
    thread_local Prepared kept;
    thread_local Scratch own;
    Prepared& prepared = kept;
    Scratch& scratch = own;
    const bool many = std::is_same_v<Blocks, Run> && kBlockRows > 0 && rows.count >= kMany;
    prepared.prepare(traits_of(F), rows, !(many && kSigned));
    Packed<F, Blocks> source{blocks, tile_bytes, 0, {}, 1.0f, kAhead};
    if constexpr (traits_of(F).table) {
        source.table = load_table(matrix->table);
        source.factor = matrix->factor;
    }
    if constexpr (std::is_same_v<Blocks, Run> && kBlockRows > 0 && F != Form::plain8)
        if (many)
            return many_rows<F>(source, blocks, rows, prepared, first, last, target, outputs, scratch);
    FewTiles tiles;
    few_rows(source, blocks, rows, prepared, first, last, target, outputs, scratch, tiles);
}

// Tiles [first, last) of a matrix, whose columns in `target` are those of the whole matrix. Any cut
// will do; multiples of kTiles are best where there are many rows.
inline void multiply(const Matrix& matrix, const Rows& rows, size_t first, size_t last,
                     const Target& target) {
    const auto with = [&](auto form) {
        constexpr Form F = decltype(form)::value;
        const size_t column = first * kOutputs;
        products<F>(Run{matrix.data, traits_of(F).unit_bytes()}, matrix.tile_bytes, rows, first, last,
                    target.at(0, column), matrix.rows - column, &matrix);
    };
    if (first >= last) return;
    switch (matrix.form) {
#define MST_FORM(name) \
    case Form::name: return with(std::integral_constant<Form, Form::name>{});
        MST_FORMS(MST_FORM)
#undef MST_FORM
    }
}

}  // namespace mst::LEVEL
