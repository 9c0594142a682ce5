"""Scores of several trials or sets of images under the same conditions, claims about them, and their tables."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from proxflow import metrics
from proxflow.errors import DataError
from proxflow.metrics import FeatureExtractor, Reference, Scores
from proxflow.runtime.files import read_json
from proxflow.runtime.processes import Processes
from proxflow.studies.pages import Block, Paragraph, Strong, Table, show

Record = dict[str, Any]
Score = Literal[
    "frechet",
    "precision",
    "recall",
    "diversity",
    "class_accuracy",
    "class_frechet",
    "class_recall",
    "second_frechet",
    "second_precision",
    "second_recall",
    "memorised",
    "memorised_features",
]
Floor = Literal[
    "floor",
    "floor_precision",
    "floor_recall",
    "second_floor",
    "second_floor_precision",
    "second_floor_recall",
    "memorised_floor",
    "memorised_features_floor",
]
Relation = Literal["<", "≤", ">", "≥"]
Measure = Callable[[int], float | None]
"""Function of a seed that returns a value, ``None`` if its cells are missing."""

# Cells and claims ---------------------------------------------------------------------------------------------------


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
        """Return the mean as text, with the range if there is one."""
        if self.low == self.high:
            return form(self.mean)
        return f"{form(self.mean)} ({form(self.low)}–{form(self.high)})"


def distance(value: float) -> str:
    """Format a Fréchet distance, or a ratio of two, with about three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def share(value: float) -> str:
    """Format a precision, recall or diversity."""
    return f"{value:.2f}"


def ratio(above: float | None, below: float | None) -> float | None:
    """Return the ratio of two scores, if both exist and the second is not zero."""
    return None if above is None or not below else above / below


@dataclass(frozen=True)
class Claim:
    """A claim of a study, with the measured values.

    Args:
        name: Identifier.
        statement: What is measured.
        values: The value of each seed that has the cells for it, at least one.
        relation: Required relation of a value to the threshold.
        threshold: The threshold; ``None`` for a value that is only reported.
    """

    name: str
    statement: str
    values: tuple[float, ...]
    relation: Relation
    threshold: float | None

    @property
    def held(self) -> int | None:
        """Number of seeds in which the claim holds, ``None`` without a threshold."""
        if self.threshold is None:
            return None
        compare = {"<": operator.lt, "≤": operator.le, ">": operator.gt, "≥": operator.ge}[self.relation]
        return sum(bool(compare(value, self.threshold)) for value in self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds in every seed, ``None`` without a threshold."""
        return None if self.held is None else self.held == len(self.values)


@dataclass(frozen=True)
class Scoreboard:
    """The cells of a results file.

    Args:
        cells: The records, as in ``results["cells"]``.
    """

    cells: tuple[Record, ...]

    @classmethod
    def of(cls, results: Record) -> Scoreboard:
        """Return the scoreboard of the content of ``results.json``."""
        return cls(tuple(results["cells"]))

    @cached_property
    def _records(self) -> dict[tuple[str, str, int, int], Record]:
        return {(c["flow"], c["sampler"], c["nfe"], c["seed"]): c for c in self.cells}

    @cached_property
    def rows(self) -> list[tuple[str, str]]:
        """Trials with their samplers, in the order of the study."""
        return list(dict.fromkeys((c["flow"], c["sampler"]) for c in self.cells))

    @cached_property
    def flows(self) -> list[str]:
        """Names of the trials, in the order of the study."""
        return list(dict.fromkeys(flow for flow, _ in self.rows))

    @cached_property
    def nfes(self) -> list[int]:
        return sorted({c["nfe"] for c in self.cells})

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({c["seed"] for c in self.cells})

    def one(self, flow: str, sampler: str, nfe: int, seed: int, score: Score | Floor = "frechet") -> float | None:
        """Return a score of one cell, or of the real images with it, or ``None`` if it or its score is missing."""
        value = self._records.get((flow, sampler, nfe, seed), {}).get(score)
        return None if value is None else float(value)

    def over_seeds(
        self, flow: str, sampler: str, nfe: int, score: Score = "frechet", seeds: Sequence[int] | None = None
    ) -> Summary | None:
        """Return a score over the seeds, all by default, or ``None`` if no seed has such a cell."""
        values = [self.one(flow, sampler, nfe, seed, score) for seed in (self.seeds if seeds is None else seeds)]
        found = [value for value in values if value is not None]
        return Summary.of(found) if found else None

    def points(self, flow: str, sampler: str, score: Score = "frechet") -> dict[int, Summary]:
        """Return the Fréchet distances of a trial with a sampler, by increasing NFE."""
        return {nfe: found for nfe in self.nfes if (found := self.over_seeds(flow, sampler, nfe, score)) is not None}

    def floor(self, score: Floor = "floor") -> Summary:
        """Return a score of real images; it only depends on the seed."""
        return Summary.of(list({c["seed"]: float(c[score]) for c in self.cells}.values()))

    def best_sampler(self, flow: str, nfe: int) -> str:
        """Return the sampler with the lowest mean Fréchet distance, among those with a cell at this NFE."""
        return self.best([row for row in self.rows if row[0] == flow], nfe)[1]

    def best(self, rows: Sequence[tuple[str, str]], nfe: int) -> tuple[str, str]:
        """Return the trial and sampler among some with the lowest mean Fréchet distance at an NFE."""
        scored = [(self.over_seeds(*row, nfe), row) for row in rows]
        return min(((s.mean, row) for s, row in scored if s is not None), key=lambda pair: pair[0])[1]

    def claim(
        self, name: str, statement: str, measure: Measure, relation: Relation, threshold: float | None
    ) -> list[Claim]:
        """Measure a :class:`Claim` for every seed; return an empty list if no seed has its cells."""
        values = tuple(value for seed in self.seeds if (value := measure(seed)) is not None)
        return [Claim(name, statement, values, relation, threshold)] if values else []

    def nearest_nfe(self, flow: str, wanted: int) -> int:
        """Return the NFE nearest to ``wanted`` with cells of a trial."""
        return min(sorted({int(c["nfe"]) for c in self.cells if c["flow"] == flow}), key=lambda nfe: abs(nfe - wanted))


# Tables -------------------------------------------------------------------------------------------------------------


def claims_table(found: Sequence[Claim]) -> Table:
    """Return a table of claims: expected and measured values."""

    def measured(value: float) -> str:
        return f"{value:.{3 if value < 10 else 1}f}"  # enough digits to distinguish it from its threshold

    def verdict(claim: Claim) -> str | Strong:
        if claim.held is None:
            return "–"
        if claim.holds:
            return Strong("yes")
        return f"in {claim.held} of {len(claim.values)} seeds" if claim.held else "no"

    def expected(claim: Claim) -> str:
        return "–" if claim.threshold is None else f"{claim.relation} {claim.threshold:g}"

    rows = [(c.statement, Summary.of(c.values).text(measured), expected(c), verdict(c)) for c in found]
    return Table(("Claim", "Measured", "Expected", "Holds"), tuple(rows), 1)


def frechet_table(
    board: Scoreboard,
    what: str = "Flow",
    columns: Sequence[tuple[str, Callable[[str], str]]] = (),
    score: Score = "frechet",
    floor: Floor = "floor",
) -> Table:
    """Return a table of Fréchet distances by trial and sampler, a column for each NFE with the lowest bold.

    Args:
        board: The cells.
        what: Name of trials in the heading.
        columns: Headings of further columns, with functions of a trial.
        score: Name of the distance.
        floor: Name of that of real images.
    """
    shown = {row: board.points(*row, score) for row in board.rows}
    best = {nfe: distance(min(p[nfe].mean for p in shown.values() if nfe in p)) for nfe in board.nfes}

    def entry(summary: Summary | None, nfe: int) -> str | Strong:
        if summary is None:
            return "–"
        text = summary.text(distance)
        return Strong(text) if distance(summary.mean) == best[nfe] else text

    rows: list[tuple[str | Strong, ...]] = [
        (*row, *(told(row[0]) for _, told in columns), *(entry(points.get(nfe), nfe) for nfe in board.nfes))
        for row, points in shown.items()
    ]
    rows.append(("real images", "–", *("–" for _ in columns), *(board.floor(floor).text(distance) for _ in board.nfes)))
    return Table(
        (what, "Sampler", *(heading for heading, _ in columns), *(f"{nfe} NFE" for nfe in board.nfes)), tuple(rows), 2
    )


def on_second(results: Record, board: Scoreboard, what: str = "Flow") -> list[Block]:
    """Return the table of Fréchet distances with the second extractor (:func:`frechet_table`); empty without one.

    Args:
        results: Content of ``results.json``.
        board: Its cells.
        what: Name of trials in the heading.
    """
    if "second_extractor" not in results:
        return []
    known = results["second_extractor"]
    what_it_is = "a network of another architecture, trained independently"
    if known["name"].endswith("principal"):
        what_it_is = "principal components of pixels, without a network"
    return [
        Paragraph(
            f"Fréchet distances of the same samples on {known['name']} (sha256 {known['sha256'][:12]}), {what_it_is}; "
            "in other units, so it is the order of rows that compares:"
        ),
        frechet_table(board, what, score="second_frechet", floor="second_floor"),
    ]


def quality_table(board: Scoreboard, wanted: Sequence[int], what: str = "Flow") -> Table:
    """Return a table of precision, recall and diversity by trial and sampler.

    Args:
        board: The cells.
        wanted: The NFEs to show, among existing ones.
        what: Name of trials in the heading.
    """
    nfes = sorted({*wanted} & {*board.nfes}) or board.nfes[-1:]
    scores: tuple[Score, ...] = ("precision", "recall", "diversity")

    def entry(flow: str, sampler: str, nfe: int, score: Score) -> str:
        summary = board.over_seeds(flow, sampler, nfe, score)
        return "–" if summary is None else summary.text(share)

    rows = [(*row, *(entry(*row, nfe, score) for score in scores for nfe in nfes)) for row in board.rows]
    floors = [board.floor("floor_precision").text(share), board.floor("floor_recall").text(share), "1"]
    rows.append(("real images", "–", *(floor for floor in floors for _ in nfes)))
    return Table((what, "Sampler", *(f"{score}, {nfe} NFE" for score in scores for nfe in nfes)), tuple(rows), 2)


def listed(words: Sequence[object]) -> str:
    """Return words joined by commas and a final "and"."""
    *first, last = map(str, words)
    return " and ".join(filter(None, [", ".join(first), last]))


def dataset_of(results: Record) -> str:
    """Return the name of the data set, for texts."""
    name = str(results["config"]["dataset"])
    return "MNIST" if name == "mnist" else name


def sample_counts(board: Scoreboard) -> str:
    """Return the number of samples per entry of the tables, in words."""
    return listed(sorted({c["samples"] for c in board.cells}))


def _hardware(described: Record) -> str:
    names = [described[key] for key in ("accelerator", "processor") if key in described]
    return ", ".join([*names, f"cores {described['cores']}", f"threads {described['threads']}", described["system"]])


def conditions(results: Record, parameters: int) -> Table:
    """Return a table of the conditions of the measurement.

    Args:
        results: Content of ``results.json``.
        parameters: Number of the network's parameters.
    """
    board, config, extractor = Scoreboard.of(results), results["config"], results["extractor"]
    network, training, trained = config["network"], config["training"], results["training"]
    if isinstance(network, dict):  # as earlier versions wrote it
        network = "unet, " + ", ".join(f"{name} {value}" for name, value in network.items())
    times = {
        flow: [trained[key]["seconds"] for seed in board.seeds if (key := f"{flow}-seed{seed}") in trained]
        for flow in board.flows
    }
    seconds = [f"{flow} {Summary.of(values).text('{:.0f}'.format)}" for flow, values in times.items()]
    steps, batch = training["steps"], training["batch_size"]
    taken = {name.rpartition("-seed")[0]: record.get("training", training)["steps"] for name, record in trained.items()}
    alike = set(taken.values()) <= {steps}
    rows = {
        "Preset": config["preset"],
        "Data": f"{dataset_of(results)}, {listed(sorted({record['data'] for record in trained.values()}))}",
        "Network": f"{network}, {parameters:,} parameters",
        **{name: flow for name, flow in results.get("flows", {}).items() if name != flow},
        "Training steps": f"{steps:,}, the same for every flow"
        if alike
        else "; ".join(f"{name} {number:,}" for name, number in taken.items()),
        "Training images seen": f"{steps * batch:,}, in batches of {batch}"
        if alike
        else f"{batch} times the steps, in batches of {batch}",
        "Optimiser": f"AdamW, peak rate {training['learning_rate']:g}; weights averaged with decay {training['ema']:g}",
        "Seconds of training": "; ".join(seconds),
        "Seeds": ", ".join(map(str, board.seeds)),
        "Samples scored": f"{sample_counts(board)} for each entry of the tables",
        **{
            title: f"{known['name']}, dimension {known['dimension']}, SHA-256 {known['sha256']}"
            for title, known in (("Feature extractor", extractor), ("The second", results.get("second_extractor")))
            if known is not None
        },
        "Reference": results["reference"],
        "Hardware of training": "; ".join(dict.fromkeys(_hardware(record["hardware"]) for record in trained.values())),
        "Hardware of evaluation": _hardware(results["hardware"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    return Table(("Condition", "Value"), tuple(rows.items()), 2)


def summary(results: Record, trained: str | None = None) -> str:
    """Return the conditions of a run as a paragraph.

    Args:
        results: Content of ``results.json``.
        trained: How its models were trained, in words; by default the steps and images of the preset.
    """
    board, training = Scoreboard.of(results), results["config"]["training"]
    extractor, hardware = results["extractor"], results["hardware"]
    seeds = ", ".join(map(str, board.seeds))
    how = trained or f"{training['steps']:,} training steps of {training['batch_size']} images for each flow"
    return (
        f"{how}; seed {seeds}; "
        f"{sample_counts(board)} samples an entry against {results['reference']}; features {extractor['name']}, "
        f"sha256 {extractor['sha256'][:12]}; as many real training images score {board.floor().mean:.2f} (the floor); "
        f"evaluated on {hardware.get('accelerator') or hardware['processor']}, {hardware['cores']} cores, PyTorch "
        f"{results['versions']['torch']}."
    )


# Sets of images -----------------------------------------------------------------------------------------------------

# By name of score: its title, number of digits, and best value.
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
    "class_frechet": ("Fréchet distance within classes", ".2f", "0"),
    "class_precision": ("precision within classes", ".3f", "1"),
    "class_recall": ("recall within classes", ".3f", "1"),
}
_SCALES = {"kid": 1000.0}
NEIGHBOURS = 3
"""k of the k-nearest-neighbour balls of precision and recall."""

_COLUMNS = 4
"""Most results per table."""


@dataclass(frozen=True)
class Source:
    """A set of images to evaluate.

    Args:
        title: Title in the table.
        images: Function that returns them, uint8, (N, C, H, W); called once, after all checks.
        labels: int64, (N,), the classes for which they were drawn, or None.
        origin: Their origin, for the record.
    """

    title: str
    images: Callable[[], Tensor]
    labels: Tensor | None
    origin: Record


@dataclass(frozen=True)
class Evaluator:
    """An extractor and a reference, prepared once, and their description for records.

    Args:
        extractor: The feature extractor.
        reference: Of the test images.
        training: Features of the training images, from which the floor is drawn.
        identity: The conditions, from :func:`identity_of`.
        classifier: The data set whose classifier is used for images with labels, a key of ``metrics.CLASSIFIERS``;
            ``None`` for none.
        labels: Labels of training and test images, int64 (number,) each, by which images with labels are compared
            within their classes; ``None`` for no such comparison.
    """

    extractor: FeatureExtractor
    reference: Reference
    training: Tensor
    identity: Record
    classifier: str | None = "mnist"
    labels: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        extractor: FeatureExtractor,
        training: Tensor,
        test: Tensor,
        name: str,
        classifier: str | None = "mnist",
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> Evaluator:
        """Prepare the test images of a data set as the reference, with its training images."""
        known = features(extractor, training)
        reference = Reference.of(features(extractor, test), NEIGHBOURS, known)
        return cls(extractor, reference, known, identity_of(extractor, training, test, name), classifier, labels)

    def floor(self, count: int, seed: int) -> Scores:
        """Score as many training images, without the nearest training image, which is the image itself."""
        return metrics.real_floor(self.reference, self.training, count, seed)

    def record(self, source: Source, floor: Scores, seed: int) -> Record:
        """Score a set of images."""
        images, hits, classified = source.images(), None, Record()
        if source.labels is not None and self.classifier is not None:
            hits = metrics.class_hits(metrics.load_classifier(self.classifier), images, source.labels)
            weights = metrics.CLASSIFIERS[self.classifier]
            classified["classifier"] = f"{weights.name} {weights.sha256[:12]}"
        found = features(self.extractor, images)
        scores = self.reference.score(found, hits, seed)
        if source.labels is not None and self.labels is not None:
            classified |= within_classes(self.reference, self.labels[1], found, source.labels)
            order = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(seed))[: len(found)]
            real, own = self.training[order], self.labels[0][order]
            if int(torch.unique(own, return_counts=True)[1].min()) > NEIGHBOURS:
                floors = within_classes(self.reference, self.labels[1], real, own)
                classified |= {f"floor_{name}": floors[name] for name in ROWS if name in floors}
        return {
            **source.origin,
            "seed": seed,
            **asdict(scores),
            **floor.as_floor(),
            "floor_nearest": scores.nearest_real,
            **classified,
            **self.identity,
        }


def within_classes(reference: Reference, known: Tensor, found: Tensor, labels: Tensor) -> Record:
    """Score features within classes, as entries of a record: by class in the order of ``classes``, and the means.

    Args:
        reference: Of the test images.
        known: Their labels, int64 (N,).
        found: Features of images (M, D).
        labels: The classes for which they were drawn, int64 (M,).

    Raises:
        ArgumentError: A class has too few images.
    """
    scores = metrics.class_scores(reference.manifold.features, known, found, labels, NEIGHBOURS)
    return {
        "classes": list(scores.classes),
        "frechet_per_class": list(scores.frechet),
        "recall_per_class": list(scores.recall),
        "class_frechet": scores.mean_frechet,
        "class_precision": scores.mean_precision,
        "class_recall": scores.mean_recall,
    }


def features(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    """Compute the features of all images, in every process.

    Each process computes its share, in fixed blocks and in float32: networks compute in it, so nothing is lost, and
    large sets take half the memory.
    """
    processes, block = Processes.current(), 100
    mine = processes.part(len(images), block)
    found = torch.zeros(0, extractor.dimension)
    if mine:
        found = extractor(images[mine.start : mine.stop], block, torch.float32)
    return processes.gather(found, len(images), block)


def identity_of(extractor: FeatureExtractor, training: Tensor, test: Tensor, name: str) -> Record:
    """Return the description of an extractor and a data set for records; computes no features."""
    return {
        "extractor": title_of_extractor(extractor),
        "extractor_sha256": extractor.sha256,
        "dimension": extractor.dimension,
        "reference": f"{len(test)} test images of {name}",
        "reference_sha256": _images_sha256(test),
        "training": f"{len(training)} training images of {name}",
        "training_sha256": _images_sha256(training),
        "neighbours": NEIGHBOURS,
    }


def title_of_extractor(extractor: FeatureExtractor) -> str:
    """Return the name of an extractor with the start of its checksum, as in records."""
    return f"{extractor.name} {extractor.sha256[:12]}"


def floor(reference: Reference, extractor: FeatureExtractor, images: Tensor, samples: int, seed: int) -> Scores:
    """Score as many real training images, selected by a seed."""
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:samples]
    return reference.score(extractor(images[picked]))


def _images_sha256(images: Tensor) -> str:
    return hashlib.sha256(f"{tuple(images.shape)};".encode() + images.contiguous().numpy().tobytes()).hexdigest()


def read_records(path: Path) -> dict[str, Record]:
    """Read the results in a file that ``evaluate --out`` or an experiment wrote, by title.

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
    """Return the origin of the images of a record, in words."""
    if record.get("images") is not None:
        return str(record["images"])
    words = [record.get("model") or record.get("flow"), record.get("sampler")]
    if record.get("nfe") is not None:
        words.append(f"NFE {record['nfe']}")
    if record.get("seed") is not None:
        words.append(f"seed {record['seed']}")
    return " ".join(str(word) for word in words if word is not None) or "images"


def show_one(record: Mapping[str, Any]) -> None:
    """Print a result with that of real images."""
    rows = []
    for name, (label, _, best) in ROWS.items():
        if record.get(name) is not None:
            ends = record.get("intervals", {}).get(name)
            between = "–" if ends is None else f"{_text(name, ends[0])} to {_text(name, ends[1])}"
            rows.append((label, _text(name, record[name]), _error(record, name), between, _floor(record, name), best))
    show([Table(("", "these images", "±", "95 % interval", "real images", "best"), tuple(rows), 1)])


def show_all(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Print comparable results in one table, with the floor of the first under "real images".

    Raises:
        ArgumentError: They are not comparable; nothing is printed.
        DataError: One does not state its conditions.
    """
    metrics.check_comparable({title: metrics.Conditions.of(record, title) for title, record in records.items()})
    files = {title.rpartition(": ")[0] for title in records}
    shared = f"{files.pop()}: " if len(files) == 1 else ""
    items = [(title.removeprefix(shared), record) for title, record in records.items()]
    blocks: list[Block] = [Paragraph(shared)] if shared.strip(": ") else []
    for start in range(0, len(items), _COLUMNS):
        part = items[start : start + _COLUMNS]
        rows = []
        for name, (label, _, best) in ROWS.items():
            if any(record.get(name) is not None for _, record in part):
                floors = dict.fromkeys(_floor(record, name) for _, record in part)
                rows.append((label, *(_cell(record, name) for _, record in part), " / ".join(floors), best))
        blocks.append(Table(("", *(title for title, _ in part), "real images", "best"), tuple(rows), 1))
    show([*blocks, *_over_seeds(list(records.values()))])


def _over_seeds(records: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return mean and interval over seeds of results that only differ in the seed."""
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record.get("images") is None and isinstance(record.get("seed"), int):
            title = title_of({**record, "seed": None})
            groups.setdefault(title, {})[record["seed"]] = record
    blocks: list[Block] = []
    for title, found in groups.items():
        if len(found) < 2:
            continue
        rows = []
        for name, (label, _, _) in ROWS.items():
            values = [record[name] for record in found.values() if record.get(name) is not None]
            if len(values) == len(found):
                low, high = metrics.bootstrap_seeds(values, seed=0)
                mean = sum(values) / len(values)
                rows.append((label, _text(name, mean), f"{_text(name, low)} to {_text(name, high)}"))
        blocks += [Paragraph(f"{title}, over {len(found)} seeds"), Table(("", "mean", "95 % interval"), tuple(rows), 1)]
    return blocks


def _text(name: str, value: float) -> str:
    return format(value * _SCALES.get(name, 1.0), ROWS[name][1])


def _cell(record: Mapping[str, Any], name: str) -> str:
    if record.get(name) is None:
        return "–"
    error = _error(record, name)
    return _text(name, record[name]) + ("" if error == "–" else f" ±{error}")


def _error(record: Mapping[str, Any], name: str) -> str:
    # That of KID is over both sets, as usual; the others keep the reference fixed.
    error = record.get("kid_error") if name == "kid" else record.get("errors", {}).get(name)
    return "–" if error is None else _text(name, error)


def _floor(record: Mapping[str, Any], name: str) -> str:
    value = record.get("floor" if name == "frechet" else f"floor_{name}")
    return "–" if value is None else _text(name, value)
