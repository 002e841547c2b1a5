// Matrix products of weights of 4 or 8 bits with activations that are rounded to 8 bits in groups of
// 32 (what llama.cpp calls Q8_1). Needs AVX2, FMA and F16C; uses AVX-512 VNNI where there is one.
//
// Whole numbers are summed within a group, in any order to the same result; floats are summed
// over the groups of one row in one order only. So a row's result doesn't depend on what is
// computed beside it, nor on the number of threads.
//
// Weights, as `packing.py` writes them: tiles of 8 outputs, each a run of blocks of 32 inputs.
// A block is 128 bytes for 4 bits (256 for 8), 8 scales (float16) and 8 zero points (uint8).
// A vector of 32 bytes holds 4 successive inputs for each of the 8 outputs: for 4 bits the low
// halves inputs 8j to 8j+3, the high halves inputs 8j+4 to 8j+7; for 8 bits inputs 4j to 4j+3.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr size_t kGroup = 32;    // inputs that share a scale
constexpr size_t kOutputs = 8;   // outputs of a tile
constexpr size_t kBeside = 24;   // bytes of scales and zero points in a block
constexpr size_t kRows = 4;      // that a kernel computes together

template <size_t Value>
constexpr std::integral_constant<size_t, Value> number{};

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

// Into the nearest cache. Beyond the end of the weights it does nothing.
template <int Bytes>
inline void prefetch(const uint8_t* from) {
#pragma GCC unroll 8
    for (int line = 0; line < Bytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(from + line), _MM_HINT_T0);
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
        // A line now and then: many at once would hold up the loads of this tile.
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            prefetch<32 * Bits + kBeside>(block + (2 * C + c) * tile_bytes);
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

inline bool has_vnni() {
#ifdef WITHOUT_VNNI  // as on older CPUs, for tests
    return false;
#else
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
}

// `count` rows times T tiles, of which the registers hold C. All are done for some rows before the
// next: half a line of results, written far from the other half, would leave the cache in between.
template <bool Vnni, int Bits, int C, int T>
void all_rows(const uint8_t* tile, size_t tile_bytes, const Rows& rows, size_t count,
              const Target& target) {
    const auto some = [&](auto r, auto c, size_t row, size_t place) {
        const uint8_t* from = tile + place * tile_bytes;
        const Target to = target.at(row, place * kOutputs);
        if constexpr (Vnni)
            product_vnni<Bits, r(), c()>(from, tile_bytes, rows, row, to);
        else
            product<Bits, r(), c()>(from, tile_bytes, rows, row, to);
    };
    size_t row = 0;
    for (; row + kRows <= count; row += kRows)
        for (size_t place = 0; place < T; place += C) some(number<kRows>, number<C>, row, place);
    for (size_t place = 0; place < T; ++place) {
        if (count - row == 1) some(number<1>, number<1>, row, place);
        if (count - row == 2) some(number<2>, number<1>, row, place);
        if (count - row == 3) some(number<3>, number<1>, row, place);
    }
}

// Tiles `first` to `last`, whose first is written to the first column of `target`; `outputs`: how
// many columns it has. Registers suffice for two tiles, but for one of 8 bits in halves.
template <bool Vnni, int Bits>
void tiles(const uint8_t* weights, const Rows& rows, size_t count, size_t first, size_t last,
           const Target& target, size_t outputs) {
    constexpr size_t C = Bits == 4 || Vnni ? 2 : 1;
    constexpr size_t T = 2;
    const size_t tile_bytes = rows.groups * (32 * Bits + kBeside);
    const size_t whole = std::min(last, first + outputs / kOutputs);
    const auto bytes = [&](size_t tile) { return weights + tile * tile_bytes; };
    const auto place = [&](size_t tile) { return target.at(0, (tile - first) * kOutputs); };
    size_t tile = first;
    if (count >= kRows)
        for (; tile + T <= whole; tile += T)
            all_rows<Vnni, Bits, C, T>(bytes(tile), tile_bytes, rows, count, place(tile));
    for (; tile < whole; ++tile)
        all_rows<Vnni, Bits, 1, 1>(bytes(tile), tile_bytes, rows, count, place(tile));
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

}  // namespace
