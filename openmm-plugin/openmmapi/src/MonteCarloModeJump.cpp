#include "MonteCarloModeJump.h"

#include "Model.h"
#include "internal/MonteCarloModeJumpImpl.h"
#include "openmm/OpenMMException.h"

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
    : modelFile(modelFile), numProposals(1), seed(0), defaultReplica(0), temperature(0) {
    setFrequency(frequency);
    setName("MonteCarloModeJump");
}

void MonteCarloModeJump::setModelData(const string& bytes) {
    modelData = bytes;
    model.reset();
}

void MonteCarloModeJump::embedModel() {
    getModel();
    if (modelData.empty())
        setModelData(readFile(modelFile));
}

void MonteCarloModeJump::setFrequency(int steps) {
    require(steps >= 0, "the frequency cannot be negative; 0 switches the moves off");
    frequency = steps;
}

void MonteCarloModeJump::setNumProposals(int count) {
    require(count >= 1, "at least one proposal is needed for an attempt");
    numProposals = count;
}

void MonteCarloModeJump::setTemperature(double kelvin) {
    require(kelvin >= 0, "the temperature cannot be negative; 0 takes it from the integrator");
    temperature = kelvin;
}

void MonteCarloModeJump::setDefaultReplica(int value) {
    require(value >= 0 && value < 4096, "a replica is a number from 0 to 4095");
    defaultReplica = value;
}

shared_ptr<const Model> MonteCarloModeJump::getModel() const {
    if (!model) {
        auto loaded = modelData.empty() ? Model::fromFile(modelFile) : Model::fromBytes(modelData, modelFile);
        require(modelHash.empty() || modelHash == loaded->hash,
                "the model file " + modelFile + " has the hash " + loaded->hash + ", not " + modelHash +
                    " as when this was set up; restore that file, or set up the move anew");
        modelHash = loaded->hash;
        model = loaded;
    }
    return model;
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
