// What stays of a System while a solute is held fast: the particles that give way on the path of a driven jump.
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
 * All particles of a Context in another one, linked to it, where those of the solute have no mass and so stay where they are put.
 * Constraints within the solute are left out there, since the path keeps its bonds; barostats and thermostats do nothing, since the
 * integrator does not call them. The outer Context is not touched, so a rejected jump has nothing to undo.
 */
class Solvent {
public:
    /**
     * @param system     that of the outer Context, without Forces that jump
     * @param solute     particles that are held fast
     * @param steps      of a trajectory of Hamiltonian Monte Carlo
     * @param stepSize   of these, ps
     */
    Solvent(OpenMM::ContextImpl& outer, std::unique_ptr<OpenMM::System> system, const std::vector<int>& solute, int steps,
            double stepSize);
    ~Solvent();

    /** Puts the particles, the box and the parameters of forces where they are outside, for one attempt. */
    void begin(OpenMM::ContextImpl& outer, const std::vector<OpenMM::Vec3>& positions, double kT, const VelocityStream& stream);

    /** kJ/mol, with the solute at x. */
    double energyAt(const double* x);

    /**
     * Moves the solvent about the solute at x by a trajectory from fresh velocities, with a Metropolis test: reversible for
     * exp(-U(x, .)/kT) whatever the step (Duane et al., Phys. Lett. B 195, 216 (1987)). Returns the energy there, kJ/mol.
     */
    double relax(const double* x, uint64_t stage);

    const std::vector<OpenMM::Vec3>& getPositions() const { return positions; }

    /** What OpenMM said where it ended a trajectory for another reason than large steps; empty if it never did. */
    std::string failure;

    /** Trajectories since the last reset, and how many of these were accepted. */
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
    /** Where a trajectory ends. */
    std::vector<OpenMM::Vec3> endPositions;
    double endEnergy = 0;
};

} // namespace ModeJumpPlugin

#endif
