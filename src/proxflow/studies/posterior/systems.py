"""The systems compared: this library, and azula if installed, on the same problem and denoiser.

Each takes a problem, a method by name, the number of evaluations of each sample and a seed, and returns samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from proxflow.inverse import Diagonalised
from proxflow.predictors import Posterior
from proxflow.predictors.denoiser import Denoiser
from proxflow.samplers import SAMPLERS, particles
from proxflow.studies.posterior.problems import Problem


@dataclass(frozen=True)
class Setting:
    """Settings of a method; those of other methods are ignored.

    Args:
        method: A name in :data:`proxflow.predictors.METHODS`, or a method of azula.
        sampler: Sampler of this library.
        iterations: Iterations of the solver.
        strength: ζ or λ.
        number: Particles per run; 0 for a method without.
        draw: Whether targets are draws.
        least: Noise of the last evaluation, decreasing from 100 times the data's; 0 takes the flow's own times.
        schedule: For azula: its schedule.
        eta: For azula: fraction of noise that is replaced.
    """

    method: str
    sampler: str = ""
    iterations: int | None = None
    strength: float = 1.0
    number: int = 0
    draw: bool | None = None
    least: float = 0.0
    schedule: str = "decay"
    eta: float = 1.0


OURS: dict[str, Setting] = {
    "flower": Setting("flower", "renewed"),
    "flower-draw": Setting("flower-draw", "renewed"),
    "diffpir": Setting("diffpir", "renewed"),
    "jfps": Setting("jfps", "marginal"),
    "jfps-draw": Setting("jfps", "renewed", draw=True),
    "mmps": Setting("mmps", "marginal"),
    "tmpd": Setting("tmpd", "marginal"),
    "pigdm": Setting("pigdm", "marginal"),
    "dps": Setting("dps", "marginal"),
    "particles-256": Setting("mmps", number=256, least=0.05),
    "particles-1024": Setting("mmps", number=1024, least=0.05),
}
"""Methods of this library by the names of the tables, with the defaults of their options.

Except for the times of the particles: decreasing from large noise was best, or as good as the best, on the mixture with
other seeds, at 20 steps, in 8 and 800 dimensions."""

AZULA: dict[str, Setting] = {
    "diffpir": Setting("diffpir", strength=10.0, iterations=1, schedule="vp"),
    "jfps": Setting("jfps"),
    "mmps": Setting("mmps"),
    "tmpd": Setting("tmpd"),
    "pigdm": Setting("pigdm", schedule="vp"),
    "dps": Setting("dps", strength=0.1),
    "tds-256": Setting("tds", number=256, schedule="ve"),
    "tds-1024": Setting("tds", number=1024, schedule="ve"),
}
"""Methods of azula by the names of the tables.

Schedule, eta and the strength of dps are those that were best, or as good as the best, of four schedules, two etas and
three strengths on the mixture with other seeds, at 20 steps, eight dimensions and one or two observations."""


def falling_times(steps: int, least: float) -> list[float]:
    """Return times of a straight path whose noise b/a falls from 100 to the least, linearly in its seventh root.

    "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al., 2022), arXiv 2206.00364, eq. 5.
    """
    ends = 100 ** (1 / 7), least ** (1 / 7)
    noises = [(ends[0] + k / max(1, steps - 1) * (ends[1] - ends[0])) ** 7 for k in range(steps)]
    return [0.0, *(1 / (1 + noise) for noise in noises[1:])]


def has_azula() -> bool:
    """Return whether azula is installed."""
    try:
        import azula.guidance  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        return False
    return True


def ours(problem: Problem, setting: Setting, number: int, steps: int, seed: int) -> Tensor:
    """Draw with this library, (number, *event)."""
    flow, dtype = problem.flow, problem.dtype
    told: dict[str, Any] = {"covariance": problem.covariance} if setting.method == "jfps" else {}
    observation = problem.observation.to(dtype)
    if setting.number:
        runs = math.ceil(number / setting.number)
        observation = observation.expand(runs, *observation.shape[1:])
    iterations = setting.iterations
    if iterations is None and setting.method == "mmps":  # more would be wasted
        iterations = min(observation[0].numel(), 5)
    posterior = Posterior(
        problem.predictor, problem.operator, observation, noise=problem.noise, method=setting.method, flow=flow,
        draw=setting.draw, iterations=iterations, strength=setting.strength, **told,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    times = falling_times(steps, setting.least) if setting.least else None
    if setting.number:
        shape = (runs, *problem.event)
        found = particles(
            posterior, flow, shape, number=setting.number, nfe=steps, seed=seed, batch_size=2048, times=times
        )
        events = found.draw(setting.number, generator).flatten(0, 1)[:number]
    else:
        sampler = SAMPLERS[setting.sampler]
        events = sampler(posterior, flow, (number, *problem.event), steps, generator, dtype=dtype, times=times).events
    return problem.scale * events


def azula(problem: Problem, setting: Setting, number: int, steps: int, seed: int) -> Tensor:
    """Draw with azula, (number, *event), with the same denoiser.

    Its dps divides by the norm of the residual of a whole batch; ``strength`` is multiplied by √number, to be
    equivalent for each sample. Its noise comes from torch's global generator, which is restored afterwards.
    """
    from azula import denoise, guidance, noise, sample
    from azula.linalg.covariance import IsotropicCovariance  # type: ignore[import-untyped,import-not-found,unused-ignore]

    schedule = {
        "decay": noise.DecaySchedule, "vp": noise.VPSchedule, "cosine": noise.CosineSchedule,
        "rectified": noise.RectifiedSchedule, "ve": lambda: noise.VESchedule(1e-3, 1e2),
    }[setting.schedule]()  # fmt: skip
    clean = Denoiser(problem.predictor, problem.flow)  # type: ignore[arg-type]
    event, dtype, operator = problem.event, problem.dtype, problem.operator
    y = problem.observation.to(dtype).flatten(1)
    kind = problem.observation.shape[1:]

    class Exact(denoise.Denoiser):  # type: ignore[misc]
        """The denoiser that both systems share, on flattened events."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = schedule(t)
            mean = clean(_of(x_t / alpha, event), sigma / alpha)
            return denoise.DiracPosterior(mean=mean.flatten(1))

    def forward(x: Tensor) -> Tensor:
        return operator(_of(x, event)).flatten(1)

    def inverse(v: Tensor) -> Tensor:
        return operator.pseudo_inverse(_of(v, kind)).flatten(1)

    denoiser, size, variance = Exact(), math.prod(event), problem.noise**2
    kept: Mapping[str, Any] = {"steps": steps, "silent": True}
    covariance = IsotropicCovariance(torch.tensor(variance, dtype=dtype))
    iterations = setting.iterations or min(y.shape[1], 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if setting.method == "tds":
            twist = _twist(problem, forward, y)
            found = []
            for _ in range(math.ceil(number / setting.number)):
                sampler = guidance.TDSSampler(denoiser, twist, **kept)
                found.append(sampler(sampler.init((setting.number, size), dtype=dtype)))
            return problem.scale * _of(torch.cat(found)[:number], event)
        if setting.method == "dps":
            sampler = guidance.DPSSampler(denoiser, y, forward, zeta=setting.strength * math.sqrt(number), **kept)
        elif setting.method == "pigdm":
            sampler = guidance.PGDMSampler(denoiser, y, forward, inverse, eta=setting.eta, **kept)
        else:
            if setting.method == "mmps":
                refined = guidance.MMPSDenoiser(denoiser, y, forward, covariance, iterations=iterations)
            elif setting.method == "tmpd":
                refined = guidance.TMPDenoiser(denoiser, y, forward, variance)
            elif setting.method == "jfps":
                known = _covariance(problem, dtype)
                refined = guidance.JFPSDenoiser(denoiser, y, forward, covariance, known, iterations=iterations)
            else:
                refined = guidance.DiffPIRDenoiser(
                    denoiser, y, forward, variance, lmbda=setting.strength, iterations=setting.iterations or 1
                )
            sampler = sample.DDIMSampler(refined, eta=setting.eta, **kept)
        drawn: Tensor = sampler(sampler.init((number, size), dtype=dtype))
    return problem.scale * _of(drawn, event)


def _of(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return flattened examples in their shape."""
    return flat.reshape(len(flat), *shape)


def _covariance(problem: Problem, dtype: torch.dtype) -> Any:
    """Return the covariance of the data for azula."""
    from azula.linalg.covariance import FullCovariance, IsotropicCovariance

    known = problem.covariance
    if known is None or known.ndim == 0:
        return IsotropicCovariance(torch.tensor(1.0 if known is None else float(known), dtype=dtype))
    values, axes = torch.linalg.eigh(known.to(dtype))
    return FullCovariance(axes, values)


def _twist(problem: Problem, forward: Callable[[Tensor], Tensor], y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return log N(y; A x̂, σ² + r² A Aᵀ) with the path's r², for azula's tds."""
    operator = cast(Diagonalised, problem.operator)

    def twist(x: Tensor, ratio: Tensor) -> Tensor:
        wrong = _of(y - forward(x), problem.observation.shape[1:])
        return operator.log_normal(wrong, problem.noise**2, ratio.square() / (1 + ratio.square()))

    return twist


SYSTEMS: dict[str, tuple[Mapping[str, Setting], Callable[[Problem, Setting, int, int, int], Tensor]]] = {
    "proxflow": (OURS, ours),
    "azula": (AZULA, azula),
}
