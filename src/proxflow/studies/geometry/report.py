"""The report of the geometry study: every flow and its control, with a verdict from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from proxflow.studies import charts, scoreboard
from proxflow.studies.charts import Line, Row, Section
from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Picture, Strong, Table
from proxflow.studies.scoreboard import Record, Scoreboard, Summary, dataset_of, distance
from proxflow.studies.trials import Cell, kept_images

EVALUATIONS = 10
"""NFE of the figures and the overview."""

_GEOMETRIES = {
    "w2": "Wasserstein-2",
    "kl": "Kullback–Leibler",
    "reverse-kl": "reverse Kullback–Leibler",
    "fisher-rao": "Fisher–Rao",
    "renyi": "Rényi of order 1/2",
    "anisotropic": "anisotropic Wasserstein-2, low spatial frequencies first",
    "linear": "reverse Kullback–Leibler on the simplex (the linear flow)",
    "fisher": "Fisher–Rao on the simplex (the Fisher flow)",
}
_COLOURS = {
    "w2": "#000000",
    "kl": "#CC79A7",
    "reverse-kl": "#E69F00",
    "fisher-rao": "#56B4E9",
    "renyi": "#009E73",
    "anisotropic": "#D55E00",
}
_STRIP = 12
"""Images per flow in the figures."""


@dataclass(frozen=True)
class Verdict:
    """The difference between a flow and its control.

    Args:
        flow: Name of the flow.
        control: Name of its control.
        geometry: The geometry that only the flow has.
        matched: Whether the flow's schedule was matched to the control's, or the other way round.
        sampler: The sampler of the ratios.
        ratios: Ratio of the Fréchet distances of flow and control, geometric mean over seeds, by NFE.
        noise: Factor within which such a ratio may be noise of training and sampling; ``None`` if unknown.
        unexplained: Largest root mean square of the part of the beliefs' paths that no schedule explains; ``None`` if
            not measured, on the simplex.
        schedule: Ratio of the Fréchet distances of the control and w2, by NFE; empty if the control is w2 or
            binary-bfn.
        weights: Largest difference between weights of the two networks after the same training.
        pixels: Mean absolute pixel difference of samples from the same noise, by NFE.
    """

    flow: str
    control: str
    geometry: str
    matched: bool
    sampler: str
    ratios: dict[int, float]
    noise: float | None
    unexplained: float | None
    schedule: dict[int, float]
    weights: float
    pixels: dict[int, float]

    @property
    def beyond(self) -> dict[int, float]:
        """Return the ratios beyond noise."""
        return {
            nfe: r for nfe, r in self.ratios.items() if self.noise is None or abs(math.log(r)) > math.log(self.noise)
        }

    @property
    def same_beliefs(self) -> bool:
        """Whether flow and control have the same training beliefs up to rounding."""
        return self.unexplained is not None and self.unexplained < 1e-6

    @property
    def sentence(self) -> str:
        """Return the verdict in words."""
        low, high = min(self.ratios.values()), max(self.ratios.values())
        measured = f"Fréchet distance {low:.2f} to {high:.2f} times that of {self.control}"
        if self.noise is None:
            outcome = f"{measured}; with one seed the noise is unknown, so nothing is decided."
        elif not self.beyond:
            outcome = f"{measured}: no difference beyond the noise (a factor of {self.noise:.2f})."
        else:
            worse = [nfe for nfe, ratio in self.beyond.items() if ratio > 1]
            better = [nfe for nfe, ratio in self.beyond.items() if ratio < 1]
            listed = " and ".join(
                f"{word} at {', '.join(map(str, nfes))} NFE"
                for word, nfes in (("worse", worse), ("better", better))
                if nfes
            )
            outcome = f"{measured}: beyond the noise (a factor of {self.noise:.2f}) it is {listed}."
            if self.same_beliefs:
                outcome += " As the beliefs are the same, this is the chance of training and not the geometry's doing."
            elif self.unexplained is None:
                outcome += " This part is the geometry's, with the prior, the loss and the sampler that go with it."
            else:
                outcome += " This part is the geometry's."
        if self.same_beliefs:
            cause = "Its beliefs are those of its control up to rounding, so that nothing is left to the geometry."
            if self.weights == 0:
                cause += " The same training left the same network, to the last bit."
        elif self.unexplained is None:
            cause = "Both tell the network equally much of each pixel at every time."
        else:
            cause = f"No schedule explains up to {self.unexplained:.1%} of the way that its beliefs have gone."
        words = [f"{self.flow} against {self.control}, {self.sampler}: {cause} {outcome}"]
        if self.pixels:
            low, high = min(self.pixels.values()), max(self.pixels.values())
            words.append(f"From the same noise their samples differ by {low:.1f} to {high:.1f} of 255 a pixel.")
        if self.schedule:
            low, high = min(self.schedule.values()), max(self.schedule.values())
            words.append(
                f"Its schedule alone, which {self.control} has as well, makes the Fréchet distance {low:.2f} to {high:.2f} "
                "times that of w2."
            )
        return " ".join(words)


def noise_of(board: Scoreboard, flow: str, sampler: str) -> float | None:
    """Return the factor within which a ratio of two Fréchet distances may be noise; ``None`` with one seed.

    The larger of two: the largest ratio between seeds of a flow at any NFE, and the bootstrap range over its samples,
    exp(1.96 √2 e) with e the largest relative standard error of a distance.
    """
    cells = [c for c in board.cells if (c["flow"], c["sampler"]) == (flow, sampler)]
    if len({c["seed"] for c in cells}) < 2:
        return None
    errors = [c["errors"]["frechet"] / c["frechet"] for c in cells if "frechet" in c.get("errors", {})]
    summaries = [board.over_seeds(flow, sampler, nfe) for nfe in board.nfes]
    ratios = [s.high / s.low for s in summaries if s is not None]
    return max(*ratios, math.exp(1.96 * math.sqrt(2) * max(errors, default=0.0)))


def verdicts(results: Record) -> list[Verdict]:
    """Return the verdict of every pair of the study."""
    board = Scoreboard.of(results)

    def ratio(over: str, under: str, sampler: str, nfe: int) -> float | None:
        both = [(board.one(over, sampler, nfe, s), board.one(under, sampler, nfe, s)) for s in board.seeds]
        logs = [math.log(a / b) for a, b in both if a is not None and b is not None]
        return math.exp(sum(logs) / len(logs)) if logs else None

    def ratios(over: str, under: str, sampler: str) -> dict[int, float]:
        found = {nfe: ratio(over, under, sampler, nfe) for nfe in board.nfes}
        return {nfe: value for nfe, value in found.items() if value is not None}

    found = []
    for pair in results["pairs"]:
        flow, control = pair["flow"], pair["control"]
        binary = control == "binary-bfn"
        sampler: str = "stochastic" if binary else "deterministic"
        origin = "binary-bfn" if binary else "w2"
        found.append(
            Verdict(
                flow,
                control,
                pair["geometry"],
                pair["matched"],
                sampler,
                ratios(flow, control, sampler),
                noise_of(board, origin, sampler),
                None if binary else max(results["paths"][pair["geometry"]]["unexplained"]),
                ratios(control, origin, sampler) if control != origin else {},
                pair["weights"],
                # Bayesian flows and flows with a drawn prior use different noise: their samples are unrelated.
                {e["nfe"]: e["pixels"] for e in pair["apart"] if e["sampler"] == sampler and not binary},
            )
        )
    return found


def outcome(results: Record) -> list[Block]:
    """Return the verdicts in words."""
    return [Bullets(tuple(verdict.sentence for verdict in verdicts(results)))]


def _decomposition(board: Scoreboard, found: Sequence[Verdict]) -> Table:
    """Return a table of Fréchet distances of each flow and its control with the same seeds, and their ratio."""
    rows: list[tuple[str | Strong, ...]] = []

    def entry(ratio: float | None, bold: bool = False) -> str | Strong:
        text = "–" if ratio is None else f"{ratio:.2f}"
        return Strong(text) if bold else text

    for verdict in found:
        seeds = sorted({cell["seed"] for cell in board.cells if cell["flow"] == verdict.flow})
        for name, text in ((verdict.flow, "flow"), (verdict.control, "control")):
            summaries = [board.over_seeds(name, verdict.sampler, nfe, seeds=seeds) for nfe in board.nfes]
            rows.append((name, text, *("–" if s is None else s.text(distance) for s in summaries)))
        ratios = (entry(verdict.ratios.get(nfe), nfe in verdict.beyond) for nfe in board.nfes)
        rows.append(("", "ratio: the geometry", *ratios))
        if verdict.schedule:
            shown = (entry(verdict.schedule.get(nfe)) for nfe in board.nfes)
            rows.append(("", "control over w2: the schedule", *shown))
    return Table(("Flow", "", *(f"{nfe} NFE" for nfe in board.nfes)), tuple(rows), 2)


def _paths(out: Path, results: Record) -> Picture:
    return charts.write_paths(
        out / "mean-paths.png",
        {name: (path["times"], path["fraction"], path["unexplained"]) for name, path in results["paths"].items()},
        _COLOURS,
        "Two charts over the time on the linear schedule: how far a flow's mean has gone, and what no schedule explains",
        "Left: the part of the way from prior to data that the mean of a training belief has gone, as a control is given "
        "it. Right: root mean square of what is left, pixel by pixel, over that of the whole way: the geometry's own part.",
    )


def _chart(out: Path, board: Scoreboard, found: Sequence[Verdict], dataset: str) -> Picture:
    lines = []

    def add(name: str, geometry: str, kind: str) -> None:
        lines.append(Line(geometry, kind, board.points(name, "deterministic")))

    add("w2", "w2", "flow")
    for verdict in found:
        if verdict.geometry in _COLOURS:
            add(verdict.flow, verdict.geometry, "matched" if verdict.matched else "flow")
            if not verdict.matched:
                add(verdict.control, verdict.geometry, "control")
    return charts.write_chart(
        out / "frechet-against-nfe.png",
        lines,
        board.floor(),
        f"{dataset}: geometries, each with its control (deterministic sampler)",
        _COLOURS,
        "Line chart of Fréchet distance against NFE for each geometry and its control; the numbers are in the table",
        "Fréchet distance against network evaluations, deterministic sampler. Full line: the flow on the linear schedule. "
        "Dashed: its control, Wasserstein-2 on the schedule matched to it. Dotted: the flow on the schedule that brings it "
        "nearest to w2, whose control is w2.",
        styles=("flow", "control", "matched"),
        headings=("Geometry", "Line"),
    )


def _samples(out: Path, board: Scoreboard, found: Sequence[Verdict], seed: int) -> Picture:
    sections = []
    for verdict in found:
        nfe = board.nearest_nfe(verdict.flow, EVALUATIONS)
        cells = [Cell(name, verdict.sampler, nfe, seed) for name in (verdict.flow, verdict.control)]
        rows = tuple(Row(c.flow, (charts.tile(kept_images(out, c)[:_STRIP], _STRIP, 48),)) for c in cells)
        sections.append(Section(f"{verdict.geometry}, {nfe} NFE", ("",), rows))
    return charts.write_grids(
        out / "pairs.png",
        sections,
        22,
        "Strips of samples, each flow above its control",
        f"The first {_STRIP} samples of each flow and, below, of its control, from the same noise, seed {seed}. Where two "
        "rows show the same images, the geometry does nothing that its schedule does not. On binary images the control "
        "draws noise of another kind.",
    )


def _likelihood(results: Record) -> list[Block]:
    bounds = results["likelihood"]
    by_flow: dict[str, list[Record]] = {}
    for bound in bounds:
        by_flow.setdefault(bound["flow"], []).append(bound)
    rows = tuple(
        (
            flow,
            Summary.of([b["nats"] for b in found]).text("{:.2f}".format),
            f"{max(b['standard_error'] for b in found):.2f}",
            ", ".join(str(b["seed"]) for b in found),
        )
        for flow, found in by_flow.items()
    )
    first = {flow: found[0] for flow, found in by_flow.items()}
    words = []
    for flow in ("binary-linear", "binary-fisher"):
        if {flow, f"{flow}-matched", "binary-bfn"} <= set(first):
            own, matched, bfn = (first[name] for name in (flow, f"{flow}-matched", "binary-bfn"))
            words.append(
                f"{flow}: training on the schedule with the capacities of binary-bfn changes its bound by "
                f"{_gap(matched, own, 'the schedule')}. What then separates it from binary-bfn is "
                f"{_gap(matched, bfn, 'the geometry, or of how tight the two bounds are')}."
            )
    count, draws = bounds[0]["images"], bounds[0]["draws"]
    return [
        Paragraph(
            f"Upper bounds of the negative log-likelihood of {count} binary test images, each pixel drawn once with its "
            f"grey value as probability, from {draws} times for each image. The bound does not depend on the schedule but "
            "through what the network learned. For binary-bfn it is its variational bound, for the flows on the simplex "
            "that of their channels (docs/likelihood.md)."
        ),
        Table(("Flow", "Nats an image", "Standard error", "Seeds"), rows, 1),
        *([Bullets(tuple(words))] if words else []),
    ]


def _gap(a: Record, b: Record, cause: str) -> str:
    """Return the difference of two bounds in words.

    Its standard error is that of independent images: an upper estimate.
    """
    gap, error = a["nats"] - b["nats"], math.hypot(a["standard_error"], b["standard_error"])
    outcome = f"the work of {cause}" if abs(gap) > 1.96 * error else "within the error"
    return f"{gap:+.2f} ± {error:.2f} nats, {outcome}"


def _part(results: Record, binary: bool) -> Scoreboard:
    return Scoreboard(tuple(c for c in results["cells"] if c["flow"].startswith("binary") == binary))


_READING = Bullets(
    (
        """A control has the schedule of its flow but the geometry of w2. Schedules are matched by the mean of the training
        beliefs, which is all that the network reads: nearest in mean square over pixels of the data and draws of the prior.
        On two classes they are matched by the capacity of what a belief tells of its own pixel.""",
        """Flow and control share initial weights, order of the data, noise and the weight of errors at each time. Their
        numbers are therefore closer than those of two runs apart. The noise given here is an upper estimate for them: the
        largest ratio between seeds of w2 (on binary images of binary-bfn) or what the bootstrap over samples allows (95 %),
        whichever is larger.""",
        """Ratios above 1 are worse than the control. Bold ratios exceed the noise.""",
        """deterministic: the proximal step with the predicted target itself as message. stochastic: with a noisy draw around
        it. multistep2: second order along the path of means, for flows that have one. NFE counts every evaluation of the
        network.""",
        """The Rényi step does not compose: in training a belief is reached in a few simulated steps, in sampling in as many
        as there are evaluations.""",
    )
)


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Write the figures of the study into its folder; return its report. Nothing is sampled."""
    grey, binary, every = _part(results, False), _part(results, True), Scoreboard.of(results)
    dataset, found, training, shown = (
        dataset_of(results),
        verdicts(results),
        results["config"]["training"],
        (5, 20, 100),
    )
    return [
        Heading(1, f"Geometry or schedule: proximal flows on {dataset}"),
        Paragraph(
            f"One network was trained under several divergences, {training['steps']:,} steps of {training['batch_size']} "
            "images each, and each flow is held against a control that has its schedule but not its geometry. "
            + " ".join(f"{name} is {text}." for name, text in _GEOMETRIES.items())
        ),
        Heading(2, "Verdicts"),
        *outcome(results),
        Heading(2, "What is the geometry's and what the schedule's"),
        _decomposition(every, found),
        Heading(2, "How the means go"),
        _paths(out, results),
        Heading(2, "Fréchet distance against evaluations, grey images"),
        _chart(out, grey, found, dataset),
        scoreboard.frechet_table(grey),
        *scoreboard.on_second(results, grey),
        Heading(2, "Binary images"),
        scoreboard.frechet_table(binary),
        *scoreboard.on_second(results, binary),
        Heading(3, "Likelihood"),
        *_likelihood(results),
        Heading(2, "Samples"),
        _samples(out, every, found, grey.seeds[0]),
        Heading(2, "Precision, recall and diversity"),
        scoreboard.quality_table(grey, shown),
        scoreboard.quality_table(binary, shown),
        Heading(2, "How to read this"),
        _READING,
        Heading(2, "Conditions"),
        scoreboard.conditions(results, results["parameters"]),
    ]
