"""Solver-made data sets in the Well's format: `generate(name, root)` for any name in `SOLVERS`."""

from adaptok.data.synthetic.acoustic_scattering_maze import AcousticScatteringMaze
from adaptok.data.synthetic.generation import generate
from adaptok.data.synthetic.solver import SOLVERS, Solver, Trajectories
from adaptok.data.synthetic.supernova_explosion_64 import SupernovaExplosion

__all__ = [
    "SOLVERS",
    "AcousticScatteringMaze",
    "Solver",
    "SupernovaExplosion",
    "Trajectories",
    "generate",
]
