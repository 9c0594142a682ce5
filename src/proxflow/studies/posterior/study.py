"""The study of posterior sampling, cut into pieces: problems of known posteriors, signals and pictures."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxflow import data, metrics, models
from proxflow.data import to_bytes
from proxflow.errors import ArgumentError
from proxflow.flows import GPFN
from proxflow.inverse import Blur, Downsample, Mask, Matrix, Operator
from proxflow.predictors import Posterior
from proxflow.runtime.files import read_json, writable_folder, write_atomically, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.runtime.progress import bar
from proxflow.samplers import sample
from proxflow.studies.posterior import problems, scores
from proxflow.studies.posterior.names import picture_name
from proxflow.studies.posterior.problems import Problem, seeded
from proxflow.studies.posterior.report import outcome, pages
from proxflow.studies.posterior.systems import SYSTEMS, Setting, has_azula
from proxflow.studies.presets import PosteriorPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import Benchmark
from proxflow.training.run import RunFolder

Found = dict[str, tuple[float, float | None]]
"""Values and their errors by metric."""


@dataclass(frozen=True)
class Piece:
    """Work that is kept when it is done.

    Args:
        name: Of its file.
        rows: Does it.
    """

    name: str
    rows: Callable[[], list[Record]]


def systems() -> tuple[str, ...]:
    """Return the names of the systems that are installed."""
    return ("proxflow", "azula") if has_azula() else ("proxflow",)


def compared(
    problem: Problem,
    methods: Iterable[tuple[str, str, Setting, int]],
    number: int,
    seed: int,
    score: Callable[[Tensor], Found],
    what: Mapping[str, Any],
) -> list[Record]:
    """Return a row for each metric of each method (system, name, setting, steps) on a problem."""
    rows = []
    for system, name, setting, steps in methods:
        started = time.process_time()
        events = SYSTEMS[system][1](problem, setting, number, steps, seed)
        seconds = time.process_time() - started
        for metric, (value, error) in score(events).items():
            row = {"system": system, "method": name, "steps": steps, "metric": metric, "value": _number(value)}
            rows.append({**what, **row, "error": _number(error), "seconds": round(seconds, 3)})
    return rows


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


# Gaussian data ---------------------------------------------------------------------------------------------------------

_EXACT = {"standard": ("flower-draw",), "correlated": ("jfps-draw",)}
"""Methods that are right at any number of steps."""


def gaussian_methods(
    law: str, d: int, numbers: int, preset: PosteriorPreset
) -> Iterator[tuple[str, str, Setting, int]]:
    """Give what is compared on a Gaussian problem."""
    for system in systems():
        for name, setting in SYSTEMS[system][0].items():
            if setting.number:
                continue
            if system == "proxflow" and name in _EXACT[law]:
                yield system, name, setting, preset.few
            elif name == "mmps" and numbers > preset.limit_numbers:
                continue
            elif system == "proxflow" and name == "mmps":
                limit = replace(setting, sampler="multistep2", iterations=numbers + 1, fine=True)
                yield system, name, limit, preset.limit
            elif name == "mmps":
                yield system, name, replace(setting, iterations=numbers + 1, eta=0.0), preset.limit
            elif not name.startswith("jfps") or law == "correlated":
                yield system, name, setting, preset.evaluations


def gaussian_pieces(preset: PosteriorPreset, seed: int) -> Iterator[Piece]:
    """Give the pieces of Gaussian data."""
    for d in preset.dimensions:
        for kind in problems.OPERATORS:
            for noise in preset.noises:
                for law in _EXACT:

                    def rows(law: str = law, d: int = d, kind: str = kind, noise: float = noise) -> list[Record]:
                        problem, posterior = problems.gaussian(law, d, kind, noise, seed)
                        observed = problem.observation.shape[1]
                        rank = max(1, d // 8) if kind == "deficient" else observed
                        what = {
                            "benchmark": "gaussian", "law": law, "operator": kind, "noise": noise, "dimension": d,
                            "observed": observed,
                        }  # fmt: skip
                        methods = gaussian_methods(law, d, rank, preset)
                        return compared(
                            problem, methods, preset.draws, seed + 1,
                            lambda events: scores.against_normal(events, posterior), what,
                        )  # fmt: skip

                    yield Piece(f"gaussian-{law}-{d:03d}-{kind}-{noise:g}", rows)


# The mixture -----------------------------------------------------------------------------------------------------------


def mixture_pieces(preset: PosteriorPreset, seed: int) -> Iterator[Piece]:
    """Give the pieces of the mixture, the first problem of each row first."""
    most = max(preset.problems.values())
    for number in range(most):
        for dimension, count in preset.problems.items():
            for observed in preset.observed:
                for steps in preset.steps:
                    if number >= count:
                        continue

                    def rows(
                        d: int = int(dimension), observed: int = observed, steps: int = steps, number: int = number
                    ) -> list[Record]:
                        problem, draw = problems.mixture(d, observed, number, seed)
                        truth = draw(preset.samples, seeded(seed, number, 1))
                        other = draw(preset.samples, seeded(seed, number, 2))
                        what = {"benchmark": "mixture", "dimension": d, "observed": observed, "problem": number}

                        def score(events: Tensor) -> Found:
                            return {"sliced_wasserstein": (scores.against_draws(events, truth, number), None)}

                        methods = (
                            (system, name, setting, steps)
                            for system in systems()
                            for name, setting in SYSTEMS[system][0].items()
                        )
                        known = replace(problem, covariance=torch.ones(()))
                        found = compared(known, methods, preset.samples, seed * 1000 + number, score, what)
                        floor = {
                            "system": "truth", "method": "truth", "steps": steps, "metric": "sliced_wasserstein",
                            "value": scores.against_draws(other, truth, number), "error": None, "seconds": 0.0,
                        }  # fmt: skip
                        return [*found, {**what, **floor}]

                    yield Piece(f"mixture-{number:02d}-{int(dimension):03d}-{observed}-{steps:03d}", rows)


# Signals ---------------------------------------------------------------------------------------------------------------

_SIGNAL_NOISE = 0.3


def signal_operator(kind: str, length: int) -> Tensor:
    """Return a matrix of signals: identity, convolution (Gaussian, two samples wide), sampling or fourier (half of each)."""
    eye = torch.eye(length, dtype=torch.float64)
    if kind == "identity":
        return eye
    if kind == "convolution":
        return Blur(2.0).axis(length)
    if kind == "sampling":
        return eye[:: length // 16]
    at = torch.arange(length, dtype=torch.float64)
    angles = 2 * math.pi * at * torch.arange(1, 9, dtype=torch.float64)[:, None] / length
    return torch.cat([angles.cos(), angles.sin()]) * math.sqrt(2 / length)


def signal_law(length: int) -> Tensor:
    """Return the covariance of signals whose increments are independent, of variance 1/length, from a start at 0."""
    at = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.minimum(at[:, None], at) / length


def increments_pieces(preset: PosteriorPreset, seed: int) -> Iterator[Piece]:
    """Give the pieces of signals with independent Gaussian increments, whose posterior is known in closed form."""
    from proxflow.data import GaussianMixtureLaw
    from proxflow.predictors.exact import ExactMean

    for kind in ("identity", "convolution", "sampling", "fourier"):

        def rows(kind: str = kind) -> list[Record]:
            length, noise = preset.signal, _SIGNAL_NOISE
            covariance, mean = signal_law(length), torch.zeros(length, dtype=torch.float64)
            law = GaussianMixtureLaw(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])
            a, draws, flow = signal_operator(kind, length), seeded(seed, length), GPFN()
            x = law.sample(1, draws, dtype=torch.float64)[0]
            y = a @ x + noise * torch.randn(len(a), generator=draws, dtype=torch.float64)
            posterior = problems.conditioned(mean, covariance, a, y, noise)
            problem = Problem(
                ExactMean(flow, law), flow, Matrix(a), y[None], noise, (length,), covariance, 1.0, torch.float64
            )
            what = {
                "benchmark": "increments", "law": "gaussian", "operator": kind, "noise": noise, "dimension": length,
                "observed": len(a),
            }  # fmt: skip

            def score(events: Tensor) -> Found:
                found: Found = {}
                for share in (50, 90):
                    low, high = (events.quantile(q, dim=0) for q in (0.5 - share / 200, 0.5 + share / 200))
                    inside = [torch.special.ndtr((at - posterior.mean) / posterior.std) for at in (low, high)]
                    covered = inside[1] - inside[0]
                    error = float(covered.std(correction=0)) / math.sqrt(length)
                    found[f"coverage{share}"] = (float(covered.mean()), error)
                return found

            methods = (
                (system, name, replace(setting, iterations=20) if name == "mmps" else setting, preset.evaluations)
                for system in systems()
                for name, setting in SYSTEMS[system][0].items()
                if not setting.number
            )
            return compared(problem, methods, preset.samples, seed + 1, score, what)

        yield Piece(f"increments-gaussian-{kind}", rows)


# Pictures --------------------------------------------------------------------------------------------------------------

PICTURE_NOISE = 0.05
TASKS = ("lower half", "random 70 %", "superres 4", "blur")


def picture_operator(task: str, shape: tuple[int, ...]) -> Operator:
    """Return what happened to pictures: their lower half gone, 70 % of their pixels, reduced 4 times, or blurred."""
    if task == "superres 4":
        return Downsample(4)
    if task == "blur":
        return Blur(1.5)
    known = torch.ones(shape, dtype=torch.bool)
    if task == "lower half":
        known[:, shape[1] // 2 :] = False
    else:
        known[:] = torch.rand(shape[1:], generator=seeded(70)) < 0.3
    return Mask(known)


_PICTURES = ("flower", "flower-draw", "diffpir", "mmps", "tmpd", "pigdm", "dps")
_PICTURES_AZULA = ("diffpir", "mmps", "tmpd", "pigdm", "dps")


def picture_pieces(
    preset: PosteriorPreset, seed: int, dataset: str, out: Path, device: torch.device
) -> Iterator[Piece]:
    """Give the pieces of pictures: a task and a method each, whose first draws are kept beside."""
    for system, names in (("proxflow", _PICTURES), ("azula", _PICTURES_AZULA)):
        if system not in systems():
            continue
        for task in TASKS:
            for steps in preset.picture_steps:
                for name in names:

                    def rows(
                        system: str = system, task: str = task, steps: int = steps, name: str = name
                    ) -> list[Record]:
                        return restored(preset, seed, dataset, out, device, system, task, steps, name)

                    yield Piece(picture_name(system, task, steps, name), rows)


def restored(
    preset: PosteriorPreset,
    seed: int,
    dataset: str,
    out: Path,
    device: torch.device,
    system: str,
    task: str,
    steps: int,
    name: str,
) -> list[Record]:
    """Restore test pictures by one method and score it."""
    model = models.load(preset.model, device)
    testing = data.load(dataset, "test")
    pictures, labels = testing.images[: preset.pictures], testing.labels
    if tuple(pictures.shape[1:]) != tuple(model.shape):
        raise ArgumentError(
            f"the model {preset.model} is of {tuple(model.shape)}, and the pictures of {dataset} are "
            f"{tuple(pictures.shape[1:])}: give --model one of their size"
        )
    recognised = data.recognise(testing.images) or "mnist"
    clean = model.data.encode(pictures).to(device)
    operator = picture_operator(task, tuple(model.shape)).map(lambda a: a.to(device))
    y = operator(clean)
    shown = y + PICTURE_NOISE * torch.randn(y.shape, generator=seeded(seed, TASKS.index(task)), dtype=y.dtype).to(y)
    each, setting = torch.arange(len(clean)).repeat_interleave(preset.picture_draws), SYSTEMS[system][0][name]
    started = time.process_time()
    if system == "proxflow":
        posterior = Posterior(
            model.predictor, operator, shown[each], noise=PICTURE_NOISE, method=setting.method, flow=model.flow
        )
        events = sample(posterior, model.flow, (len(each), *model.shape), nfe=steps, seed=seed).cpu()
    else:
        parts = [
            SYSTEMS[system][1](
                Problem(model.predictor, model.flow, operator, shown[part], PICTURE_NOISE, tuple(model.shape)),
                setting, len(part), steps, seed + int(part[0]),
            )
            for part in torch.split(each, 128)
        ]  # fmt: skip
        events = torch.cat(parts).cpu()
    seconds = time.process_time() - started
    found, hidden = picture_scores(events, clean.cpu(), operator, preset.picture_draws)
    bytes_of = to_bytes(events.nan_to_num())
    if labels is not None and recognised in metrics.features.CLASSIFIERS:
        hits = metrics.class_hits(metrics.load_classifier(recognised), bytes_of, labels[: len(clean)][each])
        share = hits.double().reshape(-1, preset.picture_draws).mean(1)
        found["accuracy"] = (float(share.mean()), float(share.std()) / math.sqrt(len(share)))
    folder = writable_folder(out / "cells")
    kept = bytes_of.reshape(len(clean), -1, *model.shape)[:6, :4].numpy()
    seen = to_bytes(_seen(operator, shown[:6].cpu(), model.shape)).numpy()
    write_atomically(
        folder / f"{picture_name(system, task, steps, name)}.npz",
        lambda path: np.savez_compressed(path, draws=kept, seen=seen, whole=pictures[:6].numpy()),
    )
    row = {
        "benchmark": "images", "system": system, "method": name, "operator": task, "data": recognised,
        "dimension": clean[0].numel(), "observed": hidden, "steps": steps, "noise": PICTURE_NOISE,
    }  # fmt: skip
    return [
        {**row, "metric": metric, "value": _number(value), "error": _number(error), "seconds": round(seconds, 2)}
        for metric, (value, error) in found.items()
    ]


def _seen(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return observations as pictures of the size of what they are of; grey where nothing is known."""
    if isinstance(operator, Mask):
        return torch.where(operator.known.cpu(), y, 0.0)
    times = shape[-1] // y.shape[-1]
    return y.repeat_interleave(times, -2).repeat_interleave(times, -1)


def picture_scores(events: Tensor, clean: Tensor, operator: Operator, draws: int) -> tuple[Found, int]:
    """Return PSNR, diversity and coverage of draws (pictures · draws, *event), and how many numbers are observed.

    ``psnr`` is that of the mean of a picture's draws, in decibels of the range 2. ``diversity`` is the root mean square
    standard deviation of what is not known: hidden pixels of a mask, all of others. ``coverage`` is how often such a pixel
    lies between the least and the largest of its draws, bytes that are equal included: at least (draws − 1)/(draws + 1)
    for draws from the posterior.
    """
    each = events.double().clamp(-1, 1).reshape(len(clean), draws, *clean.shape[1:])
    truth = clean.double()
    error = (each.mean(1) - truth).square().flatten(1).mean(1)
    psnr = 10 * (4 / error).log10()
    hidden = torch.ones(clean.shape[1:], dtype=torch.bool)
    if isinstance(operator, Mask):
        hidden = ~operator.known.cpu()
    spread = each.var(1)[:, hidden].mean(1).sqrt()
    low, high = (to_bytes(a.float()) for a in (each.amin(1), each.amax(1)))
    at = to_bytes(clean)
    inside = ((at >= low) & (at <= high)).double()[:, hidden].mean(1)
    root = math.sqrt(len(clean))
    found: Found = {
        name: (float(value.mean()), float(value.std()) / root)
        for name, value in (("psnr", psnr), ("diversity", spread), ("coverage", inside))
    }
    observed = int((~hidden).sum()) if isinstance(operator, Mask) else operator(clean[:1].to(_device(operator))).numel()
    return found, observed


def _device(operator: Operator) -> torch.device:
    return next((v.device for v in vars(operator).values() if isinstance(v, Tensor)), torch.device("cpu"))


# All of it -------------------------------------------------------------------------------------------------------------


def pieces(preset: PosteriorPreset, dataset: str, out: Path, device: torch.device) -> list[Piece]:
    """Return all pieces of a preset in the order of their work."""
    found = []
    for seed in preset.seeds:
        each = [
            *mixture_pieces(preset, seed),
            *gaussian_pieces(preset, seed),
            *picture_pieces(preset, seed, dataset, out, device),
            *increments_pieces(preset, seed),
        ]
        found += [replace(piece, name=f"{piece.name}-seed{seed}") for piece in each]
    return found


def run(
    name: str, preset: PosteriorPreset, out: Path, device: torch.device, say: Callable[[str], None], dataset: str
) -> Record:
    """Do what is missing of a preset; ``results.json`` is written anew after each piece."""
    if dataset != "mnist" and preset.model == "mnist":
        raise ArgumentError(
            f"the package has a model of digits alone: give --model one of {dataset}, or leave out --data"
        )
    config = json.loads(json.dumps({"preset": name, "dataset": dataset, **preset.settings()}))
    RunFolder(out, "posterior", "config.json").claim(config)
    if not has_azula():
        say("azula is not installed: only this library's methods are run; tests/requirements-peers.txt has it")
    work = pieces(preset, dataset, out, device)
    folder, rows, done = writable_folder(out / "cells"), list[Record](), 0
    results: Record = {}
    with bar("posterior", len(work), "pieces") as show:
        for piece in work:
            path = folder / f"{piece.name}.json"
            made = not path.exists()
            if made:
                say(f"{piece.name}")
                write_json(path, {"rows": piece.rows()})
            rows += read_json(path)["rows"]
            done += 1
            show(done)
            if made or done == len(work):
                results = {
                    "experiment": "posterior", "config": config, "pieces": {"done": done, "of": len(work)},
                    "hardware": hardware(device), "versions": versions() | _peers(), **collected(rows),
                }  # fmt: skip
                write_json(out / "results.json", results)
    return results


def _peers() -> dict[str, str]:
    if not has_azula():
        return {}
    from importlib.metadata import version

    return {"azula": version("azula")}


def collected(rows: list[Record]) -> Record:
    """Return rows in their fixed form, problems of the mixture put together, and those of the truth itself apart."""
    found, each = [row for row in rows if row["benchmark"] != "mixture"], dict[tuple[Any, ...], list[Record]]()
    keys = ("benchmark", "system", "method", "dimension", "observed", "steps", "metric")
    for row in rows:
        if row["benchmark"] == "mixture":
            each.setdefault(tuple(row[key] for key in keys), []).append(row)
    floors: list[Record] = []
    for key, group in each.items():
        values = [row["value"] for row in group]
        known = [v for v in values if v is not None]
        error = 1.96 * statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
        row = {
            **dict(zip(keys, key, strict=True)),
            "value": statistics.fmean(known) if len(known) == len(values) else None, "error": error,
            "seconds": round(statistics.fmean(row["seconds"] for row in group), 3), "problems": len(group),
        }  # fmt: skip
        (floors if row["system"] == "truth" else found).append(row)
    return {"rows": found, "floors": floors}


STUDY = Benchmark("posterior", run, pages, outcome)
