"""The report of the study of tables: scores of each system on each table, with those of real rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Strong, Table, to_markdown
from proxflow.studies.scoreboard import Record

SCORES = {
    "marginals": "marginals",
    "correlations": "correlations",
    "told_apart": "told apart",
    "made_to_real": "made to real",
    "nearest": "nearest",
    "repeats": "repeats",
}
"""The scores, and their headings."""

_WHOLE = ("marginals", "correlations")


def _mean(rows: Sequence[Record], name: str) -> str:
    values = [row[name] for row in rows]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {spread:.3f}"


def score_table(results: Record, data: str) -> Table:
    """Return a table of scores by system, mean and standard deviation over the seeds, real rows last."""
    rows = [row for row in results["rows"] if row["data"] == data]
    lines: list[tuple[str | Strong, ...]] = []
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        lines.append((system, *(_mean(own, name) for name in SCORES)))
    system = rows[0]["system"]
    own = [row for row in rows if row["system"] == system]
    lines.append(("real rows", *(_mean(own, f"floor_{name}") for name in SCORES)))
    return Table(("System", *SCORES.values()), tuple(lines), 1)


def ratio_table(results: Record) -> Table:
    """Return a table of marginals and correlations of each system relative to real rows: 1 is as good as real rows."""
    rows = results["rows"]
    tables = list(dict.fromkeys(row["data"] for row in rows))
    lines: list[tuple[str | Strong, ...]] = []
    for system in dict.fromkeys(row["system"] for row in rows):
        for name in _WHOLE:
            entries = [system, name]
            for data in tables:
                own = [row for row in rows if row["system"] == system and row["data"] == data]
                ratio = [row[name] / row[f"floor_{name}"] for row in own]
                entries.append(f"{np.mean(ratio):.2f} ± {np.std(ratio, ddof=1) if len(ratio) > 1 else 0:.2f}")
            lines.append(tuple(entries))
    return Table(("System", "over real rows", *tables), tuple(lines), 2)


def outcome(results: Record) -> list[Block]:
    """Return how each system compares with real rows."""
    return [ratio_table(results)]


_READING = Bullets(
    (
        """Half of the rows are trained on, for each seed another half; ten made rows for each of the others are held
        against those (told apart: as many as the others; made to real: as many as were trained on). Numbers are mean ±
        standard deviation over the seeds. Real rows are the training half in place of made ones: how far one half of the
        real rows is from the other.""",
        """marginals: mean distance of the columns' laws, Kolmogorov–Smirnov of numbers, total variation of categories.
        correlations: mean difference of Pearson's correlation, Cramér's V and the correlation ratio over all pairs.""",
        """told apart: area under the curve of a forest that tells made rows from real ones; 0.5 is chance. made to real:
        a forest learns the target of made rows and predicts it of real ones; share of right categories, R² of numbers.""",
        """nearest: median distance to the nearest training row, in standard deviations; of real rows, that of the other
        half. Far below it, a maker repeats what it saw. repeats: share of made rows that are a training row.""",
    )
)


def _conditions(results: Record) -> Paragraph:
    config, rows = results["config"], results["rows"]
    training, seeds = config["training"], ", ".join(map(str, config["seeds"]))
    sizes = "; ".join(
        f"{name} {row['rows']} rows of {row['columns']} columns"
        for name, row in {row["data"]: row for row in rows}.items()
    )
    peers = "; ".join(f"{name}: {said}" for name, said in results["peers"].items() if name not in results["left_out"])
    left = f" Not installed: {', '.join(results['left_out'])}." if results["left_out"] else ""
    return Paragraph(
        f"Training halves: {sizes}. Flows: network {config['network']}, {training['steps']} steps of "
        f"{training['batch_size']}, {config['nfes'][0]} network evaluations a row, numbers standardised, with a "
        f"long tail by quantiles; seeds {seeds}. "
        f"Peers: {peers or 'none'}.{left} "
        f"scikit-learn {results['versions']['sklearn']}, torch {results['versions']['torch']}."
    )


def block(runs: Sequence[Record]) -> str:
    """Return the kept runs as Markdown for the documentation."""
    blocks: list[Block] = []
    for run in runs:
        blocks += [Heading(3, f"Preset {run['config']['preset']}"), _conditions(run), *outcome(run)]
        for data in dict.fromkeys(row["data"] for row in run["rows"]):
            blocks += [Heading(4, data), score_table(run, data)]
    return to_markdown(blocks) if blocks else "No run is kept under `results/` yet.\n"


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Return the report of the study; nothing is drawn."""
    blocks: list[Block] = [Heading(1, "Tables"), Heading(2, "Beside real rows"), *outcome(results)]
    for data in dict.fromkeys(row["data"] for row in results["rows"]):
        blocks += [Heading(2, data), score_table(results, data)]
    return [*blocks, Heading(2, "How to read this"), _READING, Heading(2, "Conditions"), _conditions(results)]
