// What is looked at before anything is computed: a model that does not fit together, or a batch that
// names what is not there, would read memory that is none of its.

#pragma once

#include "level.hpp"

namespace mst {

// A copy of the model, whose layers, ropes and lists of experts are its own. Throws Refused.
Model checked_model(const mst_model& model);

// Throws Refused.
void check_batch(const Model& model, const mst_batch& batch, size_t blocks, bool results);

}  // namespace mst
