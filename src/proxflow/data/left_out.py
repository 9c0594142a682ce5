"""What a reader of data leaves out: counts by reason, with an example of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LeftOut:
    """What was left out, by reason.

    Args:
        found: By reason, the number of items and one of them.
    """

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, example: object, number: int = 1) -> None:
        """Count items left out for a reason, a plural noun such as "hidden files"."""
        before, first = self.found.get(reason, (0, str(example)))
        self.found[reason] = (before + number, first)

    @property
    def text(self) -> str:
        """Describe what was left out."""
        said = (f"{reason}: {number} (as {example})" for reason, (number, example) in self.found.items())
        return ", ".join(said) or "nothing"

    @property
    def record(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {reason: {"number": number, "example": example} for reason, (number, example) in self.found.items()}
