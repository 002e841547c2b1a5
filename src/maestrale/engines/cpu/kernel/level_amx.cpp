// AVX-512 with AMX's tiles of 8-bit products.

#define LEVEL amx
#define LEVEL_AVX512 1
#define LEVEL_AMX 1

#include "step.hpp"

namespace mst {
const Level amx_level{amx::open_decoder, amx::multiply_floats};
}
