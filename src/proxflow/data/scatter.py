"""Plots of numbers, drawn with Pillow: a scatter plot of two columns, a histogram of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Picture = np.ndarray[Any, np.dtype[np.uint8]]

_SIDE, _FINER = 640, 3
"""Side of a plot in pixels, and its supersampling factor for smooth edges."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 20, 20, 68
_INK, _GRID, _POINT = (60, 60, 60), (228, 228, 228), (31, 94, 168)


def scatter(points: Numbers, titles: Sequence[str]) -> Picture:
    """Draw points (number, 2) with their columns' titles: uint8 (height, width, 3).

    Points that are not finite are left out.
    """
    points = points[np.isfinite(points).all(1)]
    plot = _Plot(points[:, 0], points[:, 1], titles)
    # Few points are large and dark, many small and faint, so that dense regions are visible.
    number = max(1, len(points))
    radius = min(4.5, max(1.4, 40 / math.sqrt(number))) * _FINER
    colour = (*_POINT, round(255 * min(0.9, max(0.25, 30 / math.sqrt(number)))))
    for x, y in zip(plot.across(points[:, 0]).tolist(), plot.up(points[:, 1]).tolist(), strict=True):
        plot.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return plot.finish()


def histogram(values: Numbers, title: str) -> Picture:
    """Draw a histogram of values (number,) with their title: uint8 (height, width, 3).

    Values that are not finite are left out.
    """
    values = values[np.isfinite(values)]
    spread = _limits(values)
    counts, edges = np.histogram(values, bins=min(60, max(5, round(math.sqrt(len(values))))), range=spread)
    plot = _Plot(np.array(spread), np.array([0.0, counts.max(initial=1)]), (title, "number"), floor=True)
    across, up = plot.across(edges).tolist(), plot.up(counts.astype(np.float64)).tolist()
    for left, right, top in zip(across[:-1], across[1:], up, strict=True):
        bottom = (_SIDE - _BOTTOM) * _FINER
        if top < bottom:
            plot.draw.rectangle((left, top, right - _FINER, bottom), fill=_POINT)
    return plot.finish()


def _limits(values: Numbers) -> tuple[float, float]:
    """Return the range of values, or a range around a single value."""
    least, most = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if least == most:
        room = abs(least) / 2 or 1.0
        return least - room, most + room
    return least, most


def _ticks(least: float, most: float) -> list[float]:
    """Return about five round numbers from least to most: multiples of 1, 2 or 5 times a power of ten."""
    rough = (most - least) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))
    return [k * step for k in range(math.ceil(least / step - 1e-9), math.floor(most / step + 1e-9) + 1)]


class _Plot:
    """Axes with ticks and titles, and the map from numbers to pixels."""

    def __init__(self, x: Numbers, y: Numbers, titles: Sequence[str], *, floor: bool = False) -> None:
        self.image = Image.new("RGB", (_SIDE * _FINER, _SIDE * _FINER), "white")
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self.titles = titles
        self.x, self.y = (
            (least - 0.04 * (most - least) * (not sits), most + 0.04 * (most - least))
            for (least, most), sits in ((_limits(x), False), (_limits(y), floor))
        )
        small = ImageFont.load_default(15 * _FINER)
        left, right = _LEFT * _FINER, (_SIDE - _RIGHT) * _FINER
        top, bottom = _TOP * _FINER, (_SIDE - _BOTTOM) * _FINER
        for place, number in zip(self.across(np.array(_ticks(*self.x))), _labels(_ticks(*self.x)), strict=True):
            self.draw.line((place, top, place, bottom), _GRID, _FINER)
            self.draw.text((place, bottom + 8 * _FINER), number, _INK, small, anchor="mt")
        for place, number in zip(self.up(np.array(_ticks(*self.y))), _labels(_ticks(*self.y)), strict=True):
            self.draw.line((left, place, right, place), _GRID, _FINER)
            self.draw.text((left - 8 * _FINER, place), number, _INK, small, anchor="rm")
        self.draw.line((left, top, left, bottom, right, bottom), _INK, 2 * _FINER)

    def across(self, x: Numbers) -> Numbers:
        """Return the horizontal positions of numbers, in pixels."""
        width = (_SIDE - _LEFT - _RIGHT) * _FINER
        return _LEFT * _FINER + (x - self.x[0]) / (self.x[1] - self.x[0]) * width

    def up(self, y: Numbers) -> Numbers:
        """Return the vertical positions of numbers, in pixels from the top."""
        height = (_SIDE - _TOP - _BOTTOM) * _FINER
        return (_SIDE - _BOTTOM) * _FINER - (y - self.y[0]) / (self.y[1] - self.y[0]) * height

    def finish(self) -> Picture:
        """Write the titles and return the plot at its size."""
        font = ImageFont.load_default(17 * _FINER)
        for title, turned in zip((_short(title) for title in self.titles), (False, True), strict=True):
            box = self.draw.textbbox((0, 0), title, font)
            label = Image.new("RGB", (int(box[2]) + 2, int(box[3]) + 8), "white")
            ImageDraw.Draw(label).text((0, 0), title, _INK, font)
            if turned:
                label = label.transpose(Image.Transpose.ROTATE_90)
                middle = (_TOP + _SIDE - _BOTTOM) * _FINER // 2
                self.image.paste(label, (6 * _FINER, middle - label.height // 2))
            else:
                middle = (_LEFT + _SIDE - _RIGHT) * _FINER // 2
                self.image.paste(label, (middle - label.width // 2, (_SIDE - 32) * _FINER))
        return np.asarray(self.image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))


def _labels(ticks: Sequence[float]) -> list[str]:
    """Format numbers with enough digits to distinguish them: plain, or with a power of ten if that is shorter."""
    step, most = (ticks[1] - ticks[0], max(map(abs, ticks))) if len(ticks) > 1 else (1.0, 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if most < 1e6 and decimals <= 6:
        return [f"{tick + 0.0:.{decimals}f}" for tick in ticks]
    return [f"{tick:.{max(0, math.floor(math.log10(most)) + 1 + decimals)}g}" if tick else "0" for tick in ticks]


def _short(title: str) -> str:
    return title if len(title) <= 48 else title[:47] + "…"
