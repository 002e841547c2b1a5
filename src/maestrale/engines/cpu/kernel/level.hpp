// What a level of instruction sets gives to the rest. Each level is one file, which defines LEVEL
// (its namespace) and one of LEVEL_SCALAR, LEVEL_AVX2, LEVEL_AVX512, LEVEL_NEON, LEVEL_I8MM, and
// includes `step.hpp`; all that it includes puts what depends on the instruction set into
// namespace mst::LEVEL. `build.py` compiles each with its own instructions and links them in
// ascending order: of an inline function that several share (std::vector's) the linker keeps the
// first, which every CPU runs.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "maestrale.h"
#include "pool.hpp"

namespace mst {

// A model whose lists are its own; its matrices and tables are the caller's.
struct Model : mst_model {
    Model() = default;
    Model(Model&&) = default;
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    std::vector<mst_layer> own_layers;
    std::vector<mst_rope> own_ropes;
    std::vector<std::vector<const mst_matrix*>> own_experts;
};

// A model on one level; its KV cache.
class Decoder {
public:
    Decoder() = default;
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;
    virtual ~Decoder() = default;
    virtual size_t block_bytes() const = 0;
    // Once. Throws std::bad_alloc.
    virtual void open_cache(size_t blocks) = 0;
    virtual void copy_block(size_t source, size_t target) = 0;
    virtual size_t blocks() const = 0;
    // `batch` is checked.
    virtual void step(const mst_batch& batch, float* logits, float* hidden) = 0;
};

struct Level {
    // `model` outlives what is opened.
    std::unique_ptr<Decoder> (*open)(Pool& pool, const Model& model);
    // `out` [count, rows of the matrix] = `x` [count, its columns] times the matrix.
    void (*multiply)(Pool& pool, const mst_matrix& matrix, const float* x, size_t count, float* out);
};

extern const Level scalar_level, exact_level;
#if defined(__x86_64__)
extern const Level avx2_level, avx512_level, amx_level;
#elif defined(__aarch64__)
extern const Level neon_level, i8mm_level;
#endif

// The level of that number (`mst_level`), where this library has it and this CPU runs it; else null.
const Level* level_of(int32_t number);

}  // namespace mst
