/* modejump.hpp: the C interface as C++17 objects. Header only.
 *
 * Handles free themselves, a status other than 0 becomes modejump::Error, and an exception thrown by a reduced potential leaves
 * Move::attempt unchanged. Units and meanings are those of modejump.h.
 */
#ifndef MODEJUMP_HPP
#define MODEJUMP_HPP

#if __cplusplus < 201703L
#error "modejump.hpp requires C++17: compile with -std=c++17 or later; modejump.h is for C and older C++"
#endif

#include "modejump.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace modejump {

/// A status other than MODEJUMP_OK, with the library's message.
class Error : public std::runtime_error {
public:
    Error(std::int32_t status, const std::string& message) : std::runtime_error(message), status_(status) {}
    /// One of the MODEJUMP_... status codes.
    std::int32_t status() const noexcept { return status_; }

private:
    std::int32_t status_;
};

inline std::string last_error() {
    const char* message = nullptr;
    return modejump_last_error(&message) == MODEJUMP_OK ? message : "";
}

/// Throws Error unless the status is MODEJUMP_OK.
inline void check(std::int32_t status) {
    if (status != MODEJUMP_OK)
        throw Error(status, last_error());
}

/// Throws unless the loaded library has the interface version of this header.
inline void check_version() {
    if (modejump_abi_version() != MODEJUMP_ABI_VERSION)
        throw Error(MODEJUMP_UNSUPPORTED, "the modejump library has interface version " +
                                              std::to_string(modejump_abi_version()) + ", but the header has " +
                                              std::to_string(MODEJUMP_ABI_VERSION));
}

/// Sets where models loaded from now on run: "cpu", "auto", "cuda" or "cuda:N". Throws Error, which says what is
/// missing.
inline void set_device(const std::string& name) { check(modejump_set_device(name.c_str())); }

/// Where models loaded from now on run: "cpu", or the name of a GPU.
inline std::string device() {
    const char* name = nullptr;
    check(modejump_device(&name));
    return name;
}

/// Images of points under a flow, in either direction.
struct Transformed {
    /// The images, one after the other.
    std::vector<double> points;
    /// ln|dx/dz| of each.
    std::vector<double> log_det;
    std::vector<double> log_density;
};

/// Coordinates `[n][dimension]` and log-densities `[n]`.
struct Samples {
    std::vector<double> x;
    std::vector<double> log_density;
};

/// Options of loading a model, with the library's defaults.
struct ModelOptions : modejump_model_options {
    ModelOptions() : modejump_model_options() {
        check_version();
        struct_size = static_cast<std::uint32_t>(sizeof(modejump_model_options));
        check(modejump_model_options_init(this));
    }
};

/// A loaded model; copies share it. Const functions may be called from several threads at once.
class Model {
public:
    /// Loads a model file. Throws Error, also for options that this kind of model does not have.
    explicit Model(const std::string& path, const ModelOptions& options = ModelOptions()) {
        modejump_model* model = nullptr;
        check(modejump_model_load_with(path.c_str(), &options, &model));
        own(model);
    }

    /// Loads a model from the bytes of a model file.
    static Model from_bytes(const std::vector<std::uint8_t>& bytes, const ModelOptions& options = ModelOptions()) {
        modejump_model* model = nullptr;
        check(modejump_model_load_buffer_with(bytes.data(), bytes.size(), &options, &model));
        return Model(model);
    }

    /// Number of coordinates of a configuration, 3 x atoms for a molecule.
    std::size_t dimension() const { return dimension_; }

    /// Temperature, K, of the ensemble that the model describes; 0 if its file does not say.
    double temperature() const {
        double kelvin = 0;
        check(modejump_model_temperature(handle(), &kelvin));
        return kelvin;
    }

    /// Whether the model can be taken to other temperatures.
    bool is_steerable() const noexcept { return variance_ > 0; }

    /// Latent temperature of a steerable model: its temperature divided by that of its training; 0 for other models.
    double latent_temperature() const noexcept { return variance_; }

    /// Number of auxiliary coordinates, which come last. The configurations of a move do not have them.
    std::size_t auxiliary() const noexcept { return auxiliary_; }

    /// Standard deviation, nm, of each component of the centroid of x if that is noise, as in a TarFlow, or 0. Before
    /// log_density of such a model is used in a weight, move the centroid of each configuration to a point drawn from
    /// that normal distribution; moves do so.
    double centroid_noise() const {
        double sigma = 0;
        check(modejump_model_centroid_noise(handle(), &sigma));
        return sigma;
    }

    /// Number of coordinates of a configuration that a move changes.
    std::size_t move_dimension() const noexcept { return dimension_ - auxiliary_; }

    /// The steerable model at a temperature in K: samples and densities are those of that temperature. Throws Error for
    /// other models.
    Model at_temperature(double kelvin) const {
        modejump_model* model = nullptr;
        check(modejump_model_at_temperature(handle(), kelvin, &model));
        return Model(model);
    }

    /// The model file's description, JSON.
    std::string metadata() const {
        const char* json = nullptr;
        check(modejump_model_metadata(handle(), &json));
        return json;
    }

    /// Hash of the model file, hexadecimal.
    std::string hash() const {
        const char* hex = nullptr;
        check(modejump_model_hash(handle(), &hex));
        return hex;
    }

    /// Where the model runs: "cpu", or the name of a GPU.
    std::string device() const {
        const char* name = nullptr;
        check(modejump_model_device(handle(), &name));
        return name;
    }

    /// Finds the model's atoms in a caller's list: `order[i]` is the index in that list of the model's atom i. Residue
    /// labels are of the form `ALA2`. Throws, naming the atom, if the lists differ.
    std::vector<std::uint64_t> match_atoms(const std::vector<std::string>& residues, const std::vector<std::string>& names) const {
        if (residues.size() != names.size())
            throw Error(MODEJUMP_INVALID_INPUT, "match_atoms: the numbers of residues and names differ");
        std::vector<const char*> r, a;
        for (std::size_t i = 0; i < names.size(); i++) {
            r.push_back(residues[i].c_str());
            a.push_back(names[i].c_str());
        }
        std::vector<std::uint64_t> order(names.size());
        check(modejump_model_match_atoms(handle(), names.size(), r.data(), a.data(), order.data()));
        return order;
    }

    /// Throws, naming the atom, if the model's atoms, in its order, cannot have these masses (dalton).
    void check_masses(const std::vector<double>& masses) const {
        check(modejump_model_check_masses(handle(), masses.size(), masses.data()));
    }

    /// Throws, naming the atoms, if no jump from `x[atoms][3]` (nm) is accepted: positions in another unit, atoms in
    /// another order, equivalent atoms, such as the hydrogens of a CH2 or CH3 group, that are numbered differently from the
    /// frames of the model, a stereocentre of the opposite handedness, or a bond of another length than the model keeps.
    /// With a box (as in State) the molecule is made whole first.
    void check_labels(const std::vector<double>& x, const std::optional<std::array<double, 9>>& box = std::nullopt) const {
        check(modejump_model_check_labels(handle(), x.size(), x.data(), box ? box->data() : nullptr));
    }

    /// Throws if attempts with a box are not possible, because the model's atoms cannot be made whole in one, such as
    /// those of several molecules.
    void check_box() const { check(modejump_model_check_box(handle())); }

    /// Samples number `first` to `first + n - 1` of the sequence that belongs to `seed`.
    Samples sample(std::size_t n, std::uint64_t seed = 1, std::uint64_t first = 0) const {
        Samples samples{std::vector<double>(n * dimension_), std::vector<double>(n)};
        check(modejump_model_sample(handle(), seed, first, n, samples.x.data(), samples.log_density.data()));
        return samples;
    }

    /// log q of `x[n][dimension]`, -infinity outside the support.
    std::vector<double> log_density(const std::vector<double>& x) const {
        std::vector<double> log_density(rows(x));
        check(modejump_model_log_density(handle(), log_density.size(), x.data(), log_density.data()));
        return log_density;
    }

    /// As log_density, and also writes the gradient `[n][dimension]`.
    std::vector<double> log_density(const std::vector<double>& x, std::vector<double>& gradient) const {
        std::vector<double> log_density(rows(x)), result(x.size()); // `gradient` may be x
        check(modejump_model_log_density_gradient(handle(), log_density.size(), x.data(), log_density.data(), result.data()));
        gradient = std::move(result);
        return log_density;
    }

    /// Number of latent coordinates of a flow. This function and the next two throw for a model without a latent space.
    std::size_t latent_dimension() const {
        std::uint64_t latent = 0;
        check(modejump_model_latent_dimension(handle(), &latent));
        return static_cast<std::size_t>(latent);
    }

    /// Configurations of the latent points `z[n][latent_dimension]`; log q is -infinity where a point has none in the
    /// support.
    Transformed generate(const std::vector<double>& z) const {
        const std::size_t latent = latent_dimension(), n = z.size() / latent;
        if (n * latent != z.size())
            throw Error(MODEJUMP_INVALID_INPUT, "generate: expected latent points of " + std::to_string(latent) + " numbers each");
        Transformed images{std::vector<double>(n * dimension_), std::vector<double>(n), std::vector<double>(n)};
        check(modejump_model_generate(handle(), n, z.data(), images.points.data(), images.log_det.data(), images.log_density.data()));
        return images;
    }

    /// Latent points of the configurations `x[n][dimension]`; meaningless where log q is -infinity.
    Transformed encode(const std::vector<double>& x) const {
        const std::size_t n = rows(x);
        Transformed images{std::vector<double>(n * latent_dimension()), std::vector<double>(n), std::vector<double>(n)};
        check(modejump_model_encode(handle(), n, x.data(), images.points.data(), images.log_det.data(), images.log_density.data()));
        return images;
    }

    const modejump_model* handle() const noexcept { return model_.get(); }

private:
    explicit Model(modejump_model* model) { own(model); }

    void own(modejump_model* model) {
        model_.reset(model, [](modejump_model* m) { modejump_model_free(m); });
        std::uint64_t dimension = 0;
        check(modejump_model_dimension(model, &dimension));
        dimension_ = static_cast<std::size_t>(dimension);
        std::uint64_t auxiliary = 0;
        check(modejump_model_steering(model, &variance_, &auxiliary));
        auxiliary_ = static_cast<std::size_t>(auxiliary);
    }

    std::size_t rows(const std::vector<double>& x) const {
        if (dimension_ == 0 || x.size() % dimension_ != 0)
            throw Error(MODEJUMP_INVALID_INPUT, std::to_string(x.size()) + " numbers do not form whole configurations of " +
                                                    std::to_string(dimension_) + " coordinates");
        return x.size() / dimension_;
    }

    std::shared_ptr<modejump_model> model_;
    std::size_t dimension_ = 0, auxiliary_ = 0;
    double variance_ = 0;
};

/// Images `[n][dimension]` under a map, ln |dy/dx| `[n]`, and a status: 0, or the reason why there is no image,
/// `MODEJUMP_OUT_OF_SUPPORT` to `MODEJUMP_CHIRALITY`, in which case the row is unchanged and its logarithm -infinity.
struct Images {
    std::vector<double> x;
    std::vector<double> log_det;
    std::vector<std::uint32_t> status;
};

/// The invertible map f = T_to o T_from^-1 of two flows with a common latent space; copies share it. Const functions
/// may be called from several threads at once.
class Bijection {
public:
    /// Throws Error for models without a common latent space, or with different atoms or frames.
    Bijection(const Model& from, const Model& to) : dimension_(from.dimension()) {
        modejump_bijection* bijection = nullptr;
        check(modejump_bijection_new(from.handle(), to.handle(), &bijection));
        bijection_.reset(bijection, [](modejump_bijection* b) { modejump_bijection_free(b); });
    }

    /// Coordinates of a configuration.
    std::size_t dimension() const { return dimension_; }

    /// f of `x[n][dimension]`, whole molecules; each image has the frame of its x.
    Images map(const std::vector<double>& x) const { return images(x, 0); }

    /// f^-1 of `y[n][dimension]`.
    Images inverse(const std::vector<double>& y) const { return images(y, 1); }

    const modejump_bijection* handle() const noexcept { return bijection_.get(); }

private:
    Images images(const std::vector<double>& x, std::uint32_t inverse) const {
        if (x.size() % dimension_ != 0)
            throw Error(MODEJUMP_INVALID_INPUT, std::to_string(x.size()) + " numbers do not form whole configurations of " +
                                                    std::to_string(dimension_) + " coordinates");
        const std::size_t n = x.size() / dimension_;
        Images images{std::vector<double>(x.size()), std::vector<double>(n), std::vector<std::uint32_t>(n)};
        check(modejump_bijection_map(handle(), inverse, n, x.data(), images.x.data(), images.log_det.data(), images.status.data()));
        return images;
    }

    std::shared_ptr<modejump_bijection> bijection_;
    std::size_t dimension_;
};

/// Options of a move, with the library's defaults.
struct Options : modejump_move_options {
    Options() : modejump_move_options() {
        struct_size = static_cast<std::uint32_t>(sizeof(modejump_move_options));
        check(modejump_move_options_init(this));
    }
};

/// Path of an annealed move, with the library's defaults.
struct Annealing : modejump_annealing_options {
    Annealing() : modejump_annealing_options() {
        struct_size = static_cast<std::uint32_t>(sizeof(modejump_annealing_options));
        check(modejump_annealing_options_init(this));
    }
};

/// A walk in the latent space of a flow.
struct LatentWalk {
    /// Step widths, one of which is chosen at random in every attempt; the library's if empty.
    std::vector<double> widths;
    /// Leapfrog steps of a Hamiltonian trajectory, each as long as the width; 0 for a random walk.
    std::uint64_t leapfrog = 0;
    std::uint64_t seed = 0;
};

// Attempts call these objects in place: a function object with state that must persist from one attempt to the next has
// to be stored in a variable of one of these types, not converted anew at every attempt.

/// Writes the reduced potential u of `x[n][dimension]` into `u[n]`; may throw.
using ReducedPotential = std::function<void(std::size_t n, const double* x, double* u)>;

/// As ReducedPotential, and also writes du/dx into `gradient[n][dimension]`.
using ReducedPotentialGradient = std::function<void(std::size_t n, const double* x, double* u, double* gradient)>;

/// Moves the rest of the system with `x[dimension]` held fixed, and returns the u that results (modejump_target.relax);
/// may throw.
using Relaxation = std::function<double(const double* x, std::uint64_t stage)>;

/// A path along which a part of the system is pulled to the proposal while the rest relaxes.
struct DrivenPath {
    /// Number of perturbations, at least 1.
    std::uint64_t steps = 50;
};

/// State from which an attempt starts.
struct State {
    /// `[dimension]`; the new configuration after an acceptance.
    std::vector<double> x;
    /// u(x), to be set by the caller; kept up to date by Move::attempt, but to be computed again whenever x has moved
    /// otherwise.
    double reduced_potential = std::numeric_limits<double>::quiet_NaN();
    /// Number of the attempt, to be set by the caller: random numbers are a function of seed, step and replica, so
    /// attempts with the same number have the same proposals.
    std::optional<std::uint64_t> step;
    std::uint64_t replica = 0;
    /// Box vectors as rows, nm.
    std::optional<std::array<double, 9>> box;
};

/// Result of an attempt.
struct Outcome : modejump_outcome {
    bool accepted() const noexcept { return outcome == MODEJUMP_ACCEPTED; }
};

/// Counters and averages over the attempts.
struct Statistics : modejump_statistics {
    /// The fraction of attempts that were accepted; NaN before the first.
    double acceptance() const noexcept {
        return attempts > 0 ? static_cast<double>(accepted) / static_cast<double>(attempts) : std::numeric_limits<double>::quiet_NaN();
    }

    /// Kind of the log-density that decides acceptances: "exact", or "surrogate" for a biased move. Reports state it.
    const char* likelihood() const noexcept { return (flags & MODEJUMP_BY_SURROGATE) != 0 ? "surrogate" : "exact"; }
};

namespace detail {

/// Pairs of atoms as the C interface takes them; throws unless each has a length and, if there are pairs, every atom of
/// `dimension` coordinates has a mass.
inline const std::uint64_t* pairs(const std::vector<std::array<std::uint64_t, 2>>& atoms, const std::vector<double>& lengths,
                                  const std::vector<double>& masses, std::size_t dimension) {
    if (atoms.size() != lengths.size() || (!atoms.empty() && 3 * masses.size() != dimension))
        throw Error(MODEJUMP_INVALID_INPUT, "every constraint must have a length, and every atom a mass");
    static_assert(sizeof(std::array<std::uint64_t, 2>) == 2 * sizeof(std::uint64_t), "pairs are not packed");
    return atoms.empty() ? nullptr : atoms.front().data();
}

/// A state as the C interface takes it; throws unless it has `dimension` coordinates.
inline modejump_state raw(State& state, std::size_t dimension) {
    if (state.x.size() != dimension)
        throw Error(MODEJUMP_INVALID_INPUT, "the state has " + std::to_string(state.x.size()) + " coordinates, but a move of this model takes " +
                                                std::to_string(dimension) + " (Model::move_dimension)");
    if (!state.step)
        throw Error(MODEJUMP_INVALID_INPUT, "State::step is not set: set a different step for every attempt, since its random numbers depend on it");
    modejump_state raw{};
    raw.struct_size = static_cast<std::uint32_t>(sizeof(raw));
    raw.step = *state.step;
    raw.replica = state.replica;
    raw.reduced_potential = state.reduced_potential;
    raw.x = state.x.data();
    raw.box = state.box ? state.box->data() : nullptr;
    return raw;
}

/// The caller's functions during one call of the library. Exceptions cannot unwind the library's stack frames, so they
/// are stored here and rethrown after the call.
class Call {
public:
    explicit Call(const ReducedPotential& u, const ReducedPotentialGradient* gradient = nullptr, const Relaxation* relax = nullptr)
        : u_(u), gradient_(gradient), relax_(relax) {}

    modejump_target target() {
        modejump_target target{};
        target.struct_size = static_cast<std::uint32_t>(sizeof(target));
        target.user = this;
        target.reduced_potential = &Call::callback;
        if (gradient_ != nullptr && *gradient_)
            target.reduced_potential_gradient = &Call::gradient_callback;
        if (relax_ != nullptr && *relax_)
            target.relax = &Call::relax_callback;
        return target;
    }

    void rethrow() const {
        if (thrown_)
            std::rethrow_exception(thrown_);
    }

private:
    static std::int32_t callback(void* user, std::uint64_t n, const double* x, double* u) noexcept {
        Call& call = *static_cast<Call*>(user);
        return call.caught([&] { call.u_(static_cast<std::size_t>(n), x, u); });
    }

    static std::int32_t gradient_callback(void* user, std::uint64_t n, const double* x, double* u, double* g) noexcept {
        Call& call = *static_cast<Call*>(user);
        return call.caught([&] { (*call.gradient_)(static_cast<std::size_t>(n), x, u, g); });
    }

    static std::int32_t relax_callback(void* user, const double* x, std::uint64_t stage, double* u) noexcept {
        Call& call = *static_cast<Call*>(user);
        return call.caught([&] { *u = (*call.relax_)(x, stage); });
    }

    template <typename Body> std::int32_t caught(Body body) noexcept {
        try {
            body();
            return MODEJUMP_OK;
        } catch (const std::exception& error) {
            thrown_ = std::current_exception();
            modejump_set_last_error(error.what());
        } catch (...) {
            thrown_ = std::current_exception();
            modejump_set_last_error("an exception that is not a std::exception");
        }
        return MODEJUMP_CALLBACK_FAILED;
    }

    const ReducedPotential& u_;
    const ReducedPotentialGradient* gradient_;
    const Relaxation* relax_;
    std::exception_ptr thrown_;
};

} // namespace detail

/// A move of a model. Calls from several threads wait for each other; a call from within an attempt throws.
class Move {
public:
    explicit Move(const Model& model, const Options& options = Options()) : dimension_(model.move_dimension()) {
        modejump_move* move = nullptr;
        check(modejump_move_new(model.handle(), &options, &move));
        move_.reset(move);
    }

    /// Delayed acceptance: `model` proposes, `screen` tests, and the exact density of `model` decides on what has
    /// passed. With the kind MODEJUMP_SURROGATE the screen alone decides: biased, and marked in the statistics.
    Move(const Model& model, const Model& screen, const Options& options = Options()) : dimension_(model.move_dimension()) {
        modejump_move* move = nullptr;
        check(modejump_move_delayed_acceptance_new(model.handle(), screen.handle(), &options, &move));
        move_.reset(move);
    }

    /// Annealed move: annealed importance sampling carries the proposals of `model` to the target before they are
    /// tested; exact whatever the path. Attempts need the gradient of the reduced potential.
    Move(const Model& model, const Annealing& annealing, const Options& options = Options()) : dimension_(model.move_dimension()) {
        modejump_move* move = nullptr;
        check(modejump_move_annealed_new(model.handle(), &options, &annealing, &move));
        move_.reset(move);
    }

    /// Driven move: the atoms of `model` are pulled to its proposals while the rest of the system relaxes; exact
    /// whatever the path. Attempts need a Relaxation.
    Move(const Model& model, const DrivenPath& path, const Options& options = Options()) : dimension_(model.move_dimension()) {
        modejump_move* move = nullptr;
        check(modejump_move_driven_new(model.handle(), &options, path.steps, &move));
        move_.reset(move);
    }

    /// Latent walk: steps in the latent space of `model`, a flow of all coordinates or of the shape; exact whatever the
    /// flow. Attempts with Hamiltonian trajectories need the gradient of the reduced potential.
    Move(const Model& model, const LatentWalk& walk) : dimension_(model.move_dimension()) {
        modejump_latent_walk_options options{};
        options.struct_size = static_cast<std::uint32_t>(sizeof(options));
        check(modejump_latent_walk_options_init(&options));
        options.widths = walk.widths.empty() ? nullptr : walk.widths.data();
        options.n_widths = walk.widths.size();
        options.leapfrog = walk.leapfrog;
        options.seed = walk.seed;
        modejump_move* move = nullptr;
        check(modejump_move_latent_walk_new(model.handle(), &options, &move));
        move_.reset(move);
    }

    /// Jumps between the modes of `model`, of kind `modes`; `mode`, a function of x alone, returns the mode that a
    /// configuration is in: a number from 0, or −1 for none. Without such a function, Move(model, options) makes these
    /// jumps with the regions of the model file.
    Move(const Model& model, std::function<std::int64_t(std::size_t, const double* x)> mode, const Options& options = Options())
        : mode_(new ModeOf{std::move(mode), nullptr}), dimension_(model.move_dimension()) {
        modejump_move* move = nullptr;
        check(modejump_move_mode_jump_new(model.handle(), &options, &Move::mode_callback, mode_.get(), &move));
        move_.reset(move);
    }

    Move(Move&&) noexcept = default;

    /// The old move is freed before the mode function that it calls.
    Move& operator=(Move&& other) noexcept {
        move_ = std::move(other.move_);
        mode_ = std::move(other.mode_);
        dimension_ = other.dimension_;
        return *this;
    }

    /// Sets the bonds that the engine constrains: pairs of atoms, lengths in nm, masses of all atoms in dalton.
    void set_constraints(const std::vector<std::array<std::uint64_t, 2>>& atoms, const std::vector<double>& lengths,
                         const std::vector<double>& masses) {
        const std::uint64_t* pairs = detail::pairs(atoms, lengths, masses, dimension_);
        check(modejump_move_set_constraints(move_.get(), atoms.size(), pairs, lengths.data(), masses.data()));
    }

    /// Sets the temperature of the ensemble, in K: a move of a steerable model proposes for it from now on; other moves
    /// are unchanged.
    void set_temperature(double kelvin) { check(modejump_move_set_temperature(move_.get(), kelvin)); }

    /// Coordinates of a configuration.
    std::size_t dimension() const noexcept { return dimension_; }

    /// Makes one attempt. Throws what `u` throws, else Error; the state is then untouched.
    Outcome attempt(const ReducedPotential& u, State& state) { return attempt(detail::Call(u), state); }

    /// Makes one attempt of a move that needs gradients: annealed, or a latent walk with Hamiltonian trajectories.
    /// Throws what `u` or `gradient` throws, else Error.
    Outcome attempt(const ReducedPotential& u, const ReducedPotentialGradient& gradient, State& state) {
        return attempt(detail::Call(u, &gradient), state);
    }

    /// Makes one attempt of a driven move. `u` refers to the positions where `relax` has left the rest of the system;
    /// the caller restores these after an attempt that throws or is not accepted. Throws what `u` or `relax` throws,
    /// else Error.
    Outcome attempt(const ReducedPotential& u, const Relaxation& relax, State& state) {
        return attempt(detail::Call(u, nullptr, &relax), state);
    }

    Statistics statistics() const {
        Statistics statistics{};
        statistics.struct_size = static_cast<std::uint32_t>(sizeof(modejump_statistics));
        check(modejump_move_statistics(move_.get(), &statistics));
        return statistics;
    }

    void reset_statistics() { check(modejump_move_reset_statistics(move_.get())); }

    /// Latest log-weights of proposals, oldest first.
    std::vector<double> log_weights() const {
        std::uint64_t n = 0;
        check(modejump_move_log_weights(move_.get(), 0, nullptr, &n));
        std::vector<double> log_weights(static_cast<std::size_t>(n));
        check(modejump_move_log_weights(move_.get(), n, log_weights.data(), &n));
        return log_weights;
    }

private:
    Outcome attempt(detail::Call&& call, State& state) {
        const modejump_state raw = detail::raw(state, dimension_);
        const modejump_target target = call.target();
        Outcome outcome{};
        outcome.struct_size = static_cast<std::uint32_t>(sizeof(modejump_outcome));
        const std::int32_t status = modejump_move_attempt(move_.get(), &target, &raw, &outcome);
        if (mode_ && mode_->thrown)
            std::rethrow_exception(std::exchange(mode_->thrown, nullptr));
        call.rethrow();
        check(status);
        state.reduced_potential = outcome.reduced_potential;
        return outcome;
    }

    struct ModeOf {
        std::function<std::int64_t(std::size_t, const double*)> function;
        std::exception_ptr thrown;
    };

    // After an exception the configuration counts as in no mode, so the attempt ends without a change.
    static std::int64_t mode_callback(void* user, const double* x, std::uint64_t dimension) noexcept {
        ModeOf& mode = *static_cast<ModeOf*>(user);
        try {
            return mode.function(static_cast<std::size_t>(dimension), x);
        } catch (...) {
            mode.thrown = std::current_exception();
            return -1;
        }
    }

    struct Free {
        void operator()(modejump_move* move) const noexcept { modejump_move_free(move); }
    };

    // outlives the move, which calls it
    std::unique_ptr<ModeOf> mode_;
    std::unique_ptr<modejump_move, Free> move_;
    std::size_t dimension_;
};

/// Result of an exchange.
struct ExchangeOutcome : modejump_exchange_outcome {
    bool accepted() const noexcept { return outcome == MODEJUMP_ACCEPTED; }
};

/// Swaps of two replicas through a map: x_b becomes f(x_a) and x_a becomes f^-1(x_b) if a Metropolis test accepts.
/// Calls from several threads wait for each other; a call from within an attempt throws.
class Exchange {
public:
    /// The random number of an attempt is a function of seed, step and the two replicas: exchanges tried at the same
    /// step, such as those of the pairs of a ladder, need different seeds, or different replica numbers in their
    /// states.
    explicit Exchange(const Bijection& map, std::uint64_t seed = 0) : dimension_(map.dimension()) {
        modejump_exchange* exchange = nullptr;
        check(modejump_exchange_new(map.handle(), seed, &exchange));
        exchange_.reset(exchange);
    }

    /// Sets whether configurations take position and orientation along to the other replica, instead of each replica
    /// keeping its own.
    void carry_frames(bool yes) { check(modejump_exchange_carry_frames(exchange_.get(), yes ? 1 : 0)); }

    /// Sets the bonds that the engine constrains in both replicas, as for Move.
    void set_constraints(const std::vector<std::array<std::uint64_t, 2>>& atoms, const std::vector<double>& lengths,
                         const std::vector<double>& masses) {
        const std::uint64_t* pairs = detail::pairs(atoms, lengths, masses, dimension_);
        check(modejump_exchange_set_constraints(exchange_.get(), atoms.size(), pairs, lengths.data(), masses.data()));
    }

    /// Makes one attempt, each replica with its own reduced potential. Throws what they throw, else Error; the states
    /// are then untouched.
    ExchangeOutcome attempt(const ReducedPotential& u_a, const ReducedPotential& u_b, State& a, State& b) {
        const modejump_state raw_a = detail::raw(a, dimension_), raw_b = detail::raw(b, dimension_);
        detail::Call call_a(u_a), call_b(u_b);
        const modejump_target target_a = call_a.target(), target_b = call_b.target();
        ExchangeOutcome outcome{};
        outcome.struct_size = static_cast<std::uint32_t>(sizeof(modejump_exchange_outcome));
        const std::int32_t status =
            modejump_exchange_attempt(exchange_.get(), &target_a, &target_b, &raw_a, &raw_b, &outcome);
        call_a.rethrow();
        call_b.rethrow();
        check(status);
        a.reduced_potential = outcome.reduced_potential_a;
        b.reduced_potential = outcome.reduced_potential_b;
        return outcome;
    }

    /// Counters; weights are those of the mapped configurations of a as samples of b.
    Statistics statistics() const {
        Statistics statistics{};
        statistics.struct_size = static_cast<std::uint32_t>(sizeof(modejump_statistics));
        check(modejump_exchange_statistics(exchange_.get(), &statistics));
        return statistics;
    }

    void reset_statistics() { check(modejump_exchange_reset_statistics(exchange_.get())); }

private:
    struct Free {
        void operator()(modejump_exchange* exchange) const noexcept { modejump_exchange_free(exchange); }
    };

    std::unique_ptr<modejump_exchange, Free> exchange_;
    std::size_t dimension_;
};

} // namespace modejump

#endif
