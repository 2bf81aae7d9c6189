#include "modejump/src/engines/openmm/bridge.h"

#include "Space.h"

#include <openmm/internal/ContextImpl.h>
#include <openmm/reference/SimTKOpenMMUtilities.h>
#include <openmm/serialization/SerializationProxy.h>
#include <openmm/serialization/XmlSerializer.h>

#include <mutex>
#include <optional>
#include <shared_mutex>
#include <sstream>

using OpenMM::Context;
using OpenMM::ContextImpl;
using OpenMM::OpenMMException;
using OpenMM::Platform;
using OpenMM::State;
using OpenMM::Vec3;
using std::string;
using std::vector;

namespace modejump {
namespace openmm {

namespace {

// Force::getContextImpl is the only access to the ContextImpl. Through it an energy can be computed without the kinetic
// energy that Context::getState would add.
class Door : public OpenMM::Force {
public:
    ContextImpl &open(Context &context) const { return getContextImpl(context); }

private:
    OpenMM::ForceImpl *createImpl() const override { return nullptr; }
};

ContextImpl &impl(Context &context) { return Door().open(context); }

void check_size(size_t given, size_t wanted, const char *what) {
    if (given != wanted)
        throw OpenMMException(string(what) + ": " + std::to_string(given) + " numbers found, " + std::to_string(wanted) +
                              " expected");
}

void unpack(const double *flat, vector<Vec3> &vectors) {
    for (size_t i = 0; i < vectors.size(); i++)
        vectors[i] = Vec3(flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]);
}

void pack(const vector<Vec3> &vectors, double *flat) {
    for (size_t i = 0; i < vectors.size(); i++)
        for (int k = 0; k < 3; k++)
            flat[3 * i + k] = vectors[i][k];
}

Platform &find_platform(const string &name) {
    string names;
    for (int i = 0; i < Platform::getNumPlatforms(); i++) {
        if (Platform::getPlatform(i).getName() == name)
            return Platform::getPlatform(i);
        names += (i ? ", " : "") + Platform::getPlatform(i).getName();
    }
    throw OpenMMException("unknown platform '" + name + "'; known platforms: " + names);
}

// OpenMM keeps state for the whole process that it does not guard: the random numbers of the Reference platform, and the
// memory with which XML's numbers are converted. Two Systems that are read or copied at once can have wrong parameters,
// without a word; creating a Context copies some Forces as well, and restarts the random numbers. While a Turn lives, no
// other thread of the library does any of this.
class Turn {
public:
    Turn() : lock(mutex) {}

private:
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock;
};

std::mutex Turn::mutex;

// A Turn with the Simulation's own random numbers of the Reference platform.
class RandomTurn {
public:
    explicit RandomTurn(string &state) : state(state) {
        if (!state.empty()) {
            std::istringstream stream(state, std::ios::binary);
            OpenMM::SimTKOpenMMUtilities::loadCheckpoint(stream);
        }
    }
    ~RandomTurn() {
        std::ostringstream stream(std::ios::binary);
        OpenMM::SimTKOpenMMUtilities::createCheckpoint(stream);
        state = stream.str();
    }

private:
    Turn turn;
    string &state;
};

// The CPU platform looks for a Context in a list whenever it computes, so none may be created or destroyed meanwhile.
// Who waits for that waits in the door, so that new computations do not come first for ever.
std::mutex door;
std::shared_mutex contexts;

std::shared_lock<std::shared_mutex> computing() {
    std::lock_guard<std::mutex> enter(door);
    return std::shared_lock<std::shared_mutex>(contexts);
}

struct Entering {
    std::lock_guard<std::mutex> enter{door};
    std::unique_lock<std::shared_mutex> alone{contexts};
};

// For the creation and the end of a Context.
struct Changing {
    Turn turn;
    Entering alone;
};

std::map<string, string> properties(const Platform &platform, size_t threads) {
    if (platform.getName() == "CPU" && threads > 0)
        return {{"Threads", std::to_string(threads)}};
    return {};
}

// The name of the plugin's Force in XML, as in its proxy.
const char *const MOVE = "MonteCarloModeJump";

// Stands in for the plugin's Force if the plugin is not loaded to read it.
class StandIn : public OpenMM::Force {
protected:
    OpenMM::ForceImpl *createImpl() const override { return nullptr; }
};

class StandInProxy : public OpenMM::SerializationProxy {
public:
    StandInProxy() : SerializationProxy(MOVE) {}
    void serialize(const void *, OpenMM::SerializationNode &) const override {
        throw OpenMMException(string(MOVE) + " was removed from the System");
    }
    void *deserialize(const OpenMM::SerializationNode &) const override { return new StandIn(); }
};

void let_moves_be_read() {
    static std::once_flag once;
    std::call_once(once, [] {
        try {
            OpenMM::SerializationProxy::getProxy(MOVE);
        } catch (const OpenMMException &) {
            OpenMM::SerializationProxy::registerProxy(typeid(StandIn), new StandInProxy());
        }
    });
}

bool is_move(const OpenMM::Force &force) {
    return OpenMM::SerializationProxy::getProxy(typeid(force)).getTypeName() == MOVE;
}

template <class Kind>
bool has_force(const OpenMM::System &system) {
    for (int i = 0; i < system.getNumForces(); i++)
        if (dynamic_cast<const Kind *>(&system.getForce(i)) != nullptr)
            return true;
    return false;
}

// Whether steps draw from the state guarded by RandomTurn: on the Reference platform, on the CPU platform with a
// thermostat whose kernel is Reference's, and on all platforms with a barostat.
bool draws_in_turn(const System &system, const Platform &platform) {
    const string &name = platform.getName();
    return name == "Reference" || system.has_barostat() ||
           (name == "CPU" && has_force<OpenMM::AndersenThermostat>(*system.system));
}

} // namespace

rust::String openmm_version() { return Platform::getOpenMMVersion(); }

void load_plugins(rust::Str directory) { Platform::loadPluginsFromDirectory(string(directory)); }

std::shared_ptr<System> system_from_xml(rust::Str xml) {
    let_moves_be_read();
    std::istringstream stream{string(xml)};
    Turn turn;
    return std::make_shared<System>(OpenMM::XmlSerializer::deserialize<OpenMM::System>(stream));
}

System::System(OpenMM::System *given) : system(given) {
    for (int i = system->getNumForces() - 1; i >= 0; i--)
        if (is_move(system->getForce(i))) {
            system->removeForce(i);
            left_out++;
        }
}

void System::masses(rust::Slice<double> masses) const {
    for (size_t i = 0; i < masses.size(); i++)
        masses[i] = system->getParticleMass(static_cast<int>(i));
}

void System::constraints(rust::Vec<uint64_t> &pairs, rust::Vec<double> &lengths) const {
    for (int i = 0; i < system->getNumConstraints(); i++) {
        int a, b;
        double length;
        system->getConstraintParameters(i, a, b, length);
        pairs.push_back(a);
        pairs.push_back(b);
        lengths.push_back(length);
    }
}

bool System::has_barostat() const {
    return has_force<OpenMM::MonteCarloBarostat>(*system) || has_force<OpenMM::MonteCarloAnisotropicBarostat>(*system) ||
           has_force<OpenMM::MonteCarloMembraneBarostat>(*system) || has_force<OpenMM::MonteCarloFlexibleBarostat>(*system);
}

bool System::removes_centre_of_mass_motion() const {
    return ModeJumpPlugin::removesMomentum(*system);
}

bool System::is_held_in_space() const {
    return ModeJumpPlugin::isHeldInSpace(*system);
}

bool System::is_periodic() const {
    return system->usesPeriodicBoundaryConditions();
}

void System::default_box_vectors(rust::Slice<double> box) const {
    check_size(box.size(), 9, "box vectors");
    vector<Vec3> vectors(3);
    system->getDefaultPeriodicBoxVectors(vectors[0], vectors[1], vectors[2]);
    pack(vectors, box.data());
}

void System::bonds(rust::Vec<uint64_t> &pairs) const {
    for (int f = 0; f < system->getNumForces(); f++) {
        auto force = dynamic_cast<const OpenMM::HarmonicBondForce *>(&system->getForce(f));
        for (int i = 0; force != nullptr && i < force->getNumBonds(); i++) {
            int a, b;
            double length, k;
            force->getBondParameters(i, a, b, length, k);
            pairs.push_back(a);
            pairs.push_back(b);
        }
    }
    rust::Vec<double> lengths;
    constraints(pairs, lengths);
}

Evaluator::Evaluator(std::shared_ptr<System> shared, Platform &platform)
    : system(std::move(shared)), integrator(0.001), positions(system->n_particles()) {
    Changing changing;
    context = std::make_unique<Context>(*system->system, integrator, platform, properties(platform, 1));
}

Evaluator::~Evaluator() {
    Changing changing;
    context.reset();
}

void Evaluator::set_box_vectors(rust::Slice<const double> box) {
    check_size(box.size(), 9, "box vectors");
    vector<Vec3> vectors(3);
    unpack(box.data(), vectors);
    context->setPeriodicBoxVectors(vectors[0], vectors[1], vectors[2]);
}

void Evaluator::evaluate(rust::Slice<const double> x, rust::Slice<double> energies, rust::Slice<double> gradient) {
    const size_t dimension = 3 * positions.size(), n = energies.size();
    check_size(x.size(), n * dimension, "positions");
    const bool with_forces = !gradient.empty();
    if (with_forces)
        check_size(gradient.size(), n * dimension, "forces");
    ContextImpl &inner = impl(*context);
    const auto lock = computing();
    for (size_t row = 0; row < n; row++) {
        unpack(x.data() + row * dimension, positions);
        inner.setPositions(positions);
        inner.computeVirtualSites();
        energies[row] = inner.calcForcesAndEnergy(with_forces, true);
        if (with_forces) {
            inner.getForces(forces);
            pack(forces, gradient.data() + row * dimension);
        }
    }
}

std::unique_ptr<Evaluator> new_evaluator(const std::shared_ptr<System> &system, rust::Str platform) {
    return std::make_unique<Evaluator>(system, find_platform(string(platform)));
}

Simulation::Simulation(std::shared_ptr<System> shared, Platform &platform, size_t threads, double temperature,
                       double friction, double timestep, int seed)
    : system(std::move(shared)), integrator(temperature, friction, timestep), buffer(system->n_particles()),
      in_turn(draws_in_turn(*system, platform)) {
    integrator.setRandomNumberSeed(seed);
    RandomTurn turn(random_state);
    const Entering alone;
    context = std::make_unique<Context>(*system->system, integrator, platform, properties(platform, threads));
    // thermostats and barostats of the System follow this run's temperature, not the one they were written with
    const auto &there = context->getParameters();
    for (const string &name :
         {OpenMM::AndersenThermostat::Temperature(), OpenMM::MonteCarloBarostat::Temperature(),
          OpenMM::MonteCarloAnisotropicBarostat::Temperature(), OpenMM::MonteCarloMembraneBarostat::Temperature(),
          OpenMM::MonteCarloFlexibleBarostat::Temperature()})
        if (there.count(name) > 0)
            context->setParameter(name, temperature);
}

Simulation::~Simulation() {
    Changing changing;
    context.reset();
}

void Simulation::step(size_t n) {
    std::optional<RandomTurn> turn;
    if (in_turn)
        turn.emplace(random_state);
    const auto lock = computing();
    integrator.step(static_cast<int>(n));
}

int64_t Simulation::step_count() const { return context->getStepCount(); }

void Simulation::get_positions(rust::Slice<double> x) {
    check_size(x.size(), 3 * buffer.size(), "positions");
    impl(*context).getPositions(buffer);
    pack(buffer, x.data());
}

void Simulation::set_positions(rust::Slice<const double> x) {
    check_size(x.size(), 3 * buffer.size(), "positions");
    unpack(x.data(), buffer);
    context->setPositions(buffer);
    context->computeVirtualSites();
}

void Simulation::get_velocities(rust::Slice<double> v) {
    check_size(v.size(), 3 * buffer.size(), "velocities");
    impl(*context).getVelocities(buffer);
    pack(buffer, v.data());
}

// With xi drawn from Maxwell-Boltzmann and projected onto the constraints, stores xi - h/2 F(x - h/4 xi)/m. The middle
// scheme (Zhang et al., J. Phys. Chem. A 2019, 123, 6056) stores velocities that lag by half a step, are correlated
// with x and have variance kT/m; for a harmonic mode of frequency w this draw has that variance up to a factor 1 + h^4
// w^4/64, where the force at x itself would give 1 + h^2 w^2/4: 8 % too hot for C-H bonds at 1 fs.
void Simulation::set_drawn_velocities(rust::Slice<const double> v) {
    check_size(v.size(), 3 * buffer.size(), "velocities");
    ContextImpl &inner = impl(*context);
    const double half = 0.5 * integrator.getStepSize(), tolerance = integrator.getConstraintTolerance();
    unpack(v.data(), buffer);
    const auto lock = computing();
    inner.setVelocities(buffer);
    inner.applyVelocityConstraints(tolerance);
    inner.getVelocities(buffer);
    vector<Vec3> positions, shifted;
    inner.getPositions(positions);
    shifted = positions;
    for (size_t i = 0; i < buffer.size(); i++)
        shifted[i] -= buffer[i] * (0.5 * half);
    inner.setPositions(shifted);
    inner.computeVirtualSites();
    inner.calcForcesAndEnergy(true, false, integrator.getIntegrationForceGroups());
    inner.getForces(forces);
    inner.setPositions(positions);
    for (size_t i = 0; i < buffer.size(); i++) {
        const double mass = system->system->getParticleMass(static_cast<int>(i));
        buffer[i] = mass == 0 ? Vec3() : buffer[i] - forces[i] * (half / mass);
    }
    if (system->removes_centre_of_mass_motion())
        subtract_centre_of_mass_motion();
    inner.setVelocities(buffer);
    inner.applyVelocityConstraints(tolerance);
}

// A CMMotionRemover would do this only at the start of the next step; until then the temperature would be too high.
void Simulation::subtract_centre_of_mass_motion() {
    Vec3 momentum;
    double total = 0;
    for (size_t i = 0; i < buffer.size(); i++) {
        const double mass = system->system->getParticleMass(static_cast<int>(i));
        momentum += buffer[i] * mass;
        total += mass;
    }
    for (size_t i = 0; i < buffer.size(); i++)
        if (system->system->getParticleMass(static_cast<int>(i)) > 0)
            buffer[i] -= momentum * (1 / total);
}

double Simulation::potential_energy() {
    const auto lock = computing();
    return impl(*context).calcForcesAndEnergy(false, true);
}

double Simulation::kinetic_energy() {
    const auto lock = computing();
    return context->getState(State::Energy).getKineticEnergy();
}

double Simulation::degrees_of_freedom() const {
    double count = -system->system->getNumConstraints();
    for (int i = 0; i < system->system->getNumParticles(); i++)
        count += system->system->getParticleMass(i) > 0 ? 3 : 0;
    return system->removes_centre_of_mass_motion() ? count - 3 : count;
}

void Simulation::minimise(double tolerance, int max_iterations) {
    const auto lock = computing();
    OpenMM::LocalEnergyMinimizer::minimize(*context, tolerance, max_iterations);
}

rust::Vec<uint8_t> Simulation::save_checkpoint() {
    RandomTurn turn(random_state);
    std::ostringstream stream(std::ios::binary);
    context->createCheckpoint(stream);
    rust::Vec<uint8_t> bytes;
    const string text = stream.str();
    bytes.reserve(text.size());
    for (char c : text)
        bytes.push_back(static_cast<uint8_t>(c));
    return bytes;
}

void Simulation::load_checkpoint(rust::Slice<const uint8_t> bytes) {
    RandomTurn turn(random_state);
    std::istringstream stream(string(reinterpret_cast<const char *>(bytes.data()), bytes.size()), std::ios::binary);
    context->loadCheckpoint(stream);
}

bool Simulation::box_vectors(rust::Slice<double> box) const {
    check_size(box.size(), 9, "box vectors");
    vector<Vec3> vectors(3);
    context->getState(0).getPeriodicBoxVectors(vectors[0], vectors[1], vectors[2]);
    pack(vectors, box.data());
    return system->system->usesPeriodicBoundaryConditions();
}

Solvent::Solvent(Simulation &simulation, rust::Slice<const uint64_t> solute, size_t steps, double step_size)
    : n(solute.size()) {
    const vector<int> particles(solute.begin(), solute.end());
    Changing changing;
    std::unique_ptr<OpenMM::System> system(OpenMM::XmlSerializer::clone(*simulation.system->system));
    inner = std::make_unique<ModeJumpPlugin::Solvent>(impl(*simulation.context), std::move(system), particles,
                                                      static_cast<int>(steps), step_size);
}

Solvent::~Solvent() {
    Changing changing;
    inner.reset();
}

void Solvent::begin(Simulation &simulation, double kt, uint64_t seed, uint64_t step) {
    ContextImpl &outer = impl(*simulation.context);
    Turn turn;
    const auto lock = computing();
    outer.getPositions(positions);
    using Stream = ModeJumpPlugin::VelocityStream;
    inner->begin(outer, positions, kt, Stream(seed, step, 0, Stream::RELAX));
}

double Solvent::energy_at(rust::Slice<const double> x) {
    check_size(x.size(), 3 * n, "positions");
    Turn turn; // its integrator draws random numbers, used or not
    const auto lock = computing();
    return inner->energyAt(x.data());
}

double Solvent::relax(rust::Slice<const double> x, uint32_t stage) {
    check_size(x.size(), 3 * n, "positions");
    Turn turn;
    const auto lock = computing();
    return inner->relax(x.data(), stage);
}

void Solvent::get_positions(rust::Slice<double> x) const {
    check_size(x.size(), 3 * positions.size(), "positions");
    pack(inner->getPositions(), x.data());
}

std::unique_ptr<Solvent> new_solvent(Simulation &simulation, rust::Slice<const uint64_t> solute, size_t steps,
                                     double step_size) {
    return std::make_unique<Solvent>(simulation, solute, steps, step_size);
}

std::unique_ptr<Simulation> new_simulation(const std::shared_ptr<System> &system, rust::Str platform, size_t threads,
                                           double temperature, double friction, double timestep, int32_t seed) {
    return std::make_unique<Simulation>(system, find_platform(string(platform)), threads, temperature, friction,
                                        timestep, seed);
}

} // namespace openmm
} // namespace modejump
