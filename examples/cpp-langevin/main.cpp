// Adds jumps to your own molecular-dynamics loop: BAOAB dynamics of a particle of mass 1, kT = 1, in the double well
// u = 10 (x^2 - 1)^2 + x/2 + 5 (y - x/2)^2. Lines that use modejump are numbered.   own-langevin GENERATOR.safetensors
#include <modejump.hpp>
#include <cmath>
#include <cstdio>
#include <random>

static double potential(const double* r) {
    return 10 * std::pow(r[0] * r[0] - 1, 2) + 0.5 * r[0] + 5 * std::pow(r[1] - 0.5 * r[0], 2);
}
static void kick(double* v, const double* r, double dt) {
    v[0] += dt * (-40 * r[0] * (r[0] * r[0] - 1) - 0.5 + 5 * (r[1] - 0.5 * r[0]));
    v[1] -= dt * 10 * (r[1] - 0.5 * r[0]);
}
int main(int argc, char** argv) try {
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    modejump::Move jump{modejump::Model(argc > 1 ? argv[1] : "generator.safetensors")};                // 1
    modejump::State state;                                        // 2
    auto u = [](std::size_t n, const double* x, double* values) { // 3: your energies, divided by kT
        for (std::size_t i = 0; i < n; i++) values[i] = potential(x + 2 * i);
    };
    double x[2] = {1, 0.5}, v[2] = {0, 0}, left = 0;
    const double dt = 0.02, keep = std::exp(-dt), steps = 1000000;
    for (std::uint64_t step = 0; step < steps; step++) {
        kick(v, x, dt / 2);
        for (int d = 0; d < 2; d++) {
            x[d] += dt / 2 * v[d];
            v[d] = keep * v[d] + std::sqrt(1 - keep * keep) * normal(random);
            x[d] += dt / 2 * v[d];
        }
        kick(v, x, dt / 2);
        state = {{x[0], x[1]}, potential(x), step, 0, {}};        // 4
        if (step % 50 == 0 && jump.attempt(u, state).accepted())  // 5: state.x is the new configuration
            for (int d = 0; d < 2; d++) x[d] = state.x[d], v[d] = normal(random);
        left += x[0] < 0;
    }
    std::printf("P(x < 0) = %.3f, exact 0.727\n", left / steps);
} catch (const std::exception& error) {
    std::fprintf(stderr, "own-langevin: %s\n", error.what());
    return 2;
}
