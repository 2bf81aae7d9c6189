#include "fix_modejump.h"

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "error.h"
#include "exceptions.h"
#include "force.h"
#include "group.h"
#include "modify.h"
#include "universe.h"
#include "update.h"
#include "utils.h"

#include <modejump.hpp>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

using namespace LAMMPS_NS;
using namespace FixConst;

static constexpr int COLUMNS = 9;

FixModeJump::FixModeJump(LAMMPS* lmp, int narg, char** arg)
    : Fix(lmp, narg, arg), temperature_(0), seed_(0), proposals_(1), ahead_(false), loaded_(false), energy_(nullptr), nm_(0), dalton_(0), kt_(0) {
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
        error->all(FLERR, "Fix modejump requires atoms with IDs");
    // potential energy of the interactions only: contributions of other fixes are refused in init()
    const std::string compute = std::string(id) + "_pe";
    energy_ = modify->add_compute(compute + " all pe pair bond angle dihedral improper kspace");
}

FixModeJump::~FixModeJump() {
    if (modify && modify->get_compute_by_id(std::string(id) + "_pe") != nullptr)
        modify->delete_compute(std::string(id) + "_pe");
}

void FixModeJump::read_options(int narg, char** arg) {
    if (narg < 4)
        error->all(FLERR, "Usage: fix ID group modejump N model FILE temp T seed S [proposals K] "
                          "[method independence|isir] [screen FILE] [ahead yes|no]");
    nevery = utils::inumeric(FLERR, arg[3], false, lmp);
    if (nevery <= 0)
        error->all(FLERR, "Fix modejump: N = {}: must be a positive number of steps", arg[3]);
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
        else if (key == "ahead")
            ahead_ = utils::logical(FLERR, value, false, lmp) != 0;
        else
            error->all(FLERR, "Fix modejump: unknown keyword {}; known keywords: model, temp, seed, proposals, method, screen, ahead", key);
    }
    if (proposals_ < 1)
        error->all(FLERR, "Fix modejump: {} proposals: must be at least 1", proposals_);
    if (model_file_.empty() || !(temperature_ > 0))
        error->all(FLERR, "Fix modejump requires `model FILE` and `temp T` with a positive temperature");
    // with a default, runs that are meant to be independent would make identical jumps
    if (seed < 0)
        error->all(FLERR, "Fix modejump requires `seed S`, a number from 0 up: use a different seed for each independent run");
    seed_ = static_cast<std::uint64_t>(seed);
    if (method_ != "independence" && method_ != "isir")
        error->all(FLERR, "Fix modejump: unknown method {}; known methods: independence, isir", method_);
    if (method_ == "isir" && !screen_file_.empty())
        error->all(FLERR, "Fix modejump: a screen requires the method independence");
}

int FixModeJump::setmask() { return INITIAL_INTEGRATE | PRE_EXCHANGE; }

/// Runs a function on rank 0; an exception stops all ranks.
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

/// Stops all ranks, each of which must call this; rank 0 knows the reason.
void FixModeJump::fail(const std::string& message) {
    int length = static_cast<int>(message.size());
    MPI_Bcast(&length, 1, MPI_INT, 0, world);
    std::string text = message;
    text.resize(length);
    MPI_Bcast(text.data(), length, MPI_CHAR, 0, world);
    error->all(FLERR, "Fix modejump: {}", text);
}

void FixModeJump::init() {
    take_units();
    kt_ = force->boltz * temperature_;
    require_setup();
    energy_ = modify->get_compute_by_id(std::string(id) + "_pe");
    if (energy_ == nullptr)
        error->all(FLERR, "Fix modejump: the compute {}_pe, which this fix created, was deleted: define the fix again", id);

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
    if (update->whichflag == 1) // only in a run, not in a minimisation
        require_motion();

    if (!loaded_)
        load(static_cast<int>(x_.size()));
    else if (masses() != masses_)
        error->all(FLERR, "Fix modejump: the atoms of group {}, their masses or their order by ID have changed since the model "
                          "was loaded: define the fix again", group->names[igroup]);
    loaded_ = true;
}

/// Sets the units of lengths, masses and temperatures.
void FixModeJump::take_units() {
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
        error->all(FLERR, "Fix modejump: units {} are not supported; known units: real, metal, nano, lj", units);
}

/// Masses (dalton) of the model's atoms, in its order. Collective.
std::vector<double> FixModeJump::masses() {
    std::vector<double> mine(index_.size(), 0.0), all(index_.size());
    for (int i = 0; i < atom->nlocal; i++)
        if (atom->mask[i] & groupbit)
            mine[index_.at(atom->tag[i])] = mass_of(i) / dalton_;
    MPI_Allreduce(mine.data(), all.data(), static_cast<int>(mine.size()), MPI_DOUBLE, MPI_SUM, world);
    return all;
}

/// Smallest number that no other fix of this style has.
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

/// Seed of the moves: moves at the same step must not use the same random numbers, and several fixes of one input may have the
/// same seed.
std::uint64_t FixModeJump::seed() const { return seed_ + (number_ << 32); }

void FixModeJump::load(int dimension) {
    number_ = free_number();
    const bool has_units = update->unit_style != std::string("lj");
    masses_ = masses();
    on_root([&] {
        model_ = std::make_unique<modejump::Model>(model_file_);
        const modejump::Model& model = *model_;
        const std::size_t coordinates = model.dimension() - model.auxiliary();
        if (coordinates != static_cast<std::size_t>(dimension))
            throw std::runtime_error(model_file_ + " has " + std::to_string(coordinates / 3) + " atoms, but group " +
                                     group->names[igroup] + " has " + std::to_string(dimension / 3));
        if (has_units)
            check_masses(model, masses_);
        modejump::Options options;
        options.kind = method_ == "isir" ? MODEJUMP_ISIR : MODEJUMP_INDEPENDENCE;
        options.proposals = static_cast<std::uint64_t>(proposals_);
        options.seed = seed();
        options.stride = static_cast<std::uint64_t>(nevery);
        options.draw_ahead = ahead_ ? 1 : 0;
        options.partial = dimension / 3 < atom->natoms ? 1 : 0;
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

/// Asks for new neighbor lists, and so for a call of pre_exchange(), at the next multiple of N. At every step, since
/// `reset_timestep` before `run N pre no` calls nothing of a fix.
void FixModeJump::initial_integrate(int) { next_reneighbor = (update->ntimestep + nevery - 1) / nevery * nevery; }

void FixModeJump::pre_exchange() {
    if (update->ntimestep != next_reneighbor)
        return;
    check_step();
    check_temperature();
    gather();
    if (comm->me == 0)
        attempt();
    else
        follow();
}

/// Sends an order from rank 0.
void FixModeJump::command(Order order) {
    int number = static_cast<int>(order);
    MPI_Bcast(&number, 1, MPI_INT, 0, world);
}

/// Receives an order on the other ranks.
FixModeJump::Order FixModeJump::obey() {
    int number = 0;
    MPI_Bcast(&number, 1, MPI_INT, 0, world);
    return static_cast<Order>(number);
}

/// Makes one attempt on rank 0, in which the other ranks follow.
void FixModeJump::attempt() {
    if (model_)
        check_labels();
    modejump::State state;
    state.x = current_;
    state.step = static_cast<std::uint64_t>(update->ntimestep);
    state.replica = replica();
    state.box = box_across(current_);
    // as the other ranks do first: u at the current coordinates
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
        throw; // thrown by an energy, in which the other ranks have failed as well
    } catch (const std::exception& thrown) {
        problem = thrown.what();
        if (state.box)
            problem += "; if atoms of the group are half a box apart or more, use `reset_atoms image` to give them the flags of a whole molecule";
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
    take_over(state.x.data());
}

/// Moves to a configuration, which rank 0 has and the others receive, with new velocities for the moved atoms. Collective.
void FixModeJump::take_over(const double* x) {
    // not needed for an isolated molecule: its forces add up to zero, and it keeps only its momentum
    if (static_cast<bigint>(index_.size()) < atom->natoms) {
        restore();
        potential();
        kick(1.0);
    }
    reduced_potential_of(x); // forces at the new configuration
    draw_velocities();
    kick(-1.0);
}

/// Follows an attempt on the other ranks.
void FixModeJump::follow() {
    potential();
    for (;;) {
        switch (obey()) {
            case Order::Evaluate:
                reduced_potential_of(nullptr);
                break;
            case Order::Accept:
                take_over(nullptr);
                return;
            case Order::Reject:
                reject();
                return;
            case Order::Fail:
                fail("");
        }
    }
}

/// Replica number: each partition of -partition has its own random numbers.
std::uint64_t FixModeJump::replica() const { return static_cast<std::uint64_t>(universe->iworld); }

/// 1 attempts, 2 accepted, 3 rejected by the Metropolis test, 4 outside the support of the generator, 5 non-finite, singular or
/// with broken constraints, 6 of the wrong handedness or in a wrong mode, 7 acceptance (accepted / attempts), 8 effective sample
/// size of the proposals as a fraction, 9 mean log-weight; the last two are 0 without a usable proposal.
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
