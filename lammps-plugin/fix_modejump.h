/* fix modejump: configurations of a molecule proposed by a trained generator, between steps of molecular dynamics.

   Every N steps the fix asks the generator for a configuration of its group, has LAMMPS compute its energy, and accepts
   or rejects it by the Metropolis-Hastings rule. README.md beside this file documents the command. */

#ifndef LMP_FIX_MODEJUMP_H
#define LMP_FIX_MODEJUMP_H

#include "comm.h"
#include "fix.h"

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace modejump {
class Model;
class Move;
struct State;
} // namespace modejump

namespace LAMMPS_NS {

class Compute;

class FixModeJump : public Fix {
public:
    FixModeJump(LAMMPS* lmp, int narg, char** arg);
    ~FixModeJump() override;

    int setmask() override;
    void init() override;
    void initial_integrate(int) override;
    void pre_exchange() override;
    double compute_vector(int i) override;
    double memory_usage() override;

private:
    /// Next task that rank 0 sends to the others.
    enum class Order : int { Evaluate, Accept, Reject, Fail };

    void read_options(int narg, char** arg);
    void take_units();
    std::vector<double> masses();
    void load(int dimension);
    std::uint64_t replica() const;
    std::uint64_t free_number() const;
    std::uint64_t seed() const;
    void attempt();
    void follow();
    void take_over(const double* x);
    void command(Order order);
    Order obey();
    [[noreturn]] void fail(const std::string& message);
    template <class Body> void on_root(Body body);
    template <class Value> std::vector<Value> gathered(const std::vector<Value>& values, MPI_Datatype type);

    // checks.cpp
    static bool replaces_forces(const Fix* fix);
    static bool ignores_forces(const Fix* fix);
    static bool holds(const Fix* fix);
    bool touches(const Fix* fix) const;
    void require_setup() const;
    void require_motion();
    void check_masses(const modejump::Model& model, const std::vector<double>& masses) const;
    void check_temperature();
    void check_step();
    void check_labels();

    // atoms.cpp
    void gather();
    void require_atoms();
    std::optional<std::array<double, 9>> box_across(const std::vector<double>& x) const;
    void place(const std::vector<double>& x);
    void restore();
    void reject();
    void settle();
    void migrate();
    template <class Near> std::unordered_map<tagint, std::array<double, 3>> far_goals(Near near);

    // energy.cpp
    double potential();
    void list_neighbors();
    double interactions();
    bool is_torn(const std::vector<double>& x) const;
    bool lacks_partners() const;
    bool leaves_box(const std::vector<double>& x) const;
    double reduced_potential_of(const double* x);

    // velocities.cpp
    double mass_of(int i) const;
    void kick(double sign);
    void draw_velocities();

    // options
    std::string model_file_, screen_file_, method_;
    double temperature_;
    std::uint64_t seed_;
    /// Number among the fixes of this style.
    std::uint64_t number_ = 0;
    int proposals_;
    bool ahead_;

    /// The move, on rank 0 only; `loaded_` tells all ranks whether it exists.
    std::unique_ptr<modejump::Move> move_;
    bool loaded_;
    /// The model, on rank 0, until the atom numbering has been checked.
    std::unique_ptr<modejump::Model> model_;

    Compute* energy_;
    /// LAMMPS's unit of length in nm; one dalton in its unit of mass, and kT in its unit of energy.
    double nm_, dalton_, kt_;
    /// Atom of the model by atom ID.
    std::unordered_map<tagint, int> index_;
    /// Per atom of the model: unwrapped coordinates in nm; x and image flags as in LAMMPS.
    std::vector<double> current_, x_;
    std::vector<imageint> image_;
    /// Masses in dalton, in the model's order, when the model was loaded.
    std::vector<double> masses_;
    /// Step of the last attempt, and whether the warning about repeated steps was given.
    bigint last_ = -1;
    bool told_ = false;
};

/// Gathers the values of all ranks, one rank after the other, on each.
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

} // namespace LAMMPS_NS

#endif
