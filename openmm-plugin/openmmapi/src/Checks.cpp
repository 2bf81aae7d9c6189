#include "Checks.h"

#include "modejump.h"
#include "openmm/CustomBondForce.h"
#include "openmm/HarmonicBondForce.h"
#include "openmm/OpenMMException.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

using Bond = pair<int, int>;

[[noreturn]] void refuse(const string& reason) { throw OpenMMException("MonteCarloModeJump: " + reason); }

string describe(const vector<int>& particles, const Model& model, int atom) {
    return "particle " + to_string(particles[atom]) + " (" + model.label(atom) + ")";
}

/** Model atom of each particle; -1 for those that do not move. */
vector<int> atomsOfParticles(const System& system, const vector<int>& particles) {
    vector<int> atoms(system.getNumParticles(), -1);
    for (size_t i = 0; i < particles.size(); i++)
        atoms[particles[i]] = static_cast<int>(i);
    return atoms;
}

void addBond(set<Bond>& bonds, const vector<int>& atoms, int p1, int p2) {
    const int a = atoms[p1], b = atoms[p2];
    if (a >= 0 && b >= 0)
        bonds.insert(minmax(a, b));
}

/** Bonded pairs of the System, as model atoms. */
struct Ties {
    /**
     * Pairs in HarmonicBondForces; pairs in these and in constraints that are as short and stiff as a covalent bond; pairs in other Forces
     * that may represent a bond.
     */
    set<Bond> harmonic, covalent, others;
    bool has(const Bond& bond) const { return harmonic.count(bond) + covalent.count(bond) + others.count(bond) > 0; }
};

/**
 * Bounds in nm and kJ/(mol nm^2): S-S, 0.204 and 139,000, is the longest of common bonds and among the softest; restraints are softer by
 * far.
 */
const double LONGEST_BOND = 0.25, SOFTEST_BOND = 5e4;

Ties systemTies(const System& system, const vector<int>& atoms) {
    Ties ties;
    int p1, p2;
    double length, k;
    vector<double> parameters;
    for (int f = 0; f < system.getNumForces(); f++) {
        const auto harmonic = dynamic_cast<const HarmonicBondForce*>(&system.getForce(f));
        for (int i = 0; harmonic != nullptr && i < harmonic->getNumBonds(); i++) {
            harmonic->getBondParameters(i, p1, p2, length, k);
            addBond(ties.harmonic, atoms, p1, p2);
            if (length < LONGEST_BOND && k > SOFTEST_BOND)
                addBond(ties.covalent, atoms, p1, p2);
        }
        const auto custom = dynamic_cast<const CustomBondForce*>(&system.getForce(f));
        for (int i = 0; custom != nullptr && i < custom->getNumBonds(); i++) {
            custom->getBondParameters(i, p1, p2, parameters);
            addBond(ties.others, atoms, p1, p2);
        }
    }
    for (int i = 0; i < system.getNumConstraints(); i++) {
        system.getConstraintParameters(i, p1, p2, length);
        addBond(length < LONGEST_BOND ? ties.covalent : ties.others, atoms, p1, p2);
    }
    return ties;
}

/** Whether atoms share a neighbour, as those of Urey-Bradley terms and angle constraints do. */
bool shareNeighbour(const set<Bond>& bonds, int a, int b) {
    return any_of(bonds.begin(), bonds.end(), [&](const Bond& bond) {
        const int other = bond.first == a ? bond.second : bond.second == a ? bond.first : -1;
        return other >= 0 && bonds.count(minmax(other, b)) > 0;
    });
}

} // namespace

vector<int> checkedParticles(const System& system, const vector<int>& given, const Model& model) {
    vector<int> particles = given;
    const int n = system.getNumParticles();
    for (int i = 0; given.empty() && i < n; i++)
        particles.push_back(i);
    if (static_cast<int>(particles.size()) != model.numAtoms())
        refuse("the model " + model.name + " has " + to_string(model.numAtoms()) + " atoms, but " +
               (given.empty() ? "the System has " + to_string(n) + " particles; set the particles that the model moves"
                              : to_string(particles.size()) + " particles were set"));
    set<int> seen;
    vector<double> masses;
    for (size_t i = 0; i < particles.size(); i++) {
        const int particle = particles[i];
        if (particle < 0 || particle >= n)
            refuse("particle " + to_string(particle) + " is out of range: the number of particles in the System is " + to_string(n));
        if (!seen.insert(particle).second)
            refuse("particle " + to_string(particle) + " is listed twice");
        const int atom = static_cast<int>(i);
        const string who = describe(particles, model, atom);
        if (system.isVirtualSite(particle))
            refuse(who + " is a virtual site; only the atoms that it depends on can be moved");
        const double mass = system.getParticleMass(particle);
        if (mass == 0)
            refuse(who + " has no mass, so the System holds it in place");
        masses.push_back(mass);
    }
    check(modejump_model_check_masses(model.handle(), masses.size(), masses.data()));
    return particles;
}

void checkBonds(const System& system, const vector<int>& particles, const Model& model) {
    const Ties there = systemTies(system, atomsOfParticles(system, particles));
    set<Bond> wanted;
    for (const auto& bond : model.bonds)
        wanted.insert(minmax(bond[0], bond[1]));
    if (wanted.empty())
        return;
    // If no HarmonicBondForce has any of the model's bonds, they are in Forces that are not examined here, such as a learned
    // potential.
    const bool told = any_of(wanted.begin(), wanted.end(), [&](const Bond& bond) { return there.harmonic.count(bond) > 0; });
    // metal ions near a molecule look bonded to it in a structure, but are not bonded to anything in the System
    set<int> bonded;
    for (const set<Bond>* bonds : {&there.harmonic, &there.covalent})
        for (const Bond& bond : *bonds)
            bonded.insert({bond.first, bond.second});
    const auto isIon = [&](int atom) {
        static const set<string> covalent = {"H", "B", "C", "N", "O", "F", "SI", "P", "S", "CL", "SE", "BR", "I"};
        string element = model.elements[atom];
        transform(element.begin(), element.end(), element.begin(), [](unsigned char c) { return toupper(c); });
        return covalent.count(element) == 0 && bonded.count(atom) == 0;
    };
    const auto missing = find_if(wanted.begin(), wanted.end(), [&](const Bond& bond) {
        return told && !there.has(bond) && !isIon(bond.first) && !isIon(bond.second);
    });
    const auto both = [&](const Bond& bond) {
        return describe(particles, model, bond.first) + " and " + describe(particles, model, bond.second);
    };
    // A soft spring between atoms that are not bonded in the model may be a restraint, unless another bond does not match.
    for (const Bond& bond : missing == wanted.end() ? there.covalent : there.harmonic)
        if (wanted.count(bond) == 0 && !shareNeighbour(wanted, bond.first, bond.second))
            refuse("the System has a bond between " + both(bond) +
                   " that the model does not have: the atoms must be in the order of the model");
    if (missing != wanted.end())
        refuse("the model has a bond between " + both(*missing) +
               " that the System does not have: the atoms must be in the order of the model");
}

Constraints movedConstraints(const System& system, const vector<int>& particles, const Model& model) {
    const vector<int> atoms = atomsOfParticles(system, particles);
    Constraints result;
    for (int i = 0; i < system.getNumConstraints(); i++) {
        int p1, p2;
        double length;
        system.getConstraintParameters(i, p1, p2, length);
        const int a = atoms[p1], b = atoms[p2];
        if ((a < 0) != (b < 0))
            refuse("a constraint connects " + describe(particles, model, max(a, b)) + ", which is moved, to particle " +
                   to_string(a < 0 ? p1 : p2) + ", which is not; a move would break it");
        if (a >= 0) {
            result.atoms.insert(result.atoms.end(), {static_cast<uint64_t>(a), static_cast<uint64_t>(b)});
            result.lengths.push_back(length);
        }
    }
    return result;
}

} // namespace ModeJumpPlugin
