"""Specifications: flows and their parts, networks, predictors, samplers and kinds of data as strings and as JSON.

A spec string is ``NAME[:field=value[,field=value…]]``, as in ``unet:channels=64,multipliers=1,2`` or
``gpfn:divergence=alpha:a=0.5``: a comma starts a new field only if ``field=`` follows. Nested strings may be in
parentheses, and must be if a comma in them would start a field: ``w2:metric=(frequency:height=28,width=28)``. ``none``
means ``None``.

In a file this is ``{"kind": name, field: value, …}``. Names are those of :mod:`proxflow.names`; fields, their types and
their defaults are those of the frozen dataclass of that name, or of the constructor of a network or predictor.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from proxflow import names
from proxflow.couplings import Coupling
from proxflow.divergences import Divergence, GroundMetric
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.flows import Endpoints, Flow
from proxflow.paths import GaussianPath, Schedule
from proxflow.predictors import GuidanceRule, Predictor
from proxflow.samplers import Sampler
from proxflow.solvers import Solver

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_GROUPS: dict[Any, str] = {
    Flow: "flows",
    Divergence: "divergences",
    GroundMetric: "metrics",
    Schedule: "schedules",
    GaussianPath: "paths",
    Endpoints: "endpoints",
    Coupling: "couplings",
    Solver: "solvers",
}
"""Groups of names, by the type of the field."""

_BASES: dict[str, type[Any]] = {
    "divergences": Divergence,
    "samplers": Sampler,
    "networks": nn.Module,
    "predictors": Predictor,
    "guidance": GuidanceRule,
}
"""Base classes that classes from other packages must derive from."""

_TOLD = {"networks": ("outputs", "reads_end"), "predictors": ("network", "flow")}
"""Parameters of constructors that are not settings, because the model supplies them."""

_LONGEST = 2**20
"""Largest length of a list, as a file could hold any number."""

_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Part:
    """A specification of a network or predictor.

    Args:
        kind: Its name.
        settings: Keyword arguments of its constructor.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Field(NamedTuple):
    """A setting: its type, and its default, :data:`inspect.Parameter.empty` if it has none."""

    hint: Any
    default: Any


def fields(group: str, kind: str) -> dict[str, Field]:
    """Return the settings of a name.

    Raises:
        ArgumentError: There is no such name, or its class cannot be imported or does not belong to the group.
    """
    return _fields(group, kind, class_of(group, kind))


def settings_of(group: str, kind: str) -> dict[str, str]:
    """Return the settings of a name with their defaults as in a string; "…" for required ones.

    Raises:
        ArgumentError: As :func:`fields`.
    """
    usual = _usual(group, kind)
    return {
        name: _text(usual[name]) if name in usual else "none" if entry.default is None else "…"
        for name, entry in fields(group, kind).items()
    }


def parse(group: str, text: str) -> Any:
    """Return the object of a spec string; for networks and predictors a :class:`Part`.

    Raises:
        ArgumentError: An unknown name or field, or a value of the wrong type or out of range.
    """
    return make(group, content(group, text))


def make(group: str, value: Any) -> Any:
    """Return the object that JSON values describe; for networks and predictors a :class:`Part` with all settings.

    Raises:
        ArgumentError: An unknown name or field, or a value of the wrong type or out of range.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise ArgumentError(f'expected one of the {group} as {{"kind": name, …}}, got {value!r:.80}')
    kind = value["kind"]
    found = class_of(group, kind)
    known = _fields(group, kind, found)
    settings = {**names.find(group, kind).settings, **{name: v for name, v in value.items() if name != "kind"}}
    values = _values(settings, known, kind)
    if group in _TOLD:
        return Part(kind, {name: values.get(name, known[name].default) for name in known})
    return _constructed(found, values, kind)


def restore(group: str, value: Any, where: str) -> Any:
    """Return the object that a file has as :func:`describe` wrote it; for networks and predictors a :class:`Part`.

    Raises:
        CheckpointError: An unknown name or field, or a value of the wrong type or out of range; ``where`` names the
            file.
    """
    try:
        return make(group, value)
    except (ArgumentError, RecursionError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def describe(thing: Any) -> dict[str, Any]:
    """Return an object, a predictor or a :class:`Part` as JSON values, ``{"kind": name, field: value, …}``.

    Fields that are ``None`` are left out if that is their default.

    Raises:
        ArgumentError: The object or a field has no name: a function, an energy, or a class that no installed package
            registers. The message names the field.
    """
    if isinstance(thing, Part):
        return {"kind": thing.kind, **{name: _written(value, None, name) for name, value in thing.settings.items()}}
    own, _, found = _described(thing)
    # The plain name if no preset matches; else the preset that fixes most settings.
    kind, _ = max(found.items(), key=lambda item: (not item[1], _agree(item[1], own), -len(item[1])))
    return {"kind": kind, **own}


def word(thing: Any) -> str:
    """Return the shortest spec string of an object or predictor, for :func:`parse` and for titles of reports.

    Raises:
        ArgumentError: As :func:`describe`.
    """
    if isinstance(thing, Part):
        own, group = describe(thing), next((g for g in _TOLD if thing.kind in names.known(g)), "")
        found: Mapping[str, Any] = {own.pop("kind"): {}}
    else:
        own, group, found = _described(thing)
    words = []
    for kind in found:
        usual = _usual(group, kind) if group else {}
        changed = {name: own.get(name) for name in {**own, **usual} if usual.get(name) != own.get(name)}
        words.append((len(changed), -_agree(found[kind], own), kind, changed))
    *_, kind, changed = min(words, key=lambda found: found[:2])
    return kind + ":" * bool(changed) + ",".join(f"{name}={_text(value)}" for name, value in changed.items())


def content(group: str, given: Any) -> dict[str, Any]:
    """Return a spec string, object or :class:`Part` as JSON values; for a string only the fields in it.

    Raises:
        ArgumentError: As :func:`parse` and :func:`describe`.
    """
    if not isinstance(given, str):
        return describe(given)
    kind, colon, rest = _unwrapped(given).partition(":")
    found: dict[str, Any] = {"kind": kind.strip()}
    known = fields(group, found["kind"])
    found.update(_given(rest, known, found["kind"]) if colon else {})
    if group == "samplers":
        _refuse_overridden(found)
    return found


def _refuse_overridden(given: Mapping[str, Any]) -> None:
    """Refuse a sampler whose settings override what its name fixes, if another name has them."""
    kind, entry = given["kind"], names.find("samplers", given["kind"])
    wanted = {**entry.settings, **given}
    undone = [name for name, value in entry.settings.items() if wanted[name] != value]
    fitting = [
        (len(other.settings), name)
        for name, other in names.known("samplers").items()
        if other.target == entry.target and all(wanted.get(key) == value for key, value in other.settings.items())
    ]
    if undone and fitting:
        name, better = undone[0], max(fitting)[1]
        raise ArgumentError(f"{kind} fixes {name} = {_text(entry.settings[name])}: take {better}, or leave {name} out")


def class_of(group: str, kind: str) -> type[Any]:
    """Return the class of a name.

    Raises:
        ArgumentError: There is no such name, or its class cannot be imported or does not belong to the group.
    """
    found = names.find(group, kind).load()
    base = _BASES.get(group)
    if group == "kinds":
        from proxflow.data.kinds import Kind as base  # noqa: N813 - the library imports no data before a model needs it
    if group == "autoencoders":
        from proxflow.data.autoencoders import Autoencoder as base  # noqa: N813
    if base is not None and not issubclass(found, base):
        raise ArgumentError(f"{kind} of the {group} is {found.__name__}, which does not derive from {base.__name__}")
    return found


def _fields(group: str, kind: str, found: type[Any]) -> dict[str, Field]:
    if group in _TOLD:
        constructor: Any = found.__init__
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        hints = _hints(constructor, kind)
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {
            p.name: Field(hints.get(p.name, type(p.default)), p.default)
            for p in parameters[group == "networks" :]  # a network's first parameter is the shape
            if p.name not in _TOLD[group] and p.kind not in variable
        }
    if not dataclasses.is_dataclass(found):
        raise ArgumentError(
            f"{kind} of the {group} is {found.__name__}, which is no dataclass, so it has no settings to name"
        )
    return _dataclass_fields(found, kind)


def _dataclass_fields(found: type[DataclassInstance], kind: str) -> dict[str, Field]:
    hints = _hints(found, kind)
    known = {}
    for entry in dataclasses.fields(found):
        if entry.init:
            default = entry.default
            if default is dataclasses.MISSING:
                made = entry.default_factory
                default = _REQUIRED if made is dataclasses.MISSING else made()
            known[entry.name] = Field(hints[entry.name], default)
    return known


def _hints(thing: Any, kind: str) -> dict[str, Any]:
    try:
        return get_type_hints(thing)
    except (NameError, TypeError, AttributeError) as error:
        raise ArgumentError(f"the types of the settings of {kind} cannot be read: {error}") from error


def _values(settings: Mapping[str, Any], known: Mapping[str, Field], kind: str) -> dict[str, Any]:
    for name in settings:
        _refuse_unknown(name, known, kind)
    if missing := [name for name, entry in known.items() if entry.default is _REQUIRED and name not in settings]:
        raise ArgumentError(f"{kind} needs the setting {missing[0]}, as in {kind}:{missing[0]}=…")
    return {name: _value(known[name].hint, value, f"{kind}: {name}") for name, value in settings.items()}


def _refuse_unknown(name: str, known: Mapping[str, Field], kind: str) -> None:
    if name not in known:
        has = f"its settings are {', '.join(known)}" if known else "it has no settings"
        raise ArgumentError(f"{kind} has no setting {name!r:.80}: {has}")


def _constructed(found: type[Any], values: dict[str, Any], kind: str) -> Any:
    try:
        return found(**values)
    except (TypeError, ValueError) as error:  # an ArgumentError is a ValueError
        raise ArgumentError(f"{kind}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value converted to a field's type."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        return _value(_some(inner), value, where)
    if origin in _GROUPS:
        try:
            return make(_GROUPS[origin], value)
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from error
    if origin is Literal:
        for choice in inner:
            if type(choice) is type(value) and choice == value:
                return choice
        raise ArgumentError(f"{where} must be one of {', '.join(map(str, inner))}, got {value!r:.80}")
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple) or len(value) > _LONGEST:
            raise ArgumentError(f"{where} must be a list of at most {_LONGEST} values, got {value!r:.80}")
        hints = [inner[0] if inner else Any] * len(value)
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            hints = list(inner)
            if len(value) != len(hints):
                raise ArgumentError(f"{where} must be a list of {len(hints)} values, got {value!r:.80}")
        items = [_value(h, item, where) for h, item in zip(hints, value, strict=True)]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ArgumentError(f"{where} must have values by name, got {value!r:.80}")
        return {name: _value(inner[1], item, f"{where}: {name:.80}") for name, item in value.items()}
    if dataclasses.is_dataclass(origin) and isinstance(origin, type):
        if not isinstance(value, Mapping):
            raise ArgumentError(f"{where} must have the fields of {origin.__name__} by name, got {value!r:.80}")
        return _constructed(origin, _values(value, _dataclass_fields(origin, where), where), where)
    if hint is Tensor:
        try:
            return torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"{where} must be an array of numbers, got {value!r:.80}") from error
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    expected = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text"}.get(hint)
    if expected is None:
        raise ArgumentError(f"{where} cannot be named or held by a file, as a function cannot: give it in Python")
    if hint is float or type(value) is not hint or (hint is int and not abs(value) < 2**63):
        raise ArgumentError(f"{where} must be {expected}, got {value!r:.80}")
    return value


def _some(inner: tuple[Any, ...]) -> Any:
    """Return the type of an optional value without ``None``."""
    return next(hint for hint in inner if hint is not types.NoneType)


# Words


def _given(text: str, known: Mapping[str, Field], kind: str) -> dict[str, Any]:
    """Return ``field=value,…`` as JSON values by field."""
    found: dict[str, Any] = {}
    for piece in _split(text, r"\s*[A-Za-z_]\w*="):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals:
            raise ArgumentError(f"expected {kind}:field=value,field=value…, got {piece!r:.80} in {text!r:.80}")
        _refuse_unknown(name, known, kind)
        if name in found:
            raise ArgumentError(f"{kind} is given {name} twice, in {text!r:.80}")
        found[name] = _plain(known[name].hint, value, f"{kind}: {name}")
    return found


def _plain(hint: Any, text: str, where: str) -> Any:
    """Return the text of a value as JSON values; text of the wrong type is kept, for :func:`_value` to refuse."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return None if text.lower() == "none" and types.NoneType in inner else _plain(_some(inner), text, where)
    if origin in _GROUPS:
        return content(_GROUPS[origin], text)
    if origin is Literal:
        return next((choice for choice in inner if str(choice) == text), text)
    if origin in (tuple, list, Sequence):
        pieces = _items(text, (inner and get_origin(inner[0])) in (tuple, list, Sequence))
        hints = inner if origin is tuple and inner and inner[-1] is not Ellipsis else inner[:1] * len(pieces)
        return [_plain(h, _unwrapped(piece), where) for h, piece in zip(hints, pieces, strict=False)] + pieces[
            len(hints) :
        ]
    if dataclasses.is_dataclass(origin) and isinstance(origin, type):
        return _given(_unwrapped(text), _dataclass_fields(origin, where), where)
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    readers: dict[Any, Callable[[str], Any]] = {str: str, int: int, float: float, Tensor: _numbers}
    try:
        return readers.get(hint, json.loads)(text)
    except ValueError:
        return text


def _numbers(text: str) -> Any:
    """Return the numbers of an array, with or without brackets."""
    found = json.loads(f"[{text}]")
    return found[0] if len(found) == 1 else found


def _items(text: str, nested: bool) -> list[str]:
    """Return the items of a list, with or without brackets; items may be lists."""
    if text in ("", "()"):
        return []
    pieces = [piece.strip() for piece in _split(_unwrapped(text))]
    # Outer brackets may be those of the only item: a list, or a string with settings.
    if any(re.match(r"[A-Za-z_]\w*=", piece) or (nested and piece[:1] not in ("(", "[")) for piece in pieces):
        return [piece.strip() for piece in _split(text)]
    return [] if pieces == [""] else pieces


def _split(text: str, before: str = "") -> list[str]:
    """Split at commas outside brackets if the text after them matches a pattern."""
    pieces, depth, start = [], 0, 0
    for k, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and re.match(before, text[k + 1 :]):
            pieces.append(text[start:k])
            start = k + 1
    return [*pieces, text[start:]]


def _unwrapped(text: str) -> str:
    """Return a text without its outer brackets."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("()", "[]"):
        return text
    depth = 0
    for k, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return text[1:-1] if k == len(text) - 1 else text
    return text


# Objects


def _described(thing: Any) -> tuple[dict[str, Any], str, dict[str, Mapping[str, Any]]]:
    """Return an object's fields as JSON values, its group, and the names of its class with the settings they fix."""
    found = names.names_of(type(thing))
    if not found:
        if isinstance(thing, type) and (known := names.names_of(thing)):
            way = "" if issubclass(thing, nn.Module) else f", or an object, {thing.__name__}(…)"
            raise ArgumentError(f"{thing.__name__} is a class: give its word, {known[0][1]!r}{way}")
        called = thing.__name__ if isinstance(thing, type) else type(thing).__name__
        mend = (
            "train it by proxflow.fit(proxflow.PointPredictor(network, flow), flow, data), which needs no name, or give its "
            "class one by an entry point of the group proxflow.networks (CONTRIBUTING.md)"
            if isinstance(thing, nn.Module) or (isinstance(thing, type) and issubclass(thing, nn.Module))
            else "names come from proxflow (proxflow list) and, by entry points, from installed packages"
        )
        raise ArgumentError(f"{called} has no name, so no file can hold it: {mend}")
    group, kind, _ = found[0]
    if group == "networks":
        raise ArgumentError(
            f"{type(thing).__name__} is made by its word, {kind!r} with its settings as {kind}:NAME=VALUE, or is trained as "
            "it is by proxflow.fit(proxflow.PointPredictor(network, flow), flow, data)"
        )
    own = _fields_of(thing, _fields(group, kind, type(thing)), kind)
    return own, group, {name: entry.settings for g, name, entry in found if g == group and not entry.chosen}


def _fields_of(thing: Any, known: Mapping[str, Field], kind: str) -> dict[str, Any]:
    """Return an object's fields as JSON values, without those that have the default ``None``."""
    values = {name: getattr(thing, name) for name in known}
    return {
        name: _written(value, known[name].hint, f"{kind}: {name}")
        for name, value in values.items()
        if value is not None or known[name].default is not None
    }


def _agree(settings: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Return the number of a preset's settings that an object has, minus the number that it lacks."""
    return sum(1 if own.get(name) == value else -1 for name, value in settings.items())


def _usual(group: str, kind: str) -> dict[str, Any]:
    """Return the default fields of a name."""
    usual = dict(names.find(group, kind).settings)
    for name, entry in fields(group, kind).items():
        if entry.default is not _REQUIRED and entry.default is not None:
            usual.setdefault(name, _written(entry.default, entry.hint, name))
    found = fields(group, kind)
    if not any(entry.default is _REQUIRED and name not in usual for name, entry in found.items()):
        made = make(group, {"kind": kind, **names.find(group, kind).settings})
        for name, entry in found.items():
            if entry.default is None and getattr(made, name, None) is not None:  # which the class fills in
                usual[name] = _written(getattr(made, name), entry.hint, name)
    nested = {name: v for name, v in usual.items() if isinstance(v, Mapping) and "kind" in v}
    return {**usual, **{name: describe(make(_group(group, kind, name), v)) for name, v in nested.items()}}


def _group(group: str, kind: str, name: str) -> str:
    """Return the group of names that a field of a name takes."""
    hint = fields(group, kind)[name].hint
    hint = _some(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else hint
    return _GROUPS.get(get_origin(hint) or hint, "")


def _written(value: Any, hint: Any, where: str) -> Any:
    """Return a field's value as JSON values."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise ArgumentError(f"{where} is not finite: {value}")
    if isinstance(value, list | tuple):
        inner = get_args(hint)
        return [_written(item, inner[0] if inner and inner[-1] is Ellipsis else None, where) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _written(item, None, f"{where}: {name}") for name, item in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) in (hint, *get_args(hint)) and not names.names_of(type(value)):
            return _fields_of(value, _dataclass_fields(type(value), where), where)
        try:
            return describe(value)
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from error
    raise ArgumentError(f"{where} cannot be written to a file, as no function can: {value!r:.80}")


def _text(value: Any) -> str:
    """Return a JSON value in the syntax of spec strings."""
    if isinstance(value, Mapping):
        kind = value.get("kind")
        rest = ",".join(f"{name}={_text(item)}" for name, item in value.items() if name != "kind")
        return f"({kind}:{rest})" if kind and rest else kind or f"({rest})"
    if isinstance(value, list):
        return ",".join(f"[{_text(item)}]" if isinstance(item, list) else _text(item) for item in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
