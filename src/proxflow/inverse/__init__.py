"""Inverse problems: operators from events to observations, noise models, and the proximal map of both.

An operator A is called with events (batch, *event) and returns observations (batch, *observed). It has its ``adjoint``, a
``pseudo_inverse``, and ``prox``: the minimiser of ‖A z − y‖²/(2 σ²) + ‖z − x‖²/(2 r²), in closed form where the spectrum of
A Aᵀ is known, else by conjugate gradients.
"""

from proxflow.inverse.functions import Composition as Composition
from proxflow.inverse.functions import Functions as Functions
from proxflow.inverse.functions import Nonlinear as Nonlinear
from proxflow.inverse.functions import dense as dense
from proxflow.inverse.functions import operator_of as operator_of
from proxflow.inverse.noise import Gaussian as Gaussian
from proxflow.inverse.noise import Noise as Noise
from proxflow.inverse.noise import Poisson as Poisson
from proxflow.inverse.operators import Blur as Blur
from proxflow.inverse.operators import Diagonalised as Diagonalised
from proxflow.inverse.operators import Downsample as Downsample
from proxflow.inverse.operators import FourierMask as FourierMask
from proxflow.inverse.operators import Mask as Mask
from proxflow.inverse.operators import Matrix as Matrix
from proxflow.inverse.operators import Operator as Operator
