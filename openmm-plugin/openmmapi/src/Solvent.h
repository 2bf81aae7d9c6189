// The rest of a System while a solute is held fixed: the particles that relax on the path of a driven jump.
#ifndef MODEJUMP_SOLVENT_H_
#define MODEJUMP_SOLVENT_H_

#include "Philox.h"
#include "openmm/Context.h"
#include "openmm/CustomIntegrator.h"
#include "openmm/System.h"
#include "openmm/Vec3.h"

#include <memory>
#include <string>
#include <vector>

namespace ModeJumpPlugin {

/**
 * All particles of a Context in an inner one, linked to it, in which those of the solute have no mass and so stay where they are put.
 * Constraints within the solute are omitted there, since the path keeps its bonds; barostats and thermostats do nothing, since the
 * integrator does not call them. The outer Context is not touched, so a rejected jump has nothing to undo.
 */
class Solvent {
public:
    /**
     * @param system     System of the outer Context, without Forces that make jumps
     * @param solute     particles that are held fixed
     * @param steps      steps per trajectory of Hamiltonian Monte Carlo
     * @param stepSize   time step, ps
     */
    Solvent(OpenMM::ContextImpl& outer, std::unique_ptr<OpenMM::System> system, const std::vector<int>& solute, int steps,
            double stepSize);
    ~Solvent();

    /** Copies positions, box and force parameters from the outer Context, for one attempt. */
    void begin(OpenMM::ContextImpl& outer, const std::vector<OpenMM::Vec3>& positions, double kT, const VelocityStream& stream);

    /** Potential energy with the solute at x, kJ/mol. */
    double energyAt(const double* x);

    /**
     * Moves the solvent around the solute at x by a trajectory from fresh velocities, with a Metropolis test: reversible for exp(-U(x,
     * .)/kT) whatever the step (Duane et al., Phys. Lett. B 195, 216 (1987)). Returns the resulting energy, kJ/mol.
     */
    double relax(const double* x, uint64_t stage);

    const std::vector<OpenMM::Vec3>& getPositions() const { return positions; }

    /** Message of OpenMM if it ended a trajectory for a reason other than large steps; empty if it never did. */
    std::string failure;

    /** Number of trajectories since the last reset, and how many of these were accepted. */
    uint64_t trajectories = 0, accepted = 0;

private:
    void place(const double* x);
    double kineticEnergy() const;
    void drawVelocities(uint64_t stage);
    bool runTrajectory();

    OpenMM::CustomIntegrator integrator;
    std::unique_ptr<OpenMM::System> inner;
    std::unique_ptr<OpenMM::Context> context;
    std::vector<int> solute;
    std::vector<double> masses;
    int steps;
    double kT = 0, energy = 0;
    /** Whether `energy` is that of `positions`. */
    bool known = false;
    VelocityStream stream;
    std::vector<OpenMM::Vec3> positions, velocities;
    /** Positions at the end of a trajectory. */
    std::vector<OpenMM::Vec3> endPositions;
    double endEnergy = 0;
};

} // namespace ModeJumpPlugin

#endif
