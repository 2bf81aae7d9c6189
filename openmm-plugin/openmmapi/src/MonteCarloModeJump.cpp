#include "MonteCarloModeJump.h"

#include "Model.h"
#include "internal/MonteCarloModeJumpImpl.h"
#include "openmm/OpenMMException.h"

#include <cmath>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {
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

shared_ptr<const Model> MonteCarloModeJump::Source::load() const {
    if (!model) {
        auto loaded = data.empty() ? Model::fromFile(file) : Model::fromBytes(data, file);
        require(hash.empty() || hash == loaded->hash,
                "the model file " + file + " has the hash " + loaded->hash + ", not " + hash +
                    " as when this was set up; restore that file, or set up the move anew");
        hash = loaded->hash;
        model = loaded;
    }
    return model;
}

void MonteCarloModeJump::Source::setData(const string& bytes) {
    data = bytes;
    model.reset();
}

void MonteCarloModeJump::Source::embed() {
    load();
    if (data.empty())
        setData(readFile(file));
}

void MonteCarloModeJump::setModelData(const string& bytes) { generator.setData(bytes); }

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
    require(steps >= 0, "the frequency cannot be negative; 0 switches the moves off");
    frequency = steps;
}

void MonteCarloModeJump::setNumProposals(int count) {
    require(count >= 1, "at least one proposal is needed for an attempt");
    numProposals = count;
}

void MonteCarloModeJump::setDrivenPath(int steps, int relaxation, double stepSize) {
    require(steps >= 0, "a driven path has 1 step or more; 0 switches it off");
    require(relaxation >= 1 && stepSize > 0 && isfinite(stepSize),
            "the other particles give way by trajectories of at least 1 step of positive size");
    drivenSteps = steps;
    relaxationSteps = relaxation;
    relaxationStepSize = stepSize;
}

void MonteCarloModeJump::setAnnealing(int stages, int moves, double step) {
    require(stages >= 0, "annealing has 1 stage or more; 0 switches it off");
    require(moves >= 1 && step > 0 && isfinite(step), "annealing makes at least 1 move a stage, with a step of positive size (nm^2)");
    annealingStages = stages;
    annealingMoves = moves;
    annealingStep = step;
}

void MonteCarloModeJump::setLatentWalk(const vector<double>& widths) {
    for (double width : widths)
        require(width > 0 && isfinite(width), "the widths of a latent walk are positive numbers; without any there is no walk");
    latentWalk = widths;
}

void MonteCarloModeJump::setRotations(int count) {
    require(count >= 0, "the density is averaged over 1 orientation or more; 0 stands for no average");
    rotations = count;
}

void MonteCarloModeJump::setLeapfrogSteps(int steps) {
    require(steps >= 0, "a trajectory has 1 leapfrog step or more; 0 stands for single steps without one");
    leapfrogSteps = steps;
}

void MonteCarloModeJump::setTemperature(double kelvin) {
    require(kelvin >= 0, "the temperature cannot be negative; 0 takes it from the integrator");
    temperature = kelvin;
}

void MonteCarloModeJump::setDefaultReplica(int value) {
    require(value >= 0 && value < 4096, "a replica is a number from 0 to 4095");
    defaultReplica = value;
}

shared_ptr<const Model> MonteCarloModeJump::getModel() const { return generator.load(); }

shared_ptr<const Model> MonteCarloModeJump::getScreeningModel() const {
    const bool none = screen.file.empty() && screen.data.empty();
    require(!none || acceptance == Acceptance::Exact,
            "acceptance by a surrogate needs one: set it as the screening model");
    return none ? nullptr : screen.load();
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
