"""A chain of four atoms with a cis and a trans well, in a bath of repulsive atoms and rigid dimers that favours the compact one."""

import math
from types import SimpleNamespace

import numpy as np
import openmm
from model_file import scale_layer, write_model
from toy import KT

CHAIN = SimpleNamespace(
    mass=12.011,
    bond=0.2,
    k_bond=1e4,
    angle=math.radians(110),
    k_angle=400.0,
    #: V = barrier (1 - cos 2 phi) / 2: without a bath cis and trans are equally likely.
    barrier=4.0 * KT,
)
#: Diameter of all atoms, nm, and depth of their potential, which is cut at its minimum (Weeks, Chandler and Andersen).
SIGMA, EPSILON = 0.3, KT
N_ATOMS, N_DIMERS, DENSITY = 24, 12, 0.75
N_BATH = N_ATOMS + 2 * N_DIMERS
BOX = SIGMA * ((N_BATH + 4) / DENSITY) ** (1 / 3)
SOLUTE = (0, 1, 2, 3)
#: Bonds of constant length: those of the chain's ends, which the generator keeps, and of the dimers.
CHAIN_CONSTRAINTS = [(0, 1), (2, 3)]


def dimers():
    """Pairs of particles."""
    return [(4 + N_ATOMS + 2 * k, 4 + N_ATOMS + 2 * k + 1) for k in range(N_DIMERS)]


def bath_system(barrier=CHAIN.barrier):
    """The chain is particles 0 to 3."""
    p = CHAIN
    system = openmm.System()
    for _ in range(4 + N_BATH):
        system.addParticle(p.mass)
    system.setDefaultPeriodicBoxVectors(*(BOX * np.eye(3)))
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    torsion = openmm.PeriodicTorsionForce()
    bonds.addBond(1, 2, p.bond, p.k_bond)
    angles.addAngle(0, 1, 2, p.angle, p.k_angle)
    angles.addAngle(1, 2, 3, p.angle, p.k_angle)
    torsion.addTorsion(0, 1, 2, 3, 2, math.pi, barrier / 2)
    repulsion = openmm.CustomNonbondedForce("step(cut-r)*(4*epsilon*((sigma/r)^12-(sigma/r)^6)+epsilon)")
    repulsion.addGlobalParameter("sigma", SIGMA)
    repulsion.addGlobalParameter("epsilon", EPSILON)
    repulsion.addGlobalParameter("cut", 2 ** (1 / 6) * SIGMA)
    repulsion.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    repulsion.setCutoffDistance(1.13 * SIGMA)
    for _ in range(system.getNumParticles()):
        repulsion.addParticle([])
    for a in SOLUTE:
        for b in range(a):
            repulsion.addExclusion(a, b)
    for a, b in CHAIN_CONSTRAINTS:
        system.addConstraint(a, b, p.bond)
    for a, b in dimers():
        system.addConstraint(a, b, SIGMA)
        repulsion.addExclusion(a, b)
    for force in (bonds, angles, torsion, repulsion):
        system.addForce(force)
    return system


def torsion_of(x):
    b1, b2, b3 = x[1] - x[0], x[2] - x[1], x[3] - x[2]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return math.atan2(np.dot(np.cross(n1, n2), b2 / np.linalg.norm(b2)), np.dot(n1, n2))


def start():
    """Positions [n][3] in nm: the chain, and the bath on a lattice around it."""
    p = CHAIN
    chain = np.zeros((4, 3))
    chain[1] = [0.5 * p.bond, 0, 0]
    chain[2] = [-0.5 * p.bond, 0, 0]
    reach, height = p.bond * math.cos(math.pi - p.angle), p.bond * math.sin(p.angle)
    chain[0] = chain[1] + [reach, height, 0]
    chain[3] = chain[2] + [-reach, height, 0]
    sites = np.stack(np.meshgrid(*3 * [np.arange(4)], indexing="ij"), axis=-1).reshape(-1, 3) * (BOX / 4)
    away = np.linalg.norm((sites - chain.mean(axis=0) + BOX / 2) % BOX - BOX / 2, axis=1)
    sites = sites[np.argsort(-away, kind="stable")][:N_BATH]
    # dimers of neighbours along z
    order, left = [], [tuple(site) for site in np.round(sites / (BOX / 4)).astype(int)]
    for site in sorted(left):
        other = (site[0], site[1], (site[2] + 1) % 4)
        if len(order) < 2 * N_DIMERS and site not in order and other in left and other not in order and site[2] % 2 == 0:
            order += [site, other]
    atoms = [site for site in left if site not in order]
    bath = np.array(atoms + order) * (BOX / 4)
    for k in range(N_DIMERS):
        a = N_ATOMS + 2 * k
        middle = bath[a] + [0, 0, BOX / 8]
        bath[a], bath[a + 1] = middle - [0, 0, SIGMA / 2], middle + [0, 0, SIGMA / 2]
    return np.concatenate([chain, bath])


def write_chain_model(path, *, stretch=0.0):
    """Normal bond and angles, any torsion; the free bond too long by `stretch` nm."""
    p = CHAIN
    # coordinates: the free bond, angles / pi, torsion / 2 pi
    layers = [
        scale_layer([0], [p.bond + stretch], [math.sqrt(KT / p.k_bond)]),
        scale_layer([1, 2], [p.angle / math.pi] * 2, [math.sqrt(KT / p.k_angle) / math.pi] * 2),
    ]
    coordinates = {
        "kind": "internal",
        "frame": [0, 1, 2],
        "rows": [[3, 2, 1, 0]],
        "normalize_angles": True,
        "constraints": [[a, b, p.bond] for a, b in CHAIN_CONSTRAINTS],
    }
    topology = {
        "names": ["C1", "C2", "C3", "C4"],
        "elements": ["C"] * 4,
        "residues": ["CHN1"] * 4,
        "bonds": [[0, 1], [1, 2], [2, 3]],
    }
    return write_model(path, coordinates, layers, [3], topology=topology)
