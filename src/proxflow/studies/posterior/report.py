"""The report of the study of posterior sampling: tables of every method and the truth, and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proxflow.data.arrays import read_npz
from proxflow.studies import charts
from proxflow.studies.charts import Row, Section
from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Strong, Table, to_markdown
from proxflow.studies.posterior.names import picture_name
from proxflow.studies.scoreboard import Record

Key = tuple[Any, ...]

_WITHIN = 3.0
"""Largest deviation of means and covariances, in standard errors."""

_COVERED = (0.885, 0.915)


def _rows(results: Record, benchmark: str, metric: str | None = None) -> list[Record]:
    return [r for r in results["rows"] if r["benchmark"] == benchmark and metric in (None, r["metric"])]


def _floors(results: Record, benchmark: str) -> list[Record]:
    return [r for r in results["floors"] if r["benchmark"] == benchmark]


def _order(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


@dataclass(frozen=True)
class Duel:
    """The best method of each system on one row of the mixture.

    Args:
        dimension: d.
        observed: d_y.
        steps: Evaluations.
        ours: The row of our best method.
        theirs: That of azula's best; ``None`` if it was not run.
        truth: Distance between two sets of draws from the truth.
    """

    dimension: int
    observed: int
    steps: int
    ours: Record
    theirs: Record | None
    truth: float

    @property
    def verdict(self) -> str:
        """How ours compares, within the error of the difference of independent means, for several problems."""
        if self.theirs is None or self.ours["problems"] < 2:
            return "–"
        error = math.hypot(self.ours["error"] or 0.0, self.theirs["error"] or 0.0)
        apart = self.ours["value"] - self.theirs["value"]
        return "lower" if apart < -error else "within error" if apart <= error else "higher"


def duels(results: Record) -> list[Duel]:
    """Return the best methods of each row of the mixture."""
    found = []
    truth = {(r["dimension"], r["observed"], r["steps"]): r["value"] for r in _floors(results, "mixture")}
    for key in _order([(r["dimension"], r["observed"], r["steps"]) for r in _rows(results, "mixture")]):
        best: dict[str, Record] = {}
        for row in _rows(results, "mixture"):
            if (row["dimension"], row["observed"], row["steps"]) != key or row["value"] is None:
                continue
            if row["system"] not in best or row["value"] < best[row["system"]]["value"]:
                best[row["system"]] = row
        if "proxflow" in best:
            d, observed, steps = key
            found.append(Duel(d, observed, steps, best["proxflow"], best.get("azula"), truth[key]))
    return sorted(found, key=lambda duel: (duel.dimension, duel.observed, duel.steps))


def duels_table(results: Record) -> Table:
    """Return a table of the best method of each system on each row of the mixture."""
    rows = [
        (
            str(duel.dimension), str(duel.observed), str(duel.steps), str(duel.ours["problems"]),
            f"{_pm(duel.ours)} {duel.ours['method']}",
            "–" if duel.theirs is None else f"{_pm(duel.theirs)} {duel.theirs['method']}",
            f"{duel.truth:.2f}", duel.verdict,
        )
        for duel in duels(results)
    ]  # fmt: skip
    return Table(
        ("d", "observed", "steps", "problems", "best here", "best of azula", "truth", "here is"), tuple(rows), 0
    )


def _pm(row: Record | None) -> str:
    if row is None:
        return "–"
    if row["value"] is None:
        return "diverged"
    return f"{row['value']:.2f}" + (f" ± {row['error']:.2f}" if row["error"] is not None else "")


def mixture_table(results: Record, steps: int) -> Table:
    """Return a table of every method on the mixture, with the lowest of each column bold."""
    rows = [r for r in _rows(results, "mixture") if r["steps"] == steps]
    columns = sorted(_order([(r["dimension"], r["observed"]) for r in rows]))
    at = {(r["system"], r["method"], r["dimension"], r["observed"]): r for r in rows}
    lowest = {
        c: min(
            (r["value"] for r in rows if (r["dimension"], r["observed"]) == c and r["value"] is not None), default=None
        )
        for c in columns
    }
    lines: list[tuple[str | Strong, ...]] = []
    for system, method in _order([(r["system"], r["method"]) for r in rows]):
        entries: list[str | Strong] = []
        for c in columns:
            row = at.get((system, method, *c))
            text = _pm(row)
            entries.append(Strong(text) if row is not None and row["value"] == lowest[c] else text)
        lines.append((system, method, *entries))
    floors = {(r["dimension"], r["observed"]): r for r in _floors(results, "mixture") if r["steps"] == steps}
    lines.append(("truth", "draws", *(_pm(floors.get(c)) for c in columns)))
    head = ("System", "Method", *(f"d = {d}, {o} observed" for d, o in columns))
    return Table(head, tuple(lines), 2)


def gaussian_table(results: Record) -> Table:
    """Return a table of the worst problem and the number of exact ones, for every method and distribution."""
    rows = _rows(results, "gaussian")
    lines = []
    for law, system, method, steps in _order([(r["law"], r["system"], r["method"], r["steps"]) for r in rows]):
        own = [r for r in rows if (r["law"], r["system"], r["method"], r["steps"]) == (law, system, method, steps)]

        def of(metric: str, own: list[Record] = own) -> list[float]:
            return [math.inf if r["value"] is None else r["value"] for r in own if r["metric"] == metric]

        right = [abs(m) <= _WITHIN and abs(c) <= _WITHIN for m, c in zip(of("mean"), of("covariance"), strict=True)]
        covered = of("coverage90")
        lines.append(
            (
                law, system, method, str(steps), f"{sum(right)} of {len(right)}",
                _short(max(map(abs, of("mean")))), _short(max(map(abs, of("covariance")))), _fine(max(of("bures"))),
                f"{min(covered):.3f} – {max(covered):.3f}",
            )
        )  # fmt: skip
    head = (
        "Data", "System", "Method", "steps", "right", "mean, s.e.", "covariance, s.e.", "Bures–Wasserstein", "90 % cover",
    )  # fmt: skip
    return Table(head, tuple(lines), 3)


def _fine(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.2g}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.2g}"


def increments_table(results: Record) -> Table:
    """Return a table of the coverage of every method on signals, by operator."""
    rows = _rows(results, "increments") + _floors(results, "increments")
    kinds = _order([(r["law"], r["operator"]) for r in rows])
    at = {(r["system"], r["method"], r["law"], r["operator"], r["metric"]): r["value"] for r in rows}
    lines = []
    for system, method in _order([(r["system"], r["method"]) for r in rows]):
        entries = []
        for law, kind in kinds:
            pair = [at.get((system, method, law, kind, f"coverage{share}")) for share in (50, 90)]
            entries.append(" / ".join("–" if v is None else f"{v:.2f}" for v in pair))
        lines.append((system, method, *entries))
    return Table(("System", "Method", *(f"{law}, {kind}" for law, kind in kinds)), tuple(lines), 2)


def pictures_table(results: Record, task: str, steps: int) -> Table:
    """Return a table of the scores of every method on one task."""
    rows = [r for r in _rows(results, "images") if r["operator"] == task and r["steps"] == steps]
    metrics = _order([r["metric"] for r in rows])
    at = {(r["system"], r["method"], r["metric"]): r for r in rows}
    lines = []
    for system, method in _order([(r["system"], r["method"]) for r in rows]):
        own = [at[system, method, m] for m in metrics if (system, method, m) in at]
        entries = [
            "–" if (r := at.get((system, method, m))) is None or r["value"] is None
            else f"{r['value']:.{1 if m == 'psnr' else 3}f} ± {r['error'] or 0:.{1 if m == 'psnr' else 3}f}"
            for m in metrics
        ]  # fmt: skip
        lines.append((system, method, *entries, str(own[0]["products"]), f"{own[0]['seconds']:.1f}"))
    head = ("System", "Method", *(m.replace("psnr", "PSNR, dB") for m in metrics), "products", "seconds")
    return Table(head, tuple(lines), 2)


def outcome(results: Record) -> list[Block]:
    """Return the best method of each system on the mixture, and the exact ones for Gaussian data."""
    found: list[Block] = []
    if _rows(results, "mixture"):
        found.append(duels_table(results))
    exact = [r for r in gaussian_table(results).rows if r[2] in ("flower-draw", "jfps-draw", "mmps")]
    if exact:
        found.append(Table(gaussian_table(results).head, tuple(exact), 3))
    return found


def summary(results: Record) -> str:
    """Return a paragraph on the conditions of the measurement."""
    config, machine, pieces = results["config"], results["hardware"], results["pieces"]
    made = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    whole = "" if pieces["done"] == pieces["of"] else f" This run is at {pieces['done']} of {pieces['of']} pieces."
    data = "" if config["dataset"] == "mnist" else f" --data {config['dataset']}"
    known = (
        f"{config['samples']:,} samples of each problem of the mixture, 100 slices; {config['draws']:,} draws of "
        f"Gaussian posteriors, a tenth by methods that are biased and by mmps of more than {config['limit_numbers']} "
        f"numbers; {config['signals']} signals with {config['signal_samples']:,} samples each; "
    )
    return (
        f"proxflow reproduce posterior --preset {config['preset']}{data}; seeds {', '.join(map(str, config['seeds']))}; "
        f"{'' if data else known}{config['pictures']} pictures of {config['dataset']} with {config['picture_draws']} "
        f"draws each by the model {config['model']}; "
        f"{machine['processor']}, threads {machine['threads']}; {made}.{whole}"
    )


_READING = Bullets(
    (
        """Mixture: sliced 2-Wasserstein distance of samples to draws from the exact posterior, mean over problems ± 1.96
        standard errors; truth is that between two such sets of draws. Both systems are given the same exact denoiser of data
        divided by 8 √2, and as many evaluations.""",
        """Gaussian: standard scores of mean and covariance, which are 0 ± 1 for draws from the posterior; right: both within
        3. flower-draw, for N(0, I), and jfps-draw, which is told the data's covariance, are right at any number of steps;
        mmps is in the limit of many. All others have a bias, which is shown. The largest of all operators and noises.""",
        """Signals: how often the posterior of a coordinate lies between quantiles of the samples, for 50 % / 90 %, the mean
        over coordinates and signals; truth is that of as many draws from the posterior. With Gaussian increments the flow
        sees the signal. With Laplace increments it sees the increments, of which the exact prediction has a closed form, and
        the running sum is part of the operator; their posterior is that of 32 chains of Gibbs' sampler.""",
        """Pictures: PSNR of the mean of a picture's draws; diversity, the standard deviation of what is hidden; coverage,
        how often hidden pixels lie between the least and the largest of the draws, where 19 draws from the posterior have at
        least 0.9; accuracy, the share of draws that a classifier puts in the picture's class; products by the network's
        Jacobian beside each evaluation; seconds of the process for all draws. With --data fashion-mnist, pictures of clothes
        are restored and nothing else, by a model that knows classes and is told none.""",
        """azula's methods have the schedule and strength that were best for them on the mixture with other seeds; its
        gradient of dps is divided by the norm over a whole batch, which is undone. Methods here have their defaults, and
        at most as many products as numbers are observed; particles have times whose noise falls from 100 to 0.05, chosen
        in the same way. Nothing was chosen on the problems of the tables.""",
    )
)


def blocks(results: Record) -> list[Block]:
    """Return the tables of a run."""
    found: list[Block] = []
    if _rows(results, "mixture"):
        found += [Heading(2, "The mixture: the best on each row"), duels_table(results)]
        for steps in sorted(_order([r["steps"] for r in _rows(results, "mixture")])):
            found += [Heading(2, f"The mixture at {steps} evaluations"), mixture_table(results, steps)]
    if _rows(results, "gaussian"):
        found += [Heading(2, "Gaussian data"), gaussian_table(results)]
    if _rows(results, "increments"):
        found += [Heading(2, "Signals with independent increments: coverage"), increments_table(results)]
    for task, steps in sorted(_order([(r["operator"], r["steps"]) for r in _rows(results, "images")])):
        found += [Heading(2, f"Pictures: {task}, {steps} evaluations"), pictures_table(results, task, steps)]
    return found


def block(runs: Sequence[Record]) -> str:
    """Return the kept runs as Markdown for the documentation."""
    found: list[Block] = []
    for run in runs:
        name, dataset = run["config"]["preset"], run["config"]["dataset"]
        found.append(Heading(3, f"Preset {name}" + ("" if dataset == "mnist" else f", {dataset}")))
        found.append(Paragraph(summary(run)))
        found += [replaced(b) for b in blocks(run)]
    return to_markdown(found) if found else "No run is kept under `results/` yet.\n"


def replaced(block: Block) -> Block:
    """Return a block with headings two levels lower."""
    return Heading(block.level + 2, block.text) if isinstance(block, Heading) else block


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Write the figures of the study into its folder; return its report. Nothing is sampled."""
    shown: list[Block] = []
    rows = _rows(results, "images")
    for task, steps in _order([(r["operator"], r["steps"]) for r in rows]):
        methods = _order([(r["system"], r["method"]) for r in rows if (r["operator"], r["steps"]) == (task, steps)])
        kept = {
            m: dict(
                read_npz(out / "cells" / f"{picture_name(m[0], task, steps, m[1])}.npz", ("draws", "seen", "whole"))
            )
            for m in methods
        }
        first = next(iter(kept.values()))
        sections = [
            Section(
                task,
                ("",),
                (
                    Row("whole", (_strip(first["whole"][:, None]),)),
                    Row("seen", (_strip(first["seen"][:, None]),)),
                    *(
                        Row(f"{m[0]} {m[1]}", (_strip(k["draws"][:, :2]),), n == 0)
                        for n, (m, k) in enumerate(kept.items())
                    ),
                ),
            )
        ]
        file = f"{picture_name('all', task, steps, 'methods')}.png"
        caption = (
            f"The first test pictures, two draws of each, {steps} network evaluations, noise {rows[0]['noise']:g}."
        )
        shown.append(charts.write_grids(out / file, sections, 18, f"Pictures restored, task {task}", caption))
    return [
        Heading(1, "Posterior sampling"),
        Paragraph(summary(results)),
        *blocks(results),
        *([Heading(2, "Pictures that were restored"), *shown] if shown else []),
        Heading(2, "How to read this"),
        _READING,
    ]


def _strip(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Arrange (pictures, draws, channels, height, width) as a row of pictures for each draw, the first channel."""
    turned = np.ascontiguousarray(images[:, :, 0].transpose(1, 0, 2, 3)).reshape(-1, *images.shape[-2:])
    return charts.tile(turned, len(images), 56)
