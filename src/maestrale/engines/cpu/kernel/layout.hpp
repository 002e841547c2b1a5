// The packed layout of a matrix of weights. It is the same on every machine.
//
// Tiles of 16 outputs, one behind the other; a tile is a run of units of 32 inputs, or of 256 where
// the type's scales are nested. A vector of 64 bytes holds four inputs of each of the 16 outputs,
// output by output, so that what one instruction multiplies lies together:
//   8 bits    8 vectors; vector j has inputs 4j to 4j + 3
//   4 bits    4 vectors; the low halves of vector v have inputs 8v to 8v + 3, the high ones the next 4
//   2 bits    2 vectors; bits 2k and 2k + 1 of vector v have inputs 16v + 4k to 16v + 4k + 3
//   1 bit     1 vector; bit j has inputs 4j to 4j + 3
// Values of 3, 5 and 6 bits are planes of these: 2 + 1, 4 + 1, 4 + 2, the low bits first.
//
// A unit of 32: the planes, then 16 scales, then 16 minimums (float16 each), or 16 exponents of two
// (a byte each). A unit of 256: 16 float16 (and 16 more for the minimums), by which the whole numbers
// of its groups are multiplied; those numbers, group by group; then the planes, 32 inputs by 32.
//
// A value is scale * (stored - zero) [+ minimum], where `stored` is looked up in a table of 16 first
// if the form has one.

#pragma once

#include <cstddef>
#include <cstdint>

namespace mst {

constexpr size_t kGroup = 32;     // inputs that share a scale of the activations
constexpr size_t kOutputs = 16;   // outputs of a tile
constexpr size_t kVector = 4 * kOutputs;
constexpr size_t kSuper = 256;    // inputs of a unit of nested scales

enum class Scales : uint8_t {
    none,     // 1
    half,     // float16
    exponent, // 2^(e - 128)
    whole8,   // float16 times a signed byte
    six,      // float16 times 6 bits; minimum: minus float16 times 6 bits
    four,     // float16 times 4 bits; minimum: minus float16 times 4 bits
};

// What is known of a form when the kernel is compiled.
struct Traits {
    int bits;
    Scales scales;
    int group;      // inputs that share a scale: 32 or 16
    bool minimum;
    int zero;
    bool table;
    int most;       // the largest value that is multiplied

    constexpr bool nested() const { return scales >= Scales::whole8; }
    constexpr size_t unit_inputs() const { return nested() ? kSuper : kGroup; }
    // Of 32 inputs of 16 outputs.
    constexpr size_t plane_bytes() const { return kVector * size_t(bits); }
    constexpr size_t halves() const { return group == 16 ? 2 : 1; }
    // The scales of 32 inputs.
    constexpr size_t scale_bytes() const {
        switch (scales) {
            case Scales::none: return 0;
            case Scales::half: return kOutputs * (minimum ? 4 : 2);
            case Scales::exponent: return kOutputs;
            case Scales::six: return kOutputs + kOutputs / 2;
            default: return kOutputs * halves();
        }
    }
    // Before the scales of a nested unit.
    constexpr size_t head_bytes() const { return nested() ? kOutputs * (minimum ? 4 : 2) : 0; }
    constexpr size_t unit_bytes() const {
        return head_bytes() + unit_inputs() / kGroup * (plane_bytes() + scale_bytes());
    }
};

enum class Form : uint8_t {
    zero4,      // Q4_0
    zero5,      // Q5_0
    zero8,      // Q8_0, and what is rounded; keys of the KV cache
    plain8,     // values of the KV cache
    minimum4,   // Q4_1
    minimum5,   // Q5_1
    nested2,    // Q2_K
    nested3,    // Q3_K
    nested4,    // Q4_K
    nested5,    // Q5_K
    nested6,    // Q6_K
    table_exponent,  // MXFP4
    table_half,      // IQ4_NL
    table16,    // a scale for 16
    table32,    // a scale for 32: IQ4_XS
};
constexpr size_t kForms = 15;

constexpr Traits kTraits[kForms] = {
    {4, Scales::half, 32, false, 8, false, 15},
    {5, Scales::half, 32, false, 16, false, 31},
    {8, Scales::half, 32, false, 128, false, 255},
    {8, Scales::none, 32, false, 128, false, 255},
    {4, Scales::half, 32, true, 0, false, 15},
    {5, Scales::half, 32, true, 0, false, 31},
    {2, Scales::four, 16, true, 0, false, 3},
    {3, Scales::whole8, 16, false, 4, false, 7},
    {4, Scales::six, 32, true, 0, false, 15},
    {5, Scales::six, 32, true, 0, false, 31},
    {6, Scales::whole8, 16, false, 32, false, 63},
    {4, Scales::exponent, 32, false, 12, true, 24},
    {4, Scales::half, 32, false, 128, true, 255},
    {4, Scales::whole8, 16, false, 128, true, 255},
    {4, Scales::whole8, 32, false, 128, true, 255},
};
#define MST_FORMS(each) \
    each(zero4) each(zero5) each(zero8) each(plain8) each(minimum4) each(minimum5) each(nested2) \
    each(nested3) each(nested4) each(nested5) each(nested6) each(table_exponent) each(table_half) \
    each(table16) each(table32)

constexpr Traits traits_of(Form form) { return kTraits[size_t(form)]; }

}  // namespace mst

// A packed matrix [rows, columns]: outputs and inputs.
struct mst_matrix {
    mst::Form form;
    int32_t type;        // ggml's
    size_t rows;
    size_t columns;
    size_t groups;       // of 32 inputs, the last one filled up with zeros
    size_t tiles;        // the last one filled up with zeros
    size_t tile_bytes;
    size_t bytes;        // of all tiles
    const uint8_t* data; // 64-byte aligned
    uint64_t digest;
    float factor;        // of every scale of `table16` and `table32`: a power of two
    alignas(16) uint8_t table[16];  // what is stored → value + zero
};

namespace mst {
using Matrix = mst_matrix;
}
