/* A C99 program that uses every function of modejump.h. Usage: consumer GENERATOR MOLECULE MODES STEERABLE TARFLOW FLOW, the
 * first a model of two plain coordinates, the second a molecule of four atoms whose bond 1-2 is kept at 0.11 nm, the last two of 22 atoms. */
#define _POSIX_C_SOURCE 200809L

#include <modejump.h>

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures = 0;

static const char *last(void) {
    const char *message = NULL;
    modejump_last_error(&message);
    return message;
}

#define EXPECT(condition)                                                                        \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            printf("%s:%d: %s is false; last error: %s\n", __FILE__, __LINE__, #condition, last()); \
            failures++;                                                                          \
        }                                                                                        \
    } while (0)

typedef struct {
    int calls;
    int destroyed;
    int fail;
} Counter;

static double potential(const double *x) {
    const double well = x[0] * x[0] - 1.0, spring = x[1] - 0.5 * x[0];
    return 10.0 * well * well + 0.5 * x[0] + 5.0 * spring * spring;
}

static int32_t reduced_potential(void *user, uint64_t n, const double *x, double *u) {
    Counter *counter = user;
    uint64_t i;
    counter->calls++;
    if (counter->fail) {
        modejump_set_last_error("the engine is on strike");
        return 17;
    }
    for (i = 0; i < n; i++)
        u[i] = potential(x + 2 * i);
    return 0;
}

static int32_t flat_potential(void *user, uint64_t n, const double *x, double *u) {
    uint64_t i;
    (void)user;
    (void)x;
    for (i = 0; i < n; i++)
        u[i] = 0.0;
    return 0;
}

static void destroy(void *user) { ((Counter *)user)->destroyed++; }

static void test_model(const char *path) {
    modejump_model *model = NULL, *copy = NULL;
    uint64_t dimension = 0;
    const char *json = NULL, *hash = NULL, *other_hash = NULL, *device = NULL;
    double x[16], again[4], log_q[8], log_q_again[8], gradient[16], z[16], log_det[8], log_det_again[8];
    uint64_t latent = 0;
    unsigned char *bytes;
    long length;
    FILE *file;
    int i;

    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_dimension(model, &dimension) == MODEJUMP_OK && dimension == 2);
    EXPECT(modejump_model_metadata(model, &json) == MODEJUMP_OK && strstr(json, "coupling") != NULL);
    EXPECT(modejump_model_hash(model, &hash) == MODEJUMP_OK && strlen(hash) == 32);
    EXPECT(modejump_model_device(model, &device) == MODEJUMP_OK && strcmp(device, "cpu") == 0);
    EXPECT(modejump_model_device(NULL, &device) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_set_device("cpu") == MODEJUMP_OK);
    EXPECT(modejump_set_device(NULL) == MODEJUMP_INVALID_INPUT && modejump_set_device("toaster") == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_device(&device) == MODEJUMP_OK && strcmp(device, "cpu") == 0 && modejump_device(NULL) == MODEJUMP_INVALID_INPUT);
    /* no such card; but the library has kernels */
    EXPECT(modejump_set_device("cuda:99") != MODEJUMP_OK && modejump_last_error(&json) == MODEJUMP_OK);
    EXPECT(strstr(json, "does not include the feature") == NULL);
    EXPECT(modejump_model_sample(model, 5, 0, 8, x, log_q) == MODEJUMP_OK);
    EXPECT(modejump_model_sample(model, 5, 3, 2, again, log_q_again) == MODEJUMP_OK);
    for (i = 0; i < 4; i++)
        EXPECT(fabs(again[i] - x[6 + i]) < 1e-4);
    EXPECT(modejump_model_log_density(model, 8, x, log_q_again) == MODEJUMP_OK);
    for (i = 0; i < 8; i++)
        EXPECT(isfinite(log_q[i]) && fabs(log_q[i] - log_q_again[i]) < 1e-3);
    EXPECT(modejump_model_latent_dimension(model, &latent) == MODEJUMP_OK && latent == 2);
    EXPECT(modejump_model_encode(model, 8, x, z, log_det, log_q_again) == MODEJUMP_OK);
    EXPECT(modejump_model_generate(model, 8, z, gradient, log_det_again, log_q_again) == MODEJUMP_OK);
    for (i = 0; i < 16; i++)
        EXPECT(fabs(gradient[i] - x[i]) < 1e-3 && fabs(log_det[i / 2] - log_det_again[i / 2]) < 1e-3);
    EXPECT(modejump_model_generate(model, 8, NULL, gradient, log_det, log_q_again) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_log_density_gradient(model, 8, x, log_q, gradient) == MODEJUMP_OK);
    for (i = 0; i < 16; i++)
        EXPECT(isfinite(gradient[i]));
    x[0] = NAN;
    x[2] = 50.0;
    EXPECT(modejump_model_log_density(model, 8, x, log_q) == MODEJUMP_OK);
    EXPECT(isinf(log_q[0]) && log_q[0] < 0 && isinf(log_q[1]) && isfinite(log_q[2]));

    file = fopen(path, "rb");
    EXPECT(file != NULL && fseek(file, 0, SEEK_END) == 0);
    length = ftell(file);
    bytes = malloc((size_t)length);
    EXPECT(fseek(file, 0, SEEK_SET) == 0 && fread(bytes, 1, (size_t)length, file) == (size_t)length);
    fclose(file);
    EXPECT(modejump_model_load_buffer(bytes, (uint64_t)length, &copy) == MODEJUMP_OK);
    EXPECT(modejump_model_hash(copy, &other_hash) == MODEJUMP_OK && strcmp(hash, other_hash) == 0);
    EXPECT(modejump_model_free(copy) == MODEJUMP_OK);
    copy = NULL;
    EXPECT(modejump_model_load_buffer(bytes, (uint64_t)length / 2, &copy) == MODEJUMP_BAD_MODEL && copy == NULL);
    EXPECT(strlen(last()) > 0);
    EXPECT(modejump_model_load("/no/such/file", &copy) == MODEJUMP_IO_ERROR && copy == NULL);
    EXPECT(strstr(last(), "/no/such/file") != NULL);
    free(bytes);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

/* Another precision, and other ways of finding the samples of a TarFlow. */
static void test_model_options(const char *tarflow, const char *generator) {
    modejump_model *plain = NULL, *model = NULL;
    modejump_model_options options;
    const char *hash = NULL, *other_hash = NULL;
    double x[4 * 66], y[4 * 66], log_q[4], log_q_double[4], log_q_rounded[4], single = 0.0, rounded = 0.0;
    unsigned char byte = 0;
    const char *device;
    int i;

    EXPECT(modejump_model_options_init(NULL) == MODEJUMP_INVALID_INPUT);
    memset(&options, 0, sizeof options);
    EXPECT(modejump_model_options_init(&options) == MODEJUMP_INVALID_INPUT);
    options.struct_size = sizeof options;
    EXPECT(modejump_model_options_init(&options) == MODEJUMP_OK && options.precision == MODEJUMP_F32);
    EXPECT(options.decoding == MODEJUMP_SEQUENTIAL && options.segment == 16 && options.decoding_passes == 32);
    EXPECT(modejump_model_load_with(NULL, &options, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(modejump_model_load_with(tarflow, NULL, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(modejump_model_load_buffer_with(&byte, 1, NULL, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(modejump_model_load_buffer_with(&byte, 1, &options, &model) == MODEJUMP_BAD_MODEL && model == NULL);

    EXPECT(modejump_model_load(tarflow, &plain) == MODEJUMP_OK);
    EXPECT(modejump_model_sample(plain, 5, 0, 4, x, log_q) == MODEJUMP_OK);
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_sample(model, 5, 0, 4, y, log_q_double) == MODEJUMP_OK);
    EXPECT(memcmp(x, y, sizeof x) == 0 && memcmp(log_q, log_q_double, sizeof log_q) == 0);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);

    /* the device is the CPU, and no flag makes it another */
    for (options.flags = MODEJUMP_ON_CPU; options.flags <= MODEJUMP_CURRENT_CONTEXT; options.flags++) {
        EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_OK);
        EXPECT(modejump_model_device(model, &device) == MODEJUMP_OK && strcmp(device, "cpu") == 0);
        EXPECT(modejump_model_free(model) == MODEJUMP_OK);
    }
    model = NULL;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(modejump_last_error(&device) == MODEJUMP_OK && strstr(device, "flags is 3") != NULL);
    options.flags = 0;

    options.precision = MODEJUMP_F64;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_log_density(model, 4, x, log_q_double) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
    options.precision = MODEJUMP_BF16;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_log_density(model, 4, x, log_q_rounded) == MODEJUMP_OK);
    EXPECT(modejump_model_hash(plain, &hash) == MODEJUMP_OK && modejump_model_hash(model, &other_hash) == MODEJUMP_OK);
    EXPECT(strcmp(hash, other_hash) == 0);
    for (i = 0; i < 4; i++) {
        EXPECT(log_q[i] != log_q_double[i] && fabs(log_q[i] - log_q_double[i]) < 1e-3);
        single = fmax(single, fabs(log_q[i] - log_q_double[i]));
        rounded = fmax(rounded, fabs(log_q_rounded[i] - log_q_double[i]));
    }
    EXPECT(rounded > 10.0 * single && rounded < 1.0);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);

    options.precision = MODEJUMP_F32;
    options.segment = 5;
    options.decoding_tolerance = 0.5;
    model = NULL;
    options.decoding = MODEJUMP_JACOBI;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(strstr(last(), "use 0.001 or less") != NULL);
    options.decoding_tolerance = 1e-3; /* so that they can be told from those in turn */
    for (options.decoding = MODEJUMP_JACOBI; options.decoding <= MODEJUMP_GAUSS_SEIDEL; options.decoding++) {
        EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_OK);
        EXPECT(modejump_model_sample(model, 5, 0, 4, y, log_q_double) == MODEJUMP_OK);
        for (i = 0; i < 4 * 66; i++)
            EXPECT(fabs(x[i] - y[i]) < 0.1);
        EXPECT(memcmp(x, y, sizeof x) != 0);
        EXPECT(modejump_model_log_density(plain, 4, y, log_q) == MODEJUMP_OK);
        for (i = 0; i < 4; i++)
            EXPECT(fabs(log_q[i] - log_q_double[i]) < 1e-3);
        EXPECT(modejump_model_free(model) == MODEJUMP_OK);
    }
    model = NULL;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(strstr(last(), "decoding is 3") != NULL);
    options.decoding = MODEJUMP_GAUSS_SEIDEL;
    options.segment = 0;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(strstr(last(), "segments of 0 tokens") != NULL);
    options.precision = 3;
    EXPECT(modejump_model_load_with(tarflow, &options, &model) == MODEJUMP_INVALID_INPUT && model == NULL);
    EXPECT(strstr(last(), "precision is 3") != NULL);

    /* a coupling flow has another precision, but none of the rest */
    options.precision = MODEJUMP_F64;
    options.segment = 5;
    EXPECT(modejump_model_load_with(generator, &options, &model) == MODEJUMP_UNSUPPORTED && model == NULL);
    EXPECT(strstr(last(), "only for TarFlows, not for a model of kind coupling") != NULL);
    options.decoding = MODEJUMP_SEQUENTIAL;
    EXPECT(modejump_model_load_with(generator, &options, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
    model = NULL;
    options.precision = MODEJUMP_BF16;
    EXPECT(modejump_model_load_with(generator, &options, &model) == MODEJUMP_UNSUPPORTED && model == NULL);
    EXPECT(strstr(last(), "bf16") != NULL && strstr(last(), "coupling") != NULL);
    EXPECT(modejump_model_free(plain) == MODEJUMP_OK);
}

/* Densities averaged over orientations, in the moves that can. */
static void test_rotations(const char *tarflow, const char *generator) {
    modejump_model *model = NULL, *other = NULL;
    modejump_move *move = NULL, *refused = NULL;
    modejump_move_options options;
    modejump_annealing_options annealing;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    double x[66], log_q[1], of_one = 0.0;
    int accepted = 0;

    EXPECT(modejump_model_load(tarflow, &model) == MODEJUMP_OK && modejump_model_load(generator, &other) == MODEJUMP_OK);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options) == MODEJUMP_OK && options.rotations == 0);
    memset(&target, 0, sizeof target);
    target.struct_size = sizeof target;
    target.reduced_potential = flat_potential;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    for (options.kind = MODEJUMP_INDEPENDENCE; options.kind <= MODEJUMP_ISIR; options.kind++)
        for (options.rotations = 0; options.rotations <= 3; options.rotations += 3) {
            EXPECT(modejump_model_sample(model, 2, 0, 1, x, log_q) == MODEJUMP_OK);
            EXPECT(modejump_move_new(model, &options, &move) == MODEJUMP_OK);
            for (state.step = 0; state.step < 20; state.step++) {
                EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_OK);
                EXPECT(isfinite(outcome.log_acceptance) && isfinite(outcome.log_density_current));
                accepted += outcome.outcome == MODEJUMP_ACCEPTED;
                if (state.step == 0 && options.rotations == 0)
                    of_one = outcome.log_density_current;
                else if (state.step == 0)
                    EXPECT(fabs(outcome.log_density_current - of_one) > 1e-3);
            }
            EXPECT(modejump_move_free(move) == MODEJUMP_OK);
        }
    EXPECT(accepted > 0);

    options.kind = MODEJUMP_INDEPENDENCE;
    options.rotations = 3;
    EXPECT(modejump_move_new(other, &options, &refused) == MODEJUMP_UNSUPPORTED && refused == NULL);
    EXPECT(strstr(last(), "orientation of a molecule") != NULL);
    EXPECT(modejump_move_delayed_acceptance_new(model, model, &options, &refused) == MODEJUMP_UNSUPPORTED && refused == NULL);
    EXPECT(strstr(last(), "rotations is 3") != NULL);
    EXPECT(modejump_move_driven_new(model, &options, 4, &refused) == MODEJUMP_UNSUPPORTED && refused == NULL);
    EXPECT(modejump_move_mode_jump_new(model, &options, NULL, NULL, &refused) == MODEJUMP_UNSUPPORTED && refused == NULL);
    memset(&annealing, 0, sizeof annealing);
    annealing.struct_size = sizeof annealing;
    EXPECT(modejump_annealing_options_init(&annealing) == MODEJUMP_OK);
    EXPECT(modejump_move_annealed_new(model, &options, &annealing, &refused) == MODEJUMP_UNSUPPORTED && refused == NULL);
    options.rotations = UINT64_MAX;
    EXPECT(modejump_move_new(model, &options, &refused) == MODEJUMP_INVALID_INPUT && refused == NULL);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK && modejump_model_free(other) == MODEJUMP_OK);
}

static void test_move(const char *path) {
    modejump_model *model = NULL;
    modejump_move *move = NULL;
    modejump_move_options options;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    modejump_statistics statistics;
    Counter counter = {0, 0, 0};
    double x[2] = {1.0, 0.5}, before[2], weights[100];
    uint64_t n = 0, accepted = 0;
    int kind;

    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options) == MODEJUMP_OK && options.proposals == 1 && options.batch == 32);
    options.kind = 99;
    EXPECT(modejump_move_new(model, &options, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    memset(&target, 0, sizeof target);
    target.struct_size = sizeof target;
    target.user = &counter;
    target.reduced_potential = reduced_potential;
    target.destroy = destroy;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    memset(&statistics, 0, sizeof statistics);
    statistics.struct_size = sizeof statistics;

    for (kind = MODEJUMP_INDEPENDENCE; kind <= MODEJUMP_ISIR; kind++) {
        options.kind = (uint32_t)kind;
        options.proposals = kind == MODEJUMP_ISIR ? 3 : 1;
        options.seed = 4;
        options.stride = 10;
        counter.calls = counter.destroyed = 0;
        accepted = 0;
        EXPECT(modejump_move_new(model, &options, &move) == MODEJUMP_OK);
        for (state.step = 0; state.step < 1000; state.step += 10) {
            state.reduced_potential = potential(x);
            memcpy(before, x, sizeof x);
            EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_OK);
            accepted += outcome.outcome == MODEJUMP_ACCEPTED;
            EXPECT((outcome.outcome == MODEJUMP_ACCEPTED) == (memcmp(before, x, sizeof x) != 0));
            EXPECT(fabs(outcome.reduced_potential - potential(x)) < 1e-12);
        }
        EXPECT(counter.calls == 100 && counter.destroyed == 100);
        EXPECT(accepted > 50);
        EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK);
        EXPECT(statistics.attempts == 100 && statistics.accepted == accepted);
        EXPECT(statistics.proposals == 100 * options.proposals && statistics.ess > 0.5 && statistics.ess <= 1.0);
        EXPECT(modejump_move_log_weights(move, 0, NULL, &n) == MODEJUMP_OK && n == statistics.proposals);
        EXPECT(modejump_move_log_weights(move, 100, weights, &n) == MODEJUMP_OK && isfinite(weights[99]));

        counter.fail = 1;
        counter.destroyed = 0;
        EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_CALLBACK_FAILED);
        EXPECT(strstr(last(), "the engine is on strike") != NULL && counter.destroyed == 1);
        counter.fail = 0;
        state.reduced_potential = NAN;
        EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT);
        EXPECT(counter.destroyed == 2);
        EXPECT(modejump_move_attempt(NULL, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT && counter.destroyed == 3);
        target.flags = 1;
        EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT && counter.destroyed == 4);
        EXPECT(strstr(last(), "modejump_target.flags is 1") != NULL);
        target.flags = 0;
        EXPECT(modejump_move_reset_statistics(move) == MODEJUMP_OK);
        EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK && statistics.attempts == 0);
        EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    }
    EXPECT(modejump_move_free(NULL) == MODEJUMP_OK && modejump_model_free(NULL) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

/* A program compiled against a later header has longer structs, one of an impossible size is refused. */
static void test_struct_sizes(const char *path) {
    struct {
        modejump_move_options known;
        uint64_t later[4];
    } options;
    modejump_model *model = NULL;
    modejump_move *move = NULL;
    modejump_statistics statistics;
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    memset(&options, 0xee, sizeof options);
    options.known.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options.known) == MODEJUMP_OK);
    EXPECT(options.known.struct_size == sizeof options && options.later[0] == 0xeeeeeeeeeeeeeeeeu);
    EXPECT(modejump_move_new(model, &options.known, &move) == MODEJUMP_OK);
    memset(&statistics, 0xee, sizeof statistics);
    statistics.struct_size = offsetof(modejump_statistics, screened);
    EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK);
    EXPECT(statistics.proposals == 0 && statistics.screened == 0xeeeeeeeeeeeeeeeeu);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    options.known.struct_size = sizeof options.known;
    options.known.draw_ahead = 2;
    move = NULL;
    EXPECT(modejump_move_new(model, &options.known, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    EXPECT(strstr(last(), "draw_ahead") != NULL);
    /* a program that was compiled before there was such a field */
    options.known.struct_size = offsetof(modejump_move_options, draw_ahead);
    EXPECT(modejump_move_new(model, &options.known, &move) == MODEJUMP_OK);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    options.known.struct_size = sizeof options.known;
    options.known.draw_ahead = 1;
    options.known.proposals = 1;
    move = NULL;
    EXPECT(modejump_move_delayed_acceptance_new(model, NULL, &options.known, &move) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_move_delayed_acceptance_new(model, model, &options.known, &move) == MODEJUMP_OK && move != NULL);
    statistics.struct_size = sizeof statistics;
    EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK && statistics.flags == 0);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    /* acceptance by a surrogate has to be asked for, needs one, and is marked before the first attempt */
    options.known.kind = MODEJUMP_SURROGATE;
    move = NULL;
    EXPECT(modejump_move_new(model, &options.known, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    EXPECT(strstr(last(), "surrogate") != NULL);
    EXPECT(modejump_move_delayed_acceptance_new(model, model, &options.known, &move) == MODEJUMP_OK);
    EXPECT(modejump_move_reset_statistics(move) == MODEJUMP_OK);
    EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK && statistics.flags == MODEJUMP_BY_SURROGATE);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    options.known.struct_size = 8;
    EXPECT(modejump_move_options_init(&options.known) == MODEJUMP_INVALID_INPUT);
    EXPECT(strstr(last(), "sizeof(modejump_move_options)") != NULL);
    /* a size that ends within a field, of which nothing is written */
    options.known.struct_size = offsetof(modejump_move_options, rotations) + 4;
    options.known.rotations = 0xeeeeeeeeeeeeeeeeu;
    EXPECT(modejump_move_options_init(&options.known) == MODEJUMP_OK);
    EXPECT(options.known.rotations == 0xeeeeeeeeeeeeeeeeu);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

static void test_annealed(const char *path) {
    modejump_model *model = NULL;
    modejump_move *move = NULL;
    modejump_move_options options;
    modejump_annealing_options annealing;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    double x[2] = {1.0, 0.5};
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options) == MODEJUMP_OK);
    memset(&annealing, 0, sizeof annealing);
    EXPECT(modejump_annealing_options_init(&annealing) == MODEJUMP_INVALID_INPUT);
    annealing.struct_size = sizeof annealing;
    EXPECT(modejump_annealing_options_init(&annealing) == MODEJUMP_OK && annealing.stages == 10);
    EXPECT(modejump_move_annealed_new(model, &options, NULL, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    annealing.kernel = 2;
    EXPECT(modejump_move_annealed_new(model, &options, &annealing, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    annealing.kernel = MODEJUMP_HAMILTONIAN;
    annealing.stages = 0;
    EXPECT(modejump_move_annealed_new(model, &options, &annealing, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    annealing.stages = UINT64_MAX;
    EXPECT(modejump_move_annealed_new(model, &options, &annealing, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    annealing.stages = 3;
    EXPECT(modejump_move_annealed_new(model, &options, &annealing, &move) == MODEJUMP_OK);
    /* a target as programs know it that were compiled before there were gradients */
    memset(&target, 0, sizeof target);
    target.struct_size = offsetof(modejump_target, reduced_potential_gradient);
    target.reduced_potential = flat_potential;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT);
    EXPECT(strstr(last(), "reduced_potential_gradient") != NULL && x[0] == 1.0);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

/* a solvent of one coordinate, at `user`, that follows the first of the solute's and tells of its moves */
static int32_t coupled_potential(void *user, uint64_t n, const double *x, double *u) {
    const double e = *(const double *)user;
    for (uint64_t i = 0; i < n; i++)
        u[i] = 2.0 * (e - x[2 * i]) * (e - x[2 * i]);
    return 0;
}

static int32_t follow(void *user, const double *x, uint64_t stage, double *u) {
    if (stage > 2)
        return 1;
    *(double *)user = x[0];
    return coupled_potential(user, 1, x, u);
}

static void test_driven(const char *path) {
    modejump_model *model = NULL;
    modejump_move *move = NULL;
    modejump_move_options options;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    modejump_statistics statistics;
    double x[2] = {1.0, 0.5}, solvent = 1.0;
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options) == MODEJUMP_OK);
    EXPECT(modejump_move_driven_new(NULL, &options, 4, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    EXPECT(modejump_move_driven_new(model, &options, 0, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    EXPECT(modejump_move_driven_new(model, &options, UINT64_MAX, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    EXPECT(modejump_move_driven_new(model, &options, 4, &move) == MODEJUMP_OK);
    memset(&target, 0, sizeof target);
    target.struct_size = offsetof(modejump_target, relax);
    target.user = &solvent;
    target.reduced_potential = coupled_potential;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    /* a target as programs know it that were compiled before solvents were relaxed */
    EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT);
    EXPECT(strstr(last(), "relax") != NULL && x[0] == 1.0);
    target.struct_size = sizeof target;
    target.relax = follow;
    for (state.step = 0; state.step < 50; state.step++) {
        const double before = solvent;
        coupled_potential(&solvent, 1, x, &state.reduced_potential);
        EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_OK);
        if (outcome.outcome != MODEJUMP_ACCEPTED)
            solvent = before;
        else
            EXPECT(fabs(outcome.reduced_potential - 2.0 * (solvent - x[0]) * (solvent - x[0])) < 1e-12);
    }
    memset(&statistics, 0, sizeof statistics);
    statistics.struct_size = sizeof statistics;
    EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK && statistics.attempts == 50);
    EXPECT(statistics.expected_acceptance > 0.0 && statistics.expected_acceptance <= 1.0);
    EXPECT(statistics.expected_acceptance_error > 0.0);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

static void test_latent_walk(const char *path) {
    modejump_model *model = NULL;
    modejump_move *move = NULL;
    modejump_latent_walk_options options;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    double x[2] = {1.0, 0.5};
    const double widths[2] = {0.01, -0.1};
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    memset(&options, 0, sizeof options);
    EXPECT(modejump_latent_walk_options_init(&options) == MODEJUMP_INVALID_INPUT);
    options.struct_size = sizeof options;
    EXPECT(modejump_latent_walk_options_init(&options) == MODEJUMP_OK && options.widths == NULL);
    EXPECT(modejump_move_latent_walk_new(NULL, &options, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    options.widths = widths;
    EXPECT(modejump_move_latent_walk_new(model, &options, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    options.n_widths = 2;
    EXPECT(modejump_move_latent_walk_new(model, &options, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    EXPECT(strstr(last(), "-0.1") != NULL);
    options.n_widths = 1;
    options.leapfrog = UINT64_MAX;
    EXPECT(modejump_move_latent_walk_new(model, &options, &move) == MODEJUMP_INVALID_INPUT && move == NULL);
    options.leapfrog = 2;
    EXPECT(modejump_move_latent_walk_new(model, &options, &move) == MODEJUMP_OK);
    memset(&target, 0, sizeof target);
    target.struct_size = sizeof target;
    target.reduced_potential = flat_potential;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT);
    EXPECT(strstr(last(), "reduced_potential_gradient") != NULL && x[0] == 1.0);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

static void test_match_atoms(const char *path) {
    modejump_model *model = NULL;
    const char *residues[4] = {"ABC9", "ABC9", "ABC9", "ABC9"};
    const char *names[4] = {"H1", "C0", "C2", "O3"};
    uint64_t order[4] = {9, 9, 9, 9};
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_match_atoms(model, 4, residues, names, order) == MODEJUMP_OK);
    EXPECT(order[0] == 1 && order[1] == 0 && order[2] == 2 && order[3] == 3);
    order[0] = 9;
    names[3] = "OX";
    EXPECT(modejump_model_match_atoms(model, 4, residues, names, order) == MODEJUMP_INVALID_INPUT);
    EXPECT(strstr(last(), "ABC1:O3 (atom 4)") != NULL && strstr(last(), "OX") != NULL);
    names[3] = NULL;
    EXPECT(modejump_model_match_atoms(model, 4, residues, names, order) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_match_atoms(model, 3, residues, names, order) == MODEJUMP_INVALID_INPUT);
    EXPECT(order[0] == 9);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

static void test_masses(const char *path, const char *abstract) {
    modejump_model *model = NULL;
    double masses[4] = {12.011, 1.008, 12.011, 15.999};
    const double x[12] = {0.0, 0.0, 0.0, 0.11, 0.0, 0.0, 0.0, 0.15, 0.0, 0.0, 0.2, 0.11};
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_check_masses(model, 4, masses) == MODEJUMP_OK);
    EXPECT(modejump_model_check_masses(model, 3, masses) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_check_masses(model, 4, NULL) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_check_masses(NULL, 4, masses) == MODEJUMP_INVALID_INPUT);
    masses[1] = 12.011;
    /* no two atoms of it are alike */
    EXPECT(modejump_model_check_labels(model, 12, x, NULL) == MODEJUMP_OK);
    EXPECT(modejump_model_check_labels(model, 11, x, NULL) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_check_labels(model, 12, NULL, NULL) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_check_masses(model, 4, masses) == MODEJUMP_INVALID_INPUT);
    EXPECT(strstr(last(), "a mass of 12.011") != NULL && strstr(last(), "ABC1:H1 (atom 2)") != NULL);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
    EXPECT(modejump_model_load(abstract, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_check_masses(model, 4, masses) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

static void test_constraints(const char *path) {
    modejump_model *model = NULL;
    modejump_move *move = NULL;
    modejump_move_options options;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    const uint64_t kept[2] = {0, 1}, varied[4] = {0, 1, 1, 2}, absent[2] = {0, 9};
    const double length[2] = {0.11, 0.11}, masses[4] = {12.0, 1.0, 12.0, 16.0};
    const double box[9] = {3.0, 0.0, 0.0, 1.0, 2.5, 0.0, -1.0, 0.5, 2.0};
    double x[12], log_q[1];
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options) == MODEJUMP_OK);
    EXPECT(modejump_move_new(model, &options, &move) == MODEJUMP_OK);
    EXPECT(modejump_move_set_constraints(move, 2, varied, length, masses) == MODEJUMP_UNSUPPORTED);
    EXPECT(strstr(last(), "H1") != NULL && strstr(last(), "C2") != NULL && strstr(last(), "varies it") != NULL);
    EXPECT(modejump_move_set_constraints(move, 1, varied + 2, length, masses) == MODEJUMP_UNSUPPORTED);
    EXPECT(strstr(last(), "C0") != NULL && strstr(last(), "H1") != NULL && strstr(last(), "keeps the bond") != NULL);
    EXPECT(modejump_move_set_constraints(move, 1, absent, length, masses) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_move_set_constraints(move, 1, kept, length, masses) == MODEJUMP_OK);
    EXPECT(modejump_model_sample(model, 1, 0, 1, x, log_q) == MODEJUMP_OK);
    memset(&target, 0, sizeof target);
    target.struct_size = sizeof target;
    target.reduced_potential = flat_potential;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    state.box = box;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    x[9] += box[0];
    EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_OK);
    EXPECT(isfinite(outcome.log_acceptance));
    state.replica = 1u << 24;
    EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

static void test_exchange(const char *path) {
    modejump_model *model = NULL;
    modejump_bijection *map = NULL;
    modejump_exchange *exchange = NULL;
    modejump_target target_a, target_b;
    modejump_state a, b;
    modejump_exchange_outcome outcome;
    modejump_statistics statistics;
    Counter counter = {0, 0, 0};
    double x[4] = {1.0, 0.5, -1.0, -0.5}, y[4], log_det[2];
    uint32_t status[2];
    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    EXPECT(modejump_bijection_new(model, NULL, &map) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_bijection_new(model, model, &map) == MODEJUMP_OK);
    EXPECT(modejump_bijection_map(map, 0, 2, x, y, log_det, status) == MODEJUMP_OK);
    EXPECT(status[0] == 0 && fabs(y[0] - x[0]) < 1e-5 && fabs(log_det[1]) < 1e-4);
    EXPECT(modejump_bijection_map(map, 1, 2, y, y, log_det, status) == MODEJUMP_OK);
    EXPECT(modejump_bijection_map(map, 2, 2, x, y, log_det, status) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_exchange_new(map, 3, &exchange) == MODEJUMP_OK);
    memset(&target_a, 0, sizeof target_a);
    target_a.struct_size = sizeof target_a;
    target_a.user = &counter;
    target_a.reduced_potential = reduced_potential;
    target_a.destroy = destroy;
    target_b = target_a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.x = x;
    a.reduced_potential = potential(x);
    b = a;
    b.x = x + 2;
    b.replica = 1;
    b.reduced_potential = potential(x + 2);
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    EXPECT(modejump_exchange_attempt(exchange, &target_a, &target_b, &a, &b, &outcome) == MODEJUMP_OK);
    EXPECT(outcome.outcome == MODEJUMP_ACCEPTED && fabs(outcome.log_acceptance) < 1e-2);
    EXPECT(fabs(x[0] + 1.0) < 1e-4 && fabs(outcome.reduced_potential_a - potential(x)) < 1e-9);
    EXPECT(counter.calls == 2 && counter.destroyed == 2);
    counter.fail = 1;
    EXPECT(modejump_exchange_attempt(exchange, &target_a, &target_b, &a, &b, &outcome) == MODEJUMP_CALLBACK_FAILED);
    b.x = x;
    EXPECT(modejump_exchange_attempt(exchange, &target_a, &target_b, &a, &b, &outcome) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_exchange_attempt(exchange, &target_a, NULL, &a, &b, &outcome) == MODEJUMP_INVALID_INPUT);
    EXPECT(counter.destroyed == 7);
    memset(&statistics, 0, sizeof statistics);
    statistics.struct_size = sizeof statistics;
    EXPECT(modejump_exchange_statistics(exchange, &statistics) == MODEJUMP_OK && statistics.attempts == 1);
    EXPECT(modejump_exchange_reset_statistics(exchange) == MODEJUMP_OK);
    EXPECT(modejump_exchange_statistics(exchange, &statistics) == MODEJUMP_OK && statistics.attempts == 0);
    EXPECT(modejump_exchange_carry_frames(exchange, 1) == MODEJUMP_OK);
    EXPECT(modejump_exchange_carry_frames(exchange, 2) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_exchange_set_constraints(exchange, 1, NULL, NULL, NULL) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_exchange_set_constraints(exchange, 0, NULL, NULL, NULL) == MODEJUMP_OK);
    EXPECT(modejump_exchange_free(exchange) == MODEJUMP_OK);
    EXPECT(modejump_bijection_free(map) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK);
}

/* A steerable model with two auxiliary coordinates, trained at 600 K, in a simulation at 300 K. */
static void test_steering(const char *path, const char *generator) {
    modejump_model *model = NULL, *cold = NULL, *refused = NULL, *plain = NULL;
    modejump_move *move = NULL;
    modejump_move_options options;
    modejump_statistics statistics;
    modejump_target target;
    modejump_state state;
    modejump_outcome outcome;
    Counter counter = {0, 0, 0};
    double x[2] = {1.0, 0.5}, joint[32], log_q[8], log_q_cold[8], variance = -1.0, warm;
    uint64_t dimension = 0, auxiliary = 9;
    int i;

    EXPECT(modejump_model_load(path, &model) == MODEJUMP_OK);
    EXPECT(modejump_model_dimension(model, &dimension) == MODEJUMP_OK && dimension == 4);
    EXPECT(modejump_model_steering(model, &variance, &auxiliary) == MODEJUMP_OK && variance == 1.0 && auxiliary == 2);
    EXPECT(modejump_model_steering(NULL, &variance, &auxiliary) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_at_temperature(model, 300.0, &cold) == MODEJUMP_OK);
    EXPECT(modejump_model_steering(cold, &variance, &auxiliary) == MODEJUMP_OK && variance == 0.5);
    EXPECT(modejump_model_at_temperature(model, -1.0, &refused) == MODEJUMP_INVALID_INPUT && refused == NULL);
    /* log q_tau - log q / tau is one constant */
    EXPECT(modejump_model_sample(cold, 5, 0, 8, joint, log_q_cold) == MODEJUMP_OK);
    EXPECT(modejump_model_log_density(model, 8, joint, log_q) == MODEJUMP_OK);
    for (i = 1; i < 8; i++)
        EXPECT(fabs((log_q_cold[i] - 2.0 * log_q[i]) - (log_q_cold[0] - 2.0 * log_q[0])) < 1e-3);
    EXPECT(modejump_model_load(generator, &plain) == MODEJUMP_OK);
    EXPECT(modejump_model_steering(plain, &variance, &auxiliary) == MODEJUMP_OK && variance == 0.0 && auxiliary == 0);
    EXPECT(modejump_model_temperature(model, &warm) == MODEJUMP_OK && warm == 600.0);
    EXPECT(modejump_model_temperature(cold, &warm) == MODEJUMP_OK && warm == 300.0);
    EXPECT(modejump_model_temperature(NULL, &warm) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_centroid_noise(plain, &warm) == MODEJUMP_OK && warm == 0.0);
    EXPECT(modejump_model_centroid_noise(plain, NULL) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_model_at_temperature(plain, 300.0, &refused) == MODEJUMP_UNSUPPORTED && refused == NULL);

    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    EXPECT(modejump_move_options_init(&options) == MODEJUMP_OK);
    memset(&target, 0, sizeof target);
    target.struct_size = sizeof target;
    target.user = &counter;
    target.reduced_potential = reduced_potential;
    memset(&state, 0, sizeof state);
    state.struct_size = sizeof state;
    state.x = x;
    memset(&outcome, 0, sizeof outcome);
    outcome.struct_size = sizeof outcome;
    memset(&statistics, 0, sizeof statistics);
    statistics.struct_size = sizeof statistics;
    EXPECT(modejump_move_new(model, &options, &move) == MODEJUMP_OK);
    EXPECT(modejump_move_set_temperature(NULL, 300.0) == MODEJUMP_INVALID_INPUT);
    EXPECT(modejump_move_set_temperature(move, 0.0) == MODEJUMP_INVALID_INPUT);
    warm = 0.0;
    for (i = 0; i < 2; i++) { /* at the temperature of training first, then at that of the potential */
        if (i == 1)
            EXPECT(modejump_move_set_temperature(move, 300.0) == MODEJUMP_OK);
        EXPECT(modejump_move_reset_statistics(move) == MODEJUMP_OK);
        for (state.step = 0; state.step < 400; state.step++) {
            state.reduced_potential = potential(x);
            EXPECT(modejump_move_attempt(move, &target, &state, &outcome) == MODEJUMP_OK);
            EXPECT(fabs(outcome.reduced_potential - potential(x)) < 1e-9);
        }
        EXPECT(modejump_move_statistics(move, &statistics) == MODEJUMP_OK && statistics.attempts == 400);
        if (i == 0)
            warm = (double)statistics.accepted;
    }
    EXPECT(statistics.accepted > 240 && (double)statistics.accepted > warm + 40);
    EXPECT(modejump_move_free(move) == MODEJUMP_OK);
    EXPECT(modejump_model_free(model) == MODEJUMP_OK && modejump_model_free(cold) == MODEJUMP_OK);
    EXPECT(modejump_model_free(plain) == MODEJUMP_OK);
}

static double sampled[2 * 66];

/* Calls that start threads of the library with a continuous flow of 22 atoms, or wait for them. */
typedef int32_t (*call)(modejump_model *flow);

static int32_t sample(modejump_model *flow) {
    double log_q[2];
    return modejump_model_sample(flow, 1, 0, 2, sampled, log_q);
}

static int32_t make_move(modejump_model *flow) {
    modejump_move_options options = {.struct_size = sizeof options};
    modejump_move *move = NULL;
    int32_t status = modejump_move_options_init(&options);
    return status == MODEJUMP_OK ? modejump_move_new(flow, &options, &move) : status;
}

static int32_t check_labels(modejump_model *flow) {
    return modejump_model_check_labels(flow, 66, sampled, NULL);
}

/* MODEJUMP_UNSUPPORTED if all of them are refused before their arguments are looked at. */
static int32_t other_calls(modejump_model *flow) {
    const int32_t statuses[] = {modejump_move_delayed_acceptance_new(flow, NULL, NULL, NULL),
                                modejump_move_annealed_new(flow, NULL, NULL, NULL),
                                modejump_move_driven_new(flow, NULL, 1, NULL),
                                modejump_move_latent_walk_new(flow, NULL, NULL),
                                modejump_move_mode_jump_new(flow, NULL, NULL, NULL, NULL),
                                modejump_exchange_new(NULL, 0, NULL),
                                modejump_move_set_constraints(NULL, 0, NULL, NULL, NULL),
                                modejump_move_set_temperature(NULL, 300.0)};
    size_t i;
    for (i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i] != MODEJUMP_UNSUPPORTED)
            return statuses[i];
    return MODEJUMP_UNSUPPORTED;
}

/* MODEJUMP_UNSUPPORTED if the target of an attempt that is refused is destroyed. */
static int32_t attempt(modejump_model *flow) {
    Counter counter = {0};
    modejump_target target = {.struct_size = sizeof target, .user = &counter, .destroy = destroy};
    int32_t status = modejump_move_attempt(NULL, &target, NULL, NULL);
    (void)flow;
    return counter.destroyed == 1 ? status : MODEJUMP_INTERNAL_ERROR;
}

static modejump_move *ahead;

/* Makes a move that draws proposals ahead for two replicas. */
static int32_t draw_ahead(modejump_model *flow) {
    modejump_move_options options = {.struct_size = sizeof options};
    modejump_target target = {.struct_size = sizeof target, .reduced_potential = flat_potential};
    modejump_state state = {.struct_size = sizeof state, .x = sampled};
    modejump_outcome outcome = {.struct_size = sizeof outcome};
    int32_t status = sample(flow);
    if (status == MODEJUMP_OK)
        status = modejump_move_options_init(&options);
    options.stride = options.batch = 1;
    options.draw_ahead = 1;
    if (status == MODEJUMP_OK)
        status = modejump_move_new(flow, &options, &ahead);
    for (state.replica = 0; status == MODEJUMP_OK && state.replica < 2; state.replica++)
        status = modejump_move_attempt(ahead, &target, &state, &outcome);
    return status;
}

/* MODEJUMP_UNSUPPORTED if the move can be freed where its threads are not. */
static int32_t free_ahead(modejump_model *flow) {
    int32_t status = modejump_move_free(ahead);
    return status == MODEJUMP_OK ? sample(flow) : status;
}

/* Whether `child` ends with this status. */
static int ends_with(pid_t child, int expected) {
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == expected;
}

/* A process without the library's threads is told so, and does not wait for them: one that makes the call `after`, forked from one whose
 * first computation was `before`. Both are forked from this process, which has not computed yet. */
static int fork_is_told(const char *path, call before, call after) {
    pid_t parent = fork(), child;
    if (parent != 0)
        return ends_with(parent, 7);
    modejump_model *flow = NULL;
    if (modejump_model_load(path, &flow) != MODEJUMP_OK || before(flow) != MODEJUMP_OK)
        _exit(2);
    child = fork();
    if (child == 0) {
        alarm(20);
        _exit(after(flow) == MODEJUMP_UNSUPPORTED && strstr(last(), "spawn") != NULL ? 7 : 1);
    }
    _exit(ends_with(child, 7) ? 7 : 3);
}

static void test_fork(const char *path) {
    EXPECT(fork_is_told(path, sample, sample));
    EXPECT(fork_is_told(path, make_move, sample));
    EXPECT(fork_is_told(path, sample, make_move));
    EXPECT(fork_is_told(path, sample, check_labels));
    EXPECT(fork_is_told(path, sample, other_calls));
    EXPECT(fork_is_told(path, sample, attempt));
    EXPECT(fork_is_told(path, draw_ahead, free_ahead));
}

int main(int argc, char **argv) {
    const char *message = "";
    if (argc != 7)
        return 2;
    test_fork(argv[6]); /* before this process computes */
    EXPECT(modejump_abi_version() == MODEJUMP_ABI_VERSION);
    EXPECT(strlen(modejump_version()) >= 5);
    EXPECT(modejump_set_last_error("mine") == MODEJUMP_OK);
    EXPECT(modejump_last_error(&message) == MODEJUMP_OK && strcmp(message, "mine") == 0);
    EXPECT(modejump_last_error(NULL) == MODEJUMP_INVALID_INPUT);
    test_model(argv[1]);
    test_move(argv[1]);
    test_struct_sizes(argv[1]);
    test_annealed(argv[1]);
    test_driven(argv[1]);
    test_latent_walk(argv[1]);
    test_exchange(argv[1]);
    test_steering(argv[4], argv[1]);
    test_model_options(argv[5], argv[1]);
    test_rotations(argv[5], argv[1]);
    test_match_atoms(argv[2]);
    test_masses(argv[2], argv[1]);
    test_constraints(argv[2]);
    printf("%d failures\n", failures);
    return failures != 0;
}
