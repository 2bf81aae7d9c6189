#ifndef MODEJUMP_MONTECARLOMODEJUMPIMPL_H_
#define MODEJUMP_MONTECARLOMODEJUMPIMPL_H_

#include "MonteCarloModeJump.h"
#include "Warnings.h"
#include "openmm/Vec3.h"
#include "openmm/internal/ForceImpl.h"

#include <limits>
#include <map>

struct modejump_move;

namespace ModeJumpPlugin {

class MovedParticles;
class Solvent;
class VelocityStream;

/** The moves of one Context. They need no kernels, so one library serves every platform. */
class MonteCarloModeJumpImpl : public OpenMM::ForceImpl {
public:
    explicit MonteCarloModeJumpImpl(const MonteCarloModeJump& owner);
    ~MonteCarloModeJumpImpl() override;
    void initialize(OpenMM::ContextImpl& context) override;
    const OpenMM::Force& getOwner() const override { return owner; }
    void updateContextState(OpenMM::ContextImpl& context, bool& forcesInvalid) override;
    double calcForcesAndEnergy(OpenMM::ContextImpl&, bool, bool, int) override { return 0.0; }
    std::map<std::string, double> getDefaultParameters() override;
    std::vector<std::string> getKernelNames() override { return {}; }
    bool attempt(OpenMM::ContextImpl& context);
    ModeJumpStatistics getStatistics() const;
    void resetStatistics();
    std::vector<double> getLogWeights() const;
    void updateParameters(OpenMM::ContextImpl& context);

private:
    struct Trial;
    struct FreeMove {
        void operator()(modejump_move* move) const;
    };
    using MoveHandle = std::unique_ptr<modejump_move, FreeMove>;
    void prepare(OpenMM::ContextImpl& context);
    bool attempt(OpenMM::ContextImpl& context, uint64_t step, uint64_t replica);
    uint64_t nextNumber();
    void takeOver(OpenMM::ContextImpl& context, const VelocityStream& stream, double kT);
    void takeOverDriven(OpenMM::ContextImpl& context, const VelocityStream& stream, double kT);
    void createMove(OpenMM::ContextImpl& context);
    modejump_move* newMoveOf(bool driven) const;
    void checkMethod() const;
    double beginDriven(OpenMM::ContextImpl& context, double energy, double kT, const VelocityStream& stream);
    void warnOfAcceptance(const double* box);
    double findThermalEnergy(OpenMM::ContextImpl& context);
    uint64_t findReplica(OpenMM::ContextImpl& context) const;

    const MonteCarloModeJump& owner;
    std::shared_ptr<const Model> model, screen;
    MoveHandle move;
    /** Solvent of a driven path; null without one. */
    std::unique_ptr<Solvent> solvent;
    /** Particles moved by the model, and all particles with a mass. */
    std::vector<int> particles, massive;
    int frequency = 0;
    double temperature = 0, lastLogAcceptance = 0;
    uint64_t seed = 0;
    bool seedGiven = false, allMoved = false, movesConstrained = false, stepped = false;
    Warnings warnings;
    /**
     * Attempts of one replica number, with a given seed: the step of the latest attempt, that of the latest explicit one, and the number of
     * explicit ones at that step, so that no two attempts use the same random numbers. reinitialize() forgets this.
     */
    struct Latest {
        long long step = std::numeric_limits<long long>::min(), explicitStep = std::numeric_limits<long long>::min();
        uint64_t explicitCount = 0;
    };
    std::map<uint64_t, Latest> latest;
    /** Replaces the step count if no seed was given. */
    uint64_t number = 0;
    /** The moved particles, wherever the platform keeps them; made at the first attempt. */
    std::unique_ptr<MovedParticles> moved;
    /** Coordinates of the moved particles: the current ones and, after an acceptance, the new ones. */
    std::vector<double> x;
};

} // namespace ModeJumpPlugin

#endif
