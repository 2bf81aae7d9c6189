"""BoltzNCE's vector field and its exact divergence."""

import torch
from torch import nn
from torch.nn import functional as F

# Atom classes of alanine dipeptide in BoltzNCE and transferable-samplers.
CLASSES = [0, 2, 2, 2, 4, 5, 6, 7, 8, 9, 10, 12, 12, 12, 14, 15, 16, 17, 18, 20, 20, 20]


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
        # torch.compile does not support forward mode through layer_norm; written out, it compiles to the same code
        s = s - s.mean(-1, keepdim=True)
        s = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + 1e-5)
        return s * self.feat_norm.weight + self.feat_norm.bias, v


class GvpLayer(nn.Module):
    """Messages between all atoms, then an update of each atom and a step of its position."""

    def __init__(self, scalars, vectors, radial):
        super().__init__()
        self.edge_message = nn.ModuleList([Gvp(scalars + radial, vectors + 1, scalars, vectors, torch.sigmoid)])
        self.node_update = nn.ModuleList([Gvp(scalars, vectors, scalars, vectors, torch.sigmoid)])
        self.node_position_update = Gvp(scalars, vectors, scalars, 1, torch.tanh)
        self.message_layer_norm = GvpNorm(scalars)
        self.update_layer_norm = GvpNorm(scalars)
        self.register_buffer("centres", torch.linspace(0, 20, radial, dtype=torch.float64), persistent=False)

    def messages(self, s, v, x):
        """Sums messages over the source atoms j of s[b, j, n] and v[b, j, 3, n]. Scalars and vectors enter linearly, so their matrix products
        are per atom, not per pair; only radial functions, norms and gates are [b, i, j, n]."""
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
    """v(t, x) for t[b] and x[b, 3 N]."""

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
    """Returns v and div v: one forward pass, and a backward pass from every coordinate."""
    v, pull = torch.func.vjp(lambda x: field(t, x), x)
    row = torch.func.vmap(lambda e: (pull(e.expand_as(x))[0] * e).sum(-1))
    return v, sum(row(part).sum(0) for part in basis.split(at_once))


def divergence_by_jvp(field, t, x, basis, at_once):
    """Returns v and div v, by tangents in every direction."""

    def column(e):
        v, dv = torch.func.jvp(lambda x: field(t, x), (x,), (e.expand_as(x),))
        return v, (dv * e).sum(-1)

    parts = [torch.func.vmap(column, out_dims=(None, 0))(part) for part in basis.split(at_once)]
    return parts[0][0], sum(part.sum(0) for _, part in parts)
