"""Pictures that are read as needed: from folders, prepared caches, tar files and Hugging Face data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from proxflow.data.left_out import LeftOut
from proxflow.data.pictures import Survey
from proxflow.runtime import escape
from proxflow.runtime.files import open_plain


class Pictures(Dataset[Tensor | tuple[Tensor, int]], ABC):
    """Pictures of one shape, a map-style data set of (picture, class), or of pictures if there are no classes.

    Args:
        shape: (channels, height, width).
        number: Number of pictures.
        labels: The class of each, −1 without one, int64 (number,); ``None`` if none has one.
        classes: Names of the classes.
        content: Identity of the data.
        levels: Rules that converted levels to bytes.
        scaling: Description of the scaling.
        left_out: What was not read.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        number: int,
        labels: Tensor | None,
        classes: tuple[str, ...],
        content: str,
        *,
        levels: tuple[str, ...] = (),
        scaling: str = "",
        left_out: LeftOut | None = None,
    ) -> None:
        self.shape, self.number, self.content = shape, number, f"{content}, shape {list(shape)}"
        self.labels, self.classes = labels, tuple(map(escape.terminal, classes))
        self.levels, self.scaling, self.left_out = levels, scaling, left_out or LeftOut()

    def __len__(self) -> int:
        return self.number

    @abstractmethod
    def picture(self, index: int) -> Tensor:
        """Read a picture: uint8 (channels, height, width).

        Raises:
            DataError: It cannot be read; the message names it.
        """

    def files(self, places: range) -> list[Path]:
        """Return the files that hold some of the pictures, whose times show changes; empty if ``content`` shows them."""
        return []

    def checksum(self, index: int) -> bytes:
        """Return the SHA-256 of a picture's stored content in :meth:`files`; empty if it cannot be read."""
        return b""

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        picture = self.picture(index)
        return picture if self.labels is None else (picture, int(self.labels[index]))


class Folder(Pictures):
    """The pictures of a folder and its subfolders, see :func:`proxflow.data.pictures.survey`."""

    def __init__(self, survey: Survey) -> None:
        told = survey.classes()
        digest = hashlib.sha256()
        for path in survey.paths:
            digest.update(
                f"{path.relative_to(survey.folder)}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape")
            )
        super().__init__(
            survey.shape,
            len(survey.paths),
            None if told is None else torch.tensor(told[0]),
            () if told is None else told[1],
            f"{len(survey.paths)} files, names and sizes of sha256 {digest.hexdigest()}",
            levels=tuple(survey.levels),
            scaling=survey.scaling,
            left_out=survey.left_out,
        )
        self.survey = survey

    def picture(self, index: int) -> Tensor:
        return self.survey.picture(index)

    def files(self, places: range) -> list[Path]:
        return list(self.survey.paths[places.start : places.stop])

    def checksum(self, index: int) -> bytes:
        try:
            with open_plain(self.survey.paths[index]) as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return b""
