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
#include "force.h"
#include "group.h"
#include "improper.h"
#include "kspace.h"
#include "modify.h"
#include "neighbor.h"
#include "pair.h"
#include "universe.h"
#include "update.h"
#include "utils.h"

#include <modejump.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <set>

using namespace LAMMPS_NS;
using namespace FixConst;

static constexpr int COLUMNS = 9;
/// Of Domain::boundary, and of Domain::nonperiodic.
static constexpr int FIXED = 1, SHRINK = 2;

FixModeJump::FixModeJump(LAMMPS* lmp, int narg, char** arg)
    : Fix(lmp, narg, arg), temperature_(0), seed_(0), proposals_(1), loaded_(false), energy_(nullptr), nm_(0), dalton_(0), kt_(0) {
    read_options(narg, arg);
    force_reneighbor = 1;
    pre_exchange_migrate = 1;
    next_reneighbor = -1;
    vector_flag = 1;
    size_vector = COLUMNS;
    global_freq = 1;
    extvector = 0;
    dynamic_group_allow = 0;
    if (!atom->tag_enable)
        error->all(FLERR, "Fix modejump needs atoms with IDs");
    // potential energy of the interactions alone: what other fixes add is refused in init()
    const std::string compute = std::string(id) + "_pe";
    energy_ = modify->add_compute(compute + " all pe pair bond angle dihedral improper kspace");
}

FixModeJump::~FixModeJump() {
    if (modify && energy_)
        modify->delete_compute(std::string(id) + "_pe");
}

void FixModeJump::read_options(int narg, char** arg) {
    if (narg < 4)
        error->all(FLERR, "Usage: fix ID group modejump N model FILE temp T seed S [proposals K] "
                          "[method independence|isir] [screen FILE]");
    nevery = utils::inumeric(FLERR, arg[3], false, lmp);
    if (nevery <= 0)
        error->all(FLERR, "Fix modejump: N = {}; a positive number of steps is needed", arg[3]);
    method_ = "independence";
    bigint seed = -1;
    for (int i = 4; i < narg; i += 2) {
        const std::string key = arg[i];
        if (i + 1 == narg)
            error->all(FLERR, "Fix modejump: keyword {} has no value", key);
        const char* value = arg[i + 1];
        if (key == "model")
            model_file_ = value;
        else if (key == "screen")
            screen_file_ = value;
        else if (key == "temp")
            temperature_ = utils::numeric(FLERR, value, false, lmp);
        else if (key == "seed")
            seed = utils::bnumeric(FLERR, value, false, lmp);
        else if (key == "proposals")
            proposals_ = utils::inumeric(FLERR, value, false, lmp);
        else if (key == "method")
            method_ = value;
        else
            error->all(FLERR, "Fix modejump: unknown keyword {}; there are model, temp, seed, proposals, method, screen", key);
    }
    if (model_file_.empty() || !(temperature_ > 0))
        error->all(FLERR, "Fix modejump needs `model FILE` and `temp T` with a positive temperature");
    // with a default, runs that are meant to be independent would make the same jumps
    if (seed < 0)
        error->all(FLERR, "Fix modejump needs `seed S`, a number from 0 up: give runs that are to be independent another one each");
    seed_ = static_cast<std::uint64_t>(seed);
    if (method_ != "independence" && method_ != "isir")
        error->all(FLERR, "Fix modejump: method {}; there are independence and isir", method_);
    if (method_ == "isir" && !screen_file_.empty())
        error->all(FLERR, "Fix modejump: a screen goes with the method independence");
}

int FixModeJump::setmask() { return PRE_EXCHANGE; }

/// Whether a style begins with one of these: accelerated variants have a suffix.
static bool is_one_of(const Fix* fix, std::initializer_list<const char*> styles) {
    return std::any_of(styles.begin(), styles.end(), [fix](const char* style) { return utils::strmatch(fix->style, style); });
}

/// Whether the atoms of a fix's group do not go where their forces would take them.
static bool holds(const Fix* fix) {
    return is_one_of(fix, {"^setforce", "^freeze", "^lineforce", "^planeforce", "^nve/noforce", "^move"});
}

/// Runs something on rank 0; what it throws stops all ranks.
template <class Body> void FixModeJump::on_root(Body body) {
    std::string problem;
    if (comm->me == 0) {
        try {
            body();
        } catch (const std::exception& thrown) {
            problem = thrown.what();
        }
    }
    int failed = !problem.empty();
    MPI_Bcast(&failed, 1, MPI_INT, 0, world);
    if (failed)
        fail(problem);
}

/// Stops all ranks, each of which has to come here; rank 0 knows why.
void FixModeJump::fail(const std::string& message) {
    int length = static_cast<int>(message.size());
    MPI_Bcast(&length, 1, MPI_INT, 0, world);
    std::string text = message;
    text.resize(length);
    MPI_Bcast(text.data(), length, MPI_CHAR, 0, world);
    error->all(FLERR, "Fix modejump: {}", text);
}

/// The values of all ranks, one rank after the other, on each.
template <class Value> std::vector<Value> FixModeJump::gathered(const std::vector<Value>& values, MPI_Datatype type) {
    const int mine = static_cast<int>(values.size());
    std::vector<int> counts(comm->nprocs), starts(comm->nprocs, 0);
    MPI_Allgather(&mine, 1, MPI_INT, counts.data(), 1, MPI_INT, world);
    for (int p = 1; p < comm->nprocs; p++)
        starts[p] = starts[p - 1] + counts[p - 1];
    std::vector<Value> all(starts.back() + counts.back());
    MPI_Allgatherv(values.data(), mine, type, all.data(), counts.data(), starts.data(), type, world);
    return all;
}

void FixModeJump::init() {
    const std::string units = update->unit_style;
    if (units == "real" || units == "metal") {
        nm_ = 0.1;
        dalton_ = 1.0;
    } else if (units == "nano") {
        nm_ = 1.0;
        dalton_ = 1.66053906660e-6; // in attograms
    } else if (units == "lj")
        nm_ = 1.0;
    else
        error->all(FLERR, "Fix modejump: units {}; real, metal, nano and lj are supported", units);
    kt_ = force->boltz * temperature_;
    if (utils::strmatch(update->integrate_style, "^respa"))
        error->all(FLERR, "Fix modejump does not work with run_style respa");
    // coordinates or forces of these are not where this fix moves and finds them
    if (lmp->kokkos)
        error->all(FLERR, "Fix modejump does not work with package KOKKOS: run LAMMPS without -k on and -sf kk");
    if (!modify->get_fix_by_style("^GPU").empty())
        error->all(FLERR, "Fix modejump does not work with package GPU: run LAMMPS without -sf gpu and without `package gpu`");
    for (const Fix* fix : modify->get_fix_list()) {
        if (utils::strmatch(fix->style, "^shake") || utils::strmatch(fix->style, "^rattle") || fix->rigid_flag)
            error->all(FLERR, "Fix modejump: fix {} ({}) constrains atoms, which the proposals do not keep", fix->id, fix->style);
        // whether fix_modify adds it to the printed energy or not; what thermostats tell is the energy of their bath
        if (fix->energy_global_flag && !fix->ecouple_flag)
            error->all(FLERR, "Fix modejump: fix {} ({}) has a potential energy, which the moves would not see: remove one of the two, "
                              "or have its forces from a pair, bond, angle, dihedral or improper style", fix->id, fix->style);
        if (is_one_of(fix, {"^temp/berendsen", "^temp/rescale", "^nve/limit", "^nvk"}))
            error->all(FLERR, "Fix modejump: fix {} ({}) does not sample the canonical ensemble: have nvt, temp/csvr or langevin",
                       fix->id, fix->style);
        if (fix->box_change)
            error->all(FLERR, "Fix modejump: fix {} ({}) changes the box, or how ranks share it, which the moves do not allow for: run "
                              "at constant volume (nvt instead of npt)", fix->id, fix->style);
    }

    // the atoms of the model: those of the group, by ID
    std::vector<tagint> ids;
    for (int i = 0; i < atom->nlocal; i++)
        if (atom->mask[i] & groupbit)
            ids.push_back(atom->tag[i]);
    std::vector<tagint> all = gathered(ids, MPI_LMP_TAGINT);
    std::sort(all.begin(), all.end());
    index_.clear();
    for (std::size_t k = 0; k < all.size(); k++)
        index_[all[k]] = static_cast<int>(k);
    x_.assign(3 * all.size(), 0.0);
    current_ = x_;
    image_.assign(all.size(), 0);
    if (update->whichflag == 1) // not in a minimisation
        require_motion();

    if (!loaded_)
        load(static_cast<int>(x_.size()));
    loaded_ = true;
    next_reneighbor = (update->ntimestep / nevery + 1) * nevery;
}

/// Stops unless every atom of the model goes where its forces take it: jumps would move the others as well, and give them velocities.
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
            error->all(FLERR, "Fix modejump: fix {} ({}) holds atom {} of group {}, which jumps would move: leave it out of one of the two",
                       fix->id, fix->style, held, group->names[igroup]);
    }
    const tagint left = first([moved](int mask) { return !(mask & moved); });
    if (left != MAXTAGINT)
        error->all(FLERR, "Fix modejump: no fix integrates atom {} of group {}, which jumps would move: have all of the group in a fix "
                          "such as nve or nvt", left, group->names[igroup]);
}

/// The masses (dalton) of the model's atoms, in its order. Collective.
std::vector<double> FixModeJump::masses() {
    std::vector<double> mine(index_.size(), 0.0), all(index_.size());
    for (int i = 0; i < atom->nlocal; i++)
        if (atom->mask[i] & groupbit)
            mine[index_.at(atom->tag[i])] = mass_of(i) / dalton_;
    MPI_Allreduce(mine.data(), all.data(), static_cast<int>(mine.size()), MPI_DOUBLE, MPI_SUM, world);
    return all;
}

/// The smallest number that no other fix of this style has.
std::uint64_t FixModeJump::free_number() const {
    std::set<std::uint64_t> taken;
    for (Fix* fix : modify->get_fix_by_style("^modejump$")) {
        const auto* other = dynamic_cast<const FixModeJump*>(fix);
        if (other && other->loaded_)
            taken.insert(other->number_);
    }
    std::uint64_t number = 0;
    while (taken.count(number))
        number++;
    return number;
}

/// Moves at the same step must not use the same numbers, and several fixes of one input may have the same seed.
std::uint64_t FixModeJump::seed() const { return seed_ + (number_ << 32); }

void FixModeJump::load(int dimension) {
    number_ = free_number();
    const bool has_units = update->unit_style != std::string("lj");
    const std::vector<double> m = has_units ? masses() : std::vector<double>();
    on_root([&] {
        const modejump::Model model(model_file_);
        const std::size_t coordinates = model.dimension() - model.auxiliary();
        if (coordinates != static_cast<std::size_t>(dimension))
            throw std::runtime_error(model_file_ + " has " + std::to_string(coordinates / 3) + " atoms, group " +
                                     group->names[igroup] + " has " + std::to_string(dimension / 3));
        if (has_units)
            check_masses(model, m);
        modejump::Options options;
        options.kind = method_ == "isir" ? MODEJUMP_ISIR : MODEJUMP_INDEPENDENCE;
        options.n_proposals = static_cast<std::uint64_t>(std::max(proposals_, 0));
        options.seed = seed();
        options.stride = static_cast<std::uint64_t>(nevery);
        if (screen_file_.empty())
            move_ = std::make_unique<modejump::Move>(model, options);
        else
            move_ = std::make_unique<modejump::Move>(model, modejump::Model(screen_file_), options);
        if (has_units)
            move_->set_temperature(temperature_); // K
        utils::logmesg(lmp, "modejump: active; fix {}, library {}, model {}, {} atoms of group {}, an attempt every {} steps, seed {}\n",
                       id, modejump_version(), model_file_, dimension / 3, group->names[igroup], nevery, seed_);
    });
}

/// Stops where masses say that the model's atoms come in another order. On rank 0.
void FixModeJump::check_masses(const modejump::Model& model, const std::vector<double>& masses) const {
    try {
        model.check_masses(masses);
    } catch (const std::exception& thrown) {
        throw std::runtime_error(model_file_ + ": " + thrown.what() + "; atom k of the model is the one with the k-th lowest ID in group " +
                                 group->names[igroup]);
    }
}

void FixModeJump::pre_exchange() {
    if (update->ntimestep != next_reneighbor)
        return;
    next_reneighbor += nevery;
    check_step();
    check_temperature();
    gather();
    if (comm->me == 0)
        attempt();
    else
        follow();
}

/// Says so, once, where steps come again, after reset_timestep or in a loop over short runs: their random numbers do, too.
void FixModeJump::check_step() {
    if (update->ntimestep <= last_ && !told_) {
        told_ = true;
        if (comm->me == 0)
            error->warning(FLERR, "Fix modejump: an attempt at step {} after one at step {}: it has the random numbers of an earlier one; "
                           "runs that are to be independent need a fix with another seed", update->ntimestep, last_);
    }
    last_ = update->ntimestep;
}

/// Stops where a thermostat is at another temperature than the moves, by mistake, in a ramp or because `temper` has swapped it.
void FixModeJump::check_temperature() {
    for (Fix* fix : modify->get_fix_list()) {
        int dimension = -1;
        const auto* target = static_cast<const double*>(fix->extract("t_target", dimension));
        if (target && dimension == 0 && !(std::abs(*target - temperature_) <= 1e-6 * temperature_))
            error->all(FLERR, "Fix modejump: temp {}, and fix {} ({}) is at temperature {} at step {}: have one constant temperature",
                       temperature_, fix->id, fix->style, *target, update->ntimestep);
    }
}

/// Coordinates and image flags of the model's atoms to all ranks.
void FixModeJump::gather() {
    std::vector<double> x(x_.size(), 0.0), unwrapped(x_.size(), 0.0);
    std::vector<imageint> image(image_.size(), 0);
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

/// Gives the model's atoms the coordinates that they had, to the last bit.
void FixModeJump::restore() {
    for (int i = 0; i < atom->nlocal; i++) {
        if (!(atom->mask[i] & groupbit))
            continue;
        const int k = index_.at(atom->tag[i]);
        std::copy(&x_[3 * k], &x_[3 * k] + 3, atom->x[i]);
        atom->image[i] = image_[k];
    }
}

/// Puts the model's atoms back where they belong, so that LAMMPS finds them on the ranks from which it would look for them.
void FixModeJump::reject() {
    restore();
    if (comm->nprocs > 1) {
        settle();
        restore(); // wrapping and the coordinates of a triclinic box have changed bits
    }
}

/// Takes the atoms to the ranks that own their places. Those that go farther than to a neighbour, where exchange() would lose
/// them, go one rank at a time.
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
        error->all(FLERR, "Fix modejump: {} of {} atoms are there at step {}; have boundaries of type p or s, which no atom leaves, "
                          "and a timestep with which the dynamics is stable", all, atom->natoms, update->ntimestep);
}

/// Where atoms of any rank go for which `near` gives another place than their own, by atom ID.
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

/// Atoms into the box, the box around them, each to the rank of its place and from there to its neighbours. Collective.
void FixModeJump::settle() {
    if (domain->triclinic)
        domain->x2lamda(atom->nlocal);
    domain->pbc();
    // a shrink-wrapped box goes with its atoms; of atoms outside there is no energy
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

/// Energy of the whole system, and forces, at the coordinates that the atoms have. Collective.
double FixModeJump::potential() {
    list_neighbors();
    return interactions();
}

void FixModeJump::list_neighbors() {
    settle();
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
    return energy_->compute_scalar();
}

/// The box (nm) if the model's atoms lie across half of it or more, as where data were wrapped and image flags are missing: the
/// generator makes its molecule whole with it. Otherwise that would change nothing, and not every model has bonds to do it by.
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

/// Whether an atom is farther from the first one than any energy could allow, or nowhere. LAMMPS takes the box away from a coordinate
/// until the atom is within: from a large number that has no end. A shrink-wrapped box would become too large for its bins.
bool FixModeJump::is_torn(const std::vector<double>& x) const {
    const double farthest = domain->nonperiodic == SHRINK ? 100 : 1000; // nm
    for (std::size_t k = 0; k < x.size(); k++)
        if (!(std::abs(x[k] - x[k % 3]) < farthest)) // a number that is none is not within either
            return true;
    return false;
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

/// What LAMMPS has to say of a proposal is not about the run: it writes and counts no warnings, and an error does not end the run.
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

/// u of a configuration that rank 0 has and the others receive; infinite for what LAMMPS cannot take. Collective.
double FixModeJump::reduced_potential_of(const double* x) {
    std::vector<double> coordinates(current_.size());
    if (x != nullptr)
        std::copy(x, x + coordinates.size(), coordinates.begin());
    MPI_Bcast(coordinates.data(), static_cast<int>(coordinates.size()), MPI_DOUBLE, 0, world);
    if (is_torn(coordinates) || leaves_box(coordinates))
        return std::numeric_limits<double>::infinity();
    place(coordinates);
    list_neighbors();
    if (comm->nprocs > 1) {
        try {
            return interactions() / kt_;
        } catch (const LAMMPSException&) {
            // the other ranks wait for this one somewhere in there
            error->one(FLERR, "Fix modejump: LAMMPS has no energy for a proposal, as it says above: run on one rank, where such "
                              "proposals are rejected");
        }
    }
    const Mute mute(lmp);
    try {
        return interactions() / kt_;
    } catch (const LAMMPSException&) {
        return std::numeric_limits<double>::infinity(); // a bond that FENE does not allow, a distance that is in no table
    }
}

/// On rank 0.
void FixModeJump::command(Order order) {
    int number = static_cast<int>(order);
    MPI_Bcast(&number, 1, MPI_INT, 0, world);
}

/// On the other ranks.
FixModeJump::Order FixModeJump::obey() {
    int number = 0;
    MPI_Bcast(&number, 1, MPI_INT, 0, world);
    return static_cast<Order>(number);
}

/// On rank 0: one attempt, in which the other ranks follow.
void FixModeJump::attempt() {
    modejump::State state;
    state.x = current_;
    state.step = static_cast<std::uint64_t>(update->ntimestep);
    state.replica = replica();
    state.box = box_across(current_);
    // as the others do at the first order: u where the atoms are
    state.reduced_potential = potential() / kt_;
    const auto u = [this](std::size_t n, const double* x, double* values) {
        for (std::size_t k = 0; k < n; k++) {
            command(Order::Evaluate);
            values[k] = reduced_potential_of(x + k * current_.size());
        }
    };
    bool accepted = false;
    std::string problem;
    try {
        accepted = move_->attempt(u, state).accepted();
    } catch (const LAMMPSException&) {
        throw; // from an energy, in which the other ranks have failed as well
    } catch (const std::exception& thrown) {
        problem = thrown.what();
        if (state.box)
            problem += "; the group's atoms are half a box apart or more: `reset_atoms image` gives them the flags of a whole molecule";
    }
    if (!problem.empty()) {
        command(Order::Fail);
        fail(problem);
    }
    if (!accepted) {
        command(Order::Reject);
        reject();
        return;
    }
    command(Order::Accept);
    accept(state.x.data());
}

/// Goes to a configuration that rank 0 has and the others receive, with new velocities for the moved atoms. Collective.
void FixModeJump::accept(const double* x) {
    // forces of a molecule alone add up to nothing, and momentum is all that it keeps
    if (static_cast<bigint>(index_.size()) < atom->natoms) {
        restore();
        potential();
        kick(1.0);
    }
    reduced_potential_of(x); // forces at the new configuration
    draw_velocities();
    kick(-1.0);
}

/// On the other ranks.
void FixModeJump::follow() {
    potential();
    for (;;) {
        switch (obey()) {
            case Order::Evaluate:
                reduced_potential_of(nullptr);
                break;
            case Order::Accept:
                accept(nullptr);
                return;
            case Order::Reject:
                reject();
                return;
            case Order::Fail:
                fail("");
        }
    }
}

/// Of -partition: each has other random numbers.
std::uint64_t FixModeJump::replica() const { return static_cast<std::uint64_t>(universe->iworld); }

/// A number that depends on all bits of another (SplitMix64: Steele, Lea and Flood 2014).
static std::uint64_t mixed(std::uint64_t value) {
    value += 0x9E3779B97F4A7C15;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
}

double FixModeJump::mass_of(int i) const { return atom->rmass ? atom->rmass[i] : atom->mass[atom->type[i]]; }

/// Half a kick, forwards or backwards. Velocity Verlet has v(t - dt/2) here and will add dt/2 F(x')/m. What is kept across the jump,
/// or drawn anew, is v(t): v(t - dt/2) has to become what F(x') makes v(t) of.
void FixModeJump::kick(double sign) {
    // other atoms only where the kick of F(x') will come: not those that nothing moves or that are held
    int moved = 0, held = 0;
    for (const Fix* fix : modify->get_fix_list()) {
        if (fix->time_integrate)
            moved |= fix->groupbit;
        if (holds(fix))
            held |= fix->groupbit;
    }
    const double half_step = sign * 0.5 * update->dt * force->ftm2v;
    for (int i = 0; i < atom->nlocal; i++) {
        const int mask = atom->mask[i];
        if (!(mask & groupbit) && (!(mask & moved) || (mask & held)))
            continue;
        for (int d = 0; d < 3; d++)
            atom->v[i][d] += half_step * atom->f[i][d] / mass_of(i);
    }
}

/// New velocities v(t) of the moved atoms, drawn from Maxwell and Boltzmann's distribution given the momentum P that the atoms have
/// together. Velocities less P/M are independent of P and of x(t), so this leaves the canonical distribution as it is, and that of a
/// fixed momentum, too. Thermostats without noise for each atom (nvt, temp/csvr) sample the latter: they count 3N - 3 degrees of
/// freedom and would cool the others for a momentum that is drawn. Where P should change, thermostat or other atoms see to it. Collective.
void FixModeJump::draw_velocities() {
    double mine[4] = {}, all[4]; // m (new v - old v), m
    for (int i = 0; i < atom->nlocal; i++) {
        if (!(atom->mask[i] & groupbit))
            continue;
        const std::uint64_t of_step = mixed(mixed(mixed(seed()) ^ replica()) ^ static_cast<std::uint64_t>(update->ntimestep));
        std::mt19937_64 random(mixed(of_step ^ static_cast<std::uint64_t>(atom->tag[i])));
        const double mass = mass_of(i);
        std::normal_distribution<double> normal(0.0, std::sqrt(kt_ / (mass * force->mvv2e)));
        for (int d = 0; d < 3; d++) {
            const double drawn = normal(random);
            mine[d] += mass * (drawn - atom->v[i][d]);
            atom->v[i][d] = drawn;
        }
        mine[3] += mass;
    }
    MPI_Allreduce(mine, all, 4, MPI_DOUBLE, MPI_SUM, world);
    for (int i = 0; i < atom->nlocal; i++)
        if (atom->mask[i] & groupbit)
            for (int d = 0; d < 3; d++)
                atom->v[i][d] -= all[d] / all[3];
}

/// 1 attempts, 2 accepted, 3 rejected by the Metropolis test, 4 out of the generator's support, 5 non-finite, 6 of the wrong hand,
/// 7 accepted over attempts, 8 effective sample size of the proposals, 9 mean log-weight; the last two are 0 without a usable proposal.
double FixModeJump::compute_vector(int i) {
    double values[COLUMNS] = {};
    if (comm->me == 0 && move_) {
        const modejump::Statistics s = move_->statistics();
        const double attempts = static_cast<double>(s.attempts);
        const double all[COLUMNS] = {attempts,
                                     static_cast<double>(s.accepted),
                                     static_cast<double>(s.rejected),
                                     static_cast<double>(s.out_of_support),
                                     static_cast<double>(s.non_finite + s.singular + s.constraint),
                                     static_cast<double>(s.chirality + s.wrong_mode),
                                     s.attempts > 0 ? static_cast<double>(s.accepted) / attempts : 0.0,
                                     std::isnan(s.ess) ? 0.0 : s.ess,
                                     std::isnan(s.mean_log_weight) ? 0.0 : s.mean_log_weight};
        std::copy(all, all + COLUMNS, values);
    }
    MPI_Bcast(values, COLUMNS, MPI_DOUBLE, 0, world);
    return values[i];
}

double FixModeJump::memory_usage() {
    return static_cast<double>((x_.capacity() + current_.capacity()) * sizeof(double) + image_.capacity() * sizeof(imageint));
}
