"""The report of the few-step study: quality against evaluations and against cost, method by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from proxflow.flows import Flow
from proxflow.studies import charts, scoreboard
from proxflow.studies.charts import Line, Row, Section
from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Picture, Table, to_markdown
from proxflow.studies.presets import FEW_STEP_METHODS
from proxflow.studies.scoreboard import Claim, Measure, Record, Score, Scoreboard, dataset_of, ratio
from proxflow.studies.trials import Cell, kept_images

# Of Okabe and Ito's colours, which are distinguishable with any colour vision, and a few beside them.
_COLOURS = {
    "plain": "#000000",
    "plain-twice": "#7F7F7F",
    "early": "#A6CEE3",
    "early-longer": "#56B4E9",
    "early-twice": "#0072B2",
    "transport": "#009E73",
    "reflow": "#E69F00",
    "draws": "#8B6914",
    "long-step": "#CC79A7",
    "matched": "#D55E00",
    "matched-to-data": "#661100",
    "short": "#D9D9D9",
    "late": "#CAB2D6",
    "late-longer": "#6A3D9A",
    "guided": "#E31A1C",
    "guided-matched": "#B15928",
}
_STRIP = 12
"""Images per method in the figures."""


def claims(results: Record) -> list[Claim]:
    """Measure the claims on few evaluations, by the best method at no more than twice the cost of plain training."""
    board, found = Scoreboard.of(results), list[Claim]()

    def over(few: int, many: int, other: tuple[str, str]) -> tuple[str, Measure]:
        method, sampler = best(board, few)
        return (
            f"Fréchet distance of {method} ({sampler}) at {few} NFE over that of {other[0]} ({other[1]}) at {many} NFE",
            lambda seed: ratio(board.one(method, sampler, few, seed), board.one(*other, many, seed)),
        )

    for few, many in ((4, 20), (2, 20), (1, 10), (1, 20)):
        if {few, many} <= set(board.nfes):
            found += board.claim(f"{few}-of-{many}", *over(few, many, ("plain", "deterministic")), "≤", 1.0)
    if {4, 20} <= set(board.nfes) and "early-twice" in board.flows:
        found += board.claim("4-of-best-20", *over(4, 20, ("early-twice", "multistep2")), "≤", 1.0)
    if 20 in board.nfes:
        method, sampler = best(board, 20)
        floors = {cell["seed"]: cell for cell in board.cells}

        def over_floor(score: Score, real: str) -> Measure:
            return lambda seed: ratio(board.one(method, sampler, 20, seed, score), floors[seed][real])

        at = f"of {method} ({sampler}) at 20 NFE over that of real images"
        found += board.claim("floor", f"Fréchet distance {at}", over_floor("frechet", "floor"), "≤", 2.0)
        found += board.claim("precision", f"Precision {at}", over_floor("precision", "floor_precision"), "≥", 0.9)
        found += board.claim("recall", f"Recall {at}", over_floor("recall", "floor_recall"), "≥", 0.9)
    return found


def outcome(results: Record) -> list[Block]:
    """Return the claims with the measured values."""
    return [scoreboard.claims_table(claims(results))]


def best(board: Scoreboard, nfe: int, most: float = 2.01) -> tuple[str, str]:
    """Return method and sampler with the lowest mean Fréchet distance at an NFE, among those that cost at most so much."""
    cost = _of_methods(board, "train_cost")
    return board.best([row for row in board.rows if cost[row[0]] <= most], nfe)


def _of_methods(board: Scoreboard, key: str) -> dict[str, float]:
    return {cell["flow"]: cell[key] for cell in board.cells}


def _series(board: Scoreboard, horizontal: Callable[[Record], float]) -> list[Line]:
    """Return a line for each method and sampler; at one evaluation all samplers are the same and share the point."""
    shared = {method: scores[1] for method, sampler in board.rows if 1 in (scores := board.points(method, sampler))}
    cell_of = {(cell["flow"], cell["nfe"]): cell for cell in board.cells}
    lines = []
    for method, sampler in board.rows:
        first = {1: shared[method]} if method in shared else {}
        points = {**first, **board.points(method, sampler)}
        by_cost = {horizontal(cell_of[method, nfe]): score for nfe, score in points.items()}
        lines.append(Line(method, sampler, by_cost))
    return lines


def _charts(out: Path, results: Record, board: Scoreboard) -> list[Picture]:
    training = results["config"]["training"]
    plain = float(training["steps"] * training["batch_size"] * Flow.passes)

    def total(cell: Record) -> float:
        return float(cell["train_cost"]) + float(cell["nfe"]) * float(cell["samples"]) / plain

    def chart(file: str, label: str, words: str, horizontal: Callable[[Record], float]) -> Picture:
        return charts.write_chart(
            out / file,
            _series(board, horizontal),
            board.floor(),
            f"{dataset_of(results)}: few evaluations",
            _COLOURS,
            f"Line chart of Fréchet distance against {label}, for each method; the numbers are in the table",
            f"{words} Both axes are logarithmic; dashed: as many real images.",
            headings=("Method", "Sampler"),
            label=label,
        )

    evaluations, passes = "network evaluations", "network passes of training and sampling, over those of plain training"
    all_computed = (
        "The same against all that was computed: the network passes of training, a teacher's included, and of sampling "
        f"{board.cells[0]['samples']:,} images."
    )
    return [
        chart(
            "frechet-against-nfe.png",
            f"{evaluations} for each sample (NFE)",
            f"Fréchet distance against {evaluations}.",
            lambda cell: float(cell["nfe"]),
        ),
        chart("frechet-against-compute.png", passes, all_computed, total),
    ]


def frechet_table(board: Scoreboard) -> Table:
    """Return a table of methods with cost and distances."""
    cost, size = _of_methods(board, "train_cost"), _of_methods(board, "parameters")
    columns: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("Training cost", lambda method: f"{cost[method]:.2f}"),
        ("Parameters", lambda method: f"{size[method]:,}"),
    )
    return scoreboard.frechet_table(board, "Method", columns)


def quality_table(board: Scoreboard) -> Table:
    """Return a table of precision, recall and diversity at the fewest, four and the most evaluations."""
    return scoreboard.quality_table(board, (board.nfes[0], 4, board.nfes[-1]), "Method")


def _samples(out: Path, board: Scoreboard, seed: int) -> Picture:
    sections = []
    for nfe in board.nfes:
        rows = []
        for method in board.flows:
            images = kept_images(out, Cell(method, board.best_sampler(method, nfe), nfe, seed))[:_STRIP]
            rows.append(Row(method, (charts.tile(images, _STRIP, 48),)))
        sections.append(Section(f"{nfe} network evaluation{'s' if nfe > 1 else ''}", ("",), tuple(rows)))
    return charts.write_grids(
        out / "samples.png",
        sections,
        22,
        "Strips of samples, a row for each method, a section for each number of evaluations",
        f"The first {_STRIP} samples of each method with its best sampler, seed {seed}, not chosen.",
    )


_READING = Bullets(
    (
        """Training cost counts network passes, a forward pass as one and a backward pass as two, over those of plain
        training; what a teacher cost and the evaluations that made pairs are included.""",
        """early: beliefs end at τ = 0.6 of the way, in training and in sampling, and the last prediction goes the rest.
        Beliefs of later times tell nothing new about such images, so neither training nor evaluations are spent there.""",
        """matched: a student that begins with the weights of early-longer and learns to draw from what its teacher draws
        from, by the difference of the teacher's prediction and that of a critic which follows the student (One-step
        Diffusion with Distribution Matching Distillation, Yin et al., 2023, arXiv 2311.18828). One evaluation of it is a
        sample, not a mean. matched-to-data: the same at equal cost with a discriminator of beliefs about its draws and
        about real images (Improved Distribution Matching Distillation for Fast Image Synthesis, Yin et al., 2024, arXiv
        2405.14867), all draws made of the prior.""",
        """draws: the network reads noise as well and draws from the target; the energy score holds two draws to each image.
        long-step: the network reads where its step ends and predicts what a step that long should aim at.""",
        """transport: prior draws and images are paired within each batch by optimal transport. reflow: the network is
        trained on pairs of prior draws and what the trained flow makes of them.""",
        """guided: a student that begins with the weights of late and learns from targets without noise: what its
        teacher predicts, led away from what short predicts, as far again as the two are apart (autoguidance: Guiding a
        Diffusion Model with a Bad Version of Itself, Karras et al., 2024, arXiv 2406.02507).
        One network, one evaluation a step. guided-matched learns from such a student as matched-to-data does from
        early-longer.""",
        """sde-bfn-solver2: a second-order sampler that replaces the noise in each step, which mends errors of earlier
        steps.""",
        """Claims take the method that is best at their number of evaluations, among those that cost at most twice plain
        training, and hold when they do in every seed.""",
    )
)


def block(runs: Sequence[Record]) -> str:
    """Return the kept runs as Markdown for the documentation: conditions, distances, claims."""
    blocks: list[Block] = []
    for run in runs:
        board = Scoreboard.of(run)
        blocks += [
            Heading(3, f"{dataset_of(run)}, preset {run['config']['preset']}"),
            Paragraph(scoreboard.summary(run)),
            frechet_table(board),
            *scoreboard.on_second(run, board, "Method"),
            Paragraph("Precision, recall and diversity:"),
            quality_table(board),
            Paragraph("What was asked, with the method that is best at its number of evaluations:"),
            *outcome(run),
        ]
    return to_markdown(blocks) if blocks else "No run is kept under `results/` yet.\n"


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Write the figures of the study into its folder; return its report. Nothing is sampled."""
    board = Scoreboard.of(results)
    return [
        Heading(1, f"Few evaluations on {dataset_of(results)}"),
        Paragraph(
            "Ways to good samples in few network evaluations, with one network and counted cost. "
            + " ".join(f"{name}: {FEW_STEP_METHODS[name].title}." for name in board.flows if name in FEW_STEP_METHODS)
        ),
        Heading(2, "Claims"),
        *outcome(results),
        Heading(2, "Fréchet distance"),
        *_charts(out, results, board),
        frechet_table(board),
        *scoreboard.on_second(results, board, "Method"),
        Heading(2, "Samples"),
        _samples(out, board, board.seeds[0]),
        Heading(2, "Precision, recall and diversity"),
        quality_table(board),
        Heading(2, "How to read this"),
        _READING,
        Heading(2, "Conditions"),
        scoreboard.conditions(results, results["cells"][0]["parameters"]),
    ]
