// The memory of the KV cache: for each layer its blocks, one behind the other.

#pragma once

#include <cstddef>
#include <cstdint>

namespace mst {

class Cache {
public:
    Cache() = default;
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;
    ~Cache();

    // Only asked of the system: memory is taken as it is written. Throws std::bad_alloc.
    void open(size_t layers, size_t blocks, size_t block_bytes);
    size_t blocks() const { return m_blocks; }
    uint8_t* layer(size_t index) const { return m_bytes + index * m_blocks * m_block_bytes; }
    void copy(size_t source, size_t target) const;

private:
    uint8_t* m_bytes = nullptr;
    size_t m_layers = 0;
    size_t m_blocks = 0;
    size_t m_block_bytes = 0;
};

}  // namespace mst
