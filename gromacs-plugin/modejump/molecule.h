/* The atoms that the model moves.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_MOLECULE_H
#define MODEJUMP_MOLECULE_H

#include "library.h"
#include "options.h"
#include "simulation.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace modejump
{

using Vector = std::array<double, 3>;

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

/// Applies `correct` to one constraint after the other, until none deviates by more than the tolerance; `correct` returns the
/// deviation.
template<typename Correct>
void iterate(const std::vector<Constraint>& constraints, double tolerance, Correct correct)
{
    for (int iteration = 0; iteration < 100000; iteration++)
    {
        double largest = 0;
        for (const Constraint& constraint : constraints)
        {
            largest = std::max(largest, correct(constraint.atoms[0], constraint.atoms[1]));
        }
        if (largest < tolerance)
        {
            return;
        }
    }
    throw std::runtime_error("the new velocities could not be made to satisfy the constraints");
}

inline double dot(const Vector& a, const Vector& b)
{
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

inline Vector difference(const Vector& a, const Vector& b)
{
    return { a[0] - b[0], a[1] - b[1], a[2] - b[2] };
}

/// Applies an impulse along a bond, opposite at its ends.
inline void push(const Vector& bond, double impulse, double massA, double massB, Vector* a, Vector* b)
{
    for (int d = 0; d < 3; d++)
    {
        (*a)[d] += impulse * bond[d] / massA;
        (*b)[d] -= impulse * bond[d] / massB;
    }
}

/// Removes velocities along the constraints, as RATTLE does.
inline void projectOnConstraints(const std::vector<Constraint>& constraints,
                                 const std::vector<Vector>&     x,
                                 const std::vector<double>&     masses,
                                 std::vector<Vector>*           velocities)
{
    std::vector<Vector>& v = *velocities;
    // relative velocity along a bond that counts as zero, nm/ps
    iterate(constraints, 1e-9, [&](std::uint64_t a, std::uint64_t b) {
        const Vector bond    = difference(x[a], x[b]);
        const double length2 = dot(bond, bond);
        const double along   = dot(bond, difference(v[a], v[b]));
        push(bond, -along / (length2 * (1 / masses[a] + 1 / masses[b])), masses[a], masses[b], &v[a], &v[b]);
        return std::abs(along) / std::sqrt(length2);
    });
}

/// Converts velocities to those of leap-frog half a step dt before x: the bonds had their lengths one step earlier as well
/// (SHAKE). Velocities that merely have no component along bonds at x would omit the contribution of the constraints to that half
/// step, and with it half of their virial.
inline void constrainStepBefore(const std::vector<Constraint>& constraints,
                                const std::vector<Vector>&     x,
                                const std::vector<double>&     masses,
                                double                         dt,
                                std::vector<Vector>*           velocities)
{
    std::vector<Vector>& v = *velocities;
    // relative tolerance of squared lengths
    iterate(constraints, 1e-10, [&](std::uint64_t a, std::uint64_t b) {
        const Vector bond = difference(x[a], x[b]), relative = difference(v[a], v[b]);
        const Vector before = { bond[0] - dt * relative[0], bond[1] - dt * relative[1], bond[2] - dt * relative[2] };
        const double length2 = dot(bond, bond), excess = dot(before, before) - length2, projected = dot(bond, before);
        if (!(projected > 0))
        {
            throw std::runtime_error("a constrained bond rotates by 90 degrees or more within a step");
        }
        push(bond, excess / (2 * dt * projected * (1 / masses[a] + 1 / masses[b])), masses[a], masses[b], &v[a], &v[b]);
        return std::abs(excess) / length2;
    });
}

/// The atoms that the model describes, and how GROMACS treats them.
class Molecule
{
public:
    /// For a model of n atoms. Throws if they are not in the system, or something acts on them that a jump cannot follow.
    Molecule(const Simulation& simulation, const Options& options, const Library& library, const modejump_model* model, std::uint64_t n) :
        first(static_cast<int>(options.firstAtom - 1)), simulation_(simulation), options_(options)
    {
        checkRange(static_cast<int64_t>(n));
        match(library, model, n);
        checkGroups();
        findConstraints();
        temperature();
    }

    bool isFrozen(int atom) const
    {
        const ivec& frozen = simulation_.input.opts.nFreeze[groupOf(SimulationAtomGroupType::Freeze, atom)];
        return frozen[XX] != 0 || frozen[YY] != 0 || frozen[ZZ] != 0;
    }

    /// Current temperature of the coupling of the model's atoms, or that of the options if nothing couples them.
    double temperature() const
    {
        const t_inputrec& ir    = simulation_.input;
        const auto        kind  = SimulationAtomGroupType::TemperatureCoupling;
        const int         group = groupOf(kind, atoms[0]);
        const double      wanted = options_.temperature;
        const auto isCoupled = [&ir](int g) {
            return ir.eI == IntegrationAlgorithm::SD1 || (ir.etc != TemperatureCoupling::No && ir.opts.tau_t[g] > 0);
        };
        const bool coupled = isCoupled(group);
        if (!coupled && !(wanted > 0))
        {
            throw std::runtime_error("the model's atoms have no temperature coupling; set the option temperature");
        }
        const double reference = coupled ? simulation_.referenceTemperature(group) : wanted;
        for (const int atom : atoms)
        {
            if (coupled && simulation_.referenceTemperature(groupOf(kind, atom)) != reference)
            {
                throw std::runtime_error("not supported: the model's atoms are coupled to several temperatures");
            }
        }
        if (wanted > 0 && std::abs(wanted - reference) > 1e-3)
        {
            throw std::runtime_error("temperature = " + std::to_string(wanted) + ", but the model's atoms are coupled to "
                                     + std::to_string(reference) + " K");
        }
        if (!(reference > 0))
        {
            throw std::runtime_error("not supported: the model's atoms are coupled to 0 K");
        }
        for (int other = 0; other < ir.opts.ngtc; other++)
        {
            if (ir.opts.nrdf[other] > 0 && isCoupled(other) && simulation_.referenceTemperature(other) != reference)
            {
                throw std::runtime_error("not supported: other atoms are coupled to a different temperature than the model's, so there is no equilibrium");
            }
        }
        return reference;
    }

    /// Global index of the first atom of the range.
    const int first;
    /// Global index of each atom of the model, and atom of the model at each place of the range.
    std::vector<int>           atoms;
    std::vector<std::uint64_t> modelAtomOf;
    /// Masses of the model's atoms, and of all atoms.
    std::vector<double>     masses, allMasses;
    std::vector<Constraint> constraints;

private:
    void checkRange(int64_t n) const
    {
        const int64_t last = options_.lastAtom != 0 ? options_.lastAtom : options_.firstAtom + n - 1;
        if (last > simulation_.topology.natoms)
        {
            throw std::runtime_error("atoms " + std::to_string(options_.firstAtom) + "-" + std::to_string(last)
                                     + " are out of range: the number of atoms in the system is " + std::to_string(simulation_.topology.natoms));
        }
        if (last - options_.firstAtom + 1 != n)
        {
            throw std::runtime_error(options_.model + " describes " + std::to_string(n) + " atoms, but the range "
                                     + std::to_string(options_.firstAtom) + "-" + std::to_string(last) + " has "
                                     + std::to_string(last - options_.firstAtom + 1));
        }
    }

    /// Finds the global index of each of the model's atoms, and their masses.
    void match(const Library& library, const modejump_model* model, std::uint64_t n)
    {
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
        library.check(library.modelMatchAtoms(model, n, residuePointers.data(), namePointers.data(), order.data()));
        modelAtomOf.assign(n, 0);
        for (std::size_t i = 0; i < n; i++)
        {
            atoms.push_back(first + static_cast<int>(order[i]));
            modelAtomOf[order[i]] = i;
        }
        // for all atoms, since the velocities of the others are corrected as well
        for (int atom = 0; atom < simulation_.topology.natoms; atom++)
        {
            allMasses.push_back(mtopGetAtomMass(simulation_.topology, atom, &block));
        }
        for (const int atom : atoms)
        {
            masses.push_back(allMasses[atom]);
            if (!(masses.back() > 0))
            {
                throw std::runtime_error("not supported: atom " + std::to_string(atom + 1) + " has no mass");
            }
        }
    }

    int groupOf(SimulationAtomGroupType type, int atom) const
    {
        return getGroupType(simulation_.topology.groups, type, atom);
    }

    void checkGroups() const
    {
        const auto motion = SimulationAtomGroupType::MassCenterVelocityRemoval;
        for (const int atom : atoms)
        {
            if (isFrozen(atom))
            {
                throw std::runtime_error("not supported: atom " + std::to_string(atom + 1) + " is frozen, but proposals would move it");
            }
            if (simulation_.input.comm_mode != ComRemovalAlgorithm::No && groupOf(motion, atom) != groupOf(motion, atoms[0]))
            {
                throw std::runtime_error("not supported: the model's atoms are in several groups of centre-of-mass removal, which "
                                         "would remove momentum after a jump");
            }
        }
    }

    void findConstraints()
    {
        const int last = first + static_cast<int>(atoms.size()) - 1;
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
                throw std::runtime_error("not supported: virtual sites among the model's atoms, or constructed from them");
            }
            if (function == c_settle)
            {
                throw std::runtime_error("not supported: SETTLE constraints on atoms of the model");
            }
            if (ours != 2)
            {
                throw std::runtime_error("not supported: a constraint between an atom of the model and one outside it");
            }
            const auto&      parameters = simulation_.topology.ffparams.iparams[iatoms[0]].constr;
            const Constraint constraint = { { modelAtomOf[start + iatoms[1] - first], modelAtomOf[start + iatoms[2] - first] },
                                            parameters.dA };
            constraints.push_back(constraint);
        });
    }

    const Simulation& simulation_;
    const Options&    options_;
};

} // namespace modejump

#endif
