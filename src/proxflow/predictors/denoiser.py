"""A predictor with the interface of other libraries' denoisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.flows import Flow, Means


class Denoiser(nn.Module):
    """A denoiser as in deepinv and other libraries: ``(x + σ n, σ) -> E[x | x + σ n]``.

    With beliefs of mean a x + b ε the noise is σ = b/a, and the corresponding belief has the mean a (x + σ n).

    Args:
        predictor: A predictor of means.
        flow: The flow it was trained for; ``None`` takes the predictor's own.

    Raises:
        ArgumentError: The flow has no Gaussian path.
    """

    def __init__(self, predictor: nn.Module, flow: Flow[Any] | None = None) -> None:
        super().__init__()
        self.predictor = predictor
        self.flow = flow if flow is not None else getattr(predictor, "flow", None)
        if self.flow is None or self.flow.path is None:
            raise ArgumentError(f"a denoiser needs a flow with a Gaussian path, got {self.flow}")

    def forward(self, noisy: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the denoised data.

        Args:
            noisy: (batch, *event).
            sigma: Standard deviation ≥ 0 of the noise, a scalar or one for each example, (batch,) or (batch, 1, …, 1).
        """
        flow: Any = self.flow
        each = torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device).reshape(-1).expand(len(noisy))
        t = flow.path.time_of(1 / (1 + each))
        a, _ = flow.path.over(t, noisy)
        latent: Means = flow.latent
        predicted: Tensor = self.predictor(latent.belief(a * noisy, t.to(noisy.dtype)), t.to(noisy.dtype)).mean
        return predicted
