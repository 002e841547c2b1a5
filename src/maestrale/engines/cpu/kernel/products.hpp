// Products of packed weights with rows of activations: what all of the engine's time goes to.
//
// The arithmetic, which every level follows to the bit. For each output of each row, group by group
// (of 32 inputs, or of 16 where the weights' scales are of 16), in ascending order:
//   total = fma(scale of the row's 32, round(scale of the weights * sum), total)
//   total = fma(minimum of the weights, round(scale of the row's 32 * sum of its values), total)
// from total = 0 on, the second line where there are minimums; `sum` is the whole number of the
// products of (stored - zero) and the row's values in the group. Then the residual is added.
// So a row's result depends neither on what is computed beside it nor on the number of threads.

#pragma once

#include <cstddef>
#include <cstdint>

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
};

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

// R rows times C registers of outputs. Not inlined: it needs every register.
template <int R, int C, typename Source>
[[gnu::noinline]] void kernel(const Source& source, size_t groups, const Some& rows,
                              const Target& target, size_t outputs) {
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
        for (int c = 0; c < C; ++c) total[r][c] = splat(0.0f);
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
                unrolled<C>([&](auto c) MST_LAMBDA {
                    const auto weights = Sum::prepare(source.template values<quad>(at, c));
                    unrolled<R>([&](auto r) MST_LAMBDA {
                        sums[r][c].template add<quad, turn>(weights, values + kGroup * r);
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

// What a form's zero point and groups make of rows, for one call.
class Prepared {
public:
    void prepare(const Traits& traits, const Rows& rows) {
        m_halves = traits.halves();
        m_groups = rows.groups;
        const size_t count = rows.count * rows.groups;
        if (traits.zero) {
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
        return {rows.values.data() + at.before * rows.inputs + at.index * kGroup,
                rows.scales.data() + first,
                m_halves == 2 ? m_weighted.data() + half : rows.weighted.data() + first,
                m_starts.data() + half, at.beside};
    }

private:
    template <typename Work>
    static void each_block(const Rows& rows, const Work& work) {
        for (size_t row = 0; row < rows.count; row += kTogether) {
            const size_t left = rows.count - row;
            work(row, left < kTogether ? left : kTogether);
        }
    }

    size_t m_halves = 1;
    size_t m_groups = 0;
    Buffer<int32_t> m_starts;
    Buffer<float> m_weighted;
};

// All rows times C registers, R rows at a time, then the rest by halves of it.
template <int R, int C, typename Source>
MST_INLINE size_t some_rows(const Source& source, const Rows& rows, const Prepared& prepared,
                            size_t row, const Target& target, size_t outputs) {
    while (true) {
        const size_t left = kTogether - row % kTogether;  // lie together
        if (row + R > rows.count || left < R) return row;
        kernel<R, C>(source, rows.groups, prepared.some(rows, row), target.at(row, 0), outputs);
        row += R;
    }
}

template <int C, typename Source>
void all_rows(const Source& source, const Rows& rows, const Prepared& prepared,
              const Target& target, size_t outputs) {
    size_t row = 0;
    if constexpr (kMostRows >= 8)
        row = some_rows<8, C>(source, rows, prepared, row, target, outputs);
    if constexpr (kMostRows >= 4) {
        row = some_rows<4, C>(source, rows, prepared, row, target, outputs);
        row = some_rows<2, C>(source, rows, prepared, row, target, outputs);
    }
    some_rows<1, C>(source, rows, prepared, row, target, outputs);
}

// Tiles `first` to `last` of a form's weights, whose first is written to the first column of
// `target`; `outputs`: how many columns it has from there on.
template <Form F, typename Blocks>
void products(const Blocks& blocks, size_t tile_bytes, const Rows& rows, size_t first, size_t last,
              const Target& target, size_t outputs, const Matrix* matrix = nullptr) {
    thread_local Prepared prepared;
    prepared.prepare(traits_of(F), rows);
    Packed<F, Blocks> source{blocks, tile_bytes, 0, {}, 1.0f, 2 * tile_bytes};
    if constexpr (traits_of(F).table) {
        source.table = load_table(matrix->table);
        source.factor = matrix->factor;
    }
    for (size_t tile = first; tile < last; ++tile) {
        source.blocks = blocks.at(tile * tile_bytes);
        for (size_t part = 0; part < kRegisters; part += kColumns) {
            const size_t column = (tile - first) * kOutputs + part * kLanes;
            if (column >= outputs) return;
            source.first = part;
            all_rows<kColumns>(source, rows, prepared, target.at(0, column), outputs - column);
        }
    }
}

// Tiles [first, last) of a matrix, whose columns in `target` are those of the whole matrix. Any cut
// will do; a multiple of 4 tiles is best where there are many rows.
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
