"""Data sets of the Hugging Face library ``datasets``: Arrow files, mapped into memory, parquet files, and the Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxflow.data.left_out import LeftOut
from proxflow.data.pictures import check_size, common_sides, fitted, header, opened
from proxflow.data.stored import Pictures
from proxflow.errors import ArgumentError, DataError

PREFIXES = ("arrow:", "hub:")
_PICTURES, _LABELS = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "fine_label", "class", "cls")
_LOOKED_AT = 256


def load(source: str) -> Any:
    """Return the training split of ``arrow:PATH``, a folder of save_to_disk or of parquet files, or of ``hub:OWNER/NAME``.

    Raises:
        ArgumentError: The library ``datasets`` is not installed.
        DataError: There is no such data set, or it cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ArgumentError(
            f'{source} needs the library datasets: pip install "proxflow[datasets]", or give the files\' pictures'
        ) from error
    prefix, _, rest = source.partition(":")
    try:
        if prefix == "hub":
            found = datasets.load_dataset(rest, split="train")
        elif Path(rest).is_dir() and not list(Path(rest).glob("**/*.parquet")):
            found = datasets.load_from_disk(rest)
        else:
            path = Path(rest)
            files = sorted(map(str, path.glob("**/*.parquet"))) if path.is_dir() else [rest]
            found = datasets.load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: cannot be read as a data set ({reason})") from error
    return found["train"] if isinstance(found, dict) and "train" in found else found


class Arrow(Pictures):
    """The pictures of such a data set, or of anything with its ``features``, columns and rows.

    Args:
        dataset: The data set.
        called: Its name, for messages.
        size: Side of the squares that pictures are scaled to and cut to; ``None`` for their medians, at most 64, of some.

    Raises:
        ArgumentError: The size is out of range.
        DataError: No column holds pictures.
    """

    def __init__(self, dataset: Any, called: str, size: int | None = None) -> None:
        check_size(size)
        features, number, left_out = dict(dataset.features), len(dataset), LeftOut()
        pictured = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        pictured = pictured or [name for name in _PICTURES if name in features]
        if not pictured or not number:
            raise DataError(
                f"{called}: no column holds pictures; expected one of type Image, found {', '.join(features)}"
            )
        self.column, self.called = pictured[0], called
        try:
            import datasets

            dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        except (ImportError, AttributeError):
            pass  # what is no data set of that library gives bytes already
        self.dataset = dataset
        labelled = next((name for name in _LABELS if name in features), None)
        labels, classes = (None, ()) if labelled is None else _labels(dataset, labelled, features[labelled], left_out)
        self.shape, seen = (3, 1, 1), []
        for k in torch.linspace(0, number - 1, min(_LOOKED_AT, number)).long().tolist():
            try:
                with opened(self.name(k), self._bytes(k)) as picture:
                    seen.append(header(picture))
            except DataError as error:
                left_out.add("pictures whose header cannot be read", error)
        if not seen:
            raise DataError(f"{called}: no picture can be read; left out: {left_out.text}")
        height, width = common_sides([sides for sides, _ in seen], size)
        channels = 1 if all(grey for _, grey in seen) else 3
        mark = getattr(dataset, "_fingerprint", None) or hashlib.sha256(self._bytes(0)).hexdigest()
        super().__init__(
            (channels, height, width), number, labels, classes, f"{called}, {number} rows, {mark}",
            scaling=f", scaled and cut to {height} x {width}", left_out=left_out,
        )  # fmt: skip

    def name(self, index: int) -> str:
        """Return the name of a picture, for messages."""
        return f"{self.called}, row {index}"

    def _bytes(self, index: int) -> bytes:
        try:
            found = self.dataset[index][self.column]
            data = found.get("bytes") if isinstance(found, dict) else found
            if data is None and isinstance(found, dict) and found.get("path"):
                data = Path(found["path"]).read_bytes()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.name(index)}: cannot be read ({error})") from error
        if not isinstance(data, bytes):
            raise DataError(
                f"{self.name(index)}: the column {self.column} holds no picture, but {type(found).__name__}"
            )
        return data

    def picture(self, index: int) -> Tensor:
        with opened(self.name(index), self._bytes(index)) as picture:
            return fitted(picture, self.shape, self.name(index), None, None)


def _labels(dataset: Any, column: str, feature: Any, left_out: LeftOut) -> tuple[Tensor | None, tuple[str, ...]]:
    told = list(dataset[column])
    names: list[str] = list(getattr(feature, "names", None) or [])
    if lacking := sum(label is None or label == -1 for label in told):
        left_out.add("labels that are missing", "trained on without a class", lacking)
    if not names:
        known = sorted({label for label in told if label is not None and label != -1})
        names, place = [str(label) for label in known], {label: k for k, label in enumerate(known)}
        told = [place.get(label, -1) for label in told]
    numbers = np.array([-1 if label is None else int(label) for label in told], np.int64)
    return torch.from_numpy(numbers), tuple(names)
