// The memory of packed weights: regions of large pages, in which matrices lie one behind the other.
//
// Each token reads all weights, so how memory is paged tells in every step: small pages (4 KiB) cost 10
// to 30 % of the speed. A mapping for each matrix has them at its ends, or throughout: an expert's
// matrix is often smaller than a large page (2 MiB).
//
// A virtual machine may have to get large pages from its host, at less than 1 GB/s. Where that is
// seen, the rest is packed into small ones, which it mostly has, and made large later.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace mst {

constexpr size_t kLargePage = 2 << 20;

class Memory {
public:
    // `slow`: nanoseconds for a large page, on average, from which on small ones are taken.
    explicit Memory(uint64_t slow = 1000000) : m_slow(slow) {}

    // So many bytes, on a line of the cache; their region is given back with the last that is in it.
    // Null where there is no memory left. One call at a time.
    std::shared_ptr<uint8_t> take(size_t bytes);

    // Before anything is written to these bytes of what was taken last. Any thread.
    void touch(uint8_t* begin, uint8_t* end);

    // Makes small pages large, of up to so many bytes; how many are left. No `touch` beside it.
    size_t enlarge(size_t bytes);

private:
    enum class State : uint8_t { untouched, begun, ready };
    struct Region {
        uint8_t* begin = nullptr;
        size_t size = 0;
        std::unique_ptr<std::atomic<State>[]> pages;

        ~Region();
        bool map(size_t bytes);
    };

    void fill(uint8_t* page);

    const uint64_t m_slow;
    std::shared_ptr<Region> m_region;
    size_t m_used = 0;  // of it
    std::atomic<uint64_t> m_tried{0}, m_took{0};  // large pages, and nanoseconds of the last ones
    std::atomic<bool> m_small{false};
    std::mutex m_mutex;
    std::vector<std::pair<std::shared_ptr<Region>, uint8_t*>> m_later;  // that are small as yet
};

}  // namespace mst
