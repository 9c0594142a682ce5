"""Reflow (2209.03003): rounds of pairs and of training that straighten a model, and lose nothing when stopped."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from proxflow import models
from proxflow.config import PairSamplerName, TrainingConfig, to_dict
from proxflow.couplings import Reflowed
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.flows import Flow
from proxflow.models import Model
from proxflow.predictors import PointPredictor, Predictor
from proxflow.random import SampleStreams
from proxflow.runtime.checkpoints import digest, read_tensors, remove_all, write_tensors
from proxflow.runtime.processes import Processes
from proxflow.runtime.progress import bar
from proxflow.samplers import sample
from proxflow.training.fit import fit
from proxflow.training.objectives import Reflow
from proxflow.training.run import RunFolder, decisive, upgrade

SHARD = 1024
"""Samples in a file of pairs; what is lost at most when their making is stopped."""


def reflow(
    model: Model,
    training: TrainingConfig,
    out: Path,
    *,
    rounds: int = 1,
    pairs: int = 20_000,
    pair_nfe: int = 10,
    sampler: PairSamplerName = "multistep2",
    source: str = "",
    device: torch.device | str = "cpu",
    provenance: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Model:
    """Straighten a model's paths: again and again, draw pairs from it and train it on them.

    Stopped at any moment, the same call goes on where it was, to the same weights. With more rounds it adds them.

    Args:
        model: What to begin with; its flow as :class:`proxflow.Reflow` takes it.
        training: How to train in each round, from the weights before it.
        out: Folder for the model after the last round, which loads like any other, and for each round's, ``round-1`` and so
            on.
        rounds: Number of rounds, ≥ 1.
        pairs: Pairs of a round, ≥ 1: prior draw and sample, float32, all of them in memory while training.
        pair_nfe: Network evaluations a sample, ≥ 1.
        sampler: A sampler without noise.
        source: Name of the model, for the record.
        device: Where to sample and train.
        provenance: Further entries for the record.
        say: Called with a line at each stage.

    Returns:
        The straightened model. Its provenance, under ``reflow``, has what was done and what it cost in network passes of
        one example, an evaluation 1 and a training example 3; and the :func:`straightness` before and after each round,
        which is measured beside that.

    Raises:
        ArgumentError: A number out of range, a sampler that adds noise, or a model that reflow cannot train.
        OutputError: The folder cannot be written, or holds something else.
        CheckpointError: Something in the folder is corrupt.
    """
    _check(pairs=pairs, pair_nfe=pair_nfe, rounds=rounds)
    _check_sampler(sampler)
    Reflow(model.flow)  # refuses another flow before work is done
    if not isinstance(model.predictor, PointPredictor):
        raise ArgumentError(f"reflow trains predictors of points, not {type(model.predictor).__name__}")
    processes, device = Processes.current(), torch.device(device)
    model.predictor.to(device).eval()
    wanted = {"pairs": pairs, "pair_steps": pair_nfe, "sampler": sampler, "weights": digest(model.predictor)}
    run = RunFolder(out, "reflow")
    run.claim({**decisive(model, training), **wanted}, upgrade)

    # Times that suit the model are none of the straightened one's.
    current = replace(model, flow=replace(cast(Any, model.flow), coupling=Reflowed()), times={})
    bends: list[float] = []
    for number in range(1, rounds + 1):
        folder = out / f"round-{number}"
        made = RunFolder(folder)
        if made.has_model:
            current = models.load(folder, device)
            bends = list(current.provenance.get("reflow", {}).get("straightness", []))
        else:
            if not bends:
                bends = [_straightness(current)]
            say(f"reflow: round {number} of {rounds}, {pairs} pairs of {pair_nfe} evaluations, {training.steps} steps")
            data = make_pairs(
                current.predictor, current.flow, pairs, current.shape, folder / "pairs",
                nfe=pair_nfe, sampler=sampler, seed=_seed(training.seed, number), batch_size=training.batch_size,
            )  # fmt: skip
            predictor = copy.deepcopy(current.predictor).requires_grad_(True)
            label = f"reflow {number}/{rounds}"
            result = fit(predictor, Reflow(current.flow), data, training, folder=folder, device=device, label=label)
            current = replace(current, predictor=cast(Predictor, result.predictor))
            bends = [*bends, _straightness(current)]
            record = {
                **(provenance or {}),
                "data": f"{pairs} pairs a round, drawn from {source or 'a model'} and what became of it",
                "training": to_dict(training),
                "steps": training.steps,
                "seconds": round(result.seconds, 1),
                "losses": result.losses,
                "reflow": {
                    **wanted,
                    "source": source,
                    "rounds": number,
                    "network_passes": {
                        "pairs": number * pairs * pair_nfe,
                        "training": round(number * training.steps * training.batch_size * Reflow.passes),
                    },
                    "straightness": bends,
                },
                "origin": model.provenance,
            }
            current = replace(current, provenance=record)
            made.save(current, result.predictor, record)
            say(f"straightness {bends[-2]:.4g} -> {bends[-1]:.4g} (0 is straight): {folder}")
        with processes.together():
            if processes.first:  # only now: what a round was made of is needed until its model is there
                remove_all(folder)
                shutil.rmtree(folder / "pairs", ignore_errors=True)
    run.save(current, current.predictor, current.provenance)
    return current


def make_pairs(
    predictor: nn.Module,
    flow: Flow[Any],
    number: int,
    event: tuple[int, ...],
    folder: Path,
    *,
    nfe: int = 10,
    sampler: PairSamplerName = "multistep2",
    seed: int = 0,
    batch_size: int = 128,
) -> Tensor:
    """Pairs of prior draws and the samples that a model's deterministic flow makes of them.

    Samples are written as they are made, in files of 1024 with a tensor ``samples``; those that the folder holds are not
    made again. Prior draws are not written: draw i is a function of seed and i. Several processes share work and folder.

    Args:
        predictor: The trained predictor; its device is used.
        flow: Its flow.
        number: Number of pairs, ≥ 1.
        event: Shape of an event.
        folder: Where the samples are kept.
        nfe: Network evaluations a sample, ≥ 1.
        sampler: A sampler without noise.
        seed: Seed of the prior draws. Models are not to be judged on draws that they were trained on: take another seed.
        batch_size: Samples drawn at a time. On a CPU it changes no bit of them.

    Returns:
        Pairs (number, 2, *event) on the host: means of prior draws, and samples.

    Raises:
        ArgumentError: A number out of range, a sampler that adds noise, or a flow that reflow cannot train.
        OutputError: The folder cannot be written, or holds pairs of other settings or another model.
        CheckpointError: A file in it is corrupt.
    """
    _check(pairs=number, pair_nfe=nfe)
    _check_sampler(sampler)
    Reflow(flow)
    processes = Processes.current()
    settings = {"number": number, "event": list(event), "steps": nfe, "sampler": sampler, "seed": seed}
    RunFolder(folder, "pairs").claim({**settings, "weights": digest(predictor)})
    starts = range(0, number, SHARD)
    paths = [folder / f"samples-{k:05d}.safetensors" for k in range(len(starts))]
    sizes = [min(SHARD, number - start) for start in starts]
    mine = processes.part(len(starts))
    with processes.together(), bar("pairs", sum(sizes[k] for k in mine), "images") as show:
        done = 0
        for k in mine:
            if not paths[k].exists():
                shape = (sizes[k], *event)
                drawn = sample(
                    predictor,
                    flow,
                    shape,
                    nfe=nfe,
                    sampler=sampler,
                    seed=seed,
                    batch_size=batch_size,
                    first=starts[k],
                )
                write_tensors(paths[k], {"samples": drawn})
            done += sizes[k]
            show(done)
    parameter = next(predictor.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32  # as in sample
    found = torch.empty(number, 2, *event, dtype=dtype)
    for path, start, size in zip(paths, starts, sizes, strict=True):
        samples = read_tensors(path).get("samples")
        if samples is None or samples.shape != (size, *event) or samples.dtype != dtype:
            raise CheckpointError(f"{path} does not hold {size} samples of {tuple(event)}: remove it to make them anew")
        indices = torch.arange(start, start + size, device=parameter.device)
        prior = flow.prior((size, *event), SampleStreams(seed, indices), dtype, parameter.device)
        found[start : start + size, 0] = prior.mean
        found[start : start + size, 1] = samples
    return found


def straightness(
    predictor: nn.Module, flow: Flow[Any], shape: tuple[int, ...], *, nfe: int = 20, seed: int = 0
) -> float:
    """How much a flow's paths bend, S = ∫ E |dy/dτ − (y₁ − y₀)|² dτ, a mean over coordinates (2209.03003).

    Means y of beliefs move from the prior draw y₀ to the sample y₁ with dy/dτ = (x̂ − y)/(1 − τ). The integral is the sum
    over the steps of the deterministic sampler. 0 is straight: then one evaluation gives what any number gives.

    Args:
        predictor: The trained predictor.
        flow: Its flow, as :class:`proxflow.Reflow` takes it.
        shape: (number of samples, *event); the number is rounded up to a multiple of 16.
        nfe: Network evaluations a sample, ≥ 2.
        seed: Seed of the prior draws.

    Raises:
        ArgumentError: A number out of range, or another flow.
    """
    path = Reflow(flow).flow.path
    if nfe < 2:
        raise ArgumentError(f"a path of fewer than 2 steps cannot bend, got {nfe}")
    a, b = path.coefficients(torch.tensor(flow.times(nfe), dtype=torch.float64))  # type: ignore[union-attr]
    left = [*b.div(a + b).tolist(), 0.0]
    way: list[tuple[Tensor, Tensor]] = []
    total, seen = 0.0, 0

    def watch(t: float, belief: Any, target: Any) -> None:
        nonlocal total, seen
        way.append((belief.mean, target.mean))
        if len(way) < nfe:
            return
        whole = (target.mean - way[0][0]).double()
        for k, (mean, predicted) in enumerate(way):
            speed = (predicted.double() - mean.double()) / left[k]
            total += (left[k] - left[k + 1]) * float((speed - whole).square().sum())
        seen += whole.numel()
        way.clear()

    sample(predictor, flow, shape, nfe=nfe, sampler="deterministic", seed=seed, watch=watch)
    return total / seen


def _straightness(model: Model) -> float:
    """Of a model, on few samples: each round tells it."""
    return straightness(model.predictor, model.flow, (128, *model.shape), nfe=10)


def _seed(seed: int, number: int) -> int:
    """Seed of a round's prior draws, far from the small numbers that samples are asked for with."""
    return int.from_bytes(hashlib.sha256(f"reflow {seed} {number}".encode()).digest()[:8], "big")


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, got {value}")


def _check_sampler(sampler: str) -> None:
    if sampler not in get_args(PairSamplerName):
        raise ArgumentError(f"pairs need a sampler without noise, one of {get_args(PairSamplerName)}, got {sampler!r}")
