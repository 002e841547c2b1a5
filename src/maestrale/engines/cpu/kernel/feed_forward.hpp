// Products of a stage, cut into tasks that threads share; and the two stages of an MLP, or of all
// experts of a layer at once.

#pragma once

#include <vector>

#include "maestrale.h"
#include "pool.hpp"
#include "vectors.hpp"

#ifdef LEVEL_EXACT
#include "exact_products.hpp"
#else
#include "products.hpp"
#endif

namespace mst::LEVEL {

constexpr size_t kLeastWork = 6 << 10;    // bytes that a task reads at least: half a microsecond
constexpr size_t kMostResults = 1 << 18;  // floats that a task of an MLP keeps in between

// A run of tiles of one of a stage's matrices.
struct Task {
    uint32_t part;
    uint32_t first, last;
};

// Cuts a stage's matrices into tasks, in whole `step`s of tiles: large ones first, small ones last, so
// that threads end together, and yet claim few.
class Cutter {
public:
    Cutter(std::vector<Task>& tasks, size_t threads) : m_tasks(tasks), m_threads(threads) {
        m_tasks.clear();
    }

    // Before any is cut: how much there is. `rows`: that are multiplied with it.
    void weigh(const mst_matrix& matrix, size_t rows) {
        m_left += matrix.tiles * of_tile(matrix, rows);
    }

    // `beside`: how many matrices of this shape a task reads; `most` tiles.
    void cut(size_t part, const mst_matrix& matrix, size_t rows, size_t step, size_t beside = 1,
             size_t most = ~size_t(0)) {
        const size_t work = beside * of_tile(matrix, rows);
        for (size_t first = 0; first < matrix.tiles;) {
            const size_t share = std::max(m_left / (2 * m_threads), kLeastWork);
            const size_t length = std::max(std::min(share / work, most) / step, size_t(1)) * step;
            const size_t last = std::min(first + length, matrix.tiles);
            m_tasks.push_back({uint32_t(part), uint32_t(first), uint32_t(last)});
            m_left -= std::min(m_left, (last - first) * work);
            first = last;
        }
    }

private:
    // Reading a tile costs about as much as multiplying eight rows with it.
    static size_t of_tile(const mst_matrix& matrix, size_t rows) {
        return matrix.tile_bytes + matrix.tile_bytes * rows / 8;
    }

    std::vector<Task>& m_tasks;
    const size_t m_threads;
    size_t m_left = 0;
};

// A matrix of a stage; several may read the same rows.
struct Product {
    const mst_matrix* matrix;
    const Rows* rows;
    const float* bias;  // or null
    Target target;      // its residual is added where there is no bias
};

// An MLP, and the rows that go through it.
struct FeedForward {
    const mst_matrix *gate, *up, *down;
    const float *gate_bias, *up_bias, *down_bias;
    const Rows* rows;
    Target target;
};

class Stages {
public:
    Stages(Pool& pool, const mst_model& model)
        : m_pool(pool), m_model(model), m_scratch(pool.threads()) {}

    // done(product, first column, last column) follows each task, for what else is done to results.
    template <typename Done>
    void multiply_all(const Product* products, size_t count, const Done& done) {
        Cutter cutter(m_tasks, m_pool.threads());
        for (size_t i = 0; i < count; ++i) cutter.weigh(*products[i].matrix, products[i].rows->count);
        for (size_t i = 0; i < count; ++i)
            cutter.cut(i, *products[i].matrix, products[i].rows->count,
                       tiles_together(products[i].rows->count));
        m_pool.run(m_tasks.size(), [&](size_t index, size_t) {
            const Task& task = m_tasks[index];
            const Product& product = products[task.part];
            const size_t first = task.first * kOutputs;
            const size_t last = std::min(task.last * kOutputs, product.matrix->rows);
            multiply(*product.matrix, *product.rows, task.first, task.last, product.target);
            if (product.bias)
                add_bias(product.bias + first, last - first, product.rows->count,
                         product.target.at(0, first));
            done(product, first, last);
        });
    }

    void multiply_all(const Product* products, size_t count) {
        multiply_all(products, count, [](const Product&, size_t, size_t) {});
    }

    // Gate and up, their activation, and its rounding; then down.
    void feed_forward(const FeedForward* parts, size_t count) {
        if (m_between.size() < count) m_between.resize(count);
        Cutter cutter(m_tasks, m_pool.threads());
        for (size_t i = 0; i < count; ++i) {
            m_between[i].resize(parts[i].rows->count, parts[i].up->rows);
            cutter.weigh(*parts[i].gate, parts[i].rows->count);
            cutter.weigh(*parts[i].up, parts[i].rows->count);
        }
        constexpr size_t kTilesOfGroup = kGroup / kOutputs;
        for (size_t i = 0; i < count; ++i) {
            const size_t rows = parts[i].rows->count;
            cutter.cut(i, *parts[i].up, rows, std::max(kTilesOfGroup, tiles_together(rows)), 2,
                       kMostResults / (2 * kOutputs * rows));
        }
        m_pool.run(m_tasks.size(), [&](size_t index, size_t thread) {
            const Task& task = m_tasks[index];
            activate(parts[task.part], task, m_between[task.part], m_scratch[thread]);
        });
        m_products.resize(count);
        for (size_t i = 0; i < count; ++i)
            m_products[i] = {parts[i].down, &m_between[i], parts[i].down_bias, parts[i].target};
        multiply_all(m_products.data(), count);
    }

private:
    struct Scratch {
        std::vector<float> gate, up;
    };

    static void add_bias(const float* bias, size_t width, size_t rows, const Target& target) {
        for (size_t row = 0; row < rows; ++row) {
            float* const out = target.at(row, 0).out;
            for_eights(width, [&](size_t i, size_t count) {
                store_some(out + i, load_some(out + i, count) + load_some(bias + i, count), count);
            });
        }
    }

    F8 activated(F8 gate, F8 up) const {
        switch (m_model.activation) {
            case MST_GELU_TANH: {
                const F8 cube = gate * gate * gate;
                const F8 inner = fma(all(0.044715f), cube, gate);
                return times_sigmoid(gate, all(1.5957691216f) * inner) * up;
            }
            case MST_CLIPPED_SWIGLU: {
                gate = smaller(gate, all(m_model.clip_limit));
                up = larger(smaller(up, all(m_model.clip_limit)), all(-m_model.clip_limit));
                return times_sigmoid(gate, all(m_model.clip_alpha) * gate) * (up + all(1.0f));
            }
            default: return times_sigmoid(gate, gate) * up;
        }
    }

    void activate(const FeedForward& part, const Task& task, Rows& between, Scratch& scratch) const {
        const size_t rows = part.rows->count;
        const size_t first = task.first * kOutputs;
        const size_t width = std::min(task.last * kOutputs, part.up->rows) - first;
        const size_t stride = (width + kGroup - 1) / kGroup * kGroup;
        for (std::vector<float>* const buffer : {&scratch.gate, &scratch.up})
            if (buffer->size() < rows * stride) buffer->resize(rows * stride);
        const Target gate{scratch.gate.data(), nullptr, stride}, up{scratch.up.data(), nullptr, stride};
        // `multiply` counts columns from the matrix's first on.
        multiply(*part.gate, *part.rows, task.first, task.last, {gate.out - first, nullptr, stride});
        multiply(*part.up, *part.rows, task.first, task.last, {up.out - first, nullptr, stride});
        if (part.gate_bias) add_bias(part.gate_bias + first, width, rows, gate);
        if (part.up_bias) add_bias(part.up_bias + first, width, rows, up);
        for (size_t row = 0; row < rows; ++row)
            for (size_t group = 0; group < stride / kGroup; ++group) {
                alignas(32) float results[kGroup];
#pragma GCC unroll 4
                for (size_t k = 0; k < kGroup; k += kEight) {
                    const size_t i = group * kGroup + k, at = row * stride + i;
                    const size_t left = i < width ? width - i : 0;
                    store(results + k,
                          activated(load_some(gate.out + at, left), load_some(up.out + at, left)));
                }
                between.put(results, between.place(row), first / kGroup + group);
            }
    }

    Pool& m_pool;
    const mst_model& m_model;
    std::vector<Task> m_tasks;
    std::vector<Scratch> m_scratch;
    std::vector<Rows> m_between;  // rounded activations, for each MLP of a stage
    std::vector<Product> m_products;
};

}  // namespace mst::LEVEL
