// The part of the OpenMM C++ API that modejump uses, in types that Rust can call. Units: nm, ps, kJ/mol, dalton, K.
#pragma once

#include "rust/cxx.h"

#include "Solvent.h"

#include <OpenMM.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

// OpenMM throws OpenMMException, which derives from std::exception; a kernel may throw something else.
namespace rust {
namespace behavior {
template <typename Try, typename Fail> static void trycatch(Try &&func, Fail &&fail) noexcept try {
    func();
} catch (const std::exception &error) {
    fail(error.what());
} catch (...) {
    fail("an exception that is not a std::exception");
}
} // namespace behavior
} // namespace rust

namespace modejump {
namespace openmm {

class System {
public:
    // Removes the plugin's moves from the System.
    explicit System(OpenMM::System *system);
    size_t n_particles() const { return system->getNumParticles(); }
    void masses(rust::Slice<double> masses) const;
    void constraints(rust::Vec<uint64_t> &pairs, rust::Vec<double> &lengths) const;
    void bonds(rust::Vec<uint64_t> &pairs) const;
    bool has_barostat() const;
    bool removes_centre_of_mass_motion() const;
    bool is_held_in_space() const;
    bool is_periodic() const;
    void default_box_vectors(rust::Slice<double> box) const;
    size_t moves_left_out() const { return left_out; }

    std::unique_ptr<OpenMM::System> system;

private:
    size_t left_out = 0;
};

// Energies and forces of given configurations, in a Context of its own that never steps.
class Evaluator {
public:
    Evaluator(std::shared_ptr<System> system, OpenMM::Platform &platform);
    ~Evaluator();
    void set_box_vectors(rust::Slice<const double> box);
    void evaluate(rust::Slice<const double> x, rust::Slice<double> energies, rust::Slice<double> forces);

private:
    std::shared_ptr<System> system;
    OpenMM::VerletIntegrator integrator;
    std::unique_ptr<OpenMM::Context> context;
    std::vector<OpenMM::Vec3> positions, forces;
};

// Langevin dynamics (LangevinMiddleIntegrator).
class Simulation {
public:
    Simulation(std::shared_ptr<System> system, OpenMM::Platform &platform, size_t threads, double temperature,
               double friction, double timestep, int seed);
    ~Simulation();
    void step(size_t n);
    int64_t step_count() const;
    void get_positions(rust::Slice<double> x);
    void set_positions(rust::Slice<const double> x);
    void get_velocities(rust::Slice<double> v);
    void set_drawn_velocities(rust::Slice<const double> v);
    double potential_energy();
    double kinetic_energy();
    double degrees_of_freedom() const;
    void minimise(double tolerance, int max_iterations);
    rust::Vec<uint8_t> save_checkpoint();
    void load_checkpoint(rust::Slice<const uint8_t> bytes);
    // Writes the box vectors, flat; returns whether the System is periodic.
    bool box_vectors(rust::Slice<double> box) const;

private:
    friend class Solvent;
    void subtract_centre_of_mass_motion();

    std::shared_ptr<System> system;
    OpenMM::LangevinMiddleIntegrator integrator;
    std::unique_ptr<OpenMM::Context> context;
    std::vector<OpenMM::Vec3> buffer, forces;
    std::string random_state;
    bool in_turn;
};

// The environment of a part of a Simulation, which relaxes when that part is moved; implemented by the plugin's code.
class Solvent {
public:
    Solvent(Simulation &simulation, rust::Slice<const uint64_t> solute, size_t steps, double step_size);
    ~Solvent();
    // Starts one attempt from the present state of the Simulation.
    void begin(Simulation &simulation, double kt, uint64_t seed, uint64_t step);
    double energy_at(rust::Slice<const double> x);
    double relax(rust::Slice<const double> x, uint32_t stage);
    void get_positions(rust::Slice<double> x) const;
    uint64_t trajectories() const { return inner->trajectories; }
    uint64_t accepted() const { return inner->accepted; }

private:
    size_t n;
    std::vector<OpenMM::Vec3> positions;
    std::unique_ptr<ModeJumpPlugin::Solvent> inner;
};

rust::String openmm_version();
void load_plugins(rust::Str directory);
std::shared_ptr<System> system_from_xml(rust::Str xml);
std::unique_ptr<Evaluator> new_evaluator(const std::shared_ptr<System> &system, rust::Str platform);
std::unique_ptr<Simulation> new_simulation(const std::shared_ptr<System> &system, rust::Str platform, size_t threads,
                                           double temperature, double friction, double timestep, int32_t seed);
std::unique_ptr<Solvent> new_solvent(Simulation &simulation, rust::Slice<const uint64_t> solute, size_t steps,
                                     double step_size);

} // namespace openmm
} // namespace modejump
