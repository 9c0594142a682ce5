"""Prediction of mixed data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import Belief, Categorical, DiagonalGaussian, Product
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, reads
from proxflow.flows import Flow
from proxflow.predictors.base import Predictor, check_shape
from proxflow.predictors.classes import classes_of


class WithoutLast(nn.Module):
    """A predictor of mixed data given that some categories are not their last class: Bayes' rule on each target.

    This fills categories whose last class means a missing cell.

    Args:
        predictor: A predictor of mixed data.
        columns: Columns to apply it to, bool (columns,); those of numbers are ignored.
    """

    def __init__(self, predictor: Predict, columns: Tensor) -> None:
        super().__init__()
        self.predictor, self.reads = predictor, reads(predictor)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, belief: Product, t: Tensor, **told: Any) -> Product:
        """Return the target given that; other arguments as for the predictor."""
        target: Product = self.predictor(belief, t, **told)
        widths = [part.mode[0].numel() for part in target.parts]
        columns = torch.split(self.get_buffer("columns"), widths)
        return Product(tuple(map(_without_last, target.parts, columns)))


def _without_last(part: Belief, columns: Tensor) -> Belief:
    if not isinstance(part, Categorical):
        return part
    last = torch.arange(part.classes, device=columns.device) == part.classes - 1
    return Categorical(part.logits.masked_fill(columns[:, None] & last, -torch.inf).log_softmax(-1))


class ProductPredictor(Predictor):
    """A joint predictor of all parts of mixed data, each of which may depend on all.

    The network reads the concatenated features of the parts: each number unchanged, each category as 2θ − 1 (with two
    classes only the first). It returns as many values: predictions of numbers, logits of categories.

    Args:
        network: Module ``(features, t) -> tensor`` of the features' shape (batch, total).
        flow: The flow it is trained for, with endpoints of several parts.

    Raises:
        ArgumentError: The flow's endpoints have no parts; when called, a part that is neither Gaussian with independent
            coordinates nor categorical, or an output of another shape.
    """

    def __init__(self, network: nn.Module, flow: Flow[Any]) -> None:
        super().__init__(network, flow)
        parts = getattr(getattr(flow, "endpoints", None), "parts", ())
        if not parts:
            raise ArgumentError(f"mixed data need a flow whose endpoints have parts (ProductEndpoints), got {flow}")
        self.target_stds: list[float] = [getattr(endpoints, "target_std", 0.0) for endpoints, _ in parts]

    def forward(self, belief: Product, t: Tensor, *, condition: Condition | None = None) -> Product:
        features = belief.features()
        output = self.output(features, t, condition)
        check_shape(output, features.shape)
        shapes = [part.features().shape for part in belief.parts]
        pieces = torch.split(output, [shape[1:].numel() for shape in shapes], dim=1)
        outputs = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return Product(tuple(map(self._part, belief.parts, outputs, self.target_stds)))

    @staticmethod
    def _part(belief: Belief, output: Tensor, target_std: float) -> Belief:
        if isinstance(belief, DiagonalGaussian):
            return DiagonalGaussian(output, target_std)
        if isinstance(belief, Categorical):
            return classes_of(belief, output)
        raise ArgumentError(
            f"predictions for mixed data are of DiagonalGaussian and Categorical parts, not {type(belief).__name__}"
        )
