// As the scalar level, but activations and KV cache stay float32: what is held against other
// implementations.

#define LEVEL exact
#define LEVEL_SCALAR 1
#define LEVEL_EXACT 1

#include "step.hpp"

namespace mst {
const Level exact_level{exact::open_decoder, exact::multiply_floats};
}
