/* The moves on the main rank.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_MOVER_H
#define MODEJUMP_MOVER_H

#include "log.h"
#include "molecule.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace modejump
{

/// Boltzmann's constant, kJ/(mol K), as in GROMACS.
constexpr double c_boltzmann = 8.314462618e-3;

/// The moves on the main rank: the generator, the model's atoms, and the attempts.
class Mover
{
public:
    /// Operations that the main rank makes all ranks do, including itself.
    struct Collective
    {
        /// Potential energy at the coordinates of the global state, with forces.
        std::function<double()> evaluate;
        /// Forces on all atoms from the last evaluation.
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
            throw std::runtime_error("not supported: " + reason);
        }
        checkBath();
        options_.seed = options_.seed.value_or(static_cast<std::uint64_t>(simulation.input.ld_seed));
        loadModel();
        makeMove();
        setConstraints();
        log_.emplace(options_.log, simulation.isContinuation, simulation.input.init_step);
        const int first = molecule_->first + 1, last = molecule_->first + static_cast<int>(molecule_->atoms.size());
        report("modejump: active; library " + std::string(library_.version()) + ", model " + options_.model + ", atoms "
               + std::to_string(first) + "-" + std::to_string(last) + ", an attempt every " + std::to_string(options_.steps)
               + " steps, seed " + std::to_string(*options_.seed));
    }

    Mover(const Mover&) = delete;
    Mover& operator=(const Mover&) = delete;

    /// Refuses attempts that are too frequent for a Nose-Hoover bath: its friction sees the velocities only at coupling steps,
    /// and must see some of them before they are redrawn.
    void checkBath() const
    {
        const t_inputrec& ir = simulation_.input;
        const bool hasMemory = ir.eI == IntegrationAlgorithm::MD && ir.etc == TemperatureCoupling::NoseHoover;
        if (hasMemory && ir.nsttcouple > 1 && options_.steps < 10 * ir.nsttcouple)
        {
            throw std::runtime_error("not supported: Nose-Hoover coupling every " + std::to_string(ir.nsttcouple)
                                     + " steps with an attempt every " + std::to_string(options_.steps)
                                     + ": the bath would not follow; set nsttcouple = 1, use V-rescale, or make an attempt every "
                                     + std::to_string(10 * ir.nsttcouple) + " steps or less often");
        }
    }

    /// Makes one attempt from the configuration with the given potential energy. Returns whether the global state has new
    /// velocities.
    bool attempt(int64_t step, double potential, const Collective& collective)
    {
        t_state&          state = *simulation_.globalState;
        const std::size_t n     = molecule_->atoms.size();
        const double      kelvin = molecule_->temperature();
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
                x[3 * i + d] = oldX_[molecule_->atoms[i]][d];
            }
        }
        if (!checkedLabels_)
        {
            checkLabels(x);
        }
        const modejump_outcome outcome = propose(step, potential, &x, collective);
        // potential of the proposal that decided, known only to the library, less kT/2 ln det Z with constraints
        const double proposed = -kt_ * (outcome.log_weight_proposed + outcome.log_density_proposed);
        log_->write(step, potential, proposed, outcome);
        if (outcome.outcome == MODEJUMP_ACCEPTED)
        {
            takeOver(step, x, collective);
            return true;
        }
        if (evaluated_)
        {
            std::copy(oldX_.begin(), oldX_.end(), state.x.begin());
            collective.evaluate();
        }
        return false;
    }

    /// Reports the statistics of the attempts in the log of GROMACS and on the screen.
    void finish()
    {
        modejump_statistics s{};
        s.struct_size = sizeof(s);
        library_.check(library_.moveStatistics(move_.get(), &s));
        // jumps between modes have no weights
        char weights[80] = "";
        if (std::isfinite(s.ess))
        {
            std::snprintf(weights, sizeof(weights), "; effective sample size of the proposals %.2f %%", 100 * s.ess);
        }
        char text[400];
        std::snprintf(text,
                      sizeof(text),
                      "modejump: %" PRIu64 " attempts, %" PRIu64 " accepted (%.2f %%), %" PRIu64 " rejected, %" PRIu64
                      " out of support, %" PRIu64 " singular, %" PRIu64 " non-finite, %" PRIu64 " with a broken constraint, %" PRIu64
                      " with wrong chirality, %" PRIu64 " in a wrong mode%s",
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
                      weights);
        report(text);
    }

    int64_t steps() const { return options_.steps; }

private:
    /// Data for a callback of the library.
    struct Call
    {
        Mover&             mover;
        const Collective&  collective;
        std::exception_ptr thrown;
    };

    /// Warns once if no jump from there is accepted, as where equivalent atoms are numbered differently from the model's frames.
    void checkLabels(const std::vector<double>& x)
    {
        checkedLabels_ = true;
        const std::array<double, 9> box = boxVectors();
        if (library_.modelCheckLabels(model_.get(), x.size(), x.data(), isPeriodic() ? box.data() : nullptr) != MODEJUMP_OK)
        {
            const char* found = "";
            library_.lastError(&found);
            report("modejump: the atoms do not match the model: " + std::string(found));
        }
    }

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
        if (simulation_.input.pbcType != PbcType::No)
        {
            library_.check(library_.modelCheckBox(model));
        }
        molecule_.emplace(simulation_, options_, library_, model, (dimension - auxiliary) / 3);
    }

    void makeMove()
    {
        modejump_move_options options{};
        options.struct_size = sizeof(options);
        library_.check(library_.moveOptionsInit(&options));
        options.kind        = options_.method == "isir" ? MODEJUMP_ISIR : MODEJUMP_INDEPENDENCE;
        options.proposals   = options_.proposals;
        options.seed        = *options_.seed;
        options.stride      = static_cast<std::uint64_t>(options_.steps);
        options.partial     = molecule_->atoms.size() < static_cast<std::size_t>(simulation_.topology.natoms) ? 1 : 0;
        modejump_move* move = nullptr;
        library_.check(library_.moveNew(model_.get(), &options, &move));
        move_.reset(move);
    }

    /// Tells the generator which bonds GROMACS constrains; the generator refuses those that it does not keep.
    void setConstraints()
    {
        std::vector<std::uint64_t> pairs;
        std::vector<double>        lengths;
        for (const Constraint& constraint : molecule_->constraints)
        {
            pairs.insert(pairs.end(), constraint.atoms.begin(), constraint.atoms.end());
            lengths.push_back(constraint.length);
        }
        library_.check(library_.moveSetConstraints(move_.get(), lengths.size(), pairs.data(), lengths.data(), molecule_->masses.data()));
    }

    std::uint64_t replica() const
    {
        return simulation_.multisim != nullptr ? static_cast<std::uint64_t>(simulation_.multisim->simulationIndex_) : 0;
    }

    std::array<double, 9> boxVectors() const
    {
        std::array<double, 9> box{};
        for (int i = 0; i < DIM; i++)
        {
            for (int d = 0; d < DIM; d++)
            {
                box[3 * i + d] = simulation_.globalState->box[i][d];
            }
        }
        return box;
    }

    bool isPeriodic() const { return simulation_.input.pbcType != PbcType::No; }

    modejump_outcome propose(int64_t step, double potential, std::vector<double>* x, const Collective& collective)
    {
        const std::array<double, 9> box = boxVectors();
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
        state.box               = isPeriodic() ? box.data() : nullptr;
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

    /// Callback for the reduced potential. Exceptions cannot unwind the library's stack frames: they are stored and rethrown
    /// after the call.
    static int32_t reducedPotential(void* user, std::uint64_t n, const double* x, double* u) noexcept
    {
        Call& call = *static_cast<Call*>(user);
        try
        {
            const std::size_t dimension = 3 * call.mover.molecule_->atoms.size();
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
            call.mover.library_.setLastError("GROMACS failed to compute an energy");
        }
        return MODEJUMP_CALLBACK_FAILED;
    }

    /// Potential energy with the model's atoms at x; infinite for coordinates that GROMACS cannot handle.
    double evaluate(const std::vector<double>& x, const Collective& collective)
    {
        if (isTorn(x) || hasCoincidence(x))
        {
            return std::numeric_limits<double>::infinity();
        }
        for (std::size_t i = 0; i < molecule_->atoms.size(); i++)
        {
            for (int d = 0; d < DIM; d++)
            {
                simulation_.globalState->x[molecule_->atoms[i]][d] = static_cast<real>(x[3 * i + d]);
            }
        }
        evaluated_ = true;
        return collective.evaluate();
    }

    /// Whether an atom is too far from the first one for any finite energy, or not at a finite place. GROMACS subtracts the box
    /// from a coordinate until the atom is inside, which never ends for a large number.
    static bool isTorn(const std::vector<double>& x)
    {
        constexpr double farthest = 1000; // nm
        for (std::size_t k = 0; k < x.size(); k++)
        {
            // NaN is not within either
            if (!(std::abs(x[k] - x[k % 3]) < farthest))
            {
                return true;
            }
        }
        return false;
    }

    /// Whether two atoms are at the same place, in the precision of GROMACS. If they are three bonds apart, GROMACS would read a
    /// table at an undefined position.
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

    /// Forces with the model's atoms at x, where the energy must be finite: the velocities are computed from them.
    void forcesAt(const std::vector<double>& x, const Collective& collective, std::vector<gmx::RVec>* forces)
    {
        if (!std::isfinite(evaluate(x, collective)))
        {
            throw std::runtime_error("the energy near an accepted configuration is not finite");
        }
        collective.collectForces(forces);
    }

    /// Draws the velocities at the new configuration; its forces are the last that are computed.
    ///
    /// GROMACS stores v(t - dt/2). For the model's atoms it becomes xi - dt/2 F(x' - dt/4 xi)/m with xi from the
    /// Maxwell-Boltzmann distribution: with F(x') instead, the velocities of stiff bonds would be too hot, by 1 + dt^2 w^2/4 at a
    /// frequency w. The velocities of the other atoms at the time of x are unchanged.
    void takeOver(int64_t step, const std::vector<double>& x, const Collective& collective)
    {
        const Molecule&     molecule = *molecule_;
        const std::size_t   n        = molecule.atoms.size();
        const double        dt       = simulation_.input.delta_t;
        t_state&            state    = *simulation_.globalState;
        std::vector<Vector> xi       = drawVelocities(step);
        std::vector<Vector> at(n);
        for (std::size_t i = 0; i < n; i++)
        {
            at[i] = { x[3 * i], x[3 * i + 1], x[3 * i + 2] };
        }
        projectOnConstraints(molecule.constraints, at, molecule.masses, &xi);

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
                xi[i][d] -= 0.5 * dt * displacedForces_[molecule.atoms[i]][d] / molecule.masses[i];
            }
        }
        constrainStepBefore(molecule.constraints, at, molecule.masses, dt, &xi);
        std::vector<bool> isModel(simulation_.topology.natoms, false);
        for (std::size_t i = 0; i < n; i++)
        {
            isModel[molecule.atoms[i]] = true;
            for (int d = 0; d < DIM; d++)
            {
                state.v[molecule.atoms[i]][d] = static_cast<real>(xi[i][d]);
            }
        }
        for (int atom = 0; atom < simulation_.topology.natoms; atom++)
        {
            if (isModel[atom] || !(molecule.allMasses[atom] > 0) || molecule.isFrozen(atom))
            {
                continue;
            }
            for (int d = 0; d < DIM; d++)
            {
                const double kick = 0.5 * dt * (oldForces_[atom][d] - newForces_[atom][d]) / molecule.allMasses[atom];
                state.v[atom][d]  = static_cast<real>(state.v[atom][d] + kick);
            }
        }
    }

    /// Whether the tests have requested this fault, which they must detect: velocities kept across the jump, or computed from
    /// forces at x' alone; or one of plantFault.
    static bool hasFault([[maybe_unused]] const char* name)
    {
#ifdef MODEJUMP_TESTING
        const char* fault = std::getenv("MODEJUMP_FAULT");
        return fault != nullptr && std::string(fault) == name;
#else
        return false;
#endif
    }

    /// Plants a fault in a proposal: two atoms on top of each other, at the same place, or one of them away or very far away.
    void plantFault(std::vector<double>* proposal) const
    {
        double*       moved = &(*proposal)[3 * molecule_->modelAtomOf.back()];
        const double* first = &(*proposal)[3 * molecule_->modelAtomOf.front()];
        if (hasFault("overlap"))
        {
            std::copy_n(first, DIM, moved);
            moved[XX] += 1e-5;
        }
        if (hasFault("coincidence"))
        {
            // three bonds from the first one, in the molecule of the tests
            std::copy_n(first, DIM, &(*proposal)[3 * molecule_->modelAtomOf[5]]);
        }
        if (hasFault("parted"))
        {
            moved[XX] = first[XX] + 2.5;
        }
        if (hasFault("torn"))
        {
            std::fill_n(moved, DIM, 1e10);
        }
    }

    /// Draws velocities at the time of the new configuration, with the total momentum of the model's atoms unchanged, so that
    /// removal of centre-of-mass motion has nothing to do.
    std::vector<Vector> drawVelocities(int64_t step) const
    {
        const std::vector<int>&    atoms  = molecule_->atoms;
        const std::vector<double>& masses = molecule_->masses;
        const std::size_t          n      = atoms.size();
        const double               dt     = simulation_.input.delta_t;
        std::vector<Vector>        xi(n);
        Vector                     excess{};
        double                     mass = 0;
        // a function of seed, replica, step and atom; the odd number keeps neighbouring seeds and replicas apart
        gmx::ThreeFry2x64<8> random(*options_.seed + replica() * 0x9E3779B97F4A7C15U, gmx::RandomDomain::Other);
        for (std::size_t i = 0; i < n; i++)
        {
            random.restart(static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(atoms[i]));
            gmx::NormalDistribution<double> normal(0.0, std::sqrt(kt_ / masses[i]));
            for (int d = 0; d < DIM; d++)
            {
                xi[i][d] = normal(random);
                excess[d] += masses[i] * (xi[i][d] - simulation_.globalState->v[atoms[i]][d]) - 0.5 * dt * oldForces_[atoms[i]][d];
            }
            mass += masses[i];
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
    std::optional<Molecule> molecule_;
    std::optional<Log>      log_;

    double                 kt_        = 0;
    bool                   evaluated_ = false, checkedLabels_ = false;
    std::vector<gmx::RVec> oldX_, oldForces_, displacedForces_, newForces_;
};

} // namespace modejump

#endif
