"""Examples: data with what they are conditioned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """Data (number, *event), what each is conditioned on, and the prior draw that each is paired with."""

    x: Tensor
    condition: Tensor | Mapping[str, Tensor] | None = None
    start: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Examples:
        """Take some of the examples: a slice, or indices (number,)."""
        held = self.condition
        if isinstance(held, Mapping):
            condition: Any = {name: tensor[rows] for name, tensor in held.items()}
        else:
            condition = None if held is None else held[rows]
        return Examples(self.x[rows], condition, None if self.start is None else self.start[rows])

    def to(self, device: torch.device | str) -> Examples:
        """Bring all tensors to a device."""
        held = self.condition
        if isinstance(held, Mapping):
            condition: Any = {name: tensor.to(device) for name, tensor in held.items()}
        else:
            condition = None if held is None else held.to(device)
        return Examples(self.x.to(device), condition, None if self.start is None else self.start.to(device))
