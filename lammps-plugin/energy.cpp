/* Energies and forces of the whole system at configurations of the molecule. */

#include "fix_modejump.h"

#include "angle.h"
#include "atom.h"
#include "bond.h"
#include "comm.h"
#include "compute.h"
#include "dihedral.h"
#include "domain.h"
#include "error.h"
#include "exceptions.h"
#include "fix.h"
#include "force.h"
#include "improper.h"
#include "kspace.h"
#include "modify.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

using namespace LAMMPS_NS;

/// Values of Domain::boundary, and of Domain::nonperiodic.
static constexpr int FIXED = 1, SHRINK = 2;

/// Energy of the whole system, and forces, at the current coordinates of the atoms. Collective.
double FixModeJump::potential() {
    settle();
    list_neighbors();
    return interactions();
}

void FixModeJump::list_neighbors() {
    if (modify->n_pre_neighbor)
        modify->pre_neighbor();
    neighbor->build(1);
}

double FixModeJump::interactions() {
    const int eflag = 1, vflag = 0;
    const std::size_t n = atom->nlocal + (force->newton ? atom->nghost : 0);
    if (n > 0)
        std::memset(&atom->f[0][0], 0, 3 * n * sizeof(double));
    if (modify->n_pre_force)
        modify->pre_force(vflag);
    if (force->pair && force->pair->compute_flag)
        force->pair->compute(eflag, vflag);
    if (atom->molecular != Atom::ATOMIC) {
        if (force->bond)
            force->bond->compute(eflag, vflag);
        if (force->angle)
            force->angle->compute(eflag, vflag);
        if (force->dihedral)
            force->dihedral->compute(eflag, vflag);
        if (force->improper)
            force->improper->compute(eflag, vflag);
    }
    if (force->kspace && force->kspace->compute_flag)
        force->kspace->compute(eflag, vflag);
    if (modify->n_pre_reverse)
        modify->pre_reverse(eflag, vflag); // package INTEL adds its forces and energies here
    if (force->newton)
        comm->reverse_comm();
    update->eflag_global = update->ntimestep;
    double energy = energy_->compute_scalar();
    // a part of the CHARMM force field that LAMMPS implements as a fix; its forces are not among those sent back between ranks
    for (Fix* fix : modify->get_fix_by_style("^cmap")) {
        fix->post_force(vflag);
        energy += fix->compute_scalar();
    }
    return energy;
}

/// Whether an atom is too far from the first one for any finite energy, or not at a finite place. LAMMPS subtracts the box from a
/// coordinate until the atom is inside, which never ends for a large number. A shrink-wrapped box would become too large for its
/// bins.
bool FixModeJump::is_torn(const std::vector<double>& x) const {
    const double farthest = domain->nonperiodic == SHRINK ? 100 : 1000; // nm
    for (std::size_t k = 0; k < x.size(); k++)
        if (!(std::abs(x[k] - x[k % 3]) < farthest)) // NaN is not within either
            return true;
    return false;
}

/// Whether a rank lacks an atom of a bond, angle, dihedral or improper that it has to compute, since it is farther away than ranks
/// communicate: LAMMPS would stop. Collective.
bool FixModeJump::lacks_partners() const {
    if (comm->nprocs == 1 || atom->molecular != Atom::MOLECULAR)
        return false;
    const auto lacks = [this](int n, const int* types, std::initializer_list<const tagint*> partners) {
        for (int m = 0; m < n; m++)
            for (const tagint* partner : partners)
                if (types[m] > 0 && atom->map(partner[m]) < 0) // others are switched off
                    return true;
        return false;
    };
    int mine = 0, any = 0;
    for (int i = 0; i < atom->nlocal; i++) {
        if (atom->num_bond)
            mine |= lacks(atom->num_bond[i], atom->bond_type[i], {atom->bond_atom[i]});
        if (atom->num_angle)
            mine |= lacks(atom->num_angle[i], atom->angle_type[i], {atom->angle_atom1[i], atom->angle_atom2[i], atom->angle_atom3[i]});
        if (atom->num_dihedral)
            mine |= lacks(atom->num_dihedral[i], atom->dihedral_type[i],
                          {atom->dihedral_atom1[i], atom->dihedral_atom2[i], atom->dihedral_atom3[i], atom->dihedral_atom4[i]});
        if (atom->num_improper)
            mine |= lacks(atom->num_improper[i], atom->improper_type[i],
                          {atom->improper_atom1[i], atom->improper_atom2[i], atom->improper_atom3[i], atom->improper_atom4[i]});
    }
    MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
    return any != 0;
}

/// Whether an atom is beyond a fixed face of the box, where LAMMPS deletes it.
bool FixModeJump::leaves_box(const std::vector<double>& x) const {
    const double* lo = domain->triclinic ? domain->boxlo_lamda : domain->boxlo;
    const double* hi = domain->triclinic ? domain->boxhi_lamda : domain->boxhi;
    for (std::size_t k = 0; k < x.size(); k += 3) {
        double at[3] = {x[k] / nm_, x[k + 1] / nm_, x[k + 2] / nm_};
        if (domain->triclinic)
            domain->x2lamda(at, at);
        for (int d = 0; d < 3; d++)
            if ((domain->boundary[d][0] == FIXED && at[d] < lo[d]) || (domain->boundary[d][1] == FIXED && at[d] >= hi[d]))
                return true;
    }
    return false;
}

namespace {

/// Silences LAMMPS during a proposal, whose messages do not concern the run: warnings are neither written nor counted, and an
/// error does not end the run.
class Mute {
public:
    explicit Mute(LAMMPS* lmp)
        : lmp_(lmp), screen_(lmp->screen), logfile_(lmp->logfile), warnings_(lmp->error->get_numwarn()),
          running_(lmp->update->whichflag) {
        lmp->screen = lmp->logfile = nullptr;
    }
    ~Mute() {
        lmp_->screen = screen_;
        lmp_->logfile = logfile_;
        lmp_->error->set_numwarn(warnings_);
        lmp_->update->whichflag = running_;
    }

private:
    LAMMPS* lmp_;
    FILE *screen_, *logfile_;
    int warnings_, running_;
};

} // namespace

/// Reduced potential of a configuration, which rank 0 has and the others receive; infinite for one that LAMMPS cannot handle.
/// Collective.
double FixModeJump::reduced_potential_of(const double* x) {
    std::vector<double> coordinates(current_.size());
    if (x != nullptr)
        std::copy(x, x + coordinates.size(), coordinates.begin());
    MPI_Bcast(coordinates.data(), static_cast<int>(coordinates.size()), MPI_DOUBLE, 0, world);
    if (is_torn(coordinates) || leaves_box(coordinates))
        return std::numeric_limits<double>::infinity();
    place(coordinates);
    settle();
    if (lacks_partners())
        return std::numeric_limits<double>::infinity();
    list_neighbors();
    if (comm->nprocs > 1) {
        try {
            return interactions() / kt_;
        } catch (const LAMMPSException&) {
            // the other ranks are waiting for this one inside a collective call
            error->one(FLERR, "Fix modejump: LAMMPS could not compute the energy of a proposal (see above): run on one rank, where such "
                              "proposals are rejected");
        }
    }
    const Mute mute(lmp);
    try {
        return interactions() / kt_;
    } catch (const LAMMPSException&) {
        return std::numeric_limits<double>::infinity(); // such as a bond too long for FENE, or a distance outside a table
    }
}
