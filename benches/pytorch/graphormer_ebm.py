"""BoltzNCE's energy and its score."""

import torch
from torch import nn
from torch.nn import functional as F

from gvp_flow import CLASSES


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
    """E(t, x) for t[b] and x[b, 3 N]: ln q up to a constant."""

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
