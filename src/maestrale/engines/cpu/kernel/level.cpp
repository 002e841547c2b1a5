#include "level.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mst {
namespace {

#if defined(__x86_64__)

uint64_t enabled_states() {  // of registers, by the system
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

// Whether the system lets this process use AMX's tiles: it must be asked.
bool tiles_allowed() {
#if defined(__linux__)
    constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#else
    return false;
#endif
}

struct Features {
    bool avx2 = false, avx512 = false, amx = false;

    Features() {
        uint32_t a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool fma = c >> 12 & 1, saves = c >> 27 & 1, avx = c >> 28 & 1, f16c = c >> 29 & 1;
        if (!saves) return;
        const uint64_t states = enabled_states();
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = avx && fma && f16c && (b >> 5 & 1) && (states & 0x6) == 0x6;
        const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
        const bool vnni = c >> 11 & 1;
        avx512 = avx2 && f && dq && bw && vl && vnni && (states & 0xe6) == 0xe6;
        const bool tiles = (d >> 24 & 1) && (d >> 25 & 1) && (states & 0x60000) == 0x60000;
        amx = avx512 && tiles && tiles_allowed();
    }
};

const Level* find(int32_t number) {
    static const Features features;
    switch (number) {
        case MST_AVX2: return features.avx2 ? &avx2_level : nullptr;
        case MST_AVX512: return features.avx512 ? &avx512_level : nullptr;
        case MST_AMX: return features.amx ? &amx_level : nullptr;
        default: return nullptr;
    }
}

#elif defined(__aarch64__)

const Level* find(int32_t number) {
#if defined(__linux__)
    const unsigned long features = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
    const bool dots = features >> 20 & 1, halves = features >> 10 & 1;  // ASIMDDP, ASIMDHP
    const bool matrices = more >> 13 & 1;                               // I8MM
#else
    const bool dots = true, halves = true, matrices = false;
#endif
    switch (number) {
        case MST_NEON: return dots && halves ? &neon_level : nullptr;
        case MST_I8MM: return dots && halves && matrices ? &i8mm_level : nullptr;
        default: return nullptr;
    }
}

#else

const Level* find(int32_t) { return nullptr; }

#endif

}  // namespace

const Level* level_of(int32_t number) {
    return number == MST_SCALAR ? &scalar_level : find(number);
}

}  // namespace mst

extern "C" {

int32_t mst_abi(void) { return MST_ABI; }

const char* mst_arithmetic(void) { return "2"; }

int32_t mst_has_level(int32_t level) { return mst::level_of(level) != nullptr; }

int32_t mst_best_level(void) {
    for (const int32_t level : {MST_I8MM, MST_NEON, MST_AMX, MST_AVX512, MST_AVX2})
        if (mst::level_of(level)) return level;
    return MST_SCALAR;
}

const char* mst_level_name(int32_t level) {
    switch (level) {
        case MST_SCALAR: return "scalar";
        case MST_AVX2: return "avx2";
        case MST_AVX512: return "avx512";
        case MST_AMX: return "amx";
        case MST_NEON: return "neon";
        case MST_I8MM: return "i8mm";
        default: return "unknown";
    }
}

}  // extern "C"
