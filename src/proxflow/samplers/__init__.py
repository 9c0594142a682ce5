"""Samplers: from noise to data, in a counted number of network evaluations.

There is one loop, in :meth:`Sampler.__call__`. A sampler supplies two operations: ``init`` makes its state from the prior,
``step`` moves belief and state from one time to the next with the newest prediction. ``plan`` computes before the loop what
steps need of the schedule. The last prediction is the sample, so no step divides by the distance to t = 1.

Two kinds:

* **Proximal** samplers move the belief by the flow's own update. They work for every flow.
* **Path** samplers move along the interpolant of the training beliefs: means a(t) x + b(t) ε, or for discrete Bayesian
  flows logits a(t) (K e_x − 1) + b(t) ε. They carry y = μ/(a + b), in which every Gaussian path is the straight line
  y = τ x + (1 − τ) ε with τ = a/(a + b). So one formula, without a singularity at t = 0, serves rectified flow, BFN and
  diffusion.
"""

from proxflow.samplers.base import Sampler, Samples, Watch
from proxflow.samplers.bfn_solver import BFNSolver
from proxflow.samplers.midpoint import Midpoint
from proxflow.samplers.multistep import Multistep
from proxflow.samplers.path import Marginal, PathSampler, Step
from proxflow.samplers.proximal import Deterministic, ProximalSampler, Stochastic
from proxflow.samplers.registry import SAMPLERS, default_sampler, sample

__all__ = [
    "SAMPLERS",
    "BFNSolver",
    "Deterministic",
    "Marginal",
    "Midpoint",
    "Multistep",
    "PathSampler",
    "ProximalSampler",
    "Sampler",
    "Samples",
    "Step",
    "Stochastic",
    "Watch",
    "default_sampler",
    "sample",
]
