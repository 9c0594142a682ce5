"""Sizes of the studies, importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from proxflow.config import MethodName, TrainingConfig

PresetName = Literal["quick", "standard", "long", "paper"]
ExperimentName = Literal["mnist", "geometry", "few-step", "guidance", "emoji", "text", "tables", "posterior"]

NFES = (1, 2, 4, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a study.

    Args:
        minutes: About how long it takes, in words.
        seeds: Seeds of all random choices.
    """

    minutes: str
    seeds: tuple[int, ...] = (0,)

    def counted_from(self, seed: int, number: int | None = None) -> Self:
        """Return the preset with seeds counted up from another first one, and optionally another number of them."""
        return replace(self, seeds=tuple(seed + k for k in (self.seeds if number is None else range(number))))

    def settings(self) -> dict[str, Any]:
        """Return the settings that the result depends on, as saved with it."""
        return {name: value for name, value in asdict(self).items() if name != "minutes"}


@dataclass(frozen=True, kw_only=True)
class Preset(Size):
    """All settings of a study that trains.

    Args:
        network: The network of all trials, as a string.
        training: Steps, rate and seed, the same for all trials; its ``seed`` is replaced by each of ``seeds``.
        samples: Samples per cell.
        nfes: Numbers of network evaluations.
        train_images: Number of training images, the first of the data set.
    """

    network: str
    training: TrainingConfig
    samples: int
    nfes: tuple[int, ...] = NFES
    train_images: int = 60_000


_SAMPLERS = {
    "gpfn-w2": ("deterministic", "stochastic", "marginal", "multistep2"),
    "bfn": ("deterministic", "stochastic"),
    "bfn-tuned": ("deterministic", "stochastic", "multistep2"),
}


@dataclass(frozen=True, kw_only=True)
class MnistPreset(Preset):
    """All settings of the paper's experiment.

    Args:
        samplers: Samplers of each flow.
    """

    samplers: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(_SAMPLERS))


PRESETS: dict[PresetName, MnistPreset] = {
    "quick": MnistPreset(
        network="unet:channels=16",
        # So short a training needs a short average of weights, chosen on seeds 1 and 2: with 0.999 the lead over the
        # Bayesian Flow Network is 4.6-fold, short of what is claimed. Two flows train side by side on two cores; a third
        # would wait, and the standard preset has it.
        training=TrainingConfig(steps=1400, batch_size=64, ema=0.995, checkpoint_every=100),
        samplers={name: of for name, of in _SAMPLERS.items() if name != "bfn-tuned"},
        samples=256,
        nfes=NFES[:6],  # no claim needs more, and 50 and 100 evaluations are four fifths of the work of all
        minutes="about 5 minutes on 2 processor cores",
    ),
    "standard": MnistPreset(
        network="unet",
        training=TrainingConfig(steps=2400, batch_size=64, checkpoint_every=100),
        samples=500,
        minutes="about 45 minutes on 2 processor cores",
    ),
    # Steps and network of the few-step study's preset long: whether what short training shows lasts. Each flow has the
    # sampler that it was published with and, of second order, the best one without noise and the best with it.
    "long": MnistPreset(
        network="unet:channels=16",
        training=TrainingConfig(steps=24_000, batch_size=64, checkpoint_every=100, precision="float32"),
        samplers={
            flow: (own, "unipc", "sde-bfn-solver2")
            for flow, own in (
                ("gpfn-w2", "deterministic"),
                ("gpfn-w2-tuned", "deterministic"),
                ("bfn", "stochastic"),
                ("bfn-tuned", "stochastic"),
            )
        },
        samples=10_000,
        nfes=(1, 2, 4, 10, 20, 50),
        minutes="about 7 hours on 2 processor cores",
        seeds=(0, 1, 2),
    ),
    "paper": MnistPreset(
        network="unet:channels=64,multipliers=1,2,2,blocks=2,attention=2,patch=1",
        training=TrainingConfig(
            steps=47_000, batch_size=128, learning_rate=1e-3, warmup_steps=1000, ema=0.9995, checkpoint_every=1000
        ),
        samples=10_000,
        minutes="for a GPU: hours",
        seeds=(0, 1, 2),
    ),
}


@dataclass(frozen=True, kw_only=True)
class GeometryPreset(Preset):
    """All settings of the geometry study.

    Args:
        further_seeds: Further seeds of the flows to which all others are compared, to estimate the noise.
        likelihood_images: Test images whose likelihood is bounded.
    """

    nfes: tuple[int, ...] = (2, 4, 5, 10, 20, 50)
    further_seeds: tuple[int, ...] = (1, 2)
    likelihood_images: int = 500

    def counted_from(self, seed: int, number: int | None = None) -> Self:
        further = tuple(seed + k for k in self.further_seeds) if number is None else ()
        return replace(super().counted_from(seed, number), further_seeds=further)


GEOMETRY_PRESETS: dict[PresetName, GeometryPreset] = {
    "quick": GeometryPreset(
        network="unet:channels=16",
        training=TrainingConfig(steps=1200, batch_size=64, checkpoint_every=100),
        samples=256,
        minutes="about 40 minutes on 2 processor cores",
    ),
    "standard": GeometryPreset(
        network="unet",
        training=TrainingConfig(steps=2400, batch_size=64, checkpoint_every=100),
        samples=500,
        minutes="about 10 hours on 2 processor cores",
        seeds=(0, 1, 2),
        further_seeds=(),
        likelihood_images=2000,
    ),
}


@dataclass(frozen=True)
class FewStepMethod:
    """A method for good samples in few evaluations.

    Args:
        title: What it does, for the report.
        samplers: Samplers that it is evaluated with.
        share: Network passes of its own training, relative to plain training.
        flow: Its flow, as a string.
        recipe: Its training recipe.
        teacher: Another method, whose trained model is the teacher.
        weak: Another method, whose trained model is the weak model.
        training: Settings of training that differ from the preset's.
        settings: Settings of the recipe that differ from its defaults, see :mod:`proxflow.training.recipes`.
        repeated: Whether it is run with every seed, or only with the first.
        predictor: Its predictor, as a string.
    """

    title: str
    samplers: tuple[str, ...]
    share: float = 1.0
    flow: str = "gpfn-w2"
    recipe: MethodName | Literal["reflow", "long-step"] = "flow"
    teacher: str | None = None
    weak: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeated: bool = True
    predictor: str = "point"


_STUDENT = {"warmup_steps": 50, "ema": 0.99}
_GUIDED = {**_STUDENT, "learning_rate": 1e-3}
_EARLY, _LATE = "gpfn-w2:schedule=linear:final=0.6", "gpfn-w2:schedule=linear:final=0.8"

FEW_STEP_METHODS: dict[str, FewStepMethod] = {
    "plain": FewStepMethod("GPFN-W2 as in the other experiments", ("deterministic", "multistep2")),
    "plain-twice": FewStepMethod("plain trained twice as long", ("multistep2",), 2.0, repeated=False),
    "early": FewStepMethod(
        "GPFN-W2 with beliefs that end at τ = 0.6", ("deterministic", "multistep2"), 1.0, _EARLY, repeated=False
    ),
    "early-longer": FewStepMethod("early trained 4/3 as long", ("multistep2",), 4 / 3, _EARLY),
    "early-twice": FewStepMethod("early trained twice as long", ("multistep2",), 2.0, _EARLY, repeated=False),
    "transport": FewStepMethod(
        "early with minibatch optimal transport, trained twice as long",
        ("multistep2",),
        2.0,
        "gpfn-w2:coupling=ot,schedule=linear:final=0.6",
    ),
    "reflow": FewStepMethod(
        "plain, then one round of reflow",
        ("multistep2",),
        1.0,
        "gpfn-w2:coupling=reflow",
        "reflow",
        "plain",
        repeated=False,
    ),
    "draws": FewStepMethod(
        "early with draws of the target trained by the energy score, two for each image",
        ("deterministic",),
        2.0,
        _EARLY,
        repeated=False,
        predictor="draw",
    ),
    "long-step": FewStepMethod(
        "plain, then a student of it that is told where its steps end (consistency)",
        ("deterministic",),
        1.0,
        "gpfn-w2",
        "long-step",
        "plain",
        training={"learning_rate": 1e-3, "ema": 0.99},
        repeated=False,
        predictor="long-step",
    ),
    "matched": FewStepMethod(
        "early-longer, then a student that matches its distribution",
        ("deterministic",),
        2 / 3,
        _EARLY,
        "distribution-matching",
        "early-longer",
        training=_STUDENT,
        settings={"adversarial": 0.0, "first_share": 0.7, "student_rate": 0.15},
    ),
    "matched-to-data": FewStepMethod(
        "early-longer, then a student that matches its distribution and, by a discriminator, the data's",
        ("deterministic",),
        2 / 3,
        _EARLY,
        "distribution-matching",
        "early-longer",
        training=_STUDENT,
    ),
    "short": FewStepMethod("late trained 0.15 times as long", ("multistep2",), 0.15, _LATE),
    "late": FewStepMethod("GPFN-W2 with beliefs that end at τ = 0.8", ("multistep2", "sde-bfn-solver2"), 1.0, _LATE),
    "late-longer": FewStepMethod("late trained 3/2 times as long", ("sde-bfn-solver2",), 1.5, _LATE),
    "guided": FewStepMethod(
        "late, then a student of it that is led away from short (autoguidance)",
        ("multistep2", "sde-bfn-solver2"),
        0.25,
        _LATE,
        "autoguidance",
        "late",
        "short",
        _GUIDED,
    ),
    "guided-matched": FewStepMethod(
        "guided, then a student that matches its distribution and, by a discriminator, the data's",
        ("deterministic",),
        0.6,
        _LATE,
        "distribution-matching",
        "guided",
        training={**_STUDENT, "ema": 0.995},
    ),
}
"""Methods of the few-step study by name; each after its teacher."""


_KEYS = {"recipe": "lesson", "weak": "worse"}
"""Keys in results and run folders of fields that have other names there."""


@dataclass(frozen=True, kw_only=True)
class FewStepPreset(Preset):
    """All settings of the few-step study.

    Args:
        methods: Names in :data:`FEW_STEP_METHODS`, each after its teacher.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    nfes: tuple[int, ...] = (1, 2, 4, 10, 20)
    methods: tuple[str, ...] = tuple(FEW_STEP_METHODS)

    def settings(self) -> dict[str, Any]:
        methods = {name: asdict(FEW_STEP_METHODS[name]) for name in self.methods}
        written = {name: {_KEYS.get(key, key): value for key, value in m.items()} for name, m in methods.items()}
        return {**super().settings(), "methods": written}


_GUIDANCE = ("short", "late", "guided", "guided-matched")
"""Autoguidance and the methods it needs."""

_SMALL = FewStepPreset(
    network="unet:channels=16",
    # A network this small gains no speed from bfloat16, and results should be the same on every device.
    training=TrainingConfig(steps=1800, batch_size=64, checkpoint_every=100, precision="float32"),
    samples=10_000,
    minutes="about 2 hours on 2 processor cores",
    methods=(
        *("plain", "plain-twice", "early", "early-longer", "early-twice", "transport", "reflow", "draws", "long-step"),
        "matched",
    ),
)

FEW_STEP_PRESETS: dict[PresetName, FewStepPreset] = {
    "quick": replace(
        _SMALL,
        minutes="about 50 minutes on 2 processor cores",
        seeds=(0,),
        methods=("plain", "early-longer", "transport", "matched", "matched-to-data", *_GUIDANCE, "late-longer"),
    ),
    "standard": _SMALL,
    "long": replace(
        _SMALL,
        training=replace(_SMALL.training, steps=24_000),
        minutes="about 7 hours on 2 processor cores",
        methods=("plain", *_GUIDANCE),
    ),
    "paper": replace(
        _SMALL, network=PRESETS["paper"].network, training=PRESETS["paper"].training, minutes="for a GPU: hours"
    ),
}


@dataclass(frozen=True, kw_only=True)
class GuidancePreset(Preset):
    """All settings of the guidance study.

    Args:
        nfes: Numbers of network evaluations that a sample may cost, guided ones included.
        flow: The flow of all models, as a string.
        samplers: Samplers without guidance.
        weights: Guidance weights.
        intervals: Intervals of times with guidance.
        rules: Guidance rules, as strings, each with its samplers.
        weak_share: Training steps of a weak conditional model to lead away from, as a fraction of those of the others;
            0 for none.
    """

    nfes: tuple[int, ...] = (4, 10, 20)
    flow: str = _LATE
    samplers: tuple[str, ...] = ("multistep2", "sde-bfn-solver2")
    weights: tuple[float, ...] = (1.25, 2.0)
    intervals: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.1, 0.7))
    rules: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: dict.fromkeys(("linear", "zero-star", "projected"), ("multistep2",))
    )
    weak_share: float = 0.15


_CLASSES = GuidancePreset(
    network="unet:channels=16",
    training=replace(_SMALL.training, steps=3000),
    samples=10_000,
    minutes="about 150 minutes on a processor core",
)

GUIDANCE_PRESETS: dict[PresetName, GuidancePreset] = {
    "quick": replace(
        _CLASSES,
        training=replace(_CLASSES.training, steps=1000),
        samples=1000,
        minutes="about 10 minutes on a processor core",
        samplers=("multistep2",),
        weights=(1.5, 2.0),
        weak_share=0.0,
    ),
    "standard": _CLASSES,
    # The steps of the few-step study's preset long, on the usual network, which has four times its weights: so a model that
    # "proxflow train --conditional" made with these settings is taken as it is.
    "long": replace(
        _CLASSES,
        network="unet",
        training=replace(_CLASSES.training, steps=24_000),
        minutes="about 20 hours on 2 processor cores",
        weights=(1.25, 1.5, 2.0),
        rules={**_CLASSES.rules, "linear": _CLASSES.samplers},
    ),
}


@dataclass(frozen=True, kw_only=True)
class EmojiPreset(Preset):
    """All settings of the study of emoji.

    Args:
        nfes: Numbers of network evaluations of the flow; its student takes one.
        flow: The flow, as a string.
        samplers: Its samplers.
        student_steps: Training steps of the student, of about four times the network passes of the flow's.
    """

    nfes: tuple[int, ...] = (4, 10, 20)
    # The remaining noise there, a ninth of the data's range, hides little of flat pictures with clear edges.
    flow: str = "gpfn-w2:schedule=linear:final=0.9"
    samplers: tuple[str, ...] = ("multistep2", "sde-bfn-solver2")
    student_steps: int


_EMOJI = EmojiPreset(
    network="unet:channels=48,multipliers=1,2,2,patch=2,attention=2",
    training=TrainingConfig(steps=8000, batch_size=64, learning_rate=1e-3, checkpoint_every=250, precision="float32"),
    student_steps=1200,
    samples=2000,
    minutes="about 3 hours on a processor core",
)

EMOJI_PRESETS: dict[PresetName, EmojiPreset] = {
    "quick": replace(
        _EMOJI,
        network="unet:channels=16,multipliers=1,2,2,patch=2,attention=2",
        training=replace(
            _EMOJI.training, steps=400, learning_rate=2e-3, warmup_steps=50, ema=0.99, checkpoint_every=100
        ),
        student_steps=80,
        samples=400,
        samplers=("multistep2",),
        minutes="about 5 minutes on 2 processor cores, to see that it runs: its pictures are no emoji yet",
    ),
    "standard": _EMOJI,
}


@dataclass(frozen=True, kw_only=True)
class TextPreset(Preset):
    """All settings of the text study.

    Args:
        context: Tokens of a window.
        tokens: Kind of tokens, as for the kind text.
        held_out: Held-out fraction of the text.
        windows: Held-out windows whose likelihood is bounded.
        draws: Random times for each of them.
        flows: Names of the flows.
    """

    nfes: tuple[int, ...] = (1, 4, 16, 64, 256)
    context: int = 64
    tokens: str = "letters"
    held_out: float = 0.05
    windows: int = 256
    draws: int = 16
    flows: tuple[str, ...] = (
        *("bfn", "masked", "masked-as-bfn", "linear", "linear-as-masked", "fisher-rao", "fisher-rao-as-masked"),
        "autoregressive",
    )

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "train_images"}


_TEXT = TextPreset(
    network="transformer:width=128,depth=3",
    training=TrainingConfig(
        steps=2500, batch_size=32, learning_rate=5e-3, ema=0.99, checkpoint_every=250, precision="float32"
    ),
    samples=32,
    minutes="about an hour and a half on a processor core",
)

TEXT_PRESETS: dict[PresetName, TextPreset] = {
    "quick": replace(
        _TEXT,
        network="transformer:width=64,depth=2,heads=2",
        training=replace(_TEXT.training, steps=600, learning_rate=8e-3, warmup_steps=50, checkpoint_every=100),
        samples=16,
        windows=128,
        minutes="about 10 minutes on a processor core",
        flows=(
            "masked",
            "autoregressive",
            "bfn",
            "linear-as-masked",
            "linear",
            "masked-as-bfn",
            "fisher-rao-as-masked",
        ),
    ),
    "standard": _TEXT,
    "long": replace(
        _TEXT,
        network="transformer",
        training=replace(_TEXT.training, steps=20_000, batch_size=64, learning_rate=1e-3, ema=0.999),
        samples=256,
        windows=1024,
        minutes="for a GPU: hours",
        seeds=(0, 1, 2),
        context=128,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TablesPreset(Preset):
    """All settings of the study of tables.

    Args:
        data: Names of the data sets.
        flows: Flows by the names of their systems, as strings.
        others: Systems to compare with: the Gaussian copula, and peers, which are skipped if not installed.
    """

    nfes: tuple[int, ...] = (50,)
    data: tuple[str, ...] = ("iris", "wine", "diabetes", "penguins")
    flows: Mapping[str, str] = field(default_factory=lambda: {"gpfn": "gpfn"})
    others: tuple[str, ...] = ("gaussian-copula",)

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name not in ("train_images", "samples")}


_TABLES = TablesPreset(
    network="mlp",
    training=TrainingConfig(steps=600, batch_size=128, ema=0.99, precision="float32"),
    samples=0,
    minutes="about 10 minutes on a processor core",
    seeds=(0, 1, 2, 3, 4),
)

TABLES_PRESETS: dict[PresetName, TablesPreset] = {
    "quick": replace(_TABLES, data=(*_TABLES.data, "titanic")),
    "standard": replace(
        _TABLES,
        flows={"gpfn": "gpfn", "gpfn-fisher-rao": "gpfn-fisher-rao"},
        others=("gaussian-copula", "forest-flow", "ctgan"),
        minutes="about an hour and a half on a processor core",
    ),
}


@dataclass(frozen=True, kw_only=True)
class PosteriorPreset(Size):
    """All settings of the study of posterior sampling.

    Args:
        problems: Number of problems of the mixture, by evaluations per sample and then by dimension.
        observed: Numbers of observations of the mixture.
        samples: Samples of each problem of the mixture.
        dimensions: Dimensions of the Gaussian problems.
        noises: Standard deviations of their noise.
        draws: Draws of each by methods that should be exact; a tenth of it by other methods.
        evaluations: Evaluations for each, and for each signal, except for methods that are exact at any number or in
            the limit.
        few: Evaluations of methods that are exact at any number.
        limit: Evaluations of methods that are exact in the limit.
        limit_numbers: Largest number of observations for which these take all draws instead of a tenth: they need as
            many products.
        signal: Length of the signals with independent increments, a multiple of 16.
        signals: Signals of each distribution and operator.
        signal_samples: Samples of each.
        sweeps: Sweeps of each Gibbs chain for the truth of signals with Laplace increments.
        pictures: Test pictures that are restored.
        picture_draws: Draws of each; the interval between the smallest and the largest contains all but 2/(draws + 1).
        picture_steps: Evaluations of each.
        model: Name or folder of the model of the pictures.
    """

    problems: Mapping[str, Mapping[str, int]]
    observed: tuple[int, ...] = (1, 2, 4)
    samples: int = 2000
    dimensions: tuple[int, ...] = (2, 16, 64)
    noises: tuple[float, ...] = (0.01, 0.1, 1.0)
    draws: int = 20_000
    evaluations: int = 20
    few: int = 5
    limit: int = 150
    limit_numbers: int = 16
    signal: int = 64
    signals: int = 2
    signal_samples: int = 1000
    sweeps: int = 2000
    pictures: int = 8
    picture_draws: int = 19
    picture_steps: tuple[int, ...] = (10, 30)
    model: str = "mnist"


_KNOWN = PosteriorPreset(
    minutes="about 7 hours on a processor core",
    problems={steps: {"8": 20, "80": 20, "800": 20} for steps in ("20", "100")},
)

POSTERIOR_PRESETS: dict[PresetName, PosteriorPreset] = {
    "quick": replace(
        _KNOWN,
        minutes="about 8 minutes on a processor core",
        problems={"20": {"8": 5, "80": 2}},
        dimensions=(2,),
        noises=(0.1,),
        signals=1,
        pictures=4,
        picture_steps=(20,),
    ),
    "standard": _KNOWN,
    "long": replace(
        _KNOWN,
        minutes="about 9 hours on a processor core",
        evaluations=50,
        limit=200,
        signals=8,
        pictures=32,
        picture_steps=(20, 50),
    ),
}

EXPERIMENTS: dict[ExperimentName, Mapping[PresetName, Size]] = {
    "mnist": PRESETS,
    "geometry": GEOMETRY_PRESETS,
    "few-step": FEW_STEP_PRESETS,
    "guidance": GUIDANCE_PRESETS,
    "emoji": EMOJI_PRESETS,
    "text": TEXT_PRESETS,
    "tables": TABLES_PRESETS,
    "posterior": POSTERIOR_PRESETS,
}
"""The presets of every study."""
