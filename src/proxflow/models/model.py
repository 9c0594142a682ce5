"""Models: a flow, its trained predictor and the kind of its data, in memory and as a folder.

A folder holds ``config.json``, which describes flow, network, predictor and kind of data by name
(:mod:`proxflow.models.spec`), and ``model.safetensors``, the weights.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from proxflow import names
from proxflow.config import TrainingConfig, to_dict
from proxflow.data.augment import Augmentation
from proxflow.data.images import dequantise
from proxflow.divergences import KL, Divergence, has_closed_form, has_value
from proxflow.errors import ArgumentError, CheckpointError, OutputError
from proxflow.examples import LazyExamples, check_condition, examples_of, moved, rows
from proxflow.flows import GPFN, BayesianFlow, Flow
from proxflow.likelihood import (
    Nats,
    OdeLikelihood,
    bayesian_bound,
    class_bound,
    has_class_bound,
    has_mixed_bound,
    mixed_bound,
    ode_log_likelihood,
)
from proxflow.models import format1, spec
from proxflow.models.card import card
from proxflow.models.outline import outlined
from proxflow.models.spec import Part
from proxflow.nn import UNet
from proxflow.predictors import GuidanceRule, Guided, LinearGuidance, Predictor, ToldGuidance, reads_guidance
from proxflow.random import SampleStreams
from proxflow.runtime.checkpoints import load_weights, refuse_other_weights, write_tensors
from proxflow.runtime.files import open_plain, read_json, writable_folder, write_json, write_text
from proxflow.runtime.machine import usable_device
from proxflow.samplers import Sampler, default_sampler, sample

if TYPE_CHECKING:
    from proxflow.data.kinds import Kind
    from proxflow.examples import Condition

FORMAT = 2
SHIPPED = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Model:
    """A predictor with its flow and the kind of its data.

    Args:
        flow: The flow: where beliefs start and how they move.
        network: Specification of the predictor's network.
        predictor: The network with its parameterisation.
        data: Kind of the data: their shape, and how they are read, encoded and written.
        provenance: Origin of the weights, as saved with them.
        times: Times of evaluations optimised for these weights, by sampler and number of evaluations; see
            :func:`proxflow.optimise_times`.
    """

    flow: Flow[Any]
    network: Part
    predictor: Predictor
    data: Kind
    provenance: dict[str, Any] = field(default_factory=dict)
    times: Mapping[str, Mapping[int, Sequence[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.of_one_evaluation:  # a posterior, which refines means, only gets the predictor
            self.predictor.predicts_mean = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an event, as networks read it."""
        return self.data.shape

    @property
    def spec(self) -> dict[str, Any]:
        """Its specification as JSON values: flow, network, predictor and data.

        Raises:
            ArgumentError: A part of it has no name and cannot be saved.
        """
        parts = {"flow": self.flow, "network": self.network, "predictor": self.predictor, "data": self.data}
        return {name: spec.describe(part) for name, part in parts.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it can draw, in the order of their labels; empty for none."""
        read = getattr(getattr(self.predictor.network, "conditions", None), "classes", 0)
        return (class_names(self.data) or tuple(map(str, range(read)))) if read else ()

    def times_of(self, sampler: str | Sampler | None, nfe: int) -> Sequence[float] | None:
        """Return its optimised times for a sampler and number of evaluations; ``None`` if there are none.

        Args:
            sampler: A sampler or its name; ``None`` for that of :func:`proxflow.samplers.default_sampler`.
            nfe: Network evaluations per sample.
        """
        if sampler is None:
            sampler = default_sampler(self.predictor, self.flow)
        if not isinstance(sampler, str):
            sampler = next((name for name in self.times if spec.parse("samplers", name) == sampler), "")
        return self.times.get(sampler, {}).get(nfe)

    def times_used(self, sampler: str | Sampler | None, nfe: int) -> Sequence[float]:
        """Return the times of the predictions that :meth:`sample` makes, see :meth:`times_of`."""
        own = self.times_of(sampler, nfe)
        if own is not None:
            return own
        chosen = default_sampler(self.predictor, self.flow) if sampler is None else sampler
        made: Sampler = spec.parse("samplers", chosen) if isinstance(chosen, str) else chosen
        return made.times(self.flow, nfe)

    def sample(
        self,
        number: int,
        *,
        nfe: int | None = None,
        sampler: Sampler | str | None = None,
        seed: int = 0,
        condition: Condition | None = None,
        start: Tensor | None = None,
        times: Sequence[float] | None = None,
        decode: bool = True,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        rule: GuidanceRule | str = "linear",
        weak: Model | None = None,
        **settings: Any,
    ) -> Tensor:
        """Draw samples; each depends only on the seed, its index and its own condition and start.

        Args:
            number: Number of samples.
            nfe: Predictions per sample. Each is one network evaluation, or two with guidance, unless the network reads
                guidance as an input; ``None`` takes 20, or 1 for a one-step student.
            sampler: A sampler, or a string for one, as ``multistep2``; ``None`` takes the default for the predictor.
            seed: Seed of the samples.
            condition: Condition of the predictions, one row per sample, for conditional networks.
            start: Prior draws to start from, (number, *shape); ``None`` draws them.
            times: Times of the evaluations, increasing from 0; ``None`` takes the model's optimised ones for this
                sampler and number of evaluations, or else the sampler's.
            decode: Whether samples have the data's own form and units, as uint8 for images, or the encoded form of
                networks.
            guidance: Guidance weight; 1 is no guidance. See :meth:`guided`, also for the next three.
            interval: First and last time of guidance.
            rule: Guidance rule.
            weak: A weaker model to lead away from.
            **settings: Keyword arguments of :func:`proxflow.sample`, as ``batch_size``.

        Raises:
            ArgumentError: As :func:`proxflow.sample`; an unknown sampler; as :meth:`guided`; guidance without a condition or
                a weak model.
        """
        nfe = self.usual_nfe if nfe is None else nfe
        predictor = self.guided(guidance, interval, rule, weak)
        if predictor is not self.predictor and condition is None and weak is None:
            raise ArgumentError(
                "guidance leads toward a condition: give condition=, or weak=, a model to lead away from"
            )
        chosen = default_sampler(self.predictor, self.flow) if sampler is None else sampler
        times = self.times_of(chosen, nfe) if times is None else times
        chosen = spec.parse("samplers", chosen) if isinstance(chosen, str) else chosen
        shape = (number, *self.shape)
        samples = sample(
            predictor, self.flow, shape, nfe=nfe, sampler=chosen, seed=seed, condition=condition, start=start,
            times=times, **settings,
        )  # fmt: skip
        if not decode:
            return samples
        stored = self.data.decode(samples)
        return (
            self.data.labelled(stored, condition) if isinstance(condition, Tensor) and condition.ndim == 1 else stored
        )

    def _repr_html_(self) -> str:
        from proxflow.models.card import as_html

        return as_html(self)

    @property
    def of_one_evaluation(self) -> bool:
        """Whether it is a one-step student, which draws worse with more evaluations."""
        return self.provenance.get("method") == "distribution-matching"

    @property
    def usual_nfe(self) -> int:
        """Default number of predictions per sample."""
        return 1 if self.of_one_evaluation else 20

    def guided(
        self,
        weight: float,
        interval: tuple[float, float] = (0.0, 1.0),
        rule: GuidanceRule | str = "linear",
        weak: Model | None = None,
    ) -> nn.Module:
        """Return its predictor with guidance (:class:`proxflow.Guided`), or the predictor itself at weight 1.

        A network that reads guidance gets weight and interval as inputs instead, and takes one evaluation.

        Args:
            weight: Guidance weight: 1 is no guidance; 2 extrapolates by the full difference to the unconditional
                prediction, or to that of the weak model.
            interval: Times (first, last) of guidance.
            rule: A rule, or a string for one, as ``projected:eta=0.5``.
            weak: A weaker model of the same flow and shape to lead away from.

        Raises:
            ArgumentError: As :class:`proxflow.Guided`; an unknown rule; a weak model of another flow or shape; for a
                network that reads guidance, settings that it was not trained for.
        """
        chosen = spec.parse("guidance", rule) if isinstance(rule, str) else rule
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise ArgumentError(
                f"the weight of guidance must be one number for all samples, got {type(weight).__name__}"
            )
        if weak is not None and not isinstance(weak, Model):
            raise ArgumentError(f"weak is a model, as proxflow.load returns it, got {type(weak).__name__}")
        if weak is not None and weak.classes and self.classes and weak.classes != self.classes:
            raise ArgumentError(
                f"the model to lead away from has the classes {', '.join(weak.classes):.80}, this one "
                f"{', '.join(self.classes):.80}: take one of the same data"
            )
        if weak is not None and (weak.flow != self.flow or weak.shape != self.shape):
            raise ArgumentError(
                f"the model to lead away from must be of this model's flow and shape, {spec.word(self.flow)} of "
                f"{self.shape}, got {spec.word(weak.flow)} of {weak.shape}"
            )
        if weight == 1:
            return self.predictor
        if weak is None and self.provenance.get("drop") == 0:
            raise ArgumentError(
                "this model never lost its condition in training (drop 0), so it knows no prediction without one to be led "
                "away from: train with --drop 0.1, or give weak, a worse model"
            )
        if self.of_one_evaluation and isinstance(self.provenance.get("guidance"), int | float):
            raise ArgumentError(
                f"this student has learnt guidance of weight {self.provenance['guidance']:g} and no other: leave guidance "
                "out"
            )
        if weak is None and reads_guidance(self.predictor):
            if not isinstance(chosen, LinearGuidance):
                raise ArgumentError(
                    f"this network was taught guidance by the rule linear, and {spec.word(chosen)} is asked for: take linear"
                )
            return ToldGuidance(self.predictor, weight, interval)
        return Guided(self.predictor, weight, interval, chosen, None if weak is None else weak.predictor)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> OdeLikelihood:
        """Return log p(x) of data in their own form and units, by :func:`proxflow.ode_log_likelihood`.

        Args:
            x: Data (batch, …) as for :meth:`fit`. Bytes are dequantised: the expectation is a lower bound on their log
                probability.
            condition: Their condition, one row per example.
            generator: Random generator of dequantisation noise and probes.
            **settings: Keyword arguments of :func:`proxflow.ode_log_likelihood`, as ``steps`` and ``probes``.

        Raises:
            ArgumentError: The flow has no Gaussian path; bytes without a generator; as :func:`proxflow.ode_log_likelihood`.
        """
        pixels = x.dtype == torch.uint8 and self.flow.path is not None  # tokens are bytes, too
        if pixels and generator is None:
            raise ArgumentError("bytes are dequantised with noise: give a generator")
        encoded = dequantise(x, generator) if pixels and generator else self.data.encode(x)
        found = ode_log_likelihood(
            self.predictor, self.flow, encoded, condition=condition, generator=generator, **settings
        )
        return replace(found, log_prob=found.log_prob - self.data.log_scale)

    @property
    def has_bound(self) -> bool:
        """Whether :meth:`bound` supports its flow and data."""
        return self._bounded is not None

    @property
    def _bounded(self) -> Callable[..., Tensor] | None:
        from proxflow.data.kinds.image import Image

        if has_class_bound(self.flow):
            return class_bound
        if has_mixed_bound(self.flow):
            return mixed_bound
        return bayesian_bound if isinstance(self.flow, BayesianFlow) and isinstance(self.data, Image) else None

    def bound(
        self,
        x: Tensor,
        *,
        condition: Condition | None = None,
        draws: int = 16,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Nats:
        """Estimate an upper bound on −log p(x) of data in their own form, in nats; examples do not affect each other.

        It is :func:`proxflow.class_bound` for classes; :func:`proxflow.bayesian_bound` for images with a Bayesian flow,
        where p(x) is the probability of their bytes; and :func:`proxflow.mixed_bound` for rows of tables, where numbers
        have a density, in units of their standard deviations (or of the normal quantiles that the network reads).

        Args:
            x: Data (batch, …) as for :meth:`fit`, at least two.
            condition: Their condition, one row per example.
            draws: Random times per example, each one evaluation.
            seed: Seed of times and noise.
            batch_size: Examples at a time.

        Raises:
            ArgumentError: The flow has no such bound (see :meth:`log_prob` for Gaussian paths), fewer than two examples, or
                a number < 1.
        """
        bounded = self._bounded
        if bounded is None:
            raise ArgumentError(
                f"{spec.word(self.flow)} has no bound of the probability of {self.data.examples_word}; log_prob has the "
                "density of flows with a Gaussian path"
            )
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) < 2:
            got = f"{len(x)}" if isinstance(x, Tensor) and x.ndim else f"{type(x).__name__}"
            raise ArgumentError(f"bound takes a tensor of at least 2 {self.data.examples_word}, got {got}")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ArgumentError(
                f"these {self.data.examples_word} have numbers that are infinite or NaN; a table's missing cells are stored "
                "otherwise: see rows(FILE) and stored(VALUES) of model.data"
            )
        check_condition(self.predictor, condition, len(x))
        device, values = next(self.predictor.parameters()).device, list[Tensor]()
        with torch.no_grad():
            for first in range(0, len(x), batch_size):
                at = torch.arange(first, min(first + batch_size, len(x)))
                streams = SampleStreams(seed, at.to(device))
                told = None if condition is None else moved(rows(condition, at), device)
                encoded = self.data.encode(x[at].to(device))
                values.append(bounded(self.predictor, self.flow, encoded, streams, draws=draws, condition=told))
        return Nats(torch.cat(values).cpu(), math.prod(self.shape))

    def fit(
        self,
        data: Any,
        config: TrainingConfig | None = None,
        *,
        drop: float | None = None,
        **settings: Any,
    ) -> Model:
        """Train with the default loss of flow and predictor, and return the model with averaged weights (EMA).

        This model's predictor is trained in place and has the last weights, not averaged.

        Args:
            data: Examples in the data's own form, as uint8 images, alone or with conditions
                (:class:`proxflow.Examples`), or anything that :func:`proxflow.fit` takes: arrays, data sets, loaders.
            config: Training settings; ``None`` makes them from ``settings``, as ``steps=1000``.
            drop: Fraction of the examples whose condition is withheld in training, so that the model can draw without
                one and be guided; ``None`` takes 0.1 for the library's networks, and 0 for those without a null
                condition.
            **settings: Keyword arguments of :func:`proxflow.fit`, as ``device`` and ``folder``. The trained model is
                saved in the folder too, for :func:`load`, unless a part of it has no name and cannot be saved.

        Raises:
            ArgumentError: As :func:`proxflow.fit`; both ``config`` and settings of one; data without conditions for a
                conditional network.
            OutputError: The folder cannot be written.
        """
        from proxflow.training.conditions import with_dropout  # upward imports, for convenience
        from proxflow.training.fit import fit
        from proxflow.training.recipes import recipe
        from proxflow.training.run import RunFolder

        data = examples_of(data, "training")
        known = inspect.signature(TrainingConfig).parameters
        own = {name: settings.pop(name) for name in known if name in settings}
        if config is not None and own:
            raise ArgumentError(f"{', '.join(own)} belongs to the configuration, and one is given: set it there")
        config = config or TrainingConfig(**own)
        if self.data.augment:
            config = replace(config, augment=f"{config.augment},{self.data.augment}")
        found = Augmentation.of(config.augment).shape(self.data.encode(data.some(1)).shape[1:])
        if found != self.shape:
            last = "; bring the channels first" if (found[-1], *found[:-1]) == self.shape else ""
            raise ArgumentError(
                f"this model's {self.data.examples_word} have the shape {self.shape}, these {tuple(found)}{last}"
            )
        first = data.take(torch.arange(1))[0] if isinstance(data, LazyExamples) else data
        if getattr(self.predictor.network, "conditional", False) and first.condition is None:
            raise ArgumentError(
                "this model's network is conditional, and the data have no condition: give proxflow.Examples(x, condition), "
                "or pairs (x, label), or build a model without classes"
            )
        objective = with_dropout(recipe("flow", self).objective, self.predictor, drop)
        result = fit(self.predictor, objective, data, config, encode=self.data.encode, **settings)
        told = {"data": f"{len(data)} {self.data.examples_word}", "steps": config.steps, "training": to_dict(config)}
        trained = replace(self, predictor=cast(Predictor, result.predictor), provenance=told, times={})
        if settings.get("folder") is not None:
            with suppress(ArgumentError):  # a part without a name
                RunFolder(Path(settings["folder"])).save(trained, trained.predictor, told)
        return trained

    def save_pretrained(self, save_directory: str | Path, *, results: Sequence[dict[str, Any]] = ()) -> None:
        """Save weights, configuration and a model card (README.md) in a folder.

        Args:
            save_directory: The folder; :meth:`from_pretrained` and :func:`load` read it.
            results: Records of ``proxflow evaluate --out``, its ``cells``, for the card.

        Raises:
            OutputError: It cannot be written.
        """
        folder = Path(save_directory)
        save(folder, self)
        write_text(folder / "README.md", card(self, results))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device: torch.device | str = "cpu",
    ) -> Model:
        """Load a model from a folder, offline, or from the Hugging Face Hub; never from a pickle.

        Args:
            pretrained_model_name_or_path: A folder, the name of a shipped model, or ``owner/name`` on the Hub.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Where downloads are kept.
            token: Access token for private models.
            local_files_only: Whether to use only earlier downloads.
            device: Device of the model.

        Raises:
            ArgumentError: It is on the Hub, and huggingface_hub is not installed.
            CheckpointError: There is no such model, or its files are corrupt or inconsistent.
        """
        source = str(pretrained_model_name_or_path)
        if source in shipped_models() or Path(source).is_dir() or source.count("/") != 1:
            return load(source, device)
        hub = _hub()
        try:
            folder = hub.snapshot_download(
                source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only,
                allow_patterns=_FILES,
            )  # fmt: skip
        except (OSError, ValueError, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
            raise CheckpointError(
                f"no model {source!r}: neither a folder nor to be had from the Hub ({error})"
            ) from error
        return load(folder, device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a proxflow model",
        results: Sequence[dict[str, Any]] = (),
    ) -> str:
        """Upload weights, configuration and model card to the Hugging Face Hub, and return the URL of the commit.

        Raises:
            ArgumentError: huggingface_hub is not installed.
            OutputError: The Hub refuses it, or cannot be reached.
        """
        hub = _hub()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, results=results)
            try:
                api = hub.HfApi(token=token)
                made = api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=made.repo_id, folder_path=folder, commit_message=commit_message, allow_patterns=_FILES
                )
            except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
                raise OutputError(f"cannot upload to {repo_id!r}: {error}") from error
        return str(commit)


def build(
    data: Any,
    *,
    flow: Flow[Any] | str | None = None,
    network: Part | str | None = None,
    predictor: Part | str | None = None,
    seed: int | None = None,
) -> Model:
    """Build an untrained model.

    Args:
        data: Kind of the data; or examples, as for :func:`proxflow.fit`; or the shape of one: (channels, height, width)
            for images with values in [-1, 1] when encoded, (columns,) for rows of numbers with mean 0 and variance 1.
        flow: A flow, or a string for one, as ``gpfn-w2`` or ``bfn:sigma1=0.3``; ``None`` takes the default for the
            data.
        network: A network, as ``unet:channels=64``, likewise.
        predictor: A predictor, as ``point:parameterisation=v``; ``None`` takes the one for the flow's name or beliefs,
            or else the default for the data.
        seed: Seed of the initial weights; ``None`` draws them from torch's global generator.

    Raises:
        ArgumentError: An unknown name or setting, a value out of range, or parts that do not fit together.
    """
    kind = _kind(data)
    usual = kind.defaults
    described = {} if isinstance(flow, Flow) else flow_content(usual.flow if flow is None else flow, kind.decides)
    made: Flow[Any] = flow if isinstance(flow, Flow) else spec.make("flows", described)
    belonging = dict(names.find("flows", described["kind"]).predictor) if described else {}
    told = belonging or {"kind": _needed(made)} if predictor is None else spec.content("predictors", predictor)
    if told["kind"] is None:
        told = spec.content("predictors", usual.predictor)
    if usual.predictor == "classes" and _needed(made) is None:
        raise ArgumentError(
            f"{kind.examples_word} are of classes, and {described.get('kind') or made} is a flow of real numbers: take "
            f"{_OF_CLASSES}"
        )
    if usual.predictor in ("classes", "product") and isinstance(getattr(made, "divergence", None), KL):
        raise ArgumentError(
            f"toward a certain class, which {kind.examples_word} may have, a step of KL ends there at once, whatever its "
            f"length: take {_flows_for(kind.decides)}"
        )
    if described and usual.predictor != "point" and kind.decides and not set(kind.decides) & set(described):
        raise ArgumentError(
            f"{described['kind']} is a flow of values of one sort, and these {kind.examples_word} have several: take "
            f"{_flows_for(kind.decides)}"
        )
    for name in ("clip", "parameterisation"):  # defaults of the kind of data
        if name in spec.fields("predictors", told["kind"]):
            told.setdefault(name, getattr(usual, name))
    if told.get("clip") is None:
        told.pop("clip_in_training", None)  # for the reference's images; data without a range have none
    parts = (spec.make("networks", spec.content("networks", network or usual.network)), spec.make("predictors", told))
    if seed is None:
        return _assembled(kind, made, *parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _assembled(kind, made, *parts)


def _kind(data: Any) -> Kind:
    """Return a given kind of data, or that of given examples or the shape of one."""
    from proxflow.data.kinds import Kind
    from proxflow.data.kinds.vector import Vector

    if isinstance(data, Kind):
        return data
    if isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(size, int) for size in data):
        shape = list(data)
    else:
        try:
            found_examples = examples_of(data, "training")
            shape = list(found_examples.some(1).shape[1:])
        except ArgumentError as error:
            raise ArgumentError(f"expected a kind of data, the shape of an example, or examples: {error}") from None
        if len(shape) == 1:
            return Vector.of(found_examples.x)
    found: dict[str, Any] = {"kind": "image", "shape": shape}
    if len(shape) == 1:
        found = {"kind": "vector", "shape": shape, "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    elif len(shape) != 3:
        raise ArgumentError(
            f"expected the shape of an image, (channels, height, width), or of a row, (columns,), got {tuple(shape)}: for "
            "others give the kind of the data"
        )
    made: Kind = spec.make("kinds", found)
    return made


def flow_content(word: str, decided: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flow's string as JSON values, with the settings that data decide (:attr:`proxflow.Kind.decides`).

    Settings in the string, or fixed by a preset, take precedence.

    Raises:
        ArgumentError: As :func:`proxflow.models.spec.content`; or the flow needs settings that these data do not
            decide.
    """
    found = spec.content("flows", word)
    known = spec.fields("flows", found["kind"])
    fitting = {name: value for name, value in decided.items() if name in known}
    made = {**fitting, **names.find("flows", found["kind"]).settings, **found}
    for name, what in _DECIDED.items():
        if name in known and known[name].default is inspect.Parameter.empty and name not in made:
            raise ArgumentError(
                f"the flow {found['kind']} is for {what}, and these are none: take {_flows_for(decided)}"
            )
    return made


_OF_CLASSES, _OF_NUMBERS = "masked, bfn-discrete, gpfn-linear or gpfn-fisher-rao", "gpfn-w2, bfn or diffusion"
_DECIDED = {"classes": "data of classes, as text or binary images", "bins": "images, whose values lie in bins"}
"""Data that decide a required setting of flows."""


def _flows_for(decided: Mapping[str, Any]) -> str:
    """Name flows of data that decide these settings: of tokens, of tables, or of real numbers."""
    if "classes" in decided:
        return _OF_CLASSES
    return "gpfn, gpfn-linear or gpfn-fisher-rao" if "endpoints" in decided else _OF_NUMBERS


def class_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the classes that data have, in the order of their labels; empty for none."""
    return tuple(getattr(kind, "classes", ()))


def _needed(flow: Flow[Any]) -> str | None:
    """Return the predictor that a flow's beliefs require; ``None`` for real data, which have several."""
    ends = getattr(flow, "endpoints", flow)
    asked = {"parts": "product", "classes": "classes", "bins": "binned"}
    return next((predictor for attribute, predictor in asked.items() if hasattr(ends, attribute)), None)


def _check_steps(flow: Flow[Any], data: Kind) -> None:
    """Refuse a flow whose proximal steps cannot be computed.

    Raises:
        ArgumentError: Its divergence is not defined on them, or has no closed-form step, and no solver is given.
    """
    if not isinstance(flow, GPFN) or flow.energy is not None:
        return
    divergence, cpu = flow.divergence, torch.device("cpu")
    prior = flow.prior((1, *data.shape), torch.Generator(cpu), torch.float32, cpu)
    if type(divergence).interpolate is not Divergence.interpolate or has_closed_form(divergence, prior):
        return
    called = next((name for group, name, _ in names.names_of(type(divergence)) if group == "divergences"), divergence)
    family = type(prior).__name__
    if not has_value(divergence, prior):
        raise ArgumentError(
            f"the divergence {called} is not defined between beliefs of {family}: such data take the "
            f"flows {_flows_for(data.decides)}"
        )
    if flow.solver is None:
        raise ArgumentError(
            f"the divergence {called} has no closed-form step between beliefs of {family}: give the flow a numerical "
            "solver, in words gpfn:solver=newton; a step then takes many times as long"
        )


def _assembled(data: Kind, flow: Flow[Any], network: Part, predictor: Part) -> Model:
    """Build an untrained model from its parts.

    Raises:
        ArgumentError: They do not fit together.
    """
    from proxflow.data.kinds.base import MOST_NUMBERS

    if not 0 < math.prod(data.shape) < MOST_NUMBERS:
        raise ArgumentError(
            f"data: events of shape {data.shape} are larger than any use, {MOST_NUMBERS} numbers or more"
        )
    _check_steps(flow, data)
    named, read = class_names(data), network.settings.get("classes", 0)
    if named and read and len(named) != read:
        raise ArgumentError(
            f"the data have {len(named)} classes and the network is built for {read}: give both the same"
        )
    needed, taken = _needed(flow), predictor.kind
    if taken != needed and (needed is not None or taken in ("product", "classes", "binned")):
        raise ArgumentError(f"the predictor {taken} does not fit {flow}: take {needed or 'point'}")
    inputs, outputs = _sizes(taken, flow, data.shape)
    told: dict[str, Any] = {} if outputs == inputs[0] else {"outputs": outputs}
    if taken == "long-step":
        told["reads_end"] = True
    made = spec.class_of("networks", network.kind)
    takes = inspect.signature(made).parameters
    for name in told:
        if name not in takes:
            raise ArgumentError(
                f"the predictor {taken} needs a network that is built with {name}=, which {network.kind} does not take"
            )
    module: nn.Module = made(inputs, **network.settings, **told)
    # Long steps may need forward derivatives of group normalisation, which only exist for the other memory format.
    if isinstance(module, UNet) and taken != "long-step":
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = spec.class_of("predictors", taken)
    given = (module, flow) if "flow" in inspect.signature(head).parameters else (module,)
    return Model(flow, network, head(*given, **predictor.settings), data)


def _sizes(predictor: str, flow: Flow[Any], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the shape of the input of a predictor's network, and the first dimension of its output."""
    first, *rest = shape
    ends: Any = getattr(flow, "endpoints", flow)
    if predictor == "draw":
        return (2 * first, *rest), first
    if predictor == "binned":
        if len(shape) < 3:
            raise ArgumentError(f"bins are predicted of images (channels, height, width), got events of shape {shape}")
        return shape, 2 * first
    if predictor == "classes" and ends.classes > 2:
        shape = (first * ends.classes, *rest) if rest else (first, ends.classes)
    if predictor == "product":
        # A category is one number per class, or a single one for two classes: see ProductPredictor.
        sizes = ((getattr(part, "classes", 1), columns) for part, columns in ends.parts)
        shape = (sum(columns * (classes if classes > 2 else 1) for classes, columns in sizes),)
    return shape, shape[0]


def save(
    folder: Path | str,
    model: Model,
    weights: Mapping[str, Tensor] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a model folder, atomically file by file.

    Args:
        folder: The folder.
        model: The model.
        weights: Weights of another predictor of the same kind, saved instead of the model's.
        provenance: Their origin; ``None`` for that of the model.

    Raises:
        OutputError: The folder cannot be written.
        ArgumentError: A part of the model has no name and cannot be saved.
    """
    folder = Path(folder)
    told = {"format": FORMAT, **model.spec, "provenance": model.provenance if provenance is None else provenance}
    times = {name: {str(n): list(found[n]) for n in sorted(found)} for name, found in sorted(model.times.items())}
    held = model.predictor.state_dict() if weights is None else dict(weights)
    write_tensors(writable_folder(folder) / "model.safetensors", held)
    write_json(folder / "config.json", {**told, **({"times": times} if times else {})})


_FILES = ["config.json", "model.safetensors", "README.md"]
"""Files of a model folder that are shared; none can hold a pickle."""


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ArgumentError("huggingface_hub is not installed: pip install 'proxflow[hub]'") from None
    return huggingface_hub


def shipped_models() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def load(source: str | Path = "mnist", device: torch.device | str = "cpu") -> Model:
    """Load a trained model by the name of a shipped one, or from a folder.

    Raises:
        CheckpointError: There is no such model, the name is that of both a shipped model and a model folder, or the
            files are corrupt or inconsistent.
    """
    folder = Path(source)
    if str(source) in shipped_models():
        here = (folder / "config.json").exists()
        if here and isinstance(source, str):
            raise CheckpointError(
                f"{source!r} is a model of the package, and the folder {source} holds another: write ./{source} for the "
                "folder, or give the folder another name"
            )
        folder = folder if here else SHIPPED / source
    if not folder.is_dir():
        raise CheckpointError(
            f"no model {str(source)!r}: expected a folder with config.json and model.safetensors, or one of the shipped "
            f"models: {', '.join(shipped_models()) or 'none'}"
        )
    path, weights = folder / "config.json", folder / "model.safetensors"
    if not path.exists() and (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is a training that has no model yet: let it go on with the same command")
    if not path.exists() and (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} holds checkpoints and no model: a training in Python that has not ended, or whose model has a part "
            "without a name; give the folder to fit once more with the same model and data, which goes on from them"
        )
    inner = sorted(file.parent for form in ("*", "models/*") for file in folder.glob(f"{form}/config.json"))
    if inner and not weights.exists():  # a folder of reproduce, or of its models
        raise CheckpointError(f"{folder} is no model, but holds some: give one of {', '.join(map(str, inner))}")
    content = _read(path)
    flow, network, predictor, data = (
        spec.restore(f"{name}s" if name != "data" else "kinds", content.get(name), f"{path}: {name}")
        for name in ("flow", "network", "predictor", "data")
    )
    times = _times(content.get("times", {}), path)
    try:
        with outlined(_tensors(weights)):  # a wrong configuration may claim any amount of memory
            outline = _assembled(data, flow, network, predictor)
        refuse_other_weights(outline.predictor, weights)
        model = _assembled(data, flow, network, predictor)
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {str(error).partition(chr(10))[0]}") from error
    load_weights(model.predictor, weights)
    model.predictor.eval().to(usable_device(device))
    return replace(model, provenance=content["provenance"], times=times)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a model's configuration in the newest format."""
    content = read_json(path)
    form = content.get("format") if isinstance(content, dict) else None
    if type(form) is int and form > FORMAT:
        raise CheckpointError(f"{path} has format {form}, and this version reads up to {FORMAT}: install a newer one")
    if type(form) is not int or form not in (1, FORMAT):  # True is 1
        raise CheckpointError(f"{path}: expected a model configuration of format 1 or {FORMAT}")
    known = {"format", "flow", "network", "predictor", "data", "provenance", "times"}
    if form == 1:
        content = format1.translate(content, str(path))
    elif unknown := sorted(set(content) - known):
        raise CheckpointError(f"{path}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    match content.get("data"):
        case {"kind": "image", "classes": int(number)} if number is not True and 0 <= number < 2**16:
            content["data"]["classes"] = [str(k) for k in range(number)]  # as earlier versions wrote it
    provenance = content.setdefault("provenance", {})
    if not isinstance(provenance, dict):
        raise CheckpointError(f"{path}: provenance must be an object, got {json.dumps(provenance):.80}")
    return dict(content)


def _tensors(weights: Path) -> int:
    """Return an upper bound of the number of tensors in a file, by the size of its header."""
    try:
        with open_plain(weights) as file:
            stated = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return 1000  # reading its header will report the error
    return 1000 + min(stated, size) // 50  # name, type, shape and place take more than 50 bytes


def _times(content: Any, path: Path) -> dict[str, dict[int, tuple[float, ...]]]:
    """Return the times of evaluations in a model's configuration, by sampler and number."""
    expected = f"{path}: times must be of the form {{sampler: {{number: [0, increasing below 1]}}}}, got"
    if not isinstance(content, dict) or not all(isinstance(found, dict) for found in content.values()):
        raise CheckpointError(f"{expected} {json.dumps(content):.80}")
    known = names.known("samplers")
    if unknown := sorted(set(content) - set(known)):
        raise CheckpointError(f"{path}: times of an unknown sampler {unknown[0]!r:.80}; known are {', '.join(known)}")
    times: dict[str, dict[int, tuple[float, ...]]] = {}
    for name, found in content.items():
        times[name] = {}
        for number, values in found.items():
            if (
                not isinstance(values, list)
                or str(len(values)) != number
                or not all(type(t) in (int, float) for t in values)
                or not all(t < s for t, s in pairwise([*values, 1]))
                or not (values and values[0] == 0)
            ):
                raise CheckpointError(f"{expected} {number!r:.20} {json.dumps(values):.80} for {name}")
            times[name][len(values)] = tuple(map(float, values))
    return times
