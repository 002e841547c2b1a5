/* The CPU engine's kernel, as Python calls it through ctypes (`decoder.py`). Plain C, no
 * dependency beyond the C library and threads.
 *
 * Functions that can fail return NULL or a value below 0, and write one sentence to `error`
 * [error_size], which may be NULL. Nothing here keeps a pointer to what the caller gave, but for
 * matrices, norms, biases and tables of a model: these must outlive its decoder. */

#ifndef MAESTRALE_H
#define MAESTRALE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MST_API __attribute__((visibility("default")))

/* Goes up when anything below changes its meaning. */
#define MST_ABI 2
MST_API int32_t mst_abi(void);

/* The version of the arithmetic: two libraries of one version give the same bits for the same
 * model and request, on every level. */
MST_API const char *mst_arithmetic(void);

/* Instruction sets. All give the same bits; SCALAR is their definition. */
enum mst_level {
    MST_SCALAR = 0,
    MST_AVX2 = 1,     /* with FMA and F16C */
    MST_AVX512 = 2,   /* F, BW, VL and VNNI */
    MST_AMX = 3,      /* AVX512 with AMX-INT8 */
    MST_NEON = 4,     /* ARMv8.2 with dot products and FP16 */
    MST_I8MM = 5      /* NEON with I8MM */
};
/* Whether this library has the level, and this CPU runs it. */
MST_API int32_t mst_has_level(int32_t level);
MST_API int32_t mst_best_level(void);
MST_API const char *mst_level_name(int32_t level); /* "scalar", "avx2", "avx512", "amx", ... */

/* Threads that pack and compute together with the caller's. One call at a time. */
typedef struct mst_pool mst_pool;
MST_API mst_pool *mst_pool_open(int32_t threads, char *error, size_t error_size);
MST_API void mst_pool_close(mst_pool *pool);
/* Where the system gives large pages slowly, weights are packed into small ones. Makes up to `bytes`
 * of them large, between steps; returns how many are left. */
MST_API int64_t mst_pool_enlarge(mst_pool *pool, int64_t bytes);

/* A matrix [rows, columns] in the kernel's layout (`layout.hpp`). `type`: ggml's number of the
 * tensor's type. `data`: its rows one behind the other, `stride` bytes apart. `order` [rows]: packed
 * row i is row order[i] of the source; NULL: as they are. The bits are the same on every machine. */
typedef struct mst_matrix mst_matrix;
MST_API mst_matrix *mst_matrix_pack(mst_pool *pool, int32_t type, int64_t rows, int64_t columns,
                                    const void *data, int64_t stride, const int32_t *order,
                                    char *error, size_t error_size);
MST_API void mst_matrix_free(mst_matrix *matrix);
MST_API int64_t mst_matrix_bytes(const mst_matrix *matrix);
/* How many bytes a packed matrix of this shape takes, without packing one; below 0: no such type. */
MST_API int64_t mst_packed_bytes(int32_t type, int64_t rows, int64_t columns);
/* Whether the layout holds exactly the values of this type; else they are rounded to 8 bits. */
MST_API int32_t mst_type_is_exact(int32_t type);
/* Names the packed content: equal on every machine. */
MST_API uint64_t mst_matrix_digest(const mst_matrix *matrix);
/* The values as the kernel multiplies them, float32 [rows, columns] from row `first` on. */
MST_API int32_t mst_matrix_unpack(const mst_matrix *matrix, int64_t first, int64_t rows, float *out);
/* `out` [count, rows] = `x` [count, columns] times the matrix, on one level; what tests compare.
 * `exact`: leave `x` in float32 (MST_SCALAR only). */
MST_API int32_t mst_matrix_multiply(mst_pool *pool, int32_t level, const mst_matrix *matrix,
                                    const float *x, int64_t count, float *out, int32_t exact);

/* Rotary embedding of the first `dims` elements of a head, element i with element i + dims / 2,
 * by position * inverse_frequencies[i]; cosines and sines are multiplied by `scale`. */
typedef struct {
    int32_t dims;
    float scale;
    const float *inverse_frequencies; /* [dims / 2] */
} mst_rope;

enum mst_activation {
    MST_SILU = 0,
    MST_GELU_TANH = 1,
    MST_CLIPPED_SWIGLU = 2 /* gpt-oss: g = min(gate, limit), u = clamp(up, +-limit), */
                           /* (u + 1) * g * sigmoid(alpha * g) */
};

enum mst_gating {
    MST_SOFTMAX_THEN_TOP = 0, /* probabilities over all experts, of which the top ones are used */
    MST_TOP_THEN_SOFTMAX = 1  /* probabilities over the top ones alone */
};

/* Norms are RMS norms: x / sqrt(mean(x^2) + epsilon) * gain, gains float32 (Gemma's 1 + w is
 * already in them). NULL: none. Biases float32; NULL: none. */
typedef struct {
    const float *attention_norm;      /* [hidden], before attention */
    const float *post_attention_norm; /* [hidden], of attention's result, before it is added */
    const float *mlp_norm;            /* [hidden], before the MLP */
    const float *post_mlp_norm;       /* [hidden] */
    const float *query_norm;          /* [head_dim], or [heads * head_dim] where whole_head_norm */
    const float *key_norm;            /* [head_dim], or [kv_heads * head_dim] */
    int32_t whole_head_norm;          /* the mean goes over all heads at once (OLMo 2) */
    int32_t window;                   /* attends to the last so many tokens, itself included; 0: all */
    int32_t rope;                     /* index into the model's; below 0: none */
    const mst_matrix *query, *key, *value, *output;
    const float *query_bias, *key_bias, *value_bias, *output_bias;
    const float *sinks; /* [heads]: one more logit in each softmax, without a value */
    /* Dense MLP; with experts, the shared one that every token takes (all may be NULL). */
    const mst_matrix *gate, *up, *down;
    const float *gate_bias, *up_bias, *down_bias;
    const float *shared_router; /* [hidden]: the shared expert times sigmoid of this product */
    /* Experts. */
    const float *router;      /* [experts, hidden] */
    const float *router_bias; /* [experts] */
    const mst_matrix *const *expert_gate, *const *expert_up, *const *expert_down; /* [experts] */
    const float *expert_gate_bias, *expert_up_bias; /* [experts, width of the MLP] */
    const float *expert_down_bias;                  /* [experts, hidden] */
} mst_layer;

typedef struct {
    int32_t hidden, layers, heads, kv_heads, head_dim, vocab;
    float norm_epsilon;
    float embedding_scale;    /* 1: none */
    float residual_scale;     /* of what attention and MLP add; 1: none */
    float logit_scale;        /* 1: none */
    float logit_soft_cap;     /* c * tanh(x / c); 0: none */
    float attention_scale;    /* of queries times keys */
    float attention_soft_cap; /* 0: none */
    const float *temperatures;  /* queries at position p are multiplied by temperatures[p / length] */
    int32_t temperature_length; /* 0: none */
    int32_t temperature_count;
    int32_t activation;
    float clip_alpha, clip_limit;
    int32_t experts, experts_used; /* 0: dense */
    int32_t gating;
    int32_t renormalise; /* the used experts' probabilities sum to 1 */
    float expert_scale;  /* 1: none */
    int32_t rope_count;
    const mst_rope *ropes;
    const mst_matrix *embedding; /* [vocab, hidden] */
    const mst_matrix *logits;    /* [vocab, hidden]; the embedding where they are tied */
    const float *logits_bias;    /* [vocab] */
    const float *final_norm;     /* [hidden] */
    const mst_layer *layer;      /* [layers] */
} mst_model;

/* A model, ready to compute. `exact`: activations and KV cache stay float32 (MST_SCALAR only): the
 * reference that tests hold against other implementations. Refuses what does not fit together. */
typedef struct mst_decoder mst_decoder;
MST_API mst_decoder *mst_decoder_open(mst_pool *pool, int32_t level, const mst_model *model,
                                      int32_t exact, char *error, size_t error_size);
MST_API void mst_decoder_close(mst_decoder *decoder);

/* The KV cache: `blocks` blocks of MST_BLOCK tokens, all layers. Memory is taken as blocks are
 * first written. Called once, before the first step. */
#define MST_BLOCK 32
MST_API int64_t mst_block_bytes(const mst_decoder *decoder);
MST_API int32_t mst_cache_open(mst_decoder *decoder, int32_t blocks, char *error, size_t error_size);
MST_API void mst_copy_block(mst_decoder *decoder, int32_t source, int32_t target);

/* T tokens of S sequences; those of sequence s are begins[s] to begins[s + 1], behind past[s]
 * others that lie in the blocks from block_begins[s] on. */
typedef struct {
    int32_t tokens, sequences;
    const int32_t *token_ids;    /* [T] */
    const int32_t *past;         /* [S] */
    const int32_t *begins;       /* [S + 1] */
    const int32_t *blocks;       /* [block_begins[S]] */
    const int32_t *block_begins; /* [S + 1] */
    int32_t rows;
    const int32_t *wanted_rows; /* [rows]: of which of the T tokens results are wanted */
    int32_t hidden_rows;        /* of the last so many what is behind the final norm, not logits */
} mst_batch;

/* `logits` float32 [rows - hidden_rows, vocab], `hidden` float32 [hidden_rows, hidden]; either may
 * be NULL. A token's bits depend on its sequence alone: not on what is computed beside it, how its
 * sequence is cut into steps, the number of threads, or the level. Returns below 0 where the batch
 * names tokens or blocks that are not there. */
MST_API int32_t mst_step(mst_decoder *decoder, const mst_batch *batch, float *logits, float *hidden,
                         char *error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif
