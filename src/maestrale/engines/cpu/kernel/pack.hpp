// Packing: from a tensor of a file to the layout, a tile at a time; and back.

#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.hpp"
#include "types.hpp"

namespace mst {

// The rows of a tensor in a file.
struct Source {
    const Type* type;
    const uint8_t* data;
    size_t stride;         // bytes between rows
    const int32_t* order;  // which row of the source each is; null: as they are

    const uint8_t* row(size_t index) const {
        return data + size_t(order ? order[index] : int64_t(index)) * stride;
    }
};

enum class Packing { done, not_finite, too_large };

// Packs tile `tile` to `to`.
Packing pack_tile(const Matrix& matrix, const Source& source, size_t tile, uint8_t* to);

// A digest of bytes, a multiple of 32, the same on every machine.
uint64_t digest_of(const uint8_t* bytes, size_t count, uint64_t seed);

// The values of a row, as the products see them.
void unpack_row(const Matrix& matrix, size_t row, float* out);

}  // namespace mst
