"""Search for the best settings for MNIST, so that families of flows are compared at their best: the flows ``*-tuned``.

    python -m tools.tuned --out runs/tuned

Trains a small network on 50,000 training images with each flow and scores its samples by the other 10,000: no test
image is used, and only the first of the two extractors. The end of the beliefs matters most; for both families the
flows tried leave between a tenth and half of the noise or more. For ``gpfn-w2`` two other schedules are tried, and
weights of times at the best end. The best of a family has the lowest geometric mean of Fréchet distances over seeds and
numbers of evaluations, each with its best sampler. ``proxflow.names.TUNED`` holds the result.

Flows with their seeds are pieces, done in parallel; the same command resumes with what is missing. ``--flows`` tries
more: if the best is at an end of its range, go beyond. About 2.5 core-hours for three seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import quote

import torch

from proxflow import data, metrics, models, names
from proxflow.config import TrainingConfig, to_dict
from proxflow.errors import ArgumentError, ProxflowError
from proxflow.models import spec
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.runtime.machine import hardware, versions, working_processes
from proxflow.runtime.pool import Piece
from proxflow.samplers import sample
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import side_by_side
from proxflow.training.fit import fit
from proxflow.training.run import RunFolder

_TRAINING = TrainingConfig(steps=1000, batch_size=64, ema=0.995, precision="float32")


@dataclass(frozen=True)
class Search:
    """The settings of a flow's score.

    Args:
        network: The network of all flows, as a string.
        training: Settings of training; the seed is that of a piece.
        samples: Samples per score.
        held_out: Held-out training images, the last of the data set.
        samplers: Samplers, of which the best counts.
        nfes: Numbers of network evaluations.
    """

    network: str = "unet:channels=16"
    training: TrainingConfig = _TRAINING
    samples: int = 1000
    held_out: int = 10_000
    samplers: tuple[str, ...] = ("stochastic", "unipc", "sde-bfn-solver2")
    nfes: tuple[int, ...] = (4, 10, 20)


SEARCH = Search()

FLOWS = {
    "gpfn-w2": (
        *(f"gpfn-w2:schedule=linear:final={end}" for end in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)),
        "gpfn-w2:schedule=cosine",
        "gpfn-w2:schedule=shifted:log_odds=-1",
    ),
    "bfn": tuple(f"bfn:sigma1={sigma1}" for sigma1 in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)),
}
"""The flows tried of each family, as strings."""

WEIGHTS = {"gpfn-w2": ("weight_floor=0.1", "weight_floor=1.0")}
"""Settings tried with the best of them."""


def run(
    out: Path,
    seeds: Sequence[int],
    say: Callable[[str], None],
    processes: int = 1,
    search: Search = SEARCH,
    flows: Mapping[str, tuple[str, ...]] = FLOWS,
    weights: Mapping[str, tuple[str, ...]] = WEIGHTS,
) -> Record:
    """Do what is missing of the search, and write ``results.json``.

    Args:
        out: Folder of pieces and results.
        seeds: Seeds of weights, order of data and samples.
        say: Called with a line at each stage.
        processes: Number of parallel processes.
        search: The settings of a flow's score.
        flows: Flows of each family to try, as strings; results of earlier calls in the folder are included.
        weights: Further settings to try with the best flow of a family.

    Returns:
        The content of ``results.json``: a record for each flow, seed, sampler and number of evaluations, the means and the
        best flow of each family.

    Raises:
        ArgumentError: A flow is unknown, or not of its family.
        OutputError: The folder holds a search of another size, or cannot be written.
    """
    for family, words in flows.items():
        for flow in words:
            spec.parse("flows", flow)
            if _family(flow) != family:
                raise ArgumentError(f"{flow} is no {family}: begin the word with {family}:")
    config = {**to_dict(search), "data": "mnist"}
    RunFolder(out, "tuned", "config.json").claim(config)
    writable_folder(out / "pieces")

    def work(words: Sequence[str]) -> None:
        missing = [(flow, seed) for flow in words for seed in seeds if not _file(out, flow, seed).exists()]
        pieces = [Piece(f"{flow}, seed {seed}", piece, (search, out, flow, seed)) for flow, seed in missing]
        side_by_side(pieces, processes, say)
        for flow, seed in missing:
            piece(search, out, flow, seed)

    work([flow for words in flows.values() for flow in words])
    settings = tuple(setting for each in weights.values() for setting in each)
    plain = {flow: mean for flow, mean in means(_records(out, seeds), seeds).items() if not flow.endswith(settings)}
    work([_with(flow, setting) for family, flow in _best(plain).items() for setting in weights.get(family, ())])
    records = _records(out, seeds)
    found, (training, _), extractor = means(records, seeds), _images(search.held_out), _extractor()
    picked = torch.randperm(len(training), generator=torch.Generator().manual_seed(seeds[0]))[: search.samples]
    results: Record = {
        "experiment": "tuned",
        "config": {**config, "seeds": list(seeds)},
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "dimension": extractor.dimension},
        "reference": f"{search.held_out} training images of mnist that were not trained on",
        "floor": _distance(extractor(training[picked]), search.held_out),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "records": records,
        "means": found,
        "best": _best(found),
    }
    write_json(out / "results.json", results)
    return results


def piece(search: Search, out: Path, flow: str, seed: int) -> None:
    """Train with a flow and score its samples, unless it is done. The network is not saved."""
    file = _file(out, flow, seed)
    if file.exists():
        return
    training, _ = _images(search.held_out)
    model = models.build(training.shape[1:], flow=flow, network=search.network, predictor="point", seed=seed)
    settings = replace(search.training, seed=seed)
    predictor = fit(model.predictor, model.flow, training, settings, label=flow).predictor
    records = []
    for sampler in search.samplers:
        for nfe in search.nfes:
            shape = (search.samples, *model.shape)
            drawn = sample(predictor, model.flow, shape, nfe=nfe, sampler=sampler, seed=seed, batch_size=256)
            frechet = _distance(_extractor()(data.to_bytes(drawn)), search.held_out)
            records.append({"flow": flow, "seed": seed, "sampler": sampler, "nfe": nfe, "frechet": frechet})
    write_json(file, records)


def means(records: Sequence[Record], seeds: Sequence[int]) -> dict[str, float]:
    """Return by flow the geometric mean, over seeds and evaluations, of the least Fréchet distance of all samplers.

    Only flows that have records of every seed are compared.
    """
    least: dict[str, dict[tuple[int, int], float]] = {}
    for record in records:
        cells, key = least.setdefault(record["flow"], {}), (record["seed"], record["nfe"])
        cells[key] = min(record["frechet"], cells.get(key, math.inf))
    return {
        flow: math.exp(sum(map(math.log, cells.values())) / len(cells))
        for flow, cells in least.items()
        if {seed for seed, _ in cells} == set(seeds)
    }


def _best(found: dict[str, float]) -> dict[str, str]:
    """Return the flow of the lowest mean of each family; of equal ones, the shortest."""
    best: dict[str, str] = {}
    for flow in sorted(found, key=lambda flow: (found[flow], len(flow))):
        best.setdefault(_family(flow), flow)
    return best


def _with(flow: str, setting: str) -> str:
    return f"{flow}{',' if ':' in flow else ':'}{setting}"


def _family(flow: str) -> str:
    return flow.partition(":")[0]


def _file(out: Path, flow: str, seed: int) -> Path:
    return out / "pieces" / f"{quote(flow, safe='=,')}-seed{seed}.json"


def _records(out: Path, seeds: Sequence[int]) -> list[Record]:
    """Read the records of the seeds in the folder, in the order of file names."""
    records: list[Record] = [record for path in sorted((out / "pieces").glob("*.json")) for record in read_json(path)]
    return [record for record in records if record["seed"] in seeds]


@cache
def _images(held_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training images and the held-out ones."""
    images = data.load("mnist", "train").images
    return images[:-held_out], images[-held_out:]


@cache
def _extractor() -> metrics.FeatureExtractor:
    return metrics.mnist_features()


@cache
def _reference(held_out: int) -> metrics.GaussianStatistics:
    return metrics.GaussianStatistics.of(_extractor()(_images(held_out)[1]), "real")


def _distance(features: torch.Tensor, held_out: int) -> float:
    return float(metrics.frechet_distance(metrics.GaussianStatistics.of(features, "samples"), _reference(held_out)))


def main() -> int:
    """Search, and print what was found; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"), help="folder of pieces and results.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--flows", nargs="+", help="further flows to try, in words, as gpfn-w2:schedule=linear:final=0.4"
    )
    arguments = parser.parse_args()
    flows = dict(FLOWS)
    for flow in arguments.flows or ():
        if (family := _family(flow)) not in FLOWS:
            parser.error(f"--flows {flow} is of no family that is searched: begin with {' or '.join(FLOWS)}")
        flows[family] = (*flows[family], flow)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    torch.set_num_threads(1)
    try:
        results = run(arguments.out, arguments.seeds, say, working_processes(), flows=flows)
    except ProxflowError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for flow, mean in sorted(results["means"].items(), key=lambda item: item[1]):
        say(f"{mean:8.3f}  {flow}")
    for family, flow in results["best"].items():
        held = spec.parse("flows", f"{family}-tuned") == spec.parse("flows", flow)
        say(f"best of {family}: {flow}; proxflow.names.TUNED has {'it' if held else names.TUNED[family]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
