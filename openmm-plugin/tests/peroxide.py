"""Hydrogen peroxide H-O-O-H with a two-well torsion whose averages are one-dimensional integrals."""

import math
from types import SimpleNamespace

import numpy as np
import openmm
from model_file import scale_layer, write_model
from toy import KT

PEROXIDE = SimpleNamespace(
    masses=(1.008, 15.999, 15.999, 1.008),
    oh=0.097,
    oo=0.145,
    k_bond=2e5,
    angle=math.radians(100),
    k_angle=400.0,
    #: V = barrier (1 + cos 2 phi) + tilt (1 + cos(phi - phase)): wells near +-90 degrees, 16 kT apart.
    barrier=20.0,
    tilt=1.5,
    phase=math.radians(60),
)
BONDS = [(0, 1, PEROXIDE.oh), (1, 2, PEROXIDE.oo), (2, 3, PEROXIDE.oh)]


def build(offset, n, system):
    """Bonded forces of the molecule at particles offset .. offset + 3."""
    p = PEROXIDE
    bonds, angles, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for a, b, length in BONDS:
        bonds.addBond(offset + a, offset + b, length, p.k_bond)
    for a in (0, 1):
        angles.addAngle(offset + a, offset + a + 1, offset + a + 2, p.angle, p.k_angle)
    atoms = [offset + i for i in range(4)]
    torsion.addTorsion(*atoms, 2, 0.0, p.barrier)
    torsion.addTorsion(*atoms, 1, p.phase, p.tilt)
    for force in (bonds, angles, torsion):
        system.addForce(force)
    return bonds, angles, torsion


def peroxide_system(constrained=()):
    """constrained: pairs of atoms whose bond has a constant length."""
    system = openmm.System()
    for mass in PEROXIDE.masses:
        system.addParticle(mass)
    build(0, 4, system)
    for a, b in constrained:
        length = next(bond[2] for bond in BONDS if bond[:2] == (a, b))
        system.addConstraint(a, b, length)
    return system


OH = ((0, 1), (2, 3))


def start(phi=math.radians(90)):
    """Positions at the equilibrium bonds and angles, [4][3] in nm."""
    p = PEROXIDE
    x = np.zeros((4, 3))
    x[1] = [0, 0, 0]
    x[2] = [p.oo, 0, 0]
    x[0] = [p.oh * math.cos(p.angle), p.oh * math.sin(p.angle), 0]
    reach = p.oh * math.sin(p.angle)
    x[3] = x[2] + [-p.oh * math.cos(p.angle), reach * math.cos(phi), reach * math.sin(phi)]
    return x


def torsion_of(x):
    """IUPAC sign, as OpenMM's."""
    b1, b2, b3 = x[1] - x[0], x[2] - x[1], x[3] - x[2]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return math.atan2(np.dot(np.cross(n1, n2), b2 / np.linalg.norm(b2)), np.dot(n1, n2))


def write_peroxide_model(path, constraints=(), *, widen=1.0, stretch=0.0, **options):
    p = PEROXIDE
    n_bonds = 3 - len(constraints)
    lengths = [length + stretch for a, b, length in BONDS if [a, b, length] not in [list(c) for c in constraints]]
    sd_bond = widen * math.sqrt(KT / p.k_bond)
    sd_angle = widen * math.sqrt(KT / p.k_angle) / math.pi
    # Coordinates: bonds (frame 0-1, 1-2, then row 2-3), angles / pi, torsion / 2 pi.
    layers = [scale_layer(list(range(n_bonds)), lengths, [sd_bond] * n_bonds)]
    layers.append(scale_layer([n_bonds, n_bonds + 1], [p.angle / math.pi] * 2, [sd_angle] * 2))
    coordinates = {
        "kind": "internal",
        "frame": [0, 1, 2],
        "rows": [[3, 2, 1, 0]],
        "normalize_angles": True,
        "constraints": [list(c) for c in constraints],
    }
    topology = {
        "names": ["H1", "O1", "O2", "H2"],
        "elements": ["H", "O", "O", "H"],
        "residues": ["HOH1"] * 4,
        "bonds": [[0, 1], [1, 2], [2, 3]],
    }
    return write_model(path, coordinates, layers, [n_bonds + 2], topology=topology, **options)


def _average(energy, jacobian, low, high, observable, temperature):
    q = np.linspace(low, high, 200_001)
    weight = np.exp(-(energy(q) - energy(q).min()) / KT * 300.0 / temperature) * jacobian(q)
    return (weight * observable(q)).sum() / weight.sum()


def torsion_energy(phi):
    p = PEROXIDE
    return p.barrier * (1 + np.cos(2 * phi)) + p.tilt * (1 + np.cos(phi - p.phase))


def exact_positive(temperature=300.0):
    """Probability of phi > 0: bonds and angles do not depend on the torsion."""
    return _average(torsion_energy, np.ones_like, -math.pi, math.pi, lambda phi: phi > 0, temperature)


def exact_energy(n_flexible_bonds, temperature=300.0):
    """<U> in kJ/mol; the volume element of a bond is b^2, of an angle sin(theta).

    With the two O-H bonds constrained the metric determinant is constant, since they share no atom.
    """
    p = PEROXIDE

    def bond(length):
        energy = lambda b: p.k_bond / 2 * (b - length) ** 2
        return _average(energy, np.square, 0.5 * length, 1.5 * length, energy, temperature)

    def angle_energy(theta):
        return p.k_angle / 2 * (theta - p.angle) ** 2

    bonds = bond(p.oo) + (2 * bond(p.oh) if n_flexible_bonds == 3 else 0)
    angles = 2 * _average(angle_energy, np.sin, 0.01, math.pi - 0.01, angle_energy, temperature)
    torsion = _average(torsion_energy, np.ones_like, -math.pi, math.pi, torsion_energy, temperature)
    return bonds + angles + torsion
