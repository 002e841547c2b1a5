// How a step's attention is cut into tasks; the same on every level.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "maestrale.h"

namespace mst {

constexpr size_t kBlock = MST_BLOCK;

// Tokens of a sequence that follow each other; the results of their spans begin at `partials`.
struct Piece {
    size_t sequence;
    size_t row;
    size_t past;
    size_t tokens;
    size_t partials;
    size_t first_span;
    bool wanted;  // whether any row's result is
};

struct Span {
    size_t piece;
    size_t first;  // token
};

struct AttentionPlan {
    // Where pieces begin whose spans wait together; and the end of the last.
    struct Batch {
        size_t piece;
        size_t span;
    };

    size_t window = 0;  // 0: all
    std::vector<Piece> pieces;
    std::vector<Span> spans;
    std::vector<Batch> batches;
    size_t most_partials = 0;
    size_t products = 0;

    // The first token that one at `position` sees.
    size_t first_seen(size_t position) const {
        return window && position + 1 > window ? position + 1 - window : 0;
    }

    // `wanted` [tokens]: whose result is needed; null: every row's.
    void make(const mst_batch& batch, size_t span, size_t heads, size_t kept, size_t width,
              const uint8_t* wanted);
};

}  // namespace mst
