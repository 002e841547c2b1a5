// Operations for OpenVINO: products of `products.hpp`, each together with what stands before it (RMS
// norm, the gate of a SwiGLU, or attention) and after it (the residual's sum, a split of the result,
// rotary embedding). Several that follow each other are one operation, as OpenVINO takes some 30 us
// for each of ours: with attention, all layers of a model are one.

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <string>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "products.hpp"
#include "vectors.hpp"

namespace {

constexpr size_t kRowsForThreads = 8;  // fewer are rounded faster by one thread
constexpr size_t kRowsThatWait = 4;    // so few are computed faster than their weights are read
constexpr size_t kAhead = 128 << 10;   // bytes that one task reads ahead
constexpr size_t kMostAhead = 4 << 20;
constexpr size_t kAttentionInputs = 6;

// What is done to a row of activations first.
enum class Before { nothing, norm, gate, attention };

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
                for (size_t i = 0; i < length; i += 64) prefetch<64>(from + i);
            });
    }
};

// Columns of the result of a stage.
struct PartOf {
    size_t stage;
    size_t first;
};

// One product of a chain.
struct Stage {
    Before before;
    float epsilon;
    int64_t source;    // whose result its activations are; kGiven: the next input's; kNone: parts'
    int64_t residual;  // whose result is added; kGiven: the next input, kNone: nothing
    size_t columns;
    size_t width;  // of the weights: inputs
    int64_t bits;
    PartOf parts[3];  // for `attention`: queries, keys and values
    size_t slot = 0;  // where its result is kept for later stages

    size_t given_width() const { return before == Before::gate ? 2 * width : width; }
    size_t tiles() const { return (columns + kOutputs - 1) / kOutputs; }
    size_t weight_bytes() const { return tiles() * (width / kGroup) * block_bytes(bits); }
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
    std::vector<int64_t> parts;  // of each stage six: stage and first column of the three
    std::vector<int64_t> heads;  // of attention: queries, kept, width; zeros where there is none
    float scale = 0;
    bool turned = false;  // whether attention's queries and keys get rotary embedding first
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
// given, then what is added, if given; behind those of all stages, where something is rotated,
// cosines and sines float32 [..., width of a head]; where there is attention, where each layer's
// cache begins, its bytes as int32 [layers, 2] (OpenVINO makes int64 to int32), then `Sequences`, and
// the rows that the last stage is computed for, int32 (one below 0: for none, as OpenVINO leaves
// out operations with empty inputs); then the constants: of each stage its weights uint8 [tiles,
// groups, block], and for `norm` its gain float32 [width]. The constants may be in one input, which
// makes a step some 10 us shorter.
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
            if (attends() && m_attributes->results[i] + 1 == int64_t(m_stages->size()))
                shape[0] = get_input_partial_shape(cached() + kAttentionInputs - 1)[0];
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
        visitor.on_attribute("turned", m_attributes->turned);
        visitor.on_attribute("parts", m_attributes->parts);
        visitor.on_attribute("heads", m_attributes->heads);
        visitor.on_attribute("scale", m_attributes->scale);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& results, const ov::TensorVector& inputs) const override {
        // From step to step; not what the threads below would see under these names.
        thread_local Rows kept_rows;
        thread_local std::vector<std::vector<float>> kept_results;
        thread_local std::vector<float> kept_attended;
        thread_local std::vector<float> kept_picked;
        thread_local Attention kept_attention;
        Rows& rows = kept_rows;
        Attention& attention = kept_attention;
        const std::vector<Stage>& stages = *m_stages;
        const std::vector<int64_t>& all_lengths = m_attributes->lengths;
        kept_results.resize(std::max(kept_results.size(), stages.size()));
        const size_t count = inputs[0].get_size() / stages[0].given_width();
        size_t input = 0;
        const size_t angles = given_inputs(stages);
        if (rotates() && !has_angles(inputs[angles], inputs[angles + 1], count)) return false;
        const auto turn = [&](float* first, size_t stride, size_t columns) {
            const size_t width = head_width();
            const float* cos = inputs[angles].data<const float>();
            const float* sin = inputs[angles + 1].data<const float>();
            for_rows(count, [&](size_t row) {
                rotate(first + row * stride, columns, width, cos + row * width, sin + row * width);
            });
        };
        const Heads heads = this->heads();
        const int32_t* addresses = nullptr;
        if (attends()) {
            const auto integers = [&](size_t i) { return inputs[cached() + i].data<const int32_t>(); };
            addresses = integers(0);
            const Sequences sequences{inputs[cached() + 1].get_size(), integers(1), integers(2),
                                      integers(3), integers(4)};
            if (size_t(sequences.begins[sequences.count]) != count) return false;
            attention.prepare(heads, sequences);
        }
        Constants constants(inputs, first_constants());
        announce(inputs[first_constants()]);
        std::vector<float*> done;
        const auto result_of = [&](int64_t stage) -> const float* {
            if (stage == kNone) return nullptr;
            return stage == kGiven ? inputs[input++].data<const float>() : done[stage];
        };
        std::vector<Target> targets;
        std::vector<size_t> lengths;
        for (size_t i = 0; i < stages.size(); ++i) {
            const Stage& stage = stages[i];
            const float* activations = result_of(stage.source);
            const float* residual = result_of(stage.residual);
            const uint8_t* weights = constants.take(stage.weight_bytes());
            const float* gain = nullptr;
            if (stage.before == Before::norm)
                gain = reinterpret_cast<const float*>(constants.take(stage.width * sizeof(float)));
            if (stage.before == Before::attention) {
                const auto part = [&](const PartOf& of) {
                    return Part{done[of.stage] + of.first, stages[of.stage].columns};
                };
                if (m_attributes->turned)
                    for (const size_t k : {0, 1}) {
                        const PartOf& of = stage.parts[k];
                        turn(done[of.stage] + of.first, stages[of.stage].columns,
                             (k == 0 ? heads.queries : heads.kept) * heads.width);
                    }
                const Given given{part(stage.parts[0]), part(stage.parts[1]), part(stage.parts[2])};
                uint8_t* cache;
                std::memcpy(&cache, addresses, sizeof cache);
                addresses += sizeof cache / sizeof *addresses;
                kept_attended.resize(std::max(kept_attended.size(), count * stage.width));
                attention.compute(given, cache, kept_attended.data());
                activations = kept_attended.data();
            }
            size_t computed = count;
            if (attends() && i + 1 == stages.size()) {
                const ov::Tensor& picked = inputs[cached() + kAttentionInputs - 1];
                const int32_t* chosen = picked.data<const int32_t>();
                computed = chosen[0] < 0 ? 0 : picked.get_size();
                pick(activations, stage.given_width(), chosen, computed, kept_picked);
                activations = kept_picked.data();
            }
            round_rows(stage, activations, gain, computed, rows);
            targets.clear();
            lengths.clear();
            for (size_t k = 0; k < all_lengths.size(); ++k)
                if (m_attributes->results[k] == int64_t(i)) {
                    const size_t length = all_lengths[k];
                    targets.push_back({results[k].data<float>(), residual, length});
                    lengths.push_back(length);
                }
            if (targets.empty()) {  // only later stages want it
                std::vector<float>& kept = kept_results[stage.slot];
                kept.resize(std::max(kept.size(), count * stage.columns));
                targets.push_back({kept.data(), residual, stage.columns});
                lengths.push_back(stage.columns);
            }
            multiply(stage, weights, rows, targets, lengths);
            done.push_back(targets[0].out);
        }
        if (count <= kRowsThatWait) m_following->read_ahead();
        for (size_t k = 0; k < all_lengths.size(); ++k)
            if (m_attributes->rotated[k])
                turn(results[k].data<float>(), all_lengths[k], all_lengths[k]);
        return true;
    }

private:
    // Which inputs those of attention are, and the constants behind them.
    size_t cached() const { return given_inputs(*m_stages) + 2 * rotates(); }
    size_t first_constants() const { return cached() + kAttentionInputs * attends(); }

    static void pick(const float* from, size_t width, const int32_t* rows, size_t count,
                     std::vector<float>& into) {
        into.resize(count * width);
        for (size_t i = 0; i < count; ++i)
            std::memcpy(into.data() + i * width, from + rows[i] * width, width * sizeof(float));
    }

    static size_t tiles_of(size_t columns) { return (columns + kOutputs - 1) / kOutputs; }

    size_t head_width() const {
        const std::vector<int64_t>& rotated = m_attributes->rotated;
        return std::max(m_attributes->heads[2], *std::max_element(rotated.begin(), rotated.end()));
    }

    bool rotates() const {
        const std::vector<int64_t>& rotated = m_attributes->rotated;
        return m_attributes->turned ||
               std::any_of(rotated.begin(), rotated.end(), [](int64_t width) { return width > 0; });
    }

    bool attends() const { return m_attributes->heads[0] > 0; }

    Heads heads() const {
        const std::vector<int64_t>& heads = m_attributes->heads;
        return {size_t(heads[0]), size_t(heads[1]), size_t(heads[2]), m_attributes->scale};
    }

    bool has_angles(const ov::Tensor& cos, const ov::Tensor& sin, size_t count) const {
        return cos.get_size() == count * head_width() && sin.get_size() == count * head_width();
    }

    // To the operation before this one, what follows it.
    void announce(const ov::Tensor& constants) const {
        thread_local std::shared_ptr<Following> before;
        if (before)
            *before = {static_cast<const uint8_t*>(constants.data()), constants.get_byte_size()};
        before = m_following;
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
            {"nothing", Before::nothing},
            {"norm", Before::norm},
            {"gate", Before::gate},
            {"attention", Before::attention}};
        const Attributes& given = *m_attributes;
        const size_t count = given.before.size();
        for (size_t size : {given.epsilons.size(), given.sources.size(), given.residuals.size(),
                            given.columns.size(), given.widths.size(), given.bits.size(),
                            given.parts.size() / 6})
            NODE_VALIDATION_CHECK(this, size == count);
        NODE_VALIDATION_CHECK(this, count > 0 && given.results.size() == given.lengths.size());
        NODE_VALIDATION_CHECK(this, given.rotated.size() == given.lengths.size());
        for (size_t k = 0; k < given.rotated.size(); ++k)
            if (const int64_t width = given.rotated[k])
                NODE_VALIDATION_CHECK(this, width % 16 == 0 && given.lengths[k] % width == 0);
        NODE_VALIDATION_CHECK(this, given.heads.size() == 3);
        const Heads heads = this->heads();
        if (attends())
            NODE_VALIDATION_CHECK(this, heads.kept > 0 && heads.queries % heads.kept == 0 &&
                                            heads.width > 0 && heads.width % kGroup == 0 &&
                                            given.residuals.back() == kNone);
        std::vector<Stage> stages;
        size_t bytes = 0;
        for (size_t i = 0; i < count; ++i) {
            NODE_VALIDATION_CHECK(this, names.count(given.before[i]));
            NODE_VALIDATION_CHECK(this, given.sources[i] < int64_t(i));
            NODE_VALIDATION_CHECK(this, given.residuals[i] < int64_t(i));
            NODE_VALIDATION_CHECK(this, given.bits[i] == 4 || given.bits[i] == 8);
            NODE_VALIDATION_CHECK(this, given.widths[i] > 0 && given.widths[i] % kGroup == 0);
            const Before before = names.at(given.before[i]);
            const int64_t* part = given.parts.data() + 6 * i;
            stages.push_back({before, given.epsilons[i], given.sources[i], given.residuals[i],
                              size_t(given.columns[i]), size_t(given.widths[i]), given.bits[i],
                              {{size_t(part[0]), size_t(part[1])},
                               {size_t(part[2]), size_t(part[3])},
                               {size_t(part[4]), size_t(part[5])}}});
            const Stage& stage = stages.back();
            NODE_VALIDATION_CHECK(this, (stage.source == kNone) == (before == Before::attention));
            if (before == Before::attention) {
                NODE_VALIDATION_CHECK(this, stage.width == heads.queries * heads.width);
                for (size_t k = 0; k < 3; ++k) {
                    const PartOf& of = stage.parts[k];
                    const size_t count = k == 0 ? heads.queries : heads.kept;
                    NODE_VALIDATION_CHECK(this, of.stage < i && of.first + count * heads.width <=
                                                                    stages[of.stage].columns);
                }
            }
            if (stage.source >= 0)
                NODE_VALIDATION_CHECK(this, stages[stage.source].columns == stage.given_width());
            bytes += stage.weight_bytes();
            if (stage.before == Before::norm) bytes += stage.width * sizeof(float);
        }
        size_t there = 0;
        const size_t first = given_inputs(stages) + 2 * rotates() + kAttentionInputs * attends();
        for (size_t i = first; i < get_input_size(); ++i)
            there += ov::shape_size(get_input_shape(i)) * get_input_element_type(i).size();
        NODE_VALIDATION_CHECK(this, there == bytes, "constants of ", there, " bytes, not ", bytes);
        give_slots(stages);
        return stages;
    }

    // Two stages keep their results in one place where the later doesn't need the earlier's, nor
    // does any behind it.
    static void give_slots(std::vector<Stage>& stages) {
        std::vector<size_t> needed(stages.size());  // until which stage each is
        for (size_t i = 0; i < stages.size(); ++i) {
            needed[i] = i;
            for (const int64_t earlier : {stages[i].source, stages[i].residual})
                if (earlier >= 0) needed[earlier] = i;
            if (stages[i].before == Before::attention)
                for (const PartOf& part : stages[i].parts) needed[part.stage] = i;
        }
        std::vector<size_t> until;  // which stage each slot is taken
        for (size_t i = 0; i < stages.size(); ++i) {
            const auto free = std::find_if(until.begin(), until.end(), [&](size_t j) { return j < i; });
            stages[i].slot = free - until.begin();
            if (free == until.end())
                until.push_back(needed[i]);
            else
                *free = needed[i];
        }
    }

    static void round_rows(const Stage& stage, const float* activations, const float* gain,
                           size_t count, Rows& rows) {
        const size_t width = stage.width;
        const size_t given = stage.given_width();
        rows.resize(count, width);
        for_rows(count, [&](size_t row) {
            thread_local std::vector<float> changed;
            const float* source = activations + row * given;
            if (stage.before == Before::norm || stage.before == Before::gate) {
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
    static void multiply(const Stage& stage, const uint8_t* bytes, const Rows& rows,
                         const std::vector<Target>& targets, const std::vector<size_t>& lengths) {
        const auto run = has_vnni() ? (stage.bits == 4 ? tiles<true, 4, Run> : tiles<true, 8, Run>)
                              : (stage.bits == 4 ? tiles<false, 4, Run> : tiles<false, 8, Run>);
        const Run blocks{bytes, block_bytes(stage.bits)};
        const size_t tile_bytes = rows.groups * blocks.bytes;
        // Pairs of tiles are kept together.
        tbb::parallel_for(tbb::blocked_range<size_t>(0, (stage.tiles() + 1) / 2), [&](const auto& range) {
            size_t begin = 0;  // of the target, in tiles
            for (size_t k = 0; k < targets.size(); ++k) {
                const size_t end = begin + tiles_of(lengths[k]);
                const size_t first = std::max(2 * range.begin(), begin);
                const size_t last = std::min(2 * range.end(), end);
                if (first < last) {
                    const size_t column = (first - begin) * kOutputs;
                    run(blocks, tile_bytes, rows, first, last, targets[k].at(0, column), lengths[k] - column);
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
