"""The double well of `models/double-well`, and the files of its generators."""

from pathlib import Path

import numpy as np

MODELS = Path(__file__).resolve().parents[2] / "models"
DOUBLE_WELL = MODELS / "double-well" / "generator.safetensors"
MODES = MODELS / "double-well" / "modes.safetensors"
STEERABLE = MODELS / "double-well" / "steerable.safetensors"
ALA2 = MODELS / "ala2" / "model.safetensors"


def double_well(x):
    """The potential that the shipped generator was made for."""
    return 10 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 0] + 5 * (x[:, 1] - 0.5 * x[:, 0]) ** 2


def double_well_gradient(x):
    slope = 10 * (x[:, 1] - 0.5 * x[:, 0])
    return double_well(x), np.stack([40 * x[:, 0] * (x[:, 0] ** 2 - 1) + 0.5 - 0.5 * slope, slope], axis=1)


def left_population():
    x = np.linspace(-2.5, 2.5, 20001)
    weight = np.exp(-10 * (x**2 - 1) ** 2 - 0.5 * x)
    return weight[x < 0].sum() / weight.sum()
