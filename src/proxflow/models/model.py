"""Models on disk: a folder with ``config.json`` and ``model.safetensors``, or the name of one that is shipped."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from proxflow.config import ModelConfig, SamplerName, from_dict, to_dict
from proxflow.couplings import Coupling, MinibatchOT, Reflowed
from proxflow.divergences import KL, FisherRao, ReverseKL, Wasserstein2
from proxflow.errors import ArgumentError, CheckpointError, OutputError
from proxflow.flows import BFN, GPFN, Flow
from proxflow.nn import UNet
from proxflow.paths import Linear
from proxflow.predictors import DrawPredictor, LongStepPredictor, PointPredictor, Predictor
from proxflow.runtime.checkpoints import load_weights, refuse_other_weights, write_tensors
from proxflow.runtime.files import read_json, writable_folder, write_json, write_text

FORMAT = 1
SHIPPED = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Model:
    """A predictor with the flow it belongs to and the shape of its events.

    Args:
        config: What it was built from.
        shape: Shape of an event: (channels, height, width).
        flow: Where beliefs start and how they move.
        predictor: The network with its parameterisation.
        provenance: How its weights were got, as they were saved with them.
        times: By sampler and number of evaluations, the times of evaluations that suit these weights, as
            :func:`proxflow.optimise_times` finds them: ``proxflow.sample(..., times=model.times_of("multistep2", 4))``.
    """

    config: ModelConfig
    shape: tuple[int, ...]
    flow: Flow[Any]
    predictor: Predictor
    provenance: dict[str, Any] = field(default_factory=dict)
    times: Mapping[str, Mapping[int, Sequence[float]]] = field(default_factory=dict)

    def times_of(self, sampler: str, steps: int) -> Sequence[float] | None:
        """Its times for a sampler and number of evaluations; ``None``, the sampler's own, where none were found."""
        return self.times.get(sampler, {}).get(steps)

    def save_pretrained(self, save_directory: str | Path, *, results: Sequence[dict[str, Any]] = ()) -> None:
        """Write weights, configuration and a model card (README.md) into a folder.

        Args:
            save_directory: The folder; :meth:`from_pretrained` and :func:`load` read it.
            results: Records of ``proxflow evaluate --out``, its ``cells``, for the card.

        Raises:
            OutputError: It cannot be written.
        """
        folder = Path(save_directory)
        save(folder, self, self.predictor.state_dict(), self.provenance)
        write_text(folder / "README.md", card(self, results))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device: torch.device | str = "cpu",
    ) -> Model:
        """Load a model from a folder, which needs no network, or from the Hugging Face Hub; never from a pickle.

        Args:
            pretrained_model_name_or_path: A folder, the name of a shipped model, or ``owner/name`` on the Hub.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Where downloads are kept.
            token: For private models.
            local_files_only: Whether to take only what was downloaded before.
            device: Where the model goes.

        Raises:
            ArgumentError: It is on the Hub, and huggingface_hub is not installed.
            CheckpointError: No such model, or its files are corrupt or do not belong together.
        """
        source = str(pretrained_model_name_or_path)
        if source in shipped_models() or Path(source).is_dir() or source.count("/") != 1:
            return load(source, device)
        hub = _hub()
        try:
            folder = hub.snapshot_download(
                source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only,
                allow_patterns=_FILES,
            )  # fmt: skip
        except (OSError, ValueError, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
            raise CheckpointError(
                f"no model {source!r}: neither a folder nor to be had from the Hub ({error})"
            ) from error
        return load(folder, device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a proxflow model",
        results: Sequence[dict[str, Any]] = (),
    ) -> str:
        """Upload weights, configuration and model card to the Hugging Face Hub; gives the address of the commit.

        Raises:
            ArgumentError: huggingface_hub is not installed.
            OutputError: The Hub refuses it, or cannot be reached.
        """
        hub = _hub()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, results=results)
            try:
                api = hub.HfApi(token=token)
                made = api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=made.repo_id, folder_path=folder, commit_message=commit_message, allow_patterns=_FILES
                )
            except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
                raise OutputError(f"cannot upload to {repo_id!r}: {error}") from error
        return str(commit)


def build(config: ModelConfig, shape: tuple[int, ...]) -> Model:
    """Build an untrained model for images of the given shape (channels, height, width), with values in [-1, 1].

    Initial weights come from torch's global generator: seed it first.

    Raises:
        ArgumentError: Another shape, sizes out of range, or a long-step predictor for a flow that has none.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ArgumentError(f"image models need a shape (channels, height, width), got {tuple(shape)}")
    network = unet(config, shape[0])
    flow: Flow[Any]
    predictor: Predictor
    if config.flow == "bfn":  # as the reference has it: noise prediction, clipped in the loss as well
        flow = BFN(sigma1=1e-3)
        predictor = PointPredictor(network, flow, parameterisation="epsilon", clip_in_training=True)
    elif config.flow == "bfn-tuned":
        flow = BFN(sigma1=config.sigma1)
        predictor = PointPredictor(network, flow)
    else:
        geometry = {
            "gpfn-w2": Wasserstein2(),
            "gpfn-kl": KL(),
            "gpfn-reverse-kl": ReverseKL(),
            "gpfn-fisher-rao": FisherRao(),
        }
        coupling: Coupling | None = {"independent": None, "ot": MinibatchOT(), "reflow": Reflowed()}[config.coupling]
        flow = GPFN(geometry[config.flow], Linear(config.final), coupling=coupling)
        predictor = PointPredictor(network, flow)
    if config.predictor == "long-step":
        predictor = LongStepPredictor(network, flow)
    elif config.predictor == "draw":
        predictor = DrawPredictor(network, flow)
    return Model(config, tuple(shape), flow, predictor)


def unet(config: ModelConfig, channels: int) -> UNet:
    """The untrained U-Net of a configuration, for images of the given number of channels."""
    reads_end = config.predictor == "long-step"
    network = UNet(
        (2 * channels if config.predictor == "draw" else channels, 1, 1),  # it serves every height and width
        outputs=channels,
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention=config.attention,
        patch=config.patch,
        dropout=config.dropout,
        reads_end=reads_end,
    )
    # The forward derivative of group normalisation, which long steps may be trained by, is for the other layout alone.
    return network if reads_end else network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def save(folder: Path, model: Model, weights: dict[str, Tensor], provenance: dict[str, Any]) -> None:
    """Write a model folder, atomically file by file.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_tensors(writable_folder(folder) / "model.safetensors", weights)
    times = {name: {str(n): list(found[n]) for n in sorted(found)} for name, found in sorted(model.times.items())}
    content = {"format": FORMAT, "model": to_dict(model.config), "shape": list(model.shape), "provenance": provenance}
    write_json(folder / "config.json", {**content, **({"times": times} if times else {})})


_FILES = ["config.json", "model.safetensors", "README.md"]
"""Of a model folder, what is shared: nothing that could hold a pickle."""


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ArgumentError("huggingface_hub is not installed: pip install 'proxflow[hub]'") from None
    return huggingface_hub


def card(model: Model, results: Sequence[dict[str, Any]] = ()) -> str:
    """A model card in Markdown: what the model is, how to use it, how it was trained, and what it scores."""
    channels, height, width = model.shape
    known = model.provenance
    trained = known.get("training", {})
    lines = [
        "---",
        "library_name: proxflow",
        "pipeline_tag: unconditional-image-generation",
        "tags: [proxflow, generative-model, proximal-flow]",
        "---",
        "",
        f"# {model.config.flow}, {height} × {width} images of {channels} channels",
        "",
        "A proximal flow network: it begins with a vague belief about an image and improves it step by step.",
        "",
        "```python",
        "from proxflow.models import Model",
        "import proxflow",
        "",
        'model = Model.from_pretrained("THIS MODEL")',
        "images = proxflow.sample(model.predictor, model.flow, (64, *model.shape), nfe=20, seed=0)",
        "```",
        "",
        "## How it was trained",
        "",
        *[
            f"- {name}: {known[name]}"
            for name in ("data", "held_out", "steps", "seconds", "held_out_loss")
            if name in known
        ],
        *[f"- {name}: {value}" for name, value in trained.items() if name not in known],
        *[f"- {name}: {value}" for part in ("hardware", "versions") for name, value in known.get(part, {}).items()],
        "",
        "Network: " + ", ".join(f"{name} {value}" for name, value in to_dict(model.config).items()) + ".",
        "",
        "## Results",
        "",
    ]
    if not results:
        return "\n".join([*lines, "None were measured. `proxflow evaluate` measures them.", ""])
    shown = [name for name in _SCORES if any(isinstance(record.get(name), (int, float)) for record in results)]
    lines += ["| " + " | ".join(("sampler", "evaluations", "seed", *shown)) + " |", "|" + " --- |" * (3 + len(shown))]
    for record in results:
        numbers = [f"{record[name]:.4g}" if record.get(name) is not None else "–" for name in shown]
        lines.append(
            "| " + " | ".join((*(str(record.get(k, "–")) for k in ("sampler", "nfe", "seed")), *numbers)) + " |"
        )
    conditions = dict.fromkeys(
        f"{record.get('samples', '?')} images against {record.get('reference', 'an unnamed reference')}, features "
        f"{record.get('extractor', 'unnamed')}"
        for record in results
    )
    return "\n".join([*lines, "", "Measured by `proxflow evaluate`: " + "; ".join(conditions) + ".", ""])


_SCORES = ("frechet", "floor", "kid", "precision", "recall", "density", "coverage", "diversity")


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def load(source: str | Path = "mnist", device: torch.device | str = "cpu") -> Model:
    """Load a trained model by the name of a shipped one, or from a folder.

    Raises:
        CheckpointError: No such model, or its files are corrupt or do not belong together.
    """
    folder = SHIPPED / source if str(source) in shipped_models() else Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"no model {str(source)!r}: expected a folder with config.json and model.safetensors, or one of the shipped "
            f"models: {', '.join(shipped_models()) or 'none'}"
        )
    path = folder / "config.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a model configuration of format {FORMAT}")
    config = from_dict(ModelConfig, content.get("model"), str(path))
    shape = content.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 1 <= n <= 4096 for n in shape)):
        raise CheckpointError(f"{path}: shape must be [channels, height, width], got {json.dumps(shape)[:80]}")
    provenance = content.get("provenance", {})
    if not isinstance(provenance, dict):
        raise CheckpointError(f"{path}: provenance must be an object, got {json.dumps(provenance):.80}")
    times = _times(content.get("times", {}), path)
    try:
        with torch.device("meta"):  # without memory: a wrong configuration may claim any amount
            outline = build(config, tuple(shape))
        refuse_other_weights(outline.predictor, folder / "model.safetensors")
        model = build(config, tuple(shape))
    except (ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(model.predictor, folder / "model.safetensors")
    model.predictor.eval().to(device)
    return replace(model, provenance=provenance, times=times)


def _times(content: Any, path: Path) -> dict[str, dict[int, tuple[float, ...]]]:
    """Times of evaluations by sampler and number, as a model's configuration has them."""
    expected = f"{path}: times must be of the form {{sampler: {{number: [0, increasing below 1]}}}}, got"
    if not isinstance(content, dict) or not all(isinstance(found, dict) for found in content.values()):
        raise CheckpointError(f"{expected} {json.dumps(content):.80}")
    known = get_args(SamplerName)
    if unknown := sorted(set(content) - set(known)):
        raise CheckpointError(f"{path}: times of an unknown sampler {unknown[0]!r:.80}; known are {', '.join(known)}")
    times: dict[str, dict[int, tuple[float, ...]]] = {}
    for name, found in content.items():
        times[name] = {}
        for number, values in found.items():
            if (
                not isinstance(values, list)
                or str(len(values)) != number
                or not all(type(t) in (int, float) for t in values)
                or not all(t < s for t, s in pairwise([*values, 1]))
                or not (values and values[0] == 0)
            ):
                raise CheckpointError(f"{expected} {number!r:.20} {json.dumps(values):.80} for {name}")
            times[name][len(values)] = tuple(map(float, values))
    return times
