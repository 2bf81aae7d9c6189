/* modejump in GROMACS: configurations of a molecule proposed by a trained generator, between steps of molecular dynamics.
 *
 * modejump-gromacs-patch copies this file beside src/gromacs/mdrun/md.cpp and inserts a handful of lines there: they make a Hook
 * before the loop over steps, force a pair search and an energy at the steps of attempts, and call Hook::attempt after the
 * forces. libmodejump is found at run time (MODEJUMP_LIB or the loader's path), so nothing is linked. README.md documents the
 * options. The file that includes this one defines MODEJUMP_GROMACS, which is 2022, 2025 or 2026, for the names that differ.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_GROMACS_H
#define MODEJUMP_GROMACS_H

#include "modejump.h"

#include <dlfcn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gromacs/domdec/collect.h"
#include "gromacs/domdec/domdec.h"
#include "gromacs/domdec/domdec_struct.h"
#include "gromacs/gmxlib/network.h"
#include "gromacs/mdrunutility/handlerestart.h"
#include "gromacs/mdrunutility/multisim.h"
#include "gromacs/mdtypes/commrec.h"
#include "gromacs/mdtypes/enerdata.h"
#include "gromacs/mdtypes/forcebuffers.h"
#include "gromacs/mdtypes/iforceprovider.h"
#include "gromacs/mdtypes/inputrec.h"
#include "gromacs/mdtypes/md_enums.h"
#include "gromacs/mdtypes/state.h"
#include "gromacs/random/normaldistribution.h"
#include "gromacs/random/seed.h"
#include "gromacs/random/threefry.h"
#include "gromacs/topology/idef.h"
#include "gromacs/topology/ifunc.h"
#include "gromacs/topology/mtop_lookup.h"
#include "gromacs/topology/mtop_util.h"
#include "gromacs/topology/topology.h"
#include "gromacs/utility/exceptions.h"
#include "gromacs/utility/fatalerror.h"
#include "gromacs/utility/futil.h"

namespace modejump
{

using Vector = std::array<double, 3>;

/* What is called otherwise in other versions of GROMACS. */

#if MODEJUMP_GROMACS == 2022

inline bool isMainRank(const t_commrec& cr)
{
    return MASTER(&cr);
}
inline bool couplesPressure(const t_inputrec& ir)
{
    return ir.epc != PressureCoupling::No;
}

#else

inline bool isMainRank(const t_commrec& cr)
{
#    if MODEJUMP_GROMACS == 2025
    return MAIN(&cr);
#    else
    return cr.commMyGroup.isMainRank();
#    endif
}
inline bool couplesPressure(const t_inputrec& ir)
{
    return ir.pressureCouplingOptions.epc != PressureCoupling::No;
}

#endif

#if MODEJUMP_GROMACS < 2026

constexpr int c_potential            = F_EPOT;
constexpr int c_constraint           = F_CONSTR;
constexpr int c_constraintUncoupled  = F_CONSTRNC;
constexpr int c_settle               = F_SETTLE;
constexpr int c_distanceRestraint    = F_DISRES;
constexpr int c_orientationRestraint = F_ORIRES;

inline void broadcast(const t_commrec& cr, void* data, std::size_t bytes)
{
    if (PAR(&cr))
    {
        // the number of bytes is an int in 2022
        gmx_bcast(static_cast<int>(bytes), data, cr.mpi_comm_mygroup);
    }
}
inline double sumOverRanks(const t_commrec& cr, double value)
{
    if (PAR(&cr))
    {
        gmx_sumd(1, &value, &cr);
    }
    return value;
}
template<typename Body>
void forEachFunction(Body body)
{
    for (int function = 0; function < F_NRE; function++)
    {
        body(function);
    }
}

#else

constexpr auto c_potential            = InteractionFunction::PotentialEnergy;
constexpr auto c_constraint           = InteractionFunction::Constraints;
constexpr auto c_constraintUncoupled  = InteractionFunction::ConstraintsNoCoupling;
constexpr auto c_settle               = InteractionFunction::SETTLE;
constexpr auto c_distanceRestraint    = InteractionFunction::DistanceRestraints;
constexpr auto c_orientationRestraint = InteractionFunction::OrientationRestraints;

inline void broadcast(const t_commrec& cr, void* data, std::size_t bytes)
{
    if (cr.commMyGroup.isParallel())
    {
        gmx_bcast(bytes, data, cr.commMyGroup.comm());
    }
}
inline double sumOverRanks(const t_commrec& cr, double value)
{
    if (cr.commMyGroup.isParallel())
    {
        cr.commMyGroup.sumReduce(1, &value);
    }
    return value;
}
template<typename Body>
void forEachFunction(Body body)
{
    for (const auto function : gmx::EnumerationWrapper<InteractionFunction>{})
    {
        body(function);
    }
}

#endif

/* The library. */

/// The functions of libmodejump that are needed here, found in the library at run time.
class Library
{
public:
    Library()
    {
        const char* named = std::getenv("MODEJUMP_LIB");
        const char* path  = named != nullptr ? named : "libmodejump.so";
        // never closed: threads of the library may be alive until the process ends
        void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr)
        {
            throw std::runtime_error(std::string(dlerror())
                                     + "; MODEJUMP_LIB may give the path of libmodejump.so");
        }
        find(library, "modejump_abi_version", &abiVersion);
        if (abiVersion() != MODEJUMP_ABI_VERSION)
        {
            throw std::runtime_error(std::string(path) + " has interface version "
                                     + std::to_string(abiVersion()) + "; this GROMACS was patched for "
                                     + std::to_string(MODEJUMP_ABI_VERSION));
        }
        find(library, "modejump_version", &version);
        find(library, "modejump_last_error", &lastError);
        find(library, "modejump_set_last_error", &setLastError);
        find(library, "modejump_model_load", &modelLoad);
        find(library, "modejump_model_free", &modelFree);
        find(library, "modejump_model_dimension", &modelDimension);
        find(library, "modejump_model_steering", &modelSteering);
        find(library, "modejump_model_match_atoms", &modelMatchAtoms);
        find(library, "modejump_move_options_init", &moveOptionsInit);
        find(library, "modejump_move_new", &moveNew);
        find(library, "modejump_move_free", &moveFree);
        find(library, "modejump_move_set_constraints", &moveSetConstraints);
        find(library, "modejump_move_set_temperature", &moveSetTemperature);
        find(library, "modejump_move_attempt", &moveAttempt);
        find(library, "modejump_move_statistics", &moveStatistics);
    }

    /// Throws the library's message unless the status is that of success.
    void check(int32_t status) const
    {
        if (status != MODEJUMP_OK)
        {
            const char* message = "";
            lastError(&message);
            throw std::runtime_error(message);
        }
    }

    decltype(&modejump_abi_version)          abiVersion         = nullptr;
    decltype(&modejump_version)              version            = nullptr;
    decltype(&modejump_last_error)           lastError          = nullptr;
    decltype(&modejump_set_last_error)       setLastError       = nullptr;
    decltype(&modejump_model_load)           modelLoad          = nullptr;
    decltype(&modejump_model_free)           modelFree          = nullptr;
    decltype(&modejump_model_dimension)      modelDimension     = nullptr;
    decltype(&modejump_model_steering)       modelSteering      = nullptr;
    decltype(&modejump_model_match_atoms)    modelMatchAtoms    = nullptr;
    decltype(&modejump_move_options_init)    moveOptionsInit    = nullptr;
    decltype(&modejump_move_new)             moveNew            = nullptr;
    decltype(&modejump_move_free)            moveFree           = nullptr;
    decltype(&modejump_move_set_constraints) moveSetConstraints = nullptr;
    decltype(&modejump_move_set_temperature) moveSetTemperature = nullptr;
    decltype(&modejump_move_attempt)         moveAttempt        = nullptr;
    decltype(&modejump_move_statistics)      moveStatistics     = nullptr;

private:
    template<typename Function>
    static void find(void* library, const char* name, Function* function)
    {
        *function = reinterpret_cast<Function>(dlsym(library, name));
        if (*function == nullptr)
        {
            throw std::runtime_error(std::string("libmodejump has no function ") + name);
        }
    }
};

/* The options. */

/// What the file named by MODEJUMP_OPTIONS says.
struct Options
{
    std::string   model;
    std::string   log;
    std::string   method      = "independence";
    int64_t       steps       = 0;
    int64_t       firstAtom   = 1;
    int64_t       lastAtom    = 0; // of the model, if not given
    std::uint64_t proposals   = 1;
    /// The run's own ld-seed, if not given: runs that share a file of options then do not share their jumps.
    std::optional<std::uint64_t> seed;
    double        temperature = 0; // that of the coupling, if not given

    explicit Options(const std::string& path)
    {
        std::ifstream file(path);
        if (!file)
        {
            throw std::runtime_error("cannot read " + path + ", named by MODEJUMP_OPTIONS");
        }
        for (std::string line; std::getline(file, line);)
        {
            line = trimmed(line.substr(0, line.find(';')));
            if (line.empty())
            {
                continue;
            }
            const std::size_t equals = line.find('=');
            if (equals == std::string::npos)
            {
                throw std::runtime_error(path + ": `" + line + "` is not of the form key = value");
            }
            set(trimmed(line.substr(0, equals)), trimmed(line.substr(equals + 1)));
        }
        if (model.empty() || steps <= 0)
        {
            throw std::runtime_error(path + " has to give model = FILE and steps = N, the steps between attempts");
        }
    }

private:
    static std::string trimmed(const std::string& text)
    {
        const char*       blanks = " \t\r";
        const std::size_t first  = text.find_first_not_of(blanks);
        return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) - first + 1);
    }

    template<typename Number>
    static Number number(const std::string& key, const std::string& value, Number least)
    {
        std::istringstream stream(value);
        Number             result{};
        if (value.find('-') != std::string::npos || !(stream >> result) || !stream.eof() || result < least)
        {
            throw std::runtime_error("the value of " + key + ", `" + value + "`, is no number that it can have");
        }
        return result;
    }

    void set(const std::string& key, const std::string& value)
    {
        if (key == "model")
        {
            model = value;
        }
        else if (key == "log")
        {
            log = value;
        }
        else if (key == "method")
        {
            if (value != "independence" && value != "isir")
            {
                throw std::runtime_error("method = " + value + "; there are independence and isir");
            }
            method = value;
        }
        else if (key == "steps")
        {
            steps = number<int64_t>(key, value, 1);
        }
        else if (key == "atoms")
        {
            const std::size_t dash = value.find('-');
            if (dash == std::string::npos)
            {
                throw std::runtime_error("atoms = " + value + " is no range first-last");
            }
            firstAtom = number<int64_t>(key, trimmed(value.substr(0, dash)), 1);
            lastAtom  = number<int64_t>(key, trimmed(value.substr(dash + 1)), firstAtom);
        }
        else if (key == "seed")
        {
            seed = number<std::uint64_t>(key, value, 0);
        }
        else if (key == "proposals")
        {
            proposals = number<std::uint64_t>(key, value, 1);
        }
        else if (key == "temperature")
        {
            temperature = number<double>(key, value, 0);
        }
        else
        {
            throw std::runtime_error("unknown option " + key
                                     + "; there are model, steps, atoms, seed, proposals, method, temperature, log");
        }
    }
};

/* The topology. */

/// Calls `body(function, iatoms, global index of the molecule's first atom)` for every interaction of the system.
template<typename Body>
void forEachInteraction(const gmx_mtop_t& topology, Body body)
{
    int start = 0;
    for (const gmx_molblock_t& block : topology.molblock)
    {
        const gmx_moltype_t& type = topology.moltype[block.type];
        for (int molecule = 0; molecule < block.nmol; molecule++, start += type.atoms.nr)
        {
            forEachFunction([&](auto function) {
                const auto& atoms = type.ilist[function].iatoms;
                for (std::size_t i = 0; i < atoms.size(); i += 1 + NRAL(function))
                {
                    body(function, &atoms[i], start);
                }
            });
        }
    }
}

/// A bond of constant length between two of the model's atoms.
struct Constraint
{
    std::array<std::uint64_t, 2> atoms;
    double                       length;
};

/// Takes velocities along the constraints away, as RATTLE does.
inline void projectOnConstraints(const std::vector<Constraint>& constraints,
                                 const std::vector<Vector>&     x,
                                 const std::vector<double>&     masses,
                                 std::vector<Vector>*           v)
{
    // relative velocity along a bond that counts as none, nm/ps
    constexpr double tolerance = 1e-9;
    for (int iteration = 0; iteration < 100000; iteration++)
    {
        double largest = 0;
        for (const Constraint& constraint : constraints)
        {
            const auto [a, b] = constraint.atoms;
            Vector bond{};
            double length2 = 0, along = 0;
            for (int d = 0; d < 3; d++)
            {
                bond[d] = x[a][d] - x[b][d];
                length2 += bond[d] * bond[d];
                along += bond[d] * ((*v)[a][d] - (*v)[b][d]);
            }
            largest              = std::max(largest, std::abs(along) / std::sqrt(length2));
            const double impulse = along / (length2 * (1 / masses[a] + 1 / masses[b]));
            for (int d = 0; d < 3; d++)
            {
                (*v)[a][d] -= impulse * bond[d] / masses[a];
                (*v)[b][d] += impulse * bond[d] / masses[b];
            }
        }
        if (largest < tolerance)
        {
            return;
        }
    }
    throw std::runtime_error("the new velocities cannot be made to keep the constraints");
}

/* The moves. */

/// What of a simulation the moves need. All references outlive the hook.
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

/// What md.cpp does for an attempt; called by all ranks together.
struct Step
{
    int64_t number;
    /// Forces and energy at the coordinates of the state, with a new pair list.
    std::function<void()> computeForces;
    /// Distributes the main rank's state over the domains.
    std::function<void()> partition;
    /// Half-step kinetic energy of the velocities as they are.
    std::function<void()> computeKineticEnergy;
};

/// Why a simulation cannot have moves, or an empty string.
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
    const std::pair<bool, const char*> reasons[] = {
        { ir.eI != IntegrationAlgorithm::MD && ir.eI != IntegrationAlgorithm::SD1,
          "the integrators md and sd are supported: velocities after a jump depend on what an integrator stores" },
        { ir.eI == IntegrationAlgorithm::MD && ir.etc != TemperatureCoupling::No && ir.etc != TemperatureCoupling::VRescale
                  && ir.etc != TemperatureCoupling::NoseHoover,
          "with md the couplings V-rescale and Nose-Hoover are supported: Berendsen's does not sample the canonical ensemble" },
        { ir.useMts, "multiple time stepping: velocities hold kicks of several lengths" },
        { s.gpu, "GPUs: not tested; run mdrun -nb cpu -pme cpu -bonded cpu -update cpu" },
        { s.separatePmeRank, "separate PME ranks: not tested; run mdrun -npme 0" },
        { couplesPressure(ir), "pressure coupling: not tested" },
        { ir.comm_mode == ComRemovalAlgorithm::Angular,
          "comm-mode = angular: velocities drawn after a jump have an angular momentum, and taking it away cools" },
        { ir.pbcType != PbcType::No && ir.pbcType != PbcType::Xyz, "pbc = xyz and no are supported" },
        { ir.bPeriodicMols, "periodic molecules cannot be made whole" },
        { ir.efep != FreeEnergyPerturbationType::No || ir.bExpanded || ir.bSimTemp,
          "free-energy, expanded-ensemble and simulated-tempering runs: not tested" },
        { ir.bDoAwh, "AWH: its bias depends on history, and proposals would be counted as samples" },
        { ir.bPull, "pulling: its forces may depend on history, and proposals would move its references" },
        { ir.bRot, "enforced rotation: its forces are not in the potential energy" },
        { ir.bIMD, "interactive dynamics: its forces are not in the potential energy" },
        { ir.eSwapCoords != SwapType::No, "swapping of ions: not tested" },
        { ir.useConstantAcceleration || ir.cos_accel != 0, "accelerations are not in the potential energy" },
        { deforms, "deformation of the box: there is no equilibrium to sample" },
        { s.forceProviders, "modules that provide forces (electric field, density fitting, QM/MM, Colvars, PLUMED, neural "
                            "networks): not in the potential energy, or with a history" },
        { s.essentialDynamics, "essential dynamics and flooding: coordinates or bias depend on history" },
        { s.shells, "shells and flexible constraints: their positions are not free" },
        { s.membrane, "membrane embedding changes the interactions" },
        { s.replicaExchange, "replica exchange: not tested" },
        { gmx_mtop_ftype_count(s.topology, c_orientationRestraint) > 0,
          "orientation restraints: not tested, and with a history if averaged over time" },
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

/// Boltzmann's constant, kJ/(mol K), as GROMACS has it.
constexpr double c_boltzmann = 8.314462618e-3;

inline const char* fateOf(std::uint32_t outcome)
{
    constexpr const char* fates[] = { "accepted",   "rejected",   "out_of_support", "singular",
                                      "non_finite", "constraint", "chirality",      "wrong_mode" };
    return outcome < std::size(fates) ? fates[outcome] : "unknown";
}

/// The moves on the main rank: the generator, the model's atoms, and one attempt after the other.
class Mover
{
public:
    /// What the main rank lets all ranks do, itself included.
    struct Collective
    {
        /// Potential energy of the global state's coordinates, with forces.
        std::function<double()> evaluate;
        /// Forces of the last evaluation, of all atoms.
        std::function<void(std::vector<gmx::RVec>*)> collectForces;
    };

    Mover(const Simulation& simulation, const Options& options) :
        simulation_(simulation),
        options_(options),
        model_(nullptr, library_.modelFree),
        move_(nullptr, library_.moveFree)
    {
        const std::string reason = whyNot(simulation);
        if (!reason.empty())
        {
            throw std::runtime_error("refused: " + reason);
        }
        checkBath();
        options_.seed = options_.seed.value_or(static_cast<std::uint64_t>(simulation.input.ld_seed));
        loadModel();
        matchAtoms();
        checkGroups();
        makeMove();
        setConstraints();
        temperature();
        openLog();
        const std::string line =
                "modejump: active; library " + std::string(library_.version()) + ", model " + options_.model
                + ", atoms " + std::to_string(options_.firstAtom) + "-" + std::to_string(options_.lastAtom)
                + ", an attempt every " + std::to_string(options_.steps) + " steps, seed " + std::to_string(*options_.seed);
        report(line);
    }

    ~Mover()
    {
        if (file_ != nullptr)
        {
            std::fclose(file_);
        }
    }

    Mover(const Mover&) = delete;
    Mover& operator=(const Mover&) = delete;

    /// Nose-Hoover's friction sees the velocities at every coupling, and has to see some of them before they are drawn anew.
    void checkBath() const
    {
        const t_inputrec& ir = simulation_.input;
        const bool hasMemory = ir.eI == IntegrationAlgorithm::MD && ir.etc == TemperatureCoupling::NoseHoover;
        if (hasMemory && ir.nsttcouple > 1 && options_.steps < 10 * ir.nsttcouple)
        {
            throw std::runtime_error("refused: Nose-Hoover coupling every " + std::to_string(ir.nsttcouple)
                                     + " steps and an attempt every " + std::to_string(options_.steps)
                                     + ": the bath would not follow; set nsttcouple = 1, take V-rescale, or make an attempt every "
                                     + std::to_string(10 * ir.nsttcouple) + " steps or less often");
        }
    }

    /// One attempt from the configuration whose potential energy is given. Returns whether new velocities are in the global state.
    bool attempt(int64_t step, double potential, const Collective& collective)
    {
        t_state&          state = *simulation_.globalState;
        const std::size_t n     = atoms_.size();
        const double      kelvin = temperature();
        kt_                     = c_boltzmann * kelvin;
        library_.check(library_.moveSetTemperature(move_.get(), kelvin));
        oldX_.assign(state.x.begin(), state.x.begin() + simulation_.topology.natoms);
        collective.collectForces(&oldForces_);
        evaluated_ = false;

        std::vector<double> x(3 * n);
        for (std::size_t i = 0; i < n; i++)
        {
            for (int d = 0; d < DIM; d++)
            {
                x[3 * i + d] = oldX_[atoms_[i]][d];
            }
        }
        const modejump_outcome outcome = propose(step, potential, &x, collective);
        write(step, potential, outcome);
        if (outcome.outcome == MODEJUMP_ACCEPTED)
        {
            accept(step, x, collective);
            return true;
        }
        if (evaluated_)
        {
            std::copy(oldX_.begin(), oldX_.end(), state.x.begin());
            collective.evaluate();
        }
        return false;
    }

    /// What the attempts have come to, in the log of GROMACS and on the screen.
    void finish()
    {
        modejump_statistics s{};
        s.struct_size = sizeof(s);
        library_.check(library_.moveStatistics(move_.get(), &s));
        char text[400];
        std::snprintf(text,
                      sizeof(text),
                      "modejump: %" PRIu64 " attempts, %" PRIu64 " accepted (%.2f %%), %" PRIu64 " rejected, %" PRIu64
                      " out of support, %" PRIu64 " singular, %" PRIu64 " non-finite, %" PRIu64 " with a broken constraint, %" PRIu64
                      " of the wrong hand, %" PRIu64 " in a wrong mode; effective sample size of the proposals %.2f %%",
                      s.attempts,
                      s.accepted,
                      s.attempts > 0 ? 100.0 * static_cast<double>(s.accepted) / static_cast<double>(s.attempts) : 0.0,
                      s.rejected,
                      s.out_of_support,
                      s.singular,
                      s.non_finite,
                      s.constraint,
                      s.chirality,
                      s.wrong_mode,
                      100 * s.ess);
        report(text);
    }

    int64_t steps() const { return options_.steps; }

private:
    using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

    /// What a callback of the library needs.
    struct Call
    {
        Mover&             mover;
        const Collective&  collective;
        std::exception_ptr thrown;
    };

    void report(const std::string& line) const
    {
        std::fprintf(stderr, "%s\n", line.c_str());
        if (simulation_.log != nullptr)
        {
            std::fprintf(simulation_.log, "\n%s\n\n", line.c_str());
        }
    }

    void loadModel()
    {
        modejump_model* model = nullptr;
        library_.check(library_.modelLoad(options_.model.c_str(), &model));
        model_.reset(model);
        std::uint64_t dimension = 0, auxiliary = 0;
        double        latentTemperature = 0;
        library_.check(library_.modelDimension(model, &dimension));
        library_.check(library_.modelSteering(model, &latentTemperature, &auxiliary));
        const auto n = static_cast<int64_t>((dimension - auxiliary) / 3);
        if (options_.lastAtom == 0)
        {
            options_.lastAtom = options_.firstAtom + n - 1;
        }
        if (options_.lastAtom > simulation_.topology.natoms)
        {
            throw std::runtime_error("atoms " + std::to_string(options_.firstAtom) + "-" + std::to_string(options_.lastAtom)
                                     + " are asked for, and the system has " + std::to_string(simulation_.topology.natoms));
        }
        if (options_.lastAtom - options_.firstAtom + 1 != n)
        {
            throw std::runtime_error(options_.model + " describes " + std::to_string(n) + " atoms, the range "
                                     + std::to_string(options_.firstAtom) + "-" + std::to_string(options_.lastAtom) + " has "
                                     + std::to_string(options_.lastAtom - options_.firstAtom + 1));
        }
    }

    /// The global index of each of the model's atoms, and their masses.
    void matchAtoms()
    {
        const int                first = static_cast<int>(options_.firstAtom - 1);
        const std::size_t        n     = options_.lastAtom - options_.firstAtom + 1;
        std::vector<std::string> residues(n), names(n);
        std::vector<const char*> residuePointers(n), namePointers(n);
        int                      block = 0;
        for (std::size_t i = 0; i < n; i++)
        {
            const char *name = nullptr, *residue = nullptr;
            int         number = 0;
            mtopGetAtomAndResidueName(
                    simulation_.topology, first + static_cast<int>(i), &block, &name, &number, &residue, nullptr);
            residues[i]        = residue + std::to_string(number);
            names[i]           = name;
            residuePointers[i] = residues[i].c_str();
            namePointers[i]    = names[i].c_str();
        }
        std::vector<std::uint64_t> order(n);
        library_.check(library_.modelMatchAtoms(model_.get(), n, residuePointers.data(), namePointers.data(), order.data()));
        modelAtomOf_.assign(n, 0);
        for (std::size_t i = 0; i < n; i++)
        {
            atoms_.push_back(first + static_cast<int>(order[i]));
            modelAtomOf_[order[i]] = i;
        }
        // of all atoms, since the others' velocities are corrected as well
        for (int atom = 0; atom < simulation_.topology.natoms; atom++)
        {
            allMasses_.push_back(mtopGetAtomMass(simulation_.topology, atom, &block));
        }
        for (const int atom : atoms_)
        {
            masses_.push_back(allMasses_[atom]);
            if (!(masses_.back() > 0))
            {
                throw std::runtime_error("refused: atom " + std::to_string(atom + 1) + " has no mass");
            }
        }
    }

    int groupOf(SimulationAtomGroupType type, int atom) const
    {
        return getGroupType(simulation_.topology.groups, type, atom);
    }

    bool isFrozen(int atom) const
    {
        const ivec& frozen = simulation_.input.opts.nFreeze[groupOf(SimulationAtomGroupType::Freeze, atom)];
        return frozen[XX] != 0 || frozen[YY] != 0 || frozen[ZZ] != 0;
    }

    void checkGroups() const
    {
        const auto motion = SimulationAtomGroupType::MassCenterVelocityRemoval;
        for (const int atom : atoms_)
        {
            if (isFrozen(atom))
            {
                throw std::runtime_error("refused: atom " + std::to_string(atom + 1) + " is frozen, and proposals would move it");
            }
            if (simulation_.input.comm_mode != ComRemovalAlgorithm::No && groupOf(motion, atom) != groupOf(motion, atoms_[0]))
            {
                throw std::runtime_error("refused: the model's atoms are in several groups of centre-of-mass removal, which "
                                         "would take momentum away after a jump");
            }
        }
    }

    void makeMove()
    {
        modejump_move_options options{};
        options.struct_size = sizeof(options);
        library_.check(library_.moveOptionsInit(&options));
        options.kind        = options_.method == "isir" ? MODEJUMP_ISIR : MODEJUMP_INDEPENDENCE;
        options.n_proposals = options_.proposals;
        options.seed        = *options_.seed;
        options.stride      = static_cast<std::uint64_t>(options_.steps);
        modejump_move* move = nullptr;
        library_.check(library_.moveNew(model_.get(), &options, &move));
        move_.reset(move);
    }

    /// Tells the generator what GROMACS keeps constant; the generator refuses what it does not keep.
    void setConstraints()
    {
        const int first = static_cast<int>(options_.firstAtom - 1), last = static_cast<int>(options_.lastAtom - 1);
        const auto isOurs = [&](int atom) { return first <= atom && atom <= last; };
        forEachInteraction(simulation_.topology, [&](auto function, const int* iatoms, int start) {
            const bool isSite = (interaction_function[function].flags & IF_VSITE) != 0;
            const bool isBond = function == c_constraint || function == c_constraintUncoupled;
            if (!isSite && !isBond && function != c_settle)
            {
                return;
            }
            int ours = 0;
            for (int i = 1; i <= NRAL(function); i++)
            {
                ours += isOurs(start + iatoms[i]) ? 1 : 0;
            }
            if (ours == 0)
            {
                return;
            }
            if (isSite)
            {
                throw std::runtime_error("refused: virtual sites are made of, or among, the model's atoms");
            }
            if (function == c_settle)
            {
                throw std::runtime_error("refused: SETTLE constrains atoms of the model");
            }
            if (ours != 2)
            {
                throw std::runtime_error("refused: a constraint between an atom of the model and another one");
            }
            const auto&      parameters = simulation_.topology.ffparams.iparams[iatoms[0]].constr;
            const Constraint constraint = { { modelAtomOf_[start + iatoms[1] - first], modelAtomOf_[start + iatoms[2] - first] },
                                            parameters.dA };
            constraints_.push_back(constraint);
        });
        std::vector<std::uint64_t> pairs;
        std::vector<double>        lengths;
        for (const Constraint& constraint : constraints_)
        {
            pairs.insert(pairs.end(), constraint.atoms.begin(), constraint.atoms.end());
            lengths.push_back(constraint.length);
        }
        library_.check(library_.moveSetConstraints(move_.get(), lengths.size(), pairs.data(), lengths.data(), masses_.data()));
    }

    /// Of the coupling of the model's atoms as it is now, or the option's where nothing couples them.
    double temperature() const
    {
        const t_inputrec& ir    = simulation_.input;
        const auto        kind  = SimulationAtomGroupType::TemperatureCoupling;
        const int         group = groupOf(kind, atoms_[0]);
        const double      wanted = options_.temperature;
        const bool coupled = ir.eI == IntegrationAlgorithm::SD1 || (ir.etc != TemperatureCoupling::No && ir.opts.tau_t[group] > 0);
        if (!coupled)
        {
            if (!(wanted > 0))
            {
                throw std::runtime_error("nothing couples the temperature of the model's atoms; the option temperature is needed");
            }
            return wanted;
        }
        const double reference = simulation_.referenceTemperature(group);
        for (const int atom : atoms_)
        {
            if (simulation_.referenceTemperature(groupOf(kind, atom)) != reference)
            {
                throw std::runtime_error("refused: the model's atoms are coupled to several temperatures");
            }
        }
        if (wanted > 0 && std::abs(wanted - reference) > 1e-3)
        {
            throw std::runtime_error("refused: temperature = " + std::to_string(wanted) + ", and the model's atoms are coupled to "
                                     + std::to_string(reference) + " K");
        }
        if (!(reference > 0))
        {
            throw std::runtime_error("refused: the model's atoms are coupled to 0 K");
        }
        return reference;
    }

    /// A new log, or that of the run which is continued, without what came after its checkpoint. What is in the way of a new one is
    /// backed up, as GROMACS does with its own files.
    void openLog()
    {
        if (options_.log.empty())
        {
            return;
        }
        const char* const header = "step,U,U',log_acceptance,fate\n";
        struct stat       there{};
        if (stat(options_.log.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
        {
            // a device or a pipe, which nobody has alone
            file_ = std::fopen(options_.log.c_str(), "w");
            checkWritten(file_ != nullptr ? std::fputs(header, file_) : EOF, options_.log);
            return;
        }
        // whatever happens here, one file has what is kept; two runs that begin together meet at this name, others at that of the log
        const std::string part = options_.log + ".part";
        file_                  = openAlone(part);
        File found(nullptr, std::fclose);
        try
        {
            found.reset(openAlone(options_.log));
        }
        catch (...)
        {
            std::remove(part.c_str());
            throw;
        }
        // a run that was killed here has left something; a device cannot be emptied
        const bool        isEmpty = ftruncate(fileno(file_), 0) == 0 || errno == EINVAL;
        const std::string kept    = simulation_.isContinuation ? keptLines() : "";
        checkWritten(isEmpty ? std::fprintf(file_, "%s%s", header, kept.c_str()) : EOF, part);
        if (!simulation_.isContinuation && there.st_size > 0)
        {
            make_backup(options_.log);
        }
        if (std::rename(part.c_str(), options_.log.c_str()) != 0)
        {
            throw std::runtime_error("cannot rename " + part + " to " + options_.log);
        }
    }

    /// What the log holds of attempts up to the checkpoint.
    std::string keptLines() const
    {
        std::string   kept;
        std::ifstream old(options_.log);
        for (std::string line; std::getline(old, line);)
        {
            char*      end  = nullptr;
            const auto step = std::strtoll(line.c_str(), &end, 10);
            if (end != line.c_str() && *end == ',' && step <= simulation_.input.init_step)
            {
                kept += line + "\n";
            }
        }
        return kept;
    }

    /// Opens a file to append to, which this run then has alone: two would destroy each other's log without a word. A file system
    /// without locks cannot tell.
    std::FILE* openAlone(const std::string& path) const
    {
        std::FILE* file = std::fopen(path.c_str(), "a");
        if (file == nullptr)
        {
            throw std::runtime_error("cannot write " + path);
        }
        struct stat opened{}, there{};
        if (fstat(fileno(file), &opened) != 0 || !S_ISREG(opened.st_mode))
        {
            return file;
        }
        const bool isTaken = flock(fileno(file), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (isTaken || stat(path.c_str(), &there) != 0 || there.st_ino != opened.st_ino)
        {
            std::fclose(file);
            throw std::runtime_error("another run writes " + options_.log
                                     + ": give each an options file with a log of its own, or run them in folders of their own");
        }
        return file;
    }

    /// A full disk ends the run: a log without some of its attempts would look complete.
    void checkWritten(int written, const std::string& path) const
    {
        if (written < 0 || std::fflush(file_) != 0)
        {
            throw std::runtime_error("cannot write " + path);
        }
    }

    void write(int64_t step, double potential, const modejump_outcome& outcome)
    {
        if (file_ == nullptr)
        {
            return;
        }
        // of the proposal that decided, which the library alone knows: U', less kT/2 ln det Z with constraints
        const double proposed = -kt_ * (outcome.log_weight_proposed + outcome.log_density_proposed);
        const int    written  = std::fprintf(file_,
                                         "%" PRId64 ",%.9g,%.9g,%.9g,%s\n",
                                         step,
                                         potential,
                                         proposed,
                                         outcome.log_acceptance,
                                         fateOf(outcome.outcome));
        checkWritten(written, options_.log);
    }

    std::uint64_t replica() const
    {
        return simulation_.multisim != nullptr ? static_cast<std::uint64_t>(simulation_.multisim->simulationIndex_) : 0;
    }

    modejump_outcome propose(int64_t step, double potential, std::vector<double>* x, const Collective& collective)
    {
        std::array<double, 9> box{};
        for (int i = 0; i < DIM; i++)
        {
            for (int d = 0; d < DIM; d++)
            {
                box[3 * i + d] = simulation_.globalState->box[i][d];
            }
        }
        Call            call{ *this, collective, nullptr };
        modejump_target target{};
        target.struct_size       = sizeof(target);
        target.user              = &call;
        target.reduced_potential = &Mover::reducedPotential;
        modejump_state state{};
        state.struct_size       = sizeof(state);
        state.step              = static_cast<std::uint64_t>(step);
        state.replica           = replica();
        state.reduced_potential = potential / kt_;
        state.x                 = x->data();
        state.box               = simulation_.input.pbcType == PbcType::No ? nullptr : box.data();
        modejump_outcome outcome{};
        outcome.struct_size  = sizeof(outcome);
        const int32_t status = library_.moveAttempt(move_.get(), &target, &state, &outcome);
        if (call.thrown)
        {
            std::rethrow_exception(call.thrown);
        }
        library_.check(status);
        return outcome;
    }

    /// The library's frames cannot be unwound: an exception waits until they are gone.
    static int32_t reducedPotential(void* user, std::uint64_t n, const double* x, double* u) noexcept
    {
        Call& call = *static_cast<Call*>(user);
        try
        {
            const std::size_t dimension = 3 * call.mover.atoms_.size();
            for (std::uint64_t k = 0; k < n; k++)
            {
                std::vector<double> proposal(x + k * dimension, x + (k + 1) * dimension);
                call.mover.plantFault(&proposal);
                u[k] = call.mover.evaluate(proposal, call.collective) / call.mover.kt_;
            }
            return MODEJUMP_OK;
        }
        catch (...)
        {
            call.thrown = std::current_exception();
            call.mover.library_.setLastError("an energy of GROMACS failed");
        }
        return MODEJUMP_CALLBACK_FAILED;
    }

    /// Potential energy with the model's atoms at x; infinite for what GROMACS cannot take.
    double evaluate(const std::vector<double>& x, const Collective& collective)
    {
        if (isTorn(x) || hasCoincidence(x))
        {
            return std::numeric_limits<double>::infinity();
        }
        for (std::size_t i = 0; i < atoms_.size(); i++)
        {
            for (int d = 0; d < DIM; d++)
            {
                simulation_.globalState->x[atoms_[i]][d] = static_cast<real>(x[3 * i + d]);
            }
        }
        evaluated_ = true;
        return collective.evaluate();
    }

    /// Whether an atom is farther from the first one than any energy could allow, or nowhere. GROMACS takes the box away from a
    /// coordinate until the atom is within: from a large number that has no end.
    static bool isTorn(const std::vector<double>& x)
    {
        constexpr double farthest = 1000; // nm
        for (std::size_t k = 0; k < x.size(); k++)
        {
            // a number that is none is not within either
            if (!(std::abs(x[k] - x[k % 3]) < farthest))
            {
                return true;
            }
        }
        return false;
    }

    /// Whether two atoms are at the same place, in GROMACS's precision. Three bonds apart they make it read a table at no number.
    static bool hasCoincidence(const std::vector<double>& x)
    {
        const auto coincide = [&x](std::size_t i, std::size_t j) {
            return static_cast<real>(x[i]) == static_cast<real>(x[j]) && static_cast<real>(x[i + 1]) == static_cast<real>(x[j + 1])
                   && static_cast<real>(x[i + 2]) == static_cast<real>(x[j + 2]);
        };
        for (std::size_t i = 0; i < x.size(); i += 3)
        {
            for (std::size_t j = 0; j < i; j += 3)
            {
                if (coincide(i, j))
                {
                    return true;
                }
            }
        }
        return false;
    }

    /// Forces with the model's atoms at x, where the energy has to be finite: they become velocities.
    void forcesAt(const std::vector<double>& x, const Collective& collective, std::vector<gmx::RVec>* forces)
    {
        if (!std::isfinite(evaluate(x, collective)))
        {
            throw std::runtime_error("the energy beside an accepted configuration is not finite");
        }
        collective.collectForces(forces);
    }

    /// Velocities at the new configuration; its forces are the last that are computed.
    ///
    /// GROMACS stores v(t - dt/2). For the model's atoms it becomes xi - dt/2 F(x' - dt/4 xi)/m with xi from Maxwell and
    /// Boltzmann's distribution: with F(x') in its place the velocities of stiff bonds would be too hot, by 1 + dt^2 w^2/4 at a
    /// frequency w. The other atoms' velocities at the time of x stay what they are.
    void accept(int64_t step, const std::vector<double>& x, const Collective& collective)
    {
        const std::size_t   n  = atoms_.size();
        const double        dt = simulation_.input.delta_t;
        t_state&            state = *simulation_.globalState;
        std::vector<Vector> xi    = drawVelocities(step);
        std::vector<Vector> at(n);
        for (std::size_t i = 0; i < n; i++)
        {
            at[i] = { x[3 * i], x[3 * i + 1], x[3 * i + 2] };
        }
        projectOnConstraints(constraints_, at, masses_, &xi);

        std::vector<double> displaced(3 * n);
        for (std::size_t k = 0; k < 3 * n; k++)
        {
            displaced[k] = x[k] - 0.25 * dt * xi[k / 3][k % 3];
        }
        forcesAt(displaced, collective, &displacedForces_);
        forcesAt(x, collective, &newForces_);
        if (hasFault("velocities"))
        {
            return;
        }
        if (hasFault("simple"))
        {
            displacedForces_ = newForces_;
        }
        for (std::size_t i = 0; i < n; i++)
        {
            for (int d = 0; d < DIM; d++)
            {
                xi[i][d] -= 0.5 * dt * displacedForces_[atoms_[i]][d] / masses_[i];
            }
        }
        projectOnConstraints(constraints_, at, masses_, &xi);
        std::vector<bool> isModel(simulation_.topology.natoms, false);
        for (std::size_t i = 0; i < n; i++)
        {
            isModel[atoms_[i]] = true;
            for (int d = 0; d < DIM; d++)
            {
                state.v[atoms_[i]][d] = static_cast<real>(xi[i][d]);
            }
        }
        for (int atom = 0; atom < simulation_.topology.natoms; atom++)
        {
            if (isModel[atom] || !(allMasses_[atom] > 0) || isFrozen(atom))
            {
                continue;
            }
            for (int d = 0; d < DIM; d++)
            {
                const double kick = 0.5 * dt * (oldForces_[atom][d] - newForces_[atom][d]) / allMasses_[atom];
                state.v[atom][d]  = static_cast<real>(state.v[atom][d] + kick);
            }
        }
    }

    /// Faults that the tests plant: velocities kept across the jump, or made of forces at x' alone, which they have to find; and
    /// those of plantFault.
    static bool hasFault([[maybe_unused]] const char* name)
    {
#ifdef MODEJUMP_TESTING
        const char* fault = std::getenv("MODEJUMP_FAULT");
        return fault != nullptr && std::string(fault) == name;
#else
        return false;
#endif
    }

    /// Proposals with two atoms on top of each other, at the same place, or one of them far away.
    void plantFault(std::vector<double>* proposal) const
    {
        double*       moved = &(*proposal)[3 * modelAtomOf_.back()];
        const double* first = &(*proposal)[3 * modelAtomOf_.front()];
        if (hasFault("overlap"))
        {
            std::copy_n(first, DIM, moved);
            moved[XX] += 1e-5;
        }
        if (hasFault("coincidence"))
        {
            // three bonds from the first in the molecule of the tests
            std::copy_n(first, DIM, &(*proposal)[3 * modelAtomOf_[5]]);
        }
        if (hasFault("torn"))
        {
            std::fill_n(moved, DIM, 1e10);
        }
    }

    /// Velocities at the time of the new configuration, with the total momentum that the model's atoms have: centre-of-mass
    /// removal finds nothing to do.
    std::vector<Vector> drawVelocities(int64_t step) const
    {
        const std::size_t   n  = atoms_.size();
        const double        dt = simulation_.input.delta_t;
        std::vector<Vector> xi(n);
        Vector              excess{};
        double              mass = 0;
        // a function of seed, replica, step and atom; the odd number keeps neighbouring seeds and replicas apart
        gmx::ThreeFry2x64<8> random(*options_.seed + replica() * 0x9E3779B97F4A7C15U, gmx::RandomDomain::Other);
        for (std::size_t i = 0; i < n; i++)
        {
            random.restart(static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(atoms_[i]));
            gmx::NormalDistribution<double> normal(0.0, std::sqrt(kt_ / masses_[i]));
            for (int d = 0; d < DIM; d++)
            {
                xi[i][d] = normal(random);
                excess[d] += masses_[i] * (xi[i][d] - simulation_.globalState->v[atoms_[i]][d]) - 0.5 * dt * oldForces_[atoms_[i]][d];
            }
            mass += masses_[i];
        }
        for (Vector& velocity : xi)
        {
            for (int d = 0; d < DIM; d++)
            {
                velocity[d] -= excess[d] / mass;
            }
        }
        return xi;
    }

    const Simulation simulation_;
    Options          options_;
    Library          library_;
    std::unique_ptr<modejump_model, decltype(&modejump_model_free)> model_;
    std::unique_ptr<modejump_move, decltype(&modejump_move_free)>   move_;
    std::FILE* file_ = nullptr;

    /// Global index by atom of the model, and atom of the model by place in the range.
    std::vector<int>           atoms_;
    std::vector<std::uint64_t> modelAtomOf_;
    std::vector<double>        masses_, allMasses_;
    std::vector<Constraint>    constraints_;

    double                 kt_        = 0;
    bool                   evaluated_ = false;
    std::vector<gmx::RVec> oldX_, oldForces_, displacedForces_, newForces_;
};

/// What md.cpp sees: on every rank one, of which that of the main rank has the generator. Does nothing unless MODEJUMP_OPTIONS names
/// a file of options.
class Hook
{
public:
    explicit Hook(const Simulation& simulation) : simulation_(simulation)
    {
        if (isMainRank(simulation_.commrec) && std::getenv("MODEJUMP_OPTIONS") != nullptr)
        {
            orDie([&] {
                mover_ = std::make_unique<Mover>(simulation_, Options(std::getenv("MODEJUMP_OPTIONS")));
                steps_ = mover_->steps();
            });
        }
        broadcast(simulation_.commrec, &steps_, sizeof(steps_));
    }

    /// Not at the first step of a run: if the run is a continuation, the attempt was made before its checkpoint was written.
    bool attemptsAt(int64_t step, bool isFirstStep) const { return steps_ > 0 && !isFirstStep && step % steps_ == 0; }

    /// One attempt, after the forces of the step. Collective.
    void attempt(const Step& step)
    {
        const bool hasDomains = haveDDAtomOrdering(simulation_.commrec);
        if (hasDomains)
        {
            dd_collect_state(simulation_.commrec.dd, simulation_.state, simulation_.globalState);
        }
        const double potential = sumOverRanks(simulation_.commrec, simulation_.energies.term[c_potential]);
        if (mover_ == nullptr)
        {
            follow(step);
            return;
        }
        const Mover::Collective collective = { [&] {
                                                  command(Order::Evaluate);
                                                  return evaluate(step);
                                              },
                                               [&](std::vector<gmx::RVec>* forces) {
                                                   command(Order::CollectForces);
                                                   collectForces(forces);
                                               } };
        bool                    jumped     = false;
        orDie([&] { jumped = mover_->attempt(step.number, potential, collective); });
        command(jumped ? Order::Jumped : Order::Stayed);
        if (jumped)
        {
            receiveVelocities(step);
        }
    }

    /// After the last step.
    void finish()
    {
        if (mover_ != nullptr)
        {
            orDie([&] { mover_->finish(); });
        }
    }

private:
    /// What the main rank tells the others to do next.
    enum class Order : int
    {
        Evaluate,
        CollectForces,
        Jumped,
        Stayed
    };

    template<typename Body>
    static void orDie(Body body)
    {
        try
        {
            body();
        }
        catch (const std::exception& error)
        {
            gmx_fatal(FARGS, "modejump: %s", error.what());
        }
    }

    void command(Order order)
    {
        int number = static_cast<int>(order);
        broadcast(simulation_.commrec, &number, sizeof(number));
    }

    Order obey()
    {
        int number = 0;
        broadcast(simulation_.commrec, &number, sizeof(number));
        return static_cast<Order>(number);
    }

    /// On the ranks that have no generator.
    void follow(const Step& step)
    {
        std::vector<gmx::RVec> nothing;
        for (;;)
        {
            switch (obey())
            {
                case Order::Evaluate: evaluate(step); break;
                case Order::CollectForces: collectForces(&nothing); break;
                case Order::Jumped: receiveVelocities(step); return;
                case Order::Stayed: return;
            }
        }
    }

    /// Potential energy of the main rank's coordinates, and forces.
    double evaluate(const Step& step)
    {
        if (haveDDAtomOrdering(simulation_.commrec))
        {
            step.partition();
        }
        computeForces(step);
        return sumOverRanks(simulation_.commrec, simulation_.energies.term[c_potential]);
    }

    /// do_force ends with a check, after all communication, that the rank's potential energy is finite. Of a proposal it need not
    /// be: the sum over ranks is then not finite on any of them, and the proposal is rejected.
    void computeForces(const Step& step)
    {
        real& potential = simulation_.energies.term[c_potential];
        potential       = 0; // what is not finite below was computed below
        try
        {
            step.computeForces();
        }
        catch (const gmx::InternalError&)
        {
            if (std::isfinite(potential))
            {
                throw;
            }
        }
    }

    /// The forces on all atoms, to the main rank.
    void collectForces(std::vector<gmx::RVec>* forces)
    {
        const t_state& state = *simulation_.state;
        const auto     local = simulation_.forces->view().force();
        if (!haveDDAtomOrdering(simulation_.commrec))
        {
            forces->assign(local.begin(), local.begin() + simulation_.topology.natoms);
            return;
        }
        if (isMainRank(simulation_.commrec))
        {
            forces->resize(simulation_.topology.natoms);
        }
        dd_collect_vec(simulation_.commrec.dd, state.ddp_count, state.ddp_count_cg_gl, state.cg_gl, local, *forces);
    }

    /// The velocities of the main rank's global state, to where their atoms are; kinetic energies of before the jump are forgotten.
    void receiveVelocities(const Step& step)
    {
        if (haveDDAtomOrdering(simulation_.commrec))
        {
            std::vector<gmx::RVec> v(simulation_.topology.natoms);
            if (isMainRank(simulation_.commrec))
            {
                std::copy_n(simulation_.globalState->v.begin(), v.size(), v.begin());
            }
            broadcast(simulation_.commrec, v.data(), v.size() * sizeof(v[0]));
            const gmx_domdec_t& dd = *simulation_.commrec.dd;
            for (int i = 0; i < dd_numHomeAtoms(dd); i++)
            {
                simulation_.state->v[i] = v[dd.globalAtomIndices[i]];
            }
        }
        step.computeKineticEnergy();
    }

    const Simulation       simulation_;
    std::unique_ptr<Mover> mover_;
    int64_t                steps_ = 0;
};

} // namespace modejump

#endif
