"""The report of the emoji study: scores and memorisation, samples, and their nearest training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from proxflow import data
from proxflow.studies import charts, scoreboard
from proxflow.studies.charts import Images, Row, Section
from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Picture, Strong, Table, to_markdown
from proxflow.studies.scoreboard import (
    Claim,
    Floor,
    Measure,
    Record,
    Score,
    Scoreboard,
    dataset_of,
    distance,
    ratio,
    share,
)
from proxflow.studies.trials import Cell, kept_classes

FLOW, FEW = "flow", "few"
"""Names of the trials."""

_OF_A_CLASS = 8
"""Samples per class in the figures."""

_BESIDE = 12
"""Samples with their nearest training pictures, per row."""


def claims(results: Record) -> list[Claim]:
    """Measure the quality loss of the student, and memorisation of the models, by the last cell of each."""
    board, found = Scoreboard.of(results), list[Claim]()
    floors = {cell["seed"]: cell for cell in board.cells}
    sampler = board.best_sampler(FLOW, _last(board))
    if FEW in board.flows:
        few, many = (FEW, "deterministic", 1), [nfe for nfe in board.nfes if nfe > 1]
        first = min(many)
        for nfe in many:
            best = (FLOW, board.best_sampler(FLOW, nfe), nfe)

            def over(seed: int, best: tuple[str, str, int] = best) -> float | None:
                return ratio(board.one(*few, seed), board.one(*best, seed))

            statement = f"Fréchet distance of few at 1 NFE over that of flow ({best[1]}) at {nfe} NFE"
            found += board.claim(f"few-{nfe}", statement, over, "≤", 1.0 if nfe == first else None)

    def copied(cell: tuple[str, str, int], score: Score, floor: Floor) -> Measure:
        return lambda seed: ratio(board.one(*cell, seed, score), floors[seed][floor])

    spaces: tuple[tuple[Score, Floor, str], ...] = (
        ("memorised", "memorised_floor", "pixels"),
        ("memorised_features", "memorised_features_floor", "features"),
    )
    cells = [(FLOW, sampler, _last(board)), *([(FEW, "deterministic", 1)] if FEW in board.flows else [])]
    for cell in cells:
        for score, floor, space in spaces:
            statement = f"Memorised share of {cell[0]} at {cell[2]} NFE, by {space}, over that of held-out pictures"
            found += board.claim(f"{score}-{cell[0]}", statement, copied(cell, score, floor), "≤", 2.0)
    return found


def _last(board: Scoreboard) -> int:
    return board.nfes[-1]


def outcome(results: Record) -> list[Block]:
    """Return the claims with the measured values."""
    return [scoreboard.claims_table(claims(results))]


def cells_table(results: Record) -> Table:
    """Return a table of all scores by model, sampler and number of evaluations, with the lowest distances bold."""
    board = Scoreboard.of(results)
    columns: dict[Score, tuple[str, Floor | None]] = {
        "frechet": ("Fréchet distance", "floor"),
        "second_frechet": ("on the second", "second_floor"),
        "precision": ("precision", "floor_precision"),
        "recall": ("recall", "floor_recall"),
        "class_accuracy": ("class accuracy", None),
        "memorised": ("memorised, pixels", "memorised_floor"),
        "memorised_features": ("memorised, features", "memorised_features_floor"),
    }
    distances: tuple[Score, ...] = ("frechet", "second_frechet")
    keys = [(*row, nfe) for row in board.rows for nfe in board.nfes if board.over_seeds(*row, nfe) is not None]
    means = {(key, name): board.over_seeds(*key, name) for key in keys for name in columns}
    lowest = {
        name: min((found.mean for (_, other), found in means.items() if other == name and found), default=0.0)
        for name in distances
    }

    def entry(key: tuple[str, str, int], name: Score) -> str | Strong:
        found = means[key, name]
        if found is None:
            return "–"
        text = found.text(distance if name in distances else _percent if "memorised" in name else share)
        return Strong(text) if name in distances and found.mean == lowest[name] else text

    def real(name: Score, floor: Floor | None) -> str:
        if floor is None:
            return "–"
        return board.floor(floor).text(distance if name in distances else _percent if "memorised" in name else share)

    rows: list[tuple[str | Strong, ...]] = [
        (key[0], key[1], str(key[2]), *(entry(key, name) for name in columns)) for key in keys
    ]
    rows.append(("real images", "–", "–", *(real(name, floor) for name, (_, floor) in columns.items())))
    return Table(("Model", "Sampler", "NFE", *(heading for heading, _ in columns.values())), tuple(rows), 2)


def intervals_table(results: Record) -> Table:
    """Return a table of memorised fractions with 95 % intervals, for the first seed."""
    board = Scoreboard.of(results)
    first = [cell for cell in board.cells if cell["seed"] == board.seeds[0]]

    def entry(cell: Record, name: str) -> str:
        low, high = cell["intervals"][name]
        return f"{_percent(cell[name])} ({_percent(low)} to {_percent(high)})"

    names = ("memorised", "memorised_features")
    rows = [(f"{c['flow']}, {c['sampler']}, {c['nfe']} NFE", *(entry(c, name) for name in names)) for c in first]
    rows.append(("held-out pictures", *(entry(first[0], f"{name}_floor") for name in names)))
    return Table(("Samples", "by pixels", "by features"), tuple(rows), 1)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _shown(board: Scoreboard) -> list[Cell]:
    """Return the cells in the figures: the flow at the most evaluations with the best sampler, and the student."""
    seed, nfe = board.seeds[0], _last(board)
    cells = [Cell(FLOW, board.best_sampler(FLOW, nfe), nfe, seed)]
    return [*cells, *([Cell(FEW, "deterministic", 1, seed)] if FEW in board.flows else [])]


def _classes(out: Path, results: Record) -> Picture:
    board, names = Scoreboard.of(results), results["classes"]
    cells = _shown(board)
    held = [kept_classes(out, cell) for cell in cells]
    rows = tuple(
        Row(name, tuple(charts.tile(kept[label][:_OF_A_CLASS], _OF_A_CLASS, 48) for kept in held))
        for label, name in enumerate(names)
        if all(label in kept for kept in held)
    )
    titles = tuple(_title(cell) for cell in cells)
    return charts.write_grids(
        out / "classes.png",
        [Section("Samples by class", titles, rows)],
        22,
        "Samples, a row for each class, of the flow and of its student",
        f"The first {_OF_A_CLASS} samples of each class, seed {board.seeds[0]}, not chosen.",
    )


def _title(cell: Cell) -> str:
    return f"{cell.flow}, {cell.nfe} evaluation{'s' if cell.nfe > 1 else ''}"


def nearest(training: Images, samples: Images) -> tuple[Images, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Find the nearest training picture of each sample, by the Euclidean distance of pixels in [-1, 1].

    Args:
        training: Bytes, (T, …).
        samples: Bytes, (N, …) of the same shape.

    Returns:
        The pictures, (N, …), and the distances, (N,).
    """
    known, own = (torch.from_numpy(x.reshape(len(x), -1)).double() / 127.5 for x in (training, samples))
    # All values are multiples of 1/127.5 in float64, so that the distance of a copy is only rounding.
    squares = own.square().sum(1)[:, None] + known.square().sum(1) - 2 * own @ known.T
    found, index = squares.clamp_min(0).min(1)
    return training[index.numpy()], found.sqrt().numpy()


def _neighbours(out: Path, results: Record) -> Picture:
    board, config = Scoreboard.of(results), results["config"]
    training = data.load(config["dataset"], "train").images[: config["train_images"]]
    known = np.ascontiguousarray(training.permute(0, 2, 3, 1).numpy())
    known = known[..., 0] if known.shape[-1] == 1 else known
    sections = []
    for cell in _shown(board):
        kept = kept_classes(out, cell)
        every = np.concatenate([*kept.values()])
        pictures, distances = nearest(known, every)
        spread = np.arange(_BESIDE) * len(every) // _BESIDE  # from all classes, as they are sorted by class
        closest = np.argsort(distances, kind="stable")[:_BESIDE]
        rows = [
            Row(label, (charts.tile(shown[at], _BESIDE, 48),), apart)
            for at, words, apart in ((spread, "not chosen", False), (closest, "the nearest ones", True))
            for label, shown, apart in ((f"samples, {words}", every, apart), ("training pictures", pictures, False))
        ]
        sections.append(Section(f"{_title(cell)}, of {len(every)} samples kept", ("",), tuple(rows)))
    return charts.write_grids(
        out / "nearest.png",
        sections,
        22,
        "Samples above the training pictures that are nearest to them",
        "Each sample above the training picture with the nearest pixels: samples at equal distances through the classes, "
        "and those of all kept that have the nearest one.",
    )


_READING = Bullets(
    (
        """flow: a proximal flow with Wasserstein-2 steps that is told the group of each emoji. few: a student that begins
        with its weights and draws with one evaluation; it learns by distribution matching, with a discriminator about the
        training pictures (Improved Distribution Matching Distillation for Fast Image Synthesis, Yin et al., 2024, arXiv
        2405.14867).""",
        """memorised: the share of samples that are as near to a training picture as only 5 % of the held-out pictures are,
        by Euclidean distances in pixels and in the classifier's features. Real images: the held-out pictures themselves,
        5 % by definition, with the interval that their number leaves. More than twice that is beyond chance, and is copying
        where both spaces say so: a sample that is smoother than emoji is nearer in pixels to all of them. All variants of
        an emoji, such as its skin tones, are on one side of the split, so a new variant of a training picture counts.""",
        """Class accuracy is the share that a classifier puts in the group that was asked for; groups are drawn as often as
        the held-out pictures have them. The classifier is wrong about some of the real ones as well.""",
        """The held-out pictures are few, so all scores against them are rough: compare rows with each other and with the
        floor. A few outlying pictures have large balls, so precision alone says little.""",
    )
)


def trained_with(results: Record) -> str:
    """Describe how long the models were trained."""
    parts = []
    for name in Scoreboard.of(results).flows:
        known = next(record for key, record in results["training"].items() if key.startswith(f"{name}-seed"))
        steps, batch, passes = known["training"]["steps"], known["training"]["batch_size"], known["passes"]
        parts.append(f"{name}: {steps:,} training steps of {batch} images, {passes:.0f} network passes each")
    return "; ".join(parts)


def block(runs: Sequence[Record]) -> str:
    """Return the kept runs as Markdown for the documentation: conditions, scores, claims."""
    blocks: list[Block] = []
    for run in runs:
        blocks += [
            Heading(3, f"{dataset_of(run)}, preset {run['config']['preset']}"),
            Paragraph(scoreboard.summary(run, trained_with(run))),
            cells_table(run),
            Paragraph("Memorised shares with their 95 % intervals:"),
            intervals_table(run),
            *outcome(run),
        ]
    return to_markdown(blocks) if blocks else "No run is kept under `results/` yet.\n"


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Write the figures of the study into its folder; return its report. Nothing is sampled; training data are read."""
    known = results["second_extractor"]
    blocks: list[Block] = [
        Heading(1, f"A flow of {dataset_of(results)}, and its student"),
        Paragraph(
            "A conditional flow of few small colour pictures, a student of it that draws with one evaluation, and how much "
            "of what they draw is copied from training pictures."
        ),
    ]
    if results["config"]["preset"] == "quick":
        blocks.append(Paragraph("The preset quick shows that everything runs. It is too short for good pictures."))
    return [
        *blocks,
        Heading(2, "Claims"),
        *outcome(results),
        Heading(2, "Scores"),
        cells_table(results),
        Paragraph(f"The second extractor is {known['name']}: principal components of pixels, in units of its own."),
        Heading(2, "Memorisation"),
        Paragraph("Shares with their 95 % intervals:"),
        intervals_table(results),
        _neighbours(out, results),
        Heading(2, "Samples"),
        _classes(out, results),
        Heading(2, "How to read this"),
        _READING,
        Heading(2, "Conditions"),
        scoreboard.conditions(results, results["cells"][0]["parameters"]),
    ]
