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
"""Largest weight of a squared error of the network's output with which it can be trained."""


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

    ``edm`` is right already for Gaussian data of mean m and standard deviation s, whatever their scale, and its network
    reads and returns numbers of size 1: with r² = a² s² + b² it is given δ/r, and f is r times what it returns
    ("Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al., 2022), arXiv 2206.00364, eq. 7,
    here on any path). Errors of x̂ fade with b, so that more evaluations do not add them up, as they do with ``x``.

    Args:
        network: Module ``(mean, t) -> tensor`` of the mean's shape (batch, *event); t is (batch,). See :class:`Predictor`.
        flow: The flow it is trained for.
        parameterisation: What the network's output means; ``None`` takes edm, or x for a flow without a Gaussian path.
        clip: Range of the data (lowest, highest) that predictions are clipped to, or ``None``.
        clip_in_training: Whether predictions in the loss are clipped as well, as the BFN reference does. Clipped values
            pass no gradient.
        mean: For edm, mean of the data, one number for each channel or column or for all; ``None`` lets training find it,
            and is 0 until then.
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
        """Take mean and standard deviation of the data, of each channel or column or one for all."""
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ArgumentError(
                f"mean and std of the data are finite, and std positive, got {self.mean} and {self.std}"
            )
        # Buffers, so that they move with the module; what a file holds of them stands in its configuration.
        self.register_buffer("_mean", torch.tensor(self.mean), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std), persistent=False)

    @property
    def asks_moments(self) -> bool:
        """Whether :meth:`fit_to` has yet to be told mean and standard deviation of the data."""
        return self.parameterisation == "edm" and self.mean is None

    def fit_to(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take mean and standard deviation of the training data, unless it knows those of data before.

        Args:
            mean: Of each channel or column.
            std: Likewise, ≥ 0. Of a channel with one value alone, a thousandth of all channels' is taken.
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
            # Where a = 0 (for BFN b = 0 too) the belief says nothing: the prediction is 0 or clipped, not NaN.
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
        # A belief that says nothing has a = b = 0, as BFN's first: the prediction is then the mean.
        square = ((a * s) ** 2 + b**2).clamp_min(torch.finfo(mu.dtype).tiny)
        size = square.sqrt()
        output = self.output(away / size, t, condition)
        check_shape(output, mu.shape)
        return m + (a * s**2 / square) * away + (s * b / size) * output


def _refuse_division(flow: Flow[Any], clip: tuple[float, float] | None) -> None:
    """Refuse to predict noise where a belief at t = 0 is noise alone, so that the data of it are anything."""
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
