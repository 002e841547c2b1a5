// AVX2 with FMA and F16C.

#define LEVEL avx2
#define LEVEL_AVX2 1

#include "step.hpp"

namespace mst {
const Level avx2_level{avx2::open_decoder, avx2::multiply_floats};
}
