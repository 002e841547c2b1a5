#include "rotary.hpp"

#include <initializer_list>

namespace mst {
namespace {

struct Turn {
    double cosine, sine;
};

// fdlibm's polynomials for up to pi / 4. Multiplied and added one by one (-ffp-contract=off).
Turn within_quarter(double x) {
    const double z = x * x;
    double s = 1.58969099521155010221e-10;
    for (double term : {-2.50507602534068634195e-08, 2.75573137070700676789e-06,
                        -1.98412698298579493134e-04, 8.33333333332248946124e-03,
                        -1.66666666666666324348e-01})
        s = s * z + term;
    double c = -1.13596475577881948265e-11;
    for (double term : {2.08757232129817482790e-09, -2.75573143513906633035e-07,
                        2.48015872894767294178e-05, -1.38888888888741095749e-03,
                        4.16666666666666019037e-02, -0.5, 1.0})
        c = c * z + term;
    return {c, x * z * s + x};
}

Turn turn_of(double angle) {
    // pi / 2 in two parts; the first has 33 bits, so that its product with a count of quarters
    // (below 2^20) is exact.
    constexpr double kHalfPi = 1.57079632673412561417, kRest = 6.07710050650619224932e-11;
    constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: rounds what is added to it
    const double quarters = (angle * 0.63661977236758134308 + kRounder) - kRounder;
    const Turn at = within_quarter((angle - quarters * kHalfPi) - quarters * kRest);
    switch (static_cast<int64_t>(quarters) & 3) {
        case 0: return at;
        case 1: return {-at.sine, at.cosine};
        case 2: return {-at.cosine, -at.sine};
        default: return {at.sine, -at.cosine};
    }
}

}  // namespace

void turn(const mst_rope& rope, int32_t position, float* cosines, float* sines) {
    for (int32_t i = 0; i < rope.dims / 2; ++i) {
        const float angle = static_cast<float>(position) * rope.inverse_frequencies[i];
        const Turn at = turn_of(angle);
        cosines[i] = static_cast<float>(at.cosine) * rope.scale;
        sines[i] = static_cast<float>(at.sine) * rope.scale;
    }
}

}  // namespace mst
