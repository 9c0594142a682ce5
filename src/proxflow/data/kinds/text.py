"""Text: windows of tokens, which are characters, letters, bytes or a tokenizer's."""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from proxflow.data.kinds.base import Defaults, Kind, Loaded, Picture, check_share
from proxflow.data.text import LETTERS, holds_text, letters, load_bible, read_bytes, read_text, text_files
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.examples import Examples
from proxflow.runtime.files import read_plain, writable_folder, write_atomically, write_text

TOKENS = ("characters", "letters", "bytes")
"""Kinds of tokens; or the .json file of a tokenizer."""

GAP = "_"
r"""An unknown token in a text with gaps; ``\_`` is the character itself there, and ``\\`` a backslash."""

_GAPS = re.compile(r"\\([_\\])|(_)")

STRETCHES, OVERLAP, OVERLAPPING = 20, 4, 2**26
"""Number of equal parts of a text whose ends are held out; number of training windows that contain each token; largest
number of tokens with overlapping windows."""

BREAKS = (b"\n", b"\r")


@dataclass(frozen=True)
class Text(Kind):
    """Windows of text, stored as token indices (number, context), in the smallest integer type that holds them.

    Args:
        shape: (context,), the number of tokens of a window.
        tokens: Kind of tokens: "characters", "letters" (27 symbols), "bytes" or "tokenizer".
        vocabulary: The characters, in the order of their indices; empty for bytes and a tokenizer.
        tokenizer: Content of the tokenizer's file; empty for others.

    Raises:
        ArgumentError: The shape is not of one number, or tokens and vocabulary do not fit together.
    """

    shape: tuple[int, ...]
    tokens: str = "characters"
    vocabulary: tuple[str, ...] = ()
    tokenizer: str = ""

    ending: ClassVar[str] = ".txt"
    shown: ClassVar[str] = ".txt"
    examples_word: ClassVar[str] = "texts"
    sources: ClassVar[str] = "bible, a text file .txt, or a folder of such files"
    defaults: ClassVar[Defaults] = Defaults(flow="masked", network="transformer", predictor="classes")

    def __post_init__(self) -> None:
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise ArgumentError(f"texts have a shape (context,), at least 1, got {self.shape}")
        spelt = self.tokens in ("characters", "letters")
        if self.tokens not in (*TOKENS, "tokenizer") or bool(self.tokenizer) != (self.tokens == "tokenizer"):
            raise ArgumentError(f"tokens are {', '.join(TOKENS)} or tokenizer, with its file, got {self.tokens!r:.80}")
        if bool(self.vocabulary) != spelt or (spelt and len(self.vocabulary) < 2):
            raise ArgumentError(f"{self.tokens} need a vocabulary of at least 2 characters, and others none")
        if any(len(symbol) != 1 for symbol in self.vocabulary) or list(self.vocabulary) != sorted(set(self.vocabulary)):
            raise ArgumentError(
                "the vocabulary of characters is of single ones, each once, in the order of their codes"
            )

    @property
    def symbols(self) -> int:
        """Size of the vocabulary, the number of classes of a token."""
        if self.tokens == "bytes":
            return 256
        return len(self.vocabulary) or int(_tokenizer(self.tokenizer).get_vocab_size(with_added_tokens=True))

    @property
    def decides(self) -> Mapping[str, Any]:
        # For a Bayesian flow β(1) K/ln K is the value for text8, β(1) = 0.75 with K = 27, in "Bayesian Flow Networks"
        # (Graves et al., 2023), arXiv 2308.07037, § 7.3: with more, late beliefs would be certain by themselves.
        sharpest = math.sqrt(0.75 * 27 / math.log(27) * math.log(self.symbols) / self.symbols)
        ends = {"kind": "categorical", "classes": self.symbols}
        return {"classes": self.symbols, "endpoints": ends, "max_sqrt_beta": sharpest}

    @classmethod
    def takes(cls, source: str) -> bool:
        return (
            source == "bible" or source.lower().endswith(".txt") or (os.path.isdir(source) and holds_text(Path(source)))
        )

    @classmethod
    def read(
        cls,
        source: str,
        *,
        held_out: float = 0.05,
        seed: int = 0,
        context: int = 128,
        tokens: str = "characters",
        exclude: Path | None = None,
        **settings: Any,
    ) -> Loaded:
        """Read text, and split it into windows.

        Documents are concatenated with a blank line between them. The text is divided into 20 equal parts, fewer if it
        is short, and the end of each is held out, independent of the seed. Training windows overlap: one begins at
        every quarter of a context.

        Args:
            source: "bible", the embedded corpus; a text file; or a folder, whose .txt files are the documents, sorted
                by name.
            held_out: Fraction held out, in [0, 1).
            seed: Not used.
            context: Number of tokens of a window, ≥ 1.
            tokens: "characters", "letters" (a to z and space, as text8), "bytes", or a .json file of the package
                tokenizers.
            exclude: A folder whose files are skipped.
            **settings: There are none.

        Raises:
            ArgumentError: A setting is unknown or out of range, or tokenizers is not installed.
            DataError: There is no such source, it is empty, of another encoding, or too short for a window.
        """
        if settings:
            raise ArgumentError(f"text has the settings context and tokens, got {', '.join(settings)}")
        check_share(held_out)
        if context < 1:
            raise ArgumentError(f"the context must be at least 1 token, got {context}")
        known = tokens if tokens in TOKENS else "tokenizer"
        if known == "tokenizer" and not tokens.endswith(".json"):
            raise ArgumentError(f"tokens are {', '.join(TOKENS)}, or a tokenizer's file .json, got {tokens!r:.80}")
        excluded = None if exclude is None else exclude.resolve()
        files = [] if source == "bible" else text_files(Path(source), excluded)
        tokenizer, vocabulary, lacking = "", tuple[str, ...](), 0.0
        if known == "bytes":
            parts = [read_bytes(file) for file in files] if files else [load_bible().encode()]
            every, lost = torch.frombuffer(bytearray(b"\n\n".join(parts)), dtype=torch.uint8), 0
        else:
            text = "\n\n".join(map(read_text, files)) if files else load_bible()
            lost = sum(c.isalpha() and not c.isascii() for c in text) if known == "letters" else 0
            text = letters(text) if known == "letters" else text
            if known == "tokenizer":
                tokenizer = _tokenizer_file(Path(tokens))
            else:
                vocabulary = tuple(LETTERS) if known == "letters" else tuple(sorted(set(text)))
                if known == "letters" and not text:
                    raise DataError(
                        f"{source}: none of its characters are letters a to z or digits, which --tokens letters keeps: give "
                        "--tokens characters or bytes"
                    )
                if len(vocabulary) < 2:
                    raise DataError(f"{source}: holds {text[:1]!r} alone; expected text of at least two characters")
            kind = cls((context,), known, vocabulary, tokenizer)
            if known == "tokenizer":
                every, lacking = kind._tokenised(text)
            else:
                every = kind.indices_of(text)
        kind = cls((context,), known, vocabulary, tokenizer)
        unknown = f"the tokenizer {tokens} does not know {100 * lacking:.3g} % of the text, blanks aside"
        if lacking > 0.5:
            raise DataError(f"{source}: {unknown}: give a tokenizer made of such text, or --tokens characters or bytes")
        if len(every) < context:
            raise DataError(
                f"{source}: has {len(every)} {kind.unit}, fewer than the context of {context}: give more text, or a context "
                f"of at most {len(every)}"
            )
        train, kept, stretches = _cut(every.to(_smallest(kind.symbols)), held_out, context)
        if kept is not None and not len(kept):
            kept = None
        different = int(torch.bincount(every).count_nonzero())
        note = (
            f"{source}: {len(every):,} {kind.unit} of {len(files) or 1} document{'s' * (len(files) > 1)}, "
            f"{different:,} different{'' if different == kind.symbols else f' of a vocabulary of {kind.symbols:,}'}; "
            + (
                "none held out"
                if kept is None
                else f"held out: the last {held_out:.3g} of each of {stretches} equal parts, {len(kept)} windows"
            )
        )
        notes = [note]
        if lost:
            notes.append(f"{source}: {lost:,} letters that are none of a to z became spaces")
        if lacking:
            became = "is left out" if kind._unknown is None else f"became {kind._unknown[0]}"
            notes.append(f"{source}: {unknown}, which {became}")
        asked = {"source": source, "held_out": held_out, "context": context, "tokens": tokens}
        record = {**asked, "length": len(every), "documents": len(files) or 1, "stretches": stretches}
        return Loaded(
            kind, Examples(train), None if kept is None else Examples(kept),
            f"{len(train)} windows of {context} {kind.unit}", tuple(notes), record,
        )  # fmt: skip

    @property
    def unit(self) -> str:
        """Name of its tokens, in the plural."""
        return "tokens" if self.tokens == "tokenizer" else "characters" if self.tokens == "letters" else self.tokens

    @cached_property
    def _unknown(self) -> tuple[str, int] | None:
        """The tokenizer's unknown token and its index; ``None`` if there is none."""
        if self.tokens != "tokenizer":
            return None
        match json.loads(self.tokenizer).get("model"):
            case {"unk_token": str(name)}:
                index = _tokenizer(self.tokenizer).token_to_id(name)
                return None if index is None else (name, index)
            case {"unk_id": int(index)}:
                return str(_tokenizer(self.tokenizer).id_to_token(index)), index
        return None

    def _tokenised(self, text: str) -> tuple[Tensor, float]:
        """Return a tokenizer's tokens of a text, int64 (number,), and the fraction of it, except blanks, that is unknown."""
        found = _tokenizer(self.tokenizer).encode(text, add_special_tokens=False)
        ids, spans = np.asarray(found.ids, np.int64), np.asarray(found.offsets, np.int64).reshape(-1, 2)
        if self._unknown is not None:
            spans = spans[ids != self._unknown[1]]
        edges = np.bincount(spans[:, 0], minlength=len(text) + 1) - np.bincount(spans[:, 1], minlength=len(text) + 1)
        seen = np.fromiter((not c.isspace() for c in text), bool, len(text))
        lacking = seen & (edges.cumsum()[:-1] == 0)
        return torch.from_numpy(ids), float(lacking.sum() / max(1, seen.sum()))

    @cached_property
    def _codes(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        return np.array([ord(symbol) for symbol in self.vocabulary], np.uint32)

    def indices_of(self, text: str) -> Tensor:
        """Return the tokens of a text, int64 (number,).

        Raises:
            ArgumentError: A character is not in the vocabulary.
        """
        if self.tokens == "bytes":
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        if self.tokens == "tokenizer":
            return torch.tensor(
                _tokenizer(self.tokenizer).encode(text, add_special_tokens=False).ids, dtype=torch.int64
            )
        found = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.searchsorted(self._codes, found).clip(max=len(self._codes) - 1)
        if (wrong := np.flatnonzero(self._codes[places] != found)).size:
            mend = f"which has the {self.symbols} characters {''.join(self.vocabulary)!r:.200}: leave it out"
            if self.tokens == "letters":
                mend = "which has the letters a to z and the blank alone: write lower-case letters and blanks"
            raise ArgumentError(
                f"{text[wrong[0]]!r}, character {int(wrong[0]) + 1} of {text!r:.60}, is not in the vocabulary of the model, "
                f"{mend}"
            )
        return torch.from_numpy(places.astype(np.int64))

    def text_of(self, indices: Tensor) -> str:
        """Return the text of tokens (number,)."""
        row = indices.tolist()
        if self.tokens == "bytes":
            return bytes(row).decode("utf-8", "replace")
        if self.tokens == "tokenizer":
            return str(_tokenizer(self.tokenizer).decode(row, skip_special_tokens=False))
        return "".join(self.vocabulary[index] for index in row)

    def begun(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Return a window that begins with a prompt: tokens (context,), and which of them are known.

        Raises:
            ArgumentError: The prompt is empty, leaves no token to generate, or has characters outside the vocabulary.
        """
        if not prompt:
            raise ArgumentError("--prompt is empty: give the text to begin with, or leave it out")
        return self._window([prompt], "--prompt", prompt)[:2]

    def with_gaps(self, text: str) -> tuple[Tensor, Tensor, int]:
        r"""Return a window that begins with a text with gaps, as :meth:`begun`, and the text's length.

        Each ``_`` is an unknown token; ``\_`` is the character itself, and ``\\`` a backslash.

        Raises:
            ArgumentError: There is no gap, the text is longer than a window, or it has characters outside the
                vocabulary.
        """
        pieces, end = list[str | None]([""]), 0
        for found in _GAPS.finditer(text):
            last = f"{pieces.pop()}{text[end : found.start()]}{found[1] or ''}"
            pieces += [last] if found[1] else [last, None, ""]
            end = found.end()
        pieces[-1] = f"{pieces[-1]}{text[end:]}"
        if None not in pieces:
            raise ArgumentError(f"--infill {text!r:.60} has no gap: write {GAP} for each unknown token")
        return self._window([piece for piece in pieces if piece != ""], "--infill", text)

    def _window(self, pieces: list[str | None], option: str, text: str) -> tuple[Tensor, Tensor, int]:
        """Return the window of known pieces and unknown tokens (``None``), which tokens are known, and the length."""
        (context,), whole = self.shape, None in pieces
        parts = [torch.full((1,), -1) if piece is None else self.indices_of(piece) for piece in pieces]
        if self.tokens == "tokenizer":
            self._check_kept(pieces, parts, option)
        found = torch.cat(parts)
        if len(found) > context - (not whole):
            raise ArgumentError(
                f"{option} {text!r:.60} has {len(found)} {self.unit}, and the model's context is {context}: give at most "
                f"{context - (not whole)}"
            )
        window = torch.nn.functional.pad(found, (0, context - len(found)), value=-1)
        return window.clamp(min=0), window >= 0, len(found)

    def _check_kept(self, pieces: list[str | None], parts: list[Tensor], option: str) -> None:
        """Refuse known text that a tokenizer changes, as it must stay verbatim; say what it would keep.

        Raises:
            ArgumentError: It changes.
        """
        turned = [None if piece is None else self.text_of(part) for piece, part in zip(pieces, parts, strict=True)]
        changed = next(((a, b, c) for a, b, c in zip(pieces, turned, parts, strict=True) if a != b), None)
        if changed is None:
            return
        mend = "write it as the tokenizer gives it back"
        if self._unknown is not None and bool((changed[2] == self._unknown[1]).any()):
            mend = f"{self._unknown[0]!r} stands for what it does not know, so leave that out, or write other words"
        elif all(piece is None or self.text_of(self.indices_of(piece)) == piece for piece in turned):
            kept = "".join(
                GAP if piece is None else _escaped(piece) if option == "--infill" else piece for piece in turned
            )
            mend = f"write {kept!r:.80}" if kept else "leave it out"
        elif json.loads(self.tokenizer).get("decoder") is None:
            mend = f"its file has no decoder, which would give text back, so leave out {option}"
        raise ArgumentError(
            f"{option}: the model's tokenizer turns {changed[0]!r:.60} into {changed[1]!r:.60}, and known text must stay "
            f"as it is: {mend}"
        )

    def encode(self, stored: Tensor) -> Tensor:
        """Return tokens as int64."""
        if stored.shape[1:] != self.shape:
            raise ArgumentError(f"these texts have the shape {tuple(stored.shape[1:])}, texts here have {self.shape}")
        return stored.long()

    def decode(self, samples: Tensor) -> Tensor:
        """Return samples in stored form."""
        return samples.to(_smallest(self.symbols))

    def check_output(self, path: Path, number: int) -> None:
        if path.suffix.lower() not in (".txt", ".jsonl"):
            raise ArgumentError(
                f"cannot tell from {str(path)!r} what to write: text is written to a file .txt, or .jsonl for a JSON "
                "string a line"
            )
        writable_folder(path.parent)
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: it is a folder")

    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write one text per line, or separated by blank lines if one contains a line break; or JSON strings.

        Bytes are written to a ``.txt`` file unchanged, in any encoding. A ``.jsonl`` file has one JSON string per line,
        with U+FFFD for bytes that are not UTF-8.
        """
        path = Path(path)
        if path.suffix.lower() == ".jsonl":
            write_text(path, "".join(f"{json.dumps(self.text_of(row), ensure_ascii=False)}\n" for row in stored))
            return
        texts = [bytes(row.tolist()) if self.tokens == "bytes" else self.text_of(row).encode() for row in stored]
        end = b"\n\n" if any(mark in text for text in texts for mark in BREAKS) else b"\n"
        write_atomically(path, lambda temporary: _write_bytes(temporary, b"".join(text + end for text in texts)))

    def preview(self, stored: Tensor) -> Picture:
        """Draw the first 16 texts, with lines wrapped at 100 characters."""
        from PIL import Image, ImageDraw, ImageFont

        lines: list[str] = []
        for row in stored[:16]:
            for line in self.text_of(row).splitlines() or [""]:
                lines += textwrap.wrap(line, 100) or [""]
            lines.append("")
        page = Image.new("L", (720, 14 * len(lines) + 10), 255)
        pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
        for number, line in enumerate(lines):
            pen.text((6, 5 + 14 * number), line, fill=0, font=font)
        return np.asarray(page, np.uint8)[..., None]


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _escaped(text: str) -> str:
    return re.sub(r"([_\\])", r"\\\1", text)


def _smallest(symbols: int) -> torch.dtype:
    return torch.uint8 if symbols <= 256 else torch.int16 if symbols <= 2**15 else torch.int32


def _cut(every: Tensor, held_out: float, context: int) -> tuple[Tensor, Tensor | None, int]:
    """Return training windows, held-out windows, and the number of equal parts."""
    kept_tokens = int(held_out * len(every))
    stretches = max(1, min(STRETCHES, kept_tokens // (4 * context)))
    if kept_tokens < context or len(every) - kept_tokens < context:
        kept_tokens = 0
    hop = max(1, context // OVERLAP) if len(every) <= OVERLAPPING else context
    train, kept = [], []
    for k in range(stretches):
        first, last = len(every) * k // stretches, len(every) * (k + 1) // stretches
        middle = last - (kept_tokens // stretches)
        train += [every[first:middle].unfold(0, context, hop)] if middle - first >= context else []
        kept += [every[middle:last].unfold(0, context, context)] if last - middle >= context else []
    if not train:
        raise ArgumentError(
            f"held_out {held_out:g} leaves no {context} tokens on end to train on: lower it, or the context"
        )
    return torch.cat(train), torch.cat(kept) if kept else None, stretches


def _tokenizer_file(path: Path) -> str:
    """Return the content of a tokenizer's file, after checking it.

    Raises:
        DataError: It cannot be read, or is not a tokenizer.
        ArgumentError: The package tokenizers is not installed.
    """
    try:
        content = read_plain(path).decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; expected a tokenizer's file of the package tokenizers") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a tokenizer's file") from error
    _tokenizer(content, str(path))
    return content


@lru_cache(maxsize=4)
def _tokenizer(content: str, named: str = "the model's tokenizer") -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ArgumentError("tokens of a tokenizer need the package tokenizers: pip install 'proxflow[text]'") from None
    with _Refused(named):
        return tokenizers.Tokenizer.from_str(content)


@dataclass(frozen=True)
class _Refused:
    """A block in which the package tokenizers may refuse a file by a bare Exception, which no except clause can select.

    Args:
        named: Name of the file in the error.
    """

    named: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is Exception:
            raise DataError(f"{self.named}: is no file of the package tokenizers ({error})") from error
