// An operation for OpenVINO: matrix products of weights of 4 or 8 bits with activations that are
// rounded to 8 bits in groups of 32 (what llama.cpp calls Q8_1), each together with what stands
// before it (RMS norm, or the gate of a SwiGLU) and after it (the residual's sum, a split of the
// result, rotary embedding). Several that follow each other are one operation, as OpenVINO takes
// some 30 us for each of ours. Needs AVX2, FMA and F16C; uses AVX-512 VNNI where there is one.
//
// Whole numbers are summed within a group, in any order to the same result; floats are summed
// over the groups of one row in one order only. So a row's result doesn't depend on what is
// computed beside it, nor on the number of threads.
//
// Weights, as `packing.py` writes them: tiles of 8 outputs, each a run of blocks of 32 inputs.
// A block is 128 bytes for 4 bits (256 for 8), 8 scales (float16) and 8 zero points (uint8).
// A vector of 32 bytes holds 4 successive inputs for each of the 8 outputs: for 4 bits the low
// halves inputs 8j to 8j+3, the high halves inputs 8j+4 to 8j+7; for 8 bits inputs 4j to 4j+3.

#include <immintrin.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

constexpr size_t kGroup = 32;      // inputs that share a scale
constexpr size_t kOutputs = 8;     // outputs of a tile
constexpr size_t kBeside = 24;     // bytes of scales and zero points in a block
constexpr size_t kRows = 4;        // that a kernel computes together
constexpr size_t kRowsForThreads = 8;  // fewer are rounded faster by one thread
constexpr size_t kRowsThatWait = 4;  // so few are computed faster than their weights are read
constexpr size_t kAhead = 128 << 10;  // bytes that one task reads ahead
constexpr size_t kMostAhead = 4 << 20;

template <size_t Value>
constexpr std::integral_constant<size_t, Value> number{};

// What is done to a row of activations first.
enum class Before { nothing, norm, gate };

__m256 exponential(__m256 x) {  // Cephes' polynomial, for float32
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.0f)), _mm256_set1_ps(-87.0f));
    const __m256 power = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_fnmadd_ps(power, _mm256_set1_ps(0.693359375f), x);
    x = _mm256_fnmadd_ps(power, _mm256_set1_ps(-2.12194440e-4f), x);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        sum = _mm256_fmadd_ps(sum, x, _mm256_set1_ps(term));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(x, x), _mm256_add_ps(x, _mm256_set1_ps(1.0f)));
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
}

float sum_of(__m256 eight) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// x / sqrt(mean(x^2) + epsilon) * gain
void norm(const float* x, const float* gain, float epsilon, size_t width, float* result) {
    __m256 squares = _mm256_setzero_ps();
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(part, part, squares);
    }
    const float mean = sum_of(squares) / static_cast<float>(width);
    const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(mean + epsilon));
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
        _mm256_storeu_ps(result + i, _mm256_mul_ps(part, _mm256_loadu_ps(gain + i)));
    }
}

// x1 / (1 + exp(-x1)) * x2, where the row is x1 and then x2
void gate(const float* x, size_t width, float* result) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (size_t i = 0; i < width; i += 8) {
        const __m256 part = _mm256_loadu_ps(x + i);
        const __m256 power = exponential(_mm256_sub_ps(_mm256_setzero_ps(), part));
        const __m256 swish = _mm256_div_ps(part, _mm256_add_ps(one, power));
        _mm256_storeu_ps(result + i, _mm256_mul_ps(swish, _mm256_loadu_ps(x + width + i)));
    }
}

// Rotary embedding of each head of a row [count * width], in place:
// first * cos - second * sin, second * cos + first * sin, of the first and second half of a head.
void rotate(float* row, size_t count, size_t width, const float* cos, const float* sin) {
    const size_t half = width / 2;
    for (float* head = row; head < row + count; head += width)
        for (size_t i = 0; i < half; i += 8) {
            const __m256 first = _mm256_loadu_ps(head + i);
            const __m256 second = _mm256_loadu_ps(head + half + i);
            const __m256 one = _mm256_mul_ps(first, _mm256_loadu_ps(cos + i));
            const __m256 other = _mm256_mul_ps(second, _mm256_loadu_ps(cos + half + i));
            _mm256_storeu_ps(head + i, _mm256_fnmadd_ps(second, _mm256_loadu_ps(sin + i), one));
            _mm256_storeu_ps(head + half + i,
                             _mm256_fmadd_ps(first, _mm256_loadu_ps(sin + half + i), other));
        }
}

// Rows of activations: 8-bit values [rows, inputs]; their scale, and the sum of the values, for
// each group [rows, groups].
struct Rows {
    size_t inputs;
    size_t groups;
    std::vector<int8_t> values;
    std::vector<float> scales;
    std::vector<float> sums;

    void resize(size_t rows, size_t width) {
        inputs = width;
        groups = width / kGroup;
        values.resize(rows * inputs);
        scales.resize(rows * groups);
        sums.resize(rows * groups);
    }

    void round(const float* source, size_t row) {
        for (size_t group = 0; group < groups; ++group) {
            const float* x = source + group * kGroup;
            const __m256 sign = _mm256_set1_ps(-0.0f);
            __m256 part[4];
            __m256 most = _mm256_setzero_ps();
            for (int i = 0; i < 4; ++i) {
                part[i] = _mm256_loadu_ps(x + 8 * i);
                most = _mm256_max_ps(most, _mm256_andnot_ps(sign, part[i]));
            }
            __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
            four = _mm_max_ps(four, _mm_movehl_ps(four, four));
            four = _mm_max_ss(four, _mm_movehdup_ps(four));
            const float largest = _mm_cvtss_f32(four);
            const __m256 factor = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
            __m256i whole[4];
            __m256i sum = _mm256_setzero_si256();
            for (int i = 0; i < 4; ++i) {
                whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(part[i], factor));
                sum = _mm256_add_epi32(sum, whole[i]);
            }
            __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                               _mm256_packs_epi32(whole[2], whole[3]));
            // The packs work on halves of a vector: bring their quarters back in order.
            bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            int8_t* target = values.data() + row * inputs + group * kGroup;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), bytes);
            __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
            total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
            total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0xb1));
            scales[row * groups + group] = largest / 127.0f;
            sums[row * groups + group] = static_cast<float>(_mm_cvtsi128_si32(total));
        }
    }
};

// Where tiles are written: rows of `stride` floats. `residual`, of the same shape, is added.
struct Target {
    float* out;
    const float* residual;
    size_t stride;

    Target at(size_t row, size_t column) const {
        const size_t offset = row * stride + column;
        return {out + offset, residual ? residual + offset : nullptr, stride};
    }

    void store(size_t row, size_t column, __m256 eight) const {
        const size_t offset = row * stride + column;
        if (residual) eight = _mm256_add_ps(eight, _mm256_loadu_ps(residual + offset));
        _mm256_storeu_ps(out + offset, eight);
    }
};

inline __m256i quad(const int8_t* values) {
    int32_t bits;
    std::memcpy(&bits, values, sizeof bits);
    return _mm256_set1_epi32(bits);
}

// Without this the compiler adds in another order, and runs out of registers.
inline void keep(__m256i& value) { asm("" : "+v"(value)); }

// The sum of four products in each of eight places, added. In assembler, so that it can stand in a
// function that is also compiled for a CPU without it.
inline void dot(__m256i& into, __m256i unsigned_bytes, __m256i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(into) : "v"(unsigned_bytes), "v"(signed_bytes));
}

inline __m256i load(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

// R rows times C tiles. Without `Vnni` 16 bits hold the sum over a group: 16 products of at most
// 15 x 128. With it 32 bits do, to the same whole number.
template <bool Vnni, int Bits, int R, int C>
[[gnu::always_inline]] inline void multiply_rows(const uint8_t* block, size_t tile_bytes,
                                                 const Rows& rows, size_t first_row,
                                                 const Target& target) {
    constexpr bool kHalves = Bits == 4 || !Vnni;  // of a byte are multiplied by themselves
    const __m256i low_half = _mm256_set1_epi8(15);
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i sixteens = _mm256_set1_epi16(16);
    const int8_t* values = rows.values.data() + first_row * rows.inputs;
    const float* scales = rows.scales.data() + first_row * rows.groups;
    const float* sums = rows.sums.data() + first_row * rows.groups;
    __m256 total[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) total[r][c] = _mm256_setzero_ps();
    for (size_t group = 0; group < rows.groups; ++group) {
        __m256i low[R][C];
        __m256i high[R][C];  // of 8 bits in halves only
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) low[r][c] = high[r][c] = _mm256_setzero_si256();
#pragma GCC unroll 16
        for (int part = 0; part < (kHalves ? 2 * Bits : Bits); ++part) {
            const bool upper = kHalves && part % 2;
            __m256i parts[C];
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                parts[c] = load(block + c * tile_bytes + 32 * (kHalves ? part / 2 : part));
                if (upper) parts[c] = _mm256_srli_epi16(parts[c], 4);
                if (kHalves) parts[c] = _mm256_and_si256(parts[c], low_half);
            }
            const int inputs = 4 * (Bits == 8 && kHalves ? part / 2 : part);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const __m256i four = quad(values + r * rows.inputs + inputs);
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) {
                    __m256i& into = Bits == 8 && upper ? high[r][c] : low[r][c];
                    if constexpr (Vnni) {
                        dot(into, parts[c], four);
                    } else {
                        into = _mm256_add_epi16(into, _mm256_maddubs_epi16(parts[c], four));
                        keep(into);
                    }
                }
            }
        }
        const uint8_t* beside = block + 32 * Bits;
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c, beside += tile_bytes) {
            const __m256 scale =
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(beside)));
            const __m256 zero_point = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(
                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(beside + 2 * kOutputs))));
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                __m256i sum = low[r][c];
                if constexpr (!Vnni) sum = _mm256_madd_epi16(sum, ones);
                if constexpr (Bits == 8 && !Vnni)
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(high[r][c], sixteens));
                const size_t at = r * rows.groups + group;
                const __m256 centred =
                    _mm256_fnmadd_ps(zero_point, _mm256_set1_ps(sums[at]), _mm256_cvtepi32_ps(sum));
                const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(scales[at]));
                total[r][c] = _mm256_fmadd_ps(factor, centred, total[r][c]);
            }
        }
        block += 32 * Bits + kBeside;
        values += kGroup;
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) target.store(r, kOutputs * c, total[r][c]);
}

// Not inlined: they need every register.
template <int Bits, int R, int C>
[[gnu::noinline]] void product(const uint8_t* block, size_t tile_bytes, const Rows& rows,
                               size_t first_row, const Target& target) {
    multiply_rows<false, Bits, R, C>(block, tile_bytes, rows, first_row, target);
}

template <int Bits, int R, int C>
[[gnu::noinline, gnu::target("avx512vl,avx512vnni")]] void product_vnni(
    const uint8_t* block, size_t tile_bytes, const Rows& rows, size_t first_row,
    const Target& target) {
    multiply_rows<true, Bits, R, C>(block, tile_bytes, rows, first_row, target);
}

bool has_vnni() {
#ifdef WITHOUT_VNNI  // as on older CPUs, for tests
    return false;
#else
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
}

// C tiles for `count` rows.
template <bool Vnni, int Bits, int C>
void all_rows(const uint8_t* tile, size_t tile_bytes, const Rows& rows, size_t count,
              const Target& target) {
    const auto some = [&](auto r, auto c, const uint8_t* from, size_t row, const Target& to) {
        if constexpr (Vnni)
            product_vnni<Bits, r(), c()>(from, tile_bytes, rows, row, to);
        else
            product<Bits, r(), c()>(from, tile_bytes, rows, row, to);
    };
    size_t row = 0;
    for (; row + kRows <= count; row += kRows)
        some(number<kRows>, number<C>, tile, row, target.at(row, 0));
    for (size_t c = 0; c < C; ++c, tile += tile_bytes) {
        const Target rest = target.at(row, c * kOutputs);
        if (count - row == 1) some(number<1>, number<1>, tile, row, rest);
        if (count - row == 2) some(number<2>, number<1>, tile, row, rest);
        if (count - row == 3) some(number<3>, number<1>, tile, row, rest);
    }
}

void prefetch(const uint8_t* from, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(from + line), _MM_HINT_T0);
}

// Weights that the operation after this one reads, in the order of the last step.
struct Following {
    const uint8_t* bytes = nullptr;
    size_t count = 0;

    // Into the cache that the cores share, by a thread that is idle meanwhile. Never faults, even
    // when the model is gone.
    void read_ahead() const {
        tbb::task_arena arena{tbb::task_arena::attach()};
        const size_t most = std::min(count, kMostAhead);
        for (size_t begin = 0; begin < most; begin += kAhead)
            arena.enqueue([from = bytes + begin, length = std::min(kAhead, most - begin)] {
                prefetch(from, length);
            });
    }
};

// Tiles `first` to `last`, whose first is written to the first column of `target`; `outputs`: how
// many columns it has. Registers suffice for two tiles, but for one of 8 bits in halves.
template <bool Vnni, int Bits>
void tiles(const uint8_t* weights, const Rows& rows, size_t count, size_t first, size_t last,
           const Target& target, size_t outputs) {
    constexpr size_t C = Bits == 4 || Vnni ? 2 : 1;
    const size_t tile_bytes = rows.groups * (32 * Bits + kBeside);
    const size_t whole = std::min(last, first + outputs / kOutputs);
    const auto bytes = [&](size_t tile) { return weights + tile * tile_bytes; };
    const auto place = [&](size_t tile) { return target.at(0, (tile - first) * kOutputs); };
    size_t tile = first;
    if (count >= kRows)
        for (; tile + C <= whole; tile += C) {
            prefetch(bytes(tile + C), C * tile_bytes);
            all_rows<Vnni, Bits, C>(bytes(tile), tile_bytes, rows, count, place(tile));
        }
    for (; tile < whole; ++tile) {
        prefetch(bytes(tile + 2), tile_bytes);
        all_rows<Vnni, Bits, 1>(bytes(tile), tile_bytes, rows, count, place(tile));
    }
    for (; tile < last; ++tile) {  // the last one, with fewer outputs than a vector holds
        const Target rest = place(tile);
        for (size_t row = 0; row < count; ++row) {
            float full[kOutputs];
            product<Bits, 1, 1>(bytes(tile), tile_bytes, rows, row, {full, nullptr, kOutputs});
            for (size_t i = 0; i < outputs % kOutputs; ++i) {
                const size_t offset = row * rest.stride + i;
                rest.out[offset] = full[i] + (rest.residual ? rest.residual[offset] : 0.0f);
            }
        }
    }
}

// One product of a chain.
struct Stage {
    Before before;
    float epsilon;
    int64_t source;    // whose result its activations are; kGiven: the next input's
    int64_t residual;  // whose result is added; kGiven: the next input, kNone: nothing
    size_t columns;
    size_t width;  // of the weights: inputs
    int64_t bits;

    size_t given_width() const { return before == Before::gate ? 2 * width : width; }
    size_t tiles() const { return (columns + kOutputs - 1) / kOutputs; }
    size_t weight_bytes() const { return tiles() * (width / kGroup) * (32 * bits + kBeside); }
};

constexpr int64_t kGiven = -1;
constexpr int64_t kNone = -2;

// As the graph holds them: a value for each stage, or for each output.
struct Attributes {
    std::vector<std::string> before;
    std::vector<float> epsilons;
    std::vector<int64_t> sources;
    std::vector<int64_t> residuals;
    std::vector<int64_t> columns;
    std::vector<int64_t> widths;
    std::vector<int64_t> bits;
    std::vector<int64_t> results;  // of which stage each output is
    std::vector<int64_t> lengths;  // columns of each output
    std::vector<int64_t> rotated;  // for each output the width of its heads; 0: not rotated
};

// Constants that follow each other in memory, in one input or in several.
class Constants {
public:
    Constants(const ov::TensorVector& inputs, size_t first) : m_inputs(inputs), m_next(first) {}

    const uint8_t* take(size_t bytes) {
        if (m_left == 0) {
            m_left = m_inputs[m_next].get_byte_size();
            m_at = static_cast<const uint8_t*>(m_inputs[m_next++].data());
        }
        m_left -= bytes;
        return std::exchange(m_at, m_at + bytes);
    }

private:
    const ov::TensorVector& m_inputs;
    size_t m_next;
    size_t m_left = 0;
    const uint8_t* m_at = nullptr;
};

// Inputs: of each stage its activations float32 [..., width] (for `gate` [..., 2 * width]) if
// given, then what is added, if given; behind those of all stages, where an output is rotated,
// cosines and sines float32 [..., width of a head]; then the constants: of each stage its weights
// uint8 [tiles, groups, block], as above, and for `norm` its gain float32 [width]. The constants
// may be in one input, which makes a step some 10 us shorter.
// Outputs: columns of the results of stages, from the first on, cut where a multiple of 8 columns
// ends.
class Projection : public ov::op::Op {
public:
    OPENVINO_OP("Projection", "maestrale");

    Projection() : m_attributes(std::make_shared<Attributes>()) {}

    Projection(const Projection& like, const ov::OutputVector& inputs)
        : m_attributes(like.m_attributes), m_stages(like.m_stages) {
        set_arguments(inputs);
        validate_and_infer_types();
    }

    // At each step, on a copy: OpenVINO knows no other way to the shapes of such an operation.
    void validate_and_infer_types() override {
        if (!m_stages) m_stages = std::make_shared<const std::vector<Stage>>(read_stages());
        const ov::PartialShape& rows = get_input_partial_shape(0);
        NODE_VALIDATION_CHECK(this, rows.rank().is_static() && rows.size() > 0);
        const size_t given = (*m_stages)[0].given_width();
        NODE_VALIDATION_CHECK(this, rows[rows.size() - 1].compatible(given));
        ov::PartialShape shape = rows;
        for (size_t i = 0; i < m_attributes->lengths.size(); ++i) {
            shape[shape.size() - 1] = m_attributes->lengths[i];
            set_output_type(i, ov::element::f32, shape);
        }
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<Projection>(*this, inputs);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("before", m_attributes->before);
        visitor.on_attribute("epsilons", m_attributes->epsilons);
        visitor.on_attribute("sources", m_attributes->sources);
        visitor.on_attribute("residuals", m_attributes->residuals);
        visitor.on_attribute("columns", m_attributes->columns);
        visitor.on_attribute("widths", m_attributes->widths);
        visitor.on_attribute("bits", m_attributes->bits);
        visitor.on_attribute("results", m_attributes->results);
        visitor.on_attribute("lengths", m_attributes->lengths);
        visitor.on_attribute("rotated", m_attributes->rotated);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& results, const ov::TensorVector& inputs) const override {
        // From step to step; not what the threads below would see under this name.
        thread_local Rows kept_rows;
        thread_local std::vector<std::vector<float>> kept_results;
        Rows& rows = kept_rows;
        const std::vector<Stage>& stages = *m_stages;
        const std::vector<int64_t>& all_lengths = m_attributes->lengths;
        kept_results.resize(std::max(kept_results.size(), stages.size()));
        const size_t count = inputs[0].get_size() / stages[0].given_width();
        size_t input = 0;
        const size_t given = given_inputs(stages);
        Constants constants(inputs, given + 2 * rotates());
        thread_local std::shared_ptr<Following> before;
        const ov::Tensor& first_constants = inputs[given + 2 * rotates()];
        if (before)
            *before = {static_cast<const uint8_t*>(first_constants.data()), first_constants.get_byte_size()};
        before = m_following;
        std::vector<const float*> done;
        for (size_t i = 0; i < stages.size(); ++i) {
            const Stage& stage = stages[i];
            const float* activations =
                stage.source == kGiven ? inputs[input++].data<const float>() : done[stage.source];
            const float* residual = nullptr;
            if (stage.residual != kNone)
                residual = stage.residual == kGiven ? inputs[input++].data<const float>()
                                                    : done[stage.residual];
            const uint8_t* weights = constants.take(stage.weight_bytes());
            const float* gain = nullptr;
            if (stage.before == Before::norm)
                gain = reinterpret_cast<const float*>(constants.take(stage.width * sizeof(float)));
            round_rows(stage, activations, gain, count, rows);
            std::vector<Target> targets;
            std::vector<size_t> lengths;
            for (size_t k = 0; k < all_lengths.size(); ++k)
                if (m_attributes->results[k] == int64_t(i)) {
                    const size_t length = all_lengths[k];
                    targets.push_back({results[k].data<float>(), residual, length});
                    lengths.push_back(length);
                }
            if (targets.empty()) {  // only later stages want it
                kept_results[i].resize(count * stage.columns);
                targets.push_back({kept_results[i].data(), residual, stage.columns});
                lengths.push_back(stage.columns);
            }
            multiply(stage, weights, rows, count, targets, lengths);
            done.push_back(targets[0].out);
        }
        if (count <= kRowsThatWait) m_following->read_ahead();
        if (rotates()) {
            const int64_t width = *std::max_element(m_attributes->rotated.begin(), m_attributes->rotated.end());
            if (inputs[given].get_size() != count * width || inputs[given + 1].get_size() != count * width)
                return false;
            const float* cos = inputs[given].data<const float>();
            const float* sin = inputs[given + 1].data<const float>();
            for (size_t k = 0; k < all_lengths.size(); ++k)
                if (m_attributes->rotated[k]) {
                    float* out = results[k].data<float>();
                    for_rows(count, [&](size_t row) {
                        rotate(out + row * all_lengths[k], all_lengths[k], width, cos + row * width,
                               sin + row * width);
                    });
                }
        }
        return true;
    }

private:
    static size_t tiles_of(size_t columns) { return (columns + kOutputs - 1) / kOutputs; }

    bool rotates() const {
        const std::vector<int64_t>& rotated = m_attributes->rotated;
        return std::any_of(rotated.begin(), rotated.end(), [](int64_t width) { return width > 0; });
    }

    template <typename Work>
    static void for_rows(size_t count, const Work& work) {
        if (count < kRowsForThreads)
            for (size_t row = 0; row < count; ++row) work(row);
        else
            tbb::parallel_for(size_t(0), count, work);
    }

    static size_t given_inputs(const std::vector<Stage>& stages) {
        size_t count = 0;
        for (const Stage& stage : stages)
            count += (stage.source == kGiven) + (stage.residual == kGiven);
        return count;
    }

    // Raises ov::NodeValidationFailure where the attributes, or the inputs, don't go together.
    std::vector<Stage> read_stages() const {
        static const std::map<std::string, Before> names = {
            {"nothing", Before::nothing}, {"norm", Before::norm}, {"gate", Before::gate}};
        const Attributes& given = *m_attributes;
        const size_t count = given.before.size();
        for (size_t size : {given.epsilons.size(), given.sources.size(), given.residuals.size(),
                            given.columns.size(), given.widths.size(), given.bits.size()})
            NODE_VALIDATION_CHECK(this, size == count);
        NODE_VALIDATION_CHECK(this, count > 0 && given.results.size() == given.lengths.size());
        NODE_VALIDATION_CHECK(this, given.rotated.size() == given.lengths.size());
        for (size_t k = 0; k < given.rotated.size(); ++k)
            if (const int64_t width = given.rotated[k])
                NODE_VALIDATION_CHECK(this, width % 16 == 0 && given.lengths[k] % width == 0);
        std::vector<Stage> stages;
        size_t bytes = 0;
        for (size_t i = 0; i < count; ++i) {
            NODE_VALIDATION_CHECK(this, names.count(given.before[i]));
            NODE_VALIDATION_CHECK(this, given.sources[i] < int64_t(i));
            NODE_VALIDATION_CHECK(this, given.residuals[i] < int64_t(i));
            NODE_VALIDATION_CHECK(this, given.bits[i] == 4 || given.bits[i] == 8);
            NODE_VALIDATION_CHECK(this, given.widths[i] > 0 && given.widths[i] % kGroup == 0);
            stages.push_back({names.at(given.before[i]), given.epsilons[i], given.sources[i],
                              given.residuals[i], size_t(given.columns[i]), size_t(given.widths[i]),
                              given.bits[i]});
            const Stage& stage = stages.back();
            if (stage.source >= 0)
                NODE_VALIDATION_CHECK(this, stages[stage.source].columns == stage.given_width());
            bytes += stage.weight_bytes();
            if (stage.before == Before::norm) bytes += stage.width * sizeof(float);
        }
        size_t there = 0;
        for (size_t i = given_inputs(stages) + 2 * rotates(); i < get_input_size(); ++i)
            there += ov::shape_size(get_input_shape(i)) * get_input_element_type(i).size();
        NODE_VALIDATION_CHECK(this, there == bytes, "constants of ", there, " bytes, not ", bytes);
        return stages;
    }

    static void round_rows(const Stage& stage, const float* activations, const float* gain,
                           size_t count, Rows& rows) {
        const size_t width = stage.width;
        const size_t given = stage.given_width();
        rows.resize(count, width);
        for_rows(count, [&](size_t row) {
            thread_local std::vector<float> changed;
            const float* source = activations + row * given;
            if (stage.before != Before::nothing) {
                changed.resize(width);
                if (stage.before == Before::norm)
                    norm(source, gain, stage.epsilon, width, changed.data());
                else
                    gate(source, width, changed.data());
                source = changed.data();
            }
            rows.round(source, row);
        });
    }

    // `targets` take the columns one after the other, each as many as `lengths` says.
    static void multiply(const Stage& stage, const uint8_t* bytes, const Rows& rows, size_t count,
                         const std::vector<Target>& targets, const std::vector<size_t>& lengths) {
        const auto run = has_vnni() ? (stage.bits == 4 ? tiles<true, 4> : tiles<true, 8>)
                              : (stage.bits == 4 ? tiles<false, 4> : tiles<false, 8>);
        // Pairs of tiles are kept together.
        tbb::parallel_for(tbb::blocked_range<size_t>(0, (stage.tiles() + 1) / 2), [&](const auto& range) {
            size_t begin = 0;  // of the target, in tiles
            for (size_t k = 0; k < targets.size(); ++k) {
                const size_t end = begin + tiles_of(lengths[k]);
                const size_t first = std::max(2 * range.begin(), begin);
                const size_t last = std::min(2 * range.end(), end);
                if (first < last) {
                    const size_t column = (first - begin) * kOutputs;
                    run(bytes, rows, count, first, last, targets[k].at(0, column), lengths[k] - column);
                }
                begin = end;
            }
        });
    }

    std::shared_ptr<Attributes> m_attributes;
    std::shared_ptr<const std::vector<Stage>> m_stages;
    std::shared_ptr<Following> m_following = std::make_shared<Following>();
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<Projection>>()}));
