/* The parts of GROMACS that a jump needs, and the simulations that cannot have jumps.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_SIMULATION_H
#define MODEJUMP_SIMULATION_H

#include "gromacs.h"

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>

namespace modejump
{

/// Parts of a simulation that the moves need. All references outlive the hook.
struct Simulation
{
    std::FILE*           log;
    const t_commrec&     commrec;
    const gmx_multisim_t* multisim;
    const t_inputrec&    input;
    const gmx_mtop_t&    topology;
    /// On the main rank the state of all atoms, with domain decomposition filled by dd_collect_state; elsewhere nothing.
    t_state* globalState;
    t_state* state;
    /// Interactions that this rank computes.
    const gmx_localtop_t& localTopology;
    gmx::ForceBuffers* forces;
    gmx_enerdata_t& energies;
    bool     isContinuation;
    bool     replicaExchange;
    bool     essentialDynamics;
    bool     shells;
    bool     membrane;
    bool     forceProviders;
    bool     gpu;
    bool     separatePmeRank;
    /// Current reference temperature of a temperature-coupling group.
    std::function<double(int)> referenceTemperature;
};

/// Operations of md.cpp for an attempt; called by all ranks together.
struct Step
{
    int64_t number;
    /// Forces and energy at the coordinates of the state, with a new pair list.
    std::function<void()> computeForces;
    /// Distributes the main rank's state over the domains.
    std::function<void()> partition;
    /// Computes the half-step kinetic energy of the current velocities.
    std::function<void()> computeKineticEnergy;
};

/// Number of bonded interactions on all ranks together, and in the topology. With domain decomposition those whose atoms are farther
/// apart than the ranks communicate are on none of them; GROMACS finds out at a later step.
inline std::pair<double, double> countBondedInteractions(const Simulation& s)
{
    double local = 0, all = 0;
    forEachFunction([&](auto function) {
        const unsigned int flags = interaction_function[function].flags;
        if ((flags & IF_BOND) != 0 && (flags & IF_VSITE) == 0)
        {
            // the list has a parameter type and the atoms of each
            local += s.localTopology.idef.il[function].size() / (1 + interaction_function[function].nratoms);
            all += gmx_mtop_ftype_count(s.topology, function);
        }
    });
    return { sumOverRanks(s.commrec, local), all };
}

/// Reason why a simulation cannot have moves, or an empty string.
inline std::string whyNot(const Simulation& s)
{
    const t_inputrec& ir = s.input;
    bool deforms = false;
    for (int i = 0; i < DIM; i++)
    {
        for (int j = 0; j < DIM; j++)
        {
            deforms = deforms || ir.deform[i][j] != 0;
        }
    }
    bool frozen = false;
    for (int group = 0; group < ir.opts.ngfrz; group++)
    {
        const ivec& dimensions = ir.opts.nFreeze[group];
        frozen = frozen || dimensions[XX] != 0 || dimensions[YY] != 0 || dimensions[ZZ] != 0;
    }
    const bool inPlace = frozen || gmx_mtop_ftype_count(s.topology, c_positionRestraint) > 0
                         || gmx_mtop_ftype_count(s.topology, c_flatBottomRestraint) > 0;
    const std::pair<bool, const char*> reasons[] = {
        { ir.eI != IntegrationAlgorithm::MD && ir.eI != IntegrationAlgorithm::SD1,
          "integrators other than md and sd: velocities after a jump depend on what an integrator stores" },
        { ir.eI == IntegrationAlgorithm::MD && ir.etc != TemperatureCoupling::No && ir.etc != TemperatureCoupling::VRescale
                  && ir.etc != TemperatureCoupling::NoseHoover,
          "temperature couplings other than V-rescale and Nose-Hoover with md: Berendsen's does not sample the canonical ensemble" },
        { ir.useMts, "multiple time stepping: velocities contain kicks of several lengths" },
        { s.gpu, "GPUs: not tested; run mdrun -nb cpu -pme cpu -bonded cpu -update cpu" },
        { s.separatePmeRank, "separate PME ranks: not tested; run mdrun -npme 0" },
        { couplesPressure(ir), "pressure coupling: not tested" },
        { ir.comm_mode == ComRemovalAlgorithm::Angular,
          "comm-mode = angular: velocities drawn after a jump have an angular momentum, and removing it cools the system" },
        { ir.comm_mode != ComRemovalAlgorithm::No && inPlace,
          "position restraints or frozen atoms with removal of the centre of mass's motion: the dynamics keeps the centre fixed, but jumps do not; "
          "set comm-mode = none" },
        { ir.pbcType != PbcType::No && ir.pbcType != PbcType::Xyz, "pbc other than xyz and no" },
        { ir.bPeriodicMols, "periodic molecules: they cannot be made whole" },
        { ir.efep != FreeEnergyPerturbationType::No || ir.bExpanded || ir.bSimTemp,
          "free-energy, expanded-ensemble and simulated-tempering runs: not tested" },
        { ir.bDoAwh, "AWH: its bias depends on history, and proposals would be counted as samples" },
        { ir.bPull, "pulling: its forces may depend on history, and proposals would move its references" },
        { ir.bRot, "enforced rotation: its forces are not in the potential energy" },
        { ir.bIMD, "interactive dynamics: its forces are not in the potential energy" },
        { ir.eSwapCoords != SwapType::No, "ion swapping: not tested" },
        { ir.useConstantAcceleration || ir.cos_accel != 0, "accelerations: their forces are not in the potential energy" },
        { deforms, "deformation of the box: there is no equilibrium to sample" },
        { s.forceProviders, "modules that provide forces (electric field, density fitting, QM/MM, Colvars, PLUMED, neural "
                            "networks): their forces are not in the potential energy, or depend on history" },
        { s.essentialDynamics, "essential dynamics and flooding: coordinates or bias depend on history" },
        { s.shells, "shells and flexible constraints: their positions are not free" },
        { s.membrane, "membrane embedding: it changes the interactions" },
        { s.replicaExchange, "replica exchange: not tested" },
        { gmx_mtop_ftype_count(s.topology, c_orientationRestraint) > 0,
          "orientation restraints: not tested, and dependent on history if averaged over time" },
        { gmx_mtop_ftype_count(s.topology, c_distanceRestraint) > 0 && ir.dr_tau > 0,
          "time-averaged distance restraints: proposals would be counted in the average" },
    };
    for (const auto& [refused, reason] : reasons)
    {
        if (refused)
        {
            return reason;
        }
    }
    return "";
}

} // namespace modejump

#endif
