/* What of an input the moves do not allow for, and what says so. */

#include "fix_modejump.h"

#include "atom.h"
#include "bond.h"
#include "compute.h"
#include "domain.h"
#include "error.h"
#include "fix.h"
#include "force.h"
#include "group.h"
#include "modify.h"
#include "pair.h"
#include "update.h"
#include "utils.h"

#include <modejump.hpp>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>

using namespace LAMMPS_NS;

/// Whether a style begins with one of these; accelerated variants have a suffix.
static bool is_one_of(const Fix* fix, std::initializer_list<const char*> styles) {
    return std::any_of(styles.begin(), styles.end(), [fix](const char* style) { return utils::strmatch(fix->style, style); });
}

/// Whether a fix puts others in the place of the forces on its group, or of some of their components.
bool FixModeJump::replaces_forces(const Fix* fix) {
    return is_one_of(fix, {"^setforce", "^freeze", "^lineforce", "^planeforce", "^aveforce"});
}

/// Whether a fix moves the atoms of its group whatever their forces.
bool FixModeJump::ignores_forces(const Fix* fix) { return is_one_of(fix, {"^nve/noforce", "^move"}); }

/// Whether a fix keeps the atoms of its group from following their forces.
bool FixModeJump::holds(const Fix* fix) { return replaces_forces(fix) || ignores_forces(fix); }

/// Whether a fix acts on atoms of the model. Collective.
bool FixModeJump::touches(const Fix* fix) const {
    int mine = 0, any = 0;
    for (int i = 0; i < atom->nlocal; i++)
        mine |= (atom->mask[i] & groupbit) && (atom->mask[i] & fix->groupbit);
    MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
    return any != 0;
}

/// Stops if anything in the input moves atoms, or changes energies or the box, in a way that the moves cannot account for.
void FixModeJump::require_setup() const {
    if (utils::strmatch(update->integrate_style, "^respa"))
        error->all(FLERR, "Fix modejump does not work with run_style respa");
    // these keep coordinates or forces in other places than those that this fix uses
    if (lmp->kokkos)
        error->all(FLERR, "Fix modejump does not work with package KOKKOS: run LAMMPS without -k on and -sf kk");
    if (!modify->get_fix_by_style("^GPU").empty())
        error->all(FLERR, "Fix modejump does not work with package GPU: run LAMMPS without -sf gpu and without `package gpu`");
    if (domain->dimension == 2)
        error->all(FLERR, "Fix modejump does not work with dimension 2: proposals leave the plane");
    // velocities are kept across a jump on the assumption that forces depend only on positions
    for (const char* style : {"dpd", "^brownian", "^lubricate"})
        if (force->pair_match(style, 0, 1))
            error->all(FLERR, "Fix modejump: pair style {} has friction or noise forces, which a jump would count twice: use another pair "
                              "style with fix langevin", force->pair_style);
    // only whole names are compared
    for (const char* style : {"quartic", "quartic/omp", "bpm/spring", "bpm/spring/plastic", "bpm/rotational", "rheo/shell"})
        if (force->bond_match(style))
            error->all(FLERR, "Fix modejump: bond style {} permanently breaks bonds that a proposal stretches", style);
    for (const Compute* compute : modify->get_compute_list())
        if (utils::strmatch(compute->style, "tally$"))
            error->all(FLERR, "Fix modejump: compute {} ({}) adds up pair contributions of every evaluation in a step, including those of proposals: use "
                              "compute group/group or compute pe/atom", compute->id, compute->style);
    for (const Fix* fix : modify->get_fix_list()) {
        if (is_one_of(fix, {"^alchemy", "^pimd", "^rpmd", "^drude", "^langevin/drude", "^grem", "^qtpie"}))
            error->all(FLERR, "Fix modejump: fix {} ({}) makes atoms follow forces other than those of the energy that jumps use",
                       fix->id, fix->style);
        // not qeq/reaxff: ReaxFF has the energy of the charges in its pair style
        if (is_one_of(fix, {"^qeq/point", "^qeq/shielded", "^qeq/slater", "^qeq/dynamic", "^qeq/fire"}))
            error->all(FLERR, "Fix modejump: fix {} ({}) assigns charges whose own energy is in no style, so the moves would not include it: use fixed "
                              "charges", fix->id, fix->style);
        if (utils::strmatch(fix->style, "^smd"))
            error->all(FLERR, "Fix modejump: fix {} ({}) applies forces without an energy to its group, and perhaps to another, so the moves would not include "
                              "them: remove one of the two", fix->id, fix->style);
        if (is_one_of(fix, {"^spring/rg", "^tmd", "^drag", "^oneway", "^imd", "^propel", "^accelerate/cos"}) && touches(fix))
            error->all(FLERR, "Fix modejump: fix {} ({}) applies forces without an energy to atoms of the model, so the moves would not include them: remove "
                              "one of the two, or define the forces by a pair, bond, angle, dihedral or improper style", fix->id, fix->style);
        if (utils::strmatch(fix->style, "^hmc"))
            error->all(FLERR, "Fix modejump: fix {} ({}) rejects trajectories together with the jumps within them: use only one of the two", fix->id,
                       fix->style);
        if (is_one_of(fix, {"^wall/reflect", "^wall/piston"}))
            error->all(FLERR, "Fix modejump: fix {} ({}) reflects atoms at a wall that the moves do not include: use a fixed boundary "
                              "there (boundary f), beyond which no proposal is accepted", fix->id, fix->style);
        if (utils::strmatch(fix->style, "^shake") || utils::strmatch(fix->style, "^rattle") || fix->rigid_flag)
            error->all(FLERR, "Fix modejump: fix {} ({}) constrains atoms of the model or around it, but jumps do not keep these constraints: use flexible "
                              "bonds and a shorter timestep", fix->id, fix->style);
        // whether or not fix_modify adds it to the printed energy; thermostats report only the energy of their bath. Except CMAP,
        // which the moves include, and fixes that act only on other atoms: their energy is the same before and after
        const bool beside = is_one_of(fix, {"^spring/self", "^wall/", "^indent", "^efield", "^addforce"}) && !touches(fix);
        if (fix->energy_global_flag && !fix->ecouple_flag && !beside && !utils::strmatch(fix->style, "^cmap"))
            error->all(FLERR, "Fix modejump: fix {} ({}) has a potential energy, which the moves would not include: remove one of the two, "
                              "or define the forces by a pair, bond, angle, dihedral or improper style", fix->id, fix->style);
        if (is_one_of(fix, {"^temp/berendsen", "^temp/rescale", "^nve/limit", "^nvk", "^ttm", "^dt/reset", "^viscous", "^heat", "^ehex", "^viscosity", "^thermal/conductivity"}))
            error->all(FLERR, "Fix modejump: fix {} ({}) does not sample the canonical ensemble: use nvt, temp/csvr or langevin",
                       fix->id, fix->style);
        // jumps correct the velocities of the other particles for new forces, but not for new torques
        if (fix->time_integrate && is_one_of(fix, {"sphere", "/body", "/line", "/tri", "/dot", "/eff"}))
            error->all(FLERR, "Fix modejump: fix {} ({}) rotates or resizes particles, but jumps adapt only velocities to the new forces: "
                              "use fix nve or nvt", fix->id, fix->style);
        if (fix->box_change)
            error->all(FLERR, "Fix modejump: fix {} ({}) changes the box, or how ranks share it, which the moves do not support: run "
                              "at constant volume (nvt instead of npt)", fix->id, fix->style);
    }
}

/// Stops unless every atom of the model follows its forces: otherwise jumps would move it, and give it a velocity, all the same.
/// Collective.
void FixModeJump::require_motion() {
    const auto first = [this](auto is_bad) {
        tagint mine = MAXTAGINT, first = MAXTAGINT;
        for (int i = 0; i < atom->nlocal; i++)
            if ((atom->mask[i] & groupbit) && is_bad(atom->mask[i]))
                mine = std::min(mine, atom->tag[i]);
        MPI_Allreduce(&mine, &first, 1, MPI_LMP_TAGINT, MPI_MIN, world);
        return first;
    };
    int moved = 0;
    for (const Fix* fix : modify->get_fix_list()) {
        if (fix->time_integrate)
            moved |= fix->groupbit;
        const tagint held = holds(fix) ? first([fix](int mask) { return mask & fix->groupbit; }) : MAXTAGINT;
        if (held != MAXTAGINT)
            error->all(FLERR, "Fix modejump: fix {} ({}) holds atom {} of group {}, which jumps would move: remove it from one of the two",
                       fix->id, fix->style, held, group->names[igroup]);
    }
    const tagint left = first([moved](int mask) { return !(mask & moved); });
    if (left != MAXTAGINT)
        error->all(FLERR, "Fix modejump: no fix integrates atom {} of group {}, which jumps would move: include the whole group in a fix "
                          "such as nve or nvt", left, group->names[igroup]);
}

/// Stops if the masses show that the model's atoms are in another order. On rank 0.
void FixModeJump::check_masses(const modejump::Model& model, const std::vector<double>& masses) const {
    try {
        model.check_masses(masses);
    } catch (const std::exception& thrown) {
        throw std::runtime_error(model_file_ + ": " + thrown.what() + "; atom k of the model is the one with the k-th lowest ID in group " +
                                 group->names[igroup]);
    }
}

/// Warns if the atoms are in another order than the model's, are numbered differently from its frames, or a stereocentre has the
/// opposite handedness, so that no jump is accepted; and if the model is of another temperature. On rank 0.
void FixModeJump::check_labels() {
    const double kelvin = model_->temperature();
    const bool in_kelvin = std::string(update->unit_style) != "lj";
    if (in_kelvin && kelvin > 0 && !model_->is_steerable() && std::abs(kelvin - temperature_) > 0.5)
        error->warning(FLERR, "Fix modejump: the model {} was trained for {} K; fewer jumps are accepted at {} K", model_file_, kelvin,
                       temperature_);
    try {
        model_->check_labels(current_, box_across(current_));
    } catch (const std::exception& thrown) {
        error->warning(FLERR, "Fix modejump: with model {}: {}", model_file_, thrown.what());
    }
    model_.reset();
}

/// Stops if a thermostat is at another temperature than the moves, by mistake, in a ramp, or because `temper` has swapped it.
void FixModeJump::check_temperature() {
    for (Fix* fix : modify->get_fix_list()) {
        int dimension = -1;
        const auto* target = static_cast<const double*>(fix->extract("t_target", dimension));
        if (!target || dimension != 0)
            continue;
        // with per-atom temperatures there is no single one
        if (*target == 0.0)
            error->all(FLERR, "Fix modejump: fix {} ({}) has no positive temperature, or one per atom: use temperature {} for all atoms", fix->id, fix->style,
                       temperature_);
        if (!(std::abs(*target - temperature_) <= 1e-6 * temperature_))
            error->all(FLERR, "Fix modejump: temp is {}, but fix {} ({}) is at temperature {} at step {}: use one constant temperature",
                       temperature_, fix->id, fix->style, *target, update->ntimestep);
    }
}

/// Warns once if steps are repeated, after reset_timestep or in a loop over short runs: their random numbers are repeated, too.
void FixModeJump::check_step() {
    if (update->ntimestep <= last_ && !told_) {
        told_ = true;
        if (comm->me == 0)
            error->warning(FLERR, "Fix modejump: an attempt at step {} comes after one at step {}: it repeats the random numbers of an earlier one; "
                           "use a different seed for each independent run", update->ntimestep, last_);
    }
    last_ = update->ntimestep;
}
