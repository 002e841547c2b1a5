#include "check.hpp"

#include <cmath>

#include "errors.hpp"
#include "layout.hpp"

namespace mst {
namespace {

constexpr int32_t kMost = 1 << 24;  // of any dimension

void check_range(const char* name, int32_t value, int32_t least, int32_t most) {
    if (value < least || value > most)
        refuse("%s is %d, and must be from %d to %d", name, value, least, most);
}

void check_finite(const char* name, float value) {
    if (!std::isfinite(value)) refuse("%s is not a finite number", name);
}

void check_shape(int32_t layer, const char* name, const mst_matrix* matrix, size_t rows,
                 size_t columns) {
    if (!matrix) refuse("layer %d has no matrix '%s'", layer, name);
    if (matrix->rows != rows || matrix->columns != columns)
        refuse("layer %d: matrix '%s' is [%zu, %zu], and must be [%zu, %zu]", layer, name,
               matrix->rows, matrix->columns, rows, columns);
}

void check_table(int32_t layer, const char* name, const void* table) {
    if (!table) refuse("layer %d has no '%s'", layer, name);
}

void check_dimensions(const mst_model& model) {
    check_range("hidden", model.hidden, 1, kMost);
    check_range("layers", model.layers, 1, 1 << 16);
    check_range("heads", model.heads, 1, 1 << 16);
    check_range("kv_heads", model.kv_heads, 1, model.heads);
    check_range("head_dim", model.head_dim, 1, 1 << 16);
    check_range("vocab", model.vocab, 1, kMost);
    if (model.heads % model.kv_heads)
        refuse("heads (%d) must be a multiple of kv_heads (%d)", model.heads, model.kv_heads);
    if (int64_t(model.heads) * model.head_dim > kMost)
        refuse("%d heads of width %d are too wide", model.heads, model.head_dim);
    if (!(model.norm_epsilon > 0) || !std::isfinite(model.norm_epsilon))
        refuse("norm_epsilon must be above 0");
    check_finite("embedding_scale", model.embedding_scale);
    check_finite("residual_scale", model.residual_scale);
    check_finite("logit_scale", model.logit_scale);
    check_finite("logit_soft_cap", model.logit_soft_cap);
    check_finite("attention_scale", model.attention_scale);
    check_finite("attention_soft_cap", model.attention_soft_cap);
    check_range("activation", model.activation, MST_SILU, MST_CLIPPED_SWIGLU);
    if (model.activation == MST_CLIPPED_SWIGLU) {
        check_finite("clip_alpha", model.clip_alpha);
        if (!(model.clip_limit > 0)) refuse("clip_limit must be above 0");
    }
    if (model.temperature_length) {
        check_range("temperature_length", model.temperature_length, 1, kMost);
        check_range("temperature_count", model.temperature_count, 1, kMost);
        if (!model.temperatures) refuse("temperatures are missing");
    }
    check_range("experts", model.experts, 0, 1 << 16);
    if (model.experts) {
        check_range("experts_used", model.experts_used, 1, model.experts);
        check_range("gating", model.gating, MST_SOFTMAX_THEN_TOP, MST_TOP_THEN_SOFTMAX);
        check_finite("expert_scale", model.expert_scale);
    }
    check_range("rope_count", model.rope_count, 0, 1 << 16);
    if (model.rope_count && !model.ropes) refuse("ropes are missing");
    if (!model.layer) refuse("layers are missing");
    if (!model.final_norm) refuse("final_norm is missing");
    for (const mst_matrix* const matrix : {model.embedding, model.logits})
        if (!matrix || matrix->rows != size_t(model.vocab) || matrix->columns != size_t(model.hidden))
            refuse("embedding and logits must be [%d, %d]", model.vocab, model.hidden);
}

void check_mlp(const mst_model& model, const mst_layer& layer, int32_t index) {
    const size_t hidden = model.hidden;
    if (!layer.up && model.experts) {
        if (layer.gate || layer.down) refuse("layer %d has a shared expert without 'up'", index);
        return;
    }
    if (!layer.up) refuse("layer %d has no matrix 'up'", index);
    check_shape(index, "up", layer.up, layer.up->rows, hidden);
    check_shape(index, "gate", layer.gate, layer.up->rows, hidden);
    check_shape(index, "down", layer.down, hidden, layer.up->rows);
}

void check_experts(const mst_model& model, const mst_layer& layer, int32_t index) {
    const size_t hidden = model.hidden;
    check_table(index, "router", layer.router);
    check_table(index, "expert_gate", layer.expert_gate);
    check_table(index, "expert_up", layer.expert_up);
    check_table(index, "expert_down", layer.expert_down);
    check_table(index, "expert_up", layer.expert_up[0]);
    const size_t width = layer.expert_up[0]->rows;
    for (int32_t i = 0; i < model.experts; ++i) {
        check_shape(index, "expert_gate", layer.expert_gate[i], width, hidden);
        check_shape(index, "expert_up", layer.expert_up[i], width, hidden);
        check_shape(index, "expert_down", layer.expert_down[i], hidden, width);
    }
}

void check_layer(const mst_model& model, const mst_layer& layer, int32_t index) {
    const size_t hidden = model.hidden;
    const size_t queries = size_t(model.heads) * model.head_dim;
    const size_t kept = size_t(model.kv_heads) * model.head_dim;
    check_shape(index, "query", layer.query, queries, hidden);
    check_shape(index, "key", layer.key, kept, hidden);
    check_shape(index, "value", layer.value, kept, hidden);
    check_shape(index, "output", layer.output, hidden, queries);
    if (layer.window < 0) refuse("layer %d has a window below 0", index);
    if (layer.rope >= model.rope_count)
        refuse("layer %d names rope %d of %d", index, layer.rope, model.rope_count);
    check_mlp(model, layer, index);
    if (model.experts) check_experts(model, layer, index);
}

}  // namespace

Model checked_model(const mst_model& model) {
    check_dimensions(model);
    Model own;
    static_cast<mst_model&>(own) = model;
    for (int32_t i = 0; i < model.rope_count; ++i) {
        const mst_rope& rope = model.ropes[i];
        if (rope.dims < 2 || rope.dims % 2 || rope.dims > model.head_dim)
            refuse("rope %d has %d dims, and must have an even number up to %d", i, rope.dims,
                   model.head_dim);
        if (!rope.inverse_frequencies) refuse("rope %d has no frequencies", i);
        check_finite("a rope's scale", rope.scale);
        own.own_ropes.push_back(rope);
    }
    for (int32_t i = 0; i < model.layers; ++i) {
        mst_layer layer = model.layer[i];
        check_layer(model, layer, i);
        if (model.experts)
            for (const mst_matrix* const** const list :
                 {&layer.expert_gate, &layer.expert_up, &layer.expert_down}) {
                own.own_experts.emplace_back(*list, *list + model.experts);
                *list = own.own_experts.back().data();
            }
        own.own_layers.push_back(layer);
    }
    return own;
}

void check_batch(const Model& model, const mst_batch& batch, size_t blocks, bool results) {
    if (batch.tokens < 0 || batch.sequences < 0 || batch.rows < 0)
        refuse("a batch has a count below 0");
    if (batch.tokens > kMost || batch.rows > kMost) refuse("a batch is too large");
    if (batch.tokens && (!batch.token_ids || !batch.past || !batch.begins || !batch.blocks ||
                         !batch.block_begins || batch.sequences == 0))
        refuse("a batch lacks one of its lists");
    if (batch.tokens == 0) {
        if (batch.rows) refuse("a batch wants logits of tokens that it has not");
        return;
    }
    if (batch.begins[0] != 0 || batch.begins[batch.sequences] != batch.tokens)
        refuse("a batch's sequences are not its tokens");
    for (int32_t i = 0; i < batch.tokens; ++i)
        if (batch.token_ids[i] < 0 || batch.token_ids[i] >= model.vocab)
            refuse("token %d is not in the vocabulary of %d", batch.token_ids[i], model.vocab);
    for (int32_t i = 0; i < batch.sequences; ++i) {
        const int64_t count = int64_t(batch.begins[i + 1]) - batch.begins[i];
        if (count < 0 || batch.begins[i + 1] > batch.tokens || batch.past[i] < 0)
            refuse("sequence %d of a batch has a count below 0", i);
        const int32_t first = batch.block_begins[i], last = batch.block_begins[i + 1];
        const int64_t needed = count ? (batch.past[i] + count + MST_BLOCK - 1) / MST_BLOCK : 0;
        if (first < 0 || int64_t(last) - first < needed)
            refuse("sequence %d of a batch has %lld tokens, and blocks for %lld", i,
                   static_cast<long long>(batch.past[i] + count),
                   (static_cast<long long>(last) - first) * MST_BLOCK);
        for (int64_t k = first; k < first + needed; ++k)
            if (batch.blocks[k] < 0 || size_t(batch.blocks[k]) >= blocks)
                refuse("block %d is not in the cache of %zu", batch.blocks[k], blocks);
    }
    if (!results) return;
    if (batch.rows && !batch.wanted_rows) refuse("a batch lacks the list of its rows");
    if (batch.hidden_rows < 0 || batch.hidden_rows > batch.rows)
        refuse("a batch wants %d of its %d rows hidden", batch.hidden_rows, batch.rows);
    for (int32_t i = 0; i < batch.rows; ++i)
        if (batch.wanted_rows[i] < 0 || batch.wanted_rows[i] >= batch.tokens)
            refuse("row %d is not one of a batch's %d tokens", batch.wanted_rows[i], batch.tokens);
}

}  // namespace mst
