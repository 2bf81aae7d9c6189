#include "MonteCarloModeJump.h"

#include "Model.h"
#include "MovedParticles.h"
#include "internal/MonteCarloModeJumpImpl.h"
#include "modejump.h"
#include "openmm/OpenMMException.h"

#include <cmath>
#include <mutex>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {
/** Most steps of a relaxation, as in the program. */
const int MAX_RELAXATION = 1 << 20;

void require(bool condition, const string& message) {
    if (!condition)
        throw OpenMMException("MonteCarloModeJump: " + message);
}
} // namespace

MonteCarloModeJump::MonteCarloModeJump(const string& modelFile, int frequency)
    : numProposals(1), seed(0), defaultReplica(0), temperature(0) {
    generator.file = modelFile;
    setFrequency(frequency);
    setName("MonteCarloModeJump");
}

namespace {

modejump_model_options defaultOptions() {
    modejump_model_options options = {};
    options.struct_size = sizeof(options);
    check(modejump_model_options_init(&options));
    return options;
}

} // namespace

MonteCarloModeJump::Loading::Loading() {
    const modejump_model_options options = defaultOptions();
    segment = static_cast<int>(options.segment);
    decodingPasses = static_cast<int>(options.decoding_passes);
    decodingTolerance = options.decoding_tolerance;
}

shared_ptr<const Model> MonteCarloModeJump::Source::load(uint32_t flags) const {
    // the enumerations are in the order of these numbers
    static_assert(MODEJUMP_F32 == 0 && MODEJUMP_F64 == 1 && MODEJUMP_BF16 == 2);
    static_assert(MODEJUMP_SEQUENTIAL == 0 && MODEJUMP_JACOBI == 1 && MODEJUMP_GAUSS_SEIDEL == 2);
    modejump_model_options options = defaultOptions();
    options.flags = flags;
    options.precision = static_cast<uint32_t>(loading.precision);
    options.decoding = static_cast<uint32_t>(loading.decoding);
    options.segment = loading.segment;
    options.decoding_passes = loading.decodingPasses;
    options.decoding_tolerance = loading.decodingTolerance;
    shared_ptr<const string> read = contents;
    if (data.empty() && !read)
        read = make_shared<const string>(readFile(file));
    auto loaded = Model::fromBytes(data.empty() ? *read : data, file, options);
    require(hash.empty() || hash == loaded->hash,
            "the model file " + file + " has the hash " + loaded->hash + ", but " + hash +
                " when this was set up; restore that file, or set up the move again");
    hash = loaded->hash;
    if (flags != MODEJUMP_ON_CPU)
        contents = read;
    return loaded;
}

/** For the parts of a Source that are found on loading: Contexts of one System may be created by several threads. */
static recursive_mutex loadingOne;

shared_ptr<const Model> MonteCarloModeJump::Source::onCPU() const {
    const lock_guard<recursive_mutex> lock(loadingOne);
    if (!model)
        model = load(MODEJUMP_ON_CPU);
    return model;
}

shared_ptr<const Model> MonteCarloModeJump::Source::onDeviceOf(ContextImpl& context) const {
    const lock_guard<recursive_mutex> lock(loadingOne);
    const char* device = nullptr;
    check(modejump_device(&device));
    if (string(device) == "cpu")
        return onCPU();
    shared_ptr<const Model> loaded;
    if (!inCudaContext(context, [&] { loaded = load(MODEJUMP_CURRENT_CONTEXT); }))
        loaded = load(0);
    return loaded;
}

void MonteCarloModeJump::Source::setData(const string& bytes) {
    data = bytes;
    model.reset();
    contents.reset();
}

void MonteCarloModeJump::Source::embed() {
    onCPU();
    if (data.empty())
        setData(readFile(file));
}

void MonteCarloModeJump::setModelData(const string& bytes) { generator.setData(bytes); }

void MonteCarloModeJump::setPrecision(Precision value) {
    generator.loading.precision = value;
    generator.model.reset();
}

void MonteCarloModeJump::setDecoding(Decoding value) {
    generator.loading.decoding = value;
    generator.model.reset();
}

void MonteCarloModeJump::setSegment(int tokens) {
    require(tokens >= 1, "a segment must have at least 1 token");
    generator.loading.segment = tokens;
    generator.model.reset();
}

void MonteCarloModeJump::setDecodingTolerance(double value) {
    require(value > 0 && isfinite(value), "the decoding tolerance must be a positive number");
    generator.loading.decodingTolerance = value;
    generator.model.reset();
}

void MonteCarloModeJump::setDecodingPasses(int count) {
    require(count >= 1, "iterative decoding requires at least 1 pass");
    generator.loading.decodingPasses = count;
    generator.model.reset();
}

void MonteCarloModeJump::setScreeningModelFile(const string& path) {
    screen = Source();
    screen.file = path;
}

void MonteCarloModeJump::setScreeningModelData(const string& bytes) { screen.setData(bytes); }

void MonteCarloModeJump::embedModel() {
    generator.embed();
    if (getScreeningModel())
        screen.embed();
}

void MonteCarloModeJump::setFrequency(int steps) {
    require(steps >= 0, "the frequency must not be negative; 0 switches the moves off");
    frequency = steps;
}

void MonteCarloModeJump::setNumProposals(int count) {
    require(count >= 1, "the number of proposals must be at least 1");
    numProposals = count;
}

void MonteCarloModeJump::setDrivenPath(int steps, int relaxation, double stepSize) {
    require(steps >= 0, "the number of driven steps must not be negative; 0 switches the driven path off");
    require(relaxation >= 1 && relaxation <= MAX_RELAXATION && stepSize > 0 && isfinite(stepSize),
            "the relaxations of a driven path must have 1 to " + to_string(MAX_RELAXATION) + " steps of positive size");
    drivenSteps = steps;
    relaxationSteps = relaxation;
    relaxationStepSize = stepSize;
}

void MonteCarloModeJump::setAnnealing(int stages, int moves, double step) {
    require(stages >= 0, "the number of annealing stages must not be negative; 0 switches annealing off");
    require(moves >= 1 && step > 0 && isfinite(step), "annealing must make at least 1 move per stage, with a step of positive size (nm^2)");
    annealingStages = stages;
    annealingMoves = moves;
    annealingStep = step;
}

void MonteCarloModeJump::setLatentWalk(const vector<double>& widths) {
    for (double width : widths)
        require(width > 0 && isfinite(width), "the widths of a latent walk must be positive numbers; none switch it off");
    latentWalk = widths;
}

void MonteCarloModeJump::setRotations(int count) {
    require(count >= 0, "the number of orientations must not be negative; 0 switches averaging off");
    rotations = count;
}

void MonteCarloModeJump::setLeapfrogSteps(int steps) {
    require(steps >= 0, "the number of leapfrog steps must not be negative; 0 means single steps");
    leapfrogSteps = steps;
}

void MonteCarloModeJump::setTemperature(double kelvin) {
    require(kelvin >= 0 && isfinite(kelvin), "the temperature must be finite and not negative; 0 means that of the integrator");
    temperature = kelvin;
}

void MonteCarloModeJump::setDefaultReplica(int value) {
    require(value >= 0 && value < 4096, "the replica must be a number from 0 to 4095");
    defaultReplica = value;
}

shared_ptr<const Model> MonteCarloModeJump::getModel() const { return generator.onCPU(); }

bool MonteCarloModeJump::isScreened() const {
    const bool screened = !screen.file.empty() || !screen.data.empty();
    require(screened || acceptance == Acceptance::Exact,
            "acceptance by a surrogate requires one: set it as the screening model");
    return screened;
}

shared_ptr<const Model> MonteCarloModeJump::getScreeningModel() const { return isScreened() ? screen.onCPU() : nullptr; }

array<shared_ptr<const Model>, 2> MonteCarloModeJump::getModelsFor(ContextImpl& context) const {
    return {generator.onDeviceOf(context), isScreened() ? screen.onDeviceOf(context) : nullptr};
}

ForceImpl* MonteCarloModeJump::createImpl() const { return new MonteCarloModeJumpImpl(*this); }

bool MonteCarloModeJump::attempt(Context& context) const {
    return dynamic_cast<MonteCarloModeJumpImpl&>(getImplInContext(context)).attempt(getContextImpl(context));
}

ModeJumpStatistics MonteCarloModeJump::getStatistics(Context& context) const {
    return dynamic_cast<MonteCarloModeJumpImpl&>(getImplInContext(context)).getStatistics();
}

void MonteCarloModeJump::resetStatistics(Context& context) const {
    dynamic_cast<MonteCarloModeJumpImpl&>(getImplInContext(context)).resetStatistics();
}

vector<double> MonteCarloModeJump::getLogWeights(Context& context) const {
    return dynamic_cast<MonteCarloModeJumpImpl&>(getImplInContext(context)).getLogWeights();
}

void MonteCarloModeJump::updateParametersInContext(Context& context) const {
    dynamic_cast<MonteCarloModeJumpImpl&>(getImplInContext(context)).updateParameters(getContextImpl(context));
}

} // namespace ModeJumpPlugin
