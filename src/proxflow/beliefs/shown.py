"""Display of beliefs in notebooks: a table of parameters, and small pictures of the first examples."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from proxflow.beliefs.base import Belief

_EXAMPLES, _POINTS = 6, 64
"""Most examples to draw, and most coordinates of one."""


def as_html(belief: Belief) -> str:
    """Return HTML: the family, each parameter's shape, type and range, and small pictures of the first examples."""
    lines = []
    for name, tensor in belief.tensors().items():
        values = tensor.detach()
        numbers = values[values.isfinite()].double() if values.numel() else values
        spread = f"{numbers.min():.4g} to {numbers.max():.4g}, mean {numbers.mean():.4g}" if numbers.numel() else "–"
        kind = str(values.dtype).removeprefix("torch.")
        cells = (name.removeprefix("_"), " × ".join(map(str, values.shape)), f"{kind}, {values.device}", spread)
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    table = f"<table><tr><th>parameter</th><th>shape</th><th>type</th><th>range</th></tr>{''.join(lines)}</table>"
    return f"<b>{type(belief).__name__}</b>, {belief.batch_size} examples{table}{_pictures(belief)}"


def _pictures(belief: Belief) -> str:
    mean = belief.mean[:_EXAMPLES].detach().double().cpu().nan_to_num(0, 0, 0)
    if mean.ndim == 4 and mean.shape[1] in (1, 3) and min(mean.shape[2:]) > 1:
        return " ".join(map(_picture, mean))
    return " ".join(_line(values.flatten()[:_POINTS]) for values in mean if values.numel())


def _picture(levels: Tensor) -> str:
    """Return an image of levels in [−1, 1], (1 or 3, height, width), at twice its size."""
    pixels = ((levels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    data = base64.b64encode(file).decode()
    style = f"width:{2 * width}px;height:{2 * height}px;image-rendering:pixelated;display:inline-block"
    return f'<img alt="mean of one example" style="{style}" src="data:image/png;base64,{data}">'


def _line(values: Tensor) -> str:
    """Return a bar chart of numbers, up or down from a line at 0, in the colour of the text."""
    most = float(values.abs().max()) or 1.0
    width = max(2, math.floor(160 / len(values)))
    up, down = (40.0 if bool((side > 0).any()) else 0.0 for side in (values, -values))
    bars = []
    for k, value in enumerate(values.tolist()):
        height = abs(value) / most * 40
        top = up - height if value > 0 else up
        bars.append(f'<rect x="{k * width}" y="{top:.1f}" width="{width - 1}" height="{max(height, 0.5):.1f}"/>')
    size = f'width="{len(values) * width}" height="{up + down + 1:.0f}"'
    return f'<svg {size} fill="currentColor" role="img" aria-label="mean of one example">{"".join(bars)}</svg>'
