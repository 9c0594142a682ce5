"""The report of the MNIST experiment: pictures, and one text written as Markdown and as a self-contained web page.

The text is made once, as a list of blocks (:data:`Block`); :func:`to_markdown` and :func:`to_html` only set it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from proxflow import models
from proxflow.config import FlowName, SamplerName
from proxflow.runtime.files import write_text
from proxflow.studies import pictures
from proxflow.studies.mnist import Cell, kept_images
from proxflow.studies.pictures import Evolution, Grey, Line, Row, Section

Score = Literal["frechet", "precision", "recall", "diversity"]
Relation = Literal["<", "≤", ">", "≥"]

EVALUATIONS = 20
"""NFE of the headline, the grids and the pictures of beliefs."""

_FLOWS: dict[FlowName, str] = {
    "gpfn-w2": "General Proximal Flow Network with Wasserstein-2 steps (arXiv 2603.00751)",
    "gpfn-kl": "General Proximal Flow Network with Kullback–Leibler steps",
    "gpfn-reverse-kl": "General Proximal Flow Network with reverse Kullback–Leibler steps",
    "gpfn-fisher-rao": "General Proximal Flow Network with Fisher–Rao steps",
    "bfn": "Bayesian Flow Network with the settings of its reference implementation (arXiv 2308.07037)",
    "bfn-tuned": "Bayesian Flow Network with σ₁ and parameterisation chosen for MNIST",
}
_SAMPLERS: dict[SamplerName, str] = {
    "deterministic": "the proximal step with the predicted target itself as message",
    "stochastic": "the proximal step with a noisy draw around the predicted target, as Bayesian Flow Networks have it",
    "marginal": "replaces noise and keeps the distribution that beliefs have in training (ancestral sampling)",
    "multistep2": "of second order: uses the last two predictions, at one evaluation a step",
    "multistep3": "of third order: uses the last three predictions, at one evaluation a step",
    "unipc": "multistep2, each step corrected by the prediction at its end, at one evaluation a step",
    "midpoint": "of second order: two evaluations a step, without a memory",
    "bfn-solver1": "BFN-Solver of first order, without fresh noise",
    "bfn-solver2": "BFN-Solver of second order, without fresh noise",
    "sde-bfn-solver1": "BFN-Solver of first order, with fresh noise",
    "sde-bfn-solver2": "BFN-Solver of second order, with fresh noise",
}


# Numbers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A score over the seeds: mean, lowest and highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise at least one value."""
        return cls(sum(values) / len(values), min(values), max(values))

    def text(self, form: Callable[[float], str]) -> str:
        """The mean, and the range where there is one."""
        if self.low == self.high:
            return form(self.mean)
        return f"{form(self.mean)} ({form(self.low)}–{form(self.high)})"


def distance(value: float) -> str:
    """A Fréchet distance, or a ratio of two, with about three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _measured(value: float) -> str:
    """A claim's value with enough digits to tell it from its threshold."""
    return f"{value:.{3 if value < 10 else 1}f}"


@dataclass(frozen=True)
class Scoreboard:
    """The cells of a results file, by what they are.

    Args:
        cells: The records, as in ``results["cells"]``.
    """

    cells: tuple[dict[str, Any], ...]

    @cached_property
    def _records(self) -> dict[tuple[str, str, int, int], dict[str, Any]]:
        return {(c["flow"], c["sampler"], c["nfe"], c["seed"]): c for c in self.cells}

    @cached_property
    def rows(self) -> list[tuple[FlowName, SamplerName]]:
        """Flows with their samplers, in the order of the experiment."""
        return list(dict.fromkeys((c["flow"], c["sampler"]) for c in self.cells))

    @cached_property
    def flows(self) -> list[FlowName]:
        return list(dict.fromkeys(flow for flow, _ in self.rows))

    @cached_property
    def nfes(self) -> list[int]:
        return sorted({c["nfe"] for c in self.cells})

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({c["seed"] for c in self.cells})

    def one(self, flow: str, sampler: str, nfe: int, seed: int, score: Score = "frechet") -> float | None:
        """A score of one cell, or ``None`` where there is no such cell."""
        record = self._records.get((flow, sampler, nfe, seed))
        return None if record is None else float(record[score])

    def over_seeds(self, flow: str, sampler: str, nfe: int, score: Score = "frechet") -> Summary | None:
        """A score over the seeds, or ``None`` where no seed has such a cell."""
        values = [self.one(flow, sampler, nfe, seed, score) for seed in self.seeds]
        found = [value for value in values if value is not None]
        return Summary.of(found) if found else None

    def floor(self, score: Literal["floor", "floor_precision", "floor_recall"]) -> Summary:
        """A score of real images; it depends on the seed alone."""
        return Summary.of(list({c["seed"]: float(c[score]) for c in self.cells}.values()))

    def best_sampler(self, flow: FlowName, nfe: int) -> SamplerName:
        """The sampler with the lowest mean Fréchet distance, of those with a cell at this NFE."""
        scored = [(self.over_seeds(flow, sampler, nfe), sampler) for f, sampler in self.rows if f == flow]
        found = [(summary.mean, sampler) for summary, sampler in scored if summary is not None]
        return min(found, key=lambda pair: pair[0])[1]

    def nearest_nfe(self, flow: str, wanted: int) -> int:
        """The NFE with cells of a flow that is nearest to ``wanted``."""
        found = sorted({int(c["nfe"]) for c in self.cells if c["flow"] == flow})
        return min(found, key=lambda nfe: abs(nfe - wanted))


# Claims -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """Something the paper's experiment is expected to show, with what was measured.

    Args:
        name: Identifier.
        statement: What is measured.
        sentence: The same as a sentence, with its value.
        values: The value of each seed that has the cells for it, at least one.
        relation: How a value must stand to the threshold.
        threshold: What it is held against; ``None`` for a value that is only stated.
    """

    name: str
    statement: str
    sentence: str
    values: tuple[float, ...]
    relation: Relation
    threshold: float | None

    @property
    def held(self) -> int | None:
        """Number of seeds in which the claim holds, ``None`` without a threshold."""
        if self.threshold is None:
            return None
        limit = self.threshold
        compare: dict[Relation, Callable[[float], bool]] = {
            "<": lambda value: value < limit,
            "≤": lambda value: value <= limit,
            ">": lambda value: value > limit,
            "≥": lambda value: value >= limit,
        }
        return sum(map(compare[self.relation], self.values))

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds in every seed, ``None`` without a threshold."""
        return None if self.held is None else self.held == len(self.values)


_RATIO_THRESHOLDS = {"quick": 5.0, "standard": 8.0, "paper": 22.0}

Measure = Callable[[Scoreboard, int], float | None]


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _advantage(over: FlowName, sampler: SamplerName) -> Measure:
    return lambda board, seed: _ratio(
        board.one(over, "stochastic", EVALUATIONS, seed), board.one("gpfn-w2", sampler, EVALUATIONS, seed)
    )


def _collapse(board: Scoreboard, seed: int) -> float | None:
    values = [board.one("bfn", "deterministic", nfe, seed, "diversity") for nfe in board.nfes]
    return max((value for value in values if value is not None), default=None)


def _cost_of_noise(board: Scoreboard, seed: int) -> float | None:
    pairs = [
        _ratio(board.one("gpfn-w2", "stochastic", nfe, seed), board.one("gpfn-w2", "deterministic", nfe, seed))
        for nfe in board.nfes
        if nfe >= 10
    ]
    return max((value for value in pairs if value is not None), default=None)


def claims(results: dict[str, Any]) -> list[Claim]:
    """What the experiment is expected to show, measured.

    Args:
        results: Content of ``results.json``.

    Returns:
        The claims whose cells are there, in the order of the report.
    """
    board = Scoreboard(tuple(results["cells"]))
    preset = results["config"]["preset"]
    ratio = _RATIO_THRESHOLDS.get(preset)
    found: list[Claim] = []

    def add(
        name: str, statement: str, sentence: str, measure: Measure, relation: Relation, threshold: float | None
    ) -> None:
        measured = [measure(board, seed) for seed in board.seeds]
        values = tuple(value for value in measured if value is not None)
        if values:
            value = Summary.of(values).text(distance)
            found.append(Claim(name, statement, sentence.format(value=value), values, relation, threshold))

    add(
        "advantage",
        f"Fréchet distance of bfn (stochastic, its own sampler) over that of gpfn-w2 (multistep2, the default sampler), "
        f"{EVALUATIONS} NFE",
        f"At {EVALUATIONS} evaluations the Fréchet distance of bfn with its own sampler (stochastic) is {{value}} times "
        "that of gpfn-w2 with the library's default sampler (multistep2).",
        _advantage("bfn", "multistep2"),
        "≥",
        ratio,
    )
    add(
        "advantage-deterministic",
        f"The same with gpfn-w2 deterministic, {EVALUATIONS} NFE",
        "It is {value} times that of gpfn-w2 deterministic.",
        _advantage("bfn", "deterministic"),
        "≥",
        None,
    )
    add(
        "advantage-tuned",
        f"Fréchet distance of bfn-tuned (stochastic) over that of gpfn-w2 (multistep2), {EVALUATIONS} NFE",
        f"For bfn-tuned (stochastic) the ratio to gpfn-w2 (multistep2) is {{value}} at {EVALUATIONS} evaluations.",
        _advantage("bfn-tuned", "multistep2"),
        "≥",
        None,
    )
    add(
        "collapse",
        "Largest diversity of bfn without noise (deterministic), any NFE",
        "Without noise in its messages bfn reaches a diversity of at most {value} at any NFE, where 1 is the diversity of "
        "real images and 0 one image again and again.",
        _collapse,
        "<",
        0.02,
    )
    add(
        "diversity",
        f"Diversity of gpfn-w2 without noise (deterministic), {EVALUATIONS} NFE",
        f"The diversity of gpfn-w2 without noise is {{value}} at {EVALUATIONS} evaluations.",
        lambda board, seed: board.one("gpfn-w2", "deterministic", EVALUATIONS, seed, "diversity"),
        ">",
        None if preset == "quick" else 0.85,
    )
    add(
        "noise",
        "Largest Fréchet distance of gpfn-w2 stochastic over deterministic, at equal NFE from 10 up",
        "From 10 evaluations up, noise in the messages of gpfn-w2 multiplies its Fréchet distance by at most {value}.",
        _cost_of_noise,
        "≤",
        1.3,
    )
    add(
        "multistep",
        "Fréchet distance of gpfn-w2 with multistep2 at 5 NFE over deterministic at 10 NFE",
        "With the sampler multistep2, the Fréchet distance of gpfn-w2 at 5 evaluations is {value} times that of "
        "deterministic at 10.",
        lambda board, seed: _ratio(
            board.one("gpfn-w2", "multistep2", 5, seed), board.one("gpfn-w2", "deterministic", 10, seed)
        ),
        "<",
        1.0,
    )
    return found


# Text ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Strong:
    """A table entry that stands out."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        head: Headings of the columns.
        rows: Entries, as many a row as there are headings.
        labels: Number of first columns that hold words; the others hold numbers and are set to the right.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str | Strong, ...], ...]
    labels: int


@dataclass(frozen=True)
class Picture:
    """A picture from the report's folder.

    Args:
        file: Its file name.
        description: What it shows, for those who do not see it.
        caption: Text below it.
    """

    file: str
    description: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture


def _markdown(text: str) -> str:
    """Plain text on one line, with everything escaped that Markdown would read as markup."""
    flat = re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", lambda found: found[1][:-1] + "\\" + found[1][-1], flat)


def _markdown_entry(entry: str | Strong) -> str:
    return f"**{_markdown(entry.text)}**" if isinstance(entry, Strong) else _markdown(entry)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Set blocks as Markdown, with pictures by relative links."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {_markdown(text)}")
            case Paragraph(text):
                parts.append(_markdown(text))
            case Bullets(items):
                parts.append("\n".join(f"- {_markdown(item)}" for item in items))
            case Table(head, rows, labels):
                rule = [":---"] * labels + ["---:"] * (len(head) - labels)
                lines = [[_markdown(text) for text in head], rule, *([_markdown_entry(e) for e in row] for row in rows)]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Picture(file, description, caption):
                parts.append(f"![{_markdown(description)}]({file})\n\n{_markdown(caption)}")
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --quiet: #5b5b60; --ground: #ffffff; --rule: #d8d8dc; --band: #f4f4f6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --quiet: #a5a5ac; --ground: #17181a; --rule: #3a3b40; --band: #202226 }
}
body { font: 1rem/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 66rem; margin: 0 auto; padding: 1rem 1.1rem 4rem; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin-top: 2.6rem }
p, li { max-width: 46rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .65rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }
thead th { border-bottom: 2px solid var(--quiet) } tbody tr:nth-child(even) { background: var(--band) }
.number { text-align: right; white-space: nowrap }
figure { margin: 1.4rem 0 } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
img.wide { min-width: 38rem }
figcaption { color: var(--quiet); font-size: .92rem; max-width: 46rem }
"""


def _html_entry(tag: str, entry: str | Strong, number: bool) -> str:
    text = f"<strong>{html.escape(entry.text)}</strong>" if isinstance(entry, Strong) else html.escape(entry)
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}>{text}</{tag}>"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """Set blocks as one web page that needs no other file: the pictures in ``folder`` become part of it."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Paragraph(text):
                parts.append(f"<p>{html.escape(text)}</p>")
            case Bullets(items):
                parts.append("<ul>\n" + "\n".join(f"<li>{html.escape(item)}</li>" for item in items) + "\n</ul>")
            case Table(head, rows, labels):
                cells = [_html_entry("th", text, k >= labels) for k, text in enumerate(head)]
                lines = ["".join(_html_entry("td", e, k >= labels) for k, e in enumerate(row)) for row in rows]
                body = "\n".join(f"<tr>{line}</tr>" for line in lines)
                parts.append(
                    f'<div class="scroll"><table>\n<thead><tr>{"".join(cells)}</tr></thead>\n'
                    f"<tbody>\n{body}\n</tbody>\n</table></div>"
                )
            case Picture(file, description, caption):
                path = folder / file
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                with Image.open(path) as image:
                    width, height = image.size
                # A wide picture is scrolled on a phone, where it would become too small to see.
                kind = ' class="wide"' if width > 800 else ""
                parts.append(
                    f'<figure><div class="scroll"><img{kind} width="{width}" height="{height}" '
                    f'alt="{html.escape(description)}" src="data:image/{path.suffix[1:]};base64,{data}"></div>\n'
                    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
                )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def dataset_of(results: dict[str, Any]) -> str:
    """Name of the data set, for texts."""
    name = str(results["config"]["dataset"])
    return "MNIST" if name == "mnist" else name


def _sample_counts(board: Scoreboard) -> str:
    return _listed([str(count) for count in sorted({c["samples"] for c in board.cells})])


def _opening(results: dict[str, Any], board: Scoreboard, found: Sequence[Claim]) -> list[Block]:
    """What was compared, and what came out."""
    training = results["config"]["training"]
    compared = (
        f"All were trained on the same images of {dataset_of(results)}, with the same network, for {training['steps']:,} "
        f"steps of {training['batch_size']} images, and then sampled with equal numbers of network evaluations (NFE)."
    )
    blocks: list[Block] = [Paragraph(" ".join([*(f"{flow} is the {_FLOWS[flow]}." for flow in board.flows), compared]))]
    if found:
        decided = [claim for claim in found if claim.holds is not None]
        held = sum(bool(claim.holds) for claim in decided)
        outcome = [claim.sentence for claim in found] + [f"Claims that hold: {held} of {len(decided)}."] * bool(decided)
        rows = tuple((c.statement, _verdict(c), Summary.of(c.values).text(_measured), _expected(c)) for c in found)
        blocks += [Paragraph(" ".join(outcome)), Table(("Claim", "Holds", "Measured", "Expected"), rows, 2)]
    return blocks


def _verdict(claim: Claim) -> str | Strong:
    if claim.held is None:
        return "–"
    if claim.holds:
        return Strong("yes")
    return f"in {claim.held} of {len(claim.values)} seeds" if claim.held else Strong("no")


def _expected(claim: Claim) -> str:
    return "–" if claim.threshold is None else f"{claim.relation} {claim.threshold:g}"


def frechet_table(board: Scoreboard) -> Table:
    """Fréchet distance of every flow and sampler, a column for each NFE."""
    columns = []
    for nfe in board.nfes:
        summaries = [board.over_seeds(flow, sampler, nfe) for flow, sampler in board.rows]
        best = distance(min(summary.mean for summary in summaries if summary is not None))
        texts = ["–" if summary is None else summary.text(distance) for summary in summaries]
        columns.append(
            [
                Strong(text) if summary is not None and distance(summary.mean) == best else text
                for summary, text in zip(summaries, texts, strict=True)
            ]
        )
    rows: list[tuple[str | Strong, ...]] = [
        (*row, *entries) for row, entries in zip(board.rows, zip(*columns, strict=True), strict=True)
    ]
    rows.append(("real images", "–", *[board.floor("floor").text(distance)] * len(board.nfes)))
    return Table(("Flow", "Sampler", *(f"{nfe} NFE" for nfe in board.nfes)), tuple(rows), 2)


def quality_table(board: Scoreboard) -> Table:
    """Precision, recall and diversity of every flow and sampler at some NFE."""
    wanted = [nfe for nfe in (5, EVALUATIONS, 100) if nfe in board.nfes] or board.nfes[-1:]
    scores: tuple[Score, ...] = ("precision", "recall", "diversity")

    def entry(flow: str, sampler: str, nfe: int, score: Score) -> str:
        summary = board.over_seeds(flow, sampler, nfe, score)
        return "–" if summary is None else summary.text(_share)

    rows = [
        (flow, sampler, *(entry(flow, sampler, nfe, score) for score in scores for nfe in wanted))
        for flow, sampler in board.rows
    ]
    floors = [board.floor("floor_precision").text(_share), board.floor("floor_recall").text(_share), "–"]
    rows.append(("real images", "–", *(floor for floor in floors for _ in wanted)))
    return Table(("Flow", "Sampler", *(f"{score}, {nfe} NFE" for score in scores for nfe in wanted)), tuple(rows), 2)


def _reading(board: Scoreboard) -> Bullets:
    """What the words and numbers mean."""
    items = [f"{sampler}: {_SAMPLERS[sampler]}." for sampler in dict.fromkeys(sampler for _, sampler in board.rows)]
    items += [
        """NFE counts every evaluation of the network for one sample, the last one included; the prediction of the last
        evaluation is the sample. The reference sampler of Bayesian Flow Networks spends n + 1 evaluations on n updates, and
        is counted so: at NFE k, bfn and bfn-tuned make k − 1 updates and a last prediction. A gpfn flow at NFE k makes k
        steps, of which the last one lands on its prediction.""",
        """Fréchet distance compares features of samples with those of the reference; lower is better. It is biased upwards
        with few samples, so numbers compare only at equal counts and on the same features. The row of real images scores as
        many training images, which is what a perfect model would reach. The lowest numbers of a column are bold.""",
        """Precision is the share of samples that look like real images, recall the share of real images that look like
        samples, diversity the mean distance between samples over that between real images: 1 as diverse, 0 all the same.""",
    ]
    if len(board.seeds) > 1:
        items.append(
            """Numbers are means over the seeds, with the lowest and the highest in brackets. A claim holds when it does in
            every seed; pictures are of the first."""
        )
    return Bullets(tuple(items))


def _hardware(described: dict[str, Any]) -> str:
    names = [described[key] for key in ("accelerator", "processor") if key in described]
    return ", ".join([*names, f"cores {described['cores']}", f"threads {described['threads']}", described["system"]])


def conditions(results: dict[str, Any], board: Scoreboard, parameters: int) -> Table:
    """What the numbers were measured with."""
    config, extractor, trained = results["config"], results["extractor"], results["training"]
    network, training = config["network"], config["training"]
    times = {
        flow: [trained[key]["seconds"] for seed in board.seeds if (key := f"{flow}-seed{seed}") in trained]
        for flow in board.flows
    }
    seconds = [f"{flow} {Summary.of(values).text('{:.0f}'.format)}" for flow, values in times.items()]
    levels = ", ".join(str(network["channels"] * multiplier) for multiplier in network["multipliers"])
    attention = ", ".join(str(level) for level in network["attention"]) or "none"
    rows = [
        ("Preset", config["preset"]),
        ("Data", f"{dataset_of(results)}, {_listed(sorted({record['data'] for record in trained.values()}))}"),
        ("Network", f"U-Net, {parameters:,} parameters"),
        ("Channels at each level", levels),
        ("Residual blocks a level", str(network["blocks"])),
        ("Levels with attention", attention),
        ("Patch", str(network["patch"])),
        ("Dropout", f"{network['dropout']:g}"),
        ("Training steps", f"{training['steps']:,}, the same for every flow"),
        (
            "Training images seen",
            f"{training['steps'] * training['batch_size']:,}, in batches of {training['batch_size']}",
        ),
        (
            "Optimiser",
            f"AdamW, peak rate {training['learning_rate']:g}; weights averaged with decay {training['ema']:g}",
        ),
        ("Seconds of training", "; ".join(seconds)),
        ("Seeds", ", ".join(map(str, board.seeds))),
        ("Samples scored", f"{_sample_counts(board)} for each entry of the tables"),
        (
            "Feature extractor",
            f"{extractor['name']}, dimension {extractor['dimension']}, SHA-256 {extractor['sha256']}",
        ),
        ("Reference", results["reference"]),
        (
            "Hardware of training",
            "; ".join(dict.fromkeys(_hardware(record["hardware"]) for record in trained.values())),
        ),
        ("Hardware of evaluation", _hardware(results["hardware"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
    ]
    if "bfn-tuned" in board.flows:
        rows.insert(8, ("σ₁ of bfn-tuned", f"{network['sigma1']:g}"))
    return Table(("Condition", "Value"), tuple(rows), 2)


def summary(run: dict[str, Any]) -> str:
    """The conditions of a run in one paragraph."""
    board = Scoreboard(tuple(run["cells"]))
    training, extractor, hardware = run["config"]["training"], run["extractor"], run["hardware"]
    samples = ", ".join(str(n) for n in sorted({cell["samples"] for cell in board.cells}))
    seeds = ", ".join(map(str, board.seeds))
    return (
        f"{training['steps']:,} training steps of {training['batch_size']} images for each flow; seed {seeds}; {samples} "
        f"samples an entry against {run['reference']}; features {extractor['name']}, sha256 {extractor['sha256'][:12]}; as "
        f"many real training images score {board.floor('floor').mean:.2f} (the floor); evaluated on "
        f"{hardware.get('accelerator') or hardware['processor']}, {hardware['cores']} cores, PyTorch "
        f"{run['versions']['torch']}."
    )


# Pictures -----------------------------------------------------------------------------------------------------------

_STRIP_SAMPLES, _STRIP_COLUMNS, _ANIMATED = 3, 10, 16


def _chart(out: Path, board: Scoreboard, dataset: str) -> Picture:
    lines = []
    for flow, sampler in board.rows:
        scored = ((nfe, board.over_seeds(flow, sampler, nfe)) for nfe in board.nfes)
        lines.append(Line(flow, sampler, tuple((nfe, s.mean, s.low, s.high) for nfe, s in scored if s is not None)))
    floor = board.floor("floor")
    file = "frechet-against-nfe.png"
    title = f"{dataset}: quality of samples against their cost"
    pictures.write_chart(out / file, lines, (floor.mean, floor.low, floor.high), title)
    return Picture(
        file,
        "Line chart of Fréchet distance against NFE for each flow and sampler; the numbers are in the table below",
        f"Fréchet distance of {_sample_counts(board)} samples against network evaluations, both axes logarithmic. The "
        "dashed line is the distance of as many real images.",
    )


def _samples(out: Path, board: Scoreboard, seed: int) -> Picture:
    def block(flow: FlowName, sampler: SamplerName, nfe: int) -> Grey | None:
        if board.one(flow, sampler, nfe, seed) is None:
            return None
        return pictures.tile(kept_images(out, Cell(flow, sampler, nfe, seed))[:16], 4, 48)

    sections = [
        Section(
            flow,
            tuple(f"{nfe} NFE" for nfe in board.nfes),
            tuple(
                Row(sampler, tuple(block(flow, sampler, nfe) for nfe in board.nfes))
                for owner, sampler in board.rows
                if owner == flow
            ),
        )
        for flow in board.flows
    ]
    file = "samples.png"
    pictures.write_picture(out / file, pictures.labelled(sections, 26))
    return Picture(
        file,
        "Grids of sixteen samples, a row for each flow and sampler, a column for each NFE",
        f"The first sixteen samples of each entry, seed {seed}, none chosen.",
    )


def _grids(out: Path, board: Scoreboard, seed: int) -> list[Picture]:
    grids = []
    for flow in board.flows:
        nfe = board.nearest_nfe(flow, EVALUATIONS)
        sampler = board.best_sampler(flow, nfe)
        if board.one(flow, sampler, nfe, seed) is None:
            continue
        images = kept_images(out, Cell(flow, sampler, nfe, seed))
        label = f"{flow}, {sampler}, {nfe} NFE"
        file = f"grid-{flow}.png"
        section = Section("", (label,), (Row("", (pictures.tile(images, 8, 56),)),))
        pictures.write_picture(out / file, pictures.labelled([section], 20))
        caption = (
            f"{flow} at {nfe} NFE with its best sampler there, {sampler}: the first {len(images)} samples, none chosen."
        )
        grids.append(Picture(file, f"Grid of {len(images)} samples of {flow}", caption))
    return grids


def _own_sampler(flow: FlowName) -> SamplerName:
    """The sampler that a flow was published with."""
    return "deterministic" if flow.startswith("gpfn") else "stochastic"


def _strip(flow: FlowName, evolution: Evolution) -> Section:
    """Beliefs over predictions, for a few samples, at evenly spread evaluations from the first to the last."""
    last = len(evolution.times) - 1
    columns = [round(k * last / (_STRIP_COLUMNS - 1)) for k in range(_STRIP_COLUMNS)]
    both = (("belief mean", evolution.beliefs), ("predicted target", evolution.targets))
    rows = []
    for example in range(_STRIP_SAMPLES):
        for label, history in both:
            tiles = tuple(pictures.tile(history[k, example, None], 1, 72) for k in columns)
            rows.append(Row(label, tiles, apart=example > 0 and history is evolution.beliefs))
    return Section(
        f"{flow}, {_own_sampler(flow)}", tuple(f"t = {evolution.times[k]:.2f}" for k in columns), tuple(rows)
    )


def _frame(evolutions: dict[FlowName, Evolution], k: int) -> Section:
    """All beliefs over all predictions at evaluation ``k``, the flows side by side."""
    return Section(
        f"NFE {k + 1} of {EVALUATIONS}",
        tuple(f"{flow}, {_own_sampler(flow)}" for flow in evolutions),
        (
            Row("belief mean", tuple(pictures.tile(e.beliefs[k], 4, 56) for e in evolutions.values())),
            Row("predicted target", tuple(pictures.tile(e.targets[k], 4, 56) for e in evolutions.values())),
        ),
    )


def _beliefs(out: Path, evolutions: dict[FlowName, Evolution]) -> list[Picture]:
    animation, strips = "beliefs.gif", "beliefs.png"
    frames = [pictures.labelled([_frame(evolutions, k)], 18) for k in range(EVALUATIONS)]
    pictures.write_animation(out / animation, frames, milliseconds=250, pause=2500)
    pictures.write_picture(
        out / strips, pictures.labelled([_strip(flow, evolution) for flow, evolution in evolutions.items()], 20)
    )
    return [
        Picture(
            animation,
            "Animation of sixteen beliefs of each flow and of what the network predicts from them",
            f"A sampling run of {EVALUATIONS} evaluations. Above, the means of the beliefs, which are what the network "
            "reads; below, the targets that it predicts from them. The last prediction is the sample.",
        ),
        Picture(
            strips,
            "Beliefs and predicted targets of each flow, one above the other, from the first evaluation to the last",
            f"The first {_STRIP_SAMPLES} samples of the same run, at some of its evaluations, from the first to the last. "
            "Values beyond black and white are cut off.",
        ),
    ]


def write_report(out: Path, results: dict[str, Any], device: torch.device) -> list[Path]:
    """Write pictures, ``report.md`` and ``report.html`` into the folder of an experiment.

    Args:
        out: Folder with the experiment's ``cells`` and ``models``.
        results: Content of its ``results.json``.
        device: Where to sample the beliefs that are shown.

    Returns:
        The files written: the pictures, then the two reports.

    Raises:
        CheckpointError: A model is missing or corrupt.
        DataError: The images of a cell are missing or corrupt.
        OutputError: A file cannot be written.
    """
    board = Scoreboard(tuple(results["cells"]))
    dataset, seed = dataset_of(results), board.seeds[0]
    evolutions: dict[FlowName, Evolution] = {}
    parameters = 0
    for flow in board.flows:
        model = models.load(out / "models" / f"{flow}-seed{seed}", device)
        parameters = sum(parameter.numel() for parameter in model.predictor.parameters())
        evolutions[flow] = pictures.evolve(model, _own_sampler(flow), _ANIMATED, EVALUATIONS, seed)
    blocks: list[Block] = [
        Heading(1, f"General Proximal Flow Networks against Bayesian Flow Networks on {dataset}"),
        *_opening(results, board, claims(results)),
        Heading(2, "Fréchet distance against evaluations"),
        _chart(out, board, dataset),
        frechet_table(board),
        Heading(2, "Samples"),
        _samples(out, board, seed),
        *_grids(out, board, seed),
        Heading(2, "From beliefs to samples"),
        *_beliefs(out, evolutions),
        Heading(2, "Precision, recall and diversity"),
        quality_table(board),
        Heading(2, "How to read this"),
        _reading(board),
        Heading(2, "Conditions"),
        conditions(results, board, parameters),
    ]
    write_text(out / "report.md", to_markdown(blocks))
    write_text(out / "report.html", to_html(blocks, out))
    files = [block.file for block in blocks if isinstance(block, Picture)] + ["report.md", "report.html"]
    return [out / file for file in files]
