"""OpenMM Quantities converted to numbers, as the library needs them. A plain number is taken to be in the right unit."""

import numpy as np
from openmm import unit


def in_unit(value, wanted, what, advice=None):
    """A number, list or array in a unit. Raises TypeError for a Quantity of something else."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [in_unit(item, wanted, what, advice) for item in value]
    if not unit.is_quantity(value):
        return value
    if not value.unit.is_compatible(wanted):
        needed = "a number without a unit" if wanted.is_dimensionless() else f"a number or a Quantity in {wanted.get_name()}"
        raise TypeError(f"{what} is in {value.unit.get_name()}; {advice or f'use {needed}'}")
    return value.value_in_unit(wanted)


def reduced(value, what):
    """Reduced potentials, which have no unit."""
    return in_unit(value, unit.dimensionless, what, "expected reduced potentials U/kT, so divide by kT")
