"""Evaluation of several sets of images under one set of conditions, and the tables of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from proxflow import metrics
from proxflow.errors import DataError
from proxflow.metrics import FeatureExtractor, Reference, Scores
from proxflow.runtime.files import read_json
from proxflow.runtime.processes import Processes

Record = dict[str, Any]

# By name of score: what it is called, how many digits are shown, and the best value.
ROWS = {
    "frechet": ("Fréchet distance", ".2f", "0"),
    "kid": ("KID × 1000", ".2f", "0"),
    "precision": ("precision", ".3f", "1"),
    "recall": ("recall", ".3f", "1"),
    "density": ("density", ".3f", "1"),
    "coverage": ("coverage", ".3f", "1"),
    "diversity": ("diversity", ".3f", "1"),
    "vendi": ("Vendi score", ".2f", "as real"),
    "sliced_wasserstein": ("sliced Wasserstein", ".3f", "0"),
    "nearest": ("nearest training image", ".3f", "as real"),
    "accuracy": ("classifier accuracy", ".3f", "1"),
}
_SCALES = {"kid": 1000.0}
NEIGHBOURS = 3
"""The neighbour that the balls of precision and recall reach to."""

_COLUMNS = 4
"""Results beside each other in one table."""


@dataclass(frozen=True)
class Source:
    """A set of images to evaluate.

    Args:
        title: For the table.
        images: Gives them, uint8, (N, C, H, W); called once, when everything has been checked.
        labels: int64, (N,), the classes that they were drawn for, or None.
        origin: What made them, for the record.
    """

    title: str
    images: Callable[[], Tensor]
    labels: Tensor | None
    origin: Record


@dataclass(frozen=True)
class Judge:
    """An extractor and a reference, prepared once, and all that a record must say about them.

    Args:
        extractor: The feature extractor.
        reference: Of the test images.
        training: Features of the training images, which the floor is drawn from.
        identity: The conditions, as :func:`identity_of` gives them.
        classifier: The data set whose classifier judges images that have labels, a key of ``metrics.CLASSIFIERS``.
    """

    extractor: FeatureExtractor
    reference: Reference
    training: Tensor
    identity: Record
    classifier: str = "mnist"

    @classmethod
    def of(
        cls, extractor: FeatureExtractor, training: Tensor, test: Tensor, name: str, classifier: str = "mnist"
    ) -> Judge:
        """Prepares the test images of a data set as the reference, with its training images beside it."""
        known = features(extractor, training)
        reference = Reference.of(features(extractor, test), NEIGHBOURS, known)
        return cls(extractor, reference, known, identity_of(extractor, training, test, name), classifier)

    def floor(self, count: int, seed: int) -> Scores:
        """What as many training images score; their nearest training image is themselves, so that is left out."""
        return metrics.real_floor(self.reference, self.training, count, seed)

    def record(self, source: Source, floor: Scores, seed: int) -> Record:
        """Scores a set of images."""
        images, hits, judged = source.images(), None, dict[str, str]()
        if source.labels is not None:
            hits = metrics.class_hits(metrics.load_classifier(self.classifier), images, source.labels)
            weights = metrics.CLASSIFIERS[self.classifier]
            judged["classifier"] = f"{weights.name} {weights.sha256[:12]}"
        scores = self.reference.score(features(self.extractor, images), hits, seed)
        return {
            **source.origin,
            "seed": seed,
            **asdict(scores),
            **floor.as_floor(),
            "floor_nearest": scores.nearest_real,
            **judged,
            **self.identity,
        }


def features(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    """Features of all images, in every process; each of them works out its share, in blocks that do not depend on it.

    In float32: networks compute in it, so nothing is lost, and large sets take half the memory.
    """
    processes, block = Processes.current(), 100
    mine = processes.part(len(images), block)
    found = torch.zeros(0, extractor.dimension)
    if mine:
        found = extractor(images[mine.start : mine.stop], block, torch.float32)
    return processes.gather(found, len(images), block)


def identity_of(extractor: FeatureExtractor, training: Tensor, test: Tensor, name: str) -> Record:
    """What records say of an extractor and of the data set that they were measured with; computes no features."""
    return {
        "extractor": f"{extractor.name} {extractor.sha256[:12]}",
        "extractor_sha256": extractor.sha256,
        "dimension": extractor.dimension,
        "reference": f"{len(test)} test images of {name}",
        "reference_sha256": _images_sha256(test),
        "training": f"{len(training)} training images of {name}",
        "training_sha256": _images_sha256(training),
        "neighbours": NEIGHBOURS,
    }


def _images_sha256(images: Tensor) -> str:
    return hashlib.sha256(f"{tuple(images.shape)};".encode() + images.contiguous().numpy().tobytes()).hexdigest()


def read_records(path: Path) -> dict[str, Record]:
    """The results in a file that ``evaluate --out`` or an experiment wrote, by title.

    Raises:
        DataError: The file holds no such results.
    """
    held = read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("cells"), list) or not held["cells"]:
        raise DataError(f'{path}: holds no results; expected a file of "proxflow evaluate --out" or of an experiment')
    shared: Record = {}
    if isinstance(held.get("reference"), str):
        shared["reference"] = held["reference"]
    if isinstance(held.get("extractor"), dict):
        shared["extractor_sha256"] = held["extractor"].get("sha256")
    records: dict[str, Record] = {}
    for index, cell in enumerate(held["cells"]):
        if not isinstance(cell, dict):
            raise DataError(f"{path}: result {index} is no record")
        record = {**shared, **cell}
        records[f"{path}: {title_of(record)}"] = record
    return records


def title_of(record: Mapping[str, Any]) -> str:
    """What made the images of a record, in words."""
    if record.get("images") is not None:
        return str(record["images"])
    words = [record.get("model") or record.get("flow"), record.get("sampler")]
    if record.get("nfe") is not None:
        words.append(f"NFE {record['nfe']}")
    if record.get("seed") is not None:
        words.append(f"seed {record['seed']}")
    return " ".join(str(word) for word in words if word is not None) or "images"


def show_one(record: Mapping[str, Any]) -> None:
    """Prints a result beside that of real images."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("these images", "±", "95 % interval", "real images", "best"):
        table.add_column(heading, justify="right")
    for name, (label, _, best) in ROWS.items():
        if record.get(name) is not None:
            ends = record.get("intervals", {}).get(name)
            between = "–" if ends is None else f"{_text(name, ends[0])} to {_text(name, ends[1])}"
            table.add_row(label, _text(name, record[name]), _error(record, name), between, _floor(record, name), best)
    _print(table)


def show_all(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints comparable results beside each other, with the number of each under "real images" of the first.

    Raises:
        ArgumentError: They are not comparable; nothing is printed.
        DataError: One does not state its conditions.
    """
    metrics.check_comparable({title: metrics.Conditions.of(record, title) for title, record in records.items()})
    files = {title.rpartition(": ")[0] for title in records}
    shared = f"{files.pop()}: " if len(files) == 1 else ""
    items = [(title.removeprefix(shared), record) for title, record in records.items()]
    if shared.strip(": "):
        sys.stdout.write(f"{shared}\n")
    for start in range(0, len(items), _COLUMNS):
        part = items[start : start + _COLUMNS]
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("")
        for title, _ in part:
            table.add_column(title, justify="right", overflow="fold")
        for heading in ("real images", "best"):
            table.add_column(heading, justify="right")
        for name, (label, _, best) in ROWS.items():
            if any(record.get(name) is not None for _, record in part):
                floors = dict.fromkeys(_floor(record, name) for _, record in part)
                table.add_row(label, *(_cell(record, name) for _, record in part), " / ".join(floors), best)
        _print(table)
    _show_seeds(list(records.values()))


def _show_seeds(records: Sequence[Mapping[str, Any]]) -> None:
    """Prints mean and interval over seeds of results that differ in the seed alone."""
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record.get("images") is None and isinstance(record.get("seed"), int):
            title = title_of({**record, "seed": None})
            groups.setdefault(title, {})[record["seed"]] = record
    for title, found in groups.items():
        if len(found) < 2:
            continue
        table = Table(box=box.SIMPLE_HEAD, title=f"{title}, over {len(found)} seeds", title_justify="left")
        for heading in ("", "mean", "95 % interval"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, (label, _, _) in ROWS.items():
            values = [record[name] for record in found.values() if record.get(name) is not None]
            if len(values) == len(found):
                low, high = metrics.bootstrap_seeds(values, seed=0)
                mean = sum(values) / len(values)
                table.add_row(label, _text(name, mean), f"{_text(name, low)} to {_text(name, high)}")
        _print(table)


def _print(table: Table) -> None:
    Console(file=sys.stdout, highlight=False, width=120).print(table)


def _text(name: str, value: float) -> str:
    return format(value * _SCALES.get(name, 1.0), ROWS[name][1])


def _cell(record: Mapping[str, Any], name: str) -> str:
    if record.get(name) is None:
        return "–"
    error = _error(record, name)
    return _text(name, record[name]) + ("" if error == "–" else f" ±{error}")


def _error(record: Mapping[str, Any], name: str) -> str:
    # That of KID is over both sets, as usual; the others hold the reference.
    error = record.get("kid_error") if name == "kid" else record.get("errors", {}).get(name)
    return "–" if error is None else _text(name, error)


def _floor(record: Mapping[str, Any], name: str) -> str:
    value = record.get("floor" if name == "frechet" else f"floor_{name}")
    return "–" if value is None else _text(name, value)
