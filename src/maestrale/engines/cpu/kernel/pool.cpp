#include "pool.hpp"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// How often a waiting thread looks before it sleeps: some 50 to 100 us. Stages of a step follow each
// other in less; the machine's other processes want the core after that.
constexpr int kLooks = 1500;
constexpr int kLooksBeforeYield = 4000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

}  // namespace

mst_pool::mst_pool(size_t threads) {
    m_threads.reserve(threads);
    try {
        for (size_t thread = 1; thread < threads; ++thread)
            m_threads.emplace_back([this, thread] { serve(thread); });
    } catch (...) {
        m_closing = true;
        wake_sleepers();
        for (std::thread& thread : m_threads) thread.join();
        throw;
    }
}

mst_pool::~mst_pool() {
    m_closing = true;
    wake_sleepers();
    for (std::thread& thread : m_threads) thread.join();
}

void mst_pool::wake() {
    m_active = true;
    if (m_sleeping > 0) wake_sleepers();
}

void mst_pool::rest() { m_active = false; }

void mst_pool::run_stage(const Stage& stage, size_t count) {
    m_stage = stage;
    m_done.store(0, std::memory_order_relaxed);
    const uint64_t number = ++m_number << (2 * kTaskBits);
    m_claims.store(number | uint64_t(count) << kTaskBits);
    if (m_sleeping > 0) wake_sleepers();
    help(0);
    for (int looks = 0; m_done.load(std::memory_order_acquire) != count; ++looks)
        if (looks < kLooksBeforeYield)
            pause();
        else
            std::this_thread::yield();
    if (m_failed) {
        m_failed = false;
        std::rethrow_exception(std::exchange(m_failure, nullptr));
    }
}

// The tasks of the stage that is under way, as long as there are any. False: there was none.
bool mst_pool::help(size_t thread) {
    constexpr uint64_t kMask = (uint64_t(1) << kTaskBits) - 1;
    const auto left = [](uint64_t claims) { return (claims & kMask) < (claims >> kTaskBits & kMask); };
    size_t done = 0;
    while (left(m_claims.load(std::memory_order_relaxed))) {
        const uint64_t claims = m_claims.fetch_add(1, std::memory_order_acquire);
        if (!left(claims)) break;
        // The stage can't change before what is done of it is told.
        try {
            m_stage.call(m_stage.context, m_stage.first + (claims & kMask), thread);
        } catch (...) {
            fail();
        }
        ++done;
    }
    if (done) m_done.fetch_add(done, std::memory_order_release);
    return done != 0;
}

void mst_pool::fail() noexcept {
    const std::lock_guard<std::mutex> lock(m_mutex);
    if (!m_failed) m_failure = std::current_exception();
    m_failed = true;
}

void mst_pool::serve(size_t thread) {
    uint64_t seen = 0;
    int looks = 0;
    while (!m_closing.load(std::memory_order_relaxed)) {
        if (help(thread)) {
            looks = 0;
            continue;
        }
        const uint64_t claims = m_claims.load(std::memory_order_relaxed);
        if (claims >> (2 * kTaskBits) != seen) {
            seen = claims >> (2 * kTaskBits);
            looks = 0;
        }
        if (m_active.load(std::memory_order_relaxed) && ++looks < kLooks) {
            pause();
        } else {
            sleep(seen);
            looks = 0;
        }
    }
}

// Until there is another stage than `seen`, or a step begins.
void mst_pool::sleep(uint64_t seen) {
    std::unique_lock<std::mutex> lock(m_mutex);
    ++m_sleeping;
    // Who publishes a stage looks at m_sleeping behind that: one of the two sees the other.
    const bool active = m_active;
    m_changed.wait(lock, [&] {
        return m_closing || m_claims.load() >> (2 * kTaskBits) != seen || (!active && m_active);
    });
    --m_sleeping;
}

void mst_pool::wake_sleepers() {
    { const std::lock_guard<std::mutex> lock(m_mutex); }
    m_changed.notify_all();
}
