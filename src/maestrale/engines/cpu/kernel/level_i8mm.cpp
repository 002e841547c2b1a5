// NEON with products of whole matrices (I8MM).

#define LEVEL i8mm
#define LEVEL_I8MM 1

#include "step.hpp"

namespace mst {
const Level i8mm_level{i8mm::open_decoder, i8mm::multiply_floats};
}
