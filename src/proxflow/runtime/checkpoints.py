"""Checkpoints: folders of safetensors and JSON, verified completely before anything of them is used.

A checkpoint ``step-00000500`` holds ``state-*.safetensors``, one file for each process that holds a part of the state,
``progress.json``, and ``manifest.json`` with the size and SHA-256 of both. It is written under another name, flushed
and then renamed, so that a folder of this name is always a complete checkpoint. It can be read by any number of
processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from proxflow.errors import CheckpointError, OutputError
from proxflow.runtime.files import (
    check_plain,
    flush_folder,
    open_plain,
    read_json,
    uninterrupted,
    writable_folder,
    write_atomically,
)
from proxflow.runtime.processes import Processes, local, rows_of

FORMAT = 2
"""Format of these folders; format 1 was the single file of :data:`OLD`, which is still read."""

OLD = "checkpoint.safetensors"
_NAME = re.compile(r"step-(\d{8,})")
_PIECE = re.compile(r"state-\d{5,}-of-\d{5,}\.safetensors")


@uninterrupted()
def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        CheckpointError: The file is missing, truncated or corrupt, or holds values that are not finite.
    """
    try:
        check_plain(path)
        tensors: dict[str, Tensor] = load_file(path)
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not finite(tensor):
            raise CheckpointError(f"{path}: tensor {name!r} holds values that are not finite")
    if stated is not None and stated != checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its content is not what its checksum says")
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode("utf-8", "surrogatepass"))
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@uninterrupted()
def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with a checksum of its content, atomically.

    Raises:
        OutputError: It cannot be written; a previous version is left unchanged.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        told = {**(metadata or {}), "sha256": checksum(plain)}
        write_atomically(path, lambda temporary: save_file(plain, temporary, metadata=told))
    except SafetensorError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, as integers are."""
    # One-byte types have no test of their own, and float32 represents all their values.
    wide = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
    return not wide.is_floating_point() or bool(wide.isfinite().all())


class Checkpoints:
    """The checkpoints of a run, in a folder.

    Args:
        folder: The run's folder.
        keep: Number of newest checkpoints to keep; the best is kept as well.
        processes: The processes of the training, all of which see the folder.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: Path, keep: int, processes: Processes) -> None:
        self.run, self.folder, self.keep, self.processes = folder, folder / "checkpoints", keep, processes
        with processes.together():
            if processes.first:
                writable_folder(folder)

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, oldest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, verified; ``None`` if there is none.

        Raises:
            CheckpointError: It is damaged. An older one is only used after this one has been removed.
        """
        steps = self.steps()
        if not steps:
            old = self.run / OLD
            return Checkpoint.of_file(old) if old.exists() else None
        found: Checkpoint | None = None
        with self.processes.together():
            # One process verifies it; doing so in all would multiply the work.
            try:
                found = Checkpoint(self.path(steps[-1]), verify=self.processes.first)
            except CheckpointError as error:
                hint = f"; remove that folder to go on from step {steps[-2]}" if len(steps) > 1 else ""
                raise CheckpointError(f"{error}{hint}") from error
        return found

    def save(self, step: int, state: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        """Write a checkpoint, and then remove those that are neither among the newest nor the best.

        Args:
            step: Steps done.
            state: All tensors of the run; for sharded ones this process's rows are written.
            progress: The rest, as JSON values; the lowest ``score`` is the best.

        Raises:
            OutputError: It cannot be written. Earlier checkpoints are unchanged, and the message names the newest.
        """
        target, ours = self.path(step), self.processes
        temporary = target.with_name(f".{target.name}")
        piece = temporary / f"state-{ours.rank:05d}-of-{ours.size:05d}.safetensors"
        try:
            with ours.together():
                if ours.first:
                    _remove(temporary)
                    writable_folder(temporary)
            with ours.together():
                sharded = {name for name, tensor in state.items() if local(tensor) is not tensor}
                rows = {name: rows_of(state[name], ours).start for name in sharded}
                # Every process has the same unsharded tensors, and the first one writes them.
                mine = {name: local(tensor) for name, tensor in state.items() if ours.first or name in sharded}
                write_tensors(piece, mine, {"rows": json.dumps(rows)})
            with ours.together():
                if ours.first:
                    self._finish(temporary, target, {"format": FORMAT, **progress})
        except OutputError as error:
            if ours.first:
                shutil.rmtree(temporary, ignore_errors=True)
            kept = self.steps()
            still = f"; the checkpoint of step {kept[-1]} in {self.folder} is still good" if kept else ""
            raise OutputError(f"{error}{still}") from error

    def _finish(self, temporary: Path, target: Path, progress: dict[str, Any]) -> None:
        text = json.dumps(progress, indent=2, allow_nan=False)
        write_atomically(temporary / "progress.json", lambda path: _write(path, text))
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        manifest = json.dumps({"format": FORMAT, "files": files}, indent=2)  # no newline: a lost last byte is noticed
        write_atomically(temporary / "manifest.json", lambda path: _write(path, manifest))
        try:
            flush_folder(temporary)
            _remove(target)
            temporary.rename(target)
            flush_folder(self.folder)
            self._prune()
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error

    def _prune(self) -> None:
        steps = self.steps()
        scores = {step: _score(self.path(step)) for step in steps}
        best = min(steps, key=lambda step: (scores[step], -step))
        for step in steps[: -self.keep]:
            if step != best:
                _remove(self.path(step))


class Checkpoint:
    """A complete checkpoint, open for reading.

    Args:
        path: Its folder.
        verify: Whether to compare checksums as well, which reads every file completely.

    Raises:
        CheckpointError: A file is missing, of another length or content, or not in this library's format.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        manifest: Any = read_json(path / "manifest.json")
        form, files = (manifest.get("format"), manifest.get("files")) if isinstance(manifest, dict) else (None, None)
        if isinstance(form, int) and form > FORMAT:
            raise CheckpointError(
                f"{path} has format {form}, and this version reads up to {FORMAT}: install a newer one"
            )
        files = files if isinstance(files, dict) else {}
        pieces = sorted(set(files) - {"progress.json"})
        if form != FORMAT or "progress.json" not in files or not pieces or not all(map(_PIECE.fullmatch, pieces)):
            raise CheckpointError(f"{path / 'manifest.json'}: expected a checkpoint's manifest of format {FORMAT}")
        for name, description in files.items():
            _compare(path / name, description, verify)
        self.progress: dict[str, Any] = read_json(path / "progress.json")
        self.pieces = [path / name for name in pieces]

    @classmethod
    @uninterrupted()
    def of_file(cls, path: Path) -> Checkpoint:
        """Open a checkpoint of format 1: one file, which holds its progress as metadata."""
        read_tensors(path)
        checkpoint = cls.__new__(cls)
        try:
            check_plain(path)
            with safe_open(path, framework="pt") as file:
                checkpoint.progress = json.loads(file.metadata()["progress"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of this library: {error}") from error
        checkpoint.path, checkpoint.pieces = path, [path]
        return checkpoint

    @torch.no_grad()
    @uninterrupted()
    def fill(self, state: Mapping[str, Tensor], processes: Processes) -> None:
        """Copy the saved values into tensors of the same names and shapes, for sharded ones into this process's rows.

        Raises:
            CheckpointError: The checkpoint belongs to another architecture; the message names the first difference.
        """
        try:
            for piece in self.pieces:
                check_plain(piece)
            with ExitStack() as stack:
                files = [stack.enter_context(safe_open(piece, framework="pt")) for piece in self.pieces]
                held: dict[str, list[tuple[int, Any]]] = {}  # name → first row and file of each part
                for file in files:
                    rows = json.loads((file.metadata() or {}).get("rows", "{}"))
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        held.setdefault(name, []).append((rows.get(name, 0), file))
                refuse_difference(str(self.path), set(held), set(state))
                for name, tensor in state.items():
                    self._fill(name, tensor, held[name], processes)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path} is not a checkpoint of this library: {error}") from error

    def _fill(self, name: str, tensor: Tensor, held: list[tuple[int, Any]], processes: Processes) -> None:
        parts = [(start, file.get_tensor(name)) for start, file in held]
        if not all(finite(part) for _, part in parts):
            raise CheckpointError(f"{self.path}: {name!r} holds values that are not finite")
        shape = tuple(parts[0][1].shape)
        if len(parts) > 1:
            shape = (sum(len(part) for _, part in parts), *shape[1:])
        if shape != tuple(tensor.shape):
            raise _other_shape(str(self.path), name, shape, tuple(tensor.shape))
        mine = local(tensor)
        if len(parts) == 1 and mine is tensor:
            mine.copy_(parts[0][1])
            return
        wanted = rows_of(tensor, processes) if mine is not tensor else range(len(tensor))
        for start, part in parts:
            first, stop = max(start, wanted.start), min(start + len(part), wanted.stop)
            if first < stop:
                mine[first - wanted.start : stop - wanted.start].copy_(part[first - start : stop - start])


def refuse_difference(where: str, found: set[str], wanted: set[str]) -> None:
    """Refuse tensors whose names differ from those of a model.

    Raises:
        CheckpointError: The message names the first difference.
    """
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the model does not"
        raise CheckpointError(f"{where} belongs to another architecture: it {what}")


def _other_shape(where: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"{where} belongs to another architecture: {name!r} is {found}, the model's is {wanted}")


@uninterrupted()
def refuse_other_weights(module: torch.nn.Module, path: Path) -> None:
    """Refuse a file whose tensors have other names or shapes than a module's, by its header.

    Raises:
        CheckpointError: The file is corrupt, or belongs to another architecture; the message names the difference.
    """
    try:
        check_plain(path)
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    refuse_difference(str(path), set(found), set(wanted))
    for name, shape in found.items():
        if shape != wanted[name]:
            raise _other_shape(str(path), name, shape, wanted[name])


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Fill a module with the tensors of a file.

    Raises:
        CheckpointError: The file is corrupt, or belongs to another architecture; the message names the difference.
    """
    refuse_other_weights(module, path)
    module.load_state_dict(read_tensors(path))


def digest(module: torch.nn.Module) -> str:
    """Return a checksum of a module's weights."""
    content = b"".join(tensor.cpu().numpy().tobytes() for tensor in module.state_dict().values())
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def keep_newest(folder: Path) -> None:
    """Remove all checkpoints of a finished run but the newest."""
    for path in sorted((folder / "checkpoints").glob("step-*"))[:-1]:
        _remove(path)


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of a finished run."""
    _remove(folder / "checkpoints")
    (folder / OLD).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove a folder or a link, renaming it first, so that a half-removed checkpoint never has a valid name."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        hidden = folder
        if not folder.name.startswith("."):
            hidden = folder.rename(folder.with_name(f".removed-{secrets.token_hex(8)}"))
        shutil.rmtree(hidden, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _describe(path: Path) -> dict[str, Any]:
    with open_plain(path) as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _compare(path: Path, description: Any, verify: bool) -> None:
    try:
        if path.stat().st_size != description["bytes"] or (verify and _describe(path) != description):
            raise CheckpointError(f"{path} is damaged: its length or content is not what the manifest says")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing from its checkpoint") from None
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be compared with its manifest: {error}") from error


def _score(path: Path) -> float:
    """Return a checkpoint's score; infinite if it has none."""
    try:
        score = read_json(path / "progress.json")["score"]
        return float("inf") if score is None else float(score)
    except (CheckpointError, KeyError, TypeError, ValueError):
        return float("inf")
