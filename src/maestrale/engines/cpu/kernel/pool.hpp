// Threads that compute a step together, the caller's among them. A step has hundreds of small
// stages: each is cut into tasks that threads claim one by one, and ends when the last task is done.
// A thread that the system holds back misses tasks, and holds up nothing but the one it is in.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "memory.hpp"

struct mst_pool {
    explicit mst_pool(size_t threads);
    ~mst_pool();
    mst_pool(const mst_pool&) = delete;
    mst_pool& operator=(const mst_pool&) = delete;

    size_t threads() const { return m_threads.size() + 1; }

    // work(task, thread) for each task below `count`, in any order, by any threads; thread: below
    // threads(), 0 for the caller's. Returns when all are done. What a task throws is thrown here.
    template <typename Work>
    void run(size_t count, const Work& work) {
        if (count == 0) return;
        if (count == 1 || m_threads.empty()) {
            for (size_t task = 0; task < count; ++task) work(task, size_t(0));
            return;
        }
        const auto call = [](const void* context, size_t task, size_t thread) {
            (*static_cast<const Work*>(context))(task, thread);
        };
        for (size_t first = 0; first < count; first += kMostTasks)
            run_stage({call, &work, first}, count - first < kMostTasks ? count - first : kMostTasks);
    }

    // The same, `together` tasks at a time: where each is less than a microsecond, or where
    // neighbours write to one line of the cache.
    template <typename Work>
    void run_together(size_t count, size_t together, const Work& work) {
        run((count + together - 1) / together, [&](size_t part, size_t thread) {
            const size_t last = count - part * together < together ? count : (part + 1) * together;
            for (size_t task = part * together; task < last; ++task) work(task, thread);
        });
    }

    // Until `rest`, threads that have nothing to do wait actively for a short while. One step at a
    // time. Where it is not called, they are woken for each stage.
    void wake();
    void rest();

    mst::Memory weights;  // that the pool packs

private:
    using Call = void (*)(const void* context, size_t task, size_t thread);
    struct Stage {
        Call call;
        const void* context;
        size_t first;
    };

    // In one word, so that who claims a task knows of which stage it is: the stage's number, how
    // many tasks it has, the next one.
    static constexpr int kTaskBits = 20;
    static constexpr size_t kMostTasks = (size_t(1) << kTaskBits) - 1024;  // 1024: threads

    void run_stage(const Stage& stage, size_t count);
    bool help(size_t thread);
    void serve(size_t thread);
    void sleep(uint64_t seen);
    void wake_sleepers();
    void fail() noexcept;

    alignas(64) std::atomic<uint64_t> m_claims{0};
    alignas(64) std::atomic<size_t> m_done{0};
    alignas(64) Stage m_stage{};
    uint64_t m_number = 0;
    alignas(64) std::atomic<int32_t> m_sleeping{0};
    std::atomic<bool> m_active{false};
    std::atomic<bool> m_closing{false};
    std::atomic<bool> m_failed{false};
    std::exception_ptr m_failure;
    std::mutex m_mutex;
    std::condition_variable m_changed;
    std::vector<std::thread> m_threads;
};

namespace mst {
using Pool = mst_pool;
}
