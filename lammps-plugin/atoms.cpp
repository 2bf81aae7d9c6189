/* Placing atoms: at coordinates, in the box, on the ranks that own them. */

#include "fix_modejump.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "group.h"
#include "neighbor.h"
#include "update.h"

#include <algorithm>

using namespace LAMMPS_NS;

/// Stops unless the atoms of the group are the same as at the beginning of the run. Collective.
void FixModeJump::require_atoms() {
    bigint mine[2] = {}, all[2]; // known, others
    for (int i = 0; i < atom->nlocal; i++)
        if (atom->mask[i] & groupbit)
            mine[index_.count(atom->tag[i]) > 0 ? 0 : 1]++;
    MPI_Allreduce(mine, all, 2, MPI_LMP_BIGINT, MPI_SUM, world);
    if (all[0] != static_cast<bigint>(index_.size()) || all[1] > 0)
        error->all(FLERR, "Fix modejump: of the {} atoms of group {}, {} are present at step {}, and {} others: atoms of the model must not be "
                          "removed, and none added to its group", index_.size(), group->names[igroup], all[0], update->ntimestep, all[1]);
}

/// Collects coordinates and image flags of the model's atoms on all ranks.
void FixModeJump::gather() {
    std::vector<double> x(x_.size(), 0.0), unwrapped(x_.size(), 0.0);
    std::vector<imageint> image(image_.size(), 0);
    require_atoms();
    for (int i = 0; i < atom->nlocal; i++) {
        if (!(atom->mask[i] & groupbit))
            continue;
        const int k = index_.at(atom->tag[i]);
        std::copy(atom->x[i], atom->x[i] + 3, &x[3 * k]);
        domain->unmap(atom->x[i], atom->image[i], &unwrapped[3 * k]);
        image[k] = atom->image[i];
    }
    // each atom has one owner, so the sums are exact
    MPI_Allreduce(x.data(), x_.data(), static_cast<int>(x.size()), MPI_DOUBLE, MPI_SUM, world);
    MPI_Allreduce(unwrapped.data(), current_.data(), static_cast<int>(x.size()), MPI_DOUBLE, MPI_SUM, world);
    MPI_Allreduce(image.data(), image_.data(), static_cast<int>(image.size()), MPI_LMP_IMAGEINT, MPI_SUM, world);
    for (double& value : current_)
        value *= nm_;
}

/// The box (nm) if the model's atoms span half of it or more, as when wrapped data lack image flags: the generator makes its
/// molecule whole with it. Otherwise the box would change nothing, and not every model has the bonds to use it.
std::optional<std::array<double, 9>> FixModeJump::box_across(const std::vector<double>& x) const {
    double lo[3], hi[3];
    for (std::size_t k = 0; k < x.size(); k += 3) {
        double at[3] = {x[k] / nm_, x[k + 1] / nm_, x[k + 2] / nm_};
        domain->x2lamda(at, at);
        for (int d = 0; d < 3; d++) {
            lo[d] = k > 0 ? std::min(lo[d], at[d]) : at[d];
            hi[d] = k > 0 ? std::max(hi[d], at[d]) : at[d];
        }
    }
    bool across = false;
    double sides[3];
    for (int d = 0; d < 3; d++) {
        across |= domain->periodicity[d] && hi[d] - lo[d] >= 0.5;
        sides[d] = domain->periodicity[d] ? nm_ * domain->h[d] : 1e6; // no image within reach
    }
    if (!across)
        return std::nullopt;
    const double* h = domain->h;
    return std::array<double, 9>{sides[0], 0, 0, nm_ * h[5], sides[1], 0, nm_ * h[4], nm_ * h[3], sides[2]};
}

/// Puts the model's atoms at unwrapped coordinates in nm.
void FixModeJump::place(const std::vector<double>& x) {
    const imageint home = (static_cast<imageint>(IMGMAX) << IMG2BITS) | (static_cast<imageint>(IMGMAX) << IMGBITS) | IMGMAX;
    for (int i = 0; i < atom->nlocal; i++) {
        if (!(atom->mask[i] & groupbit))
            continue;
        const int k = index_.at(atom->tag[i]);
        for (int d = 0; d < 3; d++)
            atom->x[i][d] = x[3 * k + d] / nm_;
        atom->image[i] = home;
        // domain->pbc() wraps by one box length only
        domain->remap(atom->x[i], atom->image[i]);
    }
}

/// Restores the previous coordinates of the model's atoms, to the last bit.
void FixModeJump::restore() {
    for (int i = 0; i < atom->nlocal; i++) {
        if (!(atom->mask[i] & groupbit))
            continue;
        const int k = index_.at(atom->tag[i]);
        std::copy(&x_[3 * k], &x_[3 * k] + 3, atom->x[i]);
        atom->image[i] = image_[k];
    }
}

/// Restores the model's atoms, and moves them to the ranks on which LAMMPS will look for them.
void FixModeJump::reject() {
    restore();
    if (comm->nprocs > 1) {
        settle();
        restore(); // wrapping and triclinic coordinates have changed bits
    }
}

/// Moves the atoms to the ranks that own their positions. Those that go farther than to a neighbour, where exchange() would lose
/// them, move one rank at a time.
void FixModeJump::migrate() {
    const double* lo = domain->triclinic ? domain->sublo_lamda : domain->sublo;
    const double* hi = domain->triclinic ? domain->subhi_lamda : domain->subhi;
    // half the narrowest sub-domain is within every neighbour
    double half[3], reach[3];
    for (int d = 0; d < 3; d++)
        half[d] = 0.5 * (hi[d] - lo[d]);
    MPI_Allreduce(half, reach, 3, MPI_DOUBLE, MPI_MIN, world);
    const auto near = [&](int d, double x) { return std::min(std::max(x, lo[d] - reach[d]), hi[d] + reach[d]); };

    const auto goals = far_goals(near);
    int going = 1;
    while (going) {
        int far = 0;
        for (int i = 0; i < atom->nlocal && !goals.empty(); i++) {
            const auto goal = goals.find(atom->tag[i]);
            if (goal == goals.end())
                continue;
            for (int d = 0; d < 3; d++) {
                atom->x[i][d] = near(d, goal->second[d]);
                far |= atom->x[i][d] != goal->second[d];
            }
        }
        comm->exchange();
        MPI_Allreduce(&far, &going, 1, MPI_INT, MPI_MAX, world);
    }

    const bigint mine = atom->nlocal;
    bigint all = 0;
    MPI_Allreduce(&mine, &all, 1, MPI_LMP_BIGINT, MPI_SUM, world);
    if (all != atom->natoms)
        error->all(FLERR, "Fix modejump: {} of {} atoms are left at step {}; use boundaries of type p or s, which atoms cannot leave, "
                          "and a timestep at which the dynamics is stable", all, atom->natoms, update->ntimestep);
}

/// Destinations, by atom ID, of the atoms of all ranks that `near` would clamp.
template <class Near> std::unordered_map<tagint, std::array<double, 3>> FixModeJump::far_goals(Near near) {
    std::vector<tagint> ids;
    std::vector<double> places;
    for (int i = 0; i < atom->nlocal; i++) {
        const double* x = atom->x[i];
        if (near(0, x[0]) == x[0] && near(1, x[1]) == x[1] && near(2, x[2]) == x[2])
            continue;
        ids.push_back(atom->tag[i]);
        places.insert(places.end(), x, x + 3);
    }
    ids = gathered(ids, MPI_LMP_TAGINT);
    places = gathered(places, MPI_DOUBLE);
    std::unordered_map<tagint, std::array<double, 3>> goals;
    for (std::size_t k = 0; k < ids.size(); k++)
        goals[ids[k]] = {places[3 * k], places[3 * k + 1], places[3 * k + 2]};
    return goals;
}

/// Puts atoms into the box, adapts the box, and sends each atom to the rank of its position and from there to neighbours as a
/// ghost. Collective.
void FixModeJump::settle() {
    if (domain->triclinic)
        domain->x2lamda(atom->nlocal);
    domain->pbc();
    // a shrink-wrapped box follows its atoms; atoms outside would have no energy
    if (domain->box_change) {
        domain->reset_box();
        comm->setup();
        if (neighbor->style)
            neighbor->setup_bins();
    }
    migrate();
    atom->nghost = 0;
    comm->borders();
    if (domain->triclinic)
        domain->lamda2x(atom->nlocal + atom->nghost);
}
