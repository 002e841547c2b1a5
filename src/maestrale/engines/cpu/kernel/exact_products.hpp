// In place of `products.hpp`: rows stay float32, and products are summed up in double precision.
// The reference for tests; slow.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "layout.hpp"
#include "maestrale.h"

namespace mst::LEVEL {

// In what numbers of tiles products of so many rows are cut best.
inline size_t tiles_together(size_t) { return 1; }


struct Rows {
    struct Place {
        size_t row;
    };

    size_t count = 0;
    size_t groups = 0;
    std::vector<float> values;  // [count, groups * kGroup]

    void resize(size_t rows, size_t inputs, bool = false) {
        count = rows;
        m_inputs = inputs;
        groups = (inputs + kGroup - 1) / kGroup;
        values.assign(rows * groups * kGroup, 0.0f);
    }

    Place place(size_t row) const { return {row}; }
    const float* row(size_t index) const { return values.data() + index * groups * kGroup; }

    void round(const float* source, size_t row) {
        for (size_t i = 0; i < m_inputs; ++i) values[row * groups * kGroup + i] = source[i];
    }

    void put(const float* part, const Place& at, size_t group) {
        for (size_t i = 0; i < kGroup; ++i)
            values[(at.row * groups + group) * kGroup + i] = part[i];
    }

private:
    size_t m_inputs = 0;
};

struct Target {
    float* out;
    const float* residual;
    size_t stride;

    Target at(size_t row, size_t column) const {
        const size_t offset = row * stride + column;
        return {out + offset, residual ? residual + offset : nullptr, stride};
    }
};

inline void multiply(const Matrix& matrix, const Rows& rows, size_t first, size_t last,
                     const Target& target) {
    std::vector<float> weights(matrix.columns);
    for (size_t output = first * kOutputs; output < last * kOutputs && output < matrix.rows; ++output) {
        mst_matrix_unpack(&matrix, int64_t(output), 1, weights.data());
        for (size_t row = 0; row < rows.count; ++row) {
            double sum = 0;
            for (size_t i = 0; i < matrix.columns; ++i)
                sum += double(weights[i]) * double(rows.row(row)[i]);
            const Target at = target.at(row, output);
            *at.out = float(at.residual ? sum + double(*at.residual) : sum);
        }
    }
}

}  // namespace mst::LEVEL
