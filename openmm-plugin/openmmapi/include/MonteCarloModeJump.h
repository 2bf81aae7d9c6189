// A Force that adds no energy but moves the System: a trained generator proposes whole configurations of a molecule, and a
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

/** Statistics of the attempts in one Context since it was made (reinitialize() makes it anew) or they were reset. */
struct OPENMM_EXPORT_MODEJUMP ModeJumpStatistics {
    uint64_t attempts = 0, accepted = 0, rejected = 0;
    /** Attempts that failed before the Metropolis test, by reason. */
    uint64_t outOfSupport = 0, singular = 0, nonFinite = 0, constraint = 0, chirality = 0, wrongMode = 0;
    /** Mean of log w = -u(x) - log q(x) over the usable proposals; NaN without any, and if only a part of the System is moved. */
    double meanLogWeight = 0;
    /** Kish's effective sample size of the weights of all proposals, as a fraction of their number. */
    double effectiveSampleSize = 0;
    /** log alpha of the last attempt, not clipped at 0. */
    double lastLogAcceptance = 0;
    /** Kind of the log-density that decides acceptances: "exact", or "surrogate" if that was asked for and sampling is biased. */
    std::string likelihood = "exact";
    /**
     * With a screening model that does not decide alone: attempts that passed it to the exact test, and exact log-densities computed there.
     */
    uint64_t screened = 0, exactEvaluations = 0;
    /** Variance of ln c(x')/c(x), c = q_screen/q, over the screened attempts; NaN before the second. */
    double correctionVariance = 0;
    /**
     * Mean acceptance probability over the attempts and its standard error: an estimate of the long-run acceptance, available before the
     * first acceptance if that is rare. NaN before the first attempt and before the second, respectively.
     */
    double expectedAcceptance = 0, expectedAcceptanceError = 0;
    /** For a driven path: trajectories in which the other particles relaxed, and how many of these were accepted. */
    uint64_t relaxations = 0, relaxationsAccepted = 0;
    /** Advice on a very low acceptance, if only a part of the System is moved; empty if all is well. */
    std::string advice;
};

/**
 * A CustomIntegrator must have its velocities v on-step, at the time of the positions, where it calls addUpdateContextState(): in a
 * leap-frog scheme of its own, jumps bias the averages. For OpenMM's own integrators it is known which of them store half-step velocities.
 */
class OPENMM_EXPORT_MODEJUMP MonteCarloModeJump : public OpenMM::Force {
public:
    /** Log-density that decides on a proposal: that of the generator, or that of the screening model alone, which is biased. */
    enum class Acceptance { Exact, Surrogate };
    /** Precision of the networks; BF16, for a TarFlow: single precision with weights rounded to bfloat16. */
    enum class Precision { F32, F64, BF16 };
    /** How a TarFlow computes its samples: token after token, all together by Jacobi iteration, or in segments by iteration. */
    enum class Decoding { Sequential, Jacobi, GaussSeidel };
    /** Context parameter that distinguishes replicas which share a Context; it selects the random numbers. */
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
    /** Sets the bytes of the model file instead of its path; XML then contains the model. */
    void setModelData(const std::string& bytes);
    const std::string& getModelData() const { return generator.data; }
    /** Reads the bytes of the model, and of the screening model, into this object, so that XML contains them. */
    void embedModel();
    /**
     * Precision of the generator's networks; the screening model stays in single precision. BF16, for a TarFlow on the CPU: single samples
     * take about half the time, with a density that differs from that of the file and is exact in itself. Like all options of loading, it
     * applies to Contexts made afterwards, and getModel() refuses it for a model that has no such option. Default: F32.
     */
    void setPrecision(Precision value);
    Precision getPrecision() const { return generator.loading.precision; }
    /** How a TarFlow computes its samples, whose log-densities are exact in any case. Default: Sequential. */
    void setDecoding(Decoding value);
    Decoding getDecoding() const { return generator.loading.decoding; }
    /** Tokens per segment for Decoding::GaussSeidel. */
    void setSegment(int tokens);
    int getSegment() const { return generator.loading.segment; }
    /** Iterative decoding: largest error of the latent point, at most 1e-3, beyond rounding (some 1e-5 in single precision). */
    void setDecodingTolerance(double value);
    double getDecodingTolerance() const { return generator.loading.decodingTolerance; }
    /**
     * Iterative decoding: maximum number of passes over all tokens, or over a segment; a sample that needs more is decoded token after
     * token.
     */
    void setDecodingPasses(int count);
    int getDecodingPasses() const { return generator.loading.decodingPasses; }
    /** Hash of the model file's bytes. If set, another file under the same path is refused. */
    const std::string& getModelHash() const { return generator.hash; }
    void setModelHash(const std::string& hash) { generator.hash = hash; }
    /**
     * A second model of the same atoms with a cheap log-density: it screens the proposals, and the exact log-density of the generator is
     * computed only for those that pass (delayed acceptance). Sampling stays exact whatever this model, unless setAcceptance() says
     * otherwise. Each of the getNumProposals() proposals of an attempt is then one Metropolis step of the screening. Empty (default): none.
     */
    void setScreeningModelFile(const std::string& path);
    const std::string& getScreeningModelFile() const { return screen.file; }
    void setScreeningModelData(const std::string& bytes);
    const std::string& getScreeningModelData() const { return screen.data; }
    const std::string& getScreeningModelHash() const { return screen.hash; }
    void setScreeningModelHash(const std::string& hash) { screen.hash = hash; }
    /**
     * Surrogate: the log-density q_s of the screening model alone decides, and the exact one is never computed. The jumps then leave
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
     * Proposals per attempt: 1 = Metropolis; more = iterated sampling-importance resampling or, with a screening model, Metropolis steps of
     * the screening or, with annealing, one Metropolis test after the other. Each costs one energy.
     */
    void setNumProposals(int count);
    int getNumProposals() const { return numProposals; }
    /**
     * Whether other threads draw the proposals of the next attempts while the simulation runs, and evaluate the density of the current
     * configuration while OpenMM computes energies. Results are the same, bit for bit; a spare core is needed. Default: no.
     */
    void setDrawAhead(bool yes) { drawAhead = yes; }
    bool getDrawAhead() const { return drawAhead; }
    /**
     * 0 (default): random numbers that are never repeated. A run that is to be repeated or continued needs a seed; runs that start at the
     * same step then make the same jumps, unless each has a different value of the Context parameter Replica().
     */
    void setRandomNumberSeed(int value) { seed = value; }
    int getRandomNumberSeed() const { return seed; }
    /**
     * Pulls the particles to each proposal in `steps` perturbations along the internal coordinates of the model, between which all other
     * particles relax, each time in a trajectory of `relaxation` steps of `stepSize` (ps) with a Metropolis test; the work of the
     * perturbations decides. For a solute in explicit solvent, where an instantaneous jump clashes. Exact whatever the numbers. After an
     * acceptance all particles have moved and get new velocities. `steps` 0 (default): no path, the other particles stay.
     */
    void setDrivenPath(int steps, int relaxation = 20, double stepSize = 0.001);
    int getDrivenSteps() const { return drivenSteps; }
    int getRelaxationSteps() const { return relaxationSteps; }
    double getRelaxationStepSize() const { return relaxationStepSize; }
    /**
     * Carries every proposal to the energies of the System before it is tested, by annealed importance sampling: `stages` evenly spaced
     * temperatures between the density of the model and that of the System, with `moves` Langevin steps at each, with a Metropolis test, of
     * size `step` (nm^2): x - step dE/dx + sqrt(2 step) noise. The current configuration is carried back, and the weights of both paths
     * decide. For a model that is slightly wrong everywhere. Exact whatever the numbers. Each step costs one force evaluation on each of
     * the two paths. `stages` 0 (default): proposals are tested as they are.
     */
    void setAnnealing(int stages, int moves = 1, double step = 2e-6);
    int getAnnealingStages() const { return annealingStages; }
    int getAnnealingMoves() const { return annealingMoves; }
    double getAnnealingStep() const { return annealingStep; }
    /**
     * Makes small steps in the latent space of the model instead of whole proposals, of one of these widths, chosen at random in every
     * attempt; the prior of a latent coordinate has width 1, or is uniform on [0, 1). For a model whose proposals are all rejected. Exact
     * whatever the model. No random numbers are drawn ahead, and the statistics have no weights. Empty (default): no walk.
     */
    void setLatentWalk(const std::vector<double>& widths);
    const std::vector<double>& getLatentWalk() const { return latentWalk; }
    /**
     * Averages the density of the model over this many orientations, for a model whose density depends on the orientation, such as a
     * TarFlow, in a System whose energy hardly does: the weights vary less, at the cost of as many likelihoods. Exact whatever the number
     * and the System. A jump turns the molecule at random. 0 (default): none.
     */
    void setRotations(int count);
    int getRotations() const { return rotations; }
    /**
     * Leapfrog steps per Hamiltonian trajectory, which replaces each Langevin step of annealing or each random step of a walk; 0 (default):
     * none.
     */
    void setLeapfrogSteps(int steps);
    int getLeapfrogSteps() const { return leapfrogSteps; }
    /** Temperature in kelvin; 0 (default): that of the integrator or thermostat at each attempt. */
    void setTemperature(double kelvin);
    double getTemperature() const { return temperature; }
    /** Initial value of the Context parameter Replica(). */
    void setDefaultReplica(int value);
    int getDefaultReplica() const { return defaultReplica; }
    /**
     * Attempts a move now, whatever the frequency. Returns whether it was accepted. With a seed, its random numbers follow from that, the
     * Context parameter Replica(), the step count and the number of attempts already made by this method since it was last called at
     * another step. They are repeated if the step count is set back; after reinitialize(), which makes the Context anew, so are those at
     * the same step: set Replica() to another value, or take a step.
     */
    bool attempt(OpenMM::Context& context) const;
    ModeJumpStatistics getStatistics(OpenMM::Context& context) const;
    void resetStatistics(OpenMM::Context& context) const;
    /** Log-weights of the proposals, oldest first; the oldest are dropped when there are too many. */
    std::vector<double> getLogWeights(OpenMM::Context& context) const;
    /**
     * Copies frequency, temperature, number of proposals and the options of how they are made to an existing Context; its statistics are
     * reset.
     */
    void updateParametersInContext(OpenMM::Context& context) const;
    /** Loads the model, on the CPU; throws if there is no such file or it is malformed. One per file, options and process. */
    std::shared_ptr<const Model> getModel() const;
    /** Loads the screening model, likewise; null if there is none. */
    std::shared_ptr<const Model> getScreeningModel() const;
    /**
     * The model, and the screening model or null, for moves of one Context: on the CPU the shared ones; on a GPU separate models, in the
     * CUDA context of the Context if that is on the same GPU. They must not outlive the Context.
     */
    std::array<std::shared_ptr<const Model>, 2> getModelsFor(OpenMM::ContextImpl& context) const;
    bool usesPeriodicBoundaryConditions() const override { return false; }

protected:
    OpenMM::ForceImpl* createImpl() const override;

private:
    /** Options of loading a model, with the defaults of modejump_model_options. */
    struct Loading {
        Precision precision = Precision::F32;
        Decoding decoding = Decoding::Sequential;
        int segment, decodingPasses;
        double decodingTolerance;
        Loading();
    };
    /** A model file: path, bytes if they are embedded, options of loading, and the hash once it is known. */
    struct Source {
        std::string file, data;
        Loading loading;
        mutable std::string hash;
        mutable std::shared_ptr<const Model> model;
        /** The file as first read for a GPU, on which each Context has a model of its own. */
        mutable std::shared_ptr<const std::string> contents;
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
