/* The C front of the plugin, for Python's ctypes: objects of OpenMM are passed by address. Functions return 0, or -1 with a
 * message for modejump_openmm_last_error(). */
#ifndef MODEJUMP_OPENMM_H_
#define MODEJUMP_OPENMM_H_

#include <stdint.h>

#define MODEJUMP_OPENMM_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

#define MODEJUMP_OPENMM_ABI 10

typedef struct {
    uint64_t attempts, accepted, rejected, out_of_support, singular, non_finite, constraint, chirality, wrong_mode;
    double mean_log_weight, effective_sample_size, last_log_acceptance;
    uint64_t screened, exact_evaluations;
    double correction_variance, expected_acceptance, expected_acceptance_error;
    uint64_t relaxations, relaxations_accepted;
    /* 1 if a surrogate decides, 0 if the exact log-density does. */
    uint32_t by_surrogate;
} modejump_openmm_statistics;

MODEJUMP_OPENMM_EXPORT uint32_t modejump_openmm_abi_version(void);
/* Message of the last failed call on this thread, valid until its next call. */
MODEJUMP_OPENMM_EXPORT const char *modejump_openmm_last_error(void);
/* 1 if the OpenMM::Force is a MonteCarloModeJump, else 0. All functions below refuse other Forces. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_is_mode_jump(void *force);
/* Loads the model, and the screening model if one is set; fails if there is no such file. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_load_model(void *force);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_embed_model(void *force);
/* Text of "model_file", "model_hash", "screening_model_file", "screening_model_hash", "acceptance" ("exact", "surrogate"), "precision" ("f32",
 * "f64", "bf16") or "decoding" ("sequential", "jacobi", "gauss_seidel"), valid as long as the Force is not changed. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_get_text(void *force, const char *name, const char **value);
/* "frequency", "proposals", "seed", "default_replica", "temperature", "draw_ahead", "driven_steps", "relaxation_steps",
 * "relaxation_timestep", "annealing_stages", "annealing_moves", "annealing_step", "leapfrog", "rotations",
 * "segment", "decoding_tolerance", "decoding_passes", "model_temperature" (read only). */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_get(void *force, const char *name, double *value);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_set(void *force, const char *name, double value);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_set_particles(void *force, int n, const int *particles);
/* Writes up to capacity indices; *n is their full number. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_get_particles(void *force, int capacity, int *particles, int *n);
/* Step widths of a walk in latent space; none for no walk. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_set_latent_walk(void *force, int n, const double *widths);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_get_latent_walk(void *force, int capacity, double *widths, int *n);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_attempt(void *force, void *context, int *accepted);
/* Fails if the Context's integrator samples a distribution other than the classical one of the System, as Drude integrators and
 * CustomIntegrators that scale forces do. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_check_ensemble(void *context);
/* 1 if the steps of the Context's integrator vary in length, else 0. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_varies_steps(void *context, int *varies);
/* The temperature (K) that the dynamics of a Context has now; 0 if it has none, or several. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_find_temperature(void *context, double *kelvin);
/* Gives all particles of a Context new velocities at this temperature (K), as after an accepted move, without momentum if the System has
 * a CMMotionRemover. The random numbers are a function of seed, step and replica. For integrators that pass check_ensemble. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_draw_velocities(void *context, double temperature, uint64_t seed, uint64_t step,
                                                           uint64_t replica);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_get_statistics(void *force, void *context, modejump_openmm_statistics *out);
/* Advice on a low acceptance; empty if all is well. Valid until the next call on this thread. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_get_advice(void *force, void *context, const char **text);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_reset_statistics(void *force, void *context);
/* Writes up to capacity numbers; *n is their full number. */
MODEJUMP_OPENMM_EXPORT int modejump_openmm_log_weights(void *force, void *context, uint64_t capacity, double *log_weights,
                                                       uint64_t *n);
MODEJUMP_OPENMM_EXPORT int modejump_openmm_update_parameters(void *force, void *context);

#ifdef __cplusplus
}
#endif

#endif
