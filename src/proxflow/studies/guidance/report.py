"""The report of the guidance study: gains in precision and accuracy against losses in recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from proxflow.studies import charts, scoreboard
from proxflow.studies.charts import Row, Section
from proxflow.studies.guidance.cells import CONDITIONAL, UNCONDITIONAL, WEAK, GuidedCell
from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Picture, Strong, Table, to_markdown
from proxflow.studies.scoreboard import Claim, Measure, Record, Score, Scoreboard, dataset_of, distance, ratio, share
from proxflow.studies.trials import kept_classes

_ASKED = {"mnist": (0.99, 0.9, 0.21), "fashion-mnist": (None, 0.75, 0.9)}
"""By data set: least accuracy, least recall relative to real images, and largest Fréchet distance of the preset long."""

# Okabe and Ito's colours, by rule; and for guidance away from a weak model.
_COLOURS = {"linear": "#0072B2", "zero-star": "#009E73", "projected": "#D55E00", WEAK: "#CC79A7"}


def setting_of(cell: Record) -> str:
    """Return the guidance of a cell in words."""
    if cell["weight"] == 1:
        return str(cell["flow"])
    return f"w = {cell['weight']:g}, {_line_of(cell)}"


def _line_of(cell: Record) -> str:
    """Return the rule and the interval of a cell in words, the label of a line of the chart over the weights."""
    if cell["weak"] is not None:
        return "linear, away from weak"
    first, last = cell["interval"]
    return f"{cell['rule']}, {'all times' if (first, last) == (0, 1) else f'{first:g} to {last:g}'}"


def board_of(results: Record) -> Scoreboard:
    """Return the cells of ``results.json``, with settings of guidance as the trials."""
    return Scoreboard(tuple({**cell, "flow": setting_of(cell)} for cell in results["cells"]))


def best(board: Scoreboard, nfe: int) -> tuple[str, str]:
    """Return setting and sampler with the lowest mean Fréchet distance of the conditional model at an NFE."""
    return board.best([row for row in board.rows if row[0] != UNCONDITIONAL], nfe)


def claims(results: Record) -> list[Claim]:
    """Measure the claims on guidance, by the best setting at each number of evaluations."""
    board, found = board_of(results), list[Claim]()

    def over(nfe: int, led: tuple[str, str], plain: tuple[str, str]) -> Measure:
        return lambda seed: ratio(board.one(*led, nfe, seed), board.one(*plain, nfe, seed))

    for nfe in board.nfes:
        led, plain = best(board, nfe), (UNCONDITIONAL, board.best_sampler(UNCONDITIONAL, nfe))
        statement = f"Fréchet distance of {led[0]} ({led[1]}) over that of {plain[0]} ({plain[1]}) at {nfe} NFE"
        found += board.claim(f"unconditional-{nfe}", statement, over(nfe, led, plain), "≤", 1.0)
    last = board.nfes[-1]
    setting, sampler = best(board, last)
    asked = str(results["reference"]).rpartition(" of ")[2]
    accuracy, recall, frechet = _ASKED.get(asked, (None, None, None))
    floors = {cell["seed"]: cell for cell in board.cells}

    def score(name: Score) -> Measure:
        return lambda seed: board.one(setting, sampler, last, seed, name)

    def over_floor(name: Score, floor: str) -> Measure:
        return lambda seed: ratio(board.one(setting, sampler, last, seed, name), floors[seed][floor])

    at = f"of {setting} ({sampler}) at {last} NFE"
    long = results["config"]["preset"] == "long"
    found += board.claim("accuracy", f"Class accuracy {at}", score("class_accuracy"), "≥", accuracy)
    found += board.claim(
        "recall", f"Recall {at} over that of real images", over_floor("recall", "floor_recall"), "≥", recall
    )
    found += board.claim("frechet", f"Fréchet distance {at}", score("frechet"), "≤", frechet if long else None)
    found += board.claim(
        "floor", f"Fréchet distance {at} over that of real images", over_floor("frechet", "floor"), "≤", 1.2
    )
    return found


def outcome(results: Record) -> list[Block]:
    """Return the claims with the measured values."""
    return [scoreboard.claims_table(claims(results))]


def quality_table(results: Record, nfe: int) -> Table:
    """Return a table of scores by setting at a number of evaluations, with the lowest Fréchet distances bold."""
    board = board_of(results)
    columns: dict[Score, str] = {
        "frechet": "Fréchet distance",
        "precision": "precision",
        "recall": "recall",
        "class_accuracy": "class accuracy",
        "class_frechet": "Fréchet distance within classes",
        "class_recall": "recall within classes",
    }
    means = {(row, name): board.over_seeds(*row, nfe, name) for row in board.rows for name in columns}
    lowest = {
        name: min(
            (found.mean for (_, other), found in means.items() if other == name and found is not None), default=0.0
        )
        for name in ("frechet", "class_frechet")
    }

    def entry(row: tuple[str, str], name: Score) -> str | Strong:
        found = means[row, name]
        if found is None:
            return "–"
        text = found.text(distance if name in lowest else (lambda value: f"{value:.3f}") if "acc" in name else share)
        return Strong(text) if found.mean == lowest.get(name) else text

    predictions = {(setting_of(c), c["sampler"]): c["predictions"] for c in results["cells"] if c["nfe"] == nfe}
    rows: list[tuple[str | Strong, ...]] = [
        (*row, str(predictions[row]), *(entry(row, name) for name in columns))
        for row in board.rows
        if row in predictions
    ]
    floors = (board.floor().text(distance), *(board.floor(f).text(share) for f in ("floor_precision", "floor_recall")))
    rows.append(("real images", "–", "–", *floors, "–", "–", "–"))
    return Table(("Guidance", "Sampler", "predictions", *columns.values()), tuple(rows), 2)


def _tradeoff(out: Path, results: Record) -> Picture:
    board, cells = board_of(results), results["cells"]
    sampler = cells[0]["sampler"]
    colours = {UNCONDITIONAL: "#7F7F7F"}
    panels: dict[str, dict[str, list[tuple[float, float, str]]]] = {}
    for nfe in board.nfes:
        lines: dict[str, list[tuple[float, float, str]]] = {}

        def point(cell: Record, nfe: int = nfe) -> tuple[float, float, str]:
            row = (setting_of(cell), sampler, nfe)
            recall, frechet = board.over_seeds(*row, "recall"), board.over_seeds(*row)
            word = "" if cell["flow"] == UNCONDITIONAL else f"{cell['weight']:g}"
            return recall.mean if recall else 0.0, frechet.mean if frechet else 0.0, word

        here = [c for c in cells if (c["sampler"], c["nfe"], c["seed"]) == (sampler, nfe, board.seeds[0])]
        plain = next(cell for cell in here if cell["flow"] == CONDITIONAL and cell["weight"] == 1)
        lines[UNCONDITIONAL] = [point(next(cell for cell in here if cell["flow"] == UNCONDITIONAL))]
        for cell in sorted((cell for cell in here if cell["weight"] != 1), key=lambda cell: float(cell["weight"])):
            colours[_line_of(cell)] = _COLOURS[cell["weak"] or str(cell["rule"]).partition(":")[0]]
            lines.setdefault(_line_of(cell), [point(plain)]).append(point(cell))
        panels[f"{nfe} network evaluations"] = lines
    return charts.write_tradeoffs(
        out / "frechet-against-recall.png",
        panels,
        (board.floor("floor_recall").mean, board.floor().mean),
        colours,
        "Charts of Fréchet distance against recall, a line for each rule and interval; the numbers are in the tables",
        f"{dataset_of(results)}, sampler {sampler}: each line goes from no guidance (1) to the largest weight; its weights "
        "stand beside the points. Guidance costs recall; where it lowers the Fréchet distance as well, it pays.",
    )


def _digits(out: Path, results: Record) -> Picture:
    board = board_of(results)
    nfe, seed = board.nfes[-1], board.seeds[0]
    setting, sampler = best(board, nfe)
    asked = (setting, sampler, nfe, seed)
    record = next(c for c in results["cells"] if (setting_of(c), c["sampler"], c["nfe"], c["seed"]) == asked)
    led = {"interval": tuple(record["interval"]), **{name: record[name] for name in ("weight", "rule", "weak")}}
    cell = GuidedCell(CONDITIONAL, sampler, nfe, seed, **led)
    names = results["classes"]
    rows = tuple(Row(names[label], (charts.tile(images, 10, 48),)) for label, images in kept_classes(out, cell).items())
    return charts.write_grids(
        out / "classes.png",
        [Section(f"{nfe} network evaluations", ("",), rows)],
        22,
        "Samples, a row for each class",
        f"The first samples of each class, seed {seed}, not chosen, with the setting of the lowest Fréchet distance: "
        f"{setting} ({sampler}).",
    )


_READING = Bullets(
    (
        """Network evaluations are counted as they are spent: two for a guided prediction, one for any other. At equal
        evaluations a guided sample takes fewer predictions.""",
        """conditional: the model is told the class and not guided. w: the weight of guidance. Times go from 0, all noise,
        to 1; outside the interval predictions are not guided. linear, zero-star and projected are the rules.""",
        """away from weak: led away from the same model after a shorter training (autoguidance) in place of the prediction
        without a class.""",
        """Samples are drawn for the classes as often as the test images have them. Class accuracy is the share that a
        classifier puts in the class that was asked for. Within classes: samples of a class against test images of it, and
        the mean over the classes.""",
        """Claims take the setting with the lowest Fréchet distance at their number of evaluations, and hold when they do in
        every seed. The setting is chosen among the samples that it is judged by: with few of them that flatters it.""",
    )
)


def block(runs: Sequence[Record]) -> str:
    """Return the kept runs as Markdown for the documentation: conditions, scores at the most evaluations, claims."""
    blocks: list[Block] = []
    for run in runs:
        board = board_of(run)
        blocks += [
            Heading(3, f"{dataset_of(run)}, preset {run['config']['preset']}"),
            Paragraph(scoreboard.summary(run)),
            Paragraph(f"At {board.nfes[-1]} network evaluations:"),
            quality_table(run, board.nfes[-1]),
            *scoreboard.on_second(run, board, "Guidance"),
            Paragraph("What was asked, with the setting that is best at its number of evaluations:"),
            *outcome(run),
        ]
    return to_markdown(blocks) if blocks else "No run is kept under `results/` yet.\n"


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Write the figures of the study into its folder; return its report. Nothing is sampled."""
    board = board_of(results)
    blocks: list[Block] = [
        Heading(1, f"Guidance on {dataset_of(results)}"),
        Paragraph(
            "What weight, interval and rule of guidance make of a conditional model, beside an unconditional model of the "
            "same network, data and training."
        ),
        Heading(2, "Claims"),
        *outcome(results),
        Heading(2, "What is gained, and what it costs"),
        _tradeoff(out, results),
    ]
    for nfe in board.nfes:
        blocks += [Heading(2, f"At {nfe} network evaluations"), quality_table(results, nfe)]
    return [
        *blocks,
        *scoreboard.on_second(results, board, "Guidance"),
        Heading(2, "Samples"),
        _digits(out, results),
        Heading(2, "How to read this"),
        _READING,
        Heading(2, "Conditions"),
        scoreboard.conditions(results, results["cells"][-1]["parameters"]),
    ]
