"""Text: Bayesian, linear, Fisher–Rao and masked flows and an autoregressive model, with equal networks and data.

In a flow a network reads each token through a noisy channel. Schedules are matched if these channels have the same
capacity at every time: what matched flows have in common is due to the schedule, their difference to the geometry.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from proxflow import models
from proxflow.config import to_dict
from proxflow.data.kinds.base import Loaded
from proxflow.data.kinds.text import Text
from proxflow.divergences import Divergence, FisherRao, ReverseKL
from proxflow.examples import Examples
from proxflow.flows import GPFN, CategoricalEndpoints, DiscreteBFN, Flow, Masked
from proxflow.likelihood import Nats, class_bound
from proxflow.models import Model, spec
from proxflow.predictors.exact import log_likelihoods
from proxflow.random import SampleStreams
from proxflow.runtime.checkpoints import load_weights, remove_all, write_tensors
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.runtime.pool import Piece
from proxflow.runtime.progress import bar
from proxflow.studies.geometry.study import knots, log_odds, rising
from proxflow.studies.presets import TextPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.text.baseline import Autoregressive, NextToken
from proxflow.studies.text.judge import NGrams, entropy, word_share
from proxflow.studies.text.report import outcome, pages
from proxflow.studies.trials import Benchmark, claim, side_by_side, silent
from proxflow.training.fit import fit

BASELINE = "autoregressive"
"""Name of the baseline among the flows."""

_MATCHING_DRAWS, _MATCHING_POINTS = 2000, 400
"""Draws of a channel to measure its capacity, and number of times at which it is measured."""


# Capacity of a belief about its own token ---- ---------------------------------------------------------------------


def capacity(flow: Flow[Any], t: Tensor) -> Tensor:
    """Return the information in nats of a belief about its own token, uniform a priori, at times (number,), float64."""
    if isinstance(flow, Masked):
        return flow.schedule.fraction(t) * math.log(flow.classes)
    classes = flow.classes if isinstance(flow, DiscreteBFN) else flow.endpoints.classes  # type: ignore[attr-defined]
    found = []
    for at in t:
        x = torch.zeros(_MATCHING_DRAWS, 1, dtype=torch.int64)  # all classes are equivalent
        belief = flow.belief(x, at.expand(len(x)), torch.Generator().manual_seed(0))
        told = log_likelihoods(cast(Any, flow), belief, at.expand(len(x))).log_softmax(-1)[..., 0]
        found.append(math.log(classes) + float(told.mean()))
    return torch.tensor(found, dtype=torch.float64)


def matched(divergence: Divergence, classes: int) -> GPFN:
    """Return the flow on the simplex whose beliefs have the information of masked diffusion, t ln K, at every time."""
    fraction = torch.linspace(0, 0.5, _MATCHING_POINTS + 2, dtype=torch.float64)[1:-1]
    ends = CategoricalEndpoints(classes)
    told = capacity(GPFN(divergence, endpoints=ends), fraction).cummax(0).values.numpy() / math.log(classes)
    reached = torch.from_numpy(np.interp(knots().numpy(), told, fraction.numpy()))
    return GPFN(divergence, rising(log_odds(reached) - log_odds(knots())), ends)


def masked_as(flow: DiscreteBFN) -> Masked:
    """Return the masked diffusion whose beliefs have the information of a Bayesian flow's at every time."""
    share = (capacity(flow, knots()) / math.log(flow.classes)).clamp(1e-6, 1 - 1e-6).cummax(0).values
    return Masked(flow.classes, rising(log_odds(share) - log_odds(knots())))


@cache
def flow_of(kind: Text, name: str) -> Flow[Any] | None:
    """Return a flow of the study by name, with a matched schedule if the name says so; ``None`` for the baseline."""
    classes, ends = kind.symbols, CategoricalEndpoints(kind.symbols)

    def bfn() -> DiscreteBFN:
        return cast(DiscreteBFN, spec.make("flows", models.flow_content("bfn-discrete", kind.decides)))

    makers: dict[str, Callable[[], Flow[Any]]] = {
        "bfn": bfn,
        "masked": lambda: Masked(classes),
        "masked-as-bfn": lambda: masked_as(bfn()),
        "linear": lambda: GPFN(ReverseKL(), endpoints=ends),
        "linear-as-masked": lambda: matched(ReverseKL(), classes),
        "fisher-rao": lambda: GPFN(FisherRao(), endpoints=ends),
        "fisher-rao-as-masked": lambda: matched(FisherRao(), classes),
    }
    return None if name == BASELINE else makers[name]()


def samplers_of(name: str) -> tuple[str, ...]:
    """Return the samplers of a flow: noisy messages, and for a Bayesian flow a solver of its equation as well."""
    return ("stochastic", "sde-bfn-solver2") if name == "bfn" else ("stochastic",)


# The work, piece by piece ---------------------------------------------------------------------------------------------


class Work:
    """What all pieces of a run share: the text, the held-out windows, and the judge of samples.

    Args:
        preset: Its size.
        out: Its folder.
        device: Where to train and sample.
        say: Called with a line at each stage.
        dataset: The text.
    """

    def __init__(
        self, preset: TextPreset, out: Path, device: torch.device, say: Callable[[str], None], dataset: str
    ) -> None:
        self.preset, self.out, self.device, self.say = preset, out, device, say
        self.source = (dataset, preset.held_out, preset.context, preset.tokens)
        self.loaded = _read(*self.source)
        self.kind, self.held_out = cast(Text, self.loaded.kind), cast(Examples, self.loaded.held_out)
        held = self.held_out.x
        self.test = held[:: max(1, len(held) // preset.windows)][: preset.windows].long()

    def piece(self, kind_of: str, called: str, doing: str, make: Callable[[], Record]) -> Record:
        """Return the content of a file, made first if it is missing."""
        path = self.out / kind_of / f"{called}.json"
        if not path.exists():
            self.say(doing)
            writable_folder(path.parent)
            write_json(path, make())
        record: Record = read_json(path)
        return record

    def scores(self, texts: Tensor) -> Record:
        """Score samples."""
        grams, words = _judged(*self.source)
        return {
            "sample_bits": grams.bits(texts),
            "sample_entropy": entropy(texts),
            "word_share": word_share([self.kind.text_of(row) for row in texts], words),
        }

    def flow(self, name: str, seed: int) -> list[Record]:
        """Train, bound and sample a flow with one seed, as far as missing; return its cells with their texts."""
        preset, kind = self.preset, self.kind
        flow = flow_of(kind, name)
        _train(preset, self.out, self.device, self.say, kind, self.loaded, name, flow, seed)
        model = _trained(preset, self.out, self.device, kind, name, flow, seed)
        bound = self.piece(
            "bounds", f"{name}-seed{seed}", f"bound: {name}, seed {seed}, {len(self.test)} windows",
            partial(_bound, preset, model, self.test, seed, self.device),
        )  # fmt: skip
        shared = {
            "flow": name, "seed": seed, **bound, "parameters": _provenance(self.out, name, seed)["parameters"],
            "examples": preset.training.steps * preset.training.batch_size,
        }  # fmt: skip

        def drawn(sampler: str, nfe: int) -> Record:
            begun = time.perf_counter()
            if isinstance(model, Model):
                texts = model.sample(preset.samples, nfe=nfe, sampler=sampler, seed=seed, batch_size=preset.samples)
            else:
                texts = model.sample(preset.samples, preset.context, seed)
            texts = texts.cpu().long()
            seconds = round(time.perf_counter() - begun, 2)
            shown = [kind.text_of(row) for row in texts[:8]]
            return {"sampler": sampler, "nfe": nfe, **self.scores(texts), "seconds": seconds, "texts": shown}

        return [
            shared
            | self.piece(
                "cells", f"{name}-{sampler}-nfe{nfe:03d}-seed{seed}",
                f"sample: {name}, {sampler}, {nfe} evaluations, seed {seed}", partial(drawn, sampler, nfe),
            )
            for sampler in (("ancestral",) if name == BASELINE else samplers_of(name))
            for nfe in ((preset.context,) if name == BASELINE else preset.nfes)
        ]  # fmt: skip


@cache
def _read(dataset: str, held_out: float, context: int, tokens: str) -> Loaded:
    return Text.read(dataset, held_out=held_out, context=context, tokens=tokens)


@cache
def _judged(*source: Any) -> tuple[NGrams, frozenset[str]]:
    """Return the judge of samples, counted in the training text, and that text's words."""
    loaded = _read(*source)
    kind = cast(Text, loaded.kind)
    whole = loaded.train.x[::4].reshape(-1)  # every fourth window begins where the last one ended
    return NGrams(whole, kind.symbols), frozenset(kind.text_of(whole).split(" "))


def _flow(preset: TextPreset, out: Path, device: torch.device, dataset: str, flow: str, seed: int) -> None:
    Work(preset, out, device, silent, dataset).flow(flow, seed)


def run(
    name: str,
    preset: TextPreset,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    dataset: str,
    processes: int = 1,
) -> Record:
    """Train, bound and sample what is missing; see :func:`proxflow.studies.trials.reproduce`."""
    config = json.loads(json.dumps({"preset": name, "dataset": dataset, **preset.settings()}))
    claim(out, "text", config)
    work = Work(preset, out, device, say, dataset)
    loaded, test = work.loaded, work.test
    say(loaded.notes[0])
    each = [(flow, seed) for seed in preset.seeds for flow in preset.flows]
    if not (out / "results.json").exists():
        side_by_side(
            [Piece(f"{flow}, seed {seed}", _flow, (preset, out, device, dataset, flow, seed)) for flow, seed in each],
            processes,
            say,
        )
    cells = [cell for flow, seed in each for cell in work.flow(flow, seed)]
    real = work.piece(
        "cells", "held-out", "count in held-out text",
        lambda: {
            **work.scores(work.held_out.x[: 4 * preset.samples].long()),
            "bits_per_character": _judged(*work.source)[0].bits(test),
        },
    )  # fmt: skip
    results = {
        "experiment": "text",
        "config": config,
        "data": {**dict(loaded.record), "note": loaded.notes[0], "windows": len(test)},
        "hardware": hardware(device),
        "versions": versions(),
        "training": {f"{flow}-seed{seed}": _provenance(out, flow, seed) for flow, seed in each},
        "held_out": real,
        "texts": {
            f"{cell['flow']}-{cell['sampler']}-{cell['nfe']}": cell["texts"]
            for cell in cells
            if cell["seed"] == preset.seeds[0]
        },
        "rows": [{key: value for key, value in cell.items() if key != "texts"} for cell in cells],
    }
    write_json(out / "results.json", results)
    return results


def _build(preset: TextPreset, kind: Text, flow: Flow[Any] | None) -> Any:
    """Return an untrained model of a flow, or of the baseline for ``None``."""
    if flow is not None:
        return models.build(kind, flow=flow, network=preset.network)
    causal = {**spec.content("networks", preset.network), "causal": True}
    return Autoregressive(models.build(kind, flow="masked", network=spec.make("networks", causal)).predictor.network)


def _train(
    preset: TextPreset,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    kind: Text,
    loaded: Loaded,
    name: str,
    flow: Flow[Any] | None,
    seed: int,
) -> None:
    folder = out / "models" / f"{name}-seed{seed}"
    if (folder / "config.json").exists():
        return
    torch.manual_seed(seed)  # the same initial weights for all
    model = _build(preset, kind, flow)
    settings = replace(preset.training, seed=seed)
    module = model.predictor if isinstance(model, Model) else model
    say(f"train: {name}, seed {seed}, {settings.steps} steps of {settings.batch_size} texts")
    objective = NextToken() if flow is None else flow
    result = fit(
        module,
        objective,
        loaded.train,
        settings,
        folder=folder,
        device=device,
        label=f"train {name}",
        encode=kind.encode,
    )
    record = {
        "data": loaded.description,
        "training": to_dict(settings),
        "seconds": round(result.seconds, 1),
        "losses": [round(loss, 6) for loss in result.losses],
        "parameters": sum(p.numel() for p in module.parameters()),
        "hardware": hardware(device),
        "versions": versions(),
    }
    weights = result.predictor.state_dict()
    if isinstance(model, Model):
        models.save(folder, model, weights, record)
    else:
        write_tensors(folder / "model.safetensors", weights)
        write_json(folder / "config.json", {"provenance": record})
    remove_all(folder)


def _trained(
    preset: TextPreset, out: Path, device: torch.device, kind: Text, name: str, flow: Flow[Any] | None, seed: int
) -> Any:
    model = _build(preset, kind, flow)
    module = model.predictor if isinstance(model, Model) else model
    load_weights(module, out / "models" / f"{name}-seed{seed}" / "model.safetensors")
    module.eval().to(device)
    return model


def _provenance(out: Path, name: str, seed: int) -> Record:
    record: Record = read_json(out / "models" / f"{name}-seed{seed}" / "config.json")["provenance"]
    return record


@torch.no_grad()
def _bound(preset: TextPreset, model: Any, test: Tensor, seed: int, device: torch.device) -> Record:
    """Measure bits per character of held-out windows: a bound, or exactly for the baseline."""
    parts = []
    with bar("bound", len(test), "texts") as show:
        for start in range(0, len(test), 64):
            x = test[start : start + 64].to(device)
            if isinstance(model, Model):
                streams = SampleStreams(seed, torch.arange(start, start + len(x), device=device))
                parts.append(class_bound(model.predictor, model.flow, x, streams, draws=preset.draws))
            else:
                parts.append(model.negative_log_likelihood(x))
            show(start + len(x))
    nats = Nats(torch.cat(parts), test.shape[1])
    error = nats.standard_error / (test.shape[1] * math.log(2))
    return {
        "bits_per_character": nats.bits_per_dimension, "standard_error": error,
        "bound": True if isinstance(model, Model) else "exact",
    }  # fmt: skip


STUDY = Benchmark("text", run, pages, outcome)
