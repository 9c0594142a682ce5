"""Names: what flows, networks and the like are called on the command line and in files. Imports no torch.

Each name is defined once, here: help, building, loading and the titles of reports use it. Another package adds names
through an entry point of the group ``proxflow.divergences``, ``proxflow.samplers``, ``proxflow.networks``,
``proxflow.kinds`` or ``proxflow.autoencoders``, whose value is ``module:Class``. Files only hold names, never import
paths.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any

from proxflow.errors import ArgumentError

OPEN = ("divergences", "samplers", "networks", "kinds", "autoencoders")
"""Groups to which other packages may add names, by entry points of the group ``proxflow.GROUP``."""

_BROKEN = (
    ImportError,
    AttributeError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
    NameError,
)
"""Errors that importing another package's module may raise."""


@dataclass(frozen=True)
class Name:
    """A name and its meaning.

    Args:
        target: ``module:Class``, in this package or from an entry point.
        line: Description in one line; empty for an entry point, whose class has one (:meth:`says`).
        settings: Fields of the class that the name sets to other values than their defaults: a preset. Parts are
            nested, ``{"kind": name, …}``, as in a model file.
        predictor: For a flow, the default predictor of its models, in the same form.
        package: The package that added it; empty for this one.
        chosen: Whether the settings were chosen by a search, and so may change between versions: files then record the
            settings instead of the name.
        refusal: Why it cannot be used, if two packages add it or it is no valid name; empty if it can.
    """

    target: str
    line: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    predictor: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    chosen: bool = False
    refusal: str = ""

    def load(self) -> type[Any]:
        """Import the class.

        Raises:
            ArgumentError: It is from another package and cannot be used or imported, or is not a class; the message
                names the package.
        """
        if self.refusal:
            raise ArgumentError(self.refusal)
        module, _, attribute = self.target.partition(":")
        if not self.package:
            built_in: type[Any] = getattr(import_module(module), attribute)
            return built_in
        try:
            found = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except _BROKEN as error:
            raise ArgumentError(
                f"{self.target}, which the package {self.package} adds, cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, type):
            raise ArgumentError(f"{self.target}, which the package {self.package} adds, is no class: {found!r:.80}")
        return found

    def says(self) -> str:
        """Return its description in one line: for an entry point its class's docstring, or why it cannot be imported."""
        if self.line or self.refusal or not self.package:
            return self.line or self.refusal
        try:
            text = inspect.getdoc(self.load()) or ""
        except ArgumentError as error:
            return str(error)
        return text.partition("\n")[0]


def _preset(name: str) -> dict[str, Any]:
    return {"divergence": {"kind": name}}


TUNED: dict[str, dict[str, Any]] = {
    "gpfn-w2": {"schedule": {"kind": "linear", "final": 0.7}},
    "bfn": {"sigma1": 0.7},
}
"""Settings tuned for MNIST by ``python -m tools.tuned``: the settings of ``gpfn-w2-tuned`` and ``bfn-tuned``."""

_SCHEDULES = {
    "linear": Name("proxflow.paths:Linear", "τ(t) = final · t"),
    "cosine": Name("proxflow.paths:Cosine", "τ(t) = sin²(πt/2): slow at both ends"),
    "quarter-cosine": Name(
        "proxflow.paths:QuarterCosine", "τ(t) = 1 − cos(πt/2): slow at first, as masked diffusion has it"
    ),
    "shifted": Name("proxflow.paths:Shifted", "linear with its log-odds shifted, as in large image models"),
}

_SMALL_TRANSFORMER = {"width": 384, "depth": 6, "heads": 6}
_BASE_TRANSFORMER = {"width": 768, "depth": 12, "heads": 12}

_DDPMPP = {
    "channels": 128,
    "multipliers": [2, 2, 2],
    "blocks": 4,
    "attention": [1],
    "dropout": 0.13,
    "resample": "block",
    "modulation": "shift",
    "attention_up": "last",
    "head": 256,
}
_ADM = {
    "channels": 192,
    "multipliers": [1, 2, 3, 4],
    "blocks": 3,
    "attention": [1, 2, 3],
    "dropout": 0.1,
    "resample": "block",
    "head": 64,
}
"""As in "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al., 2022), arXiv 2206.00364."""

BUILT_IN: dict[str, dict[str, Name]] = {
    "flows": {
        "gpfn": Name("proxflow.flows:GPFN", "General Proximal Flow Network: proximal steps of any divergence"),
        "gpfn-w2": Name("proxflow.flows:GPFN", "gpfn with Wasserstein-2: rectified flow", _preset("w2")),
        "gpfn-w2-tuned": Name(
            "proxflow.flows:GPFN",
            "gpfn-w2 with the schedule and weights of times that suit MNIST",
            {**_preset("w2"), **TUNED["gpfn-w2"]},
            chosen=True,
        ),
        "gpfn-kl": Name("proxflow.flows:GPFN", "gpfn with KL: precisions mix", _preset("kl")),
        "gpfn-reverse-kl": Name("proxflow.flows:GPFN", "gpfn with reverse KL: moments mix", _preset("reverse-kl")),
        "gpfn-fisher-rao": Name(
            "proxflow.flows:GPFN", "gpfn with Fisher–Rao: geodesics of the Fisher information", _preset("fisher-rao")
        ),
        "gpfn-linear": Name(
            "proxflow.flows:GPFN",
            "gpfn with reverse KL between classes: straight lines on the simplex",
            _preset("reverse-kl"),
        ),
        "bfn": Name(
            "proxflow.flows:BFN",
            "Bayesian Flow Network of real numbers, as its reference has it: it predicts noise",
            predictor={"kind": "point", "parameterisation": "epsilon", "clip_in_training": True},
        ),
        "bfn-tuned": Name(
            "proxflow.flows:BFN",
            "Bayesian Flow Network with a σ₁ suited to MNIST, which predicts data",
            TUNED["bfn"],
            chosen=True,
        ),
        "bfn-discretised": Name(
            "proxflow.flows:DiscretisedBFN", "Bayesian Flow Network of real numbers that come in equal bins"
        ),
        "bfn-discrete": Name("proxflow.flows:DiscreteBFN", "Bayesian Flow Network of classes"),
        "masked": Name("proxflow.flows:Masked", "masked diffusion of classes: each is hidden, then known; MD4"),
        "diffusion": Name("proxflow.flows:Diffusion", "diffusion on a Gaussian path, from noise to data"),
    },
    "divergences": {
        "w2": Name("proxflow.divergences:Wasserstein2", "Wasserstein-2: straight lines; rectified flow"),
        "kl": Name("proxflow.divergences:KL", "Kullback–Leibler, D(p ‖ ·): precisions mix"),
        "reverse-kl": Name("proxflow.divergences:ReverseKL", "reverse Kullback–Leibler, D(· ‖ p): moments mix"),
        "fisher-rao": Name("proxflow.divergences:FisherRao", "Fisher–Rao: geodesics of the Fisher information"),
        "jeffreys": Name("proxflow.divergences:Jeffreys", "Jeffreys: the sum of KL and its reverse"),
        "hellinger": Name("proxflow.divergences:HellingerSquared", "squared Hellinger distance"),
        "chi-squared": Name("proxflow.divergences:ChiSquared", "Pearson's χ²"),
        "reverse-chi-squared": Name("proxflow.divergences:ReverseChiSquared", "χ² with its arguments exchanged"),
        "alpha": Name("proxflow.divergences:Alpha", "Amari's α-divergences, between KL and its reverse"),
        "renyi": Name("proxflow.divergences:Renyi", "Rényi divergence of an order"),
        "mmd": Name("proxflow.divergences:MMD", "squared maximum mean discrepancy of a kernel"),
        "energy-distance": Name("proxflow.divergences:EnergyDistance", "energy distance"),
        "sinkhorn": Name("proxflow.divergences:SinkhornDivergence", "Sinkhorn divergence: transport with entropy ε"),
        "anisotropic-w2": Name(
            "proxflow.divergences:AnisotropicWasserstein2", "Wasserstein-2 under a ground metric, steps toward plain W2"
        ),
        "discrete-w2": Name("proxflow.divergences:DiscreteWasserstein2", "Wasserstein-2 of categories at given points"),
        "mixture-w2": Name("proxflow.divergences:MixtureWasserstein2", "Wasserstein-2 of Gaussian mixtures"),
        "per-part": Name("proxflow.divergences:PerPart", "a divergence for each part of mixed data"),
    },
    "metrics": {
        "coordinate": Name("proxflow.divergences:CoordinateMetric", "a weight for each coordinate"),
        "frequency": Name("proxflow.divergences:FrequencyMetric", "a weight for each spatial frequency of images"),
    },
    "schedules": _SCHEDULES,
    "paths": {
        "variance-preserving": Name("proxflow.paths:VariancePreserving", "a² + b² = 1, as diffusion models have it"),
        **_SCHEDULES,
    },
    "endpoints": {
        "gaussian": Name("proxflow.flows:GaussianEndpoints", "real numbers, from standard normal means"),
        "categorical": Name("proxflow.flows:CategoricalEndpoints", "classes, from uniformly drawn probabilities"),
        "product": Name("proxflow.flows:ProductEndpoints", "mixed data: endpoints for each group of columns"),
    },
    "couplings": {
        "ot": Name("proxflow.couplings:MinibatchOT", "prior draws and data that are near together within a batch"),
        "reflow": Name(
            "proxflow.couplings:Reflowed", "the pairs that a trained model makes, as the command reflow does"
        ),
    },
    "solvers": {
        "newton": Name("proxflow.solvers:NewtonSolver", "Newton's method"),
        "quasi-newton": Name("proxflow.solvers:QuasiNewtonSolver", "limited-memory BFGS"),
        "moment": Name("proxflow.solvers.renyi:MomentSolver", "the moments of Rényi steps of order below 1"),
    },
    "networks": {
        "unet": Name("proxflow.nn:UNet", "U-Net for images", {"blocks": 1, "patch": 2}),
        "unet-ddpmpp": Name("proxflow.nn:UNet", "U-Net of the size of DDPM++ for CIFAR-10, 55.7 M parameters", _DDPMPP),
        "unet-adm": Name("proxflow.nn:UNet", "U-Net of the size of ADM for ImageNet-64, 296 M parameters", _ADM),
        "dit": Name("proxflow.nn:DiT", "transformer of patches for images, of the sizes Ti, S, B, L and XL"),
        "mlp": Name("proxflow.nn:MLP", "multilayer perceptron for vectors and small events"),
        "transformer": Name("proxflow.nn:TokenTransformer", "transformer for rows of tokens"),
        "transformer-small": Name(
            "proxflow.nn:TokenTransformer", "transformer of 6 blocks, 384 wide", _SMALL_TRANSFORMER
        ),
        "transformer-base": Name(
            "proxflow.nn:TokenTransformer", "transformer of 12 blocks, 768 wide", _BASE_TRANSFORMER
        ),
    },
    "predictors": {
        "point": Name("proxflow.predictors:PointPredictor", "the data's mean given the belief"),
        "long-step": Name(
            "proxflow.predictors:LongStepPredictor", "where many small steps would lead, for few evaluations"
        ),
        "draw": Name("proxflow.predictors:DrawPredictor", "draws of what the data may be, for few evaluations"),
        "classes": Name("proxflow.predictors:ClassPredictor", "probabilities of classes"),
        "binned": Name("proxflow.predictors:BinnedPredictor", "probabilities of bins"),
        "product": Name("proxflow.predictors:ProductPredictor", "every part of mixed data at once"),
    },
    "samplers": {
        "deterministic": Name("proxflow.samplers:Deterministic", "proximal steps toward the prediction"),
        "stochastic": Name(
            "proxflow.samplers:Stochastic", "proximal steps toward noisy messages around the prediction"
        ),
        "marginal": Name("proxflow.samplers:Marginal", "fresh noise that keeps the distribution at each time; DDPM"),
        "renewed": Name("proxflow.samplers:Renewed", "all noise anew at each step, for posteriors; Flower"),
        "multistep2": Name("proxflow.samplers:Multistep", "second order from two predictions", {"order": 2}),
        "multistep3": Name("proxflow.samplers:Multistep", "third order from three predictions", {"order": 3}),
        "unipc": Name("proxflow.samplers:Multistep", "second order with a corrector", {"order": 2, "corrected": True}),
        "adams-bashforth2": Name(
            "proxflow.samplers:AdamsBashforth", "second order in the velocity, to the end; for 2 to 4 evaluations"
        ),
        "midpoint": Name("proxflow.samplers:Midpoint", "second order, two evaluations a step"),
        "bfn-solver1": Name("proxflow.samplers:BFNSolver", "BFN-Solver of first order", {"order": 1}),
        "bfn-solver2": Name("proxflow.samplers:BFNSolver", "BFN-Solver of second order", {"order": 2}),
        "sde-bfn-solver1": Name(
            "proxflow.samplers:BFNSolver", "BFN-Solver of first order with noise", {"order": 1, "kappa": 1.0}
        ),
        "sde-bfn-solver2": Name(
            "proxflow.samplers:BFNSolver", "BFN-Solver of second order with noise", {"order": 2, "kappa": 1.0}
        ),
    },
    "guidance": {
        "linear": Name(
            "proxflow.predictors:LinearGuidance",
            "the barycentre extrapolated in the flow's divergence: classifier-free",
        ),
        "zero-star": Name("proxflow.predictors:ZeroStar", "the unconditional velocity scaled to fit; CFG-Zero*"),
        "projected": Name("proxflow.predictors:Projected", "without what is parallel to the prediction; APG"),
    },
    "kinds": {
        "image": Name("proxflow.data.kinds.image:Image", "images: picture folders, IDX files, arrays"),
        "binary": Name(
            "proxflow.data.kinds.image:Binary", "images whose pixels are black or white: binarised MNIST; --kind binary"
        ),
        "latents": Name("proxflow.data.kinds.latents:Latents", "latents of pictures: what prepare --encoder made"),
        "table": Name("proxflow.data.kinds.table:Table", "tables: numbers, dates, categories and gaps; .csv, .parquet"),
        "vector": Name("proxflow.data.kinds.vector:Vector", "rows of real numbers: .npy, .npz, .csv"),
        "text": Name("proxflow.data.kinds.text:Text", "text: the embedded corpus, .txt, folders of them"),
    },
    "autoencoders": {
        "kl": Name("proxflow.data.autoencoders:KL", "an AutoencoderKL of diffusers, from a folder: kl:path=FOLDER"),
    },
}
"""The library's own names by group."""


@cache
def _scan(group: str) -> tuple[dict[str, Name], dict[str, str]]:
    """Return the names that other packages add to a group, and the packages that claim a name of the library."""
    from importlib.metadata import entry_points

    claims: dict[str, list[Name]] = {}
    for point in entry_points(group=f"proxflow.{group}"):
        added_by = point.dist.name if point.dist is not None else "an installed package"
        claim = Name(point.value, package=added_by)
        if claim not in (entries := claims.setdefault(point.name, [])):  # a package may be found twice
            entries.append(claim)
    found: dict[str, Name] = {}
    shadowed: dict[str, str] = {}
    for name, entries in claims.items():
        packages = " and ".join(sorted({entry.package for entry in entries}))
        if name in BUILT_IN[group]:
            shadowed[name] = packages
        elif re.search(r"[\s:,=(){}\[\]]", name):
            why = (
                f"the package {packages} adds {name!r} to the {group}, which no word can hold: rename it without blanks, "
                "brackets and : , ="
            )
            found[name] = Name("", package=packages, refusal=why)
        elif len(entries) > 1:
            why = f"{packages} both add {name!r} to the {group}, so it names neither: remove one of these packages"
            found[name] = Name("", package=packages, refusal=why)
        else:
            found[name] = entries[0]
    return found, shadowed


def added(group: str) -> dict[str, Name]:
    """Return the names that other packages add to a group, including those that cannot be used."""
    return _scan(group)[0] if group in OPEN else {}


def known(group: str) -> dict[str, Name]:
    """Return all names of a group, the library's own first, with a note if a package claims one of these."""
    own = dict(BUILT_IN[group])
    for name, package in _scan(group)[1].items() if group in OPEN else ():
        own[name] = replace(own[name], line=f"{own[name].line} (not that of the package {package}, which is not taken)")
    return {**own, **added(group)}


def find(group: str, name: str) -> Name:
    """Return the entry of a name.

    Raises:
        ArgumentError: There is none, with similar names and their origin in the message; or it cannot be used.
    """
    names = known(group)
    if name in names:
        if names[name].refusal:
            raise ArgumentError(names[name].refusal)
        return names[name]
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    origin = f"; a package adds one by an entry point of the group proxflow.{group}" if group in OPEN else ""
    raise ArgumentError(
        f"no {group.removesuffix('s')} is called {name!r:.80}: {hint} (proxflow list {group} shows all{origin})"
    )


def names_of(found: type[Any]) -> list[tuple[str, str, Name]]:
    """Return every (group, name, entry) of a class; empty for a class without a name."""
    own = [
        (group, name, entry)
        for group, names in BUILT_IN.items()
        for name, entry in names.items()
        if entry.target.endswith(f":{found.__qualname__}") and entry.load() is found
    ]
    return own or [(group, name, entry) for group in OPEN for name, entry in added(group).items() if _is(entry, found)]


def _is(entry: Name, found: type[Any]) -> bool:
    """Return whether an entry is of a class; ``False`` if it cannot be imported."""
    try:
        return entry.load() is found
    except ArgumentError:
        return False
