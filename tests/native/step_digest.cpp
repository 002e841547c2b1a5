// Steps tiny models of many knobs on every level that this CPU has, in two cuts and by several
// threads, and prints a digest of the logits for each: the same on every machine, or it fails.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "maestrale.h"

namespace {

char error[512];

void check(bool done, const char* what) {
    if (done) return;
    std::printf("%s: %s\n", what, error);
    std::exit(1);
}

struct Random {
    uint64_t state = 1;
    float next() {  // from -1 to 1
        state = state * 6364136223846793005u + 1442695040888963407u;
        return float(int32_t(state >> 32)) / 2147483648.0f;
    }
};

struct Knobs {
    const char* name;
    int32_t hidden = 64, heads = 4, kv_heads = 2, head_dim = 32, mlp = 96;
    int32_t windows[2] = {0, 0};
    int32_t activation = MST_SILU;
    int32_t experts = 0;
    float attention_cap = 0, logit_cap = 0;
    bool sinks = false, biases = false, post_norms = false, head_norms = false;
    int32_t type = 0;  // ggml's: F32
};

constexpr int32_t kVocab = 70, kLayers = 2, kTokens = 75, kUsed = 2;

class Built {
public:
    Built(mst_pool* pool, const Knobs& knobs) : m_pool(pool), m_type(knobs.type) {
        const int32_t hidden = knobs.hidden, mlp = knobs.mlp;
        const int32_t queries = knobs.heads * knobs.head_dim, kept = knobs.kv_heads * knobs.head_dim;
        for (int32_t i = 0; i < kLayers; ++i) {
            mst_layer layer{};
            layer.attention_norm = table(hidden, 1);
            layer.mlp_norm = table(hidden, 1);
            if (knobs.post_norms) layer.post_attention_norm = table(hidden, 1);
            if (knobs.post_norms) layer.post_mlp_norm = table(hidden, 1);
            if (knobs.head_norms) layer.query_norm = table(knobs.head_dim, 1);
            if (knobs.head_norms) layer.key_norm = table(knobs.head_dim, 1);
            layer.window = knobs.windows[i];
            layer.query = matrix(queries, hidden);
            layer.key = matrix(kept, hidden);
            layer.value = matrix(kept, hidden);
            layer.output = matrix(hidden, queries);
            if (knobs.biases) layer.query_bias = table(queries, 0);
            if (knobs.biases) layer.output_bias = table(hidden, 0);
            if (knobs.sinks) layer.sinks = table(knobs.heads, 0);
            if (knobs.experts) {
                layer.router = table(knobs.experts * hidden, 0);
                for (auto* const list : {&layer.expert_gate, &layer.expert_up})
                    *list = experts(knobs.experts, mlp, hidden);
                layer.expert_down = experts(knobs.experts, hidden, mlp);
            } else {
                layer.gate = matrix(mlp, hidden);
                layer.up = matrix(mlp, hidden);
                layer.down = matrix(hidden, mlp);
            }
            m_layers.push_back(layer);
        }
        std::vector<float> frequencies;
        for (int32_t i = 0; i < knobs.head_dim / 2; ++i) frequencies.push_back(1.0f / float(1 + i * i));
        m_tables.push_back(frequencies);
        m_rope = {knobs.head_dim, 1.0f, m_tables.back().data()};
        model.hidden = hidden;
        model.layers = kLayers;
        model.heads = knobs.heads;
        model.kv_heads = knobs.kv_heads;
        model.head_dim = knobs.head_dim;
        model.vocab = kVocab;
        model.norm_epsilon = 1e-5f;
        model.embedding_scale = model.residual_scale = model.logit_scale = model.expert_scale = 1;
        model.logit_soft_cap = knobs.logit_cap;
        model.attention_scale = 0.2f;
        model.attention_soft_cap = knobs.attention_cap;
        model.activation = knobs.activation;
        model.clip_alpha = 1.702f;
        model.clip_limit = 2;
        model.experts = knobs.experts;
        model.experts_used = knobs.experts ? kUsed : 0;
        model.renormalise = 1;
        model.rope_count = 1;
        model.ropes = &m_rope;
        model.embedding = model.logits = matrix(kVocab, hidden);
        model.final_norm = table(hidden, 1);
        model.layer = m_layers.data();
    }

    ~Built() {
        for (mst_matrix* const matrix : m_matrices) mst_matrix_free(matrix);
    }

    mst_model model{};

private:
    std::vector<float> values(size_t count, float around, float spread) {
        std::vector<float> made(count);
        for (float& value : made) value = around + spread * m_random.next();
        return made;
    }

    const float* table(int32_t count, float around) {
        m_tables.push_back(values(size_t(count), around, 0.5f));
        return m_tables.back().data();
    }

    const mst_matrix* matrix(int32_t rows, int32_t columns) {
        const std::vector<float> weights = values(size_t(rows) * columns, 0, 0.3f);
        std::vector<uint8_t> bytes(weights.size() * 4);
        std::memcpy(bytes.data(), weights.data(), bytes.size());
        int64_t stride = int64_t(columns) * 4;
        if (m_type == 2) {  // Q4_0: a scale, then halves of bytes
            stride = columns / 32 * 18;
            for (size_t i = 0; i < size_t(rows * stride); ++i) {
                if (i % 18 < 2) bytes[i] = i % 18 ? 0x2c : 0;  // 1 / 16
            }
        }
        mst_matrix* const made = mst_matrix_pack(m_pool, m_type, rows, columns, bytes.data(), stride,
                                                 nullptr, error, sizeof error);
        check(made, "pack");
        m_matrices.push_back(made);
        return made;
    }

    const mst_matrix* const* experts(int32_t count, int32_t rows, int32_t columns) {
        m_experts.push_back(std::make_unique<std::vector<const mst_matrix*>>());
        for (int32_t i = 0; i < count; ++i) m_experts.back()->push_back(matrix(rows, columns));
        return m_experts.back()->data();
    }

    mst_pool* const m_pool;
    const int32_t m_type;
    Random m_random;
    std::vector<mst_layer> m_layers;
    std::vector<std::vector<float>> m_tables;
    std::vector<mst_matrix*> m_matrices;
    std::vector<std::unique_ptr<std::vector<const mst_matrix*>>> m_experts;
    mst_rope m_rope{};
};

// Logits of all tokens of one sequence, of which `first` are computed in a step by themselves.
std::vector<float> logits_of(mst_pool* pool, int32_t level, const mst_model& model, int32_t first) {
    mst_decoder* const decoder = mst_decoder_open(pool, level, &model, 0, error, sizeof error);
    check(decoder, "open");
    check(mst_cache_open(decoder, 8, error, sizeof error) == 0, "cache");
    std::vector<int32_t> tokens, rows;
    for (int32_t i = 0; i < kTokens; ++i) {
        tokens.push_back(i * i % kVocab);
        rows.push_back(i);
    }
    const int32_t blocks[] = {3, 1, 2}, block_begins[] = {0, 3};
    std::vector<float> logits(size_t(kTokens) * kVocab);
    for (int32_t past = 0; past < kTokens;) {
        const int32_t count = past ? kTokens - past : first, begins[] = {0, count};
        const mst_batch batch{count,  1,            tokens.data() + past, &past, begins,
                              blocks, block_begins, count,                rows.data(),       0};
        check(mst_step(decoder, &batch, logits.data() + size_t(past) * kVocab, nullptr, error,
                       sizeof error) == 0,
              "step");
        past += count;
    }
    mst_decoder_close(decoder);
    return logits;
}

uint64_t digest_of(const std::vector<float>& values) {
    uint64_t digest = 14695981039346656037u;
    for (const float value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        digest = (digest ^ bits) * 1099511628211u;
    }
    return digest;
}

}  // namespace

int main() {
    std::vector<Knobs> all(8);
    all[0].name = "llama";
    all[1].name = "gemma";
    all[1].activation = MST_GELU_TANH;
    all[1].attention_cap = 5;
    all[1].logit_cap = 3;
    all[1].post_norms = all[1].head_norms = true;
    all[1].windows[0] = 20;
    all[2].name = "gpt-oss";
    all[2].activation = MST_CLIPPED_SWIGLU;
    all[2].sinks = all[2].biases = true;
    all[2].windows[1] = 40;
    all[3].name = "experts";
    all[3].experts = 5;
    all[4].name = "odd";
    all[4].hidden = 52;
    all[4].head_dim = 20;
    all[4].mlp = 44;
    all[5].name = "one head";
    all[5].kv_heads = 1;
    all[6].name = "wide";
    all[6].head_dim = 80;
    all[7].name = "Q4_0";
    all[7].type = 2;
    all[7].mlp = 128;
    mst_pool* const pools[] = {mst_pool_open(1, error, sizeof error),
                               mst_pool_open(3, error, sizeof error)};
    check(pools[0] && pools[1], "pool");
    int failed = 0;
    for (const Knobs& knobs : all) {
        const Built built(pools[1], knobs);
        const uint64_t expected = digest_of(logits_of(pools[0], MST_SCALAR, built.model, kTokens));
        std::printf("%s %016llx\n", knobs.name, static_cast<unsigned long long>(expected));
        for (int32_t level = 0; level < 6; ++level) {
            if (!mst_has_level(level)) continue;
            for (mst_pool* const pool : pools)
                for (const int32_t first : {1, 37, kTokens}) {
                    if (digest_of(logits_of(pool, level, built.model, first)) == expected) continue;
                    std::printf("%s: %s differs, with %d tokens first\n", knobs.name,
                                mst_level_name(level), first);
                    failed = 1;
                }
        }
    }
    for (int32_t level = 0; level < 6; ++level)
        if (mst_has_level(level)) std::fprintf(stderr, "%s\n", mst_level_name(level));
    for (mst_pool* const pool : pools) mst_pool_close(pool);
    return failed;
}
