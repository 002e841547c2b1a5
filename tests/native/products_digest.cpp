// Products of one level with matrices of every type, from numbers that are the same everywhere: a
// digest of the results for each type. LEVEL and LEVEL_... are the command's.

#include <cinttypes>
#include <cstdio>
#include <vector>

#include "pack.hpp"
#include "products.hpp"

using namespace mst;
using namespace mst::LEVEL;

namespace {

uint64_t state = 1;

uint32_t random_bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 33);
}

// Float16 or exponents of moderate size wherever a block has them.
std::vector<uint8_t> random_blocks(const Type& type, size_t count) {
    std::vector<uint8_t> bytes(count * type.block_bytes);
    for (uint8_t& byte : bytes) byte = uint8_t(random_bits() % 0x38);
    if (type.form == Form::table_exponent)
        for (size_t i = 0; i < bytes.size(); i += type.block_bytes) bytes[i] = uint8_t(120 + i % 5);
    return bytes;
}

uint64_t results(const Type& type, size_t outputs, size_t inputs, size_t count, bool outliers) {
    const Traits traits = traits_of(type.form);
    Matrix matrix{};
    matrix.form = type.form;
    matrix.rows = outputs;
    matrix.columns = inputs;
    matrix.groups = (inputs + kGroup - 1) / kGroup;
    matrix.tiles = (outputs + kOutputs - 1) / kOutputs;
    matrix.tile_bytes = matrix.groups * kGroup / traits.unit_inputs() * traits.unit_bytes();
    matrix.factor = type.factor;
    for (size_t i = 0; i < 16; ++i)
        matrix.table[i] = type.table ? uint8_t(type.table[i] + traits.zero) : 0;
    const size_t blocks = inputs / type.block_inputs;
    const std::vector<uint8_t> source = random_blocks(type, outputs * blocks);
    std::vector<uint8_t> packed(matrix.tiles * matrix.tile_bytes);
    for (size_t tile = 0; tile < matrix.tiles; ++tile)
        if (pack_tile(matrix, {&type, source.data(), blocks * type.block_bytes, nullptr}, tile,
                      packed.data() + tile * matrix.tile_bytes) != Packing::done)
            return 0;
    matrix.data = packed.data();
    std::vector<float> x(count * inputs), out(count * outputs);
    for (float& value : x) value = float(int32_t(random_bits() % 20001) - 10000) / 4096.0f;
    Rows rows;
    rows.resize(count, inputs, outliers);
    for (size_t row = 0; row < count; ++row) rows.round(x.data() + row * inputs, row);
    multiply(matrix, rows, 0, matrix.tiles, Target{out.data(), nullptr, outputs});
    out.resize((out.size() + 7) / 8 * 8);
    return digest_of(reinterpret_cast<const uint8_t*>(out.data()), out.size() * sizeof(float), 0);
}

}  // namespace

int main() {
    for (int32_t number = 0; number < 64; ++number) {
        const Type* const type = find_type(number);
        if (!type) continue;
        std::printf("%s", type->name);
        for (const size_t count : {1, 7, 40, 56}) {
            std::printf(" %016" PRIx64, results(*type, 37, 512, count, true));
            std::printf(" %016" PRIx64, results(*type, 80, 1280, count, count == 7));
        }
        std::printf("\n");
    }
}
