"""The conditions of a measurement, and a check that compared results have the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from proxflow.errors import ArgumentError, DataError

# Digits of a checksum in older results.
_LEAST_DIGITS = 12


@dataclass(frozen=True)
class Conditions:
    """The conditions under which samples were scored: two results are comparable only if all are the same.

    Args:
        extractor: Name of the feature extractor.
        sha256: Checksum of its weights; 12 digits at least.
        samples: Number of samples scored, on which the bias of most metrics depends.
        reference: Description of what the samples were compared with.
        reference_sha256: Checksum of those images; None if not recorded.
        training_sha256: Checksum of the training images for the nearest training sample; None if there were none.
        neighbours: k of the k-nearest-neighbour balls of precision and recall.
    """

    extractor: str
    sha256: str
    samples: int
    reference: str
    reference_sha256: str | None = None
    training_sha256: str | None = None
    neighbours: int = 3

    @classmethod
    def of(cls, record: Mapping[str, Any], name: str = "the record") -> Conditions:
        """Read the conditions of a record, as ``proxflow evaluate --out`` and the studies write them.

        Raises:
            DataError: The record does not state them, so its scores cannot be compared.
        """
        match record:
            case {"extractor": str(extractor), "samples": int(samples), "reference": str(reference)}:
                extractor, _, digits = extractor.rpartition(" ")
                sha256 = record.get("extractor_sha256", digits)
                optional = {key: record.get(key) for key in ("reference_sha256", "training_sha256")}
                strings = all(value is None or isinstance(value, str) for value in optional.values())
                neighbours = record.get("neighbours", 3)
                if extractor and strings and isinstance(sha256, str) and len(sha256) >= _LEAST_DIGITS:
                    return cls(extractor, sha256, samples, reference, **optional, neighbours=neighbours)
        raise DataError(
            f"{name} does not state its extractor with a checksum, its number of samples and its reference, so its numbers "
            "cannot be compared; evaluate the samples again"
        )

    def differences(self, other: Conditions) -> dict[str, tuple[Any, Any]]:
        """Return the conditions that differ, with both values. A checksum that one side lacks is not compared."""
        found = {}
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name.endswith("sha256"):
                if mine is None or theirs is None:
                    continue
                digits = min(len(mine), len(theirs))
                if mine[:digits] == theirs[:digits]:
                    continue
                found[name] = (mine[:_LEAST_DIGITS], theirs[:_LEAST_DIGITS])
            elif mine != theirs:
                found[name] = (mine, theirs)
        return found


def check_comparable(conditions: Mapping[str, Conditions]) -> None:
    """Refuse results that were not measured under the same conditions.

    Args:
        conditions: Conditions by name of the result.

    Raises:
        ArgumentError: Two results differ; the message names them and the conditions.
    """
    (first, expected), *others = conditions.items()
    for name, found in others:
        differences = expected.differences(found)
        if differences:
            told = "; ".join(f"{what}: {mine} and {theirs}" for what, (mine, theirs) in differences.items())
            raise ArgumentError(
                f"{first} and {name} cannot stand in one table, because they were not measured alike: {told}. Evaluate both "
                "under the same conditions"
            )
