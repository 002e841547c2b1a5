// Cosines and sines of rotary embedding, the same bits on every machine: no libm has a say.

#pragma once

#include <cstddef>
#include <cstdint>

#include "maestrale.h"

namespace mst {

// Of the angles position * inverse_frequencies[i], rounded to float32 as transformers does, times
// the rope's scale: `cosines` and `sines` [dims / 2].
void turn(const mst_rope& rope, int32_t position, float* cosines, float* sines);

}  // namespace mst
