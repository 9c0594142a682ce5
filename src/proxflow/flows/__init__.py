"""Flows: where beliefs start, how they move, and how networks are trained.

A flow defines three things: its **prior** over beliefs; the **training belief** at time t given data x; and the
**update** that moves a belief from time t to s with a predicted target. Barycentric flows (:class:`GPFN`) move by a
proximal step of any divergence, Bayesian flows (:class:`BFN`, :class:`DiscretisedBFN`, :class:`DiscreteBFN`) by Bayes'
rule, which is the proximal step of KL with the energy E(p; y) = E_{x~p}[−log S(y|x; α)].

A flow does not depend on a network: ``predict`` in its loss is any function ``(belief, t) -> belief``, an exact one
included.
"""

from proxflow.flows.barycentric import GPFN, CategoricalEndpoints, Endpoints, GaussianEndpoints, ProductEndpoints
from proxflow.flows.base import Flow, Latent, Means, as_real, draw_times
from proxflow.flows.bayesian import BFN, BayesianFlow, DiscreteBFN, DiscretisedBFN, Readout
from proxflow.flows.diffusion import Diffusion
from proxflow.flows.masked import Masked
from proxflow.flows.sources import Source

__all__ = [
    "BFN",
    "GPFN",
    "BayesianFlow",
    "CategoricalEndpoints",
    "Diffusion",
    "DiscreteBFN",
    "DiscretisedBFN",
    "Endpoints",
    "Flow",
    "GaussianEndpoints",
    "Latent",
    "Masked",
    "Means",
    "ProductEndpoints",
    "Readout",
    "Source",
    "as_real",
    "draw_times",
]
