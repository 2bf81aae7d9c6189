"""Coupling flows on internal coordinates."""

import json
import math

import torch
from torch import nn
from torch.nn import functional as F

from files import SHIPPED, read


class Conditioner(nn.Module):
    """Features of the coordinates that a coupling leaves unchanged: cos and sin of those with period one, the others as they are."""

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
    """Rational-quadratic splines (Durkan et al. 2019, eqs. 4–8); x → z is evaluated directly, z → x by solving a quadratic."""

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
        """Returns the knots on both axes and the slopes at them, [b, n, bins + 1]."""
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
        """Returns the transformed coordinates and the log-determinant of the generating direction."""
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
    """Shift along the circle; learned, or fixed by the file (`wrap`)."""

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
    """Maps a uniform number to a normal one truncated to [lower, upper]."""

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
    """Normalised bonds, angles and torsions of a z-matrix, with the log-determinant; places all atoms whose references are known at once."""

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
        """Returns x[b, N, 3] and ln|∂x/∂u|."""
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
    """The flow of a model file between z[b, n] and x[b, N, 3]."""

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
        """Returns x and log q; `generate` may be compiled."""
        like = dict(device=self.uniform.device, dtype=self.coordinates.axis.dtype)
        shape = (batch, len(self.uniform))
        return (generate or self.generate)(torch.randn(shape, **like), torch.rand(shape, **like))

    def log_density(self, x):
        u, volume = self.coordinates.to_internal(x)
        z, log_det = self.through(u, False)
        return self.log_prior(z) - log_det - volume


def bgflow_card():
    """Card of the generator that `spline_generator` in cases.rs builds."""
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


def shipped(device, dtype=torch.float32):
    tensors, metadata = read(SHIPPED)
    flow = Coupling(json.loads(metadata["modejump"]), device, dtype)
    flow.load_state_dict(tensors)
    return flow
