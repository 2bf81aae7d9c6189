"""One particle in an external potential, and Gaussian generators for it."""

import math
import os

import numpy as np
import openmm
import pytest
from model_file import scale_layer, write_model
from openmm import app

KT = openmm.unit.MOLAR_GAS_CONSTANT_R.value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.kelvin) * 300.0
MASS = 12.011
#: Width of the wells, nm.
SIGMA = 0.05
SEPARATION = 0.4
#: Of OpenMM, two numbers.
VERSION = tuple(int(part) for part in openmm.__version__.split(".")[:2])
#: Population of the left well.
LEFT = 0.2


#: What tests of every platform run on, and the first what all others do; MODEJUMP_TEST_PLATFORMS="CUDA:single CUDA:mixed" has them
#: run elsewhere, in these precisions.
PLATFORMS = os.environ.get("MODEJUMP_TEST_PLATFORMS", "Reference CPU").split()


def since(name):
    """Mark: the test is skipped if OpenMM is too old to have this."""
    has = hasattr(openmm, name) or hasattr(app, name)
    return pytest.mark.skipif(not has, reason=f"OpenMM {openmm.__version__} has no {name}")


def rounds(n, name=None):
    """How many of n rounds of a statistical test there are on a platform: on a device a round of such a small system takes a millisecond."""
    return n if (name or PLATFORMS[0]) in ("Reference", "CPU") else n // 8


def within(double, single):
    """Bound of an error of rounding, where the first platform has forces in double precision, and where it has not."""
    name, _, precision = PLATFORMS[0].partition(":")
    return double if name in ("Reference", "CPU") or precision == "double" else single


def platform(name=None):
    """Platform and properties; the CPU platform with one thread, so that its sums have one order."""
    name, _, precision = (name or PLATFORMS[0]).partition(":")
    properties = {"Threads": "1"} if name == "CPU" else {}
    if precision:
        properties["Precision"] = precision
    return openmm.Platform.getPlatformByName(name), properties


def make_context(system, integrator, name=None, x=None, v=None, seed=3):
    context = openmm.Context(system, integrator, *platform(name))
    if x is not None:
        context.setPositions(np.asarray(x))
    if v is None:
        context.setVelocitiesToTemperature(300.0, seed)
    else:
        context.setVelocities(np.asarray(v))
    return context


def positions(context):
    return context.getState(positions=True).getPositions(asNumpy=True)._value.copy()


def velocities(context):
    return context.getState(velocities=True).getVelocities(asNumpy=True)._value.copy()


def potential(context, groups=-1):
    return context.getState(energy=True, groups=groups).getPotentialEnergy()._value


def langevin(timestep=0.001, seed=5, temperature=300.0, friction=5.0):
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    integrator.setRandomNumberSeed(seed)
    return integrator


def leapfrog(timestep=0.0005, name="kT", value=KT):
    """Of a CustomIntegrator, which keeps forces from one step to the next, and has one global variable."""
    integrator = openmm.CustomIntegrator(timestep)
    integrator.addGlobalVariable(name, value)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    return integrator


def splitting(timestep=0.0005, friction=1.0, seed=5, after_jumps=True):
    """BAOAB as a CustomIntegrator; after_jumps: bonds are taken anew where a jump may have put them."""
    integrator = openmm.CustomIntegrator(timestep)
    integrator.addGlobalVariable("kT", KT)
    integrator.addGlobalVariable("keep", np.exp(-friction * timestep))
    integrator.addPerDofVariable("x1", 0)
    integrator.addUpdateContextState()
    if after_jumps:
        integrator.addConstrainPositions()

    def velocities(expression):
        integrator.addComputePerDof("v", expression)
        integrator.addConstrainVelocities()

    def drift():
        integrator.addComputePerDof("x", "x+0.5*dt*v")
        integrator.addComputePerDof("x1", "x")
        integrator.addConstrainPositions()
        velocities("v+(x-x1)/(0.5*dt)")

    velocities("v+0.5*dt*f/m")
    drift()
    velocities("keep*v+sqrt((1-keep^2)*kT/m)*gaussian")
    drift()
    velocities("v+0.5*dt*f/m")
    integrator.setConstraintTolerance(1e-7)
    integrator.setRandomNumberSeed(seed)
    return integrator


def external(expression, **parameters):
    force = openmm.CustomExternalForce(expression)
    for name, value in parameters.items():
        force.addGlobalParameter(name, value)
    force.addParticle(0)
    return force


def well_system():
    """A harmonic well of width SIGMA at 300 K."""
    system = openmm.System()
    system.addParticle(MASS)
    system.addForce(external("k/2*(x^2+y^2+z^2)", k=KT / SIGMA**2))
    return system


def two_well_system():
    """Two Gaussian wells along x: at 300 K the left one holds LEFT of the population, exactly."""
    system = openmm.System()
    system.addParticle(MASS)
    left = "weight*exp(-k*(x+d)^2/2)"
    right = "(1-weight)*exp(-k*(x-d)^2/2)"
    expression = f"kT*(k*(y^2+z^2)/2-log({left}+{right}+1e-30))"
    system.addForce(external(expression, kT=KT, k=1 / SIGMA**2, d=SEPARATION, weight=LEFT))
    return system


def write_gaussian_model(path, widths=(SIGMA,) * 3, mean=(0.0,) * 3, **options):
    layer = scale_layer([0, 1, 2], mean, widths)
    topology = {"names": ["C"], "elements": ["C"], "residues": ["TOY1"], "bonds": []}
    return write_model(path, {"kind": "cartesian", "dimension": 3}, [layer], [], topology=topology, **options)


def write_box_model(path, low, high, **options):
    """Uniform in a box: zero density outside."""
    layer = {"type": "uniform", "transformed": [0, 1, 2], "low": [low] * 3, "high": [high] * 3}
    return write_model(path, {"kind": "cartesian", "dimension": 3}, [layer], [0, 1, 2], **options)


def batch_error(values, batches=25):
    """Standard error of the mean by batch means."""
    means = np.array([chunk.mean() for chunk in np.array_split(np.asarray(values, dtype=float), batches)])
    return means.std(ddof=1) / math.sqrt(batches)
