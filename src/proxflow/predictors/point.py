"""Prediction of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows import Flow
from proxflow.paths import GaussianPath
from proxflow.predictors.base import RealPredictor, check_shape

Parameterisation = Literal["x", "epsilon", "v", "edm"]

_LARGEST = 1e6
"""Largest loss weight of the network's squared error that can be trained."""


class PointPredictor(RealPredictor):
    """A predictor of a point x̂ for Gaussian beliefs: under squared loss the posterior mean E[x | belief].

    Known elsewhere as a denoiser, with x-prediction, ε-prediction, v-prediction or preconditioning.

    With training beliefs μ = a x + b ε the network's output is, by ``parameterisation``:

    ===========  =========================================  ======================================================
    ``x``        x̂ itself
    ``epsilon``  the noise ε̂                                x̂ = (μ − b ε̂)/a
    ``v``        the velocity x̂ − ε̂ of the straight path    x̂ = (μ + b v̂)/(a + b)
    ``edm``      the rest f of a linear prediction           x̂ = m + (a s² δ + s b f)/(a² s² + b²), where δ = μ − a m
    ===========  =========================================  ======================================================

    ``edm`` is exact at f = 0 for Gaussian data of mean m and standard deviation s, and its network reads and returns
    values of order 1, whatever their scale: with r² = a² s² + b² its input is δ/r, and f is r times its output
    ("Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al., 2022), arXiv 2206.00364, eq. 7,
    here on any path). Errors of x̂ vanish with b, so that they do not add up over more evaluations, as they do with
    ``x``.

    Args:
        network: Module ``(mean, t) -> tensor`` of the mean's shape (batch, *event); t is (batch,). See :class:`Predictor`.
        flow: The flow it is trained for.
        parameterisation: Meaning of the network's output; ``None`` takes edm, or x for a flow without a Gaussian path.
        clip: Range of the data (lowest, highest) that predictions are clipped to, or ``None``.
        clip_in_training: Whether predictions in the loss are clipped as well, as the BFN reference does. Clipped values
            pass no gradient.
        mean: For edm, mean of the data, for each channel or column, or one for all; with ``None`` training measures it,
            and it is 0 until then.
        std: Standard deviation of the data, likewise, and 1 until then.

    Raises:
        ArgumentError: Unknown parameterisation, an empty range, a flow without a Gaussian path for all but ``x``, moments of
            the data without edm, or ``epsilon`` where it would divide by a coefficient that is 0.
    """

    def __init__(
        self,
        network: nn.Module,
        flow: Flow[Any],
        *,
        parameterisation: Parameterisation | None = None,
        clip: tuple[float, float] | None = None,
        clip_in_training: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(network, flow, clip, clip_in_training)
        if parameterisation is None:
            parameterisation = "x" if flow.path is None else "edm"
        if parameterisation not in get_args(Parameterisation):
            raise ArgumentError(f"parameterisation is one of {get_args(Parameterisation)}, got {parameterisation!r}")
        if flow.path is None and parameterisation != "x":
            raise ArgumentError(f"{flow} has no Gaussian path for parameterisation {parameterisation!r}: use 'x'")
        if parameterisation == "epsilon":
            _refuse_division(flow, clip)
        if parameterisation != "edm" and not (mean is None and std is None):
            raise ArgumentError(f"mean and std of the data are for parameterisation 'edm', got {parameterisation!r}")
        self.parameterisation = parameterisation
        self._mean: Tensor
        self._std: Tensor
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        if not (mean is None and std is None):
            self._know(mean or (0.0,), std or (1.0,))

    def _know(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store mean and standard deviation of the data, for each channel or column, or one for all."""
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ArgumentError(
                f"mean and std of the data are finite, and std positive, got {self.mean} and {self.std}"
            )
        # Buffers, so that they move with the module; a model file has them in its configuration.
        self.register_buffer("_mean", torch.tensor(self.mean), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std), persistent=False)

    @property
    def asks_moments(self) -> bool:
        """Whether mean and standard deviation of the data are still to be set by :meth:`fit_to`."""
        return self.parameterisation == "edm" and self.mean is None

    def fit_to(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set mean and standard deviation from the training data, unless they are set already.

        Args:
            mean: For each channel or column.
            std: Likewise, ≥ 0. For a constant channel, a thousandth of that of all channels is used.
        """
        if self.asks_moments:
            whole = math.sqrt(math.fsum(s * s for s in std) / len(std)) or 1.0
            self._know(mean, [max(s, 1e-3 * whole) for s in std])

    def extra_repr(self) -> str:
        known = f", mean={self.mean}, std={self.std}" if self.mean is not None else ""
        return f"parameterisation={self.parameterisation!r}, clip={self.clip}{known}"

    def forward(self, belief: DiagonalGaussian, t: Tensor, *, condition: Condition | None = None) -> DiagonalGaussian:
        mean = belief.mean
        if self.parameterisation == "edm" and self.path is not None:
            return DiagonalGaussian(self.clipped(self._preconditioned(self.path, mean, t, condition)), self.target_std)
        output = self.output(mean, t, condition)
        check_shape(output, mean.shape)
        if self.parameterisation == "x" or self.path is None:
            prediction = output
        else:
            a, b = self.path.over(t, mean)
            # Where a = 0 (for BFN b = 0 too) the belief holds no information: predict 0 or a clipped value, not NaN.
            nothing = torch.finfo(mean.dtype).tiny
            if self.parameterisation == "epsilon":
                prediction = (mean - b * output) / a.clamp_min(nothing)
            else:
                prediction = (mean + b * output) / (a + b).clamp_min(nothing)
        return DiagonalGaussian(self.clipped(prediction), self.target_std)

    def _preconditioned(self, path: GaussianPath, mu: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Return x̂ of the parameterisation edm."""
        a, b = path.over(t, mu)
        if self.mean is None:
            m: Tensor | float = 0.0
            s: Tensor | float = 1.0
        else:
            shape = [-1, *[1] * (mu.ndim - 2)]
            m, s = (moment.to(mu.dtype).reshape(shape) for moment in (self._mean, self._std))
        away = mu - a * m
        # A belief without information has a = b = 0, as BFN's first: the prediction is then the mean.
        square = ((a * s) ** 2 + b**2).clamp_min(torch.finfo(mu.dtype).tiny)
        size = square.sqrt()
        output = self.output(away / size, t, condition)
        check_shape(output, mu.shape)
        return m + (a * s**2 / square) * away + (s * b / size) * output


def _refuse_division(flow: Flow[Any], clip: tuple[float, float] | None) -> None:
    """Refuse to predict noise if a belief at t = 0 is pure noise, which would make x̂ arbitrary."""
    early = torch.tensor([0.0, 1e-6], dtype=torch.float64, device="cpu")
    if flow.path is None:
        return
    a, b = flow.path.coefficients(early)
    if float(a[0]) > 0 or float(b[0]) == 0:
        return
    weight = float((flow.weight(early) * (b / a).square())[1])
    if clip is None or weight > _LARGEST:
        raise ArgumentError(
            f"predictions by noise, x̂ = (μ − b ε̂)/a, divide by a = 0 at t = 0 of {flow}: take parameterisation 'edm' or "
            "'v'" + (", or give the range of the data as clip" if weight <= _LARGEST else "")
        )
