// A C++17 program that uses every class of modejump.hpp. Usage as of the C program beside it.
#include <modejump.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

static int failures = 0;

#define EXPECT(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            failures++;                                                          \
        }                                                                        \
    } while (0)

/// The status of the Error that `body` throws, -1 if it throws none.
template <class Body> static int status_of(Body body) {
    try {
        body();
        return -1;
    } catch (const modejump::Error& error) {
        return error.what()[0] == '\0' ? -2 : error.status();
    }
}

struct EngineFailure {
    int code;
};

static void potential(std::size_t n, const double* x, double* u) {
    for (std::size_t i = 0; i < n; i++) {
        const double well = x[2 * i] * x[2 * i] - 1.0, spring = x[2 * i + 1] - 0.5 * x[2 * i];
        u[i] = 10.0 * well * well + 0.5 * x[2 * i] + 5.0 * spring * spring;
    }
}

static void test_model(const std::string& path) {
    const modejump::Model model(path);
    EXPECT(model.dimension() == 2);
    EXPECT(model.metadata().find("cartesian") != std::string::npos);
    const modejump::Samples samples = model.sample(10, 3);
    std::vector<double> gradient;
    const std::vector<double> log_density = model.log_density(samples.x, gradient);
    EXPECT(gradient.size() == 20);
    std::vector<double> both = samples.x;
    EXPECT(model.log_density(both, both) == log_density && both == gradient);
    for (std::size_t i = 0; i < 10; i++)
        EXPECT(std::abs(log_density[i] - samples.log_density[i]) < 1e-3);
    // The gradient against central differences; the network is f32, so the step is wide.
    const double h = 1e-3;
    for (std::size_t k = 0; k < 2; k++) {
        std::vector<double> up(samples.x.begin(), samples.x.begin() + 2), down = up;
        up[k] += h;
        down[k] -= h;
        const double difference = (model.log_density(up)[0] - model.log_density(down)[0]) / (2 * h);
        EXPECT(std::abs(difference - gradient[k]) < 0.05 * (1.0 + std::abs(gradient[k])));
    }
    std::ifstream file(path, std::ios::binary);
    const std::vector<std::uint8_t> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    EXPECT(modejump::Model::from_bytes(bytes).hash() == model.hash());
    EXPECT(status_of([&] { modejump::Model::from_bytes({}); }) == MODEJUMP_BAD_MODEL);
    EXPECT(status_of([] { modejump::Model("/no/such/file"); }) == MODEJUMP_IO_ERROR);
    const modejump::Transformed latent = model.encode(samples.x), again = model.generate(latent.points);
    EXPECT(latent.points.size() == samples.log_density.size() * model.latent_dimension());
    for (std::size_t i = 0; i < samples.x.size(); i++)
        EXPECT(std::abs(again.points[i] - samples.x[i]) < 1e-3);
    for (std::size_t i = 0; i < samples.log_density.size(); i++)
        EXPECT(std::abs(again.log_det[i] - latent.log_det[i]) < 1e-3 && std::abs(latent.log_density[i] - samples.log_density[i]) < 1e-3);
    EXPECT(status_of([&] { model.generate({1.0, 2.0, 3.0}); }) == MODEJUMP_INVALID_INPUT);
    EXPECT(status_of([&] { model.log_density({1.0}); }) == MODEJUMP_INVALID_INPUT);
}

static void test_model_options(const std::string& tarflow, const std::string& generator) {
    const modejump::Model plain(tarflow);
    const modejump::Samples samples = plain.sample(5, 3);
    modejump::ModelOptions options;
    options.decoding = MODEJUMP_GAUSS_SEIDEL;
    options.segment = 7;
    options.decoding_tolerance = 1e-3;
    const modejump::Samples by_iteration = modejump::Model(tarflow, options).sample(5, 3);
    EXPECT(by_iteration.x != samples.x);
    for (std::size_t i = 0; i < samples.x.size(); i++)
        EXPECT(std::abs(by_iteration.x[i] - samples.x[i]) < 0.1);
    EXPECT(status_of([&] { modejump::Model(generator, options); }) == MODEJUMP_UNSUPPORTED);
    options.decoding_tolerance = 0.0;
    EXPECT(status_of([&] { modejump::Model(tarflow, options); }) == MODEJUMP_INVALID_INPUT);

    modejump::ModelOptions rounded;
    rounded.precision = MODEJUMP_BF16;
    std::ifstream file(tarflow, std::ios::binary);
    const std::vector<std::uint8_t> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const modejump::Model half = modejump::Model::from_bytes(bytes, rounded);
    EXPECT(half.hash() == plain.hash());
    EXPECT(std::abs(half.log_density(samples.x)[0] - samples.log_density[0]) > 1e-5);
    EXPECT(status_of([&] { modejump::Model(generator, rounded); }) == MODEJUMP_UNSUPPORTED);

    modejump::Options over;
    over.rotations = 4;
    modejump::Move move(half, over);
    modejump::State state;
    state.x.assign(samples.x.begin(), samples.x.begin() + 66);
    state.reduced_potential = 0.0;
    const auto flat = [](std::size_t n, const double*, double* u) { std::fill(u, u + n, 0.0); };
    for (state.step = 0; *state.step < 20; ++*state.step)
        EXPECT(std::isfinite(move.attempt(flat, state).log_acceptance));
    EXPECT(status_of([&] { modejump::Move(modejump::Model(generator), over); }) == MODEJUMP_UNSUPPORTED);
}

static void test_move(const std::string& path) {
    // The move keeps the model alive.
    modejump::Options options;
    options.kind = MODEJUMP_ISIR;
    options.proposals = 4;
    modejump::Move move = modejump::Move(modejump::Model(path), options);
    modejump::State state;
    state.x = {1.0, 0.5};
    int accepted = 0;
    // neither a step nor an energy has a default value
    EXPECT(status_of([&] { move.attempt(potential, state); }) == MODEJUMP_INVALID_INPUT);
    state.step = 0;
    EXPECT(status_of([&] { move.attempt(potential, state); }) == MODEJUMP_INVALID_INPUT);
    for (; *state.step < 100; ++*state.step) {
        potential(1, state.x.data(), &state.reduced_potential);
        const modejump::Outcome outcome = move.attempt(potential, state);
        accepted += outcome.accepted();
    }
    EXPECT(accepted > 50);
    EXPECT(move.statistics().accepted == static_cast<std::uint64_t>(accepted));
    EXPECT(move.log_weights().size() == 400);
    move.reset_statistics();
    EXPECT(move.log_weights().empty());

    const std::vector<double> before = state.x;
    bool same = false;
    try {
        move.attempt([](std::size_t, const double*, double*) { throw EngineFailure{42}; }, state);
    } catch (const EngineFailure& failure) {
        same = failure.code == 42;
    }
    EXPECT(same && state.x == before);
    try {
        move.attempt([](std::size_t, const double*, double*) { throw std::runtime_error("engine"); }, state);
        EXPECT(false);
    } catch (const std::runtime_error& error) {
        EXPECT(std::string(error.what()) == "engine");
    }
    state.x.pop_back();
    EXPECT(status_of([&] { move.attempt(potential, state); }) == MODEJUMP_INVALID_INPUT);
    options.proposals = 0;
    EXPECT(status_of([&] { modejump::Move(modejump::Model(path), options); }) == MODEJUMP_INVALID_INPUT);
}

static void test_delayed_acceptance(const std::string& path, const std::string& other) {
    const modejump::Model model(path);
    modejump::Options options;
    options.proposals = 2;
    modejump::Move move(model, modejump::Model(path), options);
    modejump::State state;
    state.x = {1.0, 0.5};
    for (state.step = 0; *state.step < 100; ++*state.step) {
        potential(1, state.x.data(), &state.reduced_potential);
        move.attempt(potential, state);
    }
    // the model is its own screen, so the second stage has nothing to correct
    const modejump_statistics statistics = move.statistics();
    EXPECT(statistics.screened > 50 && statistics.accepted == statistics.screened);
    EXPECT(statistics.exact_evaluations == 2 * statistics.screened && statistics.correction_variance < 1e-6);
    EXPECT(move.statistics().likelihood() == std::string("exact"));
    EXPECT(status_of([&] { modejump::Move(model, modejump::Model(other)); }) == MODEJUMP_INVALID_INPUT);
}

static void test_acceptance_by_a_surrogate(const std::string& path) {
    const modejump::Model model(path);
    modejump::Options options;
    options.kind = MODEJUMP_SURROGATE;
    modejump::Move move(model, model, options);
    modejump::State state;
    state.x = {1.0, 0.5};
    for (state.step = 0; *state.step < 100; ++*state.step) {
        potential(1, state.x.data(), &state.reduced_potential);
        move.attempt(potential, state);
    }
    const modejump::Statistics statistics = move.statistics();
    EXPECT(statistics.likelihood() == std::string("surrogate"));
    EXPECT(statistics.accepted > 50 && statistics.screened == 0 && statistics.exact_evaluations == 0);
    EXPECT(status_of([&] { modejump::Move(model, options); }) == MODEJUMP_INVALID_INPUT);
}

static void gradient(std::size_t n, const double* x, double* u, double* g) {
    potential(n, x, u);
    for (std::size_t i = 0; i < n; i++) {
        const double a = x[2 * i], spring = x[2 * i + 1] - 0.5 * a;
        g[2 * i] = 40.0 * a * (a * a - 1.0) + 0.5 - 5.0 * spring;
        g[2 * i + 1] = 10.0 * spring;
    }
}

static void test_annealed(const std::string& path, const std::string& keeps_a_bond) {
    const modejump::Model model(path);
    modejump::Annealing annealing;
    annealing.stages = 4;
    annealing.step = 0.01;
    modejump::Move move(model, annealing);
    modejump::State state;
    state.x = {1.0, 0.5};
    for (state.step = 0; *state.step < 100; ++*state.step) {
        potential(1, state.x.data(), &state.reduced_potential);
        move.attempt(potential, gradient, state);
    }
    EXPECT(move.statistics().accepted > 50 && move.statistics().proposals == 100);
    // a function keeps what is its own from one attempt to the next
    const modejump::ReducedPotentialGradient once = [calls = 0](std::size_t n, const double* x, double* u, double* g) mutable {
        if (++calls > 1)
            throw EngineFailure{calls};
        gradient(n, x, u, g);
    };
    for (int attempt = 0; attempt < 2; attempt++)
        try {
            move.attempt(potential, once, state);
            EXPECT(false);
        } catch (const EngineFailure& failure) {
            EXPECT(failure.code == 2 + attempt);
        }
    const std::vector<double> before = state.x;
    EXPECT(status_of([&] { move.attempt(potential, state); }) == MODEJUMP_INVALID_INPUT && state.x == before);
    bool same = false;
    try {
        move.attempt(potential, [](std::size_t, const double*, double*, double*) { throw EngineFailure{7}; }, state);
    } catch (const EngineFailure& failure) {
        same = failure.code == 7;
    }
    EXPECT(same && state.x == before);
    EXPECT(status_of([&] { modejump::Move(modejump::Model(keeps_a_bond), annealing); }) == MODEJUMP_UNSUPPORTED);
    annealing.step = 0.0;
    EXPECT(status_of([&] { modejump::Move(model, annealing); }) == MODEJUMP_INVALID_INPUT);
}

static void test_driven(const std::string& path) {
    const modejump::Model model(path);
    modejump::DrivenPath way;
    way.steps = 3;
    modejump::Move move(model, way);
    double solvent = 1.0;
    std::uint64_t relaxations = 0;
    const auto u = [&](std::size_t n, const double* x, double* u) {
        potential(n, x, u);
        for (std::size_t i = 0; i < n; i++)
            u[i] += 5.0 * (solvent - x[2 * i]) * (solvent - x[2 * i]);
    };
    const auto relax = [&](const double* x, std::uint64_t stage) {
        EXPECT(stage == relaxations++ % 2);
        solvent = 0.5 * (solvent + x[0]);
        double now = 0.0;
        u(1, x, &now);
        return now;
    };
    modejump::State state;
    state.x = {1.0, 0.5};
    for (state.step = 0; *state.step < 100; ++*state.step) {
        const double before = solvent;
        u(1, state.x.data(), &state.reduced_potential);
        if (!move.attempt(u, relax, state).accepted())
            solvent = before;
    }
    EXPECT(move.statistics().attempts == 100 && move.statistics().accepted > 0 && relaxations == 200);
    const std::vector<double> before = state.x;
    EXPECT(status_of([&] { move.attempt(u, state); }) == MODEJUMP_INVALID_INPUT && state.x == before);
    bool same = false;
    try {
        move.attempt(u, [](const double*, std::uint64_t) -> double { throw EngineFailure{8}; }, state);
    } catch (const EngineFailure& failure) {
        same = failure.code == 8;
    }
    EXPECT(same && state.x == before);
    way.steps = 0;
    EXPECT(status_of([&] { modejump::Move(model, way); }) == MODEJUMP_INVALID_INPUT);
}

static void test_latent_walk(const std::string& path) {
    const modejump::Model model(path);
    for (const std::uint64_t leapfrog : {0, 3}) {
        modejump::LatentWalk walk;
        walk.widths = {0.01, 0.03};
        walk.leapfrog = leapfrog;
        modejump::Move move(model, walk);
        modejump::State state;
        state.x = {1.0, 0.5};
        for (state.step = 0; *state.step < 100; ++*state.step) {
            potential(1, state.x.data(), &state.reduced_potential);
            move.attempt(potential, gradient, state);
        }
        EXPECT(move.statistics().attempts == 100 && move.statistics().accepted > 50);
        EXPECT(move.statistics().proposals == 0 && std::isnan(move.statistics().ess));
        walk.widths = {0.0};
        EXPECT(status_of([&] { modejump::Move(model, walk); }) == MODEJUMP_INVALID_INPUT);
    }
}

static void test_mode_jump(const std::string& path) {
    const modejump::Model model(path);
    std::size_t calls = 0;
    const auto mode = [&](std::size_t, const double* x) -> std::int64_t { return calls++, x[0] > 0; };
    modejump::Move by_file(model), by_function(model, mode);
    modejump::State one, other;
    one.x = other.x = {1.0, 0.5};
    for (std::uint64_t step = 0; step < 200; step++) {
        one.step = other.step = step;
        potential(1, one.x.data(), &one.reduced_potential);
        other.reduced_potential = one.reduced_potential;
        by_file.attempt(potential, one);
        by_function.attempt(potential, other);
        EXPECT(one.x == other.x);
    }
    EXPECT(calls >= 200 && by_file.statistics().accepted > 50 && by_file.statistics().accepted == by_function.statistics().accepted);
    by_file = modejump::Move(model, mode); // in the place of another, with the function of its mode
    calls = 0;
    by_file.attempt(potential, one);
    EXPECT(calls > 0 && by_file.statistics().attempts == 1);
    modejump::Move failing(model, [](std::size_t, const double*) -> std::int64_t { throw EngineFailure{9}; });
    const std::vector<double> before = one.x;
    int code = 0;
    try {
        failing.attempt(potential, one);
    } catch (const EngineFailure& failure) {
        code = failure.code;
    }
    EXPECT(code == 9 && one.x == before && failing.statistics().wrong_mode == 1);
}

static void test_constraints(const std::string& path) {
    modejump::Move move{modejump::Model(path)};
    const std::vector<double> masses = {12.0, 1.0, 12.0, 16.0};
    EXPECT(status_of([&] { move.set_constraints({{1, 2}}, {0.11}, masses); }) == MODEJUMP_UNSUPPORTED);
    EXPECT(status_of([&] { move.set_constraints({{0, 1}}, {0.11}, {12.0}); }) == MODEJUMP_INVALID_INPUT);
    EXPECT(status_of([&] { move.set_constraints({}, {}, {}); }) == MODEJUMP_UNSUPPORTED); // the model keeps a bond
    EXPECT(status_of([&] { move.set_constraints({{0, 1}}, {0.11}, masses); }) == -1);
}

static void test_exchange(const std::string& path, const std::string& keeps_a_bond) {
    const modejump::Model model(path), molecule(keeps_a_bond);
    const modejump::Bijection identity(model, model);
    const modejump::Samples samples = model.sample(4, 5);
    const modejump::Images there = identity.map(samples.x), back = identity.inverse(there.x);
    for (std::size_t i = 0; i < 4; i++)
        EXPECT(there.status[i] == 0 && std::abs(there.log_det[i]) < 1e-4 && std::abs(back.x[i] - samples.x[i]) < 1e-5);
    EXPECT(identity.map({std::nan(""), 0.0}).status[0] != 0);
    EXPECT(status_of([&] { identity.map({1.0}); }) == MODEJUMP_INVALID_INPUT);
    EXPECT(status_of([&] { modejump::Bijection(model, molecule); }) == MODEJUMP_INVALID_INPUT);

    // one target twice and the identity: every exchange is accepted
    modejump::Exchange exchange(identity, 5);
    modejump::State a, b;
    a.x = {1.0, 0.5};
    b.x = {-1.0, -0.5};
    b.replica = 1;
    a.step = b.step = 0;
    potential(1, a.x.data(), &a.reduced_potential);
    potential(1, b.x.data(), &b.reduced_potential);
    const double u_a = a.reduced_potential;
    EXPECT(exchange.attempt(potential, potential, a, b).accepted());
    EXPECT(std::abs(a.x[0] + 1.0) < 1e-4 && std::abs(b.x[0] - 1.0) < 1e-4 && std::abs(b.reduced_potential - u_a) < 1e-2);
    EXPECT(exchange.statistics().accepted == 1 && exchange.statistics().proposals == 1);
    exchange.carry_frames(true);
    exchange.reset_statistics();
    EXPECT(exchange.statistics().attempts == 0);
    const std::vector<double> before = a.x;
    bool same = false;
    try {
        exchange.attempt(potential, [](std::size_t, const double*, double*) { throw EngineFailure{3}; }, a, b);
    } catch (const EngineFailure& failure) {
        same = failure.code == 3;
    }
    EXPECT(same && a.x == before);
    b.replica = 0;
    EXPECT(status_of([&] { exchange.attempt(potential, potential, a, b); }) == MODEJUMP_INVALID_INPUT);
    modejump::Exchange rigid{modejump::Bijection(molecule, molecule)};
    const std::vector<double> masses = {12.0, 1.0, 12.0, 16.0};
    EXPECT(status_of([&] { rigid.set_constraints({{1, 2}}, {0.11}, masses); }) == MODEJUMP_UNSUPPORTED);
    EXPECT(status_of([&] { rigid.set_constraints({{0, 1}}, {0.11}, masses); }) == -1);
}

static void test_device(const std::string& path) {
    modejump::set_device("cpu");
    EXPECT(modejump::Model(path).device() == "cpu");
    EXPECT(status_of([&] { modejump::set_device("toaster"); }) == MODEJUMP_INVALID_INPUT);
}

static void test_match_atoms(const std::string& path) {
    const modejump::Model model(path);
    const std::vector<std::string> residues(4, "ABC9");
    EXPECT(model.match_atoms(residues, {"H1", "C0", "C2", "O3"}) == (std::vector<std::uint64_t>{1, 0, 2, 3}));
    EXPECT(status_of([&] { model.match_atoms(residues, {"H1", "C0", "C2"}); }) == MODEJUMP_INVALID_INPUT);
    EXPECT(status_of([&] { model.match_atoms(residues, {"H1", "C0", "C2", "OX"}); }) == MODEJUMP_INVALID_INPUT);
    EXPECT(status_of([&] { model.check_masses({12.0, 1.0, 12.0, 16.0}); }) == -1);
    EXPECT(status_of([&] { model.check_masses({12.0, 12.0, 1.0, 16.0}); }) == MODEJUMP_INVALID_INPUT);
    EXPECT(status_of([&] { model.check_labels(std::vector<double>(11)); }) == MODEJUMP_INVALID_INPUT);
    const std::vector<double> x{0.0, 0.0, 0.0, 0.11, 0.0, 0.0, 0.0, 0.15, 0.0, 0.0, 0.2, 0.11};
    EXPECT(status_of([&] { model.check_labels(x); }) == -1);
    EXPECT(status_of([&] { model.check_labels(x, std::array<double, 9>{2, 0, 0, 0, 2, 0, 0, 0, 2}); }) == -1);
}

static void test_steering(const std::string& path, const std::string& generator) {
    const modejump::Model model(path), plain(generator);
    EXPECT(model.is_steerable() && model.dimension() == 4 && model.auxiliary() == 2 && model.latent_temperature() == 1.0);
    EXPECT(model.temperature() == 600.0);
    EXPECT(!plain.is_steerable() && plain.auxiliary() == 0 && plain.centroid_noise() == 0.0);
    EXPECT(model.at_temperature(300.0).latent_temperature() == 0.5);
    EXPECT(status_of([&] { plain.at_temperature(300.0); }) == MODEJUMP_UNSUPPORTED);
    modejump::Move move(model);
    EXPECT(move.dimension() == 2);
    move.set_temperature(300.0);
    modejump::Move of_one_temperature(plain);
    of_one_temperature.set_temperature(300.0);
    for (double kelvin : {-3.0, 0.0, std::nan("")}) {
        EXPECT(status_of([&] { move.set_temperature(kelvin); }) == MODEJUMP_INVALID_INPUT);
        EXPECT(status_of([&] { of_one_temperature.set_temperature(kelvin); }) == MODEJUMP_INVALID_INPUT);
    }
    modejump::State state;
    state.x = {1.0, 0.5};
    for (state.step = 0; *state.step < 200; ++*state.step) {
        potential(1, state.x.data(), &state.reduced_potential);
        move.attempt(potential, state);
    }
    EXPECT(move.statistics().attempts == 200 && move.statistics().accepted > 110);
}

int main(int argc, char** argv) {
    if (argc != 7)
        return 2;
    test_model(argv[1]);
    test_move(argv[1]);
    test_annealed(argv[1], argv[2]);
    test_driven(argv[1]);
    test_latent_walk(argv[1]);
    test_mode_jump(argv[3]);
    test_delayed_acceptance(argv[1], argv[2]);
    test_acceptance_by_a_surrogate(argv[1]);
    test_exchange(argv[1], argv[2]);
    test_device(argv[1]);
    test_steering(argv[4], argv[1]);
    test_model_options(argv[5], argv[1]);
    test_match_atoms(argv[2]);
    test_constraints(argv[2]);
    std::printf("%d failures\n", failures);
    return failures != 0;
}
