"""Reflow: resumable rounds of drawing pairs and training on them, which straighten a model's paths.

The model's own pairs of prior draw and sample keep both distributions, and the straight lines between them cross less.
So the flow learnt from them has no higher transport cost, for any convex cost, and its paths are straighter with each
round: "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow" (Liu et al., 2022), arXiv
2209.03003.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from proxflow import models
from proxflow.config import PairSamplerName, TrainingConfig, to_dict
from proxflow.couplings import Reflowed
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.examples import Condition, Examples, check_condition, check_rows, reads, rows
from proxflow.flows import GPFN, Flow
from proxflow.models import Model
from proxflow.paths import GaussianPath
from proxflow.predictors import PointPredictor, Predictor
from proxflow.random import SampleStreams
from proxflow.runtime.checkpoints import digest, read_tensors, remove_all, write_tensors
from proxflow.runtime.processes import Processes
from proxflow.runtime.progress import bar
from proxflow.samplers import sample
from proxflow.training.conditions import with_dropout
from proxflow.training.fit import fit
from proxflow.training.run import RunFolder, decisive, upgrade

SHARD = 1024
"""Samples in a file of pairs; at most so many are lost if drawing is stopped."""


def reflow(
    model: Model,
    training: TrainingConfig,
    out: Path,
    *,
    rounds: int = 1,
    pairs: int = 20_000,
    pair_nfe: int = 10,
    sampler: PairSamplerName = "multistep2",
    condition: Condition | None = None,
    source: str = "",
    device: torch.device | str = "cpu",
    provenance: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Model:
    """Straighten a model's paths: in each round, draw pairs from it and train it on them.

    After a stop at any moment the same call resumes and reaches the same weights. A call with more rounds adds them.

    Args:
        model: The model to start from; its flow is a GPFN on a Gaussian path.
        training: Training settings of each round, which starts from the weights of the last.
        out: Folder for the model after the last round, which loads like any other, with a folder for each round,
            ``round-1`` and so on.
        rounds: Number of rounds, ≥ 1.
        pairs: Pairs of a round, ≥ 1: prior draw and sample, float32, all of them in memory while training.
        pair_nfe: Network evaluations per sample, ≥ 1.
        sampler: A deterministic sampler.
        condition: Condition of the pairs, one row per pair; ``None`` takes every class equally often, for a model that
            only reads classes. It is withheld from a fraction of the pairs in training, see :class:`ConditionDropout`.
        source: Name of the model, for the provenance.
        device: Device to sample and train on.
        provenance: Further entries of the provenance.
        say: Called with a line at each stage.

    Returns:
        The straightened model. Its provenance, under ``reflow``, has the settings; the cost in network passes of one
        example, 1 for an evaluation and 3 for a training example; and the :func:`straightness` before and after each round,
        whose measurement is not part of the cost.

    Raises:
        ArgumentError: A number out of range, a stochastic sampler, or a model that reflow cannot train; a condition is
            missing, or of the wrong form.
        OutputError: The folder cannot be written, or holds something else.
        CheckpointError: Something in the folder is corrupt.
    """
    _check(model.flow, sampler, pairs=pairs, pair_nfe=pair_nfe, rounds=rounds)
    if not isinstance(model.predictor, PointPredictor):
        raise ArgumentError(f"reflow trains predictors of points, not {type(model.predictor).__name__}")
    condition = _every_class(model, pairs) if condition is None else condition
    check_condition(model.predictor, condition, pairs)
    objective = with_dropout(replace(cast(GPFN, model.flow), coupling=Reflowed()), model.predictor)
    processes, device = Processes.current(), torch.device(device)
    model.predictor.to(device).eval()
    wanted = {"pairs": pairs, "pair_steps": pair_nfe, "sampler": sampler, "weights": digest(model.predictor)}
    run = RunFolder(out, "reflow")
    run.claim({**decisive(model, training), **wanted, **_told(condition)}, upgrade)

    # Optimised times of the model do not suit the straightened one.
    current = replace(model, flow=replace(cast(GPFN, model.flow), coupling=Reflowed()), times={})
    bends: list[float] = []
    for number in range(1, rounds + 1):
        folder = out / f"round-{number}"
        made = RunFolder(folder)
        if made.has_model:
            current = models.load(folder, device)
            bends = list(current.provenance.get("reflow", {}).get("straightness", []))
        else:
            if not bends:
                bends = [_straightness(current, condition)]
            say(f"reflow: round {number} of {rounds}, {pairs} pairs of {pair_nfe} evaluations, {training.steps} steps")
            data = make_pairs(
                current.predictor, current.flow, pairs, current.shape, folder / "pairs",
                nfe=pair_nfe, sampler=sampler, seed=_seed(training.seed, number), batch_size=training.batch_size,
                condition=condition,
            )  # fmt: skip
            predictor = copy.deepcopy(current.predictor).requires_grad_(True)
            label = f"reflow {number}/{rounds}"
            result = fit(predictor, objective, data, training, folder=folder, device=device, label=label)
            current = replace(current, predictor=cast(Predictor, result.predictor))
            bends = [*bends, _straightness(current, condition)]
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
                        "training": round(number * training.steps * training.batch_size * current.flow.passes),
                    },
                    "straightness": bends,
                },
                "origin": model.provenance,
            }
            current = replace(current, provenance=record)
            made.save(current, result.predictor, record)
            say(f"straightness {bends[-2]:.4g} -> {bends[-1]:.4g} (0 is straight): {folder}")
        with processes.together():
            if processes.first:  # not earlier: until the round's model is saved, a resumed call needs them
                remove_all(folder)
                shutil.rmtree(folder / "pairs", ignore_errors=True)
    run.save(current, current.predictor, current.provenance)
    return current


def check_flow(flow: Flow[Any]) -> GaussianPath:
    """Return the Gaussian path of a flow that can be straightened, and refuse others.

    Raises:
        ArgumentError: It is not a GPFN with a Gaussian path.
    """
    if not isinstance(flow, GPFN) or flow.path is None:
        raise ArgumentError(
            f"reflow needs a GPFN with a Gaussian path, that of Wasserstein-2 or KL to real data, got {flow}"
        )
    return flow.path


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
    condition: Condition | None = None,
) -> Examples:
    """Return pairs of prior draws and the samples that a model's deterministic flow maps them to.

    Samples are saved as they are drawn, in files of 1024 with a tensor ``samples``, and existing files are reused.
    Prior draws are not saved: draw i is a function of seed and i. Several processes share work and folder.

    Args:
        predictor: The trained predictor; its device is used.
        flow: Its flow.
        number: Number of pairs, ≥ 1.
        event: Shape of an event.
        folder: Folder of the samples.
        nfe: Network evaluations per sample, ≥ 1.
        sampler: A deterministic sampler.
        seed: Seed of the prior draws. Evaluate a model with another seed than it was trained with.
        batch_size: Samples drawn at a time. On a CPU it does not change them.
        condition: Condition of the samples, one row per pair.

    Returns:
        The samples, (number, *event) on the host, each with the prior draw that it starts from.

    Raises:
        ArgumentError: A number out of range, a stochastic sampler, or a flow that reflow cannot train.
        OutputError: The folder cannot be written, or holds pairs of other settings or another model.
        CheckpointError: A file in it is corrupt.
    """
    _check(flow, sampler, pairs=number, pair_nfe=nfe)
    check_rows(condition, number, "condition")
    processes = Processes.current()
    settings = {"number": number, "event": list(event), "steps": nfe, "sampler": sampler, "seed": seed}
    RunFolder(folder, "pairs").claim({**settings, "weights": digest(predictor), **_told(condition)})
    parts = [range(start, min(start + SHARD, number)) for start in range(0, number, SHARD)]
    paths = [folder / f"samples-{k:05d}.safetensors" for k in range(len(parts))]
    mine = processes.part(len(parts))
    draw = partial(sample, predictor, flow, nfe=nfe, sampler=sampler, seed=seed, batch_size=batch_size)
    with processes.together(), bar("pairs", sum(len(parts[k]) for k in mine), "images") as show:
        done = 0
        for part, path in ((parts[k], paths[k]) for k in mine):
            if not path.exists():
                own = rows(condition, slice(part.start, part.stop))
                write_tensors(path, {"samples": draw((len(part), *event), first=part.start, condition=own)})
            done += len(part)
            show(done)
    parameter = next(predictor.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32  # as in sample
    noise, ends = (torch.empty(number, *event, dtype=dtype) for _ in range(2))
    for path, part in zip(paths, parts, strict=True):
        samples, shape = read_tensors(path).get("samples"), (len(part), *event)
        if samples is None or samples.shape != shape or samples.dtype != dtype:
            raise CheckpointError(f"{path} does not hold {len(part)} samples of {event}: remove it to make them anew")
        streams = SampleStreams(seed, torch.arange(part.start, part.stop, device=parameter.device))
        noise[part.start : part.stop] = flow.prior(shape, streams, dtype, parameter.device).mean
        ends[part.start : part.stop] = samples
    return Examples(ends, condition, noise)


def straightness(
    predictor: nn.Module,
    flow: Flow[Any],
    shape: tuple[int, ...],
    *,
    nfe: int = 20,
    seed: int = 0,
    condition: Condition | None = None,
) -> float:
    """Return the straightness S = ∫ E |dy/dτ − (y₁ − y₀)|² dτ of paths, a mean over coordinates (Liu et al., 2022).

    Means y of beliefs move from the prior draw y₀ to the sample y₁ with dy/dτ = (x̂ − y)/(1 − τ). The integral is a sum
    over the steps of the deterministic sampler. At 0 paths are straight, and one evaluation gives the same as many.

    Args:
        predictor: The trained predictor.
        flow: Its flow, a GPFN on a Gaussian path.
        shape: (number of samples, *event); the number is rounded up to a multiple of 16.
        nfe: Network evaluations per sample, ≥ 2.
        seed: Seed of the prior draws.
        condition: Condition of the samples, one row per sample.

    Raises:
        ArgumentError: A number out of range, or another flow.
    """
    path = check_flow(flow)
    if nfe < 2:
        raise ArgumentError(f"a path of fewer than 2 steps cannot bend, got {nfe}")
    left = [*path.straight(torch.tensor(flow.times(nfe), dtype=torch.float64))[1].tolist(), 0.0]
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

    sample(predictor, flow, shape, nfe=nfe, sampler="deterministic", seed=seed, watch=watch, condition=condition)
    return total / seen


def _straightness(model: Model, condition: Condition | None) -> float:
    """Return the straightness of a model on few samples, for the report of each round."""
    number = 128
    if condition is not None:  # those of the first pairs, repeated
        pairs = len(next(iter(condition.values()))) if isinstance(condition, Mapping) else len(condition)
        condition = rows(condition, torch.arange(number) % pairs)
    return straightness(model.predictor, model.flow, (number, *model.shape), nfe=10, condition=condition)


def _every_class(model: Model, pairs: int) -> Tensor | None:
    """Return labels of pairs, int64 (pairs,), every class of a model equally often; ``None`` without conditions.

    Raises:
        ArgumentError: The model reads other conditions than classes, or unknown ones.
    """
    if "condition" not in reads(model.predictor):
        return None
    if getattr(getattr(model.predictor.network, "conditions", None), "names", ()) != ("label",):
        raise ArgumentError("the model is conditional, and on more than classes: give condition=, one row a pair")
    return torch.arange(pairs) % len(model.classes)


def _told(condition: Condition | None) -> dict[str, str]:
    """Return the record of a condition in a folder: its checksum."""
    if condition is None:
        return {}
    parts = condition if isinstance(condition, Mapping) else {"": condition}
    content = hashlib.sha256()
    for name, part in sorted(parts.items()):
        content.update(f"{name} {part.dtype} {tuple(part.shape)};".encode() + part.cpu().contiguous().numpy().tobytes())
    return {"condition": f"sha256 {content.hexdigest()}"}


def _seed(seed: int, number: int) -> int:
    """Return the seed of a round's prior draws, far from the small seeds that users choose."""
    return int.from_bytes(hashlib.sha256(f"reflow {seed} {number}".encode()).digest()[:8], "big")


def _check(flow: Flow[Any], sampler: str, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, got {value}")
    check_flow(flow)
    if sampler not in get_args(PairSamplerName):
        raise ArgumentError(f"pairs need a sampler without noise, one of {get_args(PairSamplerName)}, got {sampler!r}")
