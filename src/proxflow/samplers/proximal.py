"""Samplers that move the belief by the flow's own update; they work for every flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from proxflow.flows import Flow
from proxflow.random import Generator
from proxflow.samplers.base import Sampler


class ProximalSampler(Sampler):
    """A sampler that moves the belief by the flow's own update."""

    noisy: ClassVar[bool]
    """Whether the message is a noisy draw around the predicted target."""

    def init(self, flow: Flow[Any], belief: Any, generator: Generator) -> tuple[Any, None]:
        return belief, None

    def step(
        self, flow: Flow[Any], belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator, state: None
    ) -> tuple[Any, None]:
        return flow.update(belief, target, t, s, generator if self.noisy else None), state


@dataclass(frozen=True)
class Deterministic(ProximalSampler):
    """The proximal step with the predicted target itself as message.

    Known elsewhere, for Wasserstein-2 with the linear schedule, as Euler's method for the ODE of rectified flow; for
    :class:`~proxflow.Diffusion` as DDIM. For BFN it is the noise-free sampler.
    """

    noisy = False
    keeps_to_target = True


@dataclass(frozen=True)
class Stochastic(ProximalSampler):
    """The proximal step with a noisy draw around the predicted target as message.

    Known elsewhere as the sampler of "Bayesian Flow Networks" (Graves et al., 2023), arXiv 2308.07037; for
    :class:`~proxflow.Diffusion` as ancestral sampling (DDPM).
    """

    noisy = True
