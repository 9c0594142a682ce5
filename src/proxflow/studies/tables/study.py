"""Tables: flows of mixed data, a Gaussian copula and peers on the same rows, compared with the held-out half."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from proxflow import models
from proxflow.data.kinds.table import Table
from proxflow.errors import ArgumentError
from proxflow.metrics.tables import floor_scores, rows_to_make, table_scores
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.runtime.pool import Piece
from proxflow.studies.presets import TablesPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.tables import copula, peers, sources
from proxflow.studies.tables.report import outcome, pages
from proxflow.studies.trials import Benchmark, claim, side_by_side, silent

Rows = copula.Rows


def run(
    name: str,
    preset: TablesPreset,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    dataset: str,
    processes: int = 1,
) -> Record:
    """Run the study, or what is missing of it, and write ``results.json``; see :func:`proxflow.studies.trials.reproduce`.

    Half of the rows of each table are trained on, a different half for each seed; ten synthetic rows for each held-out
    one are compared with the held-out half.
    """
    if dataset != "scikit-learn":
        raise ArgumentError("the study of tables takes those inside scikit-learn: leave --data out")
    config = json.loads(json.dumps({"preset": name, "dataset": dataset, **preset.settings()}))
    claim(out, "tables", config)
    absent = [other for other in preset.others if other in peers.PEERS and not peers.installed(other)]
    if absent:
        say(f"left out, as they are not installed: {', '.join(absent)}")
    systems = [*preset.flows, *(other for other in preset.others if other not in absent)]
    each = [
        (preset, out, sources.write(out / "data", table), table, system, seed, device)
        for table in preset.data
        for seed in preset.seeds
        for system in systems
    ]
    missing = [words for words in each if not _file(out, *words[3:6]).exists()]
    side_by_side([Piece(f"{w[3]}, {w[4]}, seed {w[5]}", _made, (w,)) for w in missing], processes, say)
    rows = [_row(*words, say) for words in each]
    results = {
        "experiment": "tables",
        "config": config,
        "rows": rows,
        "left_out": absent,
        "peers": {other: peers.PEERS[other][1] for other in preset.others if other in peers.PEERS},
        "hardware": hardware(device),
        "versions": {**versions(), **_version_of("sklearn")},
    }
    write_json(out / "results.json", results)
    return results


def _file(out: Path, table: str, system: str, seed: int) -> Path:
    return out / "rows" / f"{table}-{system}-seed{seed}.json"


def _made(words: tuple[TablesPreset, Path, Path, str, str, int, torch.device]) -> None:
    _row(*words, silent)


def _version_of(module: str) -> dict[str, str]:
    import importlib

    return {module: str(importlib.import_module(module).__version__)}


def _row(
    preset: TablesPreset,
    out: Path,
    path: Path,
    table: str,
    system: str,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> Record:
    """Train, draw and score one system on one table with one seed, unless already done."""
    file = _file(out, table, system, seed)
    if file.exists():
        found: Record = read_json(file)
        return found
    source = sources.SOURCES[table]
    loaded = Table.read(str(path), held_out=0.5, seed=seed, ignore=source.ignore)
    kind, held = loaded.kind, loaded.held_out
    if not isinstance(kind, Table) or held is None:
        raise ArgumentError(f"{path}: too few rows to keep half of them from training")
    classes = [column.classes for column in kind.columns]
    target = next(k for k, column in enumerate(kind.columns) if column.name == source.target)
    train, test = kind.values(loaded.train.x), kind.values(held.x)
    say(f"{table}, {system}, seed {seed}: {len(train)} rows")
    number = rows_to_make(len(test))
    started, parameters = time.monotonic(), None
    if system in preset.flows:
        model = models.build(kind, flow=preset.flows[system], network=preset.network, seed=seed)
        parameters = sum(p.numel() for p in model.predictor.parameters())
        training = replace(preset.training, seed=seed, batch_size=min(preset.training.batch_size, len(train)))
        model = model.fit(loaded.train, training, device=device, label=f"train {system}")
        made = kind.values(model.sample(number, nfe=preset.nfes[0], seed=seed, batch_size=1024))
    elif system == "gaussian-copula":
        made = copula.of_rows(train, number, seed)
    else:
        made = _in_range(peers.made_by(system, train, number, classes, seed), kind)
    seconds = time.monotonic() - started
    record = {
        "data": table,
        "system": system,
        "seed": seed,
        **asdict(table_scores(made, train, test, classes, target, seed)),
        **_floor(out, table, seed, train, test, classes, target),
        "rows": len(train),
        "columns": len(classes),
        "parameters": parameters,
        "seconds": round(seconds, 2),
    }
    writable_folder(out / "made")
    if seed == preset.seeds[0]:
        kind.write(out / "made" / f"{table}-{system}.csv", kind.stored(made))
    write_json(file, record)
    return record


def _floor(
    out: Path, table: str, seed: int, train: Rows, test: Rows, classes: list[int], target: int
) -> dict[str, float]:
    """Return the scores of real rows, computed once for each table and seed."""
    file = writable_folder(out / "rows") / f"{table}-floor-seed{seed}.json"
    if not file.exists():
        write_json(file, floor_scores(train, test, classes, target, seed).as_floor())
    found: dict[str, float] = read_json(file)
    return found


def _in_range(made: Rows, kind: Table) -> Rows:
    """Return rows of a peer with the range, decimals and categories of the table, like those of the flows."""
    made = made.copy()
    for k, column in enumerate(kind.columns):
        x = made[:, k]
        if column.numeric:
            gap = np.isnan(x)
            z = torch.from_numpy(np.where(gap, column.mean, x))
            plain = replace(column, knots=())
            made[:, k] = np.where(gap, math.nan, plain.decode((z - column.mean) / column.std).numpy())
        elif column.classes:
            made[:, k] = np.nan_to_num(x).round().clip(0, column.classes - 1)
        else:
            made[:, k] = 0.0
    return made


STUDY = Benchmark("tables", run, pages, outcome)
