"""The samplers by name, and drawing with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.random import SampleStreams
from proxflow.samplers.base import Sampler, SamplingFlow, Watch
from proxflow.samplers.bfn_solver import BFNSolver
from proxflow.samplers.midpoint import Midpoint
from proxflow.samplers.multistep import Multistep
from proxflow.samplers.path import Marginal, Multistep2
from proxflow.samplers.proximal import Deterministic, Stochastic

SAMPLERS: dict[str, Sampler] = {
    "deterministic": Deterministic(),
    "stochastic": Stochastic(),
    "marginal": Marginal(),
    "multistep2": Multistep2(),
    "multistep3": Multistep(3),
    "unipc": Multistep(2, corrected=True),
    "midpoint": Midpoint(),
    "bfn-solver1": BFNSolver(1),
    "bfn-solver2": BFNSolver(2),
    "sde-bfn-solver1": BFNSolver(1, 1.0),
    "sde-bfn-solver2": BFNSolver(2, 1.0),
}
"""Samplers by the name that the command line and results files use. A sampler that joins here joins all contract tests.

``config.SamplerName`` repeats the names for those who must not load torch; a test holds both together.
"""


def default_sampler(model: nn.Module) -> str:
    """The sampler of choice at few evaluations: multistep2, for predictors that read ends of steps or draw deterministic.

    Draws need stochastic where the flow begins with a fixed belief: its later beliefs are noisy, so its steps must be.
    """
    if getattr(model, "reads_noise", False):
        return "stochastic" if getattr(model, "begins_fixed", False) else "deterministic"
    return "deterministic" if getattr(model, "reads_end", False) else "multistep2"


def sample(
    model: nn.Module,
    flow: SamplingFlow,
    shape: Sequence[int],
    *,
    nfe: int = 20,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    batch_size: int = 128,
    first: int = 0,
    times: Sequence[float] | None = None,
    watch: Watch | None = None,
    progress: Callable[[int], None] | None = None,
    graph: bool = False,
) -> Tensor:
    """Draw samples from a trained predictor; each depends on the seed and its index alone.

    Args:
        model: A predictor; its device and precision are used, and it is put into evaluation mode meanwhile.
        flow: The flow it was trained for.
        shape: (number of samples, *event).
        nfe: Network evaluations spent on each sample (NFE), ≥ 1.
        sampler: A sampler or its name in :data:`SAMPLERS`; ``None`` takes :func:`default_sampler`.
        seed: Seed of the samples.
        batch_size: Samples drawn at a time, rounded up to a multiple of 16. A last, smaller batch is filled up with
            samples that are thrown away: kernels take other paths, with other rounding, for odd batch sizes.
        first: Index of the first sample.
        times: Times of the evaluations, increasing from 0, as :func:`proxflow.optimise_times` finds them; ``None`` takes the
            sampler's own.
        watch: Called at each evaluation of each batch.
        progress: Called with the number of samples finished, after each batch.
        graph: Record all that a batch does as one CUDA graph and replay it for each: the kernels of a small network take
            less time than it takes to launch them one by one. It pays for many batches, and takes the memory of one more.

    Returns:
        The samples (number, *event) on the model's device.

    Raises:
        ArgumentError: An unknown sampler, a number out of range, or times that do not increase from 0; a graph without a
            CUDA device, with ``watch``, or of work that waits for the device.
    """
    sampler = default_sampler(model) if sampler is None else sampler
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ArgumentError(f"unknown sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[sampler]
    if not shape or min(shape) < 1 or batch_size < 1:
        raise ArgumentError(f"shape and batch size must be at least 1, got {tuple(shape)} and {batch_size}")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    number, event = shape[0], tuple(shape[1:])
    if graph and (parameter.device.type != "cuda" or watch is not None):
        raise ArgumentError(
            f"graph records a batch's work on a CUDA device, where no watch can look in: the model is on {parameter.device}"
            + (", and watch is given" if watch is not None else "")
        )

    def whole(size: int) -> int:
        return -(-size // 16) * 16

    def drawn(indices: Tensor) -> Tensor:
        streams, size = SampleStreams(seed, indices, expected=nfe), len(indices)
        return sampler(
            model,
            flow,
            (size, *event),
            nfe,
            streams,
            dtype=dtype,
            device=parameter.device,
            times=times,
            watch=watch,
        ).events

    was_training = model.training
    model.eval()
    finished = []
    try:
        replayed = Replayed(drawn, whole(batch_size), parameter.device) if graph and number >= batch_size else None
        for start in range(0, number, whole(batch_size)):
            wanted = min(whole(batch_size), number - start)
            size = whole(wanted)
            indices = torch.arange(first + start, first + start + size, device=parameter.device)
            draw = replayed if replayed is not None and size == whole(batch_size) else drawn
            finished.append(draw(indices)[:wanted])
            if progress is not None:
                progress(start + wanted)
    finally:
        model.train(was_training)
    return torch.cat(finished)


class Replayed:
    """A function of the indices of a batch, recorded once as a CUDA graph; they alone differ from one batch to the next.

    Raises:
        ArgumentError: It does what cannot be recorded.
    """

    def __init__(self, drawn: Callable[[Tensor], Tensor], size: int, device: torch.device) -> None:
        self.indices, self.graph = torch.arange(size, device=device), torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                drawn(self.indices)  # libraries choose their kernels, and set up what is not to be recorded
            torch.cuda.current_stream().wait_stream(aside)
            try:
                with torch.cuda.graph(self.graph):
                    self.events = drawn(self.indices)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ArgumentError(
                    f"a batch's work cannot be recorded, perhaps because it waits for the device; leave out graph: {error}"
                ) from error

    def __call__(self, indices: Tensor) -> Tensor:
        self.indices.copy_(indices)
        self.graph.replay()
        return self.events.clone()
