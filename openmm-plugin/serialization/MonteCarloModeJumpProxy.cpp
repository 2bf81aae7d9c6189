#include "MonteCarloModeJumpProxy.h"

#include "Base64.h"
#include "MonteCarloModeJump.h"
#include "Names.h"
#include "openmm/OpenMMException.h"
#include "openmm/Platform.h"
#include "openmm/serialization/SerializationNode.h"

#include <iostream>
#include <memory>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

MonteCarloModeJumpProxy::MonteCarloModeJumpProxy() : SerializationProxy("MonteCarloModeJump") {}

void MonteCarloModeJumpProxy::serialize(const void* object, SerializationNode& node) const {
    const auto& force = *static_cast<const MonteCarloModeJump*>(object);
    // A Force without a screening model stays readable by a plugin that does not know about them, and likewise for later options.
    const bool screened = !force.getScreeningModelFile().empty() || !force.getScreeningModelData().empty();
    const bool bySurrogate = force.getAcceptance() == MonteCarloModeJump::Acceptance::Surrogate;
    const bool driven = force.getDrivenSteps() > 0;
    const bool annealed = force.getAnnealingStages() > 0, walk = !force.getLatentWalk().empty();
    const bool otherType = force.getPrecision() != MonteCarloModeJump::Precision::F32;
    const bool iterated = force.getDecoding() != MonteCarloModeJump::Decoding::Sequential;
    const bool averaged = force.getRotations() > 0;
    // Settings of a feature that is off change no result, so a plugin that does not know them may ignore them.
    const MonteCarloModeJump defaults("");
    node.setIntProperty("version", otherType || iterated          ? 6
                                   : annealed || walk || averaged ? 5
                                   : driven                       ? 4
                                   : bySurrogate                  ? 3
                                   : screened                     ? 2
                                                                  : 1);
    if (bySurrogate)
        node.setStringProperty("acceptance", "surrogate");
    node.setIntProperty("forceGroup", force.getForceGroup());
    node.setStringProperty("name", force.getName());
    try {
        force.getModel(); // sets the hash
        force.getScreeningModel();
    } catch (const OpenMMException&) {
        // A System whose model is not available here can still be written; a Context of it will report the problem.
    }
    node.setStringProperty("model", force.getModelFile());
    node.setStringProperty("hash", force.getModelHash());
    if (!force.getModelData().empty())
        node.setStringProperty("data", toBase64(force.getModelData()));
    if (screened) {
        node.setStringProperty("screen", force.getScreeningModelFile());
        node.setStringProperty("screenHash", force.getScreeningModelHash());
        if (!force.getScreeningModelData().empty())
            node.setStringProperty("screenData", toBase64(force.getScreeningModelData()));
    }
    if (otherType)
        node.setStringProperty("precision", nameOf(PRECISIONS, force.getPrecision()));
    if (iterated)
        node.setStringProperty("decoding", nameOf(DECODINGS, force.getDecoding()));
    if (iterated || force.getSegment() != defaults.getSegment())
        node.setIntProperty("segment", force.getSegment());
    if (iterated || force.getDecodingTolerance() != defaults.getDecodingTolerance())
        node.setDoubleProperty("decodingTolerance", force.getDecodingTolerance());
    if (iterated || force.getDecodingPasses() != defaults.getDecodingPasses())
        node.setIntProperty("decodingPasses", force.getDecodingPasses());
    node.setIntProperty("frequency", force.getFrequency());
    node.setIntProperty("proposals", force.getNumProposals());
    node.setIntProperty("randomSeed", force.getRandomNumberSeed());
    node.setIntProperty("replica", force.getDefaultReplica());
    node.setDoubleProperty("temperature", force.getTemperature());
    if (force.getDrawAhead()) // changes no result, so a plugin that does not know it may ignore it
        node.setBoolProperty("drawAhead", true);
    if (driven)
        node.setIntProperty("drivenSteps", force.getDrivenSteps());
    if (driven || force.getRelaxationSteps() != defaults.getRelaxationSteps())
        node.setIntProperty("relaxationSteps", force.getRelaxationSteps());
    if (driven || force.getRelaxationStepSize() != defaults.getRelaxationStepSize())
        node.setDoubleProperty("relaxationStepSize", force.getRelaxationStepSize());
    if (annealed)
        node.setIntProperty("annealingStages", force.getAnnealingStages());
    if (annealed || force.getAnnealingMoves() != defaults.getAnnealingMoves())
        node.setIntProperty("annealingMoves", force.getAnnealingMoves());
    if (annealed || force.getAnnealingStep() != defaults.getAnnealingStep())
        node.setDoubleProperty("annealingStep", force.getAnnealingStep());
    if (annealed || walk || force.getLeapfrogSteps() > 0)
        node.setIntProperty("leapfrogSteps", force.getLeapfrogSteps());
    if (averaged)
        node.setIntProperty("rotations", force.getRotations());
    if (walk) {
        SerializationNode& widths = node.createChildNode("LatentWalk");
        for (double width : force.getLatentWalk())
            widths.createChildNode("Step").setDoubleProperty("width", width);
    }
    SerializationNode& particles = node.createChildNode("Particles");
    for (int particle : force.getParticles())
        particles.createChildNode("Particle").setIntProperty("index", particle);
}

void* MonteCarloModeJumpProxy::deserialize(const SerializationNode& node) const {
    const int version = node.getIntProperty("version");
    if (version < 1 || version > 6)
        throw OpenMMException("MonteCarloModeJump: the XML has version " + to_string(version) +
                              ", but this plugin reads versions 1 to 6; install the modejump that wrote it");
    auto force = make_unique<MonteCarloModeJump>(node.getStringProperty("model"), node.getIntProperty("frequency", 100));
    force->setForceGroup(node.getIntProperty("forceGroup", 0));
    force->setName(node.getStringProperty("name", force->getName()));
    force->setModelHash(node.getStringProperty("hash", ""));
    force->setModelData(fromBase64(node.getStringProperty("data", "")));
    force->setScreeningModelFile(node.getStringProperty("screen", ""));
    force->setScreeningModelHash(node.getStringProperty("screenHash", ""));
    force->setScreeningModelData(fromBase64(node.getStringProperty("screenData", "")));
    using Jump = MonteCarloModeJump;
    force->setAcceptance(named<Jump::Acceptance>(ACCEPTANCES, node.getStringProperty("acceptance", "exact"), "acceptance"));
    force->setPrecision(named<Jump::Precision>(PRECISIONS, node.getStringProperty("precision", "f32"), "precision"));
    force->setDecoding(named<Jump::Decoding>(DECODINGS, node.getStringProperty("decoding", "sequential"), "decoding"));
    force->setSegment(node.getIntProperty("segment", force->getSegment()));
    force->setDecodingTolerance(node.getDoubleProperty("decodingTolerance", force->getDecodingTolerance()));
    force->setDecodingPasses(node.getIntProperty("decodingPasses", force->getDecodingPasses()));
    force->setNumProposals(node.getIntProperty("proposals", 1));
    force->setDrawAhead(node.getBoolProperty("drawAhead", false));
    force->setRandomNumberSeed(node.getIntProperty("randomSeed", 0));
    force->setDefaultReplica(node.getIntProperty("replica", 0));
    force->setTemperature(node.getDoubleProperty("temperature", 0));
    force->setDrivenPath(node.getIntProperty("drivenSteps", 0), node.getIntProperty("relaxationSteps", 20),
                         node.getDoubleProperty("relaxationStepSize", 0.001));
    force->setAnnealing(node.getIntProperty("annealingStages", 0), node.getIntProperty("annealingMoves", 1),
                        node.getDoubleProperty("annealingStep", 2e-6));
    force->setRotations(node.getIntProperty("rotations", 0));
    force->setLeapfrogSteps(node.getIntProperty("leapfrogSteps", 0));
    vector<int> particles;
    vector<double> widths;
    for (const SerializationNode& child : node.getChildren()) {
        if (child.getName() == "Particles")
            for (const SerializationNode& particle : child.getChildren())
                particles.push_back(particle.getIntProperty("index"));
        if (child.getName() == "LatentWalk")
            for (const SerializationNode& step : child.getChildren())
                widths.push_back(step.getDoubleProperty("width"));
    }
    force->setParticles(particles);
    force->setLatentWalk(widths);
    return force.release();
}

} // namespace ModeJumpPlugin

// Runs when the library is loaded, by OpenMM as a plugin, the linker of a C++ program, or ctypes.
static void __attribute__((constructor)) registerProxies() {
    using namespace ModeJumpPlugin;
    SerializationProxy::registerProxy(typeid(MonteCarloModeJump), new MonteCarloModeJumpProxy());
    const string version = OpenMM::Platform::getOpenMMVersion();
    if ((version + ".").rfind(MODEJUMP_OPENMM_VERSION ".", 0) != 0)
        cerr << "MonteCarloModeJump was built for OpenMM " << MODEJUMP_OPENMM_VERSION << " but runs with " << version
             << ", whose C++ interface may differ; reinstall modejump with this OpenMM" << endl;
}

// OpenMM calls these in every plugin; this one has no platforms and no kernels.
extern "C" OPENMM_EXPORT_MODEJUMP void registerPlatforms() {}
extern "C" OPENMM_EXPORT_MODEJUMP void registerKernelFactories() {}
