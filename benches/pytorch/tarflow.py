"""The TarFlow of Sequential Boltzmann Generators."""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from graphs import capture


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
        """Maps y[b, t, width] to q, k and v, each [b, heads, t, 64]."""
        return self.attention.qkv(self.attention.norm(y)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def rest(self, y, attended):
        return self.mlp(y + self.attention.proj(attended.transpose(1, 2).flatten(2)))

    def forward(self, y):
        return self.rest(y, F.scaled_dot_product_attention(*self.qkv(y), is_causal=True))

    def token(self, y, keys, values, i):
        """Processes token i (a number) with the keys and values before it."""
        q, keys[:, :, i : i + 1], values[:, :, i : i + 1] = self.qkv(y)
        return self.rest(y, F.scaled_dot_product_attention(q, keys[:, :, : i + 1], values[:, :, : i + 1]))

    def token_at(self, y, keys, values, i, mask):
        """Processes token i (a tensor): every step does the same work on the same memory."""
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
    """TarFlow of x[b, tokens, size]; odd blocks see the tokens in reverse order."""

    def __init__(self, tokens, size, width, blocks, layers, heads):
        super().__init__()
        self.tokens, self.size, self.width, self.heads = tokens, size, width, heads
        self.blocks = nn.ModuleList([TarBlock(tokens, size, width, layers, heads) for _ in range(blocks)])

    def log_density(self, x, layer):
        """Returns log q(x); `layer(module, y)` runs a layer."""
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
        """Allocates keys and values for every layer, padded to a multiple of eight tokens, as attention with a mask requires."""
        room, layers = -(-self.tokens // 8) * 8, len(self.blocks[0].attn_blocks)
        shape = (layers, 2, batch, self.heads, room, self.width // self.heads)
        return torch.zeros(shape, device=like.device, dtype=like.dtype)

    def sample(self, z, cache):
        """Returns x and log q(x) for the latent z."""
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
    """Samples by a single-token step, identical for all tokens of a block, as suits CUDA graphs and compiled code."""

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
