"""What the steps of a CustomIntegrator tell: forces that they scale, leave out, or keep; where bonds are constrained."""

import copy

import openmm
import pytest
import toy
from openmm import amd
from peroxide import OH, peroxide_system, start
from test_force import context_of, refuses

import modejump


def custom(*steps, **variables):
    """A CustomIntegrator of steps "variable = expression": of a degree of freedom, of a global variable, or "sum variable = expression"; blocks are "if ..."
    and "while ..." up to "end", and "update" is where moves are called, else at the beginning."""
    integrator = openmm.CustomIntegrator(0.001)
    for name, value in {"kT": toy.KT, **variables}.items():
        if value is None:
            integrator.addPerDofVariable(name, 0)
        else:
            integrator.addGlobalVariable(name, value)
    if "update" not in steps:
        integrator.addUpdateContextState()
    for step in steps:
        name, _, expression = step.partition(" = ")
        if step == "update":
            integrator.addUpdateContextState()
        elif step.startswith("if "):
            integrator.beginIfBlock(step[3:])
        elif step.startswith("while "):
            integrator.beginWhileBlock(step[6:])
        elif step == "end":
            integrator.endBlock()
        elif name in ("x", "v") or name in variables and variables[name] is None:
            integrator.addComputePerDof(name, expression)
        elif name.startswith("sum "):
            integrator.addComputeSum(name[4:], expression)
        else:
            integrator.addComputeGlobal(name, expression)
    return integrator


def test_integrators_that_follow_another_potential(gaussian_model):
    """Neither the System's ensemble comes out nor that of the other potential."""

    def make(integrator):
        context_of(modejump.MonteCarloModeJump(gaussian_model, 5), toy.well_system(), integrator)

    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(toy.langevin())
    compound.addIntegrator(amd.AMDIntegrator(0.002, 2.0, 8.0))
    for integrator in (
        amd.AMDIntegrator(0.002, 2.0, 8.0),
        amd.AMDForceGroupIntegrator(0.002, 0, 2.0, 8.0),
        amd.DualAMDIntegrator(0.002, 0, 2.0, 8.0, 2.0, 8.0),
        compound,
        # through variables, of which one is computed before the one that it comes of
        custom("boost = 1-k*(E-u)", "u = energy0", "fb = boost*f", "v = v+dt*fb/m", "x = x+dt*v", boost=1, u=0, E=9, k=0.1, fb=None),
        custom("v = v+dt*f/m", "u = energy", "x = x+dt*v+1e-9*u*f1", u=0),
    ):
        refuses(["CustomIntegrator", "different potential", "use another integrator"], make, integrator)
    # energies that only decide, and names that only look like energies and forces
    move = ("v = v+0.5*dt*f/m", "x = x+dt*v", "v = v+0.5*dt*f/m")
    hybrid = ("v = sqrt(kT/m)*gaussian", "sum ke = 0.5*m*v*v", "before = ke+energy", "xold = x", *move, "sum ke = 0.5*m*v*v")
    accept = ("accept = step(exp((before-ke-energy)/kT)-uniform)", "x = select(accept,x,xold)", "v = select(accept,v,-v)")
    names = {"ke": 0, "before": 0, "accept": 0, "xold": None}
    make(custom(*hybrid, *accept, **names))
    force_bias = ("u = energy", "xold = x", "xnew = x+dt*f/m+gaussian", "x = xnew", "accept = step(exp((u-energy)/kT)-uniform)")
    make(custom(*force_bias, "x = select(accept,xnew,xold)", u=0, accept=0, xold=None, xnew=None))
    make(custom("work = 1e0*energy", "energyless = 2", "v = v+0.5*dt*energyless*f/m", "x = x+dt*v", work=0, energyless=0))


def test_force_groups_that_the_steps_leave_out(gaussian_model):
    """T6: as of a Force that is only watched. It would decide about jumps, and the dynamics knows nothing of it."""

    def system(*more):
        result = toy.well_system()
        for force in more:
            force.setForceGroup(2)
            result.addForce(copy.deepcopy(force))
        return result

    def multiple(groups=None):
        integrator = openmm.MTSLangevinIntegrator(300, 5, 0.002, [(0, 1), (1, 2)])
        if groups is not None:
            integrator.setIntegrationForceGroups(groups)
        return integrator

    def make(integrator, *forces):
        jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
        jump.setForceGroup(5)
        context = context_of(jump, system(*forces), integrator)
        context.setPositions([[0.0, 0.0, 0.0]])
        return jump, context

    message = ["force group 2 (CustomExternalForce)", "setIntegrationForceGroups({0, 1})"]
    refuses(message, make, multiple(), toy.external("10*x"))
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(toy.langevin())
    compound.addIntegrator(multiple())
    refuses(message, make, compound, toy.external("10*x"))
    nonbonded = openmm.NonbondedForce()
    nonbonded.addParticle(0, 1, 0)
    nonbonded.setReciprocalSpaceForceGroup(3)
    refuses(["force group 2 (NonbondedForce)"], make, multiple(), nonbonded)
    refuses(["force group 3 (NonbondedForce)"], make, multiple({0, 1, 3}), nonbonded)
    make(multiple(), openmm.CMMotionRemover(), openmm.AndersenThermostat(300, 1))
    make(custom("v = v+dt*f/m+0*f1", "x = x+dt*v"), toy.external("10*x"))
    jump, context = make(multiple({0, 1}), toy.external("10*x"))
    assert all(jump.attempt(context) for _ in range(20))  # the model is exact without the other Force


@pytest.mark.parametrize(
    "steps, allowed",
    [
        (["v = v+0.5*dt*f0/m", "v = v+0.5*dt*scale*f1/m"], False),
        (["v = v+0.5*dt*f0/m", "v = v+0.5*dt*of_each*f1/m"], False),
        (["v = v+0.5*dt*f0/m", "v = v+0.5*dt*0.2*f1/m"], False),
        (["v = v+dt*f/m", "v = v-0.8*dt*f1/m"], False),
        (["v = v+dt*kick*f0/m; kick=1", "v = v+2*dt*f1/(2*m)"], True),
        (["of_each = f1", "v = v+dt*f0/m", "v = v+0.2*dt*of_each/m"], False),
        (["of_each = f1", "v = v+dt*f0/m", "v = v+dt*of_each/m"], True),
        (["v = v+dt*f0/m", "if scale = 0", "v = v+4*dt*f1/m", "end"], True),
        (["v = v+0.5*dt*f0/m", "while scale < 0", "scale = scale+1", "end", "v = v+0.5*dt*0.2*f1/m"], False),
        (["v = v+dt*f0/m", "v = v+dt*f1*sqrt(1-scale^2)/m"], False),
        (["v = v+dt*f1/m", "v = scale*(v+dt*f0/m)"], True),
        (["of_each = f1", "v = v+0.2*dt*of_each/m", "v = v+dt*f0/m"], False),
        (["v = v+0.333333*dt*f0/m"] * 3 + ["v = v+dt*f1/m"], True),
        (["v = v+dt*(f0+scale*f1)/m"], False),
        (["v = v+dt*(f0 + 0.5*f1)/m"], False),
        (["v = v+dt*f0/m+dt*f1/m*scale"], False),
        (["v = v+dt*(f0+f1)/m"], True),
        (["v = v+dt*f1/m", "v = v+0.5*dt*f0/m", "v = v+0.5*(dt/2)*f0/m", "v = v+0.5*(dt/2)*f0/m"], True),
        (["x = x+dt*f0/(m*scale)+dt*f1/(m*scale)"], True),
        (["v = v+dt*f/m"], True),
    ],
)
def test_scaled_groups_of_a_custom_integrator(gaussian_model, steps, allowed):
    """Scaled forces are those of another potential than the one by which jumps are tested."""
    integrator = custom(*steps, "x = x+dt*v", scale=0.5, of_each=None)
    system = toy.well_system()
    tilt = toy.external("x")
    tilt.setForceGroup(1)
    system.addForce(tilt)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
    if allowed:
        context_of(jump, system, integrator)
    else:
        refuses(["scale the forces of one group", "a parameter of the Context"], context_of, jump, system, integrator)


@pytest.mark.parametrize(
    "steps, strength",
    [
        (["v = v+scale*dt*f/m", "x = x+dt*v"], "0.5"),
        (["v = v+0.5*dt*0.5*f/m", "x = x+dt*v", "v = v+0.25*dt*f/m"], "0.5"),
        (["v = v+dt*2*(f0+f1)/m", "x = x+0.5*dt*v", "v = keep*v+sqrt((1-keep^2)*kT/m)*gaussian", "x = x+0.5*dt*v"], "2"),
        (["of_each = scale*f", "v = v+dt*of_each/m", "x = x+dt*v"], "0.5"),
        (["twice = 4*scale", "v = v+dt*twice*f/m", "x = x+dt*v"], "2"),
        # the friction of old Langevin integrators, and more of it than explains the factor
        (["v = keep*v+(1-keep)/0.4*0.4*dt/(1-keep)*0.9*f/m+gaussian", "x = x+dt*v"], None),
        (["v = keep*v+0.7*dt*f/m+gaussian", "x = x+dt*v"], "0.7"),
        (["v = keep*(v+dt*f/m)", "x = x+dt*v"], None),
        (["v = v+0.5*dt*f/m", "x = x+0.5*dt*v", "x = x+0.5*dt*v", "v = v+0.5*dt*f/m"], None),
        # not known: a test of its own, velocities that are drawn, dynamics without them, factors of each degree of freedom
        (["u = energy", "x = x+dt*v", "v = v+scale*dt*f/m", "accept = step(exp((u-energy)/kT)-uniform)", "x = x*accept"], None),
        (["v = gaussian", "v = v+scale*dt*f/m", "x = x+dt*v"], None),
        (["x = x+scale*dt*f/m+gaussian"], None),
        (["v = v+weight*dt*f/m", "x = x+dt*v"], None),
        (["if scale > 0", "v = v+scale*dt*f/m", "end", "x = x+dt*v"], None),
    ],
)
def test_scaled_forces_of_a_custom_integrator(gaussian_model, steps, strength):
    """Scaled molecular dynamics: <x^2> would be that of neither potential."""
    integrator = custom(*steps, scale=0.5, keep=0.8, twice=0, u=0, accept=0, of_each=None, weight=None)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
    if strength is None:
        context_of(jump, toy.well_system(), integrator)
    else:
        refuses([f"scale forces by {strength},", "a parameter of the Context"], context_of, jump, toy.well_system(), integrator)


@pytest.mark.parametrize(
    "steps, kept",
    [
        (["v = v+0.5*dt*old/m", "x = x+dt*v", "old = f", "v = v+0.5*dt*old/m"], "old"),
        (["copy = old", "v = v+0.5*dt*copy/m", "x = x+dt*v", "old = f", "v = v+0.5*dt*old/m"], "copy"),
        (["old = f", "update", "v = v+dt*old/m", "x = x+dt*v"], "old"),
        (["if begun = 0", "old = f", "begun = 1", "end", "v = v+0.5*dt*old/m", "x = x+dt*v", "old = f", "v = v+0.5*dt*old/m"], "old"),
        (["v = v+0.5*dt*f/m", "x = x+dt*v", "accept = step(exp((u-energy)/kT)-uniform)", "x = x*accept", "u = energy"], "accept"),
        (["if u > 0", "v = -v", "end", "v = v+dt*f/m", "x = x+dt*v", "u = energy"], "u"),
        (["old = f", "v = v+0.5*dt*old/m", "x = x+dt*v", "old = f", "v = v+0.5*dt*old/m"], None),
        (["update", "old = f", "v = v+dt*old/m", "x = x+dt*v"], None),
        # counters and work are not asked, and friction that v has decided is not of positions
        (["u = energy", "v = v+dt*f/m", "x = x+dt*v", "work = work+energy-u", "begun = begun+1"], None),
        # a sum that begins anew with every step
        (
            ["sum hot = m*v*v", "work = work+hot", "v = v+dt*f/m", "x = x+dt*v", "u = energy", "work = work+u", "if work > 0", "v = -v", "end", "work = 0"],
            None,
        ),
        (["v = v*slower", "v = v+dt*f/m", "x = x+dt*v", "sum hot = m*v*v", "slower = 1-1e-4*hot"], None),
        # in a block that computes it first
        (["begun = 0", "while begun < 3", "copy = x", "x = select(step(uniform-0.5),copy,x)", "begun = begun+1", "end", "v = v+dt*f/m", "x = x+dt*v"], None),
    ],
)
def test_what_a_custom_integrator_keeps_of_before_a_jump(gaussian_model, steps, kept):
    """A force of the configuration that was replaced kicks at a place where it is not: <x^2> 1.13 times too large with a jump every second step."""
    integrator = custom(*steps, begun=0, u=0, accept=0, work=0, hot=0, slower=1, old=None, copy=None)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
    if kept is None:
        context_of(jump, toy.well_system(), integrator)
    else:
        refuses([f"uses {kept} of the configuration before a jump", "compute it again"], context_of, jump, toy.well_system(), integrator)


def test_moves_that_a_block_of_a_custom_integrator_calls(gaussian_model):
    """Its condition would decide when jumps are tried."""
    kick = ("update", "end", "v = v+dt*f/m", "x = x+dt*v")
    for steps, name in ((("u = energy", "if u > 1"), "u"), (("if energy > 1",), "energy"), (("u = uniform", "if u > 0.5"), "u")):
        jump = modejump.MonteCarloModeJump(gaussian_model, 0)
        refuses(f"in a block that depends on {name},", context_of, jump, toy.well_system(), custom(*steps, *kick, u=0))
    counting = custom("u = u+1", "if u > 100", *kick, u=0)
    context_of(modejump.MonteCarloModeJump(gaussian_model, 0, seed=3), toy.well_system(), counting)


@pytest.mark.skipif(toy.PLATFORMS[0] not in ("Reference", "CPU"), reason="other platforms constrain in new directions")
def test_custom_integrators_that_would_keep_bonds_where_they_were(rigid_model, peroxide_model):
    """On Reference and CPU, whose CustomIntegrators constrain in directions from before a jump."""

    def step(constrained, frequency, make_integrator, model=rigid_model):
        jump = modejump.MonteCarloModeJump(model, frequency, seed=3)
        integrator = make_integrator()
        # that is for energies as well
        context = context_of(jump, peroxide_system(constrained), integrator)
        context.setPositions(start())
        integrator.step(1)

    def multiple():
        return openmm.MTSLangevinIntegrator(300, 1, 0.001, [(0, 2)])

    def without():
        return toy.splitting(after_jumps=False)

    def compound():
        integrator = openmm.CompoundIntegrator()
        integrator.addIntegrator(toy.langevin())
        integrator.addIntegrator(without())
        return integrator

    for make_integrator in (multiple, without, compound):
        refuses(["Reference", "addConstrainPositions() directly after"], step, OH, 5, make_integrator)
        step(OH, 0, make_integrator)
        step((), 5, make_integrator, peroxide_model)
    step(OH, 5, toy.splitting)
