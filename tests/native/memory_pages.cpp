// Weights' memory where large pages are judged too slow at once, made large later: prints how many
// bytes were small, how many are left after a part and after all, and whether what was written stayed.

#include <cinttypes>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "memory.hpp"

int main() {
    using mst::kLargePage;
    mst::Memory memory(0);
    const size_t sizes[] = {3 * kLargePage / 2, 40 * kLargePage, 96, kLargePage + 64};
    std::vector<std::shared_ptr<uint8_t>> kept;
    for (const size_t size : sizes) {
        kept.push_back(memory.take(size));
        uint8_t* const place = kept.back().get();
        std::vector<std::thread> threads;
        for (size_t thread = 0; thread < 2; ++thread)
            threads.emplace_back([&, thread] {
                uint8_t* const begin = place + size / 2 * thread;
                uint8_t* const end = thread ? place + size : place + size / 2;
                memory.touch(begin, end);
                for (uint8_t* at = begin; at < end; ++at) *at = uint8_t((at - place) * 7 + size);
            });
        for (std::thread& thread : threads) thread.join();
    }
    const size_t small = memory.enlarge(0);
    const size_t left = memory.enlarge(3 * kLargePage);
    const size_t none = memory.enlarge(1000 * kLargePage);
    bool same = true;
    for (size_t i = 0; i < kept.size(); ++i)
        for (size_t at = 0; at < sizes[i]; ++at)
            same &= kept[i].get()[at] == uint8_t(at * 7 + sizes[i]);
    std::printf("%zu %zu %zu %s\n", small / kLargePage, left / kLargePage, none,
                same ? "same" : "changed");
}
