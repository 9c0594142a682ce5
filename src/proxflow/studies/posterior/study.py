"""The study of posterior sampling, in pieces: problems with known posteriors, signals and pictures."""

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
from proxflow.inverse import Blur, Downsample, Mask, Operator
from proxflow.predictors import Posterior
from proxflow.runtime import pool
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
from proxflow.studies.trials import Benchmark, claim, side_by_side

Found = dict[str, tuple[float, float | None]]
"""Values and errors by metric."""


@dataclass(frozen=True)
class Piece:
    """Work whose result is saved.

    Args:
        name: Name of its file.
        rows: Function that does it.
    """

    name: str
    rows: Callable[[], list[Record]]


def systems() -> tuple[str, ...]:
    """Return the names of the systems that are installed."""
    return ("proxflow", "azula") if has_azula() else ("proxflow",)


def compared(
    problem: Problem,
    methods: Iterable[tuple[str, str, Setting, int]],
    number: int | Callable[[str], int],
    seed: int,
    score: Callable[[Tensor], Found],
    what: Mapping[str, Any],
) -> list[Record]:
    """Return a row for each metric of each method (system, name, setting, steps) on a problem.

    Args:
        problem: The problem.
        methods: The methods.
        number: Samples of each method, or by its name.
        seed: Seed.
        score: Scores of samples.
        what: Further entries of a row.
    """
    rows = []
    for system, name, setting, steps in methods:
        started = time.process_time()
        events = SYSTEMS[system][1](problem, setting, number if isinstance(number, int) else number(name), steps, seed)
        seconds = time.process_time() - started
        for metric, (value, error) in score(events).items():
            row = {"system": system, "method": name, "steps": steps, "metric": metric, "value": _number(value)}
            rows.append({**what, **row, "error": _number(error), "seconds": round(seconds, 3)})
    return rows


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


# Gaussian data ---------------------------------------------------------------------------------------------------------

_EXACT = {"standard": ("flower-draw",), "correlated": ("jfps-draw",)}
"""Methods that are exact at any number of steps."""


def gaussian_methods(
    law: str, d: int, numbers: int, preset: PosteriorPreset
) -> Iterator[tuple[str, str, Setting, int]]:
    """Return the methods compared on a Gaussian problem."""
    for system in systems():
        for name, setting in SYSTEMS[system][0].items():
            if setting.number:
                continue
            if system == "proxflow" and name in _EXACT[law]:
                yield system, name, setting, preset.few
            elif system == "proxflow" and name == "mmps":
                limit = replace(setting, sampler="multistep2", iterations=numbers + 1, least=0.0002)
                yield system, name, limit, preset.limit
            elif name == "mmps":
                yield system, name, replace(setting, iterations=numbers + 1, eta=0.0), preset.limit
            elif not name.startswith("jfps") or law == "correlated":
                yield system, name, setting, preset.evaluations


def gaussian_pieces(preset: PosteriorPreset, seed: int) -> Iterator[Piece]:
    """Yield the pieces of Gaussian data."""
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
                        right = (*_EXACT[law], *(("mmps",) if rank <= preset.limit_numbers else ()))
                        return compared(
                            problem, methods, lambda name: preset.draws // (1 if name in right else 10), seed + 1,
                            lambda events: scores.against_normal(events, posterior), what,
                        )  # fmt: skip

                    yield Piece(f"gaussian-{law}-{d:03d}-{kind}-{noise:g}", rows)


# The mixture -----------------------------------------------------------------------------------------------------------


def mixture_pieces(preset: PosteriorPreset, seed: int) -> Iterator[Piece]:
    """Yield the pieces of the mixture, the first problem of each row first."""
    most = max(count for each in preset.problems.values() for count in each.values())
    for number in range(most):
        for evaluations, each in preset.problems.items():
            for dimension, count in each.items():
                for observed in preset.observed if number < count else ():
                    d, steps = int(dimension), int(evaluations)

                    def rows(
                        d: int = d, observed: int = observed, steps: int = steps, number: int = number
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
                            if setting.method != "jfps"  # whose covariance, here 1, is that of flower
                        )
                        found = compared(problem, methods, preset.samples, seed * 1000 + number, score, what)
                        floor = {
                            "system": "truth", "method": "truth", "steps": steps, "metric": "sliced_wasserstein",
                            "value": scores.against_draws(other, truth, number), "error": None, "seconds": 0.0,
                        }  # fmt: skip
                        return [*found, {**what, **floor}]

                    yield Piece(f"mixture-{number:02d}-{d:03d}-{observed}-{steps:03d}", rows)


# Signals ---------------------------------------------------------------------------------------------------------------


def increments_pieces(preset: PosteriorPreset, seed: int) -> Iterator[Piece]:
    """Yield the pieces of signals with independent increments, the first signal of each row first."""
    for number in range(preset.signals):
        for law in problems.SIGNAL_LAWS:
            for kind in problems.SIGNAL_OPERATORS:

                def rows(law: str = law, kind: str = kind, number: int = number) -> list[Record]:
                    given = problems.signal(law, kind, preset.signal, number, seed, 33, preset.sweeps)
                    what = {
                        "benchmark": "increments", "law": law, "operator": kind, "noise": problems.SIGNAL_NOISE,
                        "dimension": preset.signal, "observed": given.problem.observation.shape[1], "problem": number,
                    }  # fmt: skip
                    methods = (
                        (
                            system,
                            name,
                            replace(setting, iterations=20) if name == "mmps" else setting,
                            preset.evaluations,
                        )
                        for system in systems()
                        for name, setting in SYSTEMS[system][0].items()
                        if not setting.number
                    )
                    found = compared(
                        given.problem, methods, preset.signal_samples, seed + 1 + 1000 * number,
                        lambda events: scores.of_intervals(events @ given.back.mT, given.below), what,
                    )  # fmt: skip
                    truth = {"system": "truth", "method": "truth", "steps": preset.evaluations, "seconds": 0.0}
                    for metric, (value, _) in scores.of_intervals(
                        given.draw(preset.signal_samples), given.below
                    ).items():
                        found.append({**what, **truth, "metric": metric, "value": value, "error": None})
                    return found

                yield Piece(f"increments-{number:02d}-{law}-{kind}", rows)


# Pictures --------------------------------------------------------------------------------------------------------------

PICTURE_NOISE = 0.05
TASKS = ("lower half", "random 70 %", "superres 4", "blur")


def picture_operator(task: str, shape: tuple[int, ...]) -> Operator:
    """Return the operator of a task: lower half missing, 70 % of the pixels missing, 4 times smaller, or blurred."""
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
_PRODUCTS = {"mmps": 5, "tmpd": 2, "pigdm": 1, "dps": 1}
"""Products with the network's Jacobian per evaluation, the same in both systems."""


def picture_pieces(
    preset: PosteriorPreset, seed: int, dataset: str, out: Path, device: torch.device
) -> Iterator[Piece]:
    """Yield the pieces of pictures: one per task and method, with the first draws saved."""
    compared = {"proxflow": _PICTURES, "azula": _PICTURES_AZULA}
    for steps in preset.picture_steps:
        for task in TASKS:
            for system in systems():
                for name in compared[system]:

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
    model, testing = _given(preset, dataset, device)
    pictures, labels = testing.images[: preset.pictures], testing.labels
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
        "products": _PRODUCTS.get(name, 0),
    }  # fmt: skip
    return [
        {**row, "metric": metric, "value": _number(value), "error": _number(error), "seconds": round(seconds, 2)}
        for metric, (value, error) in found.items()
    ]


def _seen(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return observations as pictures of the original size; grey where unknown."""
    if isinstance(operator, Mask):
        return torch.where(operator.known.cpu(), y, 0.0)
    times = shape[-1] // y.shape[-1]
    return y.repeat_interleave(times, -2).repeat_interleave(times, -1)


def picture_scores(events: Tensor, clean: Tensor, operator: Operator, draws: int) -> tuple[Found, int]:
    """Return PSNR, diversity and coverage of draws (pictures · draws, *event), and the number of observations.

    ``psnr`` is that of the mean of a picture's draws, in decibels of the range 2. ``diversity`` is the root mean square
    standard deviation of unknown pixels: those hidden by a mask, or all. ``coverage`` is how often such a pixel is
    between the smallest and the largest of its draws, equal bytes included: at least (draws − 1)/(draws + 1) for draws
    from the posterior.
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


def _given(preset: PosteriorPreset, dataset: str, device: torch.device) -> tuple[models.Model, data.ImageData]:
    """Load the model and the test pictures that it restores.

    Raises:
        CheckpointError: There is no such model.
        ArgumentError: The pictures differ in size from the model's.
    """
    model, testing = models.load(preset.model, device), data.load(dataset, "test")
    if tuple(testing.images.shape[1:]) != tuple(model.shape):
        raise ArgumentError(
            f"the model {preset.model} is of {tuple(model.shape)}, and the pictures of {dataset} are "
            f"{tuple(testing.images.shape[1:])}: give --model one of their size"
        )
    return model, testing


def _device(operator: Operator) -> torch.device:
    return next((v.device for v in vars(operator).values() if isinstance(v, Tensor)), torch.device("cpu"))


MODELS = {"mnist": "mnist", "fashion-mnist": "fashion-mnist-classes"}
"""The model in the package that restores pictures of a data set."""


# All of it -------------------------------------------------------------------------------------------------------------


def pieces(preset: PosteriorPreset, dataset: str, out: Path, device: torch.device) -> list[Piece]:
    """Return all pieces of a preset in order of work: about as many of each benchmark at any time.

    For other data than MNIST these are only pictures, since problems with known posteriors do not depend on data.
    """
    found = []
    for seed in preset.seeds:
        known = (increments_pieces, mixture_pieces, gaussian_pieces) if dataset == "mnist" else ()
        of_known = (pieces_of(preset, seed) for pieces_of in known)
        for kind in (*of_known, picture_pieces(preset, seed, dataset, out, device)):
            each = list(kind)
            found += [(k / len(each), replace(piece, name=f"{piece.name}-seed{seed}")) for k, piece in enumerate(each)]
    return [piece for _, piece in sorted(found, key=lambda place: place[0])]


def _do(preset: PosteriorPreset, dataset: str, out: Path, device: torch.device, name: str) -> None:
    """Do the piece of a name, and save its rows."""
    piece = next(piece for piece in pieces(preset, dataset, out, device) if piece.name == name)
    write_json(writable_folder(out / "cells") / f"{name}.json", {"rows": piece.rows()})


def run(
    name: str,
    preset: PosteriorPreset,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    dataset: str,
    processes: int = 1,
) -> Record:
    """Do what is missing of a preset, and write ``results.json``, also when stopped, with the finished pieces."""
    if dataset != "mnist" and preset.model == "mnist":
        if dataset not in MODELS:
            raise ArgumentError(
                f"the package has models of {' and '.join(MODELS)}: give --model one of {dataset}, or leave out --data"
            )
        preset = replace(preset, model=MODELS[dataset])
    if len(preset.seeds) > 1:
        raise ArgumentError(
            "posterior has many problems of one seed, and its tables no room for more: leave --seeds out"
        )
    _given(preset, dataset, device)  # refused before work starts, and before the folder is claimed
    config = json.loads(json.dumps({"preset": name, "dataset": dataset, **preset.settings()}))
    claim(out, "posterior", config)
    if not has_azula():
        say("azula is not installed: only this library's methods are run; tests/requirements-peers.txt has it")
    work = pieces(preset, dataset, out, device)
    folder = writable_folder(out / "cells")
    missing = [piece.name for piece in work if not (folder / f"{piece.name}.json").exists()]

    def written() -> Record:
        """Collect the finished pieces, in order."""
        paths = [path for piece in work if (path := folder / f"{piece.name}.json").exists()]
        results: Record = {
            "experiment": "posterior", "config": config, "pieces": {"done": len(paths), "of": len(work)},
            "hardware": hardware(device), "versions": versions() | _peers(),
            **collected([row for path in paths for row in read_json(path)["rows"]]),
        }  # fmt: skip
        write_json(out / "results.json", results)
        return results

    try:
        side_by_side([pool.Piece(each, _do, (preset, dataset, out, device, each)) for each in missing], processes, say)
        with bar("posterior", len(work), "pieces") as show:
            for done, piece in enumerate(work):
                path = folder / f"{piece.name}.json"
                if not path.exists():
                    say(f"{piece.name}")
                    write_json(path, {"rows": piece.rows()})
                show(done + 1)
    except BaseException:  # finished pieces are useful, whatever stopped the rest
        written()
        raise
    return written()


def _peers() -> dict[str, str]:
    if not has_azula():
        return {}
    from importlib.metadata import version

    return {"azula": version("azula")}


_OF_PROBLEMS = ("mixture", "increments")
"""Benchmarks of several problems, of which the mean is saved."""


def collected(rows: list[Record]) -> Record:
    """Return rows in their fixed form, those of several problems averaged, and those of the truth separately.

    The error of a mean over problems is 1.96 standard errors.
    """
    found, each = [row for row in rows if row["benchmark"] not in _OF_PROBLEMS], dict[str, list[Record]]()
    apart = ("problem", "value", "error", "seconds")
    for row in rows:
        if row["benchmark"] in _OF_PROBLEMS:
            each.setdefault(json.dumps({key: v for key, v in row.items() if key not in apart}), []).append(row)
    floors: list[Record] = []
    for key, group in each.items():
        values = [row["value"] for row in group]
        known = [v for v in values if v is not None]
        error = 1.96 * statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
        row = {
            **json.loads(key),
            "value": statistics.fmean(known) if len(known) == len(values) else None, "error": error,
            "seconds": round(statistics.fmean(row["seconds"] for row in group), 3), "problems": len(group),
        }  # fmt: skip
        (floors if row["system"] == "truth" else found).append(row)
    return {"rows": found, "floors": floors}


STUDY = Benchmark("posterior", run, pages, outcome)
