"""Prediction given an observation: a proximal step of the target belief on the observation's energy.

A predictor gives the mean x̂ of the data given a belief, and a rule its covariance C. The observation y = A x + n then
refines it by a proximal step with the energy −log p(y | x),

    x* = argmin_x  ‖A x − y‖²_R⁻¹ / 2 + ‖x − x̂‖²_C⁻¹ / 2  =  x̂ + C Aᵀ (R + A C Aᵀ)⁻¹ (y − A x̂),

which is Bayes' rule for a Gaussian target. Methods of the literature differ in C, and in whether the step takes the
mean or a draw (:data:`METHODS`). The result is a target belief like any other, for every flow and sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from proxflow._math import one_hot, over_events, sum_events
from proxflow.beliefs import Belief, Categorical, DiagonalGaussian, Product, Revealed
from proxflow.divergences import KL
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, evaluations, planned, reads
from proxflow.flows import BayesianFlow, Flow
from proxflow.inverse import (
    Composition,
    Diagonalised,
    Functions,
    Gaussian,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
    Poisson,
)
from proxflow.inverse.functions import operator_of
from proxflow.inverse.noise import Noise, noise_of
from proxflow.inverse.operators import ITERATIONS, Separable
from proxflow.inverse.solve import conjugate_gradients, least_residual
from proxflow.paths import GaussianPath
from proxflow.random import Generator, randn_like

Covariance = Literal["path", "ratio", "tweedie", "tweedie-diagonal", "identity"]

_EARLIEST = 0.01
"""Fraction τ below which derivatives of the predictor are taken at the time of this fraction: they are divided by τ."""

_LEAST = 1e-8
"""Least variance of the data given a belief: at 0, a noiseless observation would have no effect at the end of a path."""

_SINGULAR = 1e-9
"""Fraction of the largest variance of the data below which the smallest counts as zero."""

_UNMET = 1e-3
"""Fraction of a noiseless observation outside the operator's range above which it is refused."""

_FAR = 10.0
"""How far beyond the data's range an observation may lie, in multiples of the range and of the noise."""

_AMPLIFIED = 100.0
"""Largest amplification of noise that is mistaken for data."""

_STRENGTH = ("dps", "diffpir")
"""Methods with a strength."""


@dataclass(frozen=True)
class Method:
    """A method by its name.

    Args:
        line: Description in one line.
        covariance: Its C; ``None`` if a tensor is required.
        draw: Whether the step draws from the refined distribution, or takes its mean.
        products: Products with the predictor's Jacobian per evaluation; ``None`` for ``iterations``.
        smooth: Whether the target stays a posterior mean, for any sampler, best ``marginal``; else noise is renewed.
    """

    line: str
    covariance: str | None = "path"
    draw: bool = False
    products: int | None = 0
    smooth: bool = False


METHODS: dict[str, Method] = {
    "flower": Method("proximal step with the path's variance (Wasserstein-2)"),
    "flower-draw": Method("a draw from Bayes' rule with the path's variance (KL)", draw=True),
    "diffpir": Method("proximal step with the variance (b/a)²/strength", "ratio"),
    "mmps": Method("Bayes' rule with the full covariance by Tweedie", "tweedie", products=None, smooth=True),
    "tmpd": Method("Bayes' rule with a diagonal covariance by Tweedie", "tweedie-diagonal", products=2, smooth=True),
    "jfps": Method("Bayes' rule with a given covariance of the data", None, smooth=True),
    "pigdm": Method("gradient of the likelihood with the path's variance", "path", products=1, smooth=True),
    "dps": Method("gradient of the misfit, by strength", "identity", products=1, smooth=True),
    "repaint": Method("what is known overwritten: the proximal step of an indicator", "path"),
    "bayes": Method("the belief about what is known made certain: Bayes' rule of classes", "path"),
}
"""Methods by name; ``bayes`` and ``repaint`` also work for classes and mixed data."""


class Posterior(nn.Module):
    """A predictor of the data given the belief and an observation y = A x + n, as a refined target belief.

    ===============  =================================================  ========================================
    method           C, the covariance of the data given the belief     source
    ===============  =================================================  ========================================
    ``flower``       r² = b²/(a² + b²); the mean                        Flower, γ = 0
    ``flower-draw``  the same; a draw                                   γ = 1: exact for data N(0, I)
    ``diffpir``      (b/a)²/strength                                    DiffPIR
    ``mmps``         (b²/a) ∂x̂/∂μ, by GMRES                             MMPS: exact for Gaussian data
    ``tmpd``         its row sums                                       TMPD
    ``jfps``         (Σ⁻¹ + (a/b)²)⁻¹ for a given Σ of the data         exact for data of covariance Σ
    ``pigdm``        (b²/a) ∂x̂/∂μ once, r² within the inverse           ΠGDM
    ``dps``          a gradient step: x̂ − ζ (b²/a) ∂‖y − A x̂‖/∂μ        DPS, eq. 16
    ``repaint``      the nearest x with A x = y, whatever the noise     RePaint, without its repetitions
    ``bayes``        (classes) the belief about what is known: certain  Bayes' rule; exact for exact predictors
    ===============  =================================================  ========================================

    On a path that ends with noise, r² is reduced by its value there: the last prediction itself is the sample, not a
    draw around it.

    Flower: "Flower: A Flow-Matching Solver for Inverse Problems" (Pourya et al., 2025), arXiv 2509.26287.
    DiffPIR: "Denoising Diffusion Models for Plug-and-Play Image Restoration" (Zhu et al., 2023), arXiv 2305.08995.
    MMPS: "Learning Diffusion Priors from Observations by Expectation Maximization" (Rozet et al., 2024), arXiv 2405.13712.
    TMPD: "Tweedie Moment Projected Diffusions For Inverse Problems" (Boys et al., 2023), arXiv 2310.06721.
    ΠGDM: "Pseudoinverse-Guided Diffusion Models for Inverse Problems" (Song et al., 2023).
    DPS: "Diffusion Posterior Sampling for General Noisy Inverse Problems" (Chung et al., 2022), arXiv 2209.14687.
    RePaint: "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (Lugmayr et al., 2022), arXiv 2201.09865.

    Args:
        predictor: Predictor of the data's mean, or of classes or mixed data.
        operator: A, one of :mod:`proxflow.inverse` or any object with ``A`` and ``A_adjoint``.
        observation: y, (number, *observed), one row per example, or one for all; class indices for classes. With a
            mask, unknown values are ignored and may be NaN.
        noise: Standard deviation of n, a tensor of them, or a noise of :mod:`proxflow.inverse`; 0 for none.
        method: A name of :data:`METHODS`; ``None`` takes that of ``covariance``, or else the flow's: flower for
            Wasserstein-2, mmps for KL and Bayesian flows, bayes for classes and mixed data.
        covariance: ``"path"``, ``"tweedie"``, ``"tweedie-diagonal"``, or the covariance of the data: of an event's
            shape for independent numbers, or (d, d). A method's name selects the covariance of that method.
        draw: Whether targets are draws from the refined belief instead of its mean; ``None`` for the method's default.
        flow: The flow it was trained for; ``None`` takes the predictor's own.
        iterations: Iterations of the solver: for mmps 5 by default, each with one product with the predictor's
            Jacobian; else 50, if no closed form is known. Residuals below 1e-6 end them.
        strength: ζ of dps and λ of diffpir.

    Raises:
        ArgumentError: Shapes that do not fit; a noiseless observation outside the operator's range; a wrong adjoint; a
            method for another family; a covariance that cannot be drawn from; a predictor that does not predict the
            mean.
    """

    ask: Predict  # the predictor, or its plan for a time

    def __init__(
        self,
        predictor: Predict,
        operator: Any,
        observation: Tensor,
        *,
        noise: Noise | Tensor | float | None = None,
        method: str | None = None,
        covariance: Literal["path", "tweedie", "tweedie-diagonal"] | Tensor | None = None,
        draw: bool | None = None,
        flow: Flow[Any] | None = None,
        iterations: int | None = None,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(predictor, nn.Module) and hasattr(predictor, "predictor"):
            raise ArgumentError(
                f"an observation refines a predictor, got a {type(predictor).__name__}: give its .predictor"
            )
        asks = reads(predictor)
        if asks & {"end", "noise"} or not getattr(predictor, "predicts_mean", True):
            raise ArgumentError(
                f"{type(predictor).__name__} predicts no mean of the data given the belief, which an observation could "
                "refine: take a PointPredictor, or one of classes"
            )
        if not isinstance(observation, Tensor) or observation.ndim < 2:
            raise ArgumentError(
                "an observation is a tensor (number, *observed), one row an example or one for all, got "
                f"{tuple(observation.shape) if isinstance(observation, Tensor) else type(observation).__name__}"
            )
        self.predictor, self.flow = predictor, flow if flow is not None else getattr(predictor, "flow", None)
        self.path: GaussianPath | None = self.flow.path if self.flow is not None else getattr(predictor, "path", None)
        object.__setattr__(self, "ask", predictor)
        self.operator, self.noise = operator_of(operator), noise_of(noise)
        if self.path is not None and not observation.is_floating_point():
            raise ArgumentError(
                f"the flow is of real numbers, and the observation is {str(observation.dtype).removeprefix('torch.')}: "
                "give pictures as sample(decode=False) does, which are bytes / 127.5 − 1"
                + (", and complex numbers by torch.view_as_real" if observation.is_complex() else "")
            )
        self.real = observation.is_floating_point() and self.path is not None
        self.covariance: Tensor | None = covariance if isinstance(covariance, Tensor) else None
        self.spectrum = _spectrum(self.covariance)
        self.method = self._chosen(method, covariance)
        rule = METHODS[self.method]
        self.draw = rule.draw if draw is None else draw
        if self.draw and (rule.products != 0 or self.method in ("repaint", "bayes", "diffpir")):
            raise ArgumentError(
                f"draws need a covariance with a known root, which {self.method} has not: take covariance 'path', or that "
                "of the data as a tensor, or draw=False"
            )
        if (iterations is not None and iterations < 1) or not strength > 0:
            raise ArgumentError(f"iterations are at least 1 and strength is positive, got {iterations} and {strength}")
        if strength != 1 and self.method not in _STRENGTH:
            raise ArgumentError(f"strength is for {' and '.join(_STRENGTH)}; {self.method} has none")
        self.iterations = iterations or (5 if rule.products is None else ITERATIONS)
        self.strength = strength
        self.reads = (asks & {"condition"}) | ({"noise"} if self.draw else set())
        self.sampler = self._best_sampler(rule.smooth and not self.draw)
        self.earliest = 0.0
        if self.path is not None and rule.products != 0:
            self.earliest = float(self.path.time_of(torch.tensor(_EARLIEST, dtype=torch.float64)))
        self.unresolved = 0.0
        if self.path is not None:
            taken, left, _ = (float(c) for c in self.path.straight(torch.ones((), dtype=torch.float64)))
            self.unresolved = left**2 / (taken**2 + left**2)
        self.observation = self.operator.seen(observation)
        self.variance = self._known_variance()
        if self.observation.is_floating_point() and not bool(self.observation.isfinite().all()):
            raise ArgumentError("the observation has numbers that are not finite: leave them out by a Mask")
        self._check_range()
        self.joint = self._joint()
        self._check_met()
        parameter = next((p for p in self.parameters()), None)
        if parameter is not None:
            self._move(lambda a: a.to(parameter.device))

    def _best_sampler(self, smooth: bool) -> str | None:
        """Return the name of the default sampler; ``None`` leaves it to the flow."""
        if not self.real:
            return None
        if not smooth:
            return "renewed"
        # Fresh noise corrects errors of earlier targets at each step; it must be independent of the data.
        free = self.flow is not None and self.flow.coupling is None and self.flow.begins_normal
        return "marginal" if free else None

    def _chosen(self, method: str | None, covariance: Any) -> str:
        """Return the method given by its name, by the covariance or by the flow."""
        if covariance is not None and method is not None and not (method == "jfps" and self.covariance is not None):
            raise ArgumentError(f"the method {method} has a covariance of its own: give one of the two")
        if method is None and covariance is not None:
            by = {"path": "flower", "tweedie": "mmps", "tweedie-diagonal": "tmpd"}
            method = "jfps" if self.covariance is not None else by.get(covariance)
            if method is None:
                raise ArgumentError(f"covariance is one of {', '.join(by)} or a tensor, got {covariance!r:.80}")
        if method is None:
            bayesian = isinstance(self.flow, BayesianFlow) or isinstance(getattr(self.flow, "divergence", None), KL)
            method = ("mmps" if bayesian else "flower") if self.real else "bayes"
        if method not in METHODS:
            raise ArgumentError(f"no method is called {method!r:.80}: known are {', '.join(METHODS)}")
        if method == "jfps" and self.covariance is None:
            raise ArgumentError("the method jfps needs the covariance of the data: give it as covariance=, a tensor")
        exact = isinstance(self.noise, Gaussian) and self.noise.none
        if not self.real and (method not in ("bayes", "repaint") or not isinstance(self.operator, Mask) or not exact):
            raise ArgumentError(
                f"classes and mixed data are observed exactly, through a Mask, by the method bayes or repaint; got {method} "
                f"with {type(self.operator).__name__}"
                + ("" if exact else " and noise")
                + ("" if self.flow is not None else "; for real numbers name the flow of this predictor as flow=")
            )
        if self.real and method == "bayes":
            raise ArgumentError("the method bayes is for classes and mixed data: for real numbers take flower or mmps")
        return method

    def _known_variance(self) -> Tensor | None:
        """Return the variance of the noise, broadcastable to the observation; ``None`` if it depends on the data."""
        noise, y = self.noise, self.observation
        if not self.real or isinstance(noise, Poisson) or not isinstance(noise, Gaussian):
            return None if self.real else y.new_zeros((), dtype=torch.float64)
        if noise.covariance is not None:
            if isinstance(self.operator, Mask):
                raise ArgumentError(
                    "noise that is correlated over a mask is not defined where nothing is known: take the rows of a Matrix"
                )
            if noise.covariance.shape[0] != y[0].numel():
                raise ArgumentError(
                    f"the covariance of noise is {tuple(noise.covariance.shape)}, and an observation has "
                    f"{y[0].numel()} numbers"
                )
            # Whitened: L⁻¹ y = L⁻¹ A x + a standard normal, with R = L Lᵀ.
            factor = torch.linalg.cholesky(noise.covariance.double())
            white = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
            inner = self.operator
            if isinstance(inner, Matrix) and inner.matrix.ndim == 2:
                self.operator = Matrix((white.to(inner.matrix) @ inner.matrix), inner.event)
            else:
                self.operator = Composition(Matrix(white.to(y), tuple(y.shape[1:])), inner)
            self.observation = (y.flatten(1) @ white.mT.to(y)).contiguous()
            return y.new_ones(())
        variance = noise.variance(y)
        return variance if isinstance(variance, Tensor) else y.new_full((), variance, dtype=torch.float64)

    def _joint(self) -> tuple[Tensor, Tensor] | None:
        """Return eigenvalues and eigenvectors of Aᵀ A/σ² + Σ⁻¹, float64; ``None`` if unknown or nonexistent.

        Adding (a/b)² to the eigenvalues gives the precision of the refined target at any time.
        """
        operator, noise = self.operator, self.variance
        if self.spectrum is None or not isinstance(operator, Matrix) or operator.matrix.ndim != 2:
            return None
        (variances, axes), a = (part.double() for part in self.spectrum), operator.matrix.double()
        if a.shape[1] != len(variances) or noise is None or noise.ndim or not float(noise) > 0:
            return None
        if not float(variances.min()) > _SINGULAR * float(variances.max()):
            return None
        precision = a.mT @ a / noise.double() + (axes / variances) @ axes.mT
        values, vectors = torch.linalg.eigh((precision + precision.mT) / 2)
        return values, vectors

    def _check_range(self) -> None:
        """Refuse an observation on another scale than the data, such as bytes, if the operator takes parts or means."""
        clip, noise = getattr(self.predictor, "clip", None), self.noise
        if clip is None or not self.real or not isinstance(self.operator, Mask | Separable):
            return
        if not isinstance(noise, Gaussian) or noise.covariance is not None:
            return
        (low, high), far = clip, float(self.observation.abs().max())
        if far > max(abs(low), abs(high)) + _FAR * (high - low + float(torch.as_tensor(noise.std).max())):
            raise ArgumentError(
                f"the observation has numbers as large as {far:.3g}, and the data lie in [{low:g}, {high:g}]: encode it as "
                "the data are, pictures as bytes / 127.5 − 1"
            )

    def _check_met(self) -> None:
        """Refuse a noiseless observation outside the operator's range."""
        exact = self.method == "repaint" or (isinstance(self.noise, Gaussian) and self.noise.none)
        if exact and isinstance(self.operator, Nonlinear):
            raise ArgumentError(
                "a non-linear observation cannot be held exactly, as Gauss–Newton steps need not converge to it: give it a "
                "noise"
            )
        if exact and self.method == "tmpd":
            raise ArgumentError(
                "tmpd divides by sums of derivatives, which may vanish, where there is no noise: give one, or take flower "
                "or mmps"
            )
        if not (self.real and exact and isinstance(self.operator, Diagonalised)):
            return
        missed = float(self.operator.unmet(self.observation).max())
        noisy = not (isinstance(self.noise, Gaussian) and self.noise.none)
        if missed > _UNMET:
            raise ArgumentError(
                f"repaint holds an observation as it is, noise and all, and no event has this one: A x misses {missed:.2g} "
                "of it at best; take another method"
                if noisy
                else f"without noise no event has this observation: A x misses {missed:.2g} of it at best; give its noise, "
                "or mend the observation"
            )
        if noisy and (times := self.operator.amplified(self.observation)) > _AMPLIFIED:
            raise ArgumentError(
                f"repaint takes noise for data, and {type(self.operator).__name__} undone makes some of it {times:.0f} "
                "times as large: take another method, or an observation without noise"
            )

    @property
    def examples(self) -> int | None:
        """Number of examples with observations of their own; ``None`` if one is for all."""
        own = [len(self.observation), self.operator.examples or 1]
        if self.variance is not None and self.variance.ndim == self.observation.ndim:
            own.append(len(self.variance))
        several = {number for number in own if number > 1}
        if len(several) > 1:
            raise ArgumentError(f"observation, operator and noise are of as many examples, got {sorted(several)}")
        return several.pop() if several else None

    def rows(self, index: Tensor) -> Self:
        """Return the predictor for some examples of a batch, with their observations and masks."""

        def own(a: Tensor) -> Tensor:
            return a[index] if len(a) > 1 else a

        new = copy.copy(self)
        new.observation, new.operator = own(self.observation), self.operator.rows(index)
        if self.variance is not None and self.variance.ndim == self.observation.ndim:
            new.variance = own(self.variance)
        return new

    @property
    def evaluations(self) -> int:
        """Network evaluations of a call, those of the predictor."""
        return evaluations(self.ask)

    def planned(self, times: Sequence[float]) -> list[Predict]:
        """Return the predictor for each of the times, as the inner predictor plans it, which may be guided only at some."""

        def asking(ask: Predict) -> Predict:
            if ask is self.predictor:
                return self
            new = copy.copy(self)
            object.__setattr__(new, "ask", ask)  # bypasses nn.Module, whose copies share their submodules
            return new

        return [asking(ask) for ask in planned(self.predictor, times)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._move(fn)
        return self

    def _move(self, change: Callable[[Tensor], Tensor]) -> None:
        self.observation, self.operator = change(self.observation), self.operator.map(change)
        self.variance = None if self.variance is None else change(self.variance)
        self.covariance = None if self.covariance is None else change(self.covariance)
        self.spectrum = None if self.spectrum is None else (change(self.spectrum[0]), change(self.spectrum[1]))
        self.joint = None if self.joint is None else (change(self.joint[0]), change(self.joint[1]))

    def extra_repr(self) -> str:
        return f"method={self.method!r}, operator={type(self.operator).__name__}, draw={self.draw}"

    def forward(
        self, belief: Any, t: Tensor, *, condition: Condition | None = None, generator: Generator | None = None
    ) -> Belief:
        """Return the target given the observation, for beliefs at times ``t`` (batch,).

        Args:
            belief: Beliefs of the flow.
            t: Their times.
            condition: As the predictor reads it.
            generator: Random generator, if targets are drawn.
        """
        target: Belief = self.refined(belief, t, condition=condition, generator=generator)[1]
        return target

    def refined(
        self,
        belief: Any,
        t: Tensor,
        *,
        condition: Condition | None = None,
        generator: Generator | None = None,
        probe: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Return the target without the observation, and that given it; other arguments as in :meth:`forward`.

        Args:
            probe: Random signs, (batch, *event). With them the first target has the standard deviation of the data
                given the belief, one value per event: the path's, r, or, for a method with Tweedie's formula, the
                square root of the mean of the covariance's diagonal, estimated by one further product.
        """
        told: dict[str, Any] = {} if condition is None else {"condition": condition}
        if isinstance(belief, Categorical | Product | Revealed):
            return self._infilled(belief, t, told)
        if not isinstance(belief, DiagonalGaussian) or not self.real or self.path is None:
            raise ArgumentError(
                f"an observation refines targets of Gaussian beliefs on a Gaussian path and of classes, not of "
                f"{type(belief).__name__} with {self.flow}: give flow=, or another flow"
            )
        needs = METHODS[self.method].products != 0
        times = t.clamp_min(self.earliest) if self.earliest else t
        with torch.enable_grad() if needs else torch.no_grad():
            at = belief.mean.detach().requires_grad_() if needs else belief.mean
            prior = self.ask(DiagonalGaussian(at, belief.given_std) if needs else belief, times, **told)
        if not isinstance(prior, DiagonalGaussian):
            raise ArgumentError(
                f"an observation refines Gaussian targets, and this predictor's are {type(prior).__name__}"
            )
        x = prior.mean.detach()
        self._check_shapes(x)
        moved = self._moved(x, prior.mean, at, times, generator)
        std = prior.given_std.detach()
        spread = std if probe is None else self._variance(prior.mean, at, times, probe).sqrt()
        return DiagonalGaussian(x, spread), DiagonalGaussian(moved, std)

    def _variance(self, output: Tensor, at: Tensor, t: Tensor, probe: Tensor) -> Tensor:
        """Return the variance of the data given the belief, averaged over coordinates, (batch, 1, …).

        "Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models" (Bao et al., 2022),
        arXiv 2206.07309; the trace is estimated without bias by pᵀ C p for random signs p ("A Stochastic Estimator of
        the Trace of the Influence Matrix" (Hutchinson, 1989)).
        """
        tau, left, scale = self._straight(t, probe)
        if METHODS[self.method].products == 0:
            return left.square() / (tau.square() + left.square())
        (product,) = torch.autograd.grad(output, at, probe, retain_graph=True)
        mean = over_events(sum_events(probe * product) / probe[0].numel(), probe)
        return (scale * left.square() / tau * mean).clamp_min(_LEAST)

    def _check_shapes(self, x: Tensor) -> None:
        if isinstance(self.operator, Functions):
            self.operator.check(tuple(x.shape[1:]), x)
        if len(self.observation) not in (1, len(x)):
            raise ArgumentError(f"there are observations of {len(self.observation)} examples, and {len(x)} beliefs")

    def _straight(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return τ, 1 − τ and a + b at times (batch,), shaped to broadcast against events."""
        path: GaussianPath = self.path  # type: ignore[assignment]
        tau, left, scale = (over_events(c, x) for c in path.straight(t.double()))
        return tau, left, scale

    def _moved(self, x: Tensor, output: Tensor, at: Tensor, t: Tensor, generator: Generator | None) -> Tensor:
        """Return the means of the refined targets.

        Args:
            x: x̂.
            output: The same, with its autograd graph.
            at: μ, the input of the graph.
            t: Times (batch,).
            generator: Random generator of draws.
        """
        tau, left, scale = self._straight(t, x)
        y = self.observation.to(x.dtype).expand(len(x), *self.observation.shape[1:])
        clean = self.operator(x)
        if clean.shape != y.shape:
            raise ArgumentError(
                f"the operator makes observations {tuple(clean.shape[1:])} of events {tuple(x.shape[1:])}, and the given "
                f"one is {tuple(y.shape[1:])}"
            )
        noise = (self.noise.variance(clean) if self.variance is None else self.variance.to(x.dtype)) + x.new_zeros(())
        if self.method == "repaint":
            noise = torch.zeros_like(noise)
        variance = left.square() / (tau.square() + left.square())
        # On a path that ends with noise the last prediction is the sample, so that this variance is never resolved.
        variance = (variance - self.unresolved).clamp_min(_LEAST)

        def tweedie(v: Tensor) -> Tensor:
            """Return C v = (b²/a) Jᵀ v, with J the Jacobian of x̂ in μ."""
            (product,) = torch.autograd.grad(output, at, v, retain_graph=True)
            return scale * left.square() / tau * product

        if METHODS[self.method].products != 0:
            linear = self.operator.at(x)
            wrong = y - clean
            if self.method == "mmps":
                return x + self._solved(linear, wrong, noise, tweedie)
            if self.method == "tmpd":
                spread = linear(tweedie(linear.adjoint(torch.ones_like(y)))).clamp_min(0)
                return x + tweedie(linear.adjoint(wrong / (noise + spread).clamp_min(torch.finfo(x.dtype).tiny)))
            if self.method == "pigdm":
                return x + tweedie(linear.adjoint(self._weighed(linear, wrong, noise, variance)))
            size = over_events(sum_events(wrong.square()).sqrt().clamp_min(torch.finfo(x.dtype).tiny), wrong)
            return x + self.strength * tweedie(linear.adjoint(wrong / size))
        if self.method == "diffpir":
            variance = (left / tau.clamp_min(1e-6)).square() / self.strength
        root: Callable[[Tensor], Tensor] | None = None
        spread_of: Callable[[Tensor], Tensor] | None = None
        if self.covariance is not None:
            own = self.covariance.to(x.dtype)
            if own.ndim == 0 or own.shape == x.shape[1:]:
                own = own if own.ndim else own.reshape([1] * x.ndim)
                variance = own * left.square() / (tau.square() * own + left.square())
            else:
                spread_of, root = self._spread(x, tau.flatten(1), left.flatten(1))
        if self.draw:
            if generator is None:
                raise ArgumentError("this posterior draws its targets, and needs generator=")
            # The minimiser for data and observation perturbed by draws of their noise has exactly the refined distribution.
            fresh = randn_like(x, generator)
            x = x + (root(fresh) if root is not None else variance.sqrt() * fresh)
            y = y + noise.sqrt() * randn_like(y, generator)
            clean = self.operator(x)
        z = x
        for k in range(getattr(self.operator, "steps", 1)):
            linear = self.operator.at(z)
            wrong = y - clean if k == 0 else y - self.operator(z) + linear(z - x)
            if spread_of is not None and self.joint is not None:
                values, axes = (part.double() for part in self.joint)
                below, above = (c.flatten(1).double().square() for c in (left, tau))
                pull = (linear.adjoint(wrong.double()) / noise.double()).flatten(1) @ axes
                z = x + (pull * below / (below * values + above) @ axes.mT).reshape(x.shape).to(x.dtype)
            elif spread_of is not None:
                z = x + self._solved(linear, wrong, noise, spread_of)
            else:
                z = x + variance * linear.adjoint(self._weighed(linear, wrong, noise, variance))
        return z

    def _spread(
        self, x: Tensor, tau: Tensor, left: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return the products with (Σ⁻¹ + (a/b)²)⁻¹ for a full covariance Σ of the data, and with its root."""
        size = x[0].numel()
        if self.spectrum is None or len(self.spectrum[0]) != size:
            raise ArgumentError(
                f"a covariance of the data is of an event's shape {tuple(x.shape[1:])}, or ({size}, {size}); got "
                f"{tuple(self.covariance.shape)}"  # type: ignore[union-attr]
            )
        variances, axes = (part.to(x.dtype) for part in self.spectrum)
        kept = variances * left.square() / (tau.square() * variances + left.square())

        def by(weights: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda v: ((v.flatten(1) @ axes * weights) @ axes.mT).reshape(v.shape)

        return by(kept), by(kept.sqrt())

    def _weighed(self, linear: Operator, wrong: Tensor, noise: Tensor, variance: Tensor) -> Tensor:
        """Return (R + A C Aᵀ)⁻¹ v for a diagonal C, in closed form if there is one."""
        alike = noise.ndim == 0 or noise[0].numel() == 1
        if isinstance(linear, Mask) or (isinstance(linear, Diagonalised) and alike and variance[0].numel() == 1):
            if not isinstance(linear, Mask):
                variance, noise = _each(variance), _each(noise)
            return linear.solve(wrong, noise, variance)

        def normal(p: Tensor) -> tuple[Tensor, Tensor]:
            back = variance * linear.adjoint(p)
            return noise * p + linear(back), back

        return conjugate_gradients(normal, wrong, self.iterations)[0]

    def _solved(self, linear: Operator, wrong: Tensor, noise: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
        """Return C Aᵀ (R + A C Aᵀ)⁻¹ v for any C, with one product with it per iteration."""

        def normal(p: Tensor) -> tuple[Tensor, Tensor]:
            back = spread(linear.adjoint(p))
            return noise * p + linear(back), back

        if self.method == "mmps":  # a network's Jacobian need not be symmetric
            return least_residual(normal, wrong, self.iterations)
        return conjugate_gradients(normal, wrong, self.iterations)[1]

    def _infilled(self, belief: Any, t: Tensor, told: dict[str, Any]) -> tuple[Any, Any]:
        """Return the targets of classes or mixed data, with known values made certain."""
        if self.real:
            raise ArgumentError(f"the observation is of real numbers, and the beliefs are {type(belief).__name__}")
        events = belief.split(self._expanded(belief.batch_size)) if isinstance(belief, Product) else None
        parts = belief.parts if isinstance(belief, Product) else (belief,)
        observed = (self._expanded(belief.batch_size),) if events is None else events
        masks = self._masks(belief, parts)
        seen = [
            _certain(part, y, known) if isinstance(part, Categorical | Revealed) and self.method == "bayes" else part
            for part, y, known in zip(parts, observed, masks, strict=True)
        ]
        prior = self.ask(Product(tuple(seen)) if isinstance(belief, Product) else seen[0], t, **told)
        targets = prior.parts if isinstance(prior, Product) else (prior,)
        sure = [_certain(part, y, known) for part, y, known in zip(targets, observed, masks, strict=True)]
        return prior, Product(tuple(sure)) if isinstance(prior, Product) else sure[0]

    def _expanded(self, batch: int) -> Tensor:
        return self.observation.expand(batch, *self.observation.shape[1:])

    def _masks(self, belief: Any, parts: tuple[Belief, ...]) -> list[Tensor]:
        """Return the mask of known values of each part, (batch, *event) or (1, *event)."""
        mask: Any = self.operator
        known = mask.known if mask.each else mask.known[None]
        if not isinstance(belief, Product):
            if known.shape[1:] != belief.mode.shape[1:]:
                raise ArgumentError(
                    f"the mask is of events {tuple(known.shape[1:])}, and these are {tuple(belief.mode.shape[1:])}"
                )
            return [known]
        widths = [part.mode[0].numel() for part in parts]
        if known.shape[1:] != (sum(widths),):
            raise ArgumentError(f"the mask is of {tuple(known.shape[1:])}, and rows have {sum(widths)} columns")
        return list(torch.split(known, widths, dim=1))


def _each(value: Tensor) -> Tensor:
    """Return one number for each example, (batch,), or one for all."""
    return value.reshape(-1 if value.numel() > 1 else ())


def _spectrum(covariance: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return eigenvalues and eigenvectors of a full covariance of the data; ``None`` for variances."""
    if covariance is None:
        return None
    if not covariance.is_floating_point() or not bool(covariance.isfinite().all()):
        raise ArgumentError("the covariance of the data has real numbers that are finite")
    square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
    if square and torch.allclose(covariance, covariance.mT):  # a product of matrices is symmetric up to rounding
        variances, axes = torch.linalg.eigh((covariance + covariance.mT) / 2)
        slack = 10 * len(variances) * torch.finfo(variances.dtype).eps * variances.amax()
        if bool((variances >= -slack).all()):
            return variances.clamp_min(0), axes
    if not bool((covariance >= 0).all()):
        raise ArgumentError("the covariance of the data is symmetric and not negative, and this one is not")
    return None


def _certain(part: Any, y: Tensor, known: Tensor) -> Any:
    """Return a belief that is certain of the known values."""
    if isinstance(part, Categorical):
        sure = one_hot(y, part.classes, part.logits.dtype).log()
        return Categorical(torch.where(known[..., None], sure, part.logits))
    if isinstance(part, DiagonalGaussian):
        return DiagonalGaussian(torch.where(known, y, part.mean), part.given_std)
    if isinstance(part, Revealed):
        return Revealed(torch.where(known, y, part.tokens), part.classes)
    raise ArgumentError(f"infilling is of numbers and classes, not of {type(part).__name__}")
