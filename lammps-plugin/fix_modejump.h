/* fix modejump: configurations of a molecule proposed by a trained generator, between steps of molecular dynamics.

   Every N steps the fix asks the generator for a configuration of its group, has LAMMPS compute the energy there, and
   accepts or rejects by Metropolis and Hastings. README.md beside this file documents the command. */

#ifndef LMP_FIX_MODEJUMP_H
#define LMP_FIX_MODEJUMP_H

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
    void pre_exchange() override;
    double compute_vector(int i) override;
    double memory_usage() override;

private:
    /// What rank 0 tells the others to do next.
    enum class Order : int { Evaluate, Accept, Reject, Fail };

    void read_options(int narg, char** arg);
    void require_motion();
    std::vector<double> masses();
    void load(int dimension);
    void check_masses(const modejump::Model& model, const std::vector<double>& masses) const;
    void check_temperature();
    void check_step();
    void gather();
    void place(const std::vector<double>& x);
    void restore();
    void reject();
    void settle();
    void migrate();
    template <class Near> std::unordered_map<tagint, std::array<double, 3>> far_goals(Near near);
    template <class Value> std::vector<Value> gathered(const std::vector<Value>& values, MPI_Datatype type);
    double potential();
    void list_neighbors();
    double interactions();
    std::optional<std::array<double, 9>> box_across(const std::vector<double>& x) const;
    bool is_torn(const std::vector<double>& x) const;
    bool leaves_box(const std::vector<double>& x) const;
    double reduced_potential_of(const double* x);
    void attempt();
    void follow();
    void accept(const double* x);
    double mass_of(int i) const;
    void kick(double sign);
    std::uint64_t replica() const;
    std::uint64_t free_number() const;
    std::uint64_t seed() const;
    void draw_velocities();
    void command(Order order);
    Order obey();
    [[noreturn]] void fail(const std::string& message);
    template <class Body> void on_root(Body body);

    // options
    std::string model_file_, screen_file_, method_;
    double temperature_;
    std::uint64_t seed_;
    /// Among the fixes of this style.
    std::uint64_t number_ = 0;
    int proposals_;

    /// Only on rank 0; whether it is there, on all.
    std::unique_ptr<modejump::Move> move_;
    bool loaded_;

    Compute* energy_;
    /// LAMMPS's length in nm; one dalton, and kT, in its masses and energies.
    double nm_, dalton_, kt_;
    /// Atom of the model by atom ID.
    std::unordered_map<tagint, int> index_;
    /// By atom of the model: unwrapped coordinates in nm; x and image flags as LAMMPS has them.
    std::vector<double> current_, x_;
    std::vector<imageint> image_;
    /// Step of the last attempt, and whether it was told that steps come again.
    bigint last_ = -1;
    bool told_ = false;
};

} // namespace LAMMPS_NS

#endif
