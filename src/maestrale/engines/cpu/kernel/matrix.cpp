// Matrices of the C interface: packed in memory of their own, in parallel, tile by tile.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "layout.hpp"
#include "level.hpp"
#include "pack.hpp"
#include "pool.hpp"
#include "types.hpp"

namespace {

using namespace mst;

constexpr int64_t kMost = int64_t(1) << 31;  // rows, and columns
constexpr size_t kSharesOfThread = 4;        // of a matrix, at least: threads end together

template <typename... Values>
void complain(char* error, size_t size, const char* format, Values... values) {
    if (error && size) std::snprintf(error, size, format, values...);
}

// The shape of a packed matrix; its data are still missing. False: not of this type.
bool describe(const Type& type, int64_t rows, int64_t columns, Matrix& matrix) {
    if (rows <= 0 || columns <= 0 || rows > kMost || columns > kMost) return false;
    if (columns % int64_t(type.block_inputs)) return false;
    const Traits traits = traits_of(type.form);
    matrix.form = type.form;
    matrix.type = type.number;
    matrix.rows = size_t(rows);
    matrix.columns = size_t(columns);
    matrix.groups = (matrix.columns + kGroup - 1) / kGroup;
    matrix.tiles = (matrix.rows + kOutputs - 1) / kOutputs;
    matrix.tile_bytes = matrix.groups * kGroup / traits.unit_inputs() * traits.unit_bytes();
    matrix.data = nullptr;
    matrix.digest = 0;
    matrix.factor = type.factor;
    for (size_t i = 0; i < sizeof matrix.table; ++i)
        matrix.table[i] = type.table ? uint8_t(type.table[i] + traits.zero) : 0;
    return !__builtin_mul_overflow(matrix.tiles, matrix.tile_bytes, &matrix.bytes) &&
           matrix.bytes < size_t(1) << 46;
}

// What a handle is.
struct Kept : Matrix {
    explicit Kept(const Matrix& shape) : Matrix(shape) {}
    std::shared_ptr<uint8_t> memory;
};

}  // namespace

extern "C" {

mst_matrix* mst_matrix_pack(mst_pool* pool, int32_t number, int64_t rows, int64_t columns,
                            const void* data, int64_t stride, const int32_t* order, char* error,
                            size_t error_size) {
    const Type* const type = find_type(number);
    if (!type) {
        complain(error, error_size, "tensors of ggml's type %d can't be packed", int(number));
        return nullptr;
    }
    Matrix shape;
    if (!describe(*type, rows, columns, shape)) {
        complain(error, error_size, "a tensor of %lld rows of %lld can't be of type %s",
                 (long long)rows, (long long)columns, type->name);
        return nullptr;
    }
    const size_t row_bytes = shape.columns / type->block_inputs * type->block_bytes;
    bool fits = data && stride >= int64_t(row_bytes);
    for (size_t i = 0; order && fits && i < shape.rows; ++i) fits = order[i] >= 0;
    if (!pool || !fits) {
        complain(error, error_size, "a tensor of rows of %zu bytes can't be read %lld apart",
                 row_bytes, (long long)stride);
        return nullptr;
    }
    std::unique_ptr<Kept> matrix(new (std::nothrow) Kept(shape));
    if (matrix) matrix->memory = pool->weights.take(shape.bytes);
    uint8_t* const to = matrix ? matrix->memory.get() : nullptr;
    const std::unique_ptr<uint64_t[]> digests(new (std::nothrow) uint64_t[shape.tiles]);
    if (!to || !digests) {
        complain(error, error_size, "there is no memory left for %zu bytes of weights", shape.bytes);
        return nullptr;
    }
    const Source source{type, static_cast<const uint8_t*>(data), size_t(stride), order};
    std::atomic<Packing> result{Packing::done};
    const size_t share = shape.bytes / (kSharesOfThread * pool->threads());
    const size_t together = std::min(share, kLargePage) / shape.tile_bytes + 1;
    pool->run((shape.tiles + together - 1) / together, [&](size_t part, size_t) {
        const size_t first = part * together, last = std::min(first + together, shape.tiles);
        pool->weights.touch(to + first * shape.tile_bytes, to + last * shape.tile_bytes);
        for (size_t tile = first; tile < last && result == Packing::done; ++tile) {
            uint8_t* const place = to + tile * shape.tile_bytes;
            const Packing packing = pack_tile(shape, source, tile, place);
            if (packing != Packing::done)
                result = packing;
            else
                digests[tile] = digest_of(place, shape.tile_bytes, tile);
        }
    });
    if (result != Packing::done) {
        complain(error, error_size,
                 result == Packing::too_large
                     ? "the tensor holds a value beyond 8 million: such weights can't be served"
                     : "the tensor holds a value that is not a finite number: the file is damaged");
        return nullptr;
    }
    matrix->data = to;
    uint64_t digest = uint64_t(number) * 1000003 + shape.rows * 31 + shape.columns;
    for (size_t tile = 0; tile < shape.tiles; ++tile)
        digest = (digest ^ digests[tile]) * 0x9e3779b185ebca87 + (digest >> 31);
    matrix->digest = digest;
    return matrix.release();
}

int64_t mst_pool_enlarge(mst_pool* pool, int64_t bytes) {
    return int64_t(pool->weights.enlarge(size_t(std::max(bytes, int64_t(0)))));
}

void mst_matrix_free(mst_matrix* matrix) { delete static_cast<Kept*>(matrix); }

int64_t mst_matrix_bytes(const mst_matrix* matrix) { return int64_t(matrix->bytes); }

int64_t mst_packed_bytes(int32_t number, int64_t rows, int64_t columns) {
    const Type* const type = find_type(number);
    Matrix shape;
    return type && describe(*type, rows, columns, shape) ? int64_t(shape.bytes) : -1;
}

int32_t mst_type_is_exact(int32_t number) {
    const Type* const type = find_type(number);
    return type && type->exact;
}

uint64_t mst_matrix_digest(const mst_matrix* matrix) { return matrix->digest; }

int32_t mst_matrix_unpack(const mst_matrix* matrix, int64_t first, int64_t rows, float* out) {
    if (first < 0 || rows < 0 || first > int64_t(matrix->rows) ||
        rows > int64_t(matrix->rows) - first)
        return -1;
    for (int64_t i = 0; i < rows; ++i)
        unpack_row(*matrix, size_t(first + i), out + size_t(i) * matrix->columns);
    return 0;
}

int32_t mst_matrix_multiply(mst_pool* pool, int32_t number, const mst_matrix* matrix,
                            const float* x, int64_t count, float* out, int32_t exact) {
    const Level* const level =
        exact ? (number == MST_SCALAR ? &exact_level : nullptr) : level_of(number);
    if (!level || !pool || count < 0) return -1;
    if (count == 0) return 0;
    try {
        level->multiply(*pool, *matrix, x, size_t(count), out);
    } catch (const std::bad_alloc&) {
        return -2;
    }
    return 0;
}

}  // extern "C"
