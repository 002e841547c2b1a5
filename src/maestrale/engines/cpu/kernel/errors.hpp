// Failures on their way to the caller: one sentence.

#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace mst {

struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn, gnu::format(printf, 1, 2)]] inline void refuse(const char* format, ...) {
    char sentence[256];
    va_list values;
    va_start(values, format);
    std::vsnprintf(sentence, sizeof sentence, format, values);
    va_end(values);
    throw Refused(sentence);
}

inline void write_error(char* error, size_t size, const char* sentence) {
    if (error && size) std::snprintf(error, size, "%s", sentence);
}

// work()'s result, or `failed`, with a sentence in `error`.
template <typename Result, typename Work>
Result guarded(char* error, size_t size, Result failed, const Work& work) {
    try {
        return work();
    } catch (const Refused& refused) {
        write_error(error, size, refused.what());
    } catch (const std::bad_alloc&) {
        write_error(error, size, "there is not enough memory");
    } catch (const std::system_error&) {
        write_error(error, size, "the system allows no further thread");
    } catch (const std::exception& other) {
        write_error(error, size, other.what());
    }
    return failed;
}

}  // namespace mst
