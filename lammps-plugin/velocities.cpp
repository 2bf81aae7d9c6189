/* Velocities after a jump. */

#include "fix_modejump.h"

#include "atom.h"
#include "force.h"
#include "modify.h"
#include "update.h"

#include <cmath>
#include <random>

using namespace LAMMPS_NS;

/// Hash in which every bit depends on all bits of the input (SplitMix64: Steele, Lea and Flood 2014).
static std::uint64_t mixed(std::uint64_t value) {
    value += 0x9E3779B97F4A7C15;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
}

double FixModeJump::mass_of(int i) const { return atom->rmass ? atom->rmass[i] : atom->mass[atom->type[i]]; }

/// Applies half a kick, forwards or backwards. Collective. Velocity Verlet has v(t - dt/2) here and will add dt/2 F(x')/m. The velocities
/// that are kept across the jump, or drawn anew, are v(t): v(t - dt/2) must be such that F(x') takes it to v(t).
void FixModeJump::kick(double sign) {
    // other atoms only if the kick of F(x') will be applied to them, and as it will be: by itself setforce knows its directions and region
    int moved = 0, held = 0;
    for (Fix* fix : modify->get_fix_list()) {
        if (ignores_forces(fix))
            held |= fix->groupbit;
        else if (fix->time_integrate)
            moved |= fix->groupbit;
        if (replaces_forces(fix))
            fix->post_force(0);
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

/// Draws new velocities v(t) of the moved atoms from the Maxwell-Boltzmann distribution conditioned on the total momentum P of
/// these atoms. Velocities minus P/M are independent of P and of x(t), so this preserves the canonical distribution, and also
/// that of a fixed momentum. Thermostats without noise on each atom (nvt, temp/csvr) sample the latter: they count 3N - 3 degrees
/// of freedom, and would cool the others to compensate for a momentum that is drawn. If P should change, thermostat or other
/// atoms change it. Collective.
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
