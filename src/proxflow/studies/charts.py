"""Figures of the studies: charts of scores, labelled grids of samples and beliefs.

Grids are assembled pixel by pixel, each image pixel a square of whole pixels, so that nothing is blurred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from proxflow.data.image_files import write_png
from proxflow.data.pictures import GRID
from proxflow.runtime.files import write_atomically
from proxflow.studies.pages import Picture
from proxflow.studies.scoreboard import Scoreboard, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Images = np.ndarray[Any, np.dtype[np.uint8]]
"""Images of bytes, grey (N, H, W) or in colour (N, H, W, 3), or one of them."""

# Line and marker, in open and filled shapes of different size, so that coinciding lines are both visible.
_LOOKS: tuple[dict[str, Any], ...] = (
    {"linestyle": "-", "marker": "o", "markersize": 5},
    {"linestyle": "--", "marker": "s", "markersize": 9, "markerfacecolor": "none"},
    {"linestyle": ":", "marker": "^", "markersize": 7},
    {"linestyle": "-.", "marker": "D", "markersize": 6, "markerfacecolor": "none"},
    {"linestyle": (0, (3, 1, 1, 1)), "marker": "P", "markersize": 8},
    {"linestyle": (0, (1, 1)), "marker": "p", "markersize": 7, "markerfacecolor": "none"},
    {"linestyle": (0, (8, 2)), "marker": "h", "markersize": 7, "markerfacecolor": "none"},
    {"linestyle": (0, (1, 3)), "marker": "v", "markersize": 6},
    {"linestyle": (0, (5, 1)), "marker": "<", "markersize": 6},
    {"linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "X", "markersize": 6},
    {"linestyle": (0, (8, 2, 1, 2)), "marker": "*", "markersize": 8},
)
_FLOOR = (0, (6, 3))

_BETWEEN = 96
"""Grey of the lines between images; visible against black and mid-grey."""


@dataclass(frozen=True)
class Line:
    """One line of the chart.

    Args:
        colour: Key of its colour, for the legend.
        style: Key of its style, for the legend.
        points: Scores over the seeds by NFE or another cost, ascending.
    """

    colour: str
    style: str
    points: Mapping[int, Summary] | Mapping[float, Summary]


def lines_of(board: Scoreboard) -> list[Line]:
    """Return a line of Fréchet distances for each trial and sampler."""
    return [Line(*row, board.points(*row)) for row in board.rows]


@contextmanager
def _written(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure, and write it as PNG when the block ends."""
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"), matplotlib.rc_context({"font.size": 12.0}):
        figure = Figure(figsize=(width, height), dpi=140)
        FigureCanvasAgg(figure)
        yield figure
        write_atomically(path, lambda temporary: figure.savefig(temporary, metadata={"Software": GRID}))


def _tidy(axes: Axes) -> None:
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_chart(
    path: Path,
    lines: Sequence[Line],
    floor: Summary,
    title: str,
    colours: Mapping[str, str],
    shown: str,
    caption: str,
    *,
    styles: Sequence[str] = (),
    headings: tuple[str, str] = ("Flow", "Sampler"),
    label: str = "network evaluations for each sample (NFE)",
) -> Picture:
    """Write the chart of Fréchet distance against NFE or another cost, both logarithmic, as PNG; return the picture.

    Args:
        path: The file.
        lines: The lines; with several seeds a band shows lowest and highest.
        floor: Distance of real images.
        title: Heading.
        colours: Colours of the lines, by their ``colour``.
        shown: Alternative text.
        caption: Text below it.
        styles: Values of ``style`` with fixed line styles in every chart, solid first.
        headings: Headings of the two legends, of colours and of styles.
        label: Label of the horizontal axis.
    """
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    looks = dict(zip(dict.fromkeys([*styles, *(line.style for line in lines)]), cycle(_LOOKS), strict=False))
    with _written(path, 10, 6) as figure:
        # Fixed axes leave the right side for the legend, whatever the numbers.
        axes = figure.add_axes((0.085, 0.115, 0.675, 0.8))
        axes.set(xscale="log", yscale="log", title=title)
        axes.set_xlabel(label)
        axes.set_ylabel("Fréchet distance (lower is better)")
        for line in lines:
            costs, scores, colour = list(line.points), list(line.points.values()), colours[line.colour]
            axes.plot(costs, [score.mean for score in scores], color=colour, linewidth=1.8, **looks[line.style])
            lows, highs = [score.low for score in scores], [score.high for score in scores]
            if lows != highs:
                axes.fill_between(costs, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(floor.mean, color="black", linestyle=_FLOOR, linewidth=1.2)
        if floor.low != floor.high:
            axes.axhspan(floor.low, floor.high, color="black", alpha=0.1, linewidth=0)
        places = sorted({place for line in lines for place in line.points})
        whole = all(float(place).is_integer() for place in places)
        axes.xaxis.set_major_locator(FixedLocator(places) if whole else LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())
        _tidy(axes)

        by_colour = [
            Line2D([], [], color=colours[name], linewidth=5, label=name)
            for name in dict.fromkeys(line.colour for line in lines)
        ]
        by_style = [
            Line2D([], [], color="0.25", label=name, **looks[name])
            for name in dict.fromkeys(line.style for line in lines)
        ]
        real = [Line2D([], [], color="black", linestyle=_FLOOR, linewidth=1.2, label="as many\nreal images")]
        entry = 0.052  # height of a legend line, relative to the axes
        second = min(0.6, 1.0 - entry * (len(by_colour) + 1.6))
        third = min(0.25, second - entry * (len(by_style) + 1.6))
        for heading, handles, height in (
            (headings[0], by_colour, 1.0),
            (headings[1], by_style, second),
            ("Floor", real, third),
        ):
            legend = Legend(
                axes,
                handles,
                [str(handle.get_label()) for handle in handles],
                title=heading,
                title_fontproperties={"weight": "bold"},
                loc="upper left",
                bbox_to_anchor=(1.02, height),
                frameon=False,
                alignment="left",
                handlelength=3.0,
            )
            axes.add_artist(legend)
    return Picture(path.name, shown, caption)


def write_paths(
    path: Path,
    paths: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    colours: Mapping[str, str],
    shown: str,
    caption: str,
) -> Picture:
    """Write the mean paths of flows over time, and the part that no schedule explains, as PNG; return the picture.

    ``paths`` are (times, fraction of the path, root mean square of the rest) by the flow's name, as are the colours.
    """
    with _written(path, 10, 4.4) as figure:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=colours["w2"], linewidth=1.2, linestyle=_FLOOR, label="w2")
        for k, (name, (times, fraction, rest)) in enumerate(paths.items()):
            # Of different width, so that coinciding lines are both visible.
            style: dict[str, Any] = {"color": colours[name], "linewidth": 4.5 - 0.7 * k, "alpha": 0.85}
            left.plot(times, fraction, label=name, **style)
            right.plot(times, rest, **style)
        left.set(title="how far the mean has gone", xlabel="time", ylabel="part of the way")
        right.set(title="what no schedule explains", xlabel="time", ylabel="part of the way, root mean square")
        for axes in (left, right):
            _tidy(axes)
        figure.tight_layout(rect=(0, 0, 0.85, 1))
        figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="center right")
    return Picture(path.name, shown, caption)


def write_tradeoffs(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, str]]]],
    real: tuple[float, float],
    colours: Mapping[str, str],
    shown: str,
    caption: str,
) -> Picture:
    """Write charts of Fréchet distance against recall beside each other, as PNG; return the picture.

    Args:
        path: The file.
        panels: Points by title of the chart and name of a line: recall, Fréchet distance, and a label.
        real: Recall and Fréchet distance of real images.
        colours: Colours of the lines, by their name.
        shown: Alternative text.
        caption: Text below it.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = dict(zip(names, cycle(_LOOKS), strict=False))
    with _written(path, 5.2 * len(panels), 6.4) as figure:
        places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, lines) in zip(places, panels.items(), strict=True):
            for name, points in lines.items():
                recalls, distances = [point[0] for point in points], [point[1] for point in points]
                axes.plot(recalls, distances, color=colours[name], label=name, linewidth=1.6, **looks[name])
                for recall, distance, word in points:
                    axes.annotate(word, (recall, distance), (5, 4), textcoords="offset points", fontsize=8, color="0.3")
            axes.plot(*real, color="black", marker="*", markersize=12, linestyle="none", label="as many real images")
            axes.set(yscale="log", title=title, xlabel="recall (higher is better)")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
            _tidy(axes)
        places[0].set_ylabel("Fréchet distance (lower is better)")
        found = dict(zip(*reversed(places[0].get_legend_handles_labels()), strict=True))
        for axes in places[1:]:
            found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        rows = -(-len(found) // 3)
        figure.tight_layout(rect=(0, 0.045 * rows + 0.02, 1, 1))
        figure.legend(list(found.values()), list(found), frameon=False, loc="lower center", ncols=3, handlelength=3.5)
    return Picture(path.name, shown, caption)


@dataclass(frozen=True)
class Row:
    """One row of a labelled grid.

    Args:
        label: Text to its left.
        tiles: An image for each column; ``None`` if there is none.
        apart: Whether it starts a group, separated from the row above.
    """

    label: str
    tiles: tuple[Images | None, ...]
    apart: bool = False


@dataclass(frozen=True)
class Section:
    """Rows under a line with a title and the labels of the columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def tile(images: Images, columns: int, size: int) -> Images:
    """Tile images (N, H, W) or (N, H, W, 3) in rows of ``columns``, with thin lines between them.

    Args:
        images: The images.
        columns: Images in a row.
        size: Width of one image in pixels, rounded to a multiple of its own.
    """
    count, height, width = images.shape[:3]
    scale = max(1, round(size / width))
    rows = -(-count // columns)
    whole = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *images.shape[3:]), _BETWEEN, np.uint8)
    for k, image in enumerate(images):
        top, left = k // columns * (height + 1), k % columns * (width + 1)
        whole[top : top + height, left : left + width] = image
    return whole.repeat(scale, axis=0).repeat(scale, axis=1)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib  # its font is always available, with all characters of the reports

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def labelled(sections: Sequence[Section], font_size: int) -> Image.Image:
    """Draw rows of images with titles and labels on white.

    Args:
        sections: What to show, from top to bottom.
        font_size: Height of the letters in pixels.

    Returns:
        A grey image (mode L), or one in colour (mode RGB) if one of them is.
    """
    plain, bold = _font(font_size, False), _font(font_size, True)
    margin, gap, line = font_size, max(2, font_size // 4), round(font_size * 1.9)
    labels = [(row.label, plain) for section in sections for row in section.rows]
    labels += [(section.title, bold) for section in sections]
    left = max(round(font.getlength(label)) for label, font in labels)
    left = left + 2 * margin if left else margin
    tiles = [t for section in sections for row in section.rows for t in row.tiles if t is not None]
    tile_height, tile_width = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    texts = [label for section in sections for label in section.columns]
    column = max([tile_width + gap, *(round(plain.getlength(text)) + margin for text in texts)])
    width = left + column * max(len(section.columns) for section in sections) + margin - gap
    rows = [row for section in sections for row in section.rows]
    height = len(sections) * (line + gap) + len(rows) * (tile_height + gap) + 2 * gap * sum(row.apart for row in rows)

    mode = "RGB" if any(t.ndim == 3 for t in tiles) else "L"
    image = Image.new(mode, (width, height + margin), "white")
    draw = ImageDraw.Draw(image)
    y = 0
    for section in sections:
        y += line
        draw.text((margin, y - gap), section.title, fill="black", font=bold, anchor="ls")
        for k, text in enumerate(section.columns):
            draw.text((left + k * column + tile_width // 2, y - gap), text, fill="black", font=plain, anchor="ms")
        y += gap
        for row in section.rows:
            y += 2 * gap * row.apart
            draw.text((margin, y + tile_height // 2), row.label, fill="black", font=plain, anchor="lm")
            for k, image_tile in enumerate(row.tiles):
                x = left + k * column
                if image_tile is None:
                    draw.text((x + tile_width // 2, y + tile_height // 2), "–", fill="gray", font=plain, anchor="mm")
                else:
                    image.paste(Image.fromarray(image_tile), (x, y))
            y += tile_height + gap
    return image


def write_grids(path: Path, sections: Sequence[Section], font_size: int, shown: str, caption: str) -> Picture:
    """Write :func:`labelled` rows of images as PNG; return the picture with alternative text and caption."""
    image = labelled(sections, font_size)
    write_png(path, image)
    return Picture(path.name, shown, caption)


def write_animation(path: Path, frames: Sequence[Image.Image], milliseconds: int, pause: int) -> None:
    """Write grey pictures of one size as an endless GIF.

    Args:
        path: The file.
        frames: The pictures (mode L); equal successive ones would be merged.
        milliseconds: Duration of a frame.
        pause: Duration of the last one.
    """
    # Sixteen greys are enough for digits and noise, and halve the file.
    palette = [17 * level for level in range(16) for _ in range(3)]
    reduced = []
    for frame in frames:
        levels = Image.fromarray(((np.asarray(frame, np.uint16) + 8) // 17).astype(np.uint8))
        levels.putpalette(palette)
        reduced.append(levels)
    durations = [milliseconds] * (len(frames) - 1) + [pause]
    write_atomically(
        path,
        lambda temporary: reduced[0].save(
            temporary, save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=False
        ),
    )
