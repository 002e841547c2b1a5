// Queries and keys on their way from their products to attention: norm, rotary embedding,
// temperature.

#pragma once

#include "maestrale.h"
#include "vectors.hpp"

namespace mst::LEVEL {

// How many heads there are, and how wide each is.
struct Heads {
    size_t queries = 0;
    size_t kept = 0;  // that the cache keeps, each for several of the queries
    size_t width = 0;
    float scale = 0;
    float soft_cap = 0;
    float epsilon = 0;

    size_t group() const { return queries / kept; }
};

// Of one layer: queries [rows, heads, width], keys and values [rows, kept, width], which are
// changed in place.
struct HeadInputs {
    float *queries, *keys;
    const float* values;
    const float *query_norm, *key_norm;  // [width] or null
    const float *cosines, *sines;        // [rows, half]; null: no rotary embedding
    size_t half;
    const float* temperatures;  // [rows] or null
};

inline void prepare_key(const Heads& heads, const HeadInputs& inputs, size_t row, float* key) {
    if (inputs.key_norm) norm(key, inputs.key_norm, heads.epsilon, heads.width, key);
    if (inputs.cosines)
        rotate(key, inputs.half, inputs.cosines + row * inputs.half,
               inputs.sines + row * inputs.half);
}

inline void prepare_query(const Heads& heads, const HeadInputs& inputs, size_t row, float* query) {
    if (inputs.query_norm) norm(query, inputs.query_norm, heads.epsilon, heads.width, query);
    if (inputs.cosines)
        rotate(query, inputs.half, inputs.cosines + row * inputs.half,
               inputs.sines + row * inputs.half);
    if (inputs.temperatures) {
        const F8 factor = all(inputs.temperatures[row]);
        for_eights(heads.width, [&](size_t i, size_t count) {
            store_some(query + i, load_some(query + i, count) * factor, count);
        });
    }
}

}  // namespace mst::LEVEL
