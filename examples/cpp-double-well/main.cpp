// A stand-alone program that links modejump: Metropolis Monte Carlo in a double well with a barrier of 10 kT.
// Local moves alone stay in the well where they start; one generator jump every twenty sweeps gives the correct
// populations. Prints both beside the exact result; the exit status is 0 if the jumps agree within four standard errors.
//
//   double-well GENERATOR.safetensors
#include <modejump.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

// u(x, y) = 10 (x^2 - 1)^2 + x/2 + 5 (y - x/2)^2, the potential that the generator was trained for.
static double reduced_potential(const double* r) {
    const double well = r[0] * r[0] - 1.0, spring = r[1] - 0.5 * r[0];
    return 10.0 * well * well + 0.5 * r[0] + 5.0 * spring * spring;
}

// P(x < 0): y integrates out, leaving a one-dimensional integral.
static double exact_left() {
    double left = 0, all = 0;
    const int n = 200000;
    for (int i = 0; i < n; i++) {
        const double x = -2.5 + 5.0 * (i + 0.5) / n, well = x * x - 1.0;
        const double weight = std::exp(-10.0 * well * well - 0.5 * x);
        all += weight;
        left += x < 0 ? weight : 0.0;
    }
    return left / all;
}

struct Run {
    double left;
    double error;
    long crossings;
    double acceptance;
};

// The error comes from the means of fifty blocks.
static Run simulate(modejump::Move* jump, long sweeps) {
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    const auto u = [](std::size_t n, const double* x, double* values) {
        for (std::size_t i = 0; i < n; i++)
            values[i] = reduced_potential(x + 2 * i);
    };
    const int blocks = 50;
    std::vector<double> block(blocks, 0.0);
    modejump::State state;
    state.x = {1.0, 0.5};
    long crossings = 0;
    for (long sweep = 0; sweep < sweeps; sweep++) {
        const bool was_left = state.x[0] < 0;
        const double here = reduced_potential(state.x.data());
        const double trial[2] = {state.x[0] + 0.15 * normal(random), state.x[1] + 0.3 * normal(random)};
        if (std::log(uniform(random)) < here - reduced_potential(trial))
            std::copy(trial, trial + 2, state.x.begin());
        if (jump != nullptr && sweep % 20 == 0) {
            state.step = static_cast<std::uint64_t>(sweep);
            state.reduced_potential = reduced_potential(state.x.data());
            jump->attempt(u, state);
        }
        crossings += was_left != (state.x[0] < 0);
        block[static_cast<std::size_t>(sweep * blocks / sweeps)] += state.x[0] < 0 ? 1.0 : 0.0;
    }
    double mean = 0, square = 0;
    for (double& value : block) {
        value *= static_cast<double>(blocks) / static_cast<double>(sweeps);
        mean += value / blocks;
    }
    for (double value : block)
        square += (value - mean) * (value - mean) / (blocks - 1);
    return {mean, std::sqrt(square / blocks), crossings, jump != nullptr ? jump->statistics().acceptance() : 0.0};
}

int main(int argc, char** argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "usage: double-well GENERATOR.safetensors\n");
        return 2;
    }
    const modejump::Model model(argv[1]);
    modejump::Options options;
    options.seed = 2024;
    options.stride = 20;
    modejump::Move jump(model, options);

    const long sweeps = 400000;
    const Run local = simulate(nullptr, sweeps), mixed = simulate(&jump, sweeps);
    const double exact = exact_left();
    std::printf("P(x < 0)       exact %.4f\n", exact);
    std::printf("local moves    %.4f +- %.4f, %ld crossings\n", local.left, local.error, local.crossings);
    std::printf("with jumps     %.4f +- %.4f, %ld crossings, %.0f %% of the jumps accepted\n", mixed.left, mixed.error,
                mixed.crossings, 100.0 * mixed.acceptance);
    return std::abs(mixed.left - exact) < 4.0 * mixed.error && mixed.error < 0.02 ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "double-well: %s\n", error.what());
    return 2;
}
