"""Conversion of the levels of pictures, of any bit depth, to bytes: one rule for a whole data set, not for each picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from proxflow.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

DEEPEST = 2**16 - 1
"""The largest integer level."""

_NEAR = 1e-5
"""How far real levels may be outside 0 to 1 or −1 to 1, by rounding."""

_BLOCK = 2**22


@dataclass(frozen=True)
class Found:
    """The range of levels of a data set, for choosing a rule.

    Args:
        kind: The type of the numbers.
        least: The smallest of all levels.
        most: The largest.
        whole: Whether all of them are integers.
    """

    kind: Literal["bool", "whole", "real"]
    least: float
    most: float
    whole: bool = True

    @classmethod
    def of(cls, levels: Array) -> Found:
        """Return the range of levels, at least one.

        Raises:
            DataError: They are not real numbers.
        """
        if levels.dtype.kind == "b":
            return cls("bool", int(levels.min()), int(levels.max()))
        if levels.dtype.kind in "iu":
            return cls("whole", int(levels.min()), int(levels.max()))
        if levels.dtype.kind != "f":
            raise DataError(f"is {levels.dtype}; expected levels as uint8, or other real numbers")
        least, most = float(levels.min()), float(levels.max())
        flat = levels.reshape(-1)
        blocks = range(0, flat.size if most > 1 and math.isfinite(most) else 0, _BLOCK)
        return cls(
            "real", least, most, all(bool((b == np.rint(b)).all()) for k in blocks for b in [flat[k : k + _BLOCK]])
        )

    def __or__(self, other: Found) -> Found:
        """Return the joint range of two parts of a data set; NaN if one has NaN."""
        least, most = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        return Found(self.kind, least.item(), most.item(), self.whole and other.whole)

    def rule(self) -> Rule:
        """Return the rule for such levels.

        Raises:
            DataError: There is none; the message says which levels are expected.
        """
        least, most = self.least, self.most
        said = f"has {'real ' if self.kind == 'real' else ''}levels from {least:g} to {most:g}"
        if self.kind == "bool":
            return Rule("scale", 255, "false and true as 0 and 255")
        if self.kind == "real" and not (math.isfinite(least) and math.isfinite(most)):
            raise DataError(f"{said}; expected finite numbers")
        if self.kind == "real" and least >= -1 - _NEAR and most <= 1 + _NEAR:
            if least >= -_NEAR:
                return Rule("scale", 255, f"real levels {least:.3g} to {most:.3g}, of which 0 is black and 1 white")
            return Rule("signed", 127.5, f"real levels {least:.3g} to {most:.3g}, of which -1 is black and 1 white")
        if self.kind == "whole" and (least, most) == (0, 1):
            return Rule("scale", 255, "levels 0 and 1 as 0 and 255")
        if least >= 0 and most <= DEEPEST and self.whole:
            bits = max(8, 2 * -(-int(most).bit_length() // 2))
            if bits == 8:
                return Rule("shift", 0, f"levels {least:g} to {most:g}")
            return Rule("shift", bits - 8, f"levels {least:g} to {most:g} of {bits} bits, divided by {2 ** (bits - 8)}")
        if self.kind == "real" and least >= 0 and 128 <= most <= 255:
            return Rule("shift", 0, f"real levels {least:.4g} to {most:.4g}, rounded")
        if self.kind == "whole":
            raise DataError(f"{said}; expected 0 to {DEEPEST}")
        raise DataError(
            f"{said}; expected 0 (black) to 1 (white), -1 (black) to 1 (white), 0 to 255, or whole numbers 0 to {DEEPEST}"
        )


@dataclass(frozen=True)
class Rule:
    """A conversion of levels to bytes.

    Args:
        form: "scale" multiplies; "signed" adds 1 and multiplies; "shift" divides by a power of two.
        by: The factor, or the exponent of two.
        text: Description, with the range of the levels.
    """

    form: Literal["scale", "signed", "shift"]
    by: float
    text: str

    def __call__(self, levels: Array) -> Bytes:
        """Return levels as bytes of the same shape."""
        if levels.dtype == np.uint8 and self.form == "shift" and not self.by:
            return levels
        made = np.empty(levels.shape, np.uint8)
        step = max(1, _BLOCK // max(1, levels[:1].size))
        for k in range(0, len(levels), step):
            made[k : k + step] = self._bytes(levels[k : k + step])
        return made

    def _bytes(self, levels: Array) -> Array:
        if self.form == "shift":
            whole = levels if levels.dtype.kind in "iu" else np.rint(levels).astype(np.int64)
            return whole >> int(self.by)
        wide = levels.astype(np.float64)
        return np.rint((wide + (self.form == "signed")) * self.by).clip(0, 255)
