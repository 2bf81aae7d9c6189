"""MonteCarloModeJump: a Force that moves the System."""

import ctypes
import operator
import os
import warnings
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import numpy as np
import openmm
from openmm import unit

from . import _library
from ._library import address, call, library
from .statistics import Counts
from .units import in_unit


@dataclass(frozen=True, kw_only=True)
class Statistics(Counts):
    """Attempts of one Context since it was made, reinitialised or reset."""

    #: log alpha of the last attempt, not clipped at 0.
    last_log_acceptance: float
    #: For a driven path: trajectories in which the other particles relaxed, and how many of these were accepted.
    relaxations: int
    relaxations_accepted: int


def _number(name, convert, doc, wanted=unit.dimensionless):
    """A property stored in the C++ object, as a number in this unit."""

    def getter(self):
        value = ctypes.c_double()
        call("get", address(self), name.encode(), ctypes.byref(value))
        return convert(value.value)

    def setter(self, value):
        call("set", address(self), name.encode(), float(in_unit(value, wanted, name)))

    return property(getter, setter, doc=doc)


def _index(value):
    """A particle index; checked here, since ctypes would not report that it does not fit."""
    value = operator.index(value)
    if not 0 <= value < 2**31:
        raise openmm.OpenMMException(f"MonteCarloModeJump: particles contains {value}; it must be a number from 0 to {2**31 - 1}")
    return value


def _numbers(name, ctype, convert, doc):
    """A property that is a list of numbers stored in the C++ object."""

    def getter(self):
        n = ctypes.c_int()
        call("get_" + name, address(self), 0, None, ctypes.byref(n))
        buffer = (ctype * n.value)()
        call("get_" + name, address(self), n.value, buffer, ctypes.byref(n))
        return list(buffer)

    def setter(self, values):
        values = [convert(value) for value in in_unit(list(values), unit.dimensionless, name)]
        call("set_" + name, address(self), len(values), (ctype * len(values))(*values))

    return property(getter, setter, doc=doc)


class MonteCarloModeJump(openmm.Force):
    """Move by which a trained generator proposes configurations of the molecule every `frequency` steps; a Metropolis test on the
    System's own energy decides. The canonical ensemble stays exact, whatever the quality of the generator, unless `acceptance`
    says otherwise.

    Parameters
    ----------
    model : path
        Model file.
    frequency : int
        Steps between attempts, counted from the Context's step count; 0 switches them off.
    particles : sequence of int, optional
        Particle particles[i] of the System is atom i of the model. Default: all particles, in their order.
    proposals : int
        Proposals per attempt; each costs one energy. With more than one: iterated sampling-importance resampling, or, with a
        screening model, this many Metropolis steps of the screening before the exact test, or, with annealing, one Metropolis
        test after the other.
    seed : int
        0 (default): random numbers that are never repeated. A run that is to be repeated or continued bit for bit needs a seed;
        runs that start at the same step then make the same jumps, unless each has a different value of the Context parameter
        REPLICA.
    temperature : number (K) or Quantity, optional
        Default: that of the integrator or thermostat at each attempt. To be given for those that have none, or several; a warning
        is issued if it differs.
    embed : bool
        Whether XML contains the models themselves instead of their paths.
    screen : path, optional
        A second model of the same atoms with a cheap log-density, which need not be exact. It screens the proposals; the exact
        log-density of `model` is computed only for those that pass, and decides (delayed acceptance). Log-weights in the
        statistics are then those of the screen.
    acceptance : "exact" or "surrogate"
        "surrogate": the log-density q_s of `screen` alone decides. This is biased: the jumps leave exp(-u) q/q_s invariant
        instead of exp(-u), and statistics and reports say "surrogate".
    draw_ahead : bool
        Whether other threads draw the proposals of the next attempts while the simulation runs, and evaluate the density of the
        current configuration while OpenMM computes energies: the results are the same, bit for bit, and faster if a core is free.
    driven_steps : int
        For a solute in explicit solvent: each proposal is reached in this many perturbations along the internal coordinates of
        the model, between which all other particles relax; the work of the perturbations decides. Exact whatever the numbers. 0
        (default): no path, the other particles stay where they are.
    relaxation_steps : int
        Steps of the trajectory in which the others relax after each perturbation except the last, before its Metropolis test.
    relaxation_timestep : number (ps) or Quantity
        Time step of the relaxation.
    annealing_stages : int
        Number of evenly spaced stages of annealed importance sampling, which carries each proposal to the energies of the System
        before it is tested, and the current configuration back; the weights of both paths decide. For a model that is slightly
        wrong everywhere. Exact whatever the numbers; a stage costs two force evaluations or more. 0 (default): proposals are
        tested as they are.
    annealing_moves : int
        Steps per stage, each with a Metropolis test.
    annealing_step : number (nm²) or Quantity
        Step size in x - step dE/dx + sqrt(2 step) noise.
    latent_walk : sequence of float
        Widths of small steps in the latent space of the model, made instead of whole proposals; one width is chosen at random in
        every attempt. The prior of a latent coordinate has width 1, or is uniform on [0, 1). For a model whose proposals are all
        rejected. Exact whatever the model; the statistics have no weights. Empty (default): no walk.
    leapfrog : int
        For annealing and latent walks: leapfrog steps per Hamiltonian trajectory, which replaces single steps.
    rotations : int
        Number of orientations over which the density of the model is averaged, for a model whose density depends on the
        orientation, such as a TarFlow, in a System whose energy hardly does: the weights vary less, at the cost of as many
        likelihoods. Exact in any System. A jump turns the molecule at random. 0 (default): none.
    precision : "f32", "f64" or "bf16"
        Precision of the networks of `model`, as in `Model`; a screening model stays in "f32". "bf16" is for a TarFlow.
    decoding : "sequential", "jacobi" or "gauss_seidel"
        How a TarFlow computes its samples, as in `Model`.
    segment, decoding_tolerance, decoding_passes : number, optional
        For "gauss_seidel", and for both iterative decodings, as in `Model`.

    Raises
    ------
    openmm.OpenMMException
        There is no such model file, it is malformed, an option does not apply to this kind of model, or an argument is out of
        range; or a surrogate is to decide and none is given.
    """

    def __init__(
        self,
        model,
        frequency=100,
        *,
        particles=None,
        proposals=1,
        seed=0,
        temperature=0,
        embed=False,
        screen=None,
        acceptance="exact",
        draw_ahead=False,
        driven_steps=0,
        relaxation_steps=20,
        relaxation_timestep=0.001,
        annealing_stages=0,
        annealing_moves=1,
        annealing_step=2e-6,
        latent_walk=(),
        leapfrog=0,
        rotations=0,
        precision="f32",
        decoding="sequential",
        segment=None,
        decoding_tolerance=None,
        decoding_passes=None,
    ):
        texts = {"model": os.fspath(model), "acceptance": acceptance, "precision": precision, "decoding": decoding}
        if screen is not None:
            texts["screen"] = os.fspath(screen)
        texts = " ".join(f"{name}={quoteattr(text)}" for name, text in texts.items())
        xml = f'<Force type="MonteCarloModeJump" version="6" {texts} frequency="0"/>'
        self.this = openmm.XmlSerializer.deserialize(xml).this
        self.frequency = frequency
        self.proposals = proposals
        self.seed = seed
        self.temperature = temperature
        self.draw_ahead = draw_ahead
        self.relaxation_steps = relaxation_steps
        self.relaxation_timestep = relaxation_timestep
        self.driven_steps = driven_steps
        self.annealing_moves = annealing_moves
        self.annealing_step = annealing_step
        self.annealing_stages = annealing_stages
        self.latent_walk = latent_walk
        self.leapfrog = leapfrog
        self.rotations = rotations
        for name, value in (("segment", segment), ("decoding_tolerance", decoding_tolerance), ("decoding_passes", decoding_passes)):
            if value is not None:
                setattr(self, name, value)
        if particles is not None:
            self.particles = particles
        call("load_model", address(self))
        if embed:
            call("embed_model", address(self))

    @staticmethod
    def isinstance(force):
        """Whether an openmm.Force, such as system.getForce(i) returns, is a MonteCarloModeJump."""
        return bool(library.modejump_openmm_is_mode_jump(address(force)))

    @classmethod
    def cast(cls, force):
        """The openmm.Force as a MonteCarloModeJump; raises TypeError if it is another Force."""
        if not cls.isinstance(force):
            raise TypeError(f"{type(force).__name__} {force.getName()!r} is not a MonteCarloModeJump")
        result = cls.__new__(cls)
        result.this = force.this
        result._owner = force  # keeps alive what `force` keeps alive
        return result

    frequency = _number("frequency", int, "Steps between attempts; 0 switches them off.")
    proposals = _number("proposals", int, "Proposals per attempt.")
    seed = _number("seed", int, "Seed of the random numbers; 0: numbers that are never repeated.")
    temperature = _number("temperature", float, "Temperature, K; 0: that of the integrator or thermostat.", unit.kelvin)
    draw_ahead = _number("draw_ahead", bool, "Whether other threads draw proposals while the simulation runs, and evaluate densities beside its energies.")
    driven_steps = _number("driven_steps", int, "Perturbations of a driven path; 0 for none.")
    relaxation_steps = _number("relaxation_steps", int, "Steps of the relaxation after each perturbation of a driven path.")
    relaxation_timestep = _number("relaxation_timestep", float, "Time step of the relaxation on a driven path, ps.", unit.picosecond)
    annealing_stages = _number("annealing_stages", int, "Stages of annealed proposals; 0 for none.")
    annealing_moves = _number("annealing_moves", int, "Metropolis steps per stage of annealed proposals.")
    annealing_step = _number("annealing_step", float, "Step size of annealed proposals, nm².", unit.nanometer**2)
    leapfrog = _number("leapfrog", int, "Leapfrog steps per Hamiltonian trajectory, of annealing or of a latent walk; 0: single steps.")
    rotations = _number("rotations", int, "Orientations over which the density is averaged; 0 for none.")
    segment = _number("segment", int, "Tokens per segment of Gauss-Seidel decoding; for Contexts made afterwards.")
    decoding_tolerance = _number(
        "decoding_tolerance", float, "Largest error of the latent point in iterative decoding; for Contexts made afterwards."
    )
    decoding_passes = _number("decoding_passes", int, "Maximum number of passes of iterative decoding; for Contexts made afterwards.")
    default_replica = _number("default_replica", int, "Initial value of the Context parameter REPLICA.")
    model_temperature = _number("model_temperature", float, "Temperature for which the model was trained, K; 0 if its file does not say. Read only.")

    #: Context parameter that gives replicas which share a Context their own random numbers.
    REPLICA = "ModeJumpReplica"

    particles = _numbers("particles", ctypes.c_int, _index, "Indices of the particles that are the model's atoms, in its order; empty: all particles.")
    latent_walk = _numbers("latent_walk", ctypes.c_double, float, "Widths of the steps of a walk in latent space; empty for no walk.")

    def _text(self, name):
        value = ctypes.c_char_p()
        call("get_text", address(self), name.encode(), ctypes.byref(value))
        return value.value.decode()

    @property
    def model_file(self):
        """Path from which the model was read."""
        return self._text("model_file")

    @property
    def model_hash(self):
        """Hash of the bytes of the model file, hexadecimal."""
        return self._text("model_hash")

    @property
    def screening_model_file(self):
        """Path of the screening model; empty if there is none."""
        return self._text("screening_model_file")

    @property
    def screening_model_hash(self):
        """Hash of the bytes of the screening model's file; empty if there is none."""
        return self._text("screening_model_hash")

    @property
    def acceptance(self):
        """Log-density that decides: "exact", or "surrogate" for that of the screening model alone."""
        return self._text("acceptance")

    @property
    def precision(self):
        """Precision of the generator's networks: "f32", "f64" or "bf16"."""
        return self._text("precision")

    @property
    def decoding(self):
        """How a TarFlow computes its samples: "sequential", "jacobi" or "gauss_seidel"."""
        return self._text("decoding")

    def attempt(self, context):
        """Attempts a move now, whatever the frequency; returns whether it was accepted.

        With a seed, its random numbers follow from that, the Context parameter REPLICA, the Context's step count and the number
        of attempts already made by this method in this Context since it was last called at another step. They are repeated if
        the step count is set back. `context.reinitialize()` makes a new Context, which counts from zero: set REPLICA to another
        value after it, or take a step, or the random numbers of attempts at the same step are repeated.
        """
        accepted = ctypes.c_int()
        call("attempt", address(self), address(context, openmm.Context), ctypes.byref(accepted))
        return bool(accepted.value)

    def statistics(self, context):
        """Statistics of the attempts in this Context. Warns if they show that acceptances will be very rare."""
        advice = ctypes.c_char_p()
        call("get_advice", address(self), address(context, openmm.Context), ctypes.byref(advice))
        if advice.value:
            warnings.warn(advice.value.decode(), stacklevel=2)
        counts = _library.CStatistics()
        call("get_statistics", address(self), address(context, openmm.Context), ctypes.byref(counts))
        values = {name: getattr(counts, name) for name, _ in counts._fields_}
        likelihood = "surrogate" if values.pop("by_surrogate") else "exact"
        return Statistics(**values, likelihood=likelihood)

    def reset_statistics(self, context):
        """Resets the counters and the weights of proposals in this Context."""
        call("reset_statistics", address(self), address(context, openmm.Context))

    def log_weights(self, context):
        """log w = -u(x) - log q(x) of the latest proposals, oldest first; -inf for unusable ones. Array [n]."""
        n = ctypes.c_uint64()
        call("log_weights", address(self), address(context, openmm.Context), 0, None, ctypes.byref(n))
        weights = np.empty(n.value)
        pointer = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        call("log_weights", address(self), address(context, openmm.Context), n.value, pointer, ctypes.byref(n))
        return weights

    def update_parameters_in_context(self, context):
        """Transfers frequency, temperature, proposals and the options of how they are made to an existing Context; its statistics
        are reset."""
        call("update_parameters", address(self), address(context, openmm.Context))
