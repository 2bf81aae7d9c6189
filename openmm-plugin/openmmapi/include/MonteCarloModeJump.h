// A Force that adds no energy but moves the System: a trained generator proposes whole configurations of a molecule and a
// Metropolis test on the System's own energy accepts or rejects them, so the canonical ensemble is sampled exactly, unless the
// user asks for acceptance by a surrogate.
#ifndef MODEJUMP_MONTECARLOMODEJUMP_H_
#define MODEJUMP_MONTECARLOMODEJUMP_H_

#include "openmm/Context.h"
#include "openmm/Force.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#define OPENMM_EXPORT_MODEJUMP __attribute__((visibility("default")))

namespace ModeJumpPlugin {

class Model;

/** What the attempts of one Context have come to, since the Context was made (reinitialize() makes it anew) or reset. */
struct OPENMM_EXPORT_MODEJUMP ModeJumpStatistics {
    uint64_t attempts = 0, accepted = 0, rejected = 0;
    /** Attempts that failed before the Metropolis test, by reason. */
    uint64_t outOfSupport = 0, singular = 0, nonFinite = 0, constraint = 0, chirality = 0, wrongMode = 0;
    /** Mean of log w = -u(x) - log q(x) over all proposals. */
    double meanLogWeight = 0;
    /** Kish's effective sample size of all proposals' weights, as a fraction of their number. */
    double effectiveSampleSize = 0;
    /** log alpha of the last attempt, not clipped at 0. */
    double lastLogAcceptance = 0;
    /** Of the log-density that decides acceptances: "exact", or "surrogate" where that was asked for and sampling is biased. */
    std::string likelihood = "exact";
    /**
     * With a screening model that does not decide alone: attempts that it let through to the exact test, and exact log-densities
     * computed there.
     */
    uint64_t screened = 0, exactEvaluations = 0;
    /** Variance of ln c(x')/c(x), c = q_screen/q, over the screened attempts; NaN before the second. */
    double correctionVariance = 0;
    /**
     * Mean over the attempts of the probability with which each was accepted, and its standard error: what the acceptance will come to,
     * known before the first acceptance where that is rare. NaN before the first and the second attempt.
     */
    double expectedAcceptance = 0, expectedAcceptanceError = 0;
    /** Of a driven path: trajectories by which the other particles gave way, and how many of these were accepted. */
    uint64_t relaxations = 0, relaxationsAccepted = 0;
    /** What to do about an acceptance that will hardly ever come, where a part of the System is moved; empty if all is well. */
    std::string advice;
};

/**
 * A CustomIntegrator must have its velocities v on the step, at the time of the positions, where it calls addUpdateContextState(): in a leap-frog
 * scheme of its own jumps bias the averages. Of OpenMM's integrators it is known which store half-step velocities.
 */
class OPENMM_EXPORT_MODEJUMP MonteCarloModeJump : public OpenMM::Force {
public:
    /** Whose log-density decides about a proposal: the generator's own, or the screening model's alone, which is biased. */
    enum class Acceptance { Exact, Surrogate };
    /** Type of the networks; bf16, of a TarFlow: single precision with weights rounded to bfloat16. */
    enum class Precision { F32, F64, BF16 };
    /** How a TarFlow finds its samples: token after token, all together by Jacobi's iteration, or in segments by iteration. */
    enum class Decoding { Sequential, Jacobi, GaussSeidel };
    /** The Context parameter that tells replicas apart that share a Context; it chooses the random numbers. */
    static const std::string& Replica() {
        static const std::string key = "ModeJumpReplica";
        return key;
    }
    /**
     * @param modelFile  path of the model file; it is read when a Context is made, or by getModel()
     * @param frequency  steps between attempts; 0 switches them off
     */
    explicit MonteCarloModeJump(const std::string& modelFile, int frequency = 100);
    const std::string& getModelFile() const { return generator.file; }
    /** Bytes of the model file instead of a path; XML then carries the model with it. */
    void setModelData(const std::string& bytes);
    const std::string& getModelData() const { return generator.data; }
    /** Reads the bytes of the model, and of the screening model, into this object, so that XML carries them with it. */
    void embedModel();
    /**
     * Of the generator's networks; the screening model stays in single precision. BF16, of a TarFlow on the CPU: single samples take about
     * half the time, of another density than that of the file, which is exact in itself. As all options of loading it is for Contexts that
     * are made afterwards, and refused by getModel() where the model has no such option. Default: F32.
     */
    void setPrecision(Precision value);
    Precision getPrecision() const { return generator.loading.precision; }
    /** How a TarFlow finds its samples, whose log-densities are exact in any case. Default: Sequential. */
    void setDecoding(Decoding value);
    Decoding getDecoding() const { return generator.loading.decoding; }
    /** Tokens of a segment of Decoding::GaussSeidel. */
    void setSegment(int tokens);
    int getSegment() const { return generator.loading.segment; }
    /** Of an iteration: largest error of the latent point, at most 1e-3, above what rounding leaves (some 1e-5 in single precision). */
    void setDecodingTolerance(double value);
    double getDecodingTolerance() const { return generator.loading.decodingTolerance; }
    /** Of an iteration: most passes of all tokens, or of a segment; a sample that needs more is found token after token. */
    void setDecodingPasses(int count);
    int getDecodingPasses() const { return generator.loading.decodingPasses; }
    /** Hash of the model file's bytes. If set, another file under the same path is refused. */
    const std::string& getModelHash() const { return generator.hash; }
    void setModelHash(const std::string& hash) { generator.hash = hash; }
    /**
     * A second model of the same atoms, whose log-density is cheap: it screens the proposals, and the generator's exact
     * log-density is computed only for what passes (delayed acceptance). Sampling stays exact whatever this model is, unless
     * setAcceptance() says otherwise. Each of the getNumProposals() proposals of an attempt is then one Metropolis step of the
     * screening. Empty (default): none.
     */
    void setScreeningModelFile(const std::string& path);
    const std::string& getScreeningModelFile() const { return screen.file; }
    void setScreeningModelData(const std::string& bytes);
    const std::string& getScreeningModelData() const { return screen.data; }
    const std::string& getScreeningModelHash() const { return screen.hash; }
    void setScreeningModelHash(const std::string& hash) { screen.hash = hash; }
    /**
     * Surrogate: the screening model's log-density q_s alone decides, and the exact one is never computed. The jumps then leave
     * exp(-u) q/q_s invariant instead of exp(-u), and the statistics say "surrogate". Needs a screening model. Default: Exact.
     */
    void setAcceptance(Acceptance value) { acceptance = value; }
    Acceptance getAcceptance() const { return acceptance; }
    /** Particle particles[i] of the System is atom i of the model. Empty (default): all particles in their order. */
    void setParticles(const std::vector<int>& indices) { particles = indices; }
    const std::vector<int>& getParticles() const { return particles; }
    /** Steps between attempts, counted from the Context's step count; 0 = off. */
    void setFrequency(int steps);
    int getFrequency() const { return frequency; }
    /**
     * Proposals per attempt: 1 = Metropolis, more = iterated sampling-importance resampling, or steps of the screening if there
     * is a screening model. Each costs one energy.
     */
    void setNumProposals(int count);
    int getNumProposals() const { return numProposals; }
    /**
     * Whether other threads draw the proposals of the next attempts while the simulation runs, and evaluate the density of the
     * current configuration beside OpenMM's energies. Results are the same, bit for bit; a core is needed to spare. Default: no.
     */
    void setDrawAhead(bool yes) { drawAhead = yes; }
    bool getDrawAhead() const { return drawAhead; }
    /**
     * 0 (default): random numbers that never come again. A run that shall be repeated or continued needs a seed; runs that begin at one step then
     * jump alike, unless each has another value of the Context parameter Replica().
     */
    void setRandomNumberSeed(int value) { seed = value; }
    int getRandomNumberSeed() const { return seed; }
    /**
     * Pulls the particles to each proposal in `steps` perturbations along the internal coordinates of the model, between which all
     * other particles give way, each time by a trajectory of `relaxation` steps of `stepSize` (ps) with a Metropolis test; the work
     * of the perturbations decides. For a solute in explicit solvent, where a jump at once clashes. Exact whatever the numbers. After
     * an acceptance all particles have moved and get new velocities. `steps` 0 (default): no path, the other particles stay.
     */
    void setDrivenPath(int steps, int relaxation = 20, double stepSize = 0.001);
    int getDrivenSteps() const { return drivenSteps; }
    int getRelaxationSteps() const { return relaxationSteps; }
    double getRelaxationStepSize() const { return relaxationStepSize; }
    /**
     * Carries every proposal to the energies of the System before it is tested, by annealed importance sampling: `stages` evenly spaced
     * temperatures between the model's density and that of the System, `moves` Langevin steps with a Metropolis test at each, of size
     * `step` (nm^2): x - step dE/dx + sqrt(2 step) noise. The present configuration is carried back, and the weights of both paths
     * decide. For a model that is a little off everywhere. Exact whatever the numbers. Each step costs one force evaluation, there and
     * back. `stages` 0 (default): proposals as they come.
     */
    void setAnnealing(int stages, int moves = 1, double step = 2e-6);
    int getAnnealingStages() const { return annealingStages; }
    int getAnnealingMoves() const { return annealingMoves; }
    double getAnnealingStep() const { return annealingStep; }
    /**
     * Instead of whole proposals small steps in the model's latent space, of a width that is chosen anew in every attempt among these;
     * the prior of a latent coordinate has width 1, or is uniform on [0, 1). For a model whose proposals are all rejected. Exact
     * whatever the model. No random numbers are drawn ahead, and the statistics have no weights. Empty (default): no walk.
     */
    void setLatentWalk(const std::vector<double>& widths);
    const std::vector<double>& getLatentWalk() const { return latentWalk; }
    /**
     * Averages the model's density over so many orientations: less variable weights for as many likelihoods, for a model whose density
     * depends on the orientation, such as a TarFlow, in a System whose energy hardly does. Exact whatever the number and the System. A
     * jump turns the molecule at random. 0 (default): none.
     */
    void setRotations(int count);
    int getRotations() const { return rotations; }
    /** Steps of a Hamiltonian trajectory in place of each Langevin step of annealing or each random step of a walk; 0 (default): none. */
    void setLeapfrogSteps(int steps);
    int getLeapfrogSteps() const { return leapfrogSteps; }
    /** In kelvin; 0 (default) takes the integrator's or thermostat's temperature at each attempt. */
    void setTemperature(double kelvin);
    double getTemperature() const { return temperature; }
    /** Initial value of the Context parameter Replica(). */
    void setDefaultReplica(int value);
    int getDefaultReplica() const { return defaultReplica; }
    /**
     * Attempts a move now, whatever the frequency. Returns whether it was accepted. With a seed its random numbers follow from that, the Context
     * parameter Replica(), the step count and the number of attempts made so at that step since the Context was made: after reinitialize() those at
     * the same step come again, so set Replica() to another value, or take a step.
     */
    bool attempt(OpenMM::Context& context) const;
    ModeJumpStatistics getStatistics(OpenMM::Context& context) const;
    void resetStatistics(OpenMM::Context& context) const;
    /** log w of the proposals, newest last; the oldest are dropped when there are too many. */
    std::vector<double> getLogWeights(OpenMM::Context& context) const;
    /** Copies frequency, temperature, number of proposals and how they are made to an existing Context; statistics start anew. */
    void updateParametersInContext(OpenMM::Context& context) const;
    /** The loaded model, on the CPU; throws if there is no such file or it is malformed. One per file, options and process. */
    std::shared_ptr<const Model> getModel() const;
    /** The same for the screening model; null if there is none. */
    std::shared_ptr<const Model> getScreeningModel() const;
    /**
     * The model, and the screening model or null, for moves of one Context: on the CPU those of above, on a card models of their own, in the
     * Context's own CUDA context if that is on the same card. They must not outlive the Context.
     */
    std::array<std::shared_ptr<const Model>, 2> getModelsFor(OpenMM::ContextImpl& context) const;
    bool usesPeriodicBoundaryConditions() const override { return false; }

protected:
    OpenMM::ForceImpl* createImpl() const override;

private:
    /** How a model is loaded, with the defaults of modejump_model_options. */
    struct Loading {
        Precision precision = Precision::F32;
        Decoding decoding = Decoding::Sequential;
        int segment, decodingPasses;
        double decodingTolerance;
        Loading();
    };
    /** A model file: path, bytes if they are carried along, how it is loaded, hash once it is known. */
    struct Source {
        std::string file, data;
        Loading loading;
        mutable std::string hash;
        mutable std::shared_ptr<const Model> model;
        std::shared_ptr<const Model> onCPU() const;
        std::shared_ptr<const Model> onDeviceOf(OpenMM::ContextImpl& context) const;
        std::shared_ptr<const Model> load(uint32_t flags) const;
        void setData(const std::string& bytes);
        void embed();
    };
    bool isScreened() const;
    Source generator, screen;
    Acceptance acceptance = Acceptance::Exact;
    bool drawAhead = false;
    std::vector<int> particles;
    int frequency, numProposals, seed, defaultReplica;
    double temperature;
    int drivenSteps = 0, relaxationSteps = 20;
    double relaxationStepSize = 0.001;
    int annealingStages = 0, annealingMoves = 1, leapfrogSteps = 0, rotations = 0;
    double annealingStep = 2e-6;
    std::vector<double> latentWalk;
};

} // namespace ModeJumpPlugin

#endif
