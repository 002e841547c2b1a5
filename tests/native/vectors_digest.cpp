// Prints a digest of what the kernel's vectors of one level make of many floats. Compiled for each
// level with LEVEL and LEVEL_...; all must print the same.

#include <cstdio>
#include <limits>
#include <vector>

#include "vectors.hpp"

using namespace mst::LEVEL;

int main() {
    uint64_t digest = 14695981039346656037u, state = 1;
    const auto note = [&](const void* bytes, size_t count) {
        for (size_t i = 0; i < count; ++i)
            digest = (digest ^ static_cast<const uint8_t*>(bytes)[i]) * 1099511628211u;
    };
    const auto note_all = [&](F8 x) {
        float lanes[kEight];
        store(lanes, x);
        note(lanes, sizeof lanes);
    };
    const auto random = [&](float spread) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return spread * (float(int32_t(state >> 32)) / 2147483648.0f);
    };
    for (int turn = 0; turn < 20000; ++turn) {
        float x[kEight], y[kEight], z[kEight];
        const float spread = turn % 3 == 0 ? 1.0f : turn % 3 == 1 ? 20.0f : 200.0f;
        for (size_t i = 0; i < kEight; ++i) {
            x[i] = random(spread);
            y[i] = random(spread);
            z[i] = random(1.0f);
        }
        const F8 a = load(x), b = load(y), c = load(z);
        for (const F8 result : {a + b, a - b, a * b, a / b, fma(a, b, c), fnma(a, b, c),
                                larger(a, b), smaller(a, b), magnitude(a), nearest(a),
                                scale_by_power(c, nearest(a * all(0.05f))), exponential(a),
                                power_of_two(all(0.0f) - magnitude(a)), times_sigmoid(a, b),
                                hyperbolic_tangent(a), soft_cap(a, 30.0f),
                                between(a, b, turn % 10 - 1, turn % 7 + 2),
                                load_some(x, size_t(turn % 9)), swapped<1>(a), swapped<2>(a), swapped<4>(a)})
            note_all(result);
        const float sums[] = {sum_of(a), largest_of(a)};
        note(sums, sizeof sums);
        uint8_t bytes[kEight];
        store_bytes(bytes, nearest(c * all(127.0f)));
        note(bytes, sizeof bytes);
    }
    for (int turn = 0; turn < 100; ++turn) {
        float group[32];
        for (float& x : group) x = random(turn % 2 ? 1.0f : 300.0f);
        hadamard(group);
        note(group, sizeof group);
    }
    for (const size_t width : {8, 20, 33, 96}) {
        std::vector<float> row(width), gain(width), result(width, 7.0f);
        for (size_t i = 0; i < width; ++i) {
            row[i] = random(3.0f);
            gain[i] = random(1.0f);
        }
        norm(row.data(), gain.data(), 1e-5f, width, result.data());
        rotate(row.data(), width / 2, gain.data(), gain.data() + width / 2);
        const float product = sum_of_products(row.data(), gain.data(), width);
        note(result.data(), width * sizeof(float));
        note(row.data(), width * sizeof(float));
        note(&product, sizeof product);
    }
    const float infinite = std::numeric_limits<float>::infinity();
    note_all(power_of_two(all(-infinite)));
    note_all(exponential(all(infinite)));
    note_all(exponential(all(-infinite)));
    std::printf("%016llx\n", static_cast<unsigned long long>(digest));
}
