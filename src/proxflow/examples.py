"""Examples: data with their conditions, and predictors with a fixed condition."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxflow.errors import ArgumentError, DataError, ProxflowError
from proxflow.runtime.machine import fits_in_memory

Condition = Union[Tensor, Mapping[str, Tensor]]  # noqa: UP007 - read by typing.get_type_hints
"""The condition of a prediction, one row per example: labels, vectors, images, or a dictionary of them."""

Predict = Callable[..., Any]
"""A belief of a flow's family and times (batch,) → the predicted target, a belief of the same family."""

GUIDANCE = "guidance"
"""Key of a condition with the guidance of predictions, (batch, 3): weight, first and last time."""

C = TypeVar("C", bound=Union[Condition, None])  # noqa: UP007


def _each(value: C, change: Callable[[Tensor], Tensor]) -> C:
    """Apply a function to every tensor of a condition."""
    if value is None:
        return value
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    return {name: change(tensor) for name, tensor in value.items()}  # type: ignore[return-value]


def rows(value: C, index: Any) -> C:
    """Take rows of a condition, as of a tensor: a slice, or indices (number,)."""
    return _each(value, lambda tensor: tensor[index])


def moved(value: C, device: torch.device | str) -> C:
    """Move a condition to a device."""
    return _each(value, lambda tensor: tensor.to(device))


def check_rows(value: Condition | None, number: int, name: str) -> None:
    """Refuse a condition without one row per example.

    Raises:
        ArgumentError: It is not a tensor or dictionary of tensors, or has another number of rows.
    """
    if value is None:
        return
    parts = value if isinstance(value, Mapping) else {"": value}
    for key, tensor in parts.items():
        called = f"{name}[{key!r}]" if key else name
        if not isinstance(tensor, Tensor) or tensor.ndim < 1:
            raise ArgumentError(f"{called} is a tensor with one row an example, got {type(tensor).__name__}")
        if len(tensor) != number:
            raise ArgumentError(f"{called} has one row an example, {number}; got {len(tensor)}")


def check_condition(predict: Predict, condition: Condition | None, number: int) -> None:
    """Refuse a condition before work starts: without one row per example, or with values that a network refuses.

    Networks check it in a method ``check_condition``, their own or of a submodule. This synchronises with the device.

    Raises:
        ArgumentError: As :func:`check_rows`, and as these methods.
    """
    check_rows(condition, number, "condition")
    modules = getattr(predict, "modules", None)
    if condition is not None and modules is not None:
        for check in [part.check_condition for part in modules() if hasattr(part, "check_condition")]:
            check(condition)


def without(condition: C, dropped: Tensor) -> C:
    """Withhold the condition of some examples: labels become −1, real numbers NaN, which networks read as missing.

    Args:
        condition: One row per example.
        dropped: Whether to withhold an example's condition, bool (batch,).
    """

    def change(tensor: Tensor) -> Tensor:
        lost = dropped[(slice(None), *[None] * (tensor.ndim - 1))]
        return tensor.masked_fill(lost, torch.nan if tensor.is_floating_point() else -1)

    return _each(condition, change)


def lacking(condition: Condition) -> Tensor:
    """Return which examples have no condition at all, as after :func:`without`, bool (batch,)."""
    lacks = [a.flatten(1).isnan().all(1) if a.is_floating_point() else a < 0 for a in named(condition).values()]
    return torch.stack(lacks).all(0)


def named(condition: Condition) -> dict[str, Tensor]:
    """Return the parts of a condition by name; a tensor is one of labels, vectors or images, depending on its form."""
    if isinstance(condition, Tensor):
        return {{1: "label", 2: "vector"}.get(condition.ndim, "image"): condition}
    return dict(condition)


def joined(first: C, second: C) -> C:
    """Concatenate the rows of two conditions of the same form."""
    if isinstance(first, Mapping):
        return {name: torch.cat([part, second[name]]) for name, part in first.items()}  # type: ignore[return-value, index]
    return torch.cat([first, second])  # type: ignore[return-value, list-item]


@dataclass(frozen=True, eq=False)
class Examples:
    """Data with conditions and prior draws.

    Args:
        x: Data (number, *event), a tensor or an array, like the others.
        condition: Condition of each, (number, …), or a dictionary of such; ``None`` for no conditions.
        start: The prior draw of each, (number, *event), as from :func:`proxflow.make_pairs`; ``None`` draws them anew
            at every step.
        content: Identity of these examples, if known without reading them; empty for a checksum.

    Raises:
        ArgumentError: The numbers of rows differ, or a value is not a tensor or array of numbers.
    """

    x: Tensor
    condition: Condition | None = None
    start: Tensor | None = None
    content: str = ""

    def __post_init__(self) -> None:
        for name in ("x", "condition", "start"):
            object.__setattr__(self, name, as_tensor(getattr(self, name)))
        if not isinstance(self.x, Tensor):
            raise ArgumentError(f"x is a tensor or array with one row an example, got {type(self.x).__name__}")
        check_rows(self.x, len(self.x), "x")
        check_rows(self.condition, len(self.x), "condition")
        check_rows(self.start, len(self.x), "start")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Examples:
        """Select some of the examples: a slice, or indices (number,)."""
        content = _of_some(self.content, index, len(self))
        return Examples(self.x[index], rows(self.condition, index), rows(self.start, index), content)

    def some(self, number: int) -> Tensor:
        """Return the first events, to see their shape and type."""
        return self.x[:number]

    def alone(self) -> Examples:
        """Return the data without their conditions."""
        return Examples(self.x, content=self.content)

    def told(self) -> list[tuple[str, Condition | Tensor]]:
        """Return by name the further arguments of a loss."""
        parts = (("condition", self.condition), ("start", self.start))
        return [(name, value) for name, value in parts if value is not None]

    def to(self, device: torch.device | str) -> Examples:
        """Move all tensors to a device."""
        return Examples(self.x.to(device), moved(self.condition, device), moved(self.start, device), self.content)


@dataclass(frozen=True, eq=False)
class LazyExamples:
    """Examples that are read as needed: those of a map-style data set, or some of them.

    Args:
        dataset: For an index it returns an event, or an event and its condition. Random numbers from the global
            generators of torch, numpy and Python are determined by the seed of the step and the example's position in
            the batch. It may have ``labels`` of all examples, (number,), which are then known without reading;
            ``content``, a text that identifies it; and ``read``, a function from indices (batch,) to events and labels.
            An example for which it raises a :class:`proxflow.errors.DataError` is left out: the next one takes its
            place.
        index: Indices of the examples, int64 (number,); ``None`` for all.
        conditional: Whether to use their conditions.
        what: Name of the data in messages, as "training".
    """

    dataset: Any
    index: Tensor | None = None
    conditional: bool = True
    what: str = "training"

    start: ClassVar[None] = None
    """As in :class:`Examples`."""

    def __len__(self) -> int:
        return len(self.dataset) if self.index is None else len(self.index)

    def __getitem__(self, index: Any) -> LazyExamples:
        """Select some of the examples, without reading them: a slice, or indices (number,)."""
        own = torch.arange(len(self)) if self.index is None else self.index
        return LazyExamples(self.dataset, own[index], self.conditional, self.what)

    @property
    def condition(self) -> Condition | None:
        """Return the conditions of all, if they are used and known without reading."""
        labels: Tensor | None = getattr(self.dataset, "labels", None) if self.conditional else None
        return labels if labels is None or self.index is None else labels[self.index]

    @property
    def x(self) -> Tensor:
        """Return the events of all, in memory.

        Raises:
            DataError: They do not fit into memory, or one cannot be read.
        """
        return self.held().x

    @cached_property
    def size(self) -> int:
        """Return the bytes of all events."""
        first = self.some(1)
        return len(self) * first.numel() * first.element_size()

    def _item(self, place: int) -> Any:
        """Return the data set's item at an index.

        Raises:
            DataError: The data set cannot read it.
            ArgumentError: Another error was raised; the message names the index.
        """
        try:
            return self.dataset[place]
        except ProxflowError:
            raise
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ArgumentError(
                f"{self.what} data set: reading its example {place} raised {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def random(self) -> bool:
        """Return whether the data set uses the global generators of torch, numpy and Python, tested on some examples."""
        if hasattr(self.dataset, "content"):
            return False
        with _global_seed(0):
            before = _global_state()
            for place in {0, len(self.dataset) // 2, len(self.dataset) - 1}:
                with suppress(DataError):
                    self._item(place)
            return any(not np.array_equal(one, other) for one, other in zip(before, _global_state(), strict=True))

    @cached_property
    def content(self) -> str:
        """Return the identity of these examples: the data set's own ``content``, or a checksum of some of them."""
        said = getattr(self.dataset, "content", None)
        if said is None:
            number = len(self.dataset)
            drawn = LazyExamples(self.dataset).take(torch.linspace(0, number - 1, min(64, number)).long())[0].x
            digest = hashlib.sha256(drawn.contiguous().numpy().tobytes()).hexdigest()
            said = f"{type(self.dataset).__name__} of {number}, sha256 {digest} of {len(drawn)}"
        return str(said) if self.index is None else _of_some(str(said), self.index, len(self.dataset))

    def told(self) -> list[tuple[str, Condition | Tensor]]:
        """Return by name the further arguments of a loss, if they are known without reading."""
        return [] if self.condition is None else [("condition", self.condition)]

    def some(self, number: int) -> Tensor:
        """Return the first events that can be read, to see their shape and type."""
        return self.take(torch.arange(min(number, len(self))))[0].x

    def alone(self) -> LazyExamples:
        """Return the data without their conditions."""
        return LazyExamples(self.dataset, self.index, False, self.what)

    def held(self) -> Examples:
        """Read all examples into memory.

        Raises:
            DataError: They do not fit into memory, or one cannot be read.
        """
        if not fits_in_memory(self.size, 0.8):
            raise DataError(
                f"{len(self)} {self.what} examples take {self.size / 1e9:.2g} GB, more than there is memory for: give "
                "smaller ones, or some of them"
            )
        found, left_out = self.take(torch.arange(len(self)))
        if left_out:
            raise DataError(next(iter(left_out.values())))
        return Examples(found.x, found.condition, content=self.content if hasattr(self.dataset, "content") else "")

    def take(self, index: Tensor, key: int = 0, first: int = 0) -> tuple[Examples, dict[int, str]]:
        """Read examples.

        Args:
            index: Indices, int64 (number,).
            key: Seed of the data set's random numbers.
            first: Position of the first in the batch.

        Returns:
            The examples, and the reasons why others could not be read, by their indices in the data set.

        Raises:
            ArgumentError: The data set returns neither an event nor a pair, or events of several shapes, or raises an
                error.
            DataError: A hundred examples in a row cannot be read.
        """
        left_out: dict[int, str] = {}
        read = getattr(self.dataset, "read", None)
        if read is not None:
            x, labels = read(index if self.index is None else self.index[index])
            return Examples(x, labels if self.conditional else None), left_out
        drawn = []
        for place, at in enumerate(index.tolist(), first):
            with _global_seed(key * 0x9E3779B97F4A7C15 + place) if self.random else nullcontext():
                drawn.append(self._one(at, left_out))
        found = _stacked(drawn, self.what)
        return found if self.conditional else found.alone(), left_out

    def _one(self, at: int, left_out: dict[int, str]) -> Any:
        """Read the first readable example from an index on."""
        said = ""
        for ahead in range(min(100, len(self))):
            place = (at + ahead) % len(self)
            place = place if self.index is None else int(self.index[place])
            try:
                return self._item(place)
            except DataError as error:
                said = left_out[place] = str(error)
        raise DataError(f"{len(left_out)} {self.what} examples in a row cannot be read, the last because {said}")


AnyExamples = Examples | LazyExamples
"""Examples in memory, or read as needed."""


def _of_some(content: str, index: Any, number: int) -> str:
    """Return the identity of some examples of a data set with a known one."""
    if not content:
        return ""
    taken = torch.arange(number)[index if not isinstance(index, Tensor) else index.cpu()]
    return f"{content}[{hashlib.sha256(taken.numpy().tobytes()).hexdigest()[:16]}]"


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python within a block."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - that which others draw from
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def _global_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    python_state = random.getstate()[1]
    return torch.get_rng_state().numpy(), numpy_state["key"], numpy_state["pos"], python_state


def examples_of(data: Any, what: str, workers: int | None = None) -> AnyExamples:
    """Return data of any supported form as examples.

    A data set whose events fit into a quarter of the free memory is read into memory, unless it is random.

    Args:
        data: A tensor or array (number, *event); examples; a pair (data, conditions) of these; a map-style
            ``torch.utils.data.Dataset`` of events or of pairs (event, label), −1 for no label, or a ``DataLoader``, of
            which only the data set is used: training has its own order. Events may be Pillow images.
        what: Name of the data in messages, as "training".
        workers: Processes that will read; if given, a data set is not read into memory.

    Raises:
        ArgumentError: The data are none of these, or a data set has no length or examples of several shapes.
    """
    if isinstance(data, Examples | LazyExamples):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], int | float):
        x, condition = (_tensor(part) for part in data)
        if x is not None and condition is not None:
            return Examples(x, condition)
    found = _tensor(data)
    if found is not None:
        return Examples(found)
    if isinstance(data, DataLoader):
        return examples_of(data.dataset, what, workers)
    if isinstance(data, Dataset):
        lazy = LazyExamples(data, what=what)
        if not hasattr(data, "__len__"):
            raise ArgumentError(f"{what} data set {type(data).__name__} has no length: give it __len__ and __getitem__")
        if not len(lazy):
            raise ArgumentError(f"{what} data set {type(data).__name__} is empty: its length is 0")
        return lazy.held() if workers is None and not lazy.random and fits_in_memory(lazy.size) else lazy
    raise ArgumentError(
        f"{what} data are a tensor or array (number, *event), proxflow.Examples, or a data set with a length, got "
        f"{type(data).__name__}"
    )


def as_tensor(value: Any) -> Any:
    """Return an array of numbers as a tensor, a dictionary likewise, and everything else unchanged."""
    if isinstance(value, Mapping):
        return {name: as_tensor(part) for name, part in value.items()}
    found = _tensor(value)
    return value if found is None else found


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor or array as a tensor; else ``None``.

    Raises:
        ArgumentError: It is sparse or quantised.
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            form, way = ("quantised", "dequantize") if value.is_quantized else (f"of {value.layout}", "to_dense")
            raise ArgumentError(f"expected a dense tensor, got one that is {form}: give its {way}()")
        return value
    if not (hasattr(value, "__array__") and hasattr(value, "dtype")):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return None
    # Torch shares memory with arrays of native byte order and positive strides, and has few unsigned types.
    array = np.require(array.astype(array.dtype.newbyteorder("="), copy=False), requirements="C")
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _stacked(drawn: Sequence[Any], what: str) -> Examples:
    """Return items of a data set as examples; Pillow images become uint8 with channels first."""
    if isinstance(drawn[0], Mapping):
        raise ArgumentError(
            f"{what} data sets give (x, label), or x alone; this one gives a dictionary of {', '.join(map(str, drawn[0]))}: "
            "wrap it to give two of these as a pair"
        )
    columns = list(zip(*drawn, strict=True)) if isinstance(drawn[0], tuple | list) else [drawn]
    if not 1 <= len(columns) <= 2:
        raise ArgumentError(
            f"{what} data sets give an event, or an event and its label; this one gives {len(columns)} things: wrap it to "
            "give two, or give proxflow.Examples"
        )
    stacked: list[Any] = []
    for column in columns:
        if stacked and any(part is None or isinstance(part, str) for part in column):
            bad = next(part for part in column if part is None or isinstance(part, str))
            raise ArgumentError(
                f"{what} data sets give labels as whole numbers, got {bad!r}: give the place of a class among all, and −1 "
                "for none"
            )
        if stacked and isinstance(column[0], Mapping):  # conditions by name
            stacked.append({name: _stack([part[name] for part in column], what) for name in column[0]})
        else:
            stacked.append(_stack(column if stacked else list(map(_unpacked, column)), what))
    return Examples(*stacked)


def _unpacked(event: Any) -> Any:
    """Return a Pillow image as bytes (channels, height, width), and everything else unchanged."""
    if not type(event).__module__.startswith("PIL."):
        return event
    if event.mode not in ("L", "RGB"):
        raise ArgumentError(
            f'a picture of Pillow has the mode {event.mode}: let the data set convert it to "L" or "RGB"'
        )
    pixels = np.array(event)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _stack(column: Sequence[Any], what: str) -> Tensor:
    parts = [part if isinstance(part, Tensor) else _tensor(np.asarray(part)) for part in column]
    shapes = {tuple(part.shape) for part in parts if part is not None}
    if len(shapes) != 1 or any(part is None for part in parts):
        raise ArgumentError(
            f"{what} data sets give tensors or arrays of one shape, got {sorted(shapes) or type(column[0]).__name__}: "
            "let a transform bring them to one"
        )
    return torch.stack(parts)  # type: ignore[arg-type]


def reads(predict: Predict) -> frozenset[str]:
    """Return which of "end", "noise" and "condition" a predictor takes beside belief and time."""
    # Wrappers such as DistributedDataParallel hold the predictor as ``module``.
    asks = getattr(predict, "reads", None) or getattr(getattr(predict, "module", None), "reads", None)
    return frozenset(asks or ())


def data_range(predict: Predict) -> tuple[float, float] | None:
    """Return the range (lowest, highest) to which a predictor, or the one that it wraps, clips predicted data, if any."""
    inner: Any = predict
    while inner is not None:
        if isinstance(clip := getattr(inner, "clip", None), tuple | list) and len(clip) == 2:
            return clip[0], clip[1]
        names = ("predict", "predictor", "module", "model")
        inner = next((held for name in names if (held := getattr(inner, name, None)) is not None), None)
    return None


class Given:
    """A predictor with a fixed condition.

    Args:
        predict: The predictor.
        condition: Its condition, one row per example of the batch that it will be called with.
    """

    def __init__(self, predict: Predict, condition: Condition) -> None:
        self.predict, self.condition = predict, condition
        self.reads = reads(predict) - {"condition"}

    def __call__(self, belief: Any, t: Tensor, **told: Any) -> Any:
        return self.predict(belief, t, condition=self.condition, **told)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a call."""
        return evaluations(self.predict)

    def planned(self, times: Sequence[float]) -> list[Predict]:
        """Return the predictor for each of the times, with the condition."""
        return [Given(predict, self.condition) for predict in planned(self.predict, times)]


def planned(predict: Predict, times: Sequence[float]) -> list[Predict]:
    """Return the predictor for each of the times of a sampling run, all known beforehand.

    It is the predictor itself, unless that has a method ``planned``, as a predictor has that costs more at some times
    than at others.
    """
    plan = getattr(predict, "planned", None)
    return [predict] * len(times) if plan is None else list(plan(times))


def evaluations(predict: Predict) -> int:
    """Return the network evaluations of a call of a predictor, its ``evaluations`` or 1."""
    return int(getattr(predict, "evaluations", 1))


def given(predict: Predict, condition: Condition | None) -> Predict:
    """Return a predictor with a fixed condition, which is called like one without.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted target.
        condition: One row per example; ``None`` returns the predictor.

    Raises:
        ArgumentError: The predictor reads no condition.
    """
    if condition is None:
        return predict
    if "condition" not in reads(predict):
        raise ArgumentError(
            f"a condition is given, and {_called(predict)} reads none: take a network whose forward has the parameter "
            "condition, or leave the condition out"
        )
    return Given(predict, condition)


def of_rows(predict: Predict, index: Tensor) -> Predict:
    """Return a predictor for some examples of a batch, with the rows of what it holds per example, as observations."""
    own = getattr(predict, "rows", None)
    return predict if own is None else own(index)


def _called(predict: Predict) -> str:
    network = getattr(predict, "network", None)
    inside = "" if network is None else f" of {type(network).__name__}"
    return getattr(predict, "__name__", type(predict).__name__) + inside
