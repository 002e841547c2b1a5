// The decoder's part of the C interface.

#include "check.hpp"
#include "errors.hpp"
#include "level.hpp"

#include <utility>

struct mst_decoder {
    mst_decoder(mst::Pool& pool, const mst::Level& level, mst::Model own)
        : model(std::move(own)), compute(level.open(pool, this->model)) {}

    const mst::Model model;
    const std::unique_ptr<mst::Decoder> compute;
};

extern "C" {

mst_pool* mst_pool_open(int32_t threads, char* error, size_t error_size) {
    return mst::guarded<mst_pool*>(error, error_size, nullptr, [&] {
        if (threads < 1 || threads > 1024) mst::refuse("there must be 1 to 1024 threads");
        return new mst_pool(size_t(threads));
    });
}

void mst_pool_close(mst_pool* pool) { delete pool; }

mst_decoder* mst_decoder_open(mst_pool* pool, int32_t level, const mst_model* model, int32_t exact,
                              char* error, size_t error_size) {
    return mst::guarded<mst_decoder*>(error, error_size, nullptr, [&]() -> mst_decoder* {
        if (!pool || !model) mst::refuse("a decoder needs a pool and a model");
        const mst::Level* found = mst::level_of(level);
        if (!found) mst::refuse("this library or this CPU has no level %d", level);
        if (exact && level != MST_SCALAR) mst::refuse("exact needs the scalar level");
        if (exact) found = &mst::exact_level;
        return new mst_decoder(*pool, *found, mst::checked_model(*model));
    });
}

void mst_decoder_close(mst_decoder* decoder) { delete decoder; }

int64_t mst_block_bytes(const mst_decoder* decoder) {
    return int64_t(decoder->compute->block_bytes());
}

int32_t mst_cache_open(mst_decoder* decoder, int32_t blocks, char* error, size_t error_size) {
    return mst::guarded<int32_t>(error, error_size, -1, [&] {
        if (blocks < 1) mst::refuse("a cache needs a block");
        if (decoder->compute->blocks()) mst::refuse("the cache is open already");
        decoder->compute->open_cache(size_t(blocks));
        return 0;
    });
}

void mst_copy_block(mst_decoder* decoder, int32_t source, int32_t target) {
    const size_t blocks = decoder->compute->blocks();
    if (source >= 0 && target >= 0 && size_t(source) < blocks && size_t(target) < blocks)
        decoder->compute->copy_block(size_t(source), size_t(target));
}

int32_t mst_step(mst_decoder* decoder, const mst_batch* batch, float* logits, float* hidden,
                 char* error, size_t error_size) {
    return mst::guarded<int32_t>(error, error_size, -1, [&] {
        mst::check_batch(decoder->model, *batch, decoder->compute->blocks(), logits || hidden);
        if (batch->tokens) decoder->compute->step(*batch, logits, hidden);
        return 0;
    });
}

}  // extern "C"
