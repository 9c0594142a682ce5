"""Images with their classes as files: an array with labels, or a picture with a row for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from proxflow.data import image_files
from proxflow.data.image_files import GAP
from proxflow.runtime.files import write_atomically

Array = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

_GROUND, _INK, _LETTERS, _LONGEST = (96, 96, 96), (255, 255, 255), 12, 24


def write(path: Path, images: Array, labels: Labels, names: Sequence[str]) -> None:
    """Write images (number, height, width, channels) with their labels (number,) in the format of the path's suffix.

    An array (.npz) has the key ``labels`` beside ``images``; a picture (.png) a row for each class, labelled with its
    name; a folder only has the images, in order.

    Raises:
        OutputError: The path cannot be written.
    """
    ending = path.suffix.lower()
    if ending == ".npz":
        write_atomically(path, lambda temporary: _write_array(temporary, images, labels))
    elif ending == ".png":
        image_files.write_png(path, rows(images, labels, names))
    else:
        image_files.write(path, images)


def _write_array(path: Path, images: Array, labels: Labels) -> None:
    with path.open("wb") as file:  # numpy would append a suffix to an upper-case name
        np.savez_compressed(file, images=images, labels=labels)


def rows(images: Array, labels: Labels, names: Sequence[str]) -> Image.Image:
    """Draw a row for each class, in the order of first occurrence, labelled with its name.

    A name with a character that no available font has is replaced by the number of its class.
    """
    found = list(dict.fromkeys(labels.tolist()))
    called = {label: lettered(names[label], label) for label in found}
    height, width = images.shape[1], images.shape[2]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max(round(measure.textlength(*called[label])) for label in found) + 2 * GAP
    most = max(int((labels == label).sum()) for label in found)
    line = max(height, _LETTERS + 2) + GAP
    canvas = Image.new("RGB", (margin + most * (width + GAP) + GAP, len(found) * line + GAP), _GROUND)
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(found):
        top = row * line + GAP
        text, font = called[label]
        draw.text((margin - GAP, top + height / 2), text, _INK, font, anchor="rm")
        for column, image in enumerate(images[labels == label]):
            shown = image[..., 0] if image.shape[-1] == 1 else image
            canvas.paste(Image.fromarray(shown), (margin + GAP + column * (width + GAP), top))
    return canvas


def lettered(name: str, label: int) -> tuple[str, Any]:
    """Return the label of a class in a picture, and a font that has all its characters."""
    text = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    plain = ImageFont.load_default(_LETTERS)
    if _has(plain, text):
        return text, plain
    from matplotlib import get_data_path

    wider = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _LETTERS)
    return (text, wider) if _has(wider, text) else (str(label), plain)


def _has(font: Any, text: str) -> bool:
    """Return whether a font has all characters of a text: it draws the same box for each that it lacks."""

    def drawn(letter: str) -> tuple[Any, bytes]:
        mask = font.getmask(letter)
        return mask.size, bytes(mask)

    lacking = drawn("\uffff")
    return all(drawn(letter) != lacking for letter in set(text))
