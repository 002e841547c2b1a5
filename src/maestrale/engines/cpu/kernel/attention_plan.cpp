#include "attention_plan.hpp"

namespace mst {
namespace {

constexpr size_t kTokens = 8;          // of a sequence, that read the cache together
constexpr size_t kPartials = 1 << 20;  // floats of the results of spans that wait to be joined

}  // namespace

void AttentionPlan::make(const mst_batch& batch, size_t span, size_t heads, size_t kept,
                         size_t width, const uint8_t* wanted) {
    pieces.clear();
    spans.clear();
    batches.assign(1, {0, 0});
    most_partials = products = 0;
    size_t partials = 0;
    for (int32_t i = 0; i < batch.sequences; ++i)
        for (int32_t row = batch.begins[i]; row < batch.begins[i + 1]; row += int32_t(kTokens)) {
            const size_t tokens = std::min<size_t>(kTokens, batch.begins[i + 1] - row);
            const size_t past = size_t(batch.past[i]) + row - batch.begins[i];
            const size_t first = first_seen(past) / span, end = (past + tokens + span - 1) / span;
            const bool is_wanted =
                !wanted || std::any_of(wanted + row, wanted + row + tokens, [](uint8_t is) { return is; });
            Piece piece{size_t(i), size_t(row), past, tokens, partials, first, is_wanted};
            // Its keys and values are kept even where nobody wants its result.
            products += 64 * tokens * kept * width;
            if (is_wanted) {
                const size_t more = tokens * (end - first) * heads;
                if (partials && (partials + more) * width > kPartials) {
                    batches.push_back({pieces.size(), spans.size()});
                    partials = piece.partials = 0;
                }
                for (size_t begin = first; begin < end; ++begin)
                    spans.push_back({pieces.size(), begin * span});
                partials += more;
                most_partials = std::max(most_partials, partials);
                products += 2 * (past + tokens - first_seen(past)) * tokens * heads * width;
            }
            pieces.push_back(piece);
        }
    batches.push_back({pieces.size(), spans.size()});
}

}  // namespace mst
