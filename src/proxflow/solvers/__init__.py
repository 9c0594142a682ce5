"""Numerical solvers of proximal steps, for divergences, families and energies without a closed form."""

from proxflow.solvers.newton import NewtonSolver
from proxflow.solvers.problem import CoordinateSolver, Solution, Solver
from proxflow.solvers.quasi_newton import QuasiNewtonSolver

__all__ = ["CoordinateSolver", "NewtonSolver", "QuasiNewtonSolver", "Solution", "Solver"]
