"""Data sets of the Hugging Face library ``datasets``: memory-mapped Arrow files, parquet files, and the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxflow.data.left_out import LeftOut
from proxflow.data.pictures import check_size, common_sides, fitted, header, holds_pictures, opened
from proxflow.data.stored import Pictures
from proxflow.errors import ArgumentError, DataError

PREFIXES = ("arrow:", "hub:")
_PICTURES, _LABELS = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "fine_label", "class", "cls")
_LOOKED_AT = 256
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of ``save_to_disk``."""
_NO_NETWORK = {
    "ConnectError", "ConnectTimeout", "ConnectionError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "gaierror",
}  # fmt: skip
"""Errors of underlying libraries, not all of them installed, when the Hub cannot be reached."""
_OTHER_SPLITS = {"test", "testing", "eval", "evaluation", "validation", "valid", "dev", "val"}
"""Words in file and folder names by which the library recognises splits other than training."""
_WORD = re.compile(r"[^-._ 0-9/\\]+")
_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def load(source: str, left_out: LeftOut) -> Any:
    """Return the training split of ``arrow:PATH``, or of ``hub:OWNER/NAME``.

    A path is a folder of save_to_disk, a folder of parquet files, whose names mark test splits as on the Hub, or one
    parquet file.

    Args:
        source: The string.
        left_out: Records other splits.

    Raises:
        ArgumentError: The library ``datasets`` is not installed.
        DataError: There is no such data set, it has no training split, or it cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ArgumentError(
            f'{source} needs the library datasets: pip install "proxflow[datasets]", or give the files\' pictures'
        ) from error
    prefix, _, rest = source.partition(":")
    path = Path(rest)
    if prefix == "hub" and (_ON_THE_HUB.fullmatch(rest) is None or path.exists()):
        here = f"; for what is in the folder here give arrow:{rest}" if rest and path.exists() else ""
        raise DataError(f"{source}: is not read from the Hub; expected hub:OWNER/NAME{here}")
    if prefix == "arrow" and not (rest and path.exists()):
        raise DataError(f"{source}: does not exist; expected a folder of save_to_disk or of parquet files")
    saved = any((path / name).exists() for name in _SAVED)
    if prefix == "arrow" and path.is_dir() and not (saved or any(path.glob("**/*.parquet"))):
        way = f": give --data {rest}, as it holds pictures" if holds_pictures(path) else ""
        raise DataError(f"{source}: cannot be read as a data set, as it has neither {_SAVED[0]} nor parquet files{way}")
    try:
        with _quiet_unless_watched(datasets):
            if prefix == "hub":
                found = datasets.load_dataset(rest)
            elif files := _training_files(path, source, left_out):
                found = datasets.load_dataset("parquet", data_files=files, split="train")
            else:
                found = datasets.load_from_disk(rest)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        if prefix == "hub" and _unreachable(error):
            raise DataError(
                f"{source}: the Hub cannot be reached: download the data set where there is a network, and give arrow:PATH"
            ) from error
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"{source}: cannot be read as a data set, or is an empty one ({reason})") from error
    if not isinstance(found, dict):
        return found
    if "train" not in found:
        way = f": give {source.rstrip('/')}/{next(iter(found))} to train on it" if found and prefix == "arrow" else ""
        raise DataError(f"{source}: has the splits {', '.join(found):.200}; expected one named train{way}")
    for name, split in found.items():
        if name != "train":
            left_out.add("rows of other splits", name, len(split))
    return found["train"]


def _unreachable(error: BaseException | None) -> bool:
    """Return whether an error is due to a missing network, by the names of its causes."""
    while error is not None:
        if type(error).__name__ in _NO_NETWORK:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _quiet_unless_watched(datasets: Any) -> Iterator[None]:
    """Keep the library's progress bars out of logs: it draws them even without a terminal."""
    silenced = not sys.stderr.isatty() and not datasets.utils.are_progress_bars_disabled()
    if silenced:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            datasets.enable_progress_bars()


def _training_files(path: Path, source: str, left_out: LeftOut) -> list[str]:
    """Return the training files of a path: a parquet file itself, or those of a folder that are not of another split.

    Raises:
        DataError: All of them are of other splits.
    """
    if not path.is_dir():
        return [str(path)]
    found = sorted(path.glob("**/*.parquet"))
    train = [file for file in found if not _OTHER_SPLITS & set(_WORD.findall(str(file.relative_to(path)).lower()))]
    for file in found:
        if file not in train:
            left_out.add("files of other splits", file.relative_to(path))
    if found and not train:
        raise DataError(f"{source}: holds files of other splits alone, as {found[0].name}; expected some to train on")
    return list(map(str, train))


class Arrow(Pictures):
    """The pictures of such a data set, or of any object with its ``features``, columns and rows.

    They are the first column of type Image, of files as bytes, or with a name for images. Classes are the first column
    with a name for labels, as "label", or of type ClassLabel.

    Args:
        dataset: The data set.
        called: Its name, for messages.
        size: Side of the squares that pictures are scaled and cropped to; ``None`` for their medians, at most 64, of
            some.
        left_out: What was left out so far.

    Raises:
        ArgumentError: The size is out of range.
        DataError: No column holds pictures, none of those tried can be read, or a class is invalid for its column.
    """

    def __init__(self, dataset: Any, called: str, size: int | None = None, left_out: LeftOut | None = None) -> None:
        check_size(size)
        features, number, left_out = dict(dataset.features), len(dataset), left_out or LeftOut()
        if not number:
            raise DataError(f"{called}: has no rows; expected pictures")
        pictured = [name for name, feature in features.items() if _holds_files(feature)]
        pictured = pictured or [name for name in _PICTURES if name in features]
        if not pictured:
            raise DataError(
                f"{called}: no column holds pictures; expected one of type Image, found {', '.join(features)}"
            )
        self.column, self.called = pictured[0], called
        for name in pictured[1:]:
            left_out.add("further columns of pictures", name)
        try:
            import datasets

            dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        except (ImportError, AttributeError):
            pass  # other objects return bytes already
        except (ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{called}: the column {self.column} holds no pictures ({reason})") from error
        self.dataset = dataset
        labels, classes = _labels(dataset, called, features, left_out)
        self.shape, seen = (3, 1, 1), []
        looked_at = torch.linspace(0, number - 1, min(_LOOKED_AT, number)).long().tolist()
        for k in looked_at:
            if (found := self._header(k, left_out)) is not None:
                seen.append(found)
        if not seen:
            raise DataError(f"{called}: no picture can be read; left out: {left_out.text}")
        height, width = common_sides([sides for sides, _ in seen], size)
        # One in colour makes all of them colour; the others need not be read.
        rest = (self._header(k) for k in range(number)) if number > len(looked_at) else ()
        grey = all(grey for _, grey in seen) and all(found[1] for found in rest if found is not None)
        alike = {sides for sides, _ in seen} == {(height, width)}
        scaling = "" if alike else f", scaled and cut to {height} x {width}"
        mark = getattr(dataset, "_fingerprint", None) or hashlib.sha256(self._bytes(0)).hexdigest()
        super().__init__(
            (1 if grey else 3, height, width), number, labels, classes, f"{called}, {number} rows, {mark}",
            scaling=scaling, left_out=left_out,
        )  # fmt: skip

    def _header(self, index: int, left_out: LeftOut | None = None) -> tuple[tuple[int, int], bool] | None:
        """Return height and width of a picture, and whether it is grey; ``None`` if it cannot be read."""
        try:
            with opened(self.name(index), self._bytes(index)) as picture:
                return header(picture)
        except DataError as error:
            if left_out is not None:
                left_out.add("pictures whose header cannot be read", error)
            return None

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
            what = "is empty" if found is None else f"holds no picture, but {type(found).__name__}"
            raise DataError(f"{self.name(index)}: the column {self.column} {what}")
        return data

    def picture(self, index: int) -> Tensor:
        with opened(self.name(index), self._bytes(index)) as picture:
            return fitted(picture, self.shape, self.name(index), None, None)


def _holds_files(feature: Any) -> bool:
    """Return whether a column is of pictures, or of files as in parquet: bytes and their path."""
    if type(feature).__name__ == "Image":
        return True
    return isinstance(feature, dict) and getattr(feature.get("bytes"), "dtype", "").endswith("binary")


def _labels(
    dataset: Any, called: str, features: dict[str, Any], left_out: LeftOut
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the class of each picture, −1 without one, and the names; ``None`` and no names if none has one."""
    coded = [name for name, feature in features.items() if hasattr(feature, "names")]
    column = ""
    for name in dict.fromkeys([*(name for name in _LABELS if name in features), *coded]):
        dtype = getattr(features[name], "dtype", "int64" if hasattr(features[name], "names") else "")
        if "int" in dtype or "string" in dtype or dtype == "bool":
            column = name
            break
        left_out.add("columns that say no single class", name)
    if not column:
        return None, ()
    for name in coded:
        if name != column:
            left_out.add("further columns of classes", f"{name}, as {column} is taken")
    told = list(dataset[column])
    names: list[str] = list(getattr(features[column], "names", None) or [])
    if lacking := sum(label is None or label == -1 for label in told):
        left_out.add("labels that are missing", "trained on without a class", lacking)
    if not names:
        known = sorted({label for label in told if label is not None and label != -1})
        names, place = [str(label) for label in known], {label: k for k, label in enumerate(known)}
        told = [place.get(label, -1) for label in told]
    numbers = np.array([-1 if label is None else int(label) for label in told], np.int64)
    if wrong := [number for number in numbers.tolist() if not -1 <= number < len(names)]:
        raise DataError(f"{called}: the column {column} has the class {wrong[0]}; expected one of {len(names)}")
    return (torch.from_numpy(numbers), tuple(names)) if names else (None, ())
