"""Divergences: what keeps a new belief near the old one."""

from proxflow.divergences.alpha import Alpha
from proxflow.divergences.anisotropic import AnisotropicWasserstein2
from proxflow.divergences.base import (
    Divergence,
    closed_form,
    has_closed_form,
    has_value,
    mixed_form,
    mixed_step,
    steps_compose,
    table_of_closed_forms,
    value,
)
from proxflow.divergences.bregman import Bregman, ReverseBregman
from proxflow.divergences.chi_squared import ChiSquared, ReverseChiSquared
from proxflow.divergences.discrete_wasserstein import DiscreteWasserstein2
from proxflow.divergences.energy_distance import EnergyDistance
from proxflow.divergences.extrapolation import extrapolate, extrapolated, has_extrapolation
from proxflow.divergences.fisher_rao import FisherRao
from proxflow.divergences.ground import CoordinateMetric, FrequencyMetric, GroundMetric
from proxflow.divergences.hellinger import HellingerSquared
from proxflow.divergences.jeffreys import Jeffreys
from proxflow.divergences.kl import KL, ReverseKL
from proxflow.divergences.mixture_wasserstein import MixtureWasserstein2
from proxflow.divergences.mmd import MMD
from proxflow.divergences.per_part import PerPart
from proxflow.divergences.renyi import Renyi
from proxflow.divergences.sinkhorn import SinkhornDivergence
from proxflow.divergences.wasserstein import Wasserstein2

__all__ = [
    "KL",
    "MMD",
    "Alpha",
    "AnisotropicWasserstein2",
    "Bregman",
    "ChiSquared",
    "CoordinateMetric",
    "DiscreteWasserstein2",
    "Divergence",
    "EnergyDistance",
    "FisherRao",
    "FrequencyMetric",
    "GroundMetric",
    "HellingerSquared",
    "Jeffreys",
    "MixtureWasserstein2",
    "PerPart",
    "Renyi",
    "ReverseBregman",
    "ReverseChiSquared",
    "ReverseKL",
    "SinkhornDivergence",
    "Wasserstein2",
    "closed_form",
    "extrapolate",
    "extrapolated",
    "has_closed_form",
    "has_extrapolation",
    "has_value",
    "mixed_form",
    "mixed_step",
    "steps_compose",
    "table_of_closed_forms",
    "value",
]
