// The types of ggml: how a row's units are read, as the packed layout wants them.

#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.hpp"

namespace mst {

// 32 or 256 inputs of one row, as they are stored.
struct Unit {
    uint8_t values[kSuper];
    uint16_t scale;        // float16; an exponent of two where the form has such
    uint16_t minimum;      // float16
    uint8_t scales[16];    // nested ones
    uint8_t minimums[16];
};

struct Type {
    int32_t number;
    const char* name;
    Form form;
    size_t block_inputs;  // of a block in the file
    size_t block_bytes;
    bool exact;
    // Reads a block; false: a scale that isn't finite. Null: floats, which are rounded.
    bool (*read)(const uint8_t* block, Unit& unit);
    float factor = 1.0f;
    const int8_t* table = nullptr;
};

// Null: no such type.
const Type* find_type(int32_t number);

// Floats of F32, F16 or BF16.
void read_floats(int32_t number, const uint8_t* from, size_t count, float* to);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);  // to the nearest, the even one of two

}  // namespace mst
