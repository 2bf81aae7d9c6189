// Runs every move in one potential, a double well with a barrier of 10 kT, with a local step between attempts. Prints the population of
// the left well that each move finds; the exit status is 0 if all agree with the exact value within four standard errors.
//
//   moves GENERATOR.safetensors MODES.safetensors STEERABLE.safetensors
#include <modejump.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <utility>
#include <vector>

static double reduced_potential(const double* r) {
    const double well = r[0] * r[0] - 1.0, spring = r[1] - 0.5 * r[0];
    return 10.0 * well * well + 0.5 * r[0] + 5.0 * spring * spring;
}

static void gradient(const double* r, double* g) {
    const double slope = 10.0 * (r[1] - 0.5 * r[0]);
    g[0] = 40.0 * r[0] * (r[0] * r[0] - 1.0) + 0.5 - 0.5 * slope;
    g[1] = slope;
}

// P(x < 0): y integrates out.
static double exact_left() {
    double left = 0, all = 0;
    for (int i = 0; i < 100000; i++) {
        const double x = -2.5 + 5e-5 * (i + 0.5), well = x * x - 1.0;
        const double weight = std::exp(-10.0 * well * well - 0.5 * x);
        all += weight;
        left += x < 0 ? weight : 0.0;
    }
    return left / all;
}

static std::mt19937_64 random_numbers(7);
static std::normal_distribution<double> normal;

// Makes an attempt of any move except a driven one, starting at state.x.
static void attempt(modejump::Move& move, modejump::State& state) {
    const auto u = [](std::size_t n, const double* x, double* values) {
        for (std::size_t i = 0; i < n; i++)
            values[i] = reduced_potential(x + 2 * i);
    };
    // annealed moves and trajectories also need the gradient
    const auto u_and_gradient = [](std::size_t n, const double* x, double* values, double* gradients) {
        for (std::size_t i = 0; i < n; i++) {
            values[i] = reduced_potential(x + 2 * i);
            gradient(x + 2 * i, gradients + 2 * i);
        }
    };
    state.reduced_potential = reduced_potential(state.x.data());
    move.attempt(u, u_and_gradient, state);
}

// Makes an attempt of a driven move: x is pulled to its proposal while a bath, normal about 2 x_0 with width 0.5, relaxes. Here the bath
// is drawn from its exact distribution at every x, where a simulation would run some dynamics.
static void driven_attempt(modejump::Move& move, modejump::State& state) {
    double bath = 0;
    const auto energy = [&](const double* x) {
        const double off = (bath - 2.0 * x[0]) / 0.5;
        return reduced_potential(x) + 0.5 * off * off;
    };
    const auto u = [&](std::size_t n, const double* x, double* values) {
        for (std::size_t i = 0; i < n; i++)
            values[i] = energy(x + 2 * i);
    };
    const auto relax = [&](const double* x, std::uint64_t) {
        bath = 2.0 * x[0] + 0.5 * normal(random_numbers);
        return energy(x);
    };
    state.reduced_potential = relax(state.x.data(), 0);
    move.attempt(u, relax, state);
}

// Prints one row of the table; returns whether it agrees with the exact population.
static bool run(const char* name, modejump::Move move, double exact, void (*attempt_once)(modejump::Move&, modejump::State&) = attempt) {
    std::uniform_real_distribution<double> uniform;
    const int blocks = 40, attempts = 1000, local = 10;
    std::vector<double> share(blocks, 0.0);
    long crossings = 0;
    modejump::State state;
    state.x = {1.0, 0.5};
    for (int done = 0; done < blocks * attempts; done++) {
        for (int i = 0; i < local; i++) {
            const double trial[2] = {state.x[0] + 0.15 * normal(random_numbers), state.x[1] + 0.3 * normal(random_numbers)};
            if (std::log(uniform(random_numbers)) < reduced_potential(state.x.data()) - reduced_potential(trial))
                std::copy(trial, trial + 2, state.x.begin());
        }
        const bool was_left = state.x[0] < 0;
        state.step = static_cast<std::uint64_t>(done * local);
        attempt_once(move, state);
        crossings += was_left != (state.x[0] < 0);
        share[static_cast<std::size_t>(done / attempts)] += state.x[0] < 0 ? 1.0 / attempts : 0.0;
    }
    double mean = 0, square = 0;
    for (double value : share)
        mean += value / blocks;
    for (double value : share)
        square += (value - mean) * (value - mean) / (blocks - 1);
    const double error = std::sqrt(square / blocks);
    const modejump::Statistics counts = move.statistics();
    std::printf("%-14s %.4f +- %.4f, %5ld jumps, %4.1f %% accepted\n", name, mean, error, crossings,
                100.0 * counts.acceptance());
    return std::abs(mean - exact) < 4.0 * error && error < 0.02;
}

int main(int argc, char** argv) try {
    if (argc != 4) {
        std::fprintf(stderr, "usage: moves GENERATOR.safetensors MODES.safetensors STEERABLE.safetensors\n");
        return 2;
    }
    const modejump::Model generator(argv[1]), modes(argv[2]), steerable(argv[3]);

    // independent proposals x'
    modejump::Options options;
    options.seed = 2024;
    // independent proposals, four at once
    modejump::Options four = options;
    four.kind = MODEJUMP_ISIR;
    four.proposals = 4;
    // proposals relaxed along a path and weighted by it
    modejump::Annealing annealing;
    annealing.stages = 5;
    annealing.step = 0.01;
    // random-walk steps in the generator's latent space, then trajectories there
    modejump::LatentWalk walk, trajectory;
    walk.widths = {0.1, 1.0};
    trajectory.widths = {0.2};
    trajectory.leapfrog = 5;
    // from one well to the other, with wells defined by the regions in the model file or by a function of x
    const auto side = [](std::size_t, const double* x) -> std::int64_t { return x[0] < 0 ? 0 : 1; };

    const double exact = exact_left();
    std::printf("P(x < 0)       %.4f exactly\n", exact);
    bool agree = run("independence", modejump::Move(generator, options), exact);
    agree &= run("i-SIR", modejump::Move(generator, four), exact);
    agree &= run("annealed", modejump::Move(generator, annealing, options), exact);
    agree &= run("latent walk", modejump::Move(generator, walk), exact);
    agree &= run("trajectories", modejump::Move(generator, trajectory), exact);
    agree &= run("mode jumps", modejump::Move(modes, options), exact);
    agree &= run("by a function", modejump::Move(modes, side, options), exact);
    // one model for all temperatures, used here at the temperature of this u = U/kT
    modejump::Move steered(steerable, options);
    steered.set_temperature(600);
    agree &= run("steered", std::move(steered), exact);
    agree &= run("driven", modejump::Move(generator, modejump::DrivenPath{8}, options), exact, driven_attempt);
    return agree ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "moves: %s\n", error.what());
    return 2;
}
