"""A small Graphormer EBM with random weights: energies, scores, losses and gradient norms in double precision, computed with JAX.

Reimplements the formulas of BoltzNCE's network. Writes graphormer_seed7, graphormer_field and ebm_loss_small beside this file.

    pip install jax safetensors && python tests/golden/boltznce/make_graphormer.py

With the reference's checkpoint `graphormer_seed2024` of 4.9 M parameters and the inputs of its `ebm_loss_neg1`, the same functions
give 2.37613007 and 0.69333973 for the two losses in double precision, where the reference gives 2.37611079 and 0.69334006 in single
precision; gradient norms agree to 1e-5 and 1.6e-4. Parity with that file cannot be closer.
"""

import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402

HERE = pathlib.Path(__file__).parent
ATOMS, TYPES, WIDTH, FEED_FORWARD, HEADS, KERNELS, LAYERS, SAMPLES = 9, 5, 24, 20, 4, 7, 2, 6


def silu(x):
    return x * jax.nn.sigmoid(x)


def linear(p, name, x):
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def layer_norm(p, name, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p[name + ".weight"] + p[name + ".bias"]


def energy(p, t, x, atoms, heads=HEADS, layers=LAYERS):
    """E(t, x) for x[atoms][3]; `atoms` are types counted from 1."""
    g = "graphormer."
    n_types = p[g + "atom_encoder.weight"].shape[0]
    d = x[None, :, :] - x[:, None, :] + 1e-5
    r = jnp.sqrt((d**2).sum(-1))
    pair = atoms[:, None] * n_types + atoms[None, :]
    y = p[g + "gbf.mul.weight"][pair, 0] * r + p[g + "gbf.bias.weight"][pair, 0]
    width = jnp.abs(p[g + "gbf.stds.weight"][0]) + 1e-5
    mean = p[g + "gbf.means.weight"][0]
    k = jnp.exp(-0.5 * ((y[..., None] - mean) / width) ** 2) / ((2 * 3.14159) ** 0.5 * width)
    bias = linear(p, g + "bias_proj.layer2", silu(linear(p, g + "bias_proj.layer1", k)))
    time = linear(p, g + "time_encoder.layer2", silu(linear(p, g + "time_encoder.layer1", jnp.reshape(t, (1,)))))
    rows = p[g + "atom_encoder.weight"][atoms] + linear(p, g + "edge_proj", k.sum(1)) + time
    width = rows.shape[1]
    for layer in range(layers):
        n = f"{g}layers.{layer}."
        qkv = linear(p, n + "self_attn.in_proj", layer_norm(p, n + "self_attn_layer_norm", rows))
        q, k, v = (z.reshape(-1, heads, width // heads) for z in jnp.split(qkv, 3, -1))
        weights = jax.nn.softmax(jnp.einsum("ihc,jhc->ijh", q, k) * (width // heads) ** -0.5 + bias, axis=1)
        out = jnp.einsum("ijh,jhc->ihc", weights, v).reshape(-1, width)
        rows = rows + linear(p, n + "self_attn.out_proj", out)
        rows = rows + linear(p, n + "fc2", silu(linear(p, n + "fc1", layer_norm(p, n + "final_layer_norm", rows))))
    e = linear(p, g + "energy_proj.layer2", silu(linear(p, g + "energy_proj.layer1", layer_norm(p, g + "final_ln", rows))))
    return e.sum()


energies = jax.vmap(energy, (None, 0, 0, None))
scores = jax.vmap(jax.grad(energy, 2), (None, 0, 0, None))


def score_loss(p, t, x, noise, atoms):
    return ((jnp.sin(jnp.pi / 2 * t)[:, None, None] * scores(p, t, x, atoms) + noise) ** 2).mean()


def nce_loss(p, t, t_neg, x, atoms):
    positive, negative = energies(p, t, x, atoms), energies(p, t_neg, x, atoms)
    return -(positive - jnp.logaddexp(positive, negative)).mean()


def weights(rng):
    g, rows = "graphormer.", TYPES + 1
    p = {}

    def normal(name, *shape, scale=None):
        p[g + name] = (rng.standard_normal(shape) * (scale or 1 / np.sqrt(shape[-1]))).astype("f4")

    def both(name, n_in, n_out):
        normal(name + ".weight", n_out, n_in)
        normal(name + ".bias", n_out, scale=0.3)

    def norm(name, n):
        normal(name + ".weight", n, scale=0.3)
        p[g + name + ".weight"] += 1
        normal(name + ".bias", n, scale=0.3)

    normal("atom_encoder.weight", rows, WIDTH)
    both("time_encoder.layer1", 1, 1)
    both("time_encoder.layer2", 1, WIDTH)
    p[g + "gbf.means.weight"] = rng.uniform(0, 3, (1, KERNELS)).astype("f4")
    p[g + "gbf.stds.weight"] = (rng.uniform(0.3, 3, (1, KERNELS)) * rng.choice([-1, 1], (1, KERNELS))).astype("f4")
    p[g + "gbf.mul.weight"] = (1 + 0.2 * rng.standard_normal((rows * rows, 1))).astype("f4")
    p[g + "gbf.bias.weight"] = (0.2 * rng.standard_normal((rows * rows, 1))).astype("f4")
    both("bias_proj.layer1", KERNELS, KERNELS)
    both("bias_proj.layer2", KERNELS, HEADS)
    both("edge_proj", KERNELS, WIDTH)
    for layer in range(LAYERS):
        n = f"layers.{layer}."
        both(n + "self_attn.in_proj", WIDTH, 3 * WIDTH)
        both(n + "self_attn.out_proj", WIDTH, WIDTH)
        norm(n + "self_attn_layer_norm", WIDTH)
        both(n + "fc1", WIDTH, FEED_FORWARD)
        both(n + "fc2", FEED_FORWARD, WIDTH)
        norm(n + "final_layer_norm", WIDTH)
    norm("final_ln", WIDTH)
    both("energy_proj.layer1", WIDTH, WIDTH)
    both("energy_proj.layer2", WIDTH, 1)
    return p


def main():
    rng = np.random.default_rng(7)
    stored = weights(rng)
    save_file(stored, HERE / "graphormer_seed7.safetensors")
    p = {k: jnp.array(v, "f8") for k, v in stored.items()}
    single = {k: jnp.array(v) for k, v in stored.items()}
    atoms = jnp.array(rng.integers(1, TYPES + 1, ATOMS))
    x0, x1 = rng.standard_normal((2, SAMPLES, ATOMS, 3))
    t = rng.uniform(0.05, 0.95, SAMPLES)
    t_neg = np.clip(t + 0.1 * rng.standard_normal(SAMPLES), 0, 1)
    a, s = np.cos(np.pi / 2 * t)[:, None, None], np.sin(np.pi / 2 * t)[:, None, None]
    x = (a * 1.5 * x0 + s * x1).astype("f4").astype("f8")
    t4 = t.astype("f4").astype("f8")
    save_file(
        {
            "atoms": np.array(atoms), "x": x, "t": t4,
            "energy_f64": np.array(energies(p, t4, x, atoms)), "score_f64": np.array(scores(p, t4, x, atoms)),
            "energy_f32": np.array(energies(single, t4.astype("f4"), x.astype("f4"), atoms)),
            "score_f32": np.array(scores(single, t4.astype("f4"), x.astype("f4"), atoms)),
        },
        HERE / "graphormer_field.safetensors",
    )
    arrays, names = {}, {}
    for kind, (loss, gradient) in {
        "score": jax.value_and_grad(score_loss)(p, t, x, x1, atoms),
        "nce": jax.value_and_grad(nce_loss)(p, t, t_neg, x, atoms),
    }.items():
        norms = {k: float(jnp.sqrt((v**2).sum())) for k, v in gradient.items()}
        arrays[f"loss_{kind}"] = np.array([float(loss)])
        arrays[f"gradnorms_{kind}"] = np.array(list(norms.values()))
        arrays[f"gradnorm_{kind}"] = np.sqrt((arrays[f"gradnorms_{kind}"] ** 2).sum())[None]
        names[f"gradnames_{kind}"] = json.dumps(list(norms))
    arrays |= {"atoms": np.array(atoms), "xt": x, "x1": x1, "t": t, "t_neg": t_neg}
    save_file(arrays, HERE / "ebm_loss_small.safetensors", metadata=names)


if __name__ == "__main__":
    main()
