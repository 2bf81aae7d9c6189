"""Compares the networks with golden files."""

import sys

import torch

from coupling import Coupling, bgflow_card, shipped
from files import SHIPPED, golden
from graphormer_ebm import Graphormer, score
from gvp_flow import GvpField, divergence_by_jvp, divergence_by_vjp
from tarflow import TarFlow, TarLayer, TokenSteps


def filled(model, tensors):
    """Returns the model in double precision, with every parameter taken from the file."""
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert not missing, missing
    return model.double()


def check():
    """Compares the networks with tests/golden in double precision."""

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
