"""A cache of pictures of one shape as bytes, or of their latents, made once and memory-mapped.

A folder of parts of 4096 pictures, ``part-00000.bin`` and so on, each with the bytes (number, channels, height, width)
of those that could be read, and ``part-00000.json`` beside it; ``plan.json``, what they are made from; and at the end
``manifest.json``, and ``checked.json``, the sizes and times of the parts whose checksums were compared. After a stop at
any moment the same call makes the missing parts. Latents are little-endian float16, in parts of 512.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from proxflow.data.autoencoders import BATCH, Codec
from proxflow.data.left_out import LeftOut
from proxflow.data.stored import Pictures
from proxflow.errors import DataError, OutputError, ProxflowError
from proxflow.runtime.files import open_plain, read_json, stamp, sweep, writable_folder, write_atomically, write_json
from proxflow.runtime.lock import locked

PLAN, MANIFEST, CHECKED = "plan.json", "manifest.json", "checked.json"
FORM = "proxflow prepared 1"
LATENTS_FORM = "proxflow latents 1"
PART, LATENTS_PART = 4096, 512
"""Pictures per part, and latents per part."""

_TRIES = 3


def prepare(
    pictures: Pictures,
    folder: Path,
    workers: int,
    done: Callable[[int], None] = lambda number: None,
    encoder: nn.Module | None = None,
    word: str = "",
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda said: None,
) -> dict[str, Any]:
    """Make a cache of pictures or of their latents, or resume it; damaged parts are made again.

    Pictures that cannot be read are left out and listed in the manifest.

    Args:
        pictures: The pictures.
        folder: Folder of the cache.
        workers: Processes that read; 0 reads in this one.
        done: Called with the number of pictures done.
        encoder: Any module with ``encode`` and ``decode``, see :class:`proxflow.data.autoencoders.Codec`, whose latents
            are saved instead of the pictures; it runs in this process.
        word: String by which the encoder can be loaded again, for decoding.
        device: Device of the encoder.
        say: Called with a sentence for each part that is damaged or missing.

    Returns:
        The manifest.

    Raises:
        OutputError: The folder cannot be written, as when the disk is full, is in use, or is a cache of other pictures
            or of another encoder; finished parts are kept.
        DataError: No picture can be read, or workers died three times; the encoder does not fit the pictures.
    """
    plan: dict[str, Any] = {"form": FORM, "shape": list(pictures.shape), "content": pictures.content}
    codec, size = None, PART
    if encoder is not None:
        codec, size = Codec(encoder, device), LATENTS_PART
        shapes = {"shape": list(codec.shape_of(pictures.shape)), "picture": list(pictures.shape)}
        plan |= {"form": LATENTS_FORM, **shapes, "dtype": "float16", "encoder": codec.sha256}
    plan["pictures"] = len(pictures)
    with locked(writable_folder(folder), "preparation"):
        sweep(folder, owned=True)
        if (folder / PLAN).exists():
            held = read_json(folder / PLAN)
            other = [name for name in plan if not isinstance(held, dict) or held.get(name) != plan[name]]
            if other:
                differs = _difference(held, plan, other[0])
                raise OutputError(f"{folder} is a cache of other pictures: {differs}; choose another --out folder")
        elif any(folder.glob("part-*")) or (folder / MANIFEST).exists():
            raise OutputError(f"{folder} holds parts of a cache without {PLAN}: choose another --out folder")
        write_json(folder / PLAN, plan)
        number = -(-len(pictures) // size)
        _refuse_changed(pictures, folder, number, size)
        missing = _missing(folder, number, say)
        done(len(pictures) - sum(min(size, len(pictures) - k * size) for k in missing))
        for _ in range(_TRIES):
            try:
                made = (
                    _made(pictures, folder, missing, workers)
                    if codec is None
                    else (_encode(pictures, folder, k, workers, codec, tuple(plan["shape"])) for k in missing)
                )
                for part in made:
                    done(min(size, len(pictures) - part * size))
                break
            except BrokenProcessPool:
                missing = [k for k in missing if not (folder / f"part-{k:05d}.json").exists()]
        else:
            raise DataError(
                f"{workers} processes that read pictures died {_TRIES} times, perhaps for want of memory: give --workers 0; "
                "the parts that are done stay"
            )
        return _finished(pictures, folder, plan, number, word)


def _difference(held: Any, plan: dict[str, Any], name: str) -> str:
    """Describe how a plan differs from that of a cache; ``name`` is the first entry that does."""
    found = held.get(name) if isinstance(held, dict) else held
    if isinstance(held, dict) and name in ("content", "pictures"):
        if held.get("pictures") != plan["pictures"]:
            return f"of {held.get('pictures')}, and the source now has {plan['pictures']}"
        return "the source has as many, but their names, sizes or rows have changed"
    return f"its {name} is {found}, not {plan[name]}"


def _times(pictures: Pictures, places: range) -> str:
    """Return a checksum of the times of the files that hold some pictures; empty if these are not usable."""
    stamps = []
    for path in pictures.files(places):
        try:
            stamps.append(stamp(path))
        except OSError:  # it cannot be read, which shows in its contents
            return ""
    return hashlib.sha256(repr(stamps).encode()).hexdigest() if stamps and None not in stamps else ""


def _source(times: str, checksums: Sequence[bytes]) -> dict[str, Any]:
    """Return what shows whether the source of a part changed, to be saved with it."""
    if not any(checksums):
        return {}
    return {"source": {"times": times, "sha256": hashlib.sha256(b"".join(c or b"none" for c in checksums)).hexdigest()}}


def _refuse_changed(pictures: Pictures, folder: Path, number: int, size: int) -> None:
    """Refuse to resume a cache whose source changed: if the times of files differ, by their contents.

    Raises:
        OutputError: The source changed.
    """
    for k in range(number):
        told, places = folder / f"part-{k:05d}.json", range(k * size, min(len(pictures), (k + 1) * size))
        try:
            held: Any = read_json(told)
            source, kept = held["source"], str(held["source"]["sha256"])
        except (ProxflowError, KeyError, TypeError):
            continue  # not made yet, damaged, or made before this was recorded
        times = _times(pictures, places)
        if times and source.get("times") == times:
            continue
        now = _source(times, [pictures.checksum(index) for index in places])
        if not now or now["source"]["sha256"] != kept:
            raise OutputError(
                f"{folder} is a cache of other pictures: contents of the source changed since they were prepared, among "
                f"pictures {places.start} to {places.stop - 1}; choose another --out folder, or remove this one"
            )
        if now["source"] != source:
            write_json(told, {**held, **now})


def _sha256(path: Path) -> str:
    """Return the checksum of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _missing(folder: Path, number: int, say: Callable[[str], None]) -> list[int]:
    """Return which of a number of parts must be made: those that are missing or damaged."""
    missing = []
    for k in range(number):
        told = folder / f"part-{k:05d}.json"
        if not told.exists():
            missing.append(k)
            continue
        with suppress(ProxflowError, KeyError, TypeError):
            held: Any = read_json(told)
            if held["sha256"] == _sha256(told.with_suffix(".bin")):
                continue
        told.unlink()  # it marks the part as complete
        missing.append(k)
        say(f"{told.with_suffix('.bin')}: is damaged or missing, and is made anew")
    return missing


def _made(pictures: Pictures, folder: Path, parts: list[int], workers: int) -> Iterator[int]:
    """Make parts, and yield the number of each when it is finished."""
    if not workers or len(parts) < 2:
        for part in parts:
            yield _make(pictures, folder, part)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(
        min(workers, len(parts)), multiprocessing.get_context(method), _begin, (pictures, folder)
    ) as pool:
        try:
            for future in as_completed([pool.submit(_make_own, part) for part in parts]):
                yield future.result()
        except (OutputError, KeyboardInterrupt, GeneratorExit):
            pool.shutdown(cancel_futures=True)
            raise


_own: tuple[Pictures, Path] | None = None
"""What a worker makes parts from."""


def _begin(pictures: Pictures, folder: Path) -> None:
    global _own
    _own = pictures, folder
    torch.set_num_threads(1)


def _make_own(part: int) -> int:
    if _own is None:
        raise BrokenProcessPool("begun without pictures")
    return _make(*_own, part)


def _make(pictures: Pictures, folder: Path, part: int) -> int:
    """Make a part: first the bytes, then its metadata, which mark the part as complete."""
    left_out: list[list[Any]] = []
    read: list[Tensor] = []
    places = range(part * PART, min(len(pictures), (part + 1) * PART))
    times, checksums = _times(pictures, places), []
    for index in places:
        checksums.append(pictures.checksum(index))
        try:
            read.append(pictures.picture(index))
        except DataError as error:
            left_out.append([index, str(error)])
    data = torch.stack(read).numpy().tobytes() if read else b""
    _write(folder, part, data, {"number": len(read), "left_out": left_out, **_source(times, checksums)})
    return part


def _write(folder: Path, part: int, data: bytes, told: dict[str, Any]) -> None:
    def put(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(folder / f"part-{part:05d}.bin", put)
    write_json(folder / f"part-{part:05d}.json", {**told, "sha256": hashlib.sha256(data).hexdigest()})


class _Readable(Dataset[tuple[Tensor | str, bytes]]):
    """Pictures, or the reason why one cannot be read, with the checksum of the stored content."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, index: int) -> tuple[Tensor | str, bytes]:
        checksum = self.pictures.checksum(index)
        try:
            return self.pictures.picture(index), checksum
        except DataError as error:
            return str(error), checksum


def _encode(pictures: Pictures, folder: Path, part: int, workers: int, codec: Codec, shape: tuple[int, ...]) -> int:
    """Make a part of latents, as :func:`_make` makes one of pictures: read by workers, encoded by this process."""
    places = range(part * LATENTS_PART, min(len(pictures), (part + 1) * LATENTS_PART))
    left_out: list[list[Any]] = []
    made: list[Tensor] = []
    loader: DataLoader[Any] = DataLoader(
        _Readable(pictures), BATCH, sampler=places, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )  # fmt: skip
    first, times, checksums = places.start, _times(pictures, places), list[bytes]()
    try:
        for pairs in loader:
            batch = [found for found, _ in pairs]
            checksums += [checksum for _, checksum in pairs]
            left_out += [[first + k, said] for k, said in enumerate(batch) if isinstance(said, str)]
            read = [picture for picture in batch if isinstance(picture, Tensor)]
            first += len(batch)
            if read:
                made.append(codec.encode(torch.stack(read)).half())
                if tuple(made[-1].shape) != (len(read), *shape) or not bool(made[-1].isfinite().all()):
                    raise DataError(
                        f"the encoder makes latents of {tuple(made[-1].shape[1:])}, or not finite in float16, of pictures "
                        f"{first - len(batch)} to {first - 1}; expected {shape}"
                    )
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise BrokenProcessPool(str(error)) from error
    latents = torch.cat(made) if made else torch.zeros(0, *shape, dtype=torch.float16)
    wide = latents.double().transpose(0, 1).flatten(1)
    mean = wide.mean(1) if made else wide.new_zeros(shape[0])
    spread = (wide - mean[:, None]).square().sum(1)
    told = {"number": len(latents), "left_out": left_out, "mean": mean.tolist(), "squares": spread.tolist()}
    told |= _source(times, checksums)
    _write(folder, part, latents.numpy().astype("<f2", copy=False).tobytes(), told)
    return part


def _moments(told: list[Any], plan: dict[str, Any]) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel over all parts, from theirs."""
    places = plan["shape"][1] * plan["shape"][2]
    number = torch.tensor([part["number"] * places for part in told], dtype=torch.float64)[:, None]
    means, squares = (torch.tensor([part[name] for part in told], dtype=torch.float64) for name in ("mean", "squares"))
    mean = (number * means).sum(0) / number.sum()
    variance = (squares + number * (means - mean).square()).sum(0) / number.sum()
    return {"mean": mean.tolist(), "std": torch.where(variance > 0, variance.sqrt(), 1.0).tolist()}


def _finished(pictures: Pictures, folder: Path, plan: dict[str, Any], number: int, word: str) -> dict[str, Any]:
    """Write labels and manifest, if they are not there."""
    told: list[Any] = [read_json(folder / f"part-{k:05d}.json") for k in range(number)]
    lost = [(int(index), str(said)) for part in told for index, said in part["left_out"]]
    counts = [int(part["number"]) for part in told]
    if not sum(counts):
        raise DataError(f"none of {len(pictures)} pictures can be read, the last because {lost[-1][1]}")
    left_out = LeftOut(dict(pictures.left_out.found))
    for _, said in lost:
        left_out.add("pictures that cannot be read", said)
    labels = {}
    if pictures.labels is not None:
        kept = torch.ones(len(pictures), dtype=torch.bool)
        kept[[index for index, _ in lost]] = False
        buffer = io.BytesIO()
        np.save(buffer, pictures.labels[kept].numpy())

        def put(temporary: Path) -> None:
            temporary.write_bytes(buffer.getvalue())

        write_atomically(folder / "labels.npy", put)
        labels = {"labels_sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    content = hashlib.sha256("".join(part["sha256"] for part in told).encode()).hexdigest()
    manifest = {
        **plan,
        "number": sum(counts),
        "parts": counts,
        "sha256": content,
        "classes": list(pictures.classes),
        "labels": pictures.labels is not None,
        **labels,
        "levels": list(pictures.levels),
        "left_out": [[reason, *found] for reason, found in left_out.found.items()],
        "unread": [said for _, said in lost[:100]],
        **({"found": word, **_moments(told, plan)} if plan["form"] == LATENTS_FORM else {}),
    }
    write_json(folder / MANIFEST, manifest)
    _keep(folder, [part["sha256"] for part in told])
    return manifest


def _keep(folder: Path, sums: list[str]) -> None:
    """Record the checksums of the parts, with their sizes and times, by which changes are found."""
    with suppress(OSError, OutputError):  # otherwise they are compared again
        write_json(folder / CHECKED, [[sha256, stamp(folder / f"part-{k:05d}.bin")] for k, sha256 in enumerate(sums)])


def _compare(folder: Path, content: str, number: int) -> None:
    """Compare the checksums of the parts that changed since they were compared.

    Raises:
        DataError: A checksum differs.
    """
    again = "give the same proxflow prepare command again"
    try:
        held: Any = read_json(folder / CHECKED)
        kept = [(str(sha256), found) for sha256, found in held]
    except (ProxflowError, TypeError, ValueError):
        kept = []
    if hashlib.sha256("".join(sha256 for sha256, _ in kept).encode()).hexdigest() != content:
        try:
            parts: list[Any] = [read_json(folder / f"part-{k:05d}.json") for k in range(number)]
            kept = [(str(part["sha256"]), None) for part in parts]
        except (ProxflowError, TypeError, KeyError) as error:
            raise DataError(f"{folder}: the checksum of a part cannot be read ({error}): {again}") from error
        if hashlib.sha256("".join(sha256 for sha256, _ in kept).encode()).hexdigest() != content:
            raise DataError(f"{folder / MANIFEST}: its sha256 is not that of the parts' checksums: {again}")
    changed = False
    for k, (sha256, found) in enumerate(kept):
        part = folder / f"part-{k:05d}.bin"
        if found is not None and found == stamp(part):
            continue
        if _sha256(part) != sha256:
            raise DataError(f"{part}: is damaged, its sha256 is not {sha256[:12]}…: {again}, which makes it anew")
        changed = True
    if changed:
        _keep(folder, [sha256 for sha256, _ in kept])


def is_prepared(folder: Path) -> bool:
    """Return whether a folder is a cache, finished or not, of pictures or of latents."""
    return os.path.isfile(folder / PLAN) and not os.path.exists(folder / "run.json")  # these raise nothing


def holds_latents(folder: Path) -> bool:
    """Return whether a folder is a cache of latents, finished or not."""
    if not is_prepared(folder):
        return False
    try:
        held = read_json(folder / PLAN)
    except ProxflowError:
        return False
    return isinstance(held, dict) and held.get("form") == LATENTS_FORM


class Prepared(Pictures):
    """The memory-mapped pictures of a cache.

    Args:
        folder: The cache.
        size: Side of its pictures, if it is to be checked.

    Raises:
        DataError: It is not finished, damaged, or of another size; checksums are compared for parts that changed since
            the last time.
    """

    form: ClassVar[str] = FORM
    what: ClassVar[str] = "pictures"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    def __init__(self, folder: Path, size: int | None = None) -> None:
        if not (folder / MANIFEST).exists():
            raise DataError(f"{folder}: is not finished; give the same proxflow prepare command again to go on")
        held: Any = read_json(folder / MANIFEST)
        try:
            shape, counts = tuple(map(int, held["shape"])), [int(number) for number in held["parts"]]
            classes, told, content = tuple(map(str, held["classes"])), bool(held["labels"]), str(held["sha256"])
            left_out = LeftOut({str(reason): (int(number), str(one)) for reason, number, one in held["left_out"]})
            if (
                held["form"] != self.form
                or not isinstance(held["sha256"], str)
                or len(shape) != 3
                or min(*shape, *counts) < 0
            ):
                raise ValueError(held["form"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / MANIFEST}: is no manifest of prepared {self.what} ({error})") from error
        if size is not None and shape[1:] != (size, size):
            parts = f", or leave --size out and give --augment crop:{size}" if min(shape[1:]) > size else ""
            raise DataError(
                f"{folder}: holds pictures of {shape[1]} x {shape[2]}, not of size {size}: prepare them anew{parts}"
            )
        bytes_of = shape[0] * shape[1] * shape[2] * self.dtype.itemsize
        for k, number in enumerate(counts):
            part = folder / f"part-{k:05d}.bin"
            found = part.stat().st_size if part.exists() else -1
            if found != number * bytes_of:
                raise DataError(
                    f"{part}: {'is missing' if found < 0 else f'has {found} bytes'}; expected {number * bytes_of}: give "
                    "the same proxflow prepare command again, which makes it anew"
                )
        _compare(folder, content, len(counts))
        labels = None
        if told:
            try:
                if "labels_sha256" in held and _sha256(folder / "labels.npy") != held["labels_sha256"]:
                    raise DataError(
                        f"{folder / 'labels.npy'}: is damaged, its sha256 is not that of {MANIFEST}: give the same proxflow "
                        "prepare command again"
                    )
                labels = torch.from_numpy(np.load(folder / "labels.npy", allow_pickle=False).astype(np.int64))
            except DataError:
                raise
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{folder / 'labels.npy'}: cannot be read ({error})") from error
            if labels.shape != (sum(counts),) or int(labels.max()) >= len(classes) or int(labels.min()) < -1:
                raise DataError(f"{folder / 'labels.npy'}: does not fit the {sum(counts)} pictures and their classes")
        super().__init__(
            (shape[0], shape[1], shape[2]), sum(counts), labels, classes, f"prepared, sha256 {content}",
            levels=tuple(map(str, held["levels"])), left_out=left_out,
        )  # fmt: skip
        self.folder = folder
        self.starts = np.cumsum([0, *counts])
        self.maps: dict[int, np.ndarray[Any, np.dtype[Any]]] = {}

    def _part(self, part: int) -> np.ndarray[Any, np.dtype[Any]]:
        if part not in self.maps:
            number = int(self.starts[part + 1] - self.starts[part])
            self.maps[part] = np.memmap(
                self.folder / f"part-{part:05d}.bin", self.dtype, "r", shape=(number, *self.shape)
            )
        return self.maps[part]

    def picture(self, index: int) -> Tensor:
        return self.read(torch.tensor([index]))[0][0]

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read several pictures at once, with their classes."""
        places = indices.numpy()
        part = np.searchsorted(self.starts, places, side="right") - 1
        images = np.empty((len(places), *self.shape), self.dtype.newbyteorder("="))
        for k in np.unique(part):
            here = part == k
            images[here] = self._part(int(k))[places[here] - self.starts[k]]
        return torch.from_numpy(images), None if self.labels is None else self.labels[indices]


class Latents(Prepared):
    """The memory-mapped latents of a cache, float16.

    Args:
        folder: The cache.

    Raises:
        DataError: It is not finished, or damaged.
    """

    form = LATENTS_FORM
    what = "latents"
    dtype = np.dtype("<f2")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        held: Any = read_json(folder / MANIFEST)
        try:
            self.mean, self.std = (tuple(map(float, held[name])) for name in ("mean", "std"))
            channels, height, width = map(int, held["picture"])
            self.encoder, self.found = str(held["encoder"]), str(held["found"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / MANIFEST}: is no manifest of prepared latents ({error})") from error
        self.pictured = channels, height, width
