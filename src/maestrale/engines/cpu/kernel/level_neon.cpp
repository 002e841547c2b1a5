// NEON with dot products.

#define LEVEL neon
#define LEVEL_NEON 1

#include "step.hpp"

namespace mst {
const Level neon_level{neon::open_decoder, neon::multiply_floats};
}
