// Reading ggml's IQ and TQ types: values from codebooks, which are one of at most 16, and so are
// exactly what a form with a table holds.

#pragma once

#include <cstdint>

#include "types.hpp"

namespace mst {

// Each type's table: what a stored value of 4 bits stands for.
extern const int8_t kTableIq1[16], kTableIq2[16], kTableIq3xxs[16], kTableIq3s[16], kTableTernary[16];

bool read_iq1_s(const uint8_t* block, Unit& unit);
bool read_iq1_m(const uint8_t* block, Unit& unit);
bool read_iq2_xxs(const uint8_t* block, Unit& unit);
bool read_iq2_xs(const uint8_t* block, Unit& unit);
bool read_iq2_s(const uint8_t* block, Unit& unit);
bool read_iq3_xxs(const uint8_t* block, Unit& unit);
bool read_iq3_s(const uint8_t* block, Unit& unit);
bool read_tq1_0(const uint8_t* block, Unit& unit);
bool read_tq2_0(const uint8_t* block, Unit& unit);

}  // namespace mst
