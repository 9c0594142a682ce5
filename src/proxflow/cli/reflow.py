"""``proxflow reflow``: straighten a model's paths."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from proxflow.cli._common import ModelSource, TrainingOptions, less_memory_to_train, origin, say, say_how_to_sample
from proxflow.config import DeviceName, PairSamplerName

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Reflow:
    """Straighten a model's paths, for fewer evaluations: train it on its own pairs of noise and image.

    Each round draws pairs from the model with a deterministic sampler, and trains the model on straight lines between
    them, starting from its weights (rectified flow, Liu et al., 2022). The new model's folder is used like any other;
    the model of each round is in the folders round-1 and so on. An interrupted run resumes when the same command is
    given again, and more --rounds are added to those done.

    For example:
        proxflow reflow runs/mine --out runs/straight --steps 2000 --learning-rate 5e-4
        proxflow reflow runs/mine --out runs/straight --rounds 2 --pairs 50000 --pair-steps 20

    Args:
        model: Name of a model that comes with the package, or a model folder; its flow is a gpfn flow with Gaussian
            paths, as gpfn-w2 or gpfn-kl.
        out: Folder for the straightened model, and for pairs and checkpoints.
        rounds: Number of rounds. The first does most; errors of the sampler and of training add up with each.
        pairs: Pairs of noise and image to train a round on.
        pair_steps: Network evaluations per image of a pair (NFE).
        pair_sampler: Sampler of the pairs; "proxflow list samplers" describes them.
        training: Training settings of each round.
        device: Where to compute; auto takes CUDA if there is one.
    """

    model: ModelSource
    out: Path
    rounds: int = 1
    pairs: int = 20_000
    pair_steps: int = 10
    pair_sampler: PairSamplerName = "multistep2"
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = field(default_factory=TrainingOptions)
    device: DeviceName = "auto"

    @property
    def with_less_memory(self) -> str:
        """Say how to train with less memory."""
        return less_memory_to_train(self.training.batch_size)


def run(options: Reflow, device: torch.device) -> None:
    """Straighten a model's paths, or resume it."""
    training = options.training.checked()
    from proxflow import models
    from proxflow.training.reflow import reflow

    straightened = reflow(
        models.load(options.model, device),
        training,
        options.out,
        rounds=options.rounds,
        pairs=options.pairs,
        pair_nfe=options.pair_steps,
        sampler=options.pair_sampler,
        source=options.model,
        device=device,
        provenance=origin(device),
        say=say,
    )
    passes = straightened.provenance["reflow"]["network_passes"]
    say(f"straightened in {options.rounds} rounds, {sum(passes.values()):,} network passes: {options.out}")
    say_how_to_sample(options.out)
