"""Solver-made data sets in the Well's format: `generate(name, root)` for any name in `SOLVERS`."""

from adaptok.data.synthetic.acoustic_scattering_maze import AcousticScatteringMaze
from adaptok.data.synthetic.active_matter import ActiveMatter
from adaptok.data.synthetic.euler_multi_quadrants import (
    EulerMultiQuadrantsOpen,
    EulerMultiQuadrantsPeriodic,
)
from adaptok.data.synthetic.generation import DifferentSetError, generate
from adaptok.data.synthetic.gray_scott_reaction_diffusion import GrayScott
from adaptok.data.synthetic.rayleigh_benard import RayleighBenard
from adaptok.data.synthetic.shear_flow import ShearFlow
from adaptok.data.synthetic.solver import SOLVERS, Solver, Trajectories
from adaptok.data.synthetic.supernova_explosion_64 import SupernovaExplosion

__all__ = [
    "SOLVERS",
    "AcousticScatteringMaze",
    "ActiveMatter",
    "DifferentSetError",
    "EulerMultiQuadrantsOpen",
    "EulerMultiQuadrantsPeriodic",
    "GrayScott",
    "RayleighBenard",
    "ShearFlow",
    "Solver",
    "SupernovaExplosion",
    "Trajectories",
    "generate",
]
