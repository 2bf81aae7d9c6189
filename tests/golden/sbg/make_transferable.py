"""Small transferable TarFlow and Prose with random weights: per-block outputs, samples, log q and gradients in double precision, with JAX.

Reimplements the formulas of transferable-samplers (Tan et al. 2025); arrays have the names and shapes of golden data made with that
program. Writes the folders prose_tiny and tarflow_transferable_tiny beside this file, for the peptides in
prose_tiny/topologies.json (encodings and orders from transferable-samplers 3a98a70).

    pip install jax safetensors && python tests/golden/sbg/make_transferable.py [CHECK]

With CHECK, a folder of that program's own data (config.json, topologies.json, state_f32, io_f64), compares the same functions with it
instead: a Prose of 8.4 million parameters and eight configurations give errors of 2e-15 for z and 3e-14 for log q.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402

HERE = pathlib.Path(__file__).parent
PROSE = [
    "n2c_backbone-first_standard",
    "n2c_residue-by-residue_standard_flip",
    "n2c_backbone-first_standard_flip",
    "n2c_residue-by-residue_standard",
    "n2c_backbone-first_variant",
    "n2c_residue-by-residue_variant_flip",
    "n2c_backbone-first_variant_flip",
    "n2c_residue-by-residue_variant",
]
TARFLOW = ["n2c_residue-by-residue_standard", "n2c_residue-by-residue_standard_flip"]
PAD, SAMPLED = 41, "VF"


def linear(p, name, x):
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def standardise(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)


def norm(p, name, x):
    return standardise(x) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def sines(places, columns, base):
    angles = places[:, None] * base ** (-2.0 * np.arange(columns // 2) / columns)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(places), columns)


def embedded(p, config, encoding):
    atoms, residues = p["cond_embed.atom_embed.weight"], p["cond_embed.residue_embed.weight"]
    base = config["cond"]["sinusoid_div_value"]
    n = len(encoding["atom_type"])
    parts = [
        atoms[np.array(encoding["atom_type"])],
        residues[np.array(encoding["aa_type"])],
        sines(np.array(encoding["aa_pos"], float), atoms.shape[1], base).astype(atoms.dtype),
        sines(np.full(n, float(encoding["seq_len"][0])), atoms.shape[1], base).astype(atoms.dtype),
    ]
    return linear(p, "cond_embed.mlp.2", gelu(linear(p, "cond_embed.mlp.0", jnp.concatenate(parts, -1))))


def attention(p, name, config, x):
    q, k, v = jnp.split(linear(p, f"{name}.attention.qkv", norm(p, f"{name}.attention.norm", x)), 3, -1)
    if config["use_qkln"]:
        q, k = norm(p, f"{name}.attention.q_layer_norm", q), norm(p, f"{name}.attention.k_layer_norm", k)
    tokens, width = len(x), config["head_dim"]
    q, k, v = [a.reshape(tokens, -1, width).transpose(1, 0, 2) for a in (q, k, v)]
    scores = q @ k.transpose(0, 2, 1) / float(np.sqrt(width))
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores, -jnp.inf), -1)
    x = x + linear(p, f"{name}.attention.proj", (weights @ v).transpose(1, 0, 2).reshape(tokens, -1))
    f = gelu(linear(p, f"{name}.mlp.main.0", norm(p, f"{name}.mlp.norm", x)))
    return x + linear(p, f"{name}.mlp.main.2", f)


def adaptive(p, name, y, c, inside):
    given = norm(p, f"{name}.adaln.norm_cond", c)
    gamma = jax.nn.sigmoid(linear(p, f"{name}.adaln.to_gamma.0", given))
    w = inside(standardise(y) * gamma + linear(p, f"{name}.adaln.to_beta", given))
    return y + w * jax.nn.sigmoid(linear(p, f"{name}.scale_output.to_adaln_zero_gamma.0", c))


def transition(p, name, w):
    a, g = jnp.split(linear(p, f"{name}.swish_linear.0", w), 2, -1)
    return linear(p, f"{name}.linear_out", jax.nn.silu(g) * a)


def shift_and_scale(p, config, b, u, e):
    """Returns a and b of every token, given the tokens before it; e is in the block's order."""
    name, n = f"blocks.{b}", len(u)
    if config["lookahead_conditioning"]:
        c = jnp.concatenate([e, jnp.concatenate([e[1:], jnp.zeros_like(e[:1])])], -1)
        c = linear(p, f"{name}.proj_cond.2", gelu(linear(p, f"{name}.proj_cond.0", c)))
    else:
        c = linear(p, f"{name}.proj_cond", e)
    places = sines(np.arange(n, dtype=float), config["channels"], 10000.0).astype(u.dtype)
    y = linear(p, f"{name}.proj_in", u) + p[f"{name}.pos_embed_scale"] * places
    for k in range(config["layers_per_block"]):
        layer = f"{name}.attn_blocks.{k}"
        if config["use_adapt_ln"]:
            y = adaptive(p, f"{layer}.mha", y, c, lambda w: attention(p, f"{layer}.mha.mha", config, w))
            if config["use_transition"]:
                y = adaptive(p, f"{layer}.transition", y, c, lambda w: transition(p, f"{layer}.transition.transition", w))
        else:
            y = attention(p, layer, config, y + c)
    out = linear(p, f"{name}.proj_out", y)
    out = jnp.concatenate([jnp.zeros_like(out[:1]), out[:-1]])
    return out[:, :3], out[:, 3:]


def order_of(config, peptide, b):
    keys = config["permutation_keys"]
    return np.array(peptide["permutations"][keys[b % len(keys)]])


def forward(p, config, peptide, x):
    """Returns z, ln|dz/dx|, and x and -mean a after each block."""
    e, after, log_dets = embedded(p, config, peptide["encodings"]), [], []
    for b in range(config["num_blocks"]):
        order = order_of(config, peptide, b)
        u = x[order]
        a, shift = shift_and_scale(p, config, b, u, e[order])
        x = jnp.zeros_like(x).at[order].set((u - shift) * jnp.exp(-a))
        after.append(x)
        log_dets.append(-a.mean())
    return x, sum(log_dets) * x.size, after, log_dets


def backward(p, config, peptide, z):
    """Returns x and ln|dx/dz|, computed token by token."""
    e, log_det, x = embedded(p, config, peptide["encodings"]), 0.0, z
    step = jax.jit(shift_and_scale, static_argnums=(1, 2))
    for b in reversed(range(config["num_blocks"])):
        order = order_of(config, peptide, b)
        u = x[order]
        for i in range(1, len(u)):
            a, shift = step(p, Frozen(config), b, u, e[order])
            u = u.at[i].set(u[i] * jnp.exp(a[i]) + shift[i])
            log_det = log_det + a[i].sum()
        x = jnp.zeros_like(x).at[order].set(u)
    return x, log_det


class Frozen(dict):
    """A hashable configuration, which a compiled function may take as a static argument."""

    def __hash__(self):
        return hash(json.dumps(self, sort_keys=True))


def log_prior(z):
    return -0.5 * (z**2).sum() - 0.5 * z.size * float(np.log(2 * np.pi))


def log_q(p, config, peptide, x):
    z, log_det, _, _ = forward(p, config, peptide, x)
    return log_prior(z) + log_det


def parameters(config, rng):
    """Random parameters, also for layers that are initialised to zero."""
    c, h = config["channels"], config["expansion"] * config["channels"]
    p = {}

    def matrix(name, n_out, n_in, bias=True, scale=1.0):
        p[f"{name}.weight"] = scale * rng.uniform(-1, 1, (n_out, n_in)) / np.sqrt(n_in)
        if bias:
            p[f"{name}.bias"] = scale * rng.uniform(-1, 1, n_out) / np.sqrt(n_in)

    def normed(name):
        p[f"{name}.weight"] = 1 + 0.1 * rng.normal(size=c)
        p[f"{name}.bias"] = 0.1 * rng.normal(size=c)

    def attended(name):
        normed(f"{name}.attention.norm")
        matrix(f"{name}.attention.qkv", 3 * c, c)
        matrix(f"{name}.attention.proj", c, c)
        if config["use_qkln"]:
            normed(f"{name}.attention.q_layer_norm")
            normed(f"{name}.attention.k_layer_norm")
        normed(f"{name}.mlp.norm")
        matrix(f"{name}.mlp.main.0", h, c)
        matrix(f"{name}.mlp.main.2", c, h)

    def around(name):
        normed(f"{name}.adaln.norm_cond")
        matrix(f"{name}.adaln.to_gamma.0", c, c)
        matrix(f"{name}.adaln.to_beta", c, c, bias=False)
        matrix(f"{name}.scale_output.to_adaln_zero_gamma.0", c, c)

    p["cond_embed.atom_embed.weight"] = rng.normal(size=(128, c))
    p["cond_embed.residue_embed.weight"] = rng.normal(size=(64, c))
    matrix("cond_embed.mlp.0", c, 4 * c)
    matrix("cond_embed.mlp.2", c, c)
    for b in range(config["num_blocks"]):
        name = f"blocks.{b}"
        p[f"{name}.pos_embed_scale"] = np.array([0.1 + 0.02 * b])
        p[f"{name}.attn_mask"] = np.tril(np.ones((config["max_num_tokens"],) * 2))
        matrix(f"{name}.proj_in", c, 3)
        if config["lookahead_conditioning"]:
            matrix(f"{name}.proj_cond.0", c, 2 * c)
            matrix(f"{name}.proj_cond.2", c, c)
        else:
            matrix(f"{name}.proj_cond", c, c)
        for k in range(config["layers_per_block"]):
            layer = f"{name}.attn_blocks.{k}"
            if config["use_adapt_ln"]:
                around(f"{layer}.mha")
                attended(f"{layer}.mha.mha")
                if config["use_transition"]:
                    around(f"{layer}.transition")
                    matrix(f"{layer}.transition.transition.swish_linear.0", 2 * h, c, bias=False)
                    matrix(f"{layer}.transition.transition.linear_out", c, h, bias=False)
            else:
                attended(layer)
        matrix(f"{name}.proj_out", 6, c, scale=0.15)
    return {name: value.astype(np.float32) for name, value in p.items()}


def padded(values, n=PAD):
    values = np.asarray(values)
    return np.concatenate([values, np.zeros((n - len(values), *values.shape[1:]), values.dtype)])


def inputs_and_outputs(p, config, peptides, rows, rng, real):
    p = {name: jnp.array(value, real) for name, value in p.items()}
    io = {}

    def put(name, rows):
        io[name] = np.stack([np.asarray(row) for row in rows])

    chosen = [peptides[name] for name in rows]
    put("pad_mask", [padded(np.ones(len(c["atoms"]), np.uint8)) for c in chosen])
    for key in ("atom_type", "aa_type", "aa_pos"):
        put(f"pad_enc.{key}", [padded(np.array(c["encodings"][key])) for c in chosen])
    put("pad_enc.seq_len", [np.array(c["encodings"]["seq_len"]) for c in chosen])
    for key in config["permutation_keys"]:
        orders = [np.array(c["permutations"][key]) for c in chosen]
        put(f"pad_perm.{key}", [np.concatenate([order, np.arange(len(order), PAD)]) for order in orders])
    x = [jnp.array(rng.normal(size=(len(c["atoms"]), 3)), real) for c in chosen]
    found = [forward(p, config, c, x) for c, x in zip(chosen, x)]
    priors = [log_prior(z) for z, _, _, _ in found]
    put("pad_x", map(padded, x))
    put("pad_z", [padded(z) for z, _, _, _ in found])
    put("pad_cond", [padded(embedded(p, config, c["encodings"])) for c in chosen])
    for b in range(config["num_blocks"]):
        put(f"pad_block{b}_out", [padded(after[b]) for _, _, after, _ in found])
        put(f"pad_block{b}_logdet_mean", [log_dets[b] for _, _, _, log_dets in found])
    put("pad_logdet_mean", [log_det / x.size for x, (_, log_det, _, _) in zip(x, found)])
    put("pad_logdet_sum", [log_det for _, log_det, _, _ in found])
    put("pad_prior_energy_mean", [-prior / x.size for x, prior in zip(x, priors)])
    put("pad_log_q", [prior + found[1] for prior, found in zip(priors, found)])
    gradient = jax.grad(lambda x, c: -log_q(p, config, c, x))
    put("pad_proposal_energy_grad", [padded(gradient(x, c)) for c, x in zip(chosen, x)])

    sampled = peptides[SAMPLED]
    z = jnp.array(rng.normal(size=(2, len(sampled["atoms"]), 3)), real)
    back = [backward(p, config, sampled, z) for z in z]
    there = [forward(p, config, sampled, x) for x, _ in back]
    for key in ("atom_type", "aa_type", "aa_pos", "seq_len"):
        put(f"{SAMPLED}_enc.{key}", [np.array(sampled["encodings"][key])] * 2)
    for key in config["permutation_keys"]:
        put(f"{SAMPLED}_perm.{key}", [np.array(sampled["permutations"][key])] * 2)
    put(f"{SAMPLED}_z_in", z)
    put(f"{SAMPLED}_rev_x", [x for x, _ in back])
    put(f"{SAMPLED}_rev_log_q", [log_prior(z) - log_det for z, (_, log_det) in zip(z, back)])
    put(f"{SAMPLED}_fwd_logdet_sum", [found[1] for found in there])
    put(f"{SAMPLED}_roundtrip_z", [found[0] for found in there])

    def loss(p):
        terms = [-log_q(p, config, c, x) / x.size for c, x in zip(chosen, x)]
        return sum(terms) / len(terms)

    value, gradients = jax.value_and_grad(loss)(p)
    train = {"loss": np.asarray(value)}
    train |= {f"grad.{name}": np.asarray(g) for name, g in gradients.items() if not name.endswith("attn_mask")}
    return io, train


def make(name, config, peptides, seed):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    p = parameters(config, np.random.default_rng(seed))
    config["num_params"] = int(sum(v.size for name, v in p.items() if not name.endswith("attn_mask")))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(p, folder / "state_f32.safetensors")
    for real, label in ((np.float64, "f64"), (np.float32, "f32")):
        io, train = inputs_and_outputs(p, config, peptides, ["AG", "VF", "SA"], np.random.default_rng(seed + 1), real)
        save_file(io, folder / f"io_{label}.safetensors")
        if label == "f64":
            save_file(train, folder / f"train_grads_{label}.safetensors")


def compare(folder):
    config = json.loads((folder / "config.json").read_text())
    peptides = json.loads((folder / "topologies.json").read_text())
    p = {name: jnp.array(v, float) for name, v in load_file(folder / "state_f32.safetensors").items()}
    io = load_file(folder / "io_f64.safetensors")
    largest = {}
    for row, x in enumerate(io["pad_x"]):
        n = int(io["pad_mask"][row].sum())
        peptide = next(c for c in peptides.values() if c["encodings"]["atom_type"] == io["pad_enc.atom_type"][row, :n].tolist())
        z, log_det, after, _ = forward(p, config, peptide, jnp.array(x[:n]))
        found = {"pad_z": (z, n), "pad_logdet_sum": (log_det, None), "pad_log_q": (log_prior(z) + log_det, None)}
        found |= {f"pad_block{b}_out": (value, n) for b, value in enumerate(after)}
        found["pad_cond"] = (embedded(p, config, peptide["encodings"]), n)
        for name, (value, rows) in found.items():
            expected = io[name][row] if rows is None else io[name][row, :rows]
            largest[name] = max(largest.get(name, 0.0), float(np.abs(np.asarray(value) - expected).max()))
    print("\n".join(f"{name} {error:.1e}" for name, error in largest.items()))


def main():
    if len(sys.argv) > 1:
        return compare(pathlib.Path(sys.argv[1]))
    peptides = json.loads((HERE / "prose_tiny" / "topologies.json").read_text())
    common = {"kind": "tarflow_transferable", "head_dim": 4, "expansion": 2, "pad_to": PAD, "input_dimension": 3}
    common |= {"max_num_tokens": PAD, "channels": 8, "layers_per_block": 1, "use_qkln": True, "pos_embed_type": "sinusoidal"}
    common["cond"] = {"hidden_dim": 8, "output_dim": 8, "sinusoid_div_value": 1000}
    prose = {"use_adapt_ln": True, "use_transition": True, "lookahead_conditioning": True}
    plain = {"use_adapt_ln": False, "use_transition": False, "lookahead_conditioning": False}
    make("prose_tiny", common | prose | {"num_blocks": 8, "permutation_keys": PROSE}, peptides, 1)
    make("tarflow_transferable_tiny", common | plain | {"num_blocks": 3, "layers_per_block": 2, "permutation_keys": TARFLOW}, peptides, 2)


if __name__ == "__main__":
    main()
