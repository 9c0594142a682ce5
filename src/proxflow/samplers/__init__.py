"""Samplers: from noise to data in a given number of network evaluations (NFE).

There is one loop, in :meth:`Sampler.__call__`. A sampler implements two operations: ``init`` makes its state from the
prior, ``step`` moves belief and state from one time to the next with the newest prediction. ``plan`` computes what
steps need of the schedule before the loop. The sample is the last prediction, or what ``end`` makes of it, so no step
divides by the distance to t = 1.

Two kinds:

* **Proximal** samplers move the belief by the flow's own update. They work for every flow.
* **Path** samplers move along the interpolant of the training beliefs: means a(t) x + b(t) ε, or for discrete Bayesian
  flows logits a(t) (K e_x − 1) + b(t) ε. Their state is y = μ/(a + b), in which every Gaussian path is the straight
  line y = τ x + (1 − τ) ε with τ = a/(a + b). So one formula, without a singularity at t = 0, covers rectified flow,
  BFN and diffusion.
"""

from proxflow.samplers.adams_bashforth import AdamsBashforth as AdamsBashforth
from proxflow.samplers.base import Sampler as Sampler
from proxflow.samplers.base import Samples as Samples
from proxflow.samplers.base import Watch as Watch
from proxflow.samplers.bfn_solver import BFNSolver as BFNSolver
from proxflow.samplers.midpoint import Midpoint as Midpoint
from proxflow.samplers.multistep import Multistep as Multistep
from proxflow.samplers.particles import Particles as Particles
from proxflow.samplers.particles import particles as particles
from proxflow.samplers.path import Marginal as Marginal
from proxflow.samplers.path import PathSampler as PathSampler
from proxflow.samplers.path import Renewed as Renewed
from proxflow.samplers.path import Step as Step
from proxflow.samplers.proximal import Deterministic as Deterministic
from proxflow.samplers.proximal import ProximalSampler as ProximalSampler
from proxflow.samplers.proximal import Stochastic as Stochastic
from proxflow.samplers.registry import SAMPLERS as SAMPLERS
from proxflow.samplers.registry import default_sampler as default_sampler
from proxflow.samplers.registry import sample as sample
from proxflow.samplers.rows import row_particles as row_particles
from proxflow.samplers.rows import weighs_rows as weighs_rows
