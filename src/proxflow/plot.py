"""Figures of beliefs, samples and scores: each function returns a figure that is displayed in a notebook.

Figures are matplotlib's, drawn without pyplot, so that no window opens and nothing is shown twice; ``savefig`` saves
them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proxflow.beliefs import Belief, Binned, Categorical, FullGaussian, GaussianMixture, Product, Revealed
from proxflow.data.kinds.vector import Vector
from proxflow.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from proxflow.models import Model
    from proxflow.samplers import Sampler

__all__ = ["belief", "calibration", "coverage", "grid", "quality", "trajectory"]

_MOST_BARS = 128
"""Most coordinates or classes of one example drawn as bars; more are drawn as a line or a heat map."""


def grid(samples: Any, *, columns: int | None = None, titles: Sequence[str] = ()) -> Figure:
    """Draw a grid of pictures.

    Args:
        samples: Pictures (number, channels, height, width) or (number, height, width), of 1 or 3 channels: bytes, as
            :meth:`proxflow.Model.sample` returns them, or real levels in [−1, 1], as networks read them.
        columns: Pictures per row; ``None`` makes the grid nearly square.
        titles: Titles of the pictures, or of the columns if there are as many.

    Raises:
        ArgumentError: The shape or the number of titles is wrong, or there is no picture.
    """
    images = _images(samples)
    number = len(images)
    columns = math.ceil(math.sqrt(number)) if columns is None else min(columns, number)
    if columns < 1:
        raise ArgumentError(f"a grid needs at least one column, got {columns}")
    if len(titles) not in (0, columns, number):
        raise ArgumentError(f"expected a title for each of {columns} columns or {number} pictures, got {len(titles)}")
    rows = math.ceil(number / columns)
    shape = images.shape[1] / images.shape[2]
    figure = _figure(0.9 * columns, (0.9 * shape + (0.22 if titles else 0)) * rows)
    for k, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, k + 1)
        _image(axes, image)
        if k < len(titles):
            axes.set_title(titles[k], fontsize=8)
    return figure


def trajectory(
    model: Model,
    number: int = 4,
    *,
    nfe: int = 20,
    columns: int = 8,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    condition: Any = None,
    **settings: Any,
) -> Figure:
    """Draw samples and show, at some of the evaluations, the belief's mean and the predicted target.

    Pictures take two rows per sample; of vectors the first two columns are shown as points, all samples together.

    Args:
        model: The model.
        number: Number of samples; for vectors some hundreds are useful.
        nfe: Predictions per sample.
        columns: Most evaluations to show, including the first and the last.
        sampler: As for :meth:`proxflow.Model.sample`.
        seed: Seed of the samples.
        condition: Condition, one row per sample.
        **settings: Keyword arguments of :meth:`proxflow.Model.sample`.

    Raises:
        ArgumentError: The data are neither pictures of 1 or 3 channels nor vectors of two columns or more; as
            :meth:`proxflow.Model.sample`.
    """
    shape = getattr(model, "shape", None)
    if shape is None:
        raise ArgumentError(f"expected a model, as proxflow.load returns it, got {type(model).__name__}")
    pictures = len(shape) == 3 and shape[0] in (1, 3)
    if not pictures and not (len(shape) == 1 and shape[0] >= 2 and isinstance(model.data, Vector)):
        raise ArgumentError(
            f"trajectories are drawn of pictures of 1 or 3 channels and of vectors of two columns or more, got "
            f"{model.data.examples_word} of shape {shape}"
        )
    seen: list[tuple[float, Tensor, Tensor]] = []

    def watch(t: float, belief: Belief, target: Belief) -> None:
        # A small batch is padded with further samples.
        seen.append((float(t), belief.mean[:number].cpu(), target.mean[:number].cpu()))

    model.sample(
        number, nfe=nfe, sampler=sampler, seed=seed, condition=condition, watch=watch, batch_size=number, **settings
    )
    shown = [seen[k] for k in _spread(len(seen), columns)]
    if pictures:
        figure = _figure(0.95 * len(shown) + 0.7, 0.95 * 2 * number * shape[1] / shape[2] + 0.2)
        for column, (t, *both) in enumerate(shown):
            for row in range(2 * number):
                axes = figure.add_subplot(2 * number, len(shown), row * len(shown) + column + 1)
                _image(axes, _images(model.data.decode(both[row % 2][row // 2 : row // 2 + 1]))[0])
                if row == 0:
                    axes.set_title(f"t = {t:.2f}", fontsize=8)
                if column == 0:
                    axes.set_ylabel(("belief", "target")[row % 2], fontsize=8)
        return figure
    figure = _figure(1.9 * len(shown) + 0.4, 4.2)
    first = None
    for column, (t, *both) in enumerate(shown):
        for row, means in enumerate(both):
            axes = figure.add_subplot(2, len(shown), row * len(shown) + column + 1, sharex=first, sharey=first)
            first = first or axes
            points = model.data.decode(means).double().numpy()
            axes.scatter(points[:, 0], points[:, 1], s=4, color=f"C{row}")
            axes.label_outer()
            if row == 0:
                axes.set_title(f"t = {t:.2f}", fontsize=9)
            if column == 0:
                axes.set_ylabel(("belief's mean", "target")[row], fontsize=9)
    return figure


def belief(belief: Belief, number: int = 4) -> Figure:
    """Draw the first beliefs of a batch, depending on family and event.

    A single number is drawn as its density; two as ellipses of one and two standard deviations, or contours; pictures
    as mean and standard deviation; longer vectors as their means with standard deviations; classes as bars of
    probability, or as a map of sites and classes; each part of a product in its own panel.

    Args:
        belief: The batch.
        number: Most examples to draw.

    Raises:
        ArgumentError: ``number`` is below 1, or the batch is empty.
    """
    if not isinstance(belief, Belief):
        raise ArgumentError(f"expected a belief, as proxflow.DiagonalGaussian(mean, std), got {type(belief).__name__}")
    if not all(
        bool(tensor.isfinite().all()) for name, tensor in belief.tensors().items() if not name.endswith("logits")
    ):
        raise ArgumentError("this belief has parameters that are not finite, which no picture can show")
    number = min(number, belief.batch_size)
    if number < 1:
        raise ArgumentError(f"there is no belief to draw: number {number} of a batch of {belief.batch_size}")
    parts = list(belief.parts) if isinstance(belief, Product) else [belief]
    parts = [part.map(lambda tensor: tensor[:number].detach().cpu()) for part in parts]
    panels = [_panels(part) for part in parts]
    figure = _figure(2.6 * number, 2.1 * sum(map(len, panels)))
    rows = [panel for found in panels for panel in found]
    for row, draw in enumerate(rows):
        for k in range(number):
            draw(figure.add_subplot(len(rows), number, row * number + k + 1), k)
    return figure


def quality(records: str | Path | Sequence[Mapping[str, Any]], metric: str = "frechet", *, log: bool = True) -> Figure:
    """Draw a score against network evaluations: a line for each flow and sampler, a band over seeds, and the floor.

    Args:
        records: Records with ``nfe`` and the score, as ``proxflow evaluate --out`` and the studies write them: a list of
            them, or the path of a ``results.json`` or of one record.
        metric: Name of the score.
        log: Whether the score's axis is logarithmic; values ≤ 0 are then left out.

    Raises:
        ArgumentError: No record has the score.
        DataError: The file cannot be read.
    """
    found = _records(records) if isinstance(records, (str, Path)) else list(records)
    lines: dict[str, dict[int, list[float]]] = {}
    for record in found:
        value = record.get(metric)
        if isinstance(value, (int, float)) and isinstance(record.get("nfe"), int) and (value > 0 or not log):
            name = " · ".join(
                str(record[key]) for key in ("model", "flow", "system", "method", "sampler") if record.get(key)
            )
            lines.setdefault(name, {}).setdefault(record["nfe"], []).append(float(value))
    if not lines:
        known = sorted({k for record in found for k, v in record.items() if isinstance(v, (int, float))})
        raise ArgumentError(
            f"no record has nfe and a number {metric!r}; numbers in them are {', '.join(known) or 'none'}"
        )
    figure = _figure(7.6, 4.2)
    axes = figure.add_subplot()
    for name, points in lines.items():
        at = sorted(points)
        (line,) = axes.plot(at, [float(np.mean(points[k])) for k in at], marker="o", markersize=4, label=name or metric)
        axes.fill_between(
            at, [min(points[k]) for k in at], [max(points[k]) for k in at], color=line.get_color(), alpha=0.2
        )
    held = "floor" if metric == "frechet" else f"floor_{metric}"
    floors = [float(record[held]) for record in found if isinstance(record.get(held), (int, float))]
    if floors and (min(floors) > 0 or not log):
        axes.axhline(float(np.mean(floors)), color="0.4", linestyle=(0, (6, 3)), label="real images")
    axes.set(
        xscale="log",
        yscale="log" if log else "linear",
        xlabel="network evaluations for each sample (NFE)",
        ylabel=metric,
    )
    ticks = sorted({k for points in lines.values() for k in points})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    _tidy(axes)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    return figure


def calibration(draws: Tensor, truth: Tensor, *, levels: int = 19) -> Figure:
    """Draw the coverage of central intervals of posterior draws against their nominal level.

    An exact posterior sampler is on the diagonal; below it, draws are overconfident.

    Args:
        draws: (draws, problems, …), at least three per problem.
        truth: (problems, …), the true value of each problem.
        levels: Number of levels, evenly spaced between 0 and 1.

    Raises:
        ArgumentError: The shapes do not fit, or there are fewer than three draws.
    """
    if draws.shape[1:] != truth.shape or draws.ndim < 2 or len(draws) < 3 or not truth.numel():
        raise ArgumentError(
            f"calibration needs draws (draws, problems, …), three or more, and the truth (problems, …), got "
            f"{tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    nominal, held = coverage(draws, truth, levels)
    figure = _figure(4.2, 4.2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.5", linestyle=(0, (6, 3)), label="calibrated")
    axes.plot(nominal, held, marker="o", markersize=4, label="these draws")
    axes.set(xlabel="level of the interval", ylabel="share of truths within", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    _tidy(axes)
    axes.legend(frameon=False)
    return figure


def coverage(draws: Tensor, truth: Tensor, levels: int = 19) -> tuple[list[float], list[float]]:
    """Return levels and the fraction of truths within central intervals of these levels, see :func:`calibration`.

    By ranks: with S draws and u uniform, (rank + u) / (S + 1) of a truth among draws from its own distribution is
    uniform, so that a small number of draws causes no bias; u is evenly spaced over the truths instead of random. Ties
    count half. "Validating Bayesian inference algorithms with simulation-based calibration" (Talts et al., 2018), arXiv
    1804.06788.
    """
    rank = (draws < truth).double().sum(0) + 0.5 * (draws == truth).double().sum(0)
    order = rank.flatten().argsort(stable=True).argsort().double()
    place = (rank.flatten() + (order * 0.6180339887498949).frac()) / (len(draws) + 1)
    away = (2 * place - 1).abs()
    at = [(k + 1) / (levels + 1) for k in range(levels)]
    return at, [float((away <= level).double().mean()) for level in at]


class _Drawn:
    """Displays a figure in notebooks, whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", bbox_inches="tight")  # type: ignore[attr-defined]
        return file.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = type("Figure", (_Drawn, Figure), {})
    figure: Figure = kind(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _spread(number: int, most: int) -> list[int]:
    """Return at most so many indices below ``number``, evenly spaced, including the first and the last."""
    return sorted({round(k) for k in np.linspace(0, number - 1, min(number, max(1, most)))})


def _images(samples: Any) -> np.ndarray[Any, Any]:
    """Return pictures as matplotlib draws them: uint8 (number, height, width, 3)."""
    try:
        tensor = torch.as_tensor(samples).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"expected pictures as a tensor or array, got {type(samples).__name__}") from error
    if not len(tensor.shape) or not len(tensor):
        raise ArgumentError(f"there is no picture to draw: the shape is {tuple(tensor.shape)}")
    tensor = tensor[:, None] if tensor.ndim == 3 else tensor
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise ArgumentError(
            f"expected pictures (number, 1 or 3, height, width) or (number, height, width), got {tuple(tensor.shape)}"
        )
    if tensor.dtype != torch.uint8:
        tensor = ((tensor.double().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return tensor.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _image(axes: Axes, image: np.ndarray[Any, Any]) -> None:
    axes.imshow(image, cmap="gray" if image.ndim == 2 else None, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _records(path: str | Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as results ({reason}); expected a JSON file") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("cells", "rows", "results") if key in content), [content])
    if not isinstance(content, list) or not all(isinstance(record, Mapping) for record in content):
        raise DataError(f"{path}: holds no records; expected a record, a list of them, or a results.json")
    return content


def _panels(part: Belief) -> list[Any]:
    """Return drawing functions of axes and an example's index, one per row of panels."""
    if isinstance(part, (Categorical, Binned, Revealed)):
        return [_Classes(part)]
    event = part.mean.shape[1:]
    if len(event) == 3 and event[0] in (1, 3) and min(event[1:]) > 1:
        return [_Levels(part.mean, "mean"), _Levels(_std(part), "standard deviation")]
    size = math.prod(event)
    if size == 1:
        return [_Density(part)]
    return [_Plane(part)] if size == 2 else [_Bars(part)]


def _std(part: Belief) -> Tensor:
    """Return the standard deviation of each coordinate, in the event's shape."""
    if isinstance(part, FullGaussian):
        return part.scale_tril.square().sum(-1).sqrt()
    if isinstance(part, GaussianMixture):
        weights = part.weights.reshape(*part.weights.shape, *[1] * (part.means.ndim - 2))
        away = (part.means - part.mean[:, None]).square()
        return (weights * (part.stds.square() + away)).sum(1).sqrt()
    std: Tensor = part.std  # type: ignore[attr-defined]
    return std


def _one(part: Belief, k: int) -> Belief:
    """Return the belief about one example, in double precision."""
    return part.map(lambda tensor: tensor[k : k + 1].double() if tensor.is_floating_point() else tensor[k : k + 1])


class _Classes:
    """Probabilities of classes: bars for one site, or a map of sites × classes."""

    def __init__(self, part: Categorical | Binned | Revealed) -> None:
        if isinstance(part, Revealed):
            probabilities = torch.nn.functional.one_hot(part.tokens.clamp_min(0), part.classes).double()
            probabilities[part.hidden] = 1 / part.classes
        else:
            probabilities = part.probs.double()
        self.probabilities = probabilities.reshape(len(probabilities), -1, probabilities.shape[-1])

    def __call__(self, axes: Axes, k: int) -> None:
        values = self.probabilities[k].numpy()
        if len(values) > 1:
            axes.imshow(values.T, aspect="auto", cmap="magma", vmin=0, origin="lower", interpolation="nearest")
            axes.set(xlabel="site", ylabel="class" if k == 0 else "")
            return
        axes.bar(np.arange(values.shape[1]), values[0], width=0.9)
        axes.set(xlabel="class", ylabel="probability" if k == 0 else "")
        _tidy(axes)


class _Levels:
    """One parameter of pictures, as a picture with its range."""

    def __init__(self, values: Tensor, name: str) -> None:
        self.values, self.name = values.double().mean(1), name

    def __call__(self, axes: Axes, k: int) -> None:
        values = self.values[k].numpy()
        low, high = (-1.0, 1.0) if self.name == "mean" else (0.0, max(float(self.values.max()), 1e-12))
        axes.imshow(values, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(f"{self.name}, {values.min():.2f} to {values.max():.2f}", fontsize=8)
        axes.set(xticks=[], yticks=[])


class _Density:
    """The density of a single number, over four standard deviations."""

    def __init__(self, part: Belief) -> None:
        self.part = part

    def __call__(self, axes: Axes, k: int) -> None:
        one = _one(self.part, k)
        mean, std = float(one.mean.flatten()[0]), float(_std(one).flatten()[0])
        if std > 0:
            at = torch.linspace(mean - 4 * std, mean + 4 * std, 201, dtype=torch.float64)
            many = one.map(lambda tensor: tensor.expand(len(at), *tensor.shape[1:]))
            density = many.log_prob(at.reshape(-1, *one.mean.shape[1:])).exp()
            axes.fill_between(at.numpy(), density.numpy(), alpha=0.3)
            axes.plot(at.numpy(), density.numpy())
        else:
            axes.axvline(mean)
        axes.set(xlabel="x", ylabel="density" if k == 0 else "")
        _tidy(axes)


class _Plane:
    """Two numbers: ellipses of a Gaussian at one and two standard deviations, contours of a mixture's density."""

    def __init__(self, part: Belief) -> None:
        self.part = part

    def __call__(self, axes: Axes, k: int) -> None:
        one = _one(self.part, k)
        mean, std = one.mean.flatten(), _std(one).flatten()
        if isinstance(one, GaussianMixture):
            side = [
                torch.linspace(float(m - 4 * s), float(m + 4 * s), 80, dtype=torch.float64)
                for m, s in zip(mean, std, strict=True)
            ]
            x, y = torch.meshgrid(*side, indexing="xy")
            at = torch.stack([x, y], dim=-1).reshape(-1, *one.mean.shape[1:])
            density = (
                one.map(lambda tensor: tensor.expand(len(at), *tensor.shape[1:])).log_prob(at).exp().reshape(x.shape)
            )
            axes.contour(x.numpy(), y.numpy(), density.numpy(), levels=6)
        else:
            covariance = one.covariance[0] if isinstance(one, FullGaussian) else torch.diag(std**2)
            values, vectors = torch.linalg.eigh(covariance.reshape(2, 2))
            turn = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
            circle = torch.stack([turn.cos(), turn.sin()])
            around = vectors @ (values.clamp_min(0).sqrt()[:, None] * circle)
            for radius in (1, 2):
                axes.plot(*(mean[:, None] + radius * around).numpy(), color="C0", alpha=1 / radius)
            axes.plot(*mean[:, None].numpy(), ".", color="C0")
        axes.set(aspect="equal", xlabel="x₁", ylabel="x₂" if k == 0 else "")
        axes.set_adjustable("datalim")
        _tidy(axes)


class _Bars:
    """Many numbers: their means, with one standard deviation."""

    def __init__(self, part: Belief) -> None:
        self.mean, self.std = (values.double().flatten(1).numpy() for values in (part.mean, _std(part)))

    def __call__(self, axes: Axes, k: int) -> None:
        at, mean, std = np.arange(self.mean.shape[1]), self.mean[k], self.std[k]
        if len(at) <= _MOST_BARS:
            axes.errorbar(at, mean, std, fmt=".", linewidth=1)
        else:
            axes.plot(at, mean, linewidth=0.8)
            axes.fill_between(at, mean - std, mean + std, alpha=0.3)
        axes.set(xlabel="coordinate", ylabel="mean ± std" if k == 0 else "")
        _tidy(axes)
