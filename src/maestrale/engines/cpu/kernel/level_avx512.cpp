// AVX-512 with VNNI.

#define LEVEL avx512
#define LEVEL_AVX512 1

#include "step.hpp"

namespace mst {
const Level avx512_level{avx512::open_decoder, avx512::multiply_floats};
}
