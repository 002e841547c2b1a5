#include "cache.hpp"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace mst {

Cache::~Cache() {
    if (m_bytes) munmap(m_bytes, m_layers * m_blocks * m_block_bytes);
}

void Cache::open(size_t layers, size_t blocks, size_t block_bytes) {
    size_t bytes = 0;
    if (m_bytes || blocks == 0 || __builtin_mul_overflow(layers * blocks, block_bytes, &bytes))
        throw std::bad_alloc();
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    m_bytes = static_cast<uint8_t*>(memory);
    m_layers = layers;
    m_blocks = blocks;
    m_block_bytes = block_bytes;
}

void Cache::copy(size_t source, size_t target) const {
    if (source == target) return;
    for (size_t i = 0; i < m_layers; ++i)
        std::memcpy(layer(i) + target * m_block_bytes, layer(i) + source * m_block_bytes,
                    m_block_bytes);
}

}  // namespace mst
