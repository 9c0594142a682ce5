"""Likelihoods of data under a flow, in nats: exact if they can be computed, else bounds."""

from proxflow.likelihood.bayesian import bayesian_bound
from proxflow.likelihood.channel import two_class_bound
from proxflow.likelihood.classes import class_bound, has_class_bound
from proxflow.likelihood.mixed import has_mixed_bound, mixed_bound
from proxflow.likelihood.nats import Nats
from proxflow.likelihood.ode import OdeLikelihood, encode, ode_log_likelihood

__all__ = [
    "Nats",
    "OdeLikelihood",
    "bayesian_bound",
    "class_bound",
    "encode",
    "has_class_bound",
    "has_mixed_bound",
    "mixed_bound",
    "ode_log_likelihood",
    "two_class_bound",
]
