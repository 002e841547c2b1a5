// The definition of the arithmetic, in plain C++.

#define LEVEL scalar
#define LEVEL_SCALAR 1

#include "step.hpp"

namespace mst {
const Level scalar_level{scalar::open_decoder, scalar::multiply_floats};
}
