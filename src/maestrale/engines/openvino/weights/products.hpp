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
#include <vector>

namespace {

constexpr size_t kGroup = 32;    // inputs that share a scale
constexpr size_t kOutputs = 8;   // outputs of a tile
constexpr size_t kBeside = 24;   // bytes of scales and zero points in a block

constexpr size_t block_bytes(int bits) { return 32 * bits + kBeside; }

// The blocks of a tile: one behind the other, or each behind one of `places`.
struct Run {
    const uint8_t* first;
    size_t bytes;  // of a block

    Run at(size_t offset) const { return {first + offset, bytes}; }
    const uint8_t* operator()(size_t group) const { return first + group * bytes; }
};

struct Scattered {
    const uint8_t* const* places;
    size_t offset;

    Scattered at(size_t further) const { return {places, offset + further}; }
    const uint8_t* operator()(size_t group) const { return places[group] + offset; }
};

inline bool has_vnni() {
#ifdef WITHOUT_VNNI  // as on older CPUs, for tests
    return false;
#else
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
}

// Rows of activations, rounded to 8 bits in groups. Those that a kernel computes together, as many
// as its registers hold, lie together, quad by quad, so that it reads on in one place.
struct Rows {
    size_t count;
    size_t inputs;
    size_t groups;
    std::vector<int8_t> values;  // of rows together: [inputs / 4, rows, 4]
    std::vector<float> scales;   // [groups, rows]
    std::vector<float> sums;     // of the values, [groups, rows]

    void resize(size_t rows, size_t width) {
        count = rows;
        inputs = width;
        groups = width / kGroup;
        values.resize(rows * inputs);
        scales.resize(rows * groups);
        sums.resize(rows * groups);
    }

    // How many belong together from `first` on: 8, 4, or up to 3 at the end.
    size_t together(size_t first) const {
        const size_t left = count - first;
        return left >= 8 && has_vnni() ? 8 : std::min<size_t>(left, 4);
    }

    void round(const float* source, size_t row) {
        const Place at = place(row);
        for (size_t group = 0; group < groups; ++group) {
            __m256 part[4];
            for (int i = 0; i < 4; ++i) part[i] = _mm256_loadu_ps(source + group * kGroup + 8 * i);
            put(part, at, group);
        }
    }

    // Where a row is: after the rows before those that it belongs to, one of `beside`.
    struct Place {
        size_t before;
        size_t beside;
        size_t index;
    };

    Place place(size_t row) const {
        const size_t eight = row / 8 * 8;
        const size_t before = together(eight) == 8 ? eight : row / 4 * 4;
        return {before, together(before), row - before};
    }

    // A group of a row, rounded.
    void put(const __m256 (&part)[4], const Place& at, size_t group) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        __m256 most = _mm256_setzero_ps();
        for (int i = 0; i < 4; ++i) most = _mm256_max_ps(most, _mm256_andnot_ps(sign, part[i]));
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
        alignas(32) int32_t quads[kGroup / 4];
        _mm256_store_si256(reinterpret_cast<__m256i*>(quads), bytes);
        int8_t* target = values.data() + at.before * inputs + 4 * at.index;
        for (size_t i = 0; i < kGroup / 4; ++i)
            std::memcpy(target + (group * kGroup + 4 * i) * at.beside, quads + i, 4);
        __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
        total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0xb1));
        const size_t scale = at.before * groups + group * at.beside + at.index;
        scales[scale] = largest / 127.0f;
        sums[scale] = static_cast<float>(_mm_cvtsi128_si32(total));
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
template <bool Vnni, int Bits, int R, int C, typename Blocks>
[[gnu::always_inline]] inline void multiply_rows(const Blocks& blocks, size_t tile_bytes,
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
        const uint8_t* block = blocks(group);
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
                const __m256i four = quad(values + R * inputs + 4 * r);
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
                const __m256 centred =
                    _mm256_fnmadd_ps(zero_point, _mm256_set1_ps(sums[r]), _mm256_cvtepi32_ps(sum));
                const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(scales[r]));
                total[r][c] = _mm256_fmadd_ps(factor, centred, total[r][c]);
            }
        }
        // A line now and then: many at once would hold up the loads of this tile.
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            prefetch<block_bytes(Bits)>(block + (2 * C + c) * tile_bytes);
        values += kGroup * R;
        scales += R;
        sums += R;
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) target.store(r, kOutputs * c, total[r][c]);
}

// Not inlined: they need every register.
template <int Bits, int R, int C, typename Blocks>
[[gnu::noinline]] void product(const Blocks& blocks, size_t tile_bytes, const Rows& rows,
                               size_t first_row, const Target& target) {
    multiply_rows<false, Bits, R, C>(blocks, tile_bytes, rows, first_row, target);
}

#define WIDE gnu::target("avx512f,avx512vl,avx512vnni")

[[WIDE, gnu::always_inline]] inline void dot(__m512i& into, __m512i unsigned_bytes,
                                             const int8_t* quad) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(into)
        : "v"(unsigned_bytes), "m"(*reinterpret_cast<const int32_t*>(quad)));
}

[[WIDE, gnu::always_inline]] inline __m512i both(const uint8_t* one, const uint8_t* other) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load(one)), load(other), 1);
}

// R rows times one tile.
template <int Bits, int R, typename Blocks>
[[gnu::noinline, WIDE]] void product_vnni(const Blocks& blocks, size_t tile_bytes, const Rows& rows,
                                          size_t first_row, const Target& target) {
    multiply_rows<true, Bits, R, 1>(blocks, tile_bytes, rows, first_row, target);
}

// R rows times two tiles, as one vector of 16 outputs.
template <int Bits, int R, typename Blocks>
[[gnu::noinline, WIDE]] void product_wide(const Blocks& blocks, size_t tile_bytes, const Rows& rows,
                                          size_t first_row, const Target& target) {
    const __m512i low_half = _mm512_set1_epi8(15);
    const int8_t* values = rows.values.data() + first_row * rows.inputs;
    const float* scales = rows.scales.data() + first_row * rows.groups;
    const float* sums = rows.sums.data() + first_row * rows.groups;
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (size_t group = 0; group < rows.groups; ++group) {
        const uint8_t* block = blocks(group);
        const uint8_t* other = block + tile_bytes;
        __m512i sum[R];
        for (int r = 0; r < R; ++r) sum[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int part = 0; part < Bits; ++part) {
            const __m512i bytes = both(block + 32 * part, other + 32 * part);
            const int8_t* quads = values + 4 * R * (Bits == 4 ? 2 : 1) * part;
            if constexpr (Bits == 4) {
                const __m512i low = _mm512_and_si512(bytes, low_half);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi32(bytes, 4), low_half);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) dot(sum[r], low, quads + 4 * r);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) dot(sum[r], high, quads + 4 * R + 4 * r);
            } else {
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) dot(sum[r], bytes, quads + 4 * r);
            }
        }
        const uint8_t* beside = block + 32 * Bits;
        const uint8_t* others = other + 32 * Bits;
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu2_m128i(
            reinterpret_cast<const __m128i*>(others), reinterpret_cast<const __m128i*>(beside)));
        const __m128i points = _mm_unpacklo_epi64(
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(beside + 2 * kOutputs)),
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(others + 2 * kOutputs)));
        const __m512 zero_point = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(points));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512 centred =
                _mm512_fnmadd_ps(zero_point, _mm512_set1_ps(sums[r]), _mm512_cvtepi32_ps(sum[r]));
            const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(scales[r]));
            total[r] = _mm512_fmadd_ps(factor, centred, total[r]);
        }
        prefetch<block_bytes(Bits)>(block + 4 * tile_bytes);
        prefetch<block_bytes(Bits)>(other + 4 * tile_bytes);
        values += kGroup * R;
        scales += R;
        sums += R;
    }
    for (int r = 0; r < R; ++r) {
        target.store(r, 0, _mm512_castps512_ps256(total[r]));
        const __m512d halves = _mm512_castps_pd(total[r]);
        target.store(r, kOutputs, _mm256_castpd_ps(_mm512_extractf64x4_pd(halves, 1)));
    }
}

// R rows times T tiles. AVX2's registers hold two only for 4 bits.
template <bool Vnni, int Bits, int R, int T, typename Blocks>
void some_rows(Blocks tile, size_t tile_bytes, const Rows& rows, size_t first_row,
               const Target& target) {
    if constexpr (T == 2 && R >= 4 && Vnni) {
        product_wide<Bits, R>(tile, tile_bytes, rows, first_row, target);
    } else if constexpr (T == 2 && R >= 4 && Bits == 4) {
        product<Bits, R, T>(tile, tile_bytes, rows, first_row, target);
    } else {
        for (int i = 0; i < T; ++i, tile = tile.at(tile_bytes))
            if constexpr (Vnni)
                product_vnni<Bits, R>(tile, tile_bytes, rows, first_row, target.at(0, i * kOutputs));
            else
                product<Bits, R, 1>(tile, tile_bytes, rows, first_row, target.at(0, i * kOutputs));
    }
}

// All rows times T tiles. Both are done for some rows before the next: half a line of results,
// written far from the other half, would leave the cache in between.
template <bool Vnni, int Bits, int T, typename Blocks>
void all_rows(const Blocks& tile, size_t tile_bytes, const Rows& rows, const Target& target) {
    for (size_t row = 0; row < rows.count; row += rows.together(row)) {
        const auto with = [&](auto run) { run(tile, tile_bytes, rows, row, target.at(row, 0)); };
        switch (rows.together(row)) {
            case 1: with(some_rows<Vnni, Bits, 1, T, Blocks>); break;
            case 2: with(some_rows<Vnni, Bits, 2, T, Blocks>); break;
            case 3: with(some_rows<Vnni, Bits, 3, T, Blocks>); break;
            case 4: with(some_rows<Vnni, Bits, 4, T, Blocks>); break;
            case 8:
                if constexpr (Vnni) with(some_rows<Vnni, Bits, 8, T, Blocks>);
        }
    }
}

// Tiles `first` to `last`, `tile_bytes` apart, whose first is written to the first column of
// `target`; `outputs`: how many columns it has.
template <bool Vnni, int Bits, typename Blocks>
void tiles(const Blocks& blocks, size_t tile_bytes, const Rows& rows, size_t first, size_t last,
           const Target& target, size_t outputs) {
    constexpr size_t T = 2;
    const size_t whole = std::min(last, first + outputs / kOutputs);
    const auto from = [&](size_t tile) { return blocks.at(tile * tile_bytes); };
    const auto place = [&](size_t tile) { return target.at(0, (tile - first) * kOutputs); };
    size_t tile = first;
    for (; tile + T <= whole; tile += T)
        all_rows<Vnni, Bits, T>(from(tile), tile_bytes, rows, place(tile));
    for (; tile < whole; ++tile) all_rows<Vnni, Bits, 1>(from(tile), tile_bytes, rows, place(tile));
    for (; tile < last; ++tile) {  // the last one, with fewer outputs than a vector holds
        thread_local std::vector<float> full;
        full.resize(rows.count * kOutputs);
        all_rows<Vnni, Bits, 1>(from(tile), tile_bytes, rows, {full.data(), nullptr, kOutputs});
        const Target rest = place(tile);
        for (size_t row = 0; row < rows.count; ++row)
            for (size_t i = 0; i < outputs % kOutputs; ++i) {
                const size_t offset = row * rest.stride + i;
                rest.out[offset] =
                    full[row * kOutputs + i] + (rest.residual ? rest.residual[offset] : 0.0f);
            }
    }
}

}  // namespace
