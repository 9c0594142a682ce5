"""Predictors: a network's output as a predicted target.

A predictor is a module ``(belief, t) -> belief``. The network inside reads and returns plain tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from proxflow._tensor import Generator, over_events, randn_like
from proxflow.beliefs import Belief, Binned, Categorical, DiagonalGaussian, GaussianMixture, Product
from proxflow.errors import ArgumentError
from proxflow.schedules import GaussianPath, Schedule

Parameterisation = Literal["x", "epsilon", "v"]


class HasPath(Protocol):
    """Any flow: an object with the Gaussian path of its training beliefs, or ``None``."""

    @property
    def path(self) -> GaussianPath | None: ...


class Predictor(nn.Module, ABC):
    """A module that predicts the target distribution from a belief."""

    reads_end: ClassVar[bool] = False
    """Whether it is to be called with ``end=``, the times (batch,) at which the steps toward its predictions end."""

    reads_noise: ClassVar[bool] = False
    """Whether it is to be called with ``generator=``, the source of the noise that its predictions are drawn by."""

    @abstractmethod
    def forward(self, belief: Any, t: Tensor) -> Belief:
        """The predicted target for beliefs at times ``t`` (batch,)."""


class PointPredictor(Predictor):
    """Predicts a point x̂ for Gaussian beliefs; a target with standard deviation ``target_std`` around it.

    With training beliefs μ = a x + b ε the network's output is, by ``parameterisation``:

    ==========  =========================================  ==================
    ``x``       x̂ itself
    ``epsilon`` the noise ε̂                                x̂ = (μ − b ε̂)/a
    ``v``       the velocity x̂ − ε̂ of the straight path    x̂ = (μ + b v̂)/(a + b)
    ==========  =========================================  ==================

    Args:
        network: Module ``(mean, t) -> tensor`` of the mean's shape (batch, *event); t is (batch,).
        flow: The flow it is trained for.
        parameterisation: What the network's output means.
        clip: Range of the data (lowest, highest) that predictions are clipped to, or ``None``.
        clip_in_training: Whether predictions in the loss are clipped as well, as the BFN reference does. Clipped values
            pass no gradient.

    Raises:
        ArgumentError: Unknown parameterisation, an empty range, or a flow without a Gaussian path for ``epsilon``/``v``.
    """

    def __init__(
        self,
        network: nn.Module,
        flow: HasPath,
        *,
        parameterisation: Parameterisation = "x",
        clip: tuple[float, float] | None = (-1.0, 1.0),
        clip_in_training: bool = False,
    ) -> None:
        super().__init__()
        if parameterisation not in get_args(Parameterisation):
            raise ArgumentError(f"parameterisation is one of {get_args(Parameterisation)}, got {parameterisation!r}")
        if flow.path is None and parameterisation != "x":
            raise ArgumentError(f"{flow} has no Gaussian path for parameterisation {parameterisation!r}: use 'x'")
        if clip is not None and not clip[0] < clip[1]:
            raise ArgumentError(f"clip is (lowest, highest) with lowest < highest, got {clip}")
        self.network, self.path, self.parameterisation = network, flow.path, parameterisation
        self.clip, self.clip_in_training = clip, clip_in_training
        self.target_std: float = getattr(getattr(flow, "endpoints", None), "target_std", 0.0)

    def forward(self, belief: DiagonalGaussian, t: Tensor) -> DiagonalGaussian:
        mean = belief.mean
        output = self.network(mean, t)
        if output.dtype != mean.dtype:
            output = output.to(mean.dtype)
        if output.shape != mean.shape:
            raise ArgumentError(f"the network must keep the shape {tuple(mean.shape)}, returned {tuple(output.shape)}")
        if self.parameterisation == "x" or self.path is None:
            prediction = output
        else:
            a, b = (over_events(c, mean) for c in self.path.coefficients(t))
            # Where a belief says nothing yet (a = 0; for BFN b = 0 too) the prediction is 0 or clipped, not NaN.
            nothing = torch.finfo(mean.dtype).tiny
            if self.parameterisation == "epsilon":
                prediction = (mean - b * output) / a.clamp_min(nothing)
            else:
                prediction = (mean + b * output) / (a + b).clamp_min(nothing)
        if self.clip is not None and (self.clip_in_training or not self.training):
            prediction = prediction.clamp(*self.clip)
        return DiagonalGaussian(prediction, self.target_std)


class LongStepPredictor(Predictor):
    """Predicts the effective target X of a long step: one proximal step toward it lands where many small ones would.

    At ``end`` = t this is the prediction of the data, at ``end`` = 1 the end of the trajectory: the sample. It lies among
    the predictions along the step, so it is clipped like one. Trained by :class:`proxflow.LongStep`.

    Args:
        network: Module ``(mean, t, end) -> tensor`` of the mean's shape (batch, *event), the point X; t and end are
            (batch,).
        flow: The flow it is trained for: Wasserstein-2 from a drawn prior all the way to the data.
        clip: Range of the data (lowest, highest) that predictions are clipped to outside training, or ``None``.

    Raises:
        ArgumentError: An empty range, means that do not move on straight lines, or a schedule that ends before the data
            (``final`` < 1), where the last step would end at no time.
    """

    reads_end = True

    def __init__(self, network: nn.Module, flow: HasPath, *, clip: tuple[float, float] | None = (-1.0, 1.0)) -> None:
        super().__init__()
        if not isinstance(flow.path, Schedule):
            raise ArgumentError(
                f"long steps need means that move on straight lines, as GPFN(Wasserstein2()) has, got {flow}"
            )
        if float(flow.path.remaining(torch.ones((), dtype=torch.float64, device="cpu"))) > 0:
            raise ArgumentError(f"long steps need a schedule that ends in the data, got {flow.path}: take final = 1")
        if clip is not None and not clip[0] < clip[1]:
            raise ArgumentError(f"clip is (lowest, highest) with lowest < highest, got {clip}")
        self.network, self.clip = network, clip
        self.target_std: float = getattr(getattr(flow, "endpoints", None), "target_std", 0.0)

    def forward(self, belief: DiagonalGaussian, t: Tensor, end: Tensor | None = None) -> DiagonalGaussian:
        """The effective targets of steps from times ``t`` (batch,) to ``end`` (batch,), by default t itself."""
        mean = belief.features()
        output = self.network(mean, t, t if end is None else end).to(mean.dtype)
        if output.shape != mean.shape:
            raise ArgumentError(f"the network must keep the shape {tuple(mean.shape)}, returned {tuple(output.shape)}")
        if self.clip is not None and not self.training:
            output = output.clamp(*self.clip)
        return DiagonalGaussian(output, self.target_std)

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a trained :class:`PointPredictor` (``state_dict``) whose network is the same but for the end.

        Raises:
            ArgumentError: A weight has no place here, or one of another shape.
        """
        own = self.state_dict()
        for name, weight in weights.items():
            if name not in own or own[name].shape != weight.shape:
                raise ArgumentError(
                    f"weight {name!r} of shape {tuple(weight.shape)} has no place in this network: build both with equal "
                    "settings, and the plain one with parameterisation 'x'"
                )
        self.load_state_dict(weights, strict=False)


class DrawPredictor(Predictor):
    """Predicts the whole distribution of the data given the belief, p(x | belief, t), by drawing from it (2502.02483).

    The network reads the belief's mean with standard normal noise of the same shape beside it and returns a draw. A belief
    and a draw of its posterior have the joint law of the belief and the data, so a step toward the draw leads to a belief of
    the right law, however long it is: with exact draws any number of evaluations gives the data's law, where the mean, which
    a :class:`PointPredictor` gives, blurs. Trained by :class:`proxflow.EnergyScore`.

    Args:
        network: Module ``(features, t) -> tensor``. It reads the mean and then the noise along the first dimension of the
            event, (batch, 2C, H, W) for images and (batch, 2n) for vectors, and returns a tensor of the mean's shape; t is
            (batch,).
        flow: The flow it is trained for.
        clip: Range of the data (lowest, highest) that draws are clipped to outside training, or ``None``.

    Raises:
        ArgumentError: An empty range; when called, neither generator nor noise, or noise or
            an output of another shape.
    """

    reads_noise = True

    def __init__(self, network: nn.Module, flow: HasPath, *, clip: tuple[float, float] | None = (-1.0, 1.0)) -> None:
        super().__init__()
        if clip is not None and not clip[0] < clip[1]:
            raise ArgumentError(f"clip is (lowest, highest) with lowest < highest, got {clip}")
        self.network, self.clip = network, clip
        self.target_std: float = getattr(getattr(flow, "endpoints", None), "target_std", 0.0)
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        self.begins_fixed = flow.path is not None and not any(float(c) for c in flow.path.coefficients(zero))

    def forward(
        self, belief: DiagonalGaussian, t: Tensor, *, generator: Generator | None = None, noise: Tensor | None = None
    ) -> DiagonalGaussian | GaussianMixture:
        """A draw for each belief at times ``t`` (batch,), by noise from a generator, or several, by noise that is given.

        Args:
            belief: Beliefs, (batch, *event).
            t: Their times, (batch,).
            generator: Source of the noise of one draw, as a target to step toward.
            noise: Standard normal noise (batch, draws, *event), drawn elsewhere since compiled code reads no generators. The
                draws are together an estimate of the predicted distribution: a mixture whose means they are.
        """
        mean, several = belief.features(), noise is not None
        if noise is None and generator is None:
            raise ArgumentError(
                "a DrawPredictor draws its predictions and needs generator=: train it with EnergyScore; what asks for the "
                "mean of the data, as likelihoods do, needs a PointPredictor"
            )
        if noise is None:
            noise = randn_like(mean, generator)[:, None]  # type: ignore[arg-type]
        number = noise.shape[1] if noise.ndim > 1 else 0
        if number < 1 or noise.shape != (len(mean), number, *mean.shape[1:]):
            raise ArgumentError(
                f"noise for beliefs {tuple(mean.shape)} has the dimension of draws, at least 1, after the batch, got "
                f"{tuple(noise.shape)}"
            )
        read = torch.cat([mean.repeat_interleave(number, 0), noise.flatten(0, 1)], dim=1)
        drawn = self.network(read, t.repeat_interleave(number, 0)).to(mean.dtype)
        if drawn.shape != (number * len(mean), *mean.shape[1:]):
            raise ArgumentError(
                f"the network must return events {tuple(mean.shape[1:])} for features {tuple(read.shape[1:])}, returned "
                f"{tuple(drawn.shape[1:])}"
            )
        if self.clip is not None and not self.training:
            drawn = drawn.clamp(*self.clip)
        if not several:
            return DiagonalGaussian(drawn, self.target_std)
        std = drawn.new_full((), self.target_std)
        return GaussianMixture(drawn.new_zeros(len(mean), number), drawn.unflatten(0, (len(mean), number)), std)


class HasBins(Protocol):
    """A flow of discretised data: :class:`proxflow.DiscretisedBFN`."""

    @property
    def path(self) -> GaussianPath | None: ...

    @property
    def bins(self) -> int: ...


class BinnedPredictor(Predictor):
    """Predicts the mass of a Gaussian in each bin of discretised data (2308.07037, §5).

    The network returns two numbers (ε̂, s) for each coordinate, as channels: for events with channels and space (C, H, W)
    (batch, 2C, H, W), first C times ε̂ and then C times s; for other events (batch, *event, 2). With training beliefs
    μ = a x + b ε the Gaussian is

        N((μ − b ε̂)/a, (b e^s/a)²),  s clamped to ±10, then the standard deviation to [1e-3, 10].

    Where a belief says nothing yet (a = 0) it is N(0, 1).

    Args:
        network: Module ``(mean, t) -> tensor`` as described; t is (batch,).
        flow: The flow it is trained for, which has the bins and the path.

    Raises:
        ArgumentError: A flow without a Gaussian path.
    """

    def __init__(self, network: nn.Module, flow: HasBins) -> None:
        super().__init__()
        if flow.path is None:
            raise ArgumentError(f"{flow} has no Gaussian path, which bins of real data need")
        self.network, self.path, self.bins = network, flow.path, flow.bins

    def gaussian(self, belief: DiagonalGaussian, t: Tensor) -> DiagonalGaussian:
        """The Gaussian whose mass in the bins is predicted."""
        mean = belief.features()
        output = self.network(mean, t).to(mean.dtype)
        images = mean.ndim >= 4
        wanted = (len(mean), 2 * mean.shape[1], *mean.shape[2:]) if images else (*mean.shape, 2)
        if output.shape != wanted:
            raise ArgumentError(
                f"the network must return two numbers for each coordinate, {wanted}, returned {tuple(output.shape)}"
            )
        noise, log_std = output.chunk(2, dim=1) if images else output.unbind(-1)
        a, b = (over_events(c, mean) for c in self.path.coefficients(t))
        silent = a < 1e-12
        a = a.clamp_min(1e-12)
        centre = torch.where(silent, 0, (mean - b * noise) / a)
        std = torch.where(silent, 1, b / a * log_std.clamp(-10, 10).exp()).clamp(1e-3, 10)
        return DiagonalGaussian(centre, std)

    def forward(self, belief: DiagonalGaussian, t: Tensor) -> Binned:
        gaussian = self.gaussian(belief, t)
        return Binned.of_gaussian(gaussian.mean, gaussian.std, self.bins)


class ClassPredictor(Predictor):
    """Predicts class probabilities for categorical beliefs.

    For events with channels and space (C, H, W) the network reads (batch, C·K, H, W) and returns logits of that shape; for
    other events (batch, *event, K). Two classes need one number each: the network reads the first class's 2θ − 1 without
    a class dimension and returns its logit, in the shape of the event.

    Args:
        network: Module ``(features, t) -> tensor`` of the features' shape.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, belief: Categorical, t: Tensor) -> Categorical:
        features = belief.features()
        if belief.classes == 2 or features.ndim < 4:
            return _classes(belief, self.network(features, t).to(features.dtype))
        folded = features.movedim(-1, 2).flatten(1, 2)  # (batch, C, *space, K) → (batch, C·K, *space)
        logits = self.network(folded, t).to(features.dtype)
        return Categorical(logits.unflatten(1, (-1, belief.classes)).movedim(2, -1))


class ProductPredictor(Predictor):
    """Predicts every part of mixed data at once, so that each may depend on all.

    The network reads the parts' features side by side, a number for each number and 2θ − 1 for each category (for two
    classes that of the first alone), and returns as many: a predicted number for each number, logits for each category.

    Args:
        network: Module ``(features, t) -> tensor`` of the features' shape (batch, total).
        flow: The flow it is trained for, with endpoints of several parts.

    Raises:
        ArgumentError: The flow's endpoints have no parts; when called, a part that is neither Gaussian with independent
            coordinates nor categorical, or an output of another shape.
    """

    def __init__(self, network: nn.Module, flow: HasPath) -> None:
        super().__init__()
        parts = getattr(getattr(flow, "endpoints", None), "parts", ())
        if not parts:
            raise ArgumentError(f"mixed data need a flow whose endpoints have parts (ProductEndpoints), got {flow}")
        self.network = network
        self.target_stds: list[float] = [getattr(endpoints, "target_std", 0.0) for endpoints, _ in parts]

    def forward(self, belief: Product, t: Tensor) -> Product:
        features = belief.features()
        output = self.network(features, t).to(features.dtype)
        if output.shape != features.shape:
            raise ArgumentError(
                f"the network must keep the shape {tuple(features.shape)}, returned {tuple(output.shape)}"
            )
        shapes = [part.features().shape for part in belief.parts]
        pieces = torch.split(output, [shape[1:].numel() for shape in shapes], dim=1)
        outputs = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return Product(tuple(map(self._part, belief.parts, outputs, self.target_stds)))

    @staticmethod
    def _part(belief: Belief, output: Tensor, target_std: float) -> Belief:
        if isinstance(belief, DiagonalGaussian):
            return DiagonalGaussian(output, target_std)
        if isinstance(belief, Categorical):
            return _classes(belief, output)
        raise ArgumentError(
            f"predictions for mixed data are of DiagonalGaussian and Categorical parts, not {type(belief).__name__}"
        )


def _classes(belief: Categorical, output: Tensor) -> Categorical:
    """Predicted classes from an output of the shape of the belief's features."""
    return Categorical(torch.stack([output, torch.zeros_like(output)], dim=-1) if belief.classes == 2 else output)
