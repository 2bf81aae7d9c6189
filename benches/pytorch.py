"""What PyTorch takes for the work that `modejump --device cuda bench` times, for a comparison on one card.

    python3 benches/pytorch.py [--device cuda|cpu] [--seconds S] [--warm] [names...] [--modes MODE...]
    python3 benches/pytorch.py --check

The networks are those of src/bin/modejump/bench/cases.rs with random weights, the coupling flow the shipped one, written anew in PyTorch as
one would who wants speed: dense, all samples at once, what depends on one atom alone computed once an atom, no graph library. Everything is
in single precision, coordinates and splines too, and nothing is copied to the card or back, where Modejump has coordinates, splines and
log-determinants in double precision and takes configurations from the host and brings them back. A line is the median of repeated calls:

    eager            as Python calls it
    graph            the whole call in a CUDA graph (`token graph`: one token's step, replayed for every token of a block)
    compile          torch.compile, mode "default"; of TarFlows every layer by itself
    compile graph    both
    ..., TF32        with set_float32_matmul_precision("high") instead of "highest"
    vjp, jvp         an exact divergence by a way back from every coordinate, or by tangents in every direction

The last column has the seconds until the first call is done, compilation and capture included; --warm compiles everything side by side
before. `--check` compares the networks with
tests/golden, and the coupling flow's samples with its densities, on the CPU. Needs PyTorch 2.6 or later, and nothing else.
"""

import argparse
import functools
import gc
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("benches/pytorch.py needs PyTorch: python3 -m pip install torch numpy")
from torch import nn
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "models/ala2/model.safetensors"
# Classes of alanine dipeptide's atoms in BoltzNCE and transferable-samplers.
CLASSES = [0, 2, 2, 2, 4, 5, 6, 7, 8, 9, 10, 12, 12, 12, 14, 15, 16, 17, 18, 20, 20, 20]


def count(model):
    return sum(p.numel() for p in model.parameters())


# BoltzNCE's vector field ------------------------------------------------------------------------------------------------------------


def norm(v):
    """Lengths of v[..., 3, n], at least 1e-4."""
    return v.square().sum(-2).clamp_min(1e-8).sqrt()


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, a):
        return a * torch.sigmoid(self.beta * a)


class Gvp(nn.Module):
    """Geometric vector perceptron of scalars s[..., n] and vectors v[..., 3, n]."""

    def __init__(self, scalars_in, vectors_in, scalars, vectors, gate):
        super().__init__()
        hidden = max(vectors_in, vectors)
        self.Wh = nn.Parameter(torch.randn(vectors_in, hidden) / vectors_in**0.5)
        self.Wu = nn.Parameter(torch.randn(hidden, vectors) / hidden**0.5)
        activation = nn.SiLU() if vectors == 1 else Swish()
        self.to_feats_out = nn.Sequential(nn.Linear(scalars_in + hidden, scalars), activation)
        self.scalar_to_vector_gates = nn.Linear(scalars, vectors)
        self.gate = gate

    def forward(self, s, v):
        hidden = v @ self.Wh
        s = self.to_feats_out(torch.cat([s, norm(hidden)], -1))
        v = hidden @ self.Wu
        if v.shape[-1] == 1:
            v = v / norm(v)[..., None, :]
        return s, self.gate(self.scalar_to_vector_gates(s))[..., None, :] * v


class GvpNorm(nn.Module):
    def __init__(self, scalars):
        super().__init__()
        self.feat_norm = nn.LayerNorm(scalars)

    def forward(self, s, v):
        mean = v.square().sum(-2).clamp_min(1e-8).mean(-1)
        v = v / ((mean + 1e-5).sqrt() + 1e-5)[..., None, None]
        if not torch.compiler.is_compiling():
            return self.feat_norm(s), v
        # forward mode of layer_norm is not compiled; written out, it is, and to the same code
        s = s - s.mean(-1, keepdim=True)
        s = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + 1e-5)
        return s * self.feat_norm.weight + self.feat_norm.bias, v


class GvpLayer(nn.Module):
    """Messages between all atoms, update of each, and a step of its position."""

    def __init__(self, scalars, vectors, radial):
        super().__init__()
        self.edge_message = nn.ModuleList([Gvp(scalars + radial, vectors + 1, scalars, vectors, torch.sigmoid)])
        self.node_update = nn.ModuleList([Gvp(scalars, vectors, scalars, vectors, torch.sigmoid)])
        self.node_position_update = Gvp(scalars, vectors, scalars, 1, torch.tanh)
        self.message_layer_norm = GvpNorm(scalars)
        self.update_layer_norm = GvpNorm(scalars)
        self.register_buffer("centres", torch.linspace(0, 20, radial, dtype=torch.float64), persistent=False)

    def messages(self, s, v, x):
        """Sums over the sources of s[b, j, n] and v[b, j, 3, n]. Scalars and vectors enter linearly, so their products are of atoms, not of
        pairs; only radial functions, norms and gates are [b, i, j, n]."""
        gvp = self.edge_message[0]
        linear, activation = gvp.to_feats_out
        difference = x[:, None] - x[:, :, None]
        distance = norm(difference[..., None]) + 1e-8
        direction = difference / distance
        radial = torch.exp(-((distance - self.centres) / 1.25).square())
        of_source = v @ gvp.Wh[1:]
        hidden = direction[..., None] * gvp.Wh[0] + of_source[:, None]
        n = s.shape[-1]
        of_scalars = F.linear(s, linear.weight[:, :n], linear.bias)
        of_pair = F.linear(torch.cat([radial, norm(hidden)], -1), linear.weight[:, n:])
        others = 1 - torch.eye(x.shape[1], device=x.device, dtype=x.dtype)[..., None]
        m = activation(of_scalars[:, None] + of_pair)
        gates = others * torch.sigmoid(gvp.scalar_to_vector_gates(m))
        along = torch.einsum("bijc,bijn->bicn", direction, gates) * (gvp.Wh[0] @ gvp.Wu)
        return (others * m).sum(2), along + torch.einsum("bijn,bjcn->bicn", gates, of_source @ gvp.Wu)

    def forward(self, s, v, x):
        ms, mv = self.messages(s, v, x)
        s, v = self.message_layer_norm(s + ms / 10, v + mv / 10)
        us, uv = self.node_update[0](s, v)
        s, v = s + us, v + uv
        x = x + 10 * self.node_position_update(s, v)[1][..., 0]
        return *self.update_layer_norm(s, v), x


class GvpOutput(nn.Module):
    def __init__(self, scalars, vectors):
        super().__init__()
        self.gvps = nn.ModuleList([Gvp(scalars, vectors, scalars, 1, nn.Identity())])


class GvpField(nn.Module):
    """v(t, x) of t[b] and x[b, 3 N]."""

    def __init__(self, layers=5, scalars=64, vectors=16, radial=16, classes=21):
        super().__init__()
        self.initial_embedding = nn.Sequential(nn.Linear(classes + 1, scalars), nn.SiLU())
        self.convs = nn.ModuleList([GvpLayer(scalars, vectors, radial) for _ in range(layers)])
        self.position_updater = GvpOutput(scalars, vectors)
        self.vectors = vectors
        self.register_buffer("features", F.one_hot(torch.tensor(CLASSES), classes).float(), persistent=False)

    def forward(self, t, x):
        b, n = x.shape[0], x.shape[1] // 3
        x = x.view(b, n, 3)
        h = torch.cat([self.features.expand(b, -1, -1), t[:, None, None].expand(-1, n, 1)], -1)
        s, v = self.initial_embedding(h), x.new_zeros(b, n, 3, self.vectors)
        for layer in self.convs:
            s, v, x = layer(s, v, x)
        return self.position_updater.gvps[0](s, v)[1].flatten(1)


def divergence_by_vjp(field, t, x, basis, at_once):
    """v and div v: the network forward once, backward from every coordinate."""
    v, pull = torch.func.vjp(lambda x: field(t, x), x)
    row = torch.func.vmap(lambda e: (pull(e.expand_as(x))[0] * e).sum(-1))
    return v, sum(row(part).sum(0) for part in basis.split(at_once))


def divergence_by_jvp(field, t, x, basis, at_once):
    """v and div v: tangents in every direction."""

    def column(e):
        v, dv = torch.func.jvp(lambda x: field(t, x), (x,), (e.expand_as(x),))
        return v, (dv * e).sum(-1)

    parts = [torch.func.vmap(column, out_dims=(None, 0))(part) for part in basis.split(at_once)]
    return parts[0][0], sum(part.sum(0) for _, part in parts)


# BoltzNCE's energy ------------------------------------------------------------------------------------------------------------------


class NonLinear(nn.Module):
    def __init__(self, n_in, n_out, hidden=None):
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(n_in, hidden or n_in), nn.Linear(hidden or n_in, n_out)

    def forward(self, x):
        return self.layer2(F.silu(self.layer1(x)))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class GraphormerLayer(nn.Module):
    def __init__(self, width, feed_forward, heads):
        super().__init__()
        self.heads = heads
        self.self_attn = Attention(width)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)

    def forward(self, x, bias, fused):
        qkv = self.self_attn.in_proj(self.self_attn_layer_norm(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            y = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias, -1) @ v
        x = x + self.self_attn.out_proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.silu(self.fc1(self.final_layer_norm(x))))


class Gaussians(nn.Module):
    def __init__(self, kernels, pairs):
        super().__init__()
        self.means, self.stds = nn.Embedding(1, kernels), nn.Embedding(1, kernels)
        self.mul, self.bias = nn.Embedding(pairs, 1), nn.Embedding(pairs, 1)
        for p, low, high in [(self.means, -3, 3), (self.stds, -3, 3), (self.mul, 1, 1), (self.bias, 0, 0)]:
            nn.init.uniform_(p.weight, low, high)

    def forward(self, r, pair):
        y = self.mul(pair) * r + self.bias(pair)
        width = self.stds.weight[0].abs() + 1e-5
        return torch.exp(-0.5 * ((y - self.means.weight[0]) / width).square()) / ((2 * 3.14159) ** 0.5 * width)


class Graphormer(nn.Module):
    """E(t, x) of t[b] and x[b, 3 N], ln q up to a constant."""

    def __init__(self, types=CLASSES, n_types=21, layers=8, width=256, feed_forward=256, heads=32, kernels=50, fused=False):
        super().__init__()
        self.fused = fused
        self.atom_encoder = nn.Embedding(n_types + 1, width)
        self.time_encoder = NonLinear(1, width)
        self.gbf = Gaussians(kernels, (n_types + 1) ** 2)
        self.bias_proj = NonLinear(kernels, heads)
        self.edge_proj = nn.Linear(kernels, width)
        self.layers = nn.ModuleList([GraphormerLayer(width, feed_forward, heads) for _ in range(layers)])
        self.final_ln = nn.LayerNorm(width)
        self.energy_proj = NonLinear(width, 1)
        atoms = torch.tensor(types) + 1
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("pairs", atoms[:, None] * (n_types + 1) + atoms, persistent=False)

    def forward(self, t, x):
        x = x.unflatten(-1, (-1, 3))
        r = (x[:, None] - x[:, :, None] + 1e-5).norm(dim=-1, keepdim=True)
        g = self.gbf(r, self.pairs)
        bias = self.bias_proj(g).permute(0, 3, 1, 2).contiguous()
        rows = self.atom_encoder(self.atoms) + self.edge_proj(g.sum(2)) + self.time_encoder(t[:, None])[:, None]
        for layer in self.layers:
            rows = layer(rows, bias, self.fused)
        return self.energy_proj(self.final_ln(rows)).sum((1, 2))


@torch.enable_grad()
def score(energy, t, x):
    x = x.detach().requires_grad_()
    e = energy(t, x)
    return e.detach(), torch.autograd.grad(e.sum(), x)[0]


# TarFlow of Sequential Boltzmann Generators -----------------------------------------------------------------------------------------


class TarAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)


class TarMlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.main = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, y):
        return y + self.main(self.norm(y))


class TarLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.attention, self.mlp = heads, TarAttention(width), TarMlp(width)

    def qkv(self, y):
        """y[b, t, width] to three times [b, heads, t, 64]."""
        return self.attention.qkv(self.attention.norm(y)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def rest(self, y, attended):
        return self.mlp(y + self.attention.proj(attended.transpose(1, 2).flatten(2)))

    def forward(self, y):
        return self.rest(y, F.scaled_dot_product_attention(*self.qkv(y), is_causal=True))

    def token(self, y, keys, values, i):
        """Token i, a number, with the keys and values before it."""
        q, keys[:, :, i : i + 1], values[:, :, i : i + 1] = self.qkv(y)
        return self.rest(y, F.scaled_dot_product_attention(q, keys[:, :, : i + 1], values[:, :, : i + 1]))

    def token_at(self, y, keys, values, i, mask):
        """Token i, a tensor: every step is the same work on the same memory."""
        q, k, v = self.qkv(y)
        keys.index_copy_(2, i, k)
        values.index_copy_(2, i, v)
        mask = mask[i].expand(y.shape[0], self.heads, 1, -1)
        return self.rest(y, F.scaled_dot_product_attention(q, keys, values, attn_mask=mask))


class TarBlock(nn.Module):
    def __init__(self, tokens, size, width, layers, heads):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(tokens, width) * 1e-2)
        self.proj_in, self.proj_out = nn.Linear(size, width), nn.Linear(width, 2 * size)
        nn.init.uniform_(self.proj_out.weight, -0.01, 0.01)  # e^a stays near one
        self.attn_blocks = nn.ModuleList([TarLayer(width, heads) for _ in range(layers)])


class TarFlow(nn.Module):
    """Of x[b, tokens, size]; odd blocks see the tokens in the opposite order."""

    def __init__(self, tokens, size, width, blocks, layers, heads):
        super().__init__()
        self.tokens, self.size, self.width, self.heads = tokens, size, width, heads
        self.blocks = nn.ModuleList([TarBlock(tokens, size, width, layers, heads) for _ in range(blocks)])

    def log_density(self, x, layer):
        """log q(x); `layer(module, y)` runs a layer."""
        log_det = 0
        for number, block in enumerate(self.blocks):
            u, positions = (x.flip(1), block.pos_embed.flip(0)) if number % 2 else (x, block.pos_embed)
            y = block.proj_in(u) + positions
            for module in block.attn_blocks:
                y = layer(module, y)
            scale, shift = F.pad(block.proj_out(y[:, :-1]), (0, 0, 1, 0)).chunk(2, -1)
            x = (u - shift) * torch.exp(-scale)
            x = x.flip(1) if number % 2 else x
            log_det = log_det - scale.sum((1, 2))
        return normal_log_density(x.flatten(1)) + log_det

    def cache(self, batch, like):
        """Keys and values of every layer; room for a multiple of eight tokens, as attention with a mask wants it."""
        room, layers = -(-self.tokens // 8) * 8, len(self.blocks[0].attn_blocks)
        shape = (layers, 2, batch, self.heads, room, self.width // self.heads)
        return torch.zeros(shape, device=like.device, dtype=like.dtype)

    def sample(self, z, cache):
        """x and log q(x) of the latent z."""
        u, log_q = z, normal_log_density(z.flatten(1))
        for number in reversed(range(len(self.blocks))):
            block = self.blocks[number]
            u, positions = (u.flip(1), block.pos_embed.flip(0)) if number % 2 else (u.clone(), block.pos_embed)
            for i in range(self.tokens - 1):
                y = block.proj_in(u[:, i : i + 1]) + positions[i]
                for module, (keys, values) in zip(block.attn_blocks, cache):
                    y = module.token(y, keys, values, i)
                scale, shift = block.proj_out(y).chunk(2, -1)
                u[:, i + 1 : i + 2] = u[:, i + 1 : i + 2] * torch.exp(scale) + shift
                log_q -= scale.sum((1, 2))
            u = u.flip(1) if number % 2 else u
        return u, log_q


class TokenSteps:
    """Samples by one step of a token, the same for all tokens of a block: what CUDA graphs and compiled code want."""

    def __init__(self, flow, z, layer, graphs):
        self.flow, self.z, self.layer = flow, z, layer
        self.cache = flow.cache(len(z), z)
        self.u, self.log_q = z.clone(), z.new_zeros(len(z))
        self.i = torch.zeros(1, dtype=torch.long, device=z.device)
        room = self.cache.shape[-2]
        later = torch.arange(room, device=z.device) > torch.arange(flow.tokens, device=z.device)[:, None]
        self.mask = z.new_zeros(later.shape).masked_fill(later, -math.inf)
        self.positions = [b.pos_embed.flip(0) if n % 2 else b.pos_embed for n, b in enumerate(flow.blocks)]
        self.steps = [functools.partial(self.step, number) for number in range(len(flow.blocks))]
        if graphs:
            self.steps = [capture(step) for step in self.steps]

    def step(self, number):
        block = self.flow.blocks[number]
        y = block.proj_in(self.u.index_select(1, self.i)) + self.positions[number][self.i]
        for module, (keys, values) in zip(block.attn_blocks, self.cache):
            y = self.layer(module, y, keys, values, self.i, self.mask)
        scale, shift = block.proj_out(y).chunk(2, -1)
        self.i += 1
        self.u.index_copy_(1, self.i, self.u.index_select(1, self.i) * torch.exp(scale) + shift)
        self.log_q -= scale.sum((1, 2))

    def __call__(self, draw=True):
        if draw:
            self.z.normal_()
        self.u.copy_(self.z)
        self.log_q.copy_(normal_log_density(self.z.flatten(1)))
        for number in reversed(range(len(self.steps))):
            self.turn(number)
            self.i.zero_()
            for _ in range(self.flow.tokens - 1):
                self.steps[number]()
            self.turn(number)
        return self.u, self.log_q

    def turn(self, number):
        if number % 2:
            self.u.copy_(self.u.flip(1))


def normal_log_density(z):
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


# Coupling flows on internal coordinates ---------------------------------------------------------------------------------------------


class Conditioner(nn.Module):
    """Features of the coordinates that a coupling leaves alone: cos and sin of those of period one, the others as they are."""

    def __init__(self, features, dimension):
        super().__init__()
        self.register_buffer("periodic", torch.tensor(features["periodic"], dtype=torch.long), persistent=False)
        self.register_buffer("plain", torch.tensor(features["plain"], dtype=torch.long), persistent=False)
        harmonics = torch.arange(1, features["harmonics"] + 1)
        self.register_buffer("omega", 2 * math.pi * harmonics[:, None].double(), persistent=False)
        self.size = 2 * len(harmonics) * len(self.periodic) + len(self.plain)

    def forward(self, u):
        angles = u[:, None, self.periodic] * self.omega
        return torch.cat([torch.stack([angles.cos(), angles.sin()], 2).flatten(1), u[:, self.plain]], -1)


def perceptron(sizes):
    return nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])


def run(layers, x):
    for layer in layers[:-1]:
        x = F.silu(layer(x))
    return layers[-1](x)


class Spline(nn.Module):
    """Rational-quadratic splines (Durkan et al. 2019, eqs. 4–8); the direction x → z is the analytic one."""

    MIN_BIN = MIN_SLOPE = 1e-3

    def __init__(self, config, dimension):
        super().__init__()
        self.bins, self.ends, (self.left, self.right) = config["bins"], config["ends"], config["interval"]
        self.beta = math.log(2) / (1 - self.MIN_SLOPE)
        self.features = Conditioner(config["features"], dimension)
        n = len(config["transformed"])
        n_out = {"free": 3 * self.bins + 1, "circular": 3 * self.bins, "linear": 3 * self.bins - 1}[self.ends] * n
        self.network = perceptron([self.features.size, *config["hidden"], n_out])

    def bins_of(self, u, n):
        """Knots on both axes and slopes at them, [b, n, bins + 1]."""
        output, k = run(self.network, self.features(u)), self.bins
        shares = torch.softmax(output[:, : 2 * n * k].unflatten(-1, (2, n, k)), -1)
        sizes = (self.right - self.left) * (self.MIN_BIN + (1 - self.MIN_BIN * k) * shares)
        x, y = (self.left + F.pad(sizes.cumsum(-1), (1, 0))).unbind(1)
        slopes = self.MIN_SLOPE + F.softplus(output[:, 2 * n * k :], self.beta)
        if self.ends == "free":
            return x, y, torch.cat([slopes[:, : n * k].unflatten(-1, (n, k)), slopes[:, n * k :, None]], -1)
        slopes = slopes.unflatten(-1, (n, -1))
        if self.ends == "linear":
            return x, y, F.pad(slopes, (1, 1), value=1.0)
        return x, y, torch.cat([slopes, slopes[..., :1]], -1)

    def forward(self, u, value, generate):
        """The transformed coordinates and the log-determinant of the generating direction."""
        x, y, slopes = self.bins_of(u, value.shape[-1])
        bin = (value[..., None] >= (y if generate else x)[..., 1:-1]).sum(-1, keepdim=True)

        def at(knots, offset=0):
            return knots.gather(-1, bin + offset).squeeze(-1)

        x0, y0, left, right = at(x), at(y), at(slopes), at(slopes, 1)
        width, height = at(x, 1) - x0, at(y, 1) - y0
        s = height / width
        bend = left + right - 2 * s
        if generate:
            rise = value - y0
            a, b, c = rise * bend + height * (s - left), height * left - rise * bend, -s * rise
            root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
            theta = (2 * c / (-b - root)).clamp(0, 1)
        else:
            theta = (value - x0) / width
        t1 = theta * (1 - theta)
        denominator = s + bend * t1
        if generate:
            result = x0 + theta * width
        else:
            result = y0 + height * (s * theta.square() + left * t1) / denominator
        top = s.square() * (right * theta.square() + 2 * s * t1 + left * (1 - theta).square())
        log_slope = torch.log(top / denominator.square())
        if self.ends == "linear":
            inside = (value >= self.left) & (value <= self.right)
            result, log_slope = torch.where(inside, result, value), log_slope.masked_fill(~inside, 0)
        return result, -log_slope.sum(-1)


class Affine(nn.Module):
    """u′ = eˢ u + t, s = tanh(network) e^{log α}."""

    def __init__(self, config, dimension):
        super().__init__()
        self.features = Conditioner(config["features"], dimension)
        self.shift = perceptron([self.features.size, *config["hidden"], 2 * len(config["transformed"])])
        self.log_alpha = nn.Parameter(torch.full((1,), -2.0))

    def forward(self, u, value, generate):
        t, s = run(self.shift, self.features(u)).chunk(2, -1)
        s = torch.tanh(s) * torch.exp(self.log_alpha)
        return torch.exp(s) * value + t if generate else torch.exp(-s) * (value - t), s.sum(-1)


class Shift(nn.Module):
    """Along the circle; learned, or of the file (`wrap`)."""

    def __init__(self, config, dimension):
        super().__init__()
        shift = torch.tensor(config.get("shift", [0.0] * len(config["transformed"])), dtype=torch.float64)
        if config["type"] == "shift":
            self.shift = nn.Parameter(shift)
        else:
            self.register_buffer("shift", shift, persistent=False)

    def forward(self, u, value, generate):
        moved = value + self.shift if generate else value - self.shift
        return moved - moved.floor(), 0


class Whiten(nn.Module):
    """u′ = mean + L u."""

    def __init__(self, config, dimension):
        super().__init__()
        n = len(config["mean"])
        matrix = torch.tensor(config["matrix"], dtype=torch.float64).view(n, n)
        self.log_det = matrix.diag().log().sum().item()
        self.register_buffer("mean", torch.tensor(config["mean"], dtype=torch.float64), persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("inverse", matrix.inverse(), persistent=False)

    def forward(self, u, value, generate):
        result = self.mean + value @ self.matrix.T if generate else (value - self.mean) @ self.inverse.T
        return result, self.log_det


class TruncatedNormal(nn.Module):
    """Uniform number to a normal one on [lower, upper]."""

    def __init__(self, config, dimension):
        super().__init__()
        mean, sd = (torch.tensor(config[name], dtype=torch.float64) for name in ("mean", "sd"))
        below, above = (torch.special.ndtr((config[end] - mean) / sd) for end in ("lower", "upper"))
        log_scale = torch.log((above - below) * sd * math.sqrt(2 * math.pi))
        for name, values in dict(mean=mean, sd=sd, below=below, mass=above - below, log_scale=log_scale).items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, u, value, generate):
        t = torch.special.ndtri(self.below + value * self.mass) if generate else (value - self.mean) / self.sd
        result = self.mean + self.sd * t if generate else (torch.special.ndtr(t) - self.below) / self.mass
        return result, (self.log_scale + 0.5 * t.square()).sum(-1)


LAYERS = dict(spline=Spline, affine=Affine, shift=Shift, wrap=Shift, whiten=Whiten, truncated_normal=TruncatedNormal)


class Internal:
    """Bonds, angles and torsions of a z-matrix, normalised, with the log-determinant; all atoms whose references are placed, at once."""

    AXIS, SIDE = (0.0, -(0.75**0.5), 0.5), (1.0, 0.0, 0.0)

    def __init__(self, config, device, dtype):
        self.frame, rows = config["frame"], config["rows"]
        self.n = len(rows) + 3
        self.rows = torch.tensor(rows, device=device).T
        placed, waiting, self.levels = set(self.frame), list(range(len(rows))), []
        while waiting:
            ready = [r for r in waiting if placed.issuperset(rows[r][1:])]
            placed.update(rows[r][0] for r in ready)
            waiting = [r for r in waiting if r not in ready]
            self.levels.append((torch.tensor(ready, device=device), torch.tensor([rows[r] for r in ready], device=device).T))
        self.axis, self.side = (torch.tensor(v, device=device, dtype=dtype) for v in (self.AXIS, self.SIDE))
        self.log_volume = (self.n - 2) * math.log(math.pi) + (self.n - 1) * math.log(2 * math.pi)

    def log_det(self, bonds, angles):
        return self.log_volume + 2 * bonds.log().sum(-1) + angles.sin().log().sum(-1)

    @staticmethod
    def axes(j, k, l):
        a = F.normalize(j - k, dim=-1)
        n = F.normalize(torch.linalg.cross(j - k, j - l), dim=-1)
        return a, n, torch.linalg.cross(a, n)

    def to_cartesian(self, u):
        """x[b, N, 3] and ln|∂x/∂u|."""
        bonds, angles, torsions = u.split([self.n - 1, self.n - 2, self.n - 3], -1)
        angles, torsions = math.pi * angles, 2 * math.pi * torsions - math.pi
        x = u.new_zeros(len(u), self.n, 3)
        first = bonds[:, :1] * self.axis
        x[:, self.frame[1]] = first
        turned = angles[:, :1].sin() * self.side - angles[:, :1].cos() * self.axis
        x[:, self.frame[2]] = first + bonds[:, 1:2] * turned
        for r, (i, j, k, l) in self.levels:
            a, n, m = self.axes(x[:, j], x[:, k], x[:, l])
            d, theta, phi = bonds[:, r + 2, None], angles[:, r + 1, None], torsions[:, r, None]
            direction = theta.sin() * (phi.cos() * m - phi.sin() * n) - theta.cos() * a
            x[:, i] = x[:, j] + d * direction
        return x, self.log_det(bonds, angles)

    def to_internal(self, x):
        i, j, k, l = (x[:, atoms] for atoms in self.rows)
        a, n, m = self.axes(j, k, l)
        r = i - j
        torsions = torch.atan2(-(r * n).sum(-1), (r * m).sum(-1))
        f0, f1, f2 = (x[:, atom : atom + 1] for atom in self.frame)
        bonds = torch.cat([f1 - f0, f2 - f1, r], 1).norm(dim=-1)
        back, out = torch.cat([f0 - f1, r], 1), torch.cat([f2 - f1, k - j], 1)
        angles = torch.atan2(torch.linalg.cross(back, out).norm(dim=-1), (back * out).sum(-1))
        u = torch.cat([bonds, angles / math.pi, (torsions + math.pi) / (2 * math.pi)], -1)
        return u, self.log_det(bonds, angles)


class Coupling(nn.Module):
    """A model file's flow between z[b, n] and x[b, N, 3]."""

    def __init__(self, card, device, dtype=torch.float32):
        super().__init__()
        config = card["model"]["config"]
        self.coordinates = Internal(card["coordinates"], device, dtype)
        dimension = 3 * self.coordinates.n - 6
        self.layers = nn.ModuleList([LAYERS[layer["type"]](layer, dimension) for layer in config["layers"]])
        self.transformed = [torch.tensor(layer["transformed"], device=device) for layer in config["layers"]]
        uniform = torch.zeros(dimension, dtype=torch.bool, device=device)
        uniform[config["uniform"]] = True
        self.uniform = uniform
        self.to(device, dtype)

    def through(self, u, generate):
        log_det = 0
        layers = list(zip(self.layers, self.transformed))
        for layer, transformed in layers if generate else reversed(layers):
            value, change = layer(u, u[:, transformed], generate)
            u, log_det = u.index_copy(1, transformed, value), log_det + change
        return u, log_det

    def log_prior(self, z):
        return (-0.5 * (z.square() + math.log(2 * math.pi))).masked_fill(self.uniform, 0).sum(-1)

    def generate(self, normal, uniform):
        z = torch.where(self.uniform, uniform, normal)
        u, log_det = self.through(z, True)
        x, volume = self.coordinates.to_cartesian(u)
        return x, self.log_prior(z) - log_det - volume

    def sample(self, batch, generate=None):
        """x and log q; `generate` may be compiled."""
        like = dict(device=self.uniform.device, dtype=self.coordinates.axis.dtype)
        shape = (batch, len(self.uniform))
        return (generate or self.generate)(torch.randn(shape, **like), torch.rand(shape, **like))

    def log_density(self, x):
        u, volume = self.coordinates.to_internal(x)
        z, log_det = self.through(u, False)
        return self.log_prior(z) - log_det - volume


def bgflow_card():
    """The generator of `spline_generator` in cases.rs."""
    bonds, angles, torsions = list(range(21)), list(range(21, 41)), list(range(41, 60))
    first, second = torsions[:9], torsions[9:]

    def spline(transformed, periodic, plain, ends):
        features = dict(periodic=periodic, harmonics=1, plain=plain)
        return dict(type="spline", transformed=transformed, features=features, ends=ends, bins=8, interval=[0.0, 1.0], hidden=[176, 176])

    def marginal(transformed, mean, sd):
        n = len(transformed)
        return dict(type="truncated_normal", transformed=transformed, mean=[mean] * n, sd=[sd] * n, lower=0.01, upper=1.0)

    layers = [spline(first, second, [], "circular"), spline(second, first, [], "circular")] * 2
    layers += [spline(angles, torsions, [], "free"), spline(bonds, torsions, angles, "free")]
    layers += [marginal(bonds, 0.13, 0.004), marginal(angles, 0.62, 0.02)]
    coordinates = dict(frame=[0, 1, 2], rows=[[i, i - 1, i - 2, i - 3] for i in range(3, 22)])
    return dict(model=dict(config=dict(uniform=list(range(60)), layers=layers)), coordinates=coordinates)


# Files ------------------------------------------------------------------------------------------------------------------------------


def read(path):
    """Tensors and metadata of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    types = dict(F32=torch.float32, F64=torch.float64, I64=torch.int64)

    def tensor(entry):
        begin, end = entry["data_offsets"]
        return torch.frombuffer(bytearray(data[start + begin : start + end]), dtype=types[entry["dtype"]]).view(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items() if 0 not in entry["shape"]}, metadata


def shipped(device, dtype=torch.float32):
    tensors, metadata = read(SHIPPED)
    flow = Coupling(json.loads(metadata["modejump"]), device, dtype)
    flow.load_state_dict(tensors)
    return flow


def golden(name):
    return read(ROOT / "tests/golden" / name)[0]


def filled(model, tensors):
    """In double precision, with every parameter from the file."""
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert not missing, missing
    return model.double()


def check():
    """The networks against tests/golden, in double precision."""

    def compare(what, found, expected, tolerance):
        error = (found - expected).abs().max().item()
        print(f"{what:40} {error:9.1e} {'OK' if error < tolerance else 'NOT OK'}")
        return error < tolerance

    results = []
    weights, field = (golden(f"boltznce/{name}trained_vector_5_layer_ot_ema.safetensors") for name in ("weights/", "field_"))
    gvp, t, x, basis = filled(GvpField(), weights), field["t"].double(), field["x"].double().flatten(1), torch.eye(66).double()
    for way in (divergence_by_vjp, divergence_by_jvp):
        v, divergence = way(gvp, t, x, basis, 22)
        results.append(compare(f"gvp_flow, {way.__name__}: velocity", v, field["v_f64"].flatten(1), 1e-10))
        results.append(compare(f"gvp_flow, {way.__name__}", divergence, field["div_f64"], 1e-9))

    weights, values = golden("boltznce/graphormer_seed7.safetensors"), golden("boltznce/graphormer_field.safetensors")
    weights = {name.removeprefix("graphormer."): tensor for name, tensor in weights.items()}
    types = [int(atom) - 1 for atom in values["atoms"]]
    model = filled(Graphormer(types, n_types=5, layers=2, width=24, feed_forward=20, heads=4, kernels=7), weights)
    for fused in (False, True):
        model.fused = fused
        energy, gradient = score(model, values["t"], values["x"].flatten(1))
        results.append(compare(f"graphormer_ebm, {fused=}: energy", energy, values["energy_f64"], 1e-10))
        results.append(compare(f"graphormer_ebm, {fused=}: score", gradient, values["score_f64"].flatten(1), 1e-9))

    weights, values = (golden(f"sbg/tarflow_small/{name}.safetensors") for name in ("state_f32", "io_f64"))
    flow = filled(TarFlow(tokens=22, size=3, width=64, blocks=4, layers=2, heads=1), weights)
    results.append(compare("tarflow: log q", flow.log_density(values["x"], TarLayer.forward), values["log_q"], 1e-8))
    z = values["z_in"]
    for what, (x, log_q) in {
        "sample": flow.sample(z, flow.cache(len(z), z)),
        "token steps": TokenSteps(flow, z, TarLayer.token_at, graphs=False)(draw=False),
    }.items():
        results.append(compare(f"tarflow, {what}: x", x, values["rev_x"], 1e-9))
        results.append(compare(f"tarflow, {what}: log q", log_q, values["rev_log_q"], 1e-8))

    flows = {"bgflow": Coupling(bgflow_card(), "cpu", torch.float64)}
    if SHIPPED.exists():
        flows["ala2"] = shipped("cpu", torch.float64)
    for name, flow in flows.items():
        x, log_q = flow.sample(100)
        results.append(compare(f"coupling, {name}: log q of samples", flow.log_density(x), log_q, 1e-7))
    sys.exit(not all(results))


# What is timed ----------------------------------------------------------------------------------------------------------------------


def capture(call):
    """The call as a CUDA graph, run once before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay():
        graph.replay()

    replay.inputs = call  # stay where the graph reads them
    return replay


def both(function, dynamic=False):
    return function, torch.compile(function, dynamic=dynamic)


def standard(functions, make, prefix=""):
    """The ways to run a call, by name; `make` turns a function, compiled or not, into the call."""
    plain, compiled = functions
    return {
        prefix + "eager": lambda: make(plain),
        prefix + "graph": lambda: capture(make(plain)),
        prefix + "compile": lambda: make(compiled),
        prefix + "compile graph": lambda: capture(make(compiled)),
    }


def model(network, parameters, device):
    assert count(network) == parameters, (count(network), parameters)
    return network.to(device, torch.float32).requires_grad_(False)


def points(batch, device):
    """t and x as wide as a molecule in Å."""
    return torch.full((batch,), 0.5, device=device), 2.5 * torch.randn(batch, 66, device=device)


def velocity(device):
    functions = both(model(GvpField(), 108_933, device))
    for batch in (1, 1024):
        arguments = points(batch, device)
        yield "ala2", batch, standard(functions, lambda field: functools.partial(field, *arguments))


def velocity_divergence(device):
    field, basis = model(GvpField(), 108_933, device), torch.eye(66, device=device)
    ways = {
        "vjp, ": both(lambda *arguments: divergence_by_vjp(field, *arguments)),
        "jvp, ": both(lambda *arguments: divergence_by_jvp(field, *arguments)),
    }
    for batch, at_once in ((1, 66), (1024, 22)):
        arguments = (*points(batch, device), basis, at_once)
        lines = {}
        for prefix, functions in ways.items():
            lines |= standard(functions, lambda way: functools.partial(way, *arguments), prefix)
        yield "ala2", batch, lines


def generator(device):
    """As `modejump bench` chooses it."""
    return shipped(device) if SHIPPED.exists() else Coupling(bgflow_card(), device)


def coupling_sample(device):
    flow = generator(device)
    functions = both(flow.generate, dynamic=None)
    for batch in (1, 1000, 100_000):
        yield "ala2", batch, standard(functions, lambda generate: functools.partial(flow.sample, batch, generate))


def coupling_log_density(device):
    flow = generator(device)
    functions = both(flow.log_density, dynamic=None)
    for batch in (1, 1000, 100_000):
        x = flow.sample(batch)[0]
        yield "ala2", batch, standard(functions, lambda log_density: functools.partial(log_density, x))


def graphormer(device, make):
    functions, fused = both(model(Graphormer(), 3_257_221, device)), model(Graphormer(fused=True), 3_257_221, device)
    for batch in (1, 1024):
        lines = standard(functions, lambda energy: make(energy, *points(batch, device)))
        yield "ala2", batch, lines | {"graph, fused attention": lambda: capture(make(fused, *points(batch, device)))}


def energy(device):
    return graphormer(device, lambda *arguments: functools.partial(*arguments))


def energy_score(device):
    return graphormer(device, lambda *arguments: functools.partial(score, *arguments))


def tarflows(device):
    sizes = dict(tokens=66, size=1, width=256, blocks=4, layers=4, heads=4)
    yield "Ace-A-Nme", model(TarFlow(**sizes), 12_707_848, device)
    sizes = dict(tokens=63, size=3, width=384, blocks=6, layers=6, heads=6)
    yield "AAAAAA", model(TarFlow(**sizes), 64_048_932, device)


def tarflow_sample(device):
    token_at, compiled = both(TarLayer.token_at)
    for size, flow in tarflows(device):
        for batch in (1, 64, 4096):
            z = torch.empty(batch, flow.tokens, flow.size, device=device)
            call = lambda: functools.partial(lambda cache: flow.sample(z.normal_(), cache), flow.cache(batch, z))
            yield size, batch, {
                "eager": call,
                "graph": lambda: capture(call()),
                "token graph": lambda: TokenSteps(flow, z, token_at, graphs=True),
                "compile": lambda: TokenSteps(flow, z, compiled, graphs=False),
                "compile token graph": lambda: TokenSteps(flow, z, compiled, graphs=True),
            }


def tarflow_log_density(device):
    functions = both(TarLayer.forward)
    for size, flow in tarflows(device):
        for batch in (1, 64, 4096):
            x = torch.randn(batch, flow.tokens, flow.size, device=device)
            yield size, batch, standard(functions, lambda layer: functools.partial(flow.log_density, x, layer))


CASES = {
    "coupling/sample": coupling_sample,
    "coupling/log_density": coupling_log_density,
    "gvp_flow/velocity": velocity,
    "gvp_flow/velocity_divergence": velocity_divergence,
    "graphormer_ebm/energy": energy,
    "graphormer_ebm/energy_score": energy_score,
    "tarflow/sample": tarflow_sample,
    "tarflow/log_density": tarflow_log_density,
}


def tf32_matters(name, batch, mode):
    """Products are wide enough, and in the fastest ways."""
    wide = name.startswith(("graphormer", "tarflow")) and batch > 1
    return wide and mode in ("graph", "compile graph", "compile token graph")


# Timing -----------------------------------------------------------------------------------------------------------------------------


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(call, device):
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(build, device, seconds):
    """Seconds until the first call is done, compilation included, and the median of milliseconds of those after it."""
    start = time.monotonic()
    call = build()
    call()
    synchronize(device)
    first, times, start = time.monotonic() - start, [], time.monotonic()
    while not times or len(times) < 100 and time.monotonic() - start < seconds:
        times.append(milliseconds(call, device))
    return first, statistics.median(times)


def too_long(*_):
    raise TimeoutError("too long")


def line(name, size, batch, mode, build, options):
    """Measures and prints one line; whatever fails is said there."""
    start = f"{name:29} {size:10} {batch:7} {mode:30}"
    signal.alarm(options.limit)
    try:
        first, median = measure(build, options.device, options.seconds)
        print(f"{start} {median / batch:12.6f} {first:8.1f}", flush=True)
    except Exception as e:  # out of memory, not compiled, not captured: the next line may well be
        message = str(e).strip().split("\n")[0]
        print(f"{start} {type(e).__name__}: {message[:120]}", flush=True)
    finally:
        signal.alarm(0)
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()


def selected(options):
    exact = [part for part in options.names if part in CASES]
    return [name for name in CASES if not options.names or name in exact or any(p in name for p in options.names if p not in exact)]


def warm(options):
    """Compiles for every case in a process of its own; what they find stays in torch.compile's cache."""
    modes = ["compile", "compile graph, TF32", "compile token graph, TF32"]
    rest = [f"--device={options.device}", f"--limit={options.limit}", f"--largest={options.largest}", "--seconds=0", "--modes", *modes]
    names, start = selected(options), time.monotonic()
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, 2 * os.cpu_count() // len(names)))}
    # what fails here fails again in the table, and is said there
    commands = [[sys.executable, __file__, name, *rest] for name in names]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    for process in processes:
        try:
            process.wait(max(0, start + options.total / 2 - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    print(f"{time.monotonic() - start:.0f} s for compiling, side by side")


def lines(options):
    """Name, size, batch, mode and how to build the call of everything that was asked for; sets the precision of products for it."""
    for name in selected(options):
        for size, batch, ways in CASES[name](options.device):
            runs = [(mode, "", build) for mode, build in ways.items()]
            runs += [(mode, ", TF32", build) for mode, build in ways.items() if tf32_matters(name, batch, mode)]
            for mode, precision, build in runs:
                wanted = not options.modes or mode.removeprefix("vjp, ").removeprefix("jvp, ") + precision in options.modes
                possible = batch <= options.largest and (options.device == "cuda" or "graph" not in mode)
                if wanted and possible:
                    torch.set_float32_matmul_precision("high" if precision else "highest")
                    yield name, size, batch, mode + precision, build


def benchmark(options):
    start = time.monotonic()
    if options.warm:
        warm(options)
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    print(f"PyTorch {torch.__version__}, {on}")
    print(f"{'name':29} {'size':10} {'batch':>7} {'mode':30} {'ms/sample':>12} {'first, s':>8}", flush=True)
    for name, size, batch, mode, build in lines(options):
        if time.monotonic() - start > options.total:
            sys.exit(f"{options.total} s are over: without {name}, {size}, {batch}, {mode}, and what follows")
        line(name, size, batch, mode, build, options)
    print(f"{time.monotonic() - start:.0f} s in all")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0, help="of repeated calls a line")
    parser.add_argument("--limit", type=int, default=60, help="seconds after which a line is given up, compilation included")
    parser.add_argument("--total", type=int, default=600, help="seconds after which no line is begun")
    parser.add_argument("--largest", type=int, default=1 << 30, help="batch that is still measured")
    parser.add_argument("--modes", nargs="*", help="as in the table: eager, graph, compile, 'compile graph, TF32', ...")
    parser.add_argument("--warm", action="store_true", help="compile for all cases at once before the first line, a process each")
    parser.add_argument("--check", action="store_true", help="compare the networks with tests/golden on the CPU")
    options = parser.parse_args()
    if options.device == "cuda" and not options.check and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU; --device cpu runs on the CPU")
    unknown = [part for part in options.names if not any(part in name for name in CASES)]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(CASES)}")
    signal.signal(signal.SIGALRM, too_long)
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    torch._dynamo.config.recompile_limit = 64
    check() if options.check else benchmark(options)


if __name__ == "__main__":
    main()
