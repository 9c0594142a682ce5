"""What the commands share. Importable without torch: each function imports it when called."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from proxflow.config import DeviceName, TrainingConfig
from proxflow.errors import ArgumentError
from proxflow.runtime import escape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from proxflow.data.autoencoders import Autoencoder
    from proxflow.data.kinds import Kind
    from proxflow.examples import AnyExamples, Condition
    from proxflow.likelihood import Nats
    from proxflow.models import Model

# For "str | None" tyro imports a type checker, which takes as long as all the rest of it.
Text = Union[str, None]  # noqa: UP007
Number = Union[int, None]  # noqa: UP007
File = Union[Path, None]  # noqa: UP007

ModelSource = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")]
SamplerChoice = Annotated[
    Text,
    tyro.conf.arg(
        metavar="WORD",
        help_behavior_hint="(default: multistep2, or the one that the model needs)",
    ),
]


def word(default: str) -> Any:
    """Annotate an optional string option; ``default`` says what is used without it."""
    return tyro.conf.arg(metavar="WORD", help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class TrainingOptions(TrainingConfig):
    """Training settings."""

    workers: Annotated[
        Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as many as there are further cores)")
    ] = None

    def __post_init__(self) -> None:
        """Check nothing: ranges are checked after parsing, as the parser's messages would name its own internals."""

    def checked(self) -> TrainingConfig:
        """Return them as the library's configuration.

        Raises:
            ArgumentError: A number is out of range or not finite.
        """
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ArgumentError(f"--{name.replace('_', '-')} must be a finite number, got {value}")
        return TrainingConfig(**vars(self))


FEW = 2
"""Network evaluations up to which a one-step student draws better than its teacher."""


@dataclass(frozen=True)
class GuidanceOptions:
    """How predictions are guided.

    Args:
        guidance: Guidance weight toward the class: 1 is none; at 2 samples are clearer and less varied.
        guidance_interval: First and last time with guidance, in [0, 1]; 0 is all noise. Guidance only in the middle
            costs less and keeps more variety.
        guidance_rule: Guidance rule: linear, zero-star or projected; "proxflow list guidance" says what each does. With
            settings: projected:eta=0,cap=15.
        weak: A weaker model of the same flow, by name or folder. Guidance then leads away from its prediction instead
            of from the prediction without a class (autoguidance), and --guidance also works with models without
            classes.
    """

    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rule: Annotated[Text, word("linear")] = None
    weak: Annotated[Text, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none)")] = None

    def check(self) -> None:
        """Refuse an unknown rule, and settings of guidance without a weight.

        Raises:
            ArgumentError: The message names the option.
        """
        from proxflow.models import parse

        parse("guidance", self.guidance_rule or "linear")
        others = (self.guidance_interval, self.guidance_rule, self.weak)
        if self.guidance == 1 and others != ((0.0, 1.0), None, None):
            raise ArgumentError(
                "--weak, --guidance-rule and --guidance-interval say how to guide: give --guidance, as 2"
            )

    def loaded(self, device: torch.device) -> dict[str, Any]:
        """Return the arguments for :meth:`proxflow.Model.sample`, with the weak model loaded; none at weight 1.

        Raises:
            CheckpointError: There is no such weak model, or its files are corrupt.
        """
        from proxflow import models

        if self.guidance == 1:
            return {}
        weak = None if self.weak is None else models.load(self.weak, device)
        rule = models.parse("guidance", self.guidance_rule or "linear")
        return {"guidance": self.guidance, "interval": self.guidance_interval, "rule": rule, "weak": weak}

    @property
    def told(self) -> dict[str, Any]:
        """Return the settings to report; none at weight 1."""
        if self.guidance == 1:
            return {}
        rule, weak = self.guidance_rule or "linear", {} if self.weak is None else {"weak": self.weak}
        return {"guidance": self.guidance, "guidance_interval": self.guidance_interval, "guidance_rule": rule, **weak}


def guided(model: Model, guidance: dict[str, Any], labels: Tensor | None) -> nn.Module:
    """Return the predictor, guided as :meth:`GuidanceOptions.loaded` says.

    Raises:
        ArgumentError: The model cannot be guided, or neither a class nor a weak model is given.
    """
    if not guidance:
        return model.predictor
    if labels is None and guidance["weak"] is None:
        raise ArgumentError("--guidance leads toward a class or away from a model: name one, by --class or --weak")
    return model.guided(guidance["guidance"], guidance["interval"], guidance["rule"], guidance["weak"])


def steps_of(model: Model, name: str, steps: int | None) -> int:
    """Return the predictions per sample, as given or as usual for the model; warn where they are too many."""
    if model.of_one_evaluation and steps is not None and steps > FEW:
        say(f"{name} was taught to draw with one network evaluation, and draws worse with {steps}")
    return model.usual_nfe if steps is None else steps


def spent(model: Model, predictor: nn.Module, sampler: str | None, steps: int) -> int:
    """Count the network evaluations (NFE) of a sample drawn with ``steps`` predictions."""
    from proxflow.examples import evaluations, planned

    return sum(map(evaluations, planned(predictor, model.times_used(sampler, steps))))


def less_memory_to_train(batch_size: int) -> str:
    """Say how to train with less memory."""
    return (f"lower --batch-size, now {batch_size}, or " if batch_size > 1 else "") + "take a smaller network"


ALL = "all"
"""The name that means every class."""


def classes_asked(asked: Sequence[str], known: Sequence[str], *, once: bool = True) -> list[int]:
    """Return the indices of classes given by name or number, or all; ``once`` refuses a class named twice.

    Raises:
        ArgumentError: The model has no classes, or not these; the message names them.
    """
    if not known:
        raise ArgumentError("--class is for models that were trained with --conditional, and this one has no classes")
    if tuple(asked) == (ALL,):
        return list(range(len(known)))
    chosen = []
    numbered = any(name.isdecimal() for name in known)  # then a number is a name, not an index
    for name in map(escape.name, asked):
        if name in known:
            chosen.append(known.index(name))
        elif name.isdecimal() and int(name) < len(known) and not numbered:
            chosen.append(int(name))
        else:
            listed = ", ".join(known[:30]) + (f" and {len(known) - 30} more" if len(known) > 30 else "")
            if name == ALL:
                raise ArgumentError(f"--class {ALL} is all classes: give it alone, or those that are wanted")
            raise ArgumentError(f"--class {name:.80}: the model knows no such class; it has {listed}, or {ALL}")
    if once and (twice := [k for k in chosen if chosen.count(k) > 1]):
        raise ArgumentError(f"--class names {known[twice[0]]:.80} twice: name each class once")
    return chosen


def say(line: str) -> None:
    """Print a line at once, also into a file or pipe; with several processes, only in the first.

    Control characters are escaped, see :func:`proxflow.runtime.escape.terminal`.
    """
    from proxflow.runtime.processes import Processes

    if Processes.current().first:
        sys.stdout.write(escape.terminal(line) + "\n")
        sys.stdout.flush()


@contextmanager
def first_alone() -> Iterator[bool]:
    """Yield whether this process is the first, which alone writes; if the block fails there, it fails in all."""
    from proxflow.runtime.processes import Processes

    processes = Processes.current()
    with processes.together():
        yield processes.first


def device_of(name: DeviceName) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if there is one."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "--device cuda: this machine has no CUDA device that PyTorch can use; give --device cpu or auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autoencoder_of(word: str) -> Autoencoder:
    """Return the autoencoder of a string, or of a folder, which is read as one of diffusers.

    Raises:
        ArgumentError: An unknown name or setting.
    """
    from proxflow import names
    from proxflow.data.autoencoders import KL
    from proxflow.models import parse

    if Path(word).is_dir() or word.partition(":")[0] not in names.known("autoencoders"):
        return KL(word)
    found: Autoencoder = parse("autoencoders", word)
    return found


MOST_STEPS = 10**6
"""Most evaluations per sample; more is a typing error, and their times alone would fill the memory."""


def check_counts(
    n: int, steps: int, batch_size: int, least: int = 1, named: tuple[str, str] = ("--n", "--steps")
) -> None:
    """Refuse numbers of samples, steps and batch size that are out of range.

    Raises:
        ArgumentError: The message names the option.
    """
    if n < least:
        raise ArgumentError(f"{named[0]} must be at least {least}, got {n}")
    if steps < 1:
        raise ArgumentError(f"{named[1]}, the number of network evaluations, must be at least 1, got {steps}")
    if steps > MOST_STEPS:
        raise ArgumentError(f"{named[1]}, the number of network evaluations, must be at most {MOST_STEPS}, got {steps}")
    if batch_size < 1:
        raise ArgumentError(f"--batch-size must be at least 1, got {batch_size}")


def check_graph(graph: bool, device: torch.device) -> None:
    """Refuse a CUDA graph on another device."""
    if graph and device.type != "cuda":
        raise ArgumentError(f"--graph records work on a CUDA device, and this is {device.type}: leave it out")


def less_memory(batch_size: int, n: int | None) -> str:
    """Say what to lower when memory ran out while drawing ``n`` examples."""
    at_once = batch_size if n is None else min(batch_size, max(n, 16))
    if at_once == 1:
        return "one at a time is too much: take a smaller network, or a machine with more memory"
    used = f", of which {at_once} are used" if at_once < batch_size else ""
    return f"lower --batch-size, now {batch_size}{used}: try --batch-size {at_once // 2}"


def check_sampler(sampler: str | None) -> None:
    """Refuse an unknown sampler before work starts."""
    from proxflow.models import parse

    if sampler is not None:
        parse("samplers", sampler)


def draw(
    model: Model,
    n: int,
    steps: int,
    sampler: str | None,
    seed: int,
    batch_size: int,
    graph: bool = False,
    condition: Condition | None = None,
    **guidance: Any,
) -> Tensor:
    """Sample with a progress bar: (n, …) in stored form, in every process; each draws its share.

    ``guidance`` are the guidance arguments of :meth:`proxflow.Model.sample`.
    """
    import torch

    from proxflow.examples import rows
    from proxflow.runtime.processes import Processes
    from proxflow.runtime.progress import bar

    processes = Processes.current()
    # Shares begin where batches may: sampling works in multiples of 16 examples.
    mine = processes.part(n, 16)
    if not mine:
        return processes.gather(model.data.decode(torch.zeros(0, *model.shape)), n, 16)
    with bar("sample", len(mine), model.data.examples_word) as show:
        drawn = model.sample(
            len(mine),
            nfe=steps,
            sampler=sampler,
            seed=seed,
            batch_size=batch_size,
            first=mine.start,
            condition=rows(condition, slice(mine.start, mine.stop)),
            progress=show,
            graph=graph,
            **guidance,
        )
    return processes.gather(drawn, n, 16)


def say_how_to_sample(folder: Path) -> None:
    """Print the command that draws from the model in a folder."""
    say(f"draw from it: proxflow sample {folder}")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> None:
    """Print a table on standard output; columns named in ``left`` are left-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Plain

    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(Plain(escape.terminal(heading)), justify="left" if heading in left else "right")
    for row in rows:
        table.add_row(*(Plain(escape.terminal(entry)) for entry in row))
    Console(file=sys.stdout, highlight=False, width=100).print(table)


def content_of(examples: AnyExamples) -> str:
    """Return what identifies these examples: what their source says of them, or a checksum and the shape."""
    import hashlib

    if examples.content:
        return examples.content
    checksum = hashlib.sha256(examples.x.numpy().tobytes()).hexdigest()
    return f"sha256 {checksum}, shape {list(examples.x.shape)}"


def bound_text(kind: Kind, nats: Nats) -> str:
    """Format a likelihood bound in the usual unit for this kind of data."""
    from proxflow.data.kinds.image import Binary
    from proxflow.data.kinds.table import Table

    bits, error = nats.bits_per_dimension, nats.standard_error / (nats.dimensions * math.log(2))
    if isinstance(kind, Binary):
        return f"at most {nats.mean:.2f} ± {nats.standard_error:.2f} nats an image"
    if isinstance(kind, Table):
        return f"at most {nats.mean:.2f} ± {nats.standard_error:.2f} nats a row, numbers in their standard deviations"
    unit = str(getattr(kind, "unit", "dimensions")).removesuffix("s")
    return f"at most {bits:.3f} ± {error:.3f} bits a {unit}"


def bound_record(nats: Nats) -> dict[str, float | int]:
    """Return a likelihood bound as it is saved with a model."""
    return {
        "nats": nats.mean,
        "standard_error": nats.standard_error,
        "bits_per_dimension": nats.bits_per_dimension,
        "examples": len(nats.values),
    }


def origin(device: torch.device) -> dict[str, Any]:
    """Describe where a result is made."""
    from proxflow.runtime.machine import hardware, versions

    return {"hardware": hardware(device), "versions": versions()}
