"""Emoji: 3,926 colour pictures of Google's Noto font, 32 × 32 on white, with their groups, embedded in the package.

Authors: Google Inc. and the authors of Noto Emoji; SIL Open Font License 1.1, see ``files/LICENSE-emoji`` beside the
data. ``tools/emoji.py`` makes them from Debian's packages ``fonts-noto-color-emoji`` and ``unicode-data``. 3,916 are
distinct.

A tenth of the emoji are test images: skin tones and genders of one emoji, and identical pictures, are in the same
split.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxflow.data.idx import Split
from proxflow.data.images import ImageData
from proxflow.errors import DataError

_FILES = Path(__file__).parent / "files"

SHA256 = {
    "emoji-32.xz": "4669457f27e6011c32636dd37d3048d55411bfb6b83bb9fcb26fcb83718a7dcf",
    "emoji.json": "7276e59b1e66777472ff516cb5f35775f9ce65943b05a309361194175670a1f8",
}
"""Checksums of the bytes of the pictures, (number, 32, 32, 3), and of their metadata."""

CLASSES = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places"),
    *("Activities", "Objects", "Symbols", "Flags"),
)
"""Unicode's groups, the classes 0 to 8."""


def load_emoji(split: Split, folder: Path = _FILES) -> ImageData:
    """Read a split of the emoji: images (N, 3, 32, 32) and labels 0 to 8.

    Raises:
        DataError: A file is missing, damaged or not the package's.
    """
    images, told = _content(folder)
    held_out = torch.zeros(len(images), dtype=torch.bool)
    held_out[told["held_out"]] = True
    wanted = held_out if split == "test" else ~held_out
    return ImageData("emoji", images[wanted], torch.tensor(told["labels"])[wanted])


def code_points(split: Split, folder: Path = _FILES) -> list[str]:
    """Return the code points of each emoji of a split, as "1F44B-1F3FD", in the order of :func:`load_emoji`."""
    told = _content(folder)[1]
    held_out, wanted = set(told["held_out"]), split == "test"
    return [codes for k, codes in enumerate(told["code_points"]) if (k in held_out) is wanted]


@cache
def _content(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    try:
        pixels = lzma.decompress((folder / "emoji-32.xz").read_bytes())
        text = (folder / "emoji.json").read_bytes()
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"{folder}: the emoji cannot be read ({error}); expected the package's own files") from error
    for name, data in (("emoji-32.xz", pixels), ("emoji.json", text)):
        if (found := hashlib.sha256(data).hexdigest()) != SHA256[name]:
            raise DataError(f"{folder / name}: its content has the sha256 {found}, expected {SHA256[name]}")
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(-1, 32, 32, 3)
    return images.permute(0, 3, 1, 2).contiguous(), json.loads(text)
