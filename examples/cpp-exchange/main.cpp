// Two replicas of a particle, u = 10 (x^2 - 1)^2 + x/2 + 5 (y - x/2)^2 at kT = 1 and at kT = 5, move independently and
// exchange through a map between their ensembles. Lines that use modejump are numbered.
//     exchange COLD.safetensors [HOT.safetensors]
// With one model the map is the identity, and this is ordinary replica exchange; with a model for each ensemble it is
// learned replica exchange.
#include <modejump.hpp>
#include <cmath>
#include <cstdio>
#include <random>

static double potential(const double* r, double kT) {
    return (10 * std::pow(r[0] * r[0] - 1, 2) + 0.5 * r[0] + 5 * std::pow(r[1] - 0.5 * r[0], 2)) / kT;
}
int main(int argc, char** argv) try {
    const modejump::Model cold(argc > 1 ? argv[1] : "generator.safetensors"), hot = argc > 2 ? modejump::Model(argv[2]) : cold;
    modejump::Exchange exchange{modejump::Bijection(cold, hot)};    // 1: from the cold replica to the hot one
    const double kT[2] = {1, 5}, width[2] = {0.2, 0.4};
    modejump::State replica[2];                                     // 2
    modejump::ReducedPotential u[2];                                // 3: your energies, each divided by its own kT
    for (std::size_t i = 0; i < 2; i++) {
        u[i] = [kT = kT[i]](std::size_t n, const double* x, double* values) {
            for (std::size_t k = 0; k < n; k++) values[k] = potential(x + 2 * k, kT);
        };
        replica[i].x = {1, 0.5};
        replica[i].replica = i;
    }
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    std::exponential_distribution<double> exponential;
    double left = 0;
    const int sweeps = 100000;
    for (int sweep = 0; sweep < sweeps; sweep++) {
        for (int i = 0; i < 2; i++) {
            auto& x = replica[i].x;
            for (int step = 0; step < 40; step++) {                 // your dynamics
                const double y[2] = {x[0] + width[i] * normal(random), x[1] + width[i] * normal(random)};
                if (potential(y, kT[i]) - potential(x.data(), kT[i]) < exponential(random)) x = {y[0], y[1]};
            }
            replica[i].reduced_potential = potential(x.data(), kT[i]); // 4: recomputed for this configuration
            replica[i].step = sweep;
        }
        exchange.attempt(u[0], u[1], replica[0], replica[1]);       // 5: if accepted, redraw your velocities
        left += replica[0].x[0] < 0;
    }
    std::printf("P(x < 0) = %.3f, exact 0.727, %.0f%% of the exchanges accepted\n", left / sweeps,
                100.0 * exchange.statistics().acceptance());
} catch (const std::exception& error) {
    std::fprintf(stderr, "exchange: %s\n", error.what());
    return 2;
}
