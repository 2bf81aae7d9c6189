/* modejump in GROMACS: configurations of a molecule proposed by a trained generator, between steps of molecular dynamics.
 *
 * modejump-gromacs-patch copies this folder beside src/gromacs/mdrun/md.cpp and inserts a few lines there: they make a Hook
 * before the loop over steps, force a pair search and an energy at the steps of attempts, and call Hook::attempt after the
 * forces. libmodejump is found at run time (MODEJUMP_LIB or the loader's path), so nothing is linked. README.md documents the
 * options.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_HOOK_H
#define MODEJUMP_HOOK_H

#include "mover.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <vector>

namespace modejump
{

/// Interface for md.cpp: one on every rank; that of the main rank has the generator. Does nothing unless MODEJUMP_OPTIONS names a
/// file of options.
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

    /// Whether an attempt is due. Not at the first step of a run: in a continuation, this attempt was made before the checkpoint
    /// was written.
    bool attemptsAt(int64_t step, bool isFirstStep) const { return steps_ > 0 && !isFirstStep && step % steps_ == 0; }

    /// Makes one attempt, after the forces of the step. Collective.
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

    /// Called after the last step.
    void finish()
    {
        if (mover_ != nullptr)
        {
            orDie([&] { mover_->finish(); });
        }
    }

private:
    /// Next task that the main rank sends to the others.
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

    /// Follows an attempt on the ranks that have no generator.
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

    /// Computes the potential energy of the main rank's coordinates, and forces. The energy is infinite if domain decomposition has
    /// lost interactions of a molecule that is torn apart.
    double evaluate(const Step& step)
    {
        if (haveDDAtomOrdering(simulation_.commrec))
        {
            step.partition();
            const auto [found, expected] = countBondedInteractions(simulation_);
            if (found < expected)
            {
                return std::numeric_limits<double>::infinity();
            }
        }
        computeForces(step);
        return sumOverRanks(simulation_.commrec, simulation_.energies.term[c_potential]);
    }

    /// Computes forces. do_force ends with a check, after all communication, that the potential energy of the rank is finite. For
    /// a proposal it need not be: the sum over ranks is then not finite on any of them, and the proposal is rejected.
    void computeForces(const Step& step)
    {
        real& potential = simulation_.energies.term[c_potential];
        potential       = 0; // a value that is not finite below was computed below
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

    /// Collects the forces on all atoms on the main rank.
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

    /// Distributes the velocities of the main rank's global state to the ranks of their atoms; kinetic energies from before the
    /// jump are discarded.
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
