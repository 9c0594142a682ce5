"""The systems compared: this library and its peers, each with its own loss and samplers.

A system is given a network (x, t) → tensor, t in [0, 1] from noise to data. It wraps it as its documentation shows, and
converts its own times to that range, as the network expects them. Peers are imported when a system is made, so that
each may be in its own environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tasks import Task
from proxflow import BFN, GPFN, MinibatchOT, PointPredictor
from proxflow._math import mean_events
from proxflow.errors import ArgumentError
from proxflow.random import Generator
from proxflow.samplers import SAMPLERS

Draw = Callable[[nn.Module, tuple[int, ...], int, torch.Generator], Tensor]
"""(model, shape, most evaluations, generator) → samples."""


class System(ABC):
    """A way to train and to sample.

    ``objective`` names the trained weights: systems with the same objective minimise the same function of the network
    (a test compares their losses), so it is trained once for all of them. A system with a ``twin`` also draws with the
    same solver of the same library (a test compares their samples), so it takes the twin's scores.
    """

    name: str
    objective: str
    twin: str | None = None
    package = ""
    """The module that it needs; empty for this library."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def model(self, network: nn.Module) -> nn.Module:
        """Return the module to train, around the network."""
        return network

    loss: Callable[[Any, Tensor, Generator, Tensor], Tensor]
    """(model, x, generator, t) → training loss of each example, (batch,), as for :func:`proxflow.fit`.

    This library takes its noise and its times from the trainer; peers draw theirs from torch's global generator, which the
    trainer seeds for each step, as their documentation does.
    """

    @abstractmethod
    def samplers(self) -> dict[str, Draw]: ...


# This library -------------------------------------------------------------------------------------------------------


class _Ours(System):
    def __init__(self, task: Task, flow: Any) -> None:
        super().__init__(task)
        self.flow, self.loss = flow, flow.loss  # no call in between, as when fit gets the flow itself

    def model(self, network: nn.Module) -> nn.Module:
        return PointPredictor(network, self.flow, clip=self.task.clip, parameterisation="x")

    def samplers(self) -> dict[str, Draw]:
        def draw_with(sampler: Any) -> Draw:
            def draw(model: nn.Module, shape: tuple[int, ...], nfe: int, generator: torch.Generator) -> Tensor:
                events: Tensor = sampler(model, self.flow, shape, nfe, generator).events
                return events

            return draw

        found = {}
        for name, sampler in SAMPLERS.items():
            try:  # samplers refuse unsuitable flows before any work
                sampler(lambda belief, t: belief, self.flow, (1, *self.task.shape), 2, torch.Generator())
            except ArgumentError:
                continue
            found[name] = draw_with(sampler)
        return found


class Proxflow(_Ours):
    """GPFN with Wasserstein-2, with default settings."""

    name = objective = "proxflow gpfn-w2"

    def __init__(self, task: Task) -> None:
        super().__init__(task, GPFN())


class ProxflowOT(_Ours):
    """The same with the optimal-transport plan of each batch as coupling."""

    name = objective = "proxflow gpfn-w2-ot"
    package = "ot"

    def __init__(self, task: Task) -> None:
        super().__init__(task, GPFN(coupling=MinibatchOT()))


class ProxflowBFN(_Ours):
    """Bayesian Flow Network with the best σ₁ for the data, and the best of its samplers."""

    name = objective = "proxflow bfn-tuned"

    def __init__(self, task: Task) -> None:
        super().__init__(task, BFN(task.sigma1))


# Peers --------------------------------------------------------------------------------------------------------------


def _fixed(start: Callable[[nn.Module, Tensor, int], Tensor], cost: int = 1, less: int = 0) -> Draw:
    """Return a sampler with as many steps as fit, each of ``cost`` evaluations, ``less`` fewer in total."""

    def draw(model: nn.Module, shape: tuple[int, ...], nfe: int, generator: torch.Generator) -> Tensor:
        steps = (nfe + less) // cost
        if steps < 1:
            raise ArgumentError(f"{nfe} evaluations are too few for a step of {cost}")
        return start(model, torch.randn(shape, generator=generator), steps)

    return draw


class FlowMatching(System):
    """facebookresearch/flow_matching: straight path, velocity loss, ODESolver with one interval per step."""

    name, objective = "flow_matching", "velocity"
    package = "flow_matching"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from flow_matching.path import CondOTProbPath
        from flow_matching.solver import ODESolver

        self.path, self.solver = CondOTProbPath(), ODESolver

    def loss(self, model: nn.Module, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.rand(len(x))
        sample = self.path.sample(t=t, x_0=noise, x_1=x)
        return mean_events((model(sample.x_t, sample.t) - sample.dx_t).square())

    def samplers(self) -> dict[str, Draw]:
        def by(method: str) -> Callable[[nn.Module, Tensor, int], Tensor]:
            def start(model: nn.Module, x: Tensor, steps: int) -> Tensor:
                solver = self.solver(lambda x, t: model(x, t.expand(len(x))))
                samples: Tensor = solver.sample(x, None, method, time_grid=torch.linspace(0, 1, steps + 1))
                return samples

            return start

        costs = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
        return {method: _fixed(by(method), cost) for method, cost in costs.items()}


class TorchCFM(System):
    """atong01/conditional-flow-matching: independent coupling, velocity loss, torchdiffeq as in its examples."""

    name, objective, twin, coupling = "torchcfm", "velocity", "flow_matching", "ConditionalFlowMatcher"
    package = "torchcfm"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import torchcfm

        self.matcher = getattr(torchcfm, self.coupling)(sigma=0.0)

    def loss(self, model: nn.Module, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.rand(len(x))
        t, middle, velocity = self.matcher.sample_location_and_conditional_flow(noise, x, t)
        return mean_events((model(middle, t) - velocity).square())

    def samplers(self) -> dict[str, Draw]:
        from torchdiffeq import odeint

        def by(method: str) -> Callable[[nn.Module, Tensor, int], Tensor]:
            def start(model: nn.Module, x: Tensor, steps: int) -> Tensor:
                grid = torch.linspace(0, 1, steps + 1)
                path: Tensor = odeint(lambda t, x: model(x, t.expand(len(x))), x, grid, method=method)
                return path[-1]

            return start

        return {"euler": _fixed(by("euler")), "midpoint": _fixed(by("midpoint"), 2)}


class TorchCFMOT(TorchCFM):
    """The same with the exact optimal-transport plan of each batch as coupling."""

    name, objective, twin = "torchcfm-ot", "velocity-ot", None
    coupling = "ExactOptimalTransportConditionalFlowMatcher"

    def loss(self, model: nn.Module, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        import numpy as np

        # The plan's pairs are drawn by numpy's global generator, which training must seed.
        np.random.seed(torch.initial_seed() % 2**32)  # noqa: NPY002
        return super().loss(model, x, generator, t)


class RectifiedFlowPytorch(System):
    """lucidrains/rectified-flow-pytorch: predicted flow, its loss, its midpoint method and Euler's."""

    name, objective, twin, package = "rectified-flow-pytorch", "velocity", "flow_matching", "rectified_flow_pytorch"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from rectified_flow_pytorch import RectifiedFlow  # type: ignore[import-not-found,unused-ignore]

        # Data are in [-1, 1] already; its networks get the time as a keyword argument, which ours calls t.
        self.around = lambda model, **settings: RectifiedFlow(
            model, time_cond_kwarg="t", data_normalize_fn=None, data_unnormalize_fn=None, **settings
        )

    def loss(self, model: nn.Module, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        loss: Tensor = self.around(model)(x)
        return loss.expand(len(x))  # it is the mean of the batch

    def samplers(self) -> dict[str, Draw]:
        def by(method: str) -> Callable[[nn.Module, Tensor, int], Tensor]:
            def start(model: nn.Module, x: Tensor, steps: int) -> Tensor:
                flow = self.around(model, odeint_kwargs={"method": method})
                samples: Tensor = flow.sample(len(x), steps + 1, x, data_shape=tuple(x.shape[1:]))  # times, both ends
                return samples

            return start

        return {"euler": _fixed(by("euler")), "midpoint": _fixed(by("midpoint"), 2)}


class _ByRatio(nn.Module):
    """The network behind azula's interface, whose time is ln(σ/α): converted to [0, 1] as α/(α + σ)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        output: Tensor = self.network(x, torch.sigmoid(-time).expand(len(x)))
        return output


class Azula(System):
    """probabilists/azula: Karras denoiser on its variance-preserving schedule, its loss, its samplers."""

    name = objective = package = "azula"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from azula import denoise, noise, sample

        self.denoise, self.schedule, self.peers = denoise, noise.VPSchedule(), sample

    def model(self, network: nn.Module) -> nn.Module:
        model: nn.Module = self.denoise.KarrasDenoiser(_ByRatio(network), schedule=self.schedule)
        return model

    def loss(self, model: Any, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        loss: Tensor = model.loss(x, torch.rand(len(x)))
        return loss.expand(len(x))  # it is the mean of the batch

    def samplers(self) -> dict[str, Draw]:
        def by(kind: str, settings: dict[str, Any]) -> Callable[[nn.Module, Tensor, int], Tensor]:
            def start(model: nn.Module, x: Tensor, steps: int) -> Tensor:
                sampler = getattr(self.peers, kind)(model, steps=steps, silent=True, **settings)
                samples: Tensor = sampler(x)  # at t = 1 its α is 0.001, so x is noise as its own ``init`` draws it
                return samples

            return start

        return {
            "ddim": _fixed(by("DDIMSampler", {})),
            "ddpm": _fixed(by("DDPMSampler", {})),
            "heun": _fixed(by("HeunSampler", {}), 2),
            "zab2": _fixed(by("zABSampler", {"order": 2})),
            "vab2": _fixed(by("vABSampler", {"order": 2})),
            "xeab2": _fixed(by("xEABSampler", {"order": 2})),
        }


class _Diffusers(System):
    package = "diffusers"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from diffusers import schedulers

        self.peers = schedulers

    def solve(self, scheduler: Any, model: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """The loop of its pipelines."""
        for timestep in scheduler.timesteps:
            x = scheduler.step(model(x, timestep), timestep, x, return_dict=False)[0]
        return x


class DiffusersFlow(_Diffusers):
    """diffusers' flow-matching schedulers: velocity loss as in its training scripts, and all solvers that support it."""

    name, objective = "diffusers flow", "velocity"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.scheduler = self.peers.FlowMatchEulerDiscreteScheduler()

    def loss(self, model: nn.Module, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.rand(len(x))
        sigmas = self.scheduler.sigmas[(t * self.scheduler.config.num_train_timesteps).long()]
        shaped = sigmas.reshape(-1, *[1] * (x.ndim - 1))
        noisy = (1 - shaped) * x + shaped * noise
        return mean_events((-model(noisy, 1 - sigmas) - (noise - x)).square())

    def samplers(self) -> dict[str, Draw]:
        def velocity(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x, timestep: -model(x, (1 - timestep / 1000).float().expand(len(x)))

        def euler(model: nn.Module, x: Tensor, steps: int) -> Tensor:
            scheduler = self.peers.FlowMatchEulerDiscreteScheduler()
            # As the Flux pipeline does; the scheduler's own grid spends its last step between σ = 0.001 and 0.
            scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
            return self.solve(scheduler, velocity(model), x)

        def heun(model: nn.Module, x: Tensor, steps: int) -> Tensor:
            scheduler = self.peers.FlowMatchHeunDiscreteScheduler()
            scheduler.set_timesteps(steps)
            return self.solve(scheduler, velocity(model), x)

        def multistep(kind: str) -> Callable[[nn.Module, Tensor, int], Tensor]:
            def start(model: nn.Module, x: Tensor, steps: int) -> Tensor:
                scheduler = getattr(self.peers, kind)(
                    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
                )
                scheduler.set_timesteps(steps)
                return self.solve(scheduler, velocity(model), x)

            return start

        return {
            "euler": _fixed(euler),
            "heun": _fixed(heun, 2, less=1),
            "dpm++2m": _fixed(multistep("DPMSolverMultistepScheduler")),
            "unipc": _fixed(multistep("UniPCMultistepScheduler")),
        }


class DiffusersNoise(_Diffusers):
    """diffusers' unconditional training example: predicted noise on the linear schedule of 1,000 levels."""

    name = objective = "diffusers epsilon"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.scheduler = self.peers.DDPMScheduler(num_train_timesteps=1000)

    def loss(self, model: nn.Module, x: Tensor, generator: Generator, t: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.rand(len(x))
        timesteps = (t * 1000).long()
        predicted = model(self.scheduler.add_noise(x, noise, timesteps), 1 - timesteps / 1000)
        return mean_events((predicted - noise).square())

    def samplers(self) -> dict[str, Draw]:
        def by(kind: str, settings: dict[str, Any]) -> Callable[[nn.Module, Tensor, int], Tensor]:
            def start(model: nn.Module, x: Tensor, steps: int) -> Tensor:
                scheduler = getattr(self.peers, kind).from_config(self.scheduler.config, **settings)
                scheduler.set_timesteps(steps)
                return self.solve(scheduler, lambda x, k: model(x, (1 - k / 1000).float().expand(len(x))), x)

            return start

        trailing, clipped = {"timestep_spacing": "trailing"}, self.task.clip is not None
        # The multistep solvers clip predictions; without clipping they fail on noise predicted near t = 0.
        bounds = {"thresholding": clipped, "sample_max_value": 1.0}
        return {
            "ddim": _fixed(by("DDIMScheduler", {**trailing, "clip_sample": clipped})),
            "ddpm": _fixed(by("DDPMScheduler", {**trailing, "clip_sample": clipped})),
            "dpm++2m": _fixed(by("DPMSolverMultistepScheduler", {**trailing, **bounds})),
            "unipc": _fixed(by("UniPCMultistepScheduler", {**trailing, **bounds})),
        }


SYSTEMS: dict[str, type[System]] = {
    kind.name: kind
    for kind in (
        Proxflow,
        ProxflowOT,
        ProxflowBFN,
        FlowMatching,
        TorchCFM,
        TorchCFMOT,
        RectifiedFlowPytorch,
        Azula,
        DiffusersFlow,
        DiffusersNoise,
    )
}
