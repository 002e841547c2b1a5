#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <thread>

namespace mst {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kRegion = 256 << 20;  // only what is touched takes memory
constexpr uint64_t kTries = 16;        // large pages whose time is judged together

// Linux's numbers, which older headers lack.
constexpr int kHuge = 14, kPopulateWrite = 23, kCollapse = 25;

constexpr size_t up_to(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

uint64_t now() {
    return uint64_t(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

}  // namespace

Memory::Region::~Region() {
    if (begin) munmap(begin, size);
}

bool Memory::Region::map(size_t bytes) {
    const size_t whole = bytes + kLargePage;
    void* const place =
        mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) return false;
    auto* const first = static_cast<uint8_t*>(place);
    begin = reinterpret_cast<uint8_t*>(up_to(reinterpret_cast<uintptr_t>(place), kLargePage));
    size = bytes;
    if (begin > first) munmap(first, size_t(begin - first));
    if (begin + size < first + whole) munmap(begin + size, size_t(first + whole - begin - size));
    return true;
}

std::shared_ptr<uint8_t> Memory::take(size_t bytes) {
    const size_t size = up_to(bytes, kLine);
    if (!m_region || size > m_region->size - m_used) {
        const size_t needed = up_to(std::max(size, kRegion), kLargePage);
        try {
            auto region = std::make_shared<Region>();
            region->pages.reset(new std::atomic<State>[needed / kLargePage]());
            if (!region->map(needed)) return nullptr;
            m_region = std::move(region);
        } catch (const std::bad_alloc&) {
            return nullptr;
        }
        m_used = 0;
    }
    m_used += size;
    return {m_region, m_region->begin + (m_used - size)};
}

void Memory::touch(uint8_t* begin, uint8_t* end) {
    Region& region = *m_region;
    for (size_t i = size_t(begin - region.begin) / kLargePage;
         region.begin + i * kLargePage < end; ++i) {
        std::atomic<State>& state = region.pages[i];
        State found = State::untouched;
        if (state.compare_exchange_strong(found, State::begun)) {
            fill(region.begin + i * kLargePage);
            state = State::ready;
        }
        while (state != State::ready) std::this_thread::yield();
    }
}

// What fails here is done by the first writes.
void Memory::fill(uint8_t* page) {
    if (m_small) {
        madvise(page, kLargePage, kPopulateWrite);
        try {
            const std::lock_guard<std::mutex> lock(m_mutex);
            m_later.emplace_back(m_region, page);
        } catch (const std::bad_alloc&) {  // it stays small
        }
        return;
    }
    madvise(page, kLargePage, kHuge);
    const uint64_t begun = now();
    madvise(page, kLargePage, kPopulateWrite);
    const uint64_t took = m_took += now() - begun;
    if (++m_tried % kTries) return;
    if (took > m_slow * kTries) m_small = true;
    m_took -= took;
}

size_t Memory::enlarge(size_t bytes) {
    const std::lock_guard<std::mutex> lock(m_mutex);
    for (size_t done = 0; done < bytes && !m_later.empty(); done += kLargePage) {
        uint8_t* const page = m_later.back().second;
        madvise(page, kLargePage, kHuge);  // where the system can't do it at once, it will
        madvise(page, kLargePage, kCollapse);
        m_later.pop_back();
    }
    return m_later.size() * kLargePage;
}

}  // namespace mst
