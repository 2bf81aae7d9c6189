"""The benchmark cases and the ways to run them."""

import functools

import torch

from coupling import Coupling, bgflow_card, shipped
from files import SHIPPED
from graphormer_ebm import Graphormer, score
from graphs import capture
from gvp_flow import GvpField, divergence_by_jvp, divergence_by_vjp
from tarflow import TarFlow, TarLayer, TokenSteps


def both(function, dynamic=False):
    return function, torch.compile(function, dynamic=dynamic)


def standard(functions, make, prefix=""):
    """Returns the ways to run a call, by name; `make` turns a function, compiled or not, into the call."""
    plain, compiled = functions
    return {
        prefix + "eager": lambda: make(plain),
        prefix + "graph": lambda: capture(make(plain)),
        prefix + "compile": lambda: make(compiled),
        prefix + "compile graph": lambda: capture(make(compiled)),
    }


def count(model):
    return sum(p.numel() for p in model.parameters())


def model(network, parameters, device):
    assert count(network) == parameters, (count(network), parameters)
    return network.to(device, torch.float32).requires_grad_(False)


def points(batch, device):
    """Returns t and random x, with the spread of a molecule in Å."""
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
    """Returns the generator that `modejump bench` would choose."""
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
    """Whether TF32 is worth timing: products must be wide enough, and only the fastest modes are run."""
    wide = name.startswith(("graphormer", "tarflow")) and batch > 1
    return wide and mode in ("graph", "compile graph", "compile token graph")
