"""Proximal flow networks: generative models that improve a belief step by step, with any divergence.

Names are loaded when first used, so that ``import proxflow`` and ``proxflow --help`` start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxflow import data, metrics, nn
    from proxflow.beliefs import Belief, Binned, Categorical, DiagonalGaussian, FullGaussian, GaussianMixture, Product
    from proxflow.config import TrainingConfig
    from proxflow.couplings import Coupling, MinibatchOT, Reflowed
    from proxflow.data.kinds import Defaults, Kind, Loaded
    from proxflow.divergences import (
        KL,
        MMD,
        Alpha,
        AnisotropicWasserstein2,
        Bregman,
        ChiSquared,
        CoordinateMetric,
        DiscreteWasserstein2,
        Divergence,
        EnergyDistance,
        FisherRao,
        FrequencyMetric,
        HellingerSquared,
        Jeffreys,
        MixtureWasserstein2,
        PerPart,
        Renyi,
        ReverseBregman,
        ReverseChiSquared,
        ReverseKL,
        SinkhornDivergence,
        Wasserstein2,
        closed_form,
        extrapolate,
        value,
    )
    from proxflow.energies import Energy, Potential, TargetEnergy
    from proxflow.errors import ArgumentError, DataError, ProxflowError
    from proxflow.examples import Examples, given
    from proxflow.flows import (
        BFN,
        GPFN,
        CategoricalEndpoints,
        Diffusion,
        DiscreteBFN,
        DiscretisedBFN,
        Flow,
        GaussianEndpoints,
        ProductEndpoints,
        Readout,
    )
    from proxflow.likelihood import Nats, OdeLikelihood, bayesian_bound, ode_log_likelihood, two_class_bound
    from proxflow.models import Model, build, load
    from proxflow.paths import Cosine, Linear, Shifted, VariancePreserving
    from proxflow.predictors import (
        BinnedPredictor,
        ClassPredictor,
        DrawPredictor,
        GuidanceRule,
        Guided,
        LinearGuidance,
        LongStepPredictor,
        PointPredictor,
        Predictor,
        ProductPredictor,
        Projected,
        ZeroStar,
    )
    from proxflow.predictors.exact import ExactClasses, ExactDraw, ExactMean
    from proxflow.proximal import Proximal
    from proxflow.samplers import (
        BFNSolver,
        Deterministic,
        Marginal,
        Midpoint,
        Multistep,
        PathSampler,
        Sampler,
        Stochastic,
        sample,
    )
    from proxflow.samplers.optimise_times import OptimisedTimes, optimise_times
    from proxflow.solvers import NewtonSolver, QuasiNewtonSolver
    from proxflow.training.conditions import ConditionDropout
    from proxflow.training.fit import fit
    from proxflow.training.objectives import (
        Autoguidance,
        DistributionMatching,
        EnergyScore,
        LongStep,
        Objective,
        StudentAndCritic,
    )
    from proxflow.training.reflow import make_pairs, reflow, straightness

__version__ = "0.1.0"

_HOMES = {
    "beliefs": ["Belief", "Binned", "Categorical", "DiagonalGaussian", "FullGaussian", "GaussianMixture", "Product"],
    "config": ["TrainingConfig"],
    "couplings": ["Coupling", "MinibatchOT", "Reflowed"],
    "data.kinds": ["Defaults", "Kind", "Loaded"],
    "divergences": [
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
        "value",
    ],
    "energies": ["Energy", "Potential", "TargetEnergy"],
    "errors": ["ArgumentError", "DataError", "ProxflowError"],
    "examples": ["Examples", "given"],
    "predictors.exact": ["ExactClasses", "ExactDraw", "ExactMean"],
    "flows": [
        "BFN",
        "GPFN",
        "CategoricalEndpoints",
        "Diffusion",
        "DiscreteBFN",
        "DiscretisedBFN",
        "Flow",
        "GaussianEndpoints",
        "ProductEndpoints",
        "Readout",
    ],
    "samplers.optimise_times": ["OptimisedTimes", "optimise_times"],
    "likelihood": ["Nats", "OdeLikelihood", "bayesian_bound", "ode_log_likelihood", "two_class_bound"],
    "models": ["Model", "build", "load"],
    "training.objectives": [
        "Autoguidance",
        "DistributionMatching",
        "EnergyScore",
        "LongStep",
        "Objective",
        "StudentAndCritic",
    ],
    "predictors": [
        "BinnedPredictor",
        "ClassPredictor",
        "DrawPredictor",
        "GuidanceRule",
        "Guided",
        "LinearGuidance",
        "LongStepPredictor",
        "PointPredictor",
        "Predictor",
        "ProductPredictor",
        "Projected",
        "ZeroStar",
    ],
    "proximal": ["Proximal"],
    "samplers": [
        "BFNSolver",
        "Deterministic",
        "Marginal",
        "Midpoint",
        "Multistep",
        "PathSampler",
        "Sampler",
        "Stochastic",
        "sample",
    ],
    "paths": ["Cosine", "Linear", "Shifted", "VariancePreserving"],
    "solvers": ["NewtonSolver", "QuasiNewtonSolver"],
    "training.conditions": ["ConditionDropout"],
    "training.fit": ["fit"],
    "training.reflow": ["make_pairs", "reflow", "straightness"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(["__version__", "data", "metrics", "nn", *_HOME])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"proxflow.{_HOME[name]}"), name)
    if name in ("data", "metrics", "nn"):
        return import_module(f"proxflow.{name}")
    raise AttributeError(f"module 'proxflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
