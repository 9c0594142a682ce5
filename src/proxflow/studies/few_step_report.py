"""The report of the few-step study: quality against evaluations and against cost, method by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from proxflow.flows import Flow
from proxflow.runtime.files import write_text
from proxflow.studies import pictures, report
from proxflow.studies.mnist import Cell, kept_images
from proxflow.studies.pictures import Line, Row, Section
from proxflow.studies.presets import FEW_STEP_METHODS
from proxflow.studies.report import (
    Block,
    Bullets,
    Claim,
    Heading,
    Paragraph,
    Picture,
    Relation,
    Scoreboard,
    Strong,
    Summary,
    Table,
    distance,
)

# Of Okabe and Ito's colours, which readers with any kind of colour vision tell apart, and a few beside them.
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
"""Images of a method in the pictures."""


def claims(results: dict[str, Any]) -> list[Claim]:
    """What few evaluations are expected to reach, measured.

    Args:
        results: Content of ``results.json``.

    Returns:
        The claims, each on the best method of at most twice plain training's cost.
    """
    board, found = Scoreboard(tuple(results["cells"])), list[Claim]()
    plain = ("plain", "deterministic")

    def add(name: str, what: str, measure: Callable[[int], float | None], relation: Relation, threshold: float) -> None:
        measured = [measure(seed) for seed in board.seeds]
        values = tuple(value for value in measured if value is not None)
        if values:
            sentence = f"{what}: {Summary.of(values).text(distance)}."
            found.append(Claim(name, what, sentence, values, relation, threshold))

    def ratio(few: int, many: int, over: tuple[str, str]) -> tuple[str, Callable[[int], float | None]]:
        method, sampler = best(board, few)

        def measure(seed: int) -> float | None:
            above, below = board.one(method, sampler, few, seed), board.one(*over, many, seed)
            return None if above is None or below is None else above / below

        return (
            f"Fréchet distance of {method} ({sampler}) at {few} NFE over that of {over[0]} ({over[1]}) at {many} NFE",
            measure,
        )

    for few, many in ((4, 20), (2, 20), (1, 10), (1, 20)):
        if {few, many} <= set(board.nfes):
            add(f"{few}-of-{many}", *ratio(few, many, plain), "≤", 1.0)
    if {4, 20} <= set(board.nfes) and "early-twice" in board.flows:
        add("4-of-best-20", *ratio(4, 20, ("early-twice", "multistep2")), "≤", 1.0)
    if 20 in board.nfes:
        method, sampler = best(board, 20)
        floors = {cell["seed"]: cell for cell in board.cells}

        def over_floor(score: report.Score, real: str) -> Callable[[int], float | None]:
            def measure(seed: int) -> float | None:
                value = board.one(method, sampler, 20, seed, score)
                return None if value is None else value / floors[seed][real]

            return measure

        at = f"of {method} ({sampler}) at 20 NFE over that of real images"
        add("floor", f"Fréchet distance {at}", over_floor("frechet", "floor"), "≤", 2.0)
        add("precision", f"Precision {at}", over_floor("precision", "floor_precision"), "≥", 0.9)
        add("recall", f"Recall {at}", over_floor("recall", "floor_recall"), "≥", 0.9)
    return found


def best(board: Scoreboard, nfe: int, most: float = 2.01) -> tuple[str, str]:
    """Method and sampler with the lowest mean Fréchet distance at an NFE, of those that cost at most so much training."""
    cost = {cell["method"]: cell["train_cost"] for cell in board.cells}
    scored = [(board.over_seeds(*row, nfe), row) for row in board.rows if cost[row[0]] <= most]
    return min(((s.mean, row) for s, row in scored if s is not None), key=lambda pair: pair[0])[1]


def _series(board: Scoreboard, horizontal: Callable[[dict[str, Any]], float]) -> list[Line]:
    """A line for each method and sampler; at one evaluation, where all samplers are one, they share the point."""
    lines = []
    for method, sampler in board.rows:
        points = []
        for nfe in board.nfes:
            summary = board.over_seeds(method, sampler, nfe)
            if summary is None and nfe == 1:
                summary = next((s for f, o in board.rows if f == method and (s := board.over_seeds(f, o, 1))), None)
            if summary is not None:
                cell = next(c for c in board.cells if (c["flow"], c["nfe"]) == (method, nfe))
                points.append((horizontal(cell), summary.mean, summary.low, summary.high))
        lines.append(Line(method, sampler, tuple(points)))
    return lines


def _charts(out: Path, results: dict[str, Any], board: Scoreboard) -> list[Picture]:
    dataset, floor = report.dataset_of(results), board.floor("floor")
    band = (floor.mean, floor.low, floor.high)
    training = results["config"]["training"]
    plain = float(training["steps"] * training["batch_size"] * Flow.passes)

    def total(cell: dict[str, Any]) -> float:
        return float(cell["train_cost"]) + float(cell["nfe"]) * float(cell["samples"]) / plain

    kinds: tuple[tuple[str, str, Callable[[dict[str, Any]], float], str], ...] = (
        (
            "frechet-against-nfe.png",
            "network evaluations for each sample (NFE)",
            lambda cell: float(cell["nfe"]),
            "Fréchet distance against network evaluations.",
        ),
        (
            "frechet-against-compute.png",
            "network passes of training and sampling, over those of plain training",
            total,
            (
                "The same against all that was computed: the network passes of training, a teacher's included, and of "
                f"sampling {board.cells[0]['samples']:,} images."
            ),
        ),
    )
    shown = []
    for file, label, horizontal, words in kinds:
        pictures.write_chart(
            out / file, _series(board, horizontal), band, f"{dataset}: few evaluations", _COLOURS,
            headings=("Method", "Sampler"), label=label,
        )  # fmt: skip
        alternative = f"Line chart of Fréchet distance against {label}, for each method; the numbers are in the table"
        shown.append(Picture(file, alternative, f"{words} Both axes are logarithmic; dashed: as many real images."))
    return shown


def claims_table(found: Sequence[Claim]) -> Table:
    """What was expected, and what was measured."""
    rows = [
        (
            claim.statement,
            Summary.of(claim.values).text(distance),
            f"{claim.relation} {claim.threshold:g}",
            "yes" if claim.holds else "no",
        )
        for claim in found
    ]
    return Table(("Claim", "Measured", "Expected", "Holds"), tuple(rows), 1)


def frechet_table(board: Scoreboard) -> Table:
    """What each method is, costs and reaches."""
    cost = {cell["method"]: cell["train_cost"] for cell in board.cells}
    size = {cell["method"]: cell["parameters"] for cell in board.cells}
    means = {(row, nfe): board.over_seeds(*row, nfe) for row in board.rows for nfe in board.nfes}
    lowest = {nfe: min(s.mean for (_, n), s in means.items() if n == nfe and s is not None) for nfe in board.nfes}

    def entry(row: tuple[str, str], nfe: int) -> str | Strong:
        summary = means[row, nfe]  # type: ignore[index]
        if summary is None:
            return "–"
        text = summary.text(distance)
        return Strong(text) if summary.mean == lowest[nfe] else text

    rows = [
        (*row, f"{cost[row[0]]:.2f}", f"{size[row[0]]:,}", *(entry(row, nfe) for nfe in board.nfes))
        for row in board.rows
    ]
    floor = board.floor("floor").text(distance)
    rows.append(("real images", "–", "–", "–", *(floor for _ in board.nfes)))
    return Table(
        ("Method", "Sampler", "Training cost", "Parameters", *(f"{nfe} NFE" for nfe in board.nfes)), tuple(rows), 2
    )


def _samples(out: Path, board: Scoreboard, seed: int) -> Picture:
    sections = []
    for nfe in board.nfes:
        rows = []
        for method in board.flows:
            images = kept_images(out, Cell(method, board.best_sampler(method, nfe), nfe, seed))[:_STRIP]
            rows.append(Row(method, (pictures.tile(images, _STRIP, 48),)))
        sections.append(Section(f"{nfe} network evaluation{'s' if nfe > 1 else ''}", ("",), tuple(rows)))
    file = "samples.png"
    pictures.write_picture(out / file, pictures.labelled(sections, 22))
    return Picture(
        file,
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
        from, by the difference of the teacher's prediction and that of a critic which follows the student (distribution
        matching, 2311.18828). One evaluation of it is a sample, not a mean. matched-to-data: the same at equal cost with a
        discriminator of beliefs about its draws and about real images (2405.14867), all draws made of the prior.""",
        """draws: the network reads noise as well and draws from the target; the energy score holds two draws to each image.
        long-step: the network reads where its step ends and predicts what a step that long should aim at.""",
        """transport: prior draws and images are paired within each batch by optimal transport. reflow: the network is
        trained on pairs of prior draws and what the trained flow makes of them.""",
        """guided: a student that begins with the weights of late and learns from targets without noise: what its
        teacher predicts, led away from what short predicts, as far again as the two are apart (autoguidance, 2406.02507).
        One network, one evaluation a step. guided-matched learns from such a student as matched-to-data does from
        early-longer.""",
        """sde-bfn-solver2: a second-order sampler that replaces the noise in each step, which mends errors of earlier
        steps.""",
        """Claims take the method that is best at their number of evaluations, among those that cost at most twice plain
        training, and hold when they do in every seed.""",
    )
)


def block(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown of the kept runs for the documentation: conditions, distances, claims."""
    blocks: list[Block] = []
    for run in runs:
        board = Scoreboard(tuple(run["cells"]))
        blocks += [
            Heading(3, f"{report.dataset_of(run)}, preset {run['config']['preset']}"),
            Paragraph(report.summary(run)),
            frechet_table(board),
            Paragraph("Precision, recall and diversity:"),
            quality(board),
            Paragraph("What was asked, with the method that is best at its number of evaluations:"),
            claims_table(claims(run)),
        ]
    return report.to_markdown(blocks) if blocks else "No run is kept under `results/` yet.\n"


def write_report(out: Path, results: dict[str, Any]) -> list[Path]:
    """Write charts, samples, ``report.md`` and ``report.html`` into the folder of the study.

    Args:
        out: Folder with the study's ``cells``.
        results: Content of its ``results.json``.

    Returns:
        The files written: the pictures, then the two reports.

    Raises:
        DataError: The images of a cell are missing or corrupt.
        OutputError: A file cannot be written.
    """
    board, found = Scoreboard(tuple(results["cells"])), claims(results)
    blocks: list[Block] = [
        Heading(1, f"Few evaluations on {report.dataset_of(results)}"),
        Paragraph(
            "Ways to good samples in few network evaluations, with one network and counted cost. "
            + " ".join(f"{name}: {FEW_STEP_METHODS[name].title}." for name in board.flows if name in FEW_STEP_METHODS)
        ),
        Heading(2, "Claims"),
        claims_table(found),
        Heading(2, "Fréchet distance"),
        *_charts(out, results, board),
        frechet_table(board),
        Heading(2, "Samples"),
        _samples(out, board, board.seeds[0]),
        Heading(2, "Precision, recall and diversity"),
        quality(board),
        Heading(2, "How to read this"),
        _READING,
        Heading(2, "Conditions"),
        report.conditions(results, board, results["cells"][0]["parameters"]),
    ]
    write_text(out / "report.md", report.to_markdown(blocks))
    write_text(out / "report.html", report.to_html(blocks, out))
    files = [block.file for block in blocks if isinstance(block, Picture)] + ["report.md", "report.html"]
    return [out / file for file in files]


def quality(board: Scoreboard) -> Table:
    """Precision, recall, density and coverage of every method and sampler at the fewest, four and the most evaluations."""
    wanted = sorted({board.nfes[0], *({4} & set(board.nfes)), board.nfes[-1]})
    scores: Sequence[report.Score] = ("precision", "recall", "diversity")

    def entry(row: tuple[str, str], nfe: int, score: report.Score) -> str:
        summary = board.over_seeds(*row, nfe, score)
        return "–" if summary is None else summary.text("{:.2f}".format)

    rows = [(*row, *(entry(row, nfe, score) for score in scores for nfe in wanted)) for row in board.rows]
    floors = [board.floor("floor_precision"), board.floor("floor_recall")]
    real = [summary.text("{:.2f}".format) for summary in floors for _ in wanted] + ["1" for _ in wanted]
    rows.append(("real images", "–", *real))
    return Table(("Method", "Sampler", *(f"{score}, {nfe} NFE" for score in scores for nfe in wanted)), tuple(rows), 2)
