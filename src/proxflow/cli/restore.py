"""``proxflow restore``: restore damaged pictures and fill missing cells of tables, by posterior sampling."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from proxflow.cli._common import (
    File,
    GuidanceOptions,
    Number,
    Text,
    check_counts,
    check_sampler,
    classes_asked,
    first_alone,
    guided,
    less_memory,
    say,
    word,
)
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError, CheckpointError, OutputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

_FILES = ("draws.png", "draws.npz", "mean.png", "spread.png", "strip.png", "observed.png", "report.json")
"""Files written for pictures."""

_SHARPENED = 50.0
"""Largest factor by which undoing a blur may amplify the rounding to bytes."""

_KNOWN = 128
"""Level of a mask, of 255, from which pixels are known."""

_PARTICLES = 64
"""Particles for each row of a table."""

Box = Union[tuple[int, int, int, int], None]  # noqa: UP007 - of "tuple | None" tyro imports a checker of types


@dataclass(frozen=True)
class Restore:
    """Restore damaged pictures, or fill the missing cells of a table, by posterior sampling.

    For pictures, the folder --out receives draws.png (a row for each picture), mean.png, spread.png (the standard
    deviation of each pixel, white for half of the range; with two draws or more), strip.png (a row for each picture:
    what was observed, then the draws), draws.npz (key "images") and report.json. Files of an earlier restore there are
    replaced.

    For a table, each missing cell is drawn given the others of its row, and known cells stay unchanged. Several draws
    make one file each.

    For example:
        proxflow restore digit.png --task inpaint --box 0 14 28 14      the lower half is missing
        proxflow restore digits --task inpaint --mask known.png         the mask is white where pixels are known
        proxflow restore small.png --task superres --factor 4           7 x 7 to 28 x 28
        proxflow restore digits --task deblur --sigma 2 --degrade       blur whole pictures first, to try it out
        proxflow restore seven.png --box 0 14 28 14 --model mnist-classes --class 7 --guidance 2
        proxflow restore people.csv --model runs/people --out filled.csv
        proxflow restore people.csv --model runs/people --out filled.csv --draws 5      filled-1.csv to filled-5.csv
        proxflow restore people.parquet --model runs/people --out filled.parquet        columns keep their types

    Args:
        source: A picture, or a folder of pictures of one size; or a table, a .csv or .parquet file with the columns of
            the model.
        model: Name of a model that comes with the package, or a model folder, of images or of tables.
        task: Kind of damage to the picture.
        mask: For inpaint: picture of the model's size, white where pixels are known, black where they are missing; grey
            levels from 128 of 255 count as known.
        box: For inpaint: the missing rectangle as left, top, width, height.
        factor: For superres: ratio of the rows and columns to restore to those of the picture.
        sigma: For deblur: standard deviation of the Gaussian blur, in pixels.
        noise: Standard deviation of the noise, with pixels from -1 to 1; 0 for none.
        draws: Draws of each picture, or of each missing cell.
        classes: Classes of the pictures, for a conditional model: one for all, or one for each in the order of file
            names.
        guidance: How predictions are guided; the observation then refines the guided prediction.
        nfe: Predictions per draw. Each is one network evaluation, or two with guidance.
        method: How a prediction is fitted to the observation: flower, flower-draw, diffpir, mmps, tmpd, pigdm, dps or
            repaint; with a model of black and white pixels, bayes or repaint. By default it depends on the model's
            flow; for denoise it is mmps.
        sampler: How to sample; by default it depends on the method: renewed for flower, marginal for mmps and the like.
            Rows of a table are drawn with 64 particles each if the flow has a Gaussian path of numbers, as gpfn; with a
            sampler instead, predictions are only pulled toward the known cells.
        degrade: Damage the pictures, which are whole, first; the damaged ones are written too, as observed.png.
        out: Folder to write into, other than that of the pictures; for a table, a .csv file, or .parquet if the table
            is one.
        seed: Random seed of the draws.
        batch_size: Draws made at a time; lower it when memory runs out.
        device: Where to compute; auto takes CUDA if there is one.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE|FOLDER|TABLE")]
    task: Literal["inpaint", "superres", "deblur", "denoise"] = "inpaint"
    model: str = "mnist"
    mask: Annotated[File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    box: Annotated[Box, tyro.conf.arg(metavar="X Y W H", help_behavior_hint="(default: none)")] = None
    factor: int = 4
    sigma: float = 2.0
    noise: float = 0.05
    draws: Annotated[Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 8; of tables 1)")] = None
    classes: Annotated[
        tuple[str, ...], tyro.conf.arg(name="class", metavar="CLASS [CLASS ...]", help_behavior_hint="(default: any)")
    ] = ()
    guidance: tyro.conf.OmitArgPrefixes[GuidanceOptions] = field(default_factory=GuidanceOptions)
    nfe: Annotated[int, tyro.conf.arg(aliases=["--steps"])] = 50
    method: Annotated[Text, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: by the model's flow)")] = None
    sampler: Annotated[Text, word("by the method")] = None
    degrade: bool = False
    out: Annotated[
        File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: restored; filled.csv or filled.parquet)")
    ] = None
    seed: int = 0
    batch_size: int = 128
    device: DeviceName = "auto"

    @property
    def with_less_memory(self) -> str:
        """Say how to draw with less memory."""
        return less_memory(self.batch_size, None)


def run(options: Restore, device: torch.device) -> None:
    """Read damaged pictures or a table, draw from the posterior, and write the draws."""
    table = options.source.suffix.lower() in (".csv", ".parquet")
    usual = (1, Path("filled").with_suffix(options.source.suffix.lower())) if table else (8, Path("restored"))
    draws = options.draws if options.draws is not None else usual[0]
    out = options.out if options.out is not None else usual[1]
    check_counts(draws, options.nfe, options.batch_size, named=("--draws", "--nfe"))
    check_sampler(options.sampler)
    if table:
        _fill(options, draws, out, device)
        return
    _check(options)
    import torch

    from proxflow import models
    from proxflow.data.kinds.image import Binary
    from proxflow.data.kinds.latents import Latents
    from proxflow.data.pictures import read_exactly
    from proxflow.examples import evaluations, planned
    from proxflow.inverse import Blur
    from proxflow.inverse.noise import Gaussian
    from proxflow.predictors import Posterior
    from proxflow.runtime import escape
    from proxflow.runtime.files import writable_folder
    from proxflow.samplers import default_sampler, sample

    model = models.load(options.model, device)
    if len(model.shape) != 3 or isinstance(model.data, Latents):
        raise ArgumentError(f"restore is of pictures, and the model {options.model} is of {model.data.examples_word}")
    if model.of_one_evaluation:
        raise ArgumentError(
            f"{options.model} was taught to draw with one evaluation and predicts no means, which an observation refines: "
            "give the model that it learnt from"
        )
    binary = isinstance(model.data, Binary)
    if binary and (options.task != "inpaint" or options.noise not in (0, Restore.noise)):
        raise ArgumentError(
            f"{options.model} draws black and white pixels, which are known or gone: take --task inpaint, without --noise"
        )
    channels, height, width = model.shape
    if channels not in (1, 3):
        raise ArgumentError(
            f"picture files hold 1 or 3 channels, and the model {options.model} is of images of {channels}: restore these "
            "in Python, by proxflow.Posterior"
        )
    _check_method(options, binary)
    operator = _operator(options, model.shape)
    shrunk = options.factor if options.task == "superres" and not options.degrade else 1
    wanted = (height // shrunk, width // shrunk)
    read, paths, left_out = read_exactly(options.source, channels, wanted)
    _spare(out, options.source, [*paths, *([] if options.mask is None else [options.mask])])
    pictures = model.data.encode(read)
    y = operator(pictures) if options.degrade else pictures
    noise = Gaussian(0.0 if binary else options.noise)
    if options.degrade:
        y = noise.draw(y, torch.Generator().manual_seed(options.seed))
    number = len(y)
    if not options.degrade and noise.none and isinstance(operator, Blur) and operator.amplified(y) > _SHARPENED:
        raise ArgumentError(
            "pictures are read in bytes, and undoing this blur without noise makes their rounding the larger part: give "
            "--noise, 0.002 or more"
        )
    chosen = classes_asked(options.classes, model.classes, once=False) if options.classes else []
    if len(chosen) > 1 and len(chosen) != number:
        raise ArgumentError(
            f"--class names {len(chosen)} classes for {number} pictures: name one for all, or one for each"
        )
    each = torch.arange(number).repeat_interleave(draws)
    labels = torch.tensor(chosen).expand(number)[each] if chosen else None
    # The observation comes last: guidance after it would leave it again.
    predictor = guided(model, options.guidance.loaded(device), labels)
    # With noise on every pixel, the covariance of the data separates it; flower would leave some of it.
    method = options.method or ("mmps" if options.task == "denoise" else None)
    posterior = Posterior(predictor, operator, y[each], noise=noise, method=method, flow=model.flow)
    if left_out.found:
        say(f"not read: {left_out.text}")
    with first_alone() as writing:
        if writing:
            writable_folder(out)
    samples = sample(
        posterior, model.flow, (len(each), *model.shape), nfe=options.nfe, sampler=options.sampler, seed=options.seed,
        batch_size=options.batch_size, condition=labels,
    ).cpu()  # fmt: skip
    if binary:
        y, samples = 2 * y.float() - 1, 2 * samples.float() - 1
    used = options.sampler or default_sampler(posterior, model.flow)
    times = models.parse("samplers", used).times(model.flow, options.nfe)
    spent = sum(map(evaluations, planned(posterior, times)))
    names = [path.relative_to(options.source).as_posix() if path != options.source else path.name for path in paths]
    told = {
        "source": str(options.source), "model": options.model, "task": options.task, "degrade": options.degrade,
        "method": posterior.method, "sampler": used, "draws": draws, "nfe": options.nfe, "evaluations": spent,
        "noise": noise.std, "seed": options.seed, "pictures": number, "names": list(map(escape.name, names)),
        **options.guidance.told, **({"class": [model.classes[k] for k in chosen]} if chosen else {}), **_told_of(options),
    }  # fmt: skip
    with first_alone() as writing:
        if writing:
            _write(out, options.degrade, operator, y, samples.reshape(number, draws, *model.shape), told)
    counts = f"{draws} draw{'s' * (draws != 1)} of {'each of ' * (number != 1)}{number} picture{'s' * (number != 1)}"
    each_of = f"{spent} network evaluation{'s' * (spent != 1)} each"
    say(f"{counts} by {posterior.method} and {used}, {each_of}{'; no spread of one draw' * (draws == 1)}: {out}")


def _check(options: Restore) -> None:
    """Refuse options for pictures that exclude each other or are out of range.

    Raises:
        ArgumentError: The message names the option.
    """
    options.guidance.check()
    if options.task != "inpaint" and not (options.mask is None and options.box is None):
        raise ArgumentError(f"--mask and --box are for inpaint; {options.task} sees the whole picture")
    if options.mask is not None and options.box is not None:
        raise ArgumentError("--mask and --box each say what is gone: give one of them")
    if options.task == "inpaint" and options.mask is None and options.box is None:
        raise ArgumentError("inpaint needs --mask PATH or --box X Y W H to know what is gone")
    if not 0 <= options.noise < math.inf:
        raise ArgumentError(f"--noise, a standard deviation, must be finite and not negative, got {options.noise:g}")
    if options.task == "denoise" and options.noise == 0:
        raise ArgumentError("denoise with --noise 0 has nothing to mend: give the standard deviation of the noise")


def _check_method(options: Restore, binary: bool) -> None:
    """Refuse a method that is unknown, not for such pictures, or needs an argument that no option gives.

    Raises:
        ArgumentError: The message names the methods that can be used.
    """
    from proxflow.predictors.posterior import METHODS

    exact = ("bayes", "repaint")
    takes = exact if binary else [name for name, rule in METHODS.items() if rule.covariance and name != "bayes"]
    if options.method is None or options.method in takes:
        return
    why = f"is for models {'of levels between' if binary else 'of black and white pixels'}"
    if options.method not in METHODS:
        why = "is no method"
    elif METHODS[options.method].covariance is None:
        why = "needs the covariance of the data, which only Python's proxflow.Posterior takes"
    raise ArgumentError(f"--method {options.method:.80} {why}: for this model known are {', '.join(takes)}")


def _spare(out: Path, source: Path, read: Sequence[Path]) -> None:
    """Refuse a results folder that is the folder of the pictures, or where other files would be overwritten.

    Args:
        out: The folder; it need not exist.
        source: The picture or folder to restore.
        read: All picture files read.

    Raises:
        ArgumentError: It is the folder of the pictures, or a result would overwrite one of them.
        OutputError: It holds a file that would be overwritten, and no report of an earlier restore.
    """
    from proxflow.runtime.files import read_json

    if source.is_dir() and out.is_dir() and out.samefile(source):
        raise ArgumentError(f"--out {out} is the folder of the pictures: choose another one for the draws")
    found = [out / name for name in _FILES if (out / name).exists()]
    if not found:
        return
    places = {(at.st_dev, at.st_ino) for at in map(os.stat, read)}
    for path in found:
        at = path.stat()
        if (at.st_dev, at.st_ino) in places:
            raise ArgumentError(f"the picture {path} is read and would be overwritten: choose another --out")
    try:
        report = read_json(out / "report.json")
    except CheckpointError:
        report = None
    if not (isinstance(report, dict) and {"source", "task", "method", "draws"} <= report.keys()):
        raise OutputError(
            f"the folder {out} holds {found[0].name}, which would be overwritten, and no report.json of a former restore: "
            "choose an empty or a new one"
        )


def _fill(options: Restore, draws: int, out: Path, device: torch.device) -> None:
    """Draw the missing cells of a table given the others, and write the filled table.

    Raises:
        ArgumentError: The model is not of tables, the target is missing, or an option is for pictures.
        DataError: The table has other columns or cells than the model's.
    """
    import torch

    from proxflow import models
    from proxflow.data.kinds.table import Table
    from proxflow.examples import Examples
    from proxflow.inverse import Mask
    from proxflow.predictors import Posterior, WithoutLast
    from proxflow.runtime.files import writable_folder
    from proxflow.runtime.progress import bar
    from proxflow.samplers import row_particles, sample, weighs_rows

    usual = Restore(options.source)
    for name in ("task", "mask", "box", "factor", "sigma", "noise", "degrade", "method", "classes", "guidance"):
        if getattr(options, name) != getattr(usual, name):
            word = "class" if name == "classes" else name
            raise ArgumentError(f"--{word} is for pictures, and {options.source} is a table: leave it out")
    endings = [".csv", ".parquet"] if options.source.suffix.lower() == ".parquet" else [".csv"]
    if out.suffix.lower() not in endings or out.is_dir():
        raise ArgumentError(
            f"--out must be a file ending in {' or '.join(endings)} for the table {options.source}, got {str(out)!r}"
        )
    paths = [out] if draws == 1 else [out.with_stem(f"{out.stem}-{k + 1}") for k in range(draws)]
    for path in paths:
        if path.exists() and path.samefile(options.source):
            raise ArgumentError(
                f"--out {out} would write {path}, which is the table itself, whose gaps would be known no more: choose "
                "another file"
            )
    model = models.load(options.model, device)
    kind = model.data
    if not isinstance(kind, Table):
        raise ArgumentError(
            f"{options.source} is a table, and the model {options.model} is of {kind.examples_word}: give a "
            "table's as --model"
        )
    stored, cells = kind.rows(str(options.source))
    if out.suffix.lower() == ".csv":
        cells.check()  # columns that the model does not have are copied as text
        for name, word in zip(cells.names, cells.types, strict=bool(cells.types)):
            if "tz=" in word:
                raise ArgumentError(
                    f"{options.source}: the times of column {name} have a zone, which text would lose: give --out a file "
                    "ending in .parquet"
                )
    missing = kind.missing(stored)
    rows = missing.any(1).nonzero()[:, 0]
    labels = kind.with_labels(Examples(stored[rows])).condition
    if isinstance(labels, torch.Tensor) and bool((labels < 0).any()):
        where = cells.row(int(rows[(labels < 0).nonzero()[0, 0]]))
        raise ArgumentError(
            f"{where}: {kind.target} is missing, which the model takes as given: train one without --target to fill it"
        )
    if len(outside := kind.outside(stored[rows]).nonzero()):
        row, k = (int(place) for place in outside[0])
        column = kind.columns[k]
        value, least, most = map(column.text, (float(stored[rows[row], k]), column.least, column.most))
        say(
            f"{cells.row(int(rows[row]))}: {column.name} = {value} lies outside the range of training, {least} to {most} "
            f"({len(outside)} such cell{'s' * (len(outside) != 1)}): what is filled in beside it is extrapolated"
        )
    with first_alone() as writing:
        if writing:
            writable_folder(out.parent)
    filled = stored[rows][:, None].expand(-1, draws, -1)
    if len(rows):
        encoded, known = kind.observed(stored[rows])
        known_to_be = WithoutLast(model.predictor, kind.never().to(device))
        condition = labels if isinstance(labels, torch.Tensor) else None
        with bar("restore", len(rows), "rows") as show:
            if options.sampler is None and weighs_rows(model.flow):
                number = max(_PARTICLES, 4 * draws)
                posterior = Posterior(known_to_be, Mask(known, each=True), encoded, flow=model.flow)
                found = row_particles(
                    posterior, model.flow, (len(rows), *kind.shape), number=number, nfe=options.nfe, seed=options.seed,
                    batch_size=options.batch_size * number, condition=condition, progress=show,
                )  # fmt: skip
                samples = found.draw(draws, torch.Generator(device).manual_seed(options.seed)).flatten(0, 1).cpu()
            else:
                if options.sampler is None:
                    say(
                        f"rows are only drawn toward what is known, and categories need not belong to it: the flow of "
                        f"{options.model} has no particles of rows, as that of gpfn has"
                    )
                each = torch.arange(len(rows)).repeat_interleave(draws)
                posterior = Posterior(known_to_be, Mask(known[each], each=True), encoded[each], flow=model.flow)
                samples = sample(
                    posterior, model.flow, (len(each), *kind.shape), nfe=options.nfe, sampler=options.sampler,
                    seed=options.seed, batch_size=options.batch_size,
                    condition=None if condition is None else condition[each],
                ).cpu()  # fmt: skip
        drawn = kind.decode(samples).reshape(len(rows), draws, -1)
        filled = torch.where(missing[rows][:, None], drawn, filled)
    with first_alone() as writing:
        for k, path in enumerate(paths if writing else ()):
            texts = {
                (int(row), column): kind.columns[column].text(float(filled[i, k, column]))
                for i, row in enumerate(rows)
                for column in missing[row].nonzero()[:, 0].tolist()
            }
            kind.write_cells(path, cells, texts)
    number = int(missing.sum())
    files = out if draws == 1 else f"{paths[0]} to {paths[-1]}"
    counts = f"{number} missing cell{'s' * (number != 1)} in {len(rows)} of {len(stored)} row{'s' * (len(stored) != 1)}"
    say(f"{counts}, {draws} draw{'s' * (draws != 1)} of each: {files}")


def _operator(options: Restore, shape: tuple[int, ...]) -> Any:
    import torch

    from proxflow.data.pictures import read_exactly
    from proxflow.inverse import Blur, Downsample, Mask

    _, height, width = shape
    if options.task == "superres":
        if options.factor < 2 or height % options.factor or width % options.factor:
            raise ArgumentError(
                f"--factor divides the sides of pictures of {height} x {width} and is at least 2, got {options.factor}"
            )
        return Downsample(options.factor)
    if options.task == "deblur":
        if not 0 < options.sigma <= max(height, width):
            raise ArgumentError(
                f"--sigma, the standard deviation of the blur in pixels, must be above 0 and at most the picture's side, "
                f"{max(height, width)}; got {options.sigma:g}"
            )
        return Blur(options.sigma)
    levels = torch.full((height, width), 255, dtype=torch.uint8)
    if options.mask is not None and options.mask.is_dir():
        raise ArgumentError(f"--mask is one picture, and {options.mask} is a folder")
    if options.mask is not None:
        levels = read_exactly(options.mask, 1, (height, width))[0][0, 0]
    elif options.box is not None:
        left, top, wide, high = options.box
        if not (0 <= left < left + wide <= width and 0 <= top < top + high <= height):
            raise ArgumentError(
                f"--box is left, top, width and height of a rectangle within {width} x {height}, got "
                f"{' '.join(map(str, options.box))}"
            )
        levels[top : top + high, left : left + wide] = 0
    known = levels >= _KNOWN
    if options.task == "inpaint" and not known.any():
        raise ArgumentError("nothing of the pictures is known: leave something out of --mask or --box")
    if options.task == "inpaint" and known.all():
        raise ArgumentError(
            f"nothing of the pictures is gone: {options.mask} has no pixel below {_KNOWN}, paint some black"
        )
    if greys := int(((levels > 0) & (levels < 255)).sum()):
        say(f"{greys} pixel{'s' * (greys != 1)} of {options.mask} are grey: levels from {_KNOWN} on are taken as known")
    return Mask(known.expand(shape).clone())


def _told_of(options: Restore) -> dict[str, Any]:
    """Return the settings of the task, for the report."""
    match options.task:
        case "inpaint":
            return {"box": options.box} if options.mask is None else {"mask": str(options.mask)}
        case "superres":
            return {"factor": options.factor}
        case "deblur":
            return {"sigma": options.sigma}
    return {}


def _write(out: Path, degrade: bool, operator: Any, y: Tensor, samples: Tensor, told: dict[str, Any]) -> None:
    """Write draws, their mean and spread, and a strip of all, replacing those of an earlier restore."""
    import torch

    from proxflow.data import image_files
    from proxflow.data.images import to_bytes
    from proxflow.inverse import Mask
    from proxflow.runtime.files import write_json

    def array(values: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return to_bytes(values).permute(0, 2, 3, 1).contiguous().numpy()

    seen = torch.where(operator.known, y, 0.0) if isinstance(operator, Mask) else y
    times = samples.shape[-1] // seen.shape[-1]
    seen = seen.repeat_interleave(times, -2).repeat_interleave(times, -1)
    number, draws, *_ = samples.shape
    spread = samples.std(1, correction=1) if draws > 1 else None
    if spread is not None:
        told = {**told, "mean_spread": float(spread.mean())}
    # First: if this run stops, the report tells the next one that the other files are its own.
    write_json(out / "report.json", told)
    flat = array(samples.flatten(0, 1))
    if number > 1:
        image_files.write_png(out / "draws.png", image_files.grid(flat, draws))
    else:
        image_files.write(out / "draws.png", flat)
    image_files.write(out / "draws.npz", flat)
    image_files.write(out / "mean.png", array(samples.mean(1)))
    for name in ("spread.png", "observed.png"):
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {out / name}, of a former restore: {error.strerror}") from error
    if spread is not None:
        image_files.write(out / "spread.png", array(4 * spread - 1))
    if degrade:
        image_files.write(out / "observed.png", array(seen))
    rows = torch.cat([seen[:, None], samples], 1)
    rows = torch.nn.functional.pad(rows, (1, 1, 1, 1), value=-0.25)
    strip = rows.permute(0, 3, 1, 4, 2).reshape(number * rows.shape[-2], (draws + 1) * rows.shape[-1], -1)
    image_files.write_png(out / "strip.png", array(strip.permute(2, 0, 1)[None])[0])
