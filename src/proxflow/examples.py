"""Examples: data with what they are conditioned on, and predictors with their condition filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxflow.errors import ArgumentError

Condition = Union[Tensor, Mapping[str, Tensor]]  # noqa: UP007 - read by typing.get_type_hints
"""What a prediction is conditioned on, one row an example: labels, vectors, images, or a dictionary of them."""

Predict = Callable[..., Any]
"""A belief of a flow's family and times (batch,) → the predicted target, a belief of the same family."""

GUIDANCE = "guidance"
"""Name of the part of a condition that says how predictions are guided, (batch, 3): weight, first and last time."""

C = TypeVar("C", bound=Union[Condition, None])  # noqa: UP007


def _each(value: C, change: Callable[[Tensor], Tensor]) -> C:
    """Change every tensor of a condition."""
    if value is None:
        return value
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    return {name: change(tensor) for name, tensor in value.items()}  # type: ignore[return-value]


def rows(value: C, index: Any) -> C:
    """Take rows of a condition, as of a tensor: a slice, or indices (number,)."""
    return _each(value, lambda tensor: tensor[index])


def moved(value: C, device: torch.device | str) -> C:
    """Bring a condition to a device."""
    return _each(value, lambda tensor: tensor.to(device))


def check_rows(value: Condition | None, number: int, name: str) -> None:
    """Refuse what has not one row an example.

    Raises:
        ArgumentError: It is no tensor or dictionary of tensors, or has another number of rows.
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
    """Refuse a condition before any work: without one row an example, or with values that a network does not know.

    Networks that know check it by a method ``check_condition`` of theirs or of a module in them. This waits for the device.

    Raises:
        ArgumentError: As :func:`check_rows`, and as these methods.
    """
    check_rows(condition, number, "condition")
    modules = getattr(predict, "modules", None)
    if condition is not None and modules is not None:
        for check in [part.check_condition for part in modules() if hasattr(part, "check_condition")]:
            check(condition)


def without(condition: C, dropped: Tensor) -> C:
    """Take the condition from some examples: labels become −1, real numbers NaN, which networks read as none.

    Args:
        condition: One row an example.
        dropped: Whether an example loses its condition, bool (batch,).
    """

    def change(tensor: Tensor) -> Tensor:
        lost = dropped[(slice(None), *[None] * (tensor.ndim - 1))]
        return tensor.masked_fill(lost, torch.nan if tensor.is_floating_point() else -1)

    return _each(condition, change)


def lacking(condition: Condition) -> Tensor:
    """Tell which examples have no condition at all, as :func:`without` leaves them, bool (batch,)."""
    lacks = [a.flatten(1).isnan().all(1) if a.is_floating_point() else a < 0 for a in named(condition).values()]
    return torch.stack(lacks).all(0)


def named(condition: Condition) -> dict[str, Tensor]:
    """Return the parts of a condition by name; one that is a tensor is of labels, vectors or images, by its form."""
    if isinstance(condition, Tensor):
        return {{1: "label", 2: "vector"}.get(condition.ndim, "image"): condition}
    return dict(condition)


def joined(first: C, second: C) -> C:
    """Put the rows of a second condition of the same form after those of a first."""
    if isinstance(first, Mapping):
        return {name: torch.cat([part, second[name]]) for name, part in first.items()}  # type: ignore[return-value, index]
    return torch.cat([first, second])  # type: ignore[return-value, list-item]


@dataclass(frozen=True, eq=False)
class Examples:
    """Data, and what each of them comes with.

    Args:
        x: Data (number, *event), a tensor or an array, as the others.
        condition: What each is conditioned on, (number, …), or a dictionary of such; ``None`` for nothing.
        start: The prior draw that each is paired with, (number, *event), as :func:`proxflow.make_pairs` makes them; ``None``
            draws it anew at every step.

    Raises:
        ArgumentError: The numbers of rows differ, or it is no tensor or array of numbers.
    """

    x: Tensor
    condition: Condition | None = None
    start: Tensor | None = None

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
        """Take some of the examples: a slice, or indices (number,)."""
        return Examples(self.x[index], rows(self.condition, index), rows(self.start, index))

    def told(self) -> list[tuple[str, Condition | Tensor]]:
        """List by name what a loss is told beside the data."""
        parts = (("condition", self.condition), ("start", self.start))
        return [(name, value) for name, value in parts if value is not None]

    def to(self, device: torch.device | str) -> Examples:
        """Bring all tensors to a device."""
        return Examples(self.x.to(device), moved(self.condition, device), moved(self.start, device))


def examples_of(data: Any, what: str) -> Examples:
    """Return data as examples, however they come.

    Args:
        data: A tensor or array (number, *event); examples; a pair (data, conditions) of these; a map-style
            ``torch.utils.data.Dataset`` of events or of pairs (event, label), or a ``DataLoader``, of which the data set is
            taken: the order is training's own.
        what: What they are, for messages, as "training".

    Raises:
        ArgumentError: They are none of these, or a data set has no length or examples of several shapes.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], int | float):
        x, condition = (_tensor(part) for part in data)
        if x is not None and condition is not None:
            return Examples(x, condition)
    found = _tensor(data)
    if found is not None:
        return Examples(found)
    if isinstance(data, DataLoader):
        return examples_of(data.dataset, what)
    if isinstance(data, Dataset) and hasattr(data, "__len__") and len(data):
        return _collected(data, what)
    raise ArgumentError(
        f"{what} data are a tensor or array (number, *event), proxflow.Examples, or a data set with a length, got "
        f"{type(data).__name__}"
    )


def as_tensor(value: Any) -> Any:
    """Return an array of numbers as a tensor, and everything else as it is; a dictionary likewise, part by part."""
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
    # Torch shares memory with arrays of the machine's byte order that go forward, and has few types without a sign.
    array = np.require(array.astype(array.dtype.newbyteorder("="), copy=False), requirements="C")
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _collected(dataset: Dataset[Any], what: str) -> Examples:
    """Read all examples of a data set into memory."""
    drawn = [dataset[k] for k in range(len(dataset))]  # type: ignore[arg-type]
    columns = list(zip(*drawn, strict=True)) if isinstance(drawn[0], tuple | list) else [drawn]
    if not 1 <= len(columns) <= 2:
        raise ArgumentError(
            f"{what} data sets give an event, or an event and its label; this one gives {len(columns)} things: wrap it to "
            "give two, or give proxflow.Examples"
        )
    stacked = []
    for column in columns:
        parts = [part if isinstance(part, Tensor) else _tensor(np.asarray(part)) for part in column]
        shapes = {tuple(part.shape) for part in parts if part is not None}
        if len(shapes) != 1 or any(part is None for part in parts):
            raise ArgumentError(
                f"{what} data sets give tensors or arrays of one shape, got {sorted(shapes) or type(column[0]).__name__}: "
                "let a transform bring them to one"
            )
        stacked.append(torch.stack(parts))  # type: ignore[arg-type]
    return Examples(*stacked)


def reads(predict: Predict) -> frozenset[str]:
    """Tell what a predictor is to be called with beside belief and time, of "end", "noise" and "condition"."""
    # Wrappers such as DistributedDataParallel hold the predictor as ``module``.
    asks = getattr(predict, "reads", None) or getattr(getattr(predict, "module", None), "reads", None)
    return frozenset(asks or ())


class Given:
    """A predictor whose condition is filled in.

    Args:
        predict: The predictor.
        condition: Its condition, one row an example of the batch that it will be called with.
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
        """Return what predicts at each of the times, with the condition filled in."""
        return [Given(predict, self.condition) for predict in planned(self.predict, times)]


def planned(predict: Predict, times: Sequence[float]) -> list[Predict]:
    """Return what predicts at each of the times of one run of samples, all known beforehand.

    It is the predictor itself, unless that has a method ``planned`` which says otherwise, as one does that does more at some
    times than at others.
    """
    plan = getattr(predict, "planned", None)
    return [predict] * len(times) if plan is None else list(plan(times))


def evaluations(predict: Predict) -> int:
    """Return the network evaluations of a call of a predictor, 1 unless it says otherwise."""
    return int(getattr(predict, "evaluations", 1))


def given(predict: Predict, condition: Condition | None) -> Predict:
    """Fill in a predictor's condition: what comes out is called like a predictor without one.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted target.
        condition: One row an example; ``None`` gives the predictor back.

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
    """Return a predictor for some examples of a batch: of what it holds for each example, as an observation, their rows."""
    own = getattr(predict, "rows", None)
    return predict if own is None else own(index)


def _called(predict: Predict) -> str:
    network = getattr(predict, "network", None)
    inside = "" if network is None else f" of {type(network).__name__}"
    return getattr(predict, "__name__", type(predict).__name__) + inside
