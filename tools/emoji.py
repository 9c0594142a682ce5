"""Pack the emoji of Debian's packages ``fonts-noto-color-emoji`` and ``unicode-data`` into the package, 32 × 32 in colour.

Each bitmap of the font's CBDT table is drawn on white, padded to a square and scaled down. Its code points come from
the font's character table and its ligatures, some of which have them in another order; its group from
``emoji-test.txt``, or for unlisted sequences that of their parts, or "Symbols". About one in ten bases, without skin
tones and genders, is held out with all its variants.

Needs fontTools, which comes with matplotlib. Run ``python -m tools.emoji``; it writes the files that
:mod:`proxflow.data.emoji` reads, and prints their checksums.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image
from rich.console import Console

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
TARGET = Path(__file__).parents[1] / "src/proxflow/data/files"
SIDE, LEAST_HELD_OUT = 32, 10

JOINER, SELECTOR, PRIVATE = 0x200D, 0xFE0F, range(0xFE000, 0x110000)
TONES, GENDERS, PEOPLE = range(0x1F3FB, 0x1F400), (0x2640, 0x2642), {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1}
Sequence = tuple[int, ...]

_console = Console(highlight=False)


def sequences(font: TTFont) -> dict[str, Sequence]:
    """Return the code points of each glyph, without selectors of presentation."""
    single: dict[str, Sequence] = {glyph: (code,) for code, glyph in sorted(font.getBestCmap().items(), reverse=True)}
    found = {glyph: codes for glyph, codes in single.items() if codes[0] not in PRIVATE}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            if table.LookupType != 4:
                continue
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    parts = [first, *ligature.Component]
                    if all(part in found for part in parts):
                        codes = sum((found[part] for part in parts), ())
                        found.setdefault(ligature.LigGlyph, codes)
    found = {**single, **found}
    return {glyph: tuple(code for code in codes if code != SELECTOR) for glyph, codes in found.items()}


def groups() -> dict[Sequence, str]:
    """Return the group of each sequence that ``emoji-test.txt`` lists, without selectors."""
    found: dict[Sequence, str] = {}
    group = ""
    for line in NAMES.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif match := re.match(r"([0-9A-F ]+?)\s*;", line):
            found[tuple(code for code in (int(part, 16) for part in match[1].split()) if code != SELECTOR)] = group
    return found


def unordered(codes: Sequence) -> Sequence:
    """Return the code points of a sequence in the order of their numbers, without joiners."""
    return tuple(sorted(code for code in codes if code != JOINER))


def base(codes: Sequence) -> Sequence:
    """Return a sequence without its variations: skin tones, genders, the order."""
    kept = (PEOPLE.get(code, code) for code in unordered(codes) if code not in TONES and code not in GENDERS)
    return tuple(sorted(kept)) or codes


def of_parts(codes: Sequence, listed: dict[Sequence, str]) -> str:
    """Return the group of an unlisted sequence: flags have tags, and there are further views of people."""
    if any(0xE0000 <= code < 0xE0080 for code in codes):
        return "Flags"
    found = {listed.get((code,), "Symbols") for code in codes} - {"Component"}
    return next((group for group in ("People & Body", "Activities") if group in found), "Symbols")


def picture(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a bitmap on white, square, scaled down: uint8 (side, side, 3)."""
    drawn = Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGBA")
    side = max(drawn.size)
    ground = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    ground.alpha_composite(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return np.asarray(ground.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None))


def main() -> None:
    font = TTFont(FONT)
    bitmaps, known, listed = font["CBDT"].strikeData[0], sequences(font), groups()
    in_order = {unordered(codes): codes for codes in listed}
    entries: list[tuple[Sequence, str, np.ndarray[Any, np.dtype[np.uint8]]]] = []
    unnamed = 0
    for glyph, bitmap in bitmaps.items():
        codes = in_order.get(unordered(known[glyph]), known[glyph])
        group = listed.get(codes) or of_parts(codes, listed)
        unnamed += codes not in listed
        entries.append((codes, "Symbols" if group == "Component" else group, picture(bitmap.imageData)))
    entries.sort(key=lambda entry: (entry[0], entry[2].tobytes()))
    # Identical pictures are in the same split, too.
    bases = [str(base(codes)) for codes, _, _ in entries]
    of_picture = {image.tobytes(): name for name, (_, _, image) in reversed(list(zip(bases, entries, strict=True)))}
    names = [of_picture[image.tobytes()] for _, _, image in entries]
    held_out = [hashlib.sha256(name.encode()).digest()[0] % LEAST_HELD_OUT == 0 for name in names]
    images = np.stack([image for _, _, image in entries])
    order = sorted({group for _, group, _ in entries}, key=list(dict.fromkeys(listed.values())).index)
    # Differences along each row compress better than the colours.
    filters = [
        {"id": lzma.FILTER_DELTA, "dist": 3},
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0},
    ]
    packed = lzma.compress(images.tobytes(), format=lzma.FORMAT_XZ, filters=filters)
    (TARGET / "emoji-32.xz").write_bytes(packed)
    labels = [order.index(group) for _, group, _ in entries]
    told = {
        "classes": order,
        "labels": labels,
        "held_out": [int(k) for k in np.flatnonzero(held_out)],
        "code_points": ["-".join(f"{code:X}" for code in codes) for codes, _, _ in entries],
    }
    text = json.dumps(told, separators=(",", ":"))
    (TARGET / "emoji.json").write_text(text + "\n", encoding="utf-8")
    distinct = len({image.tobytes() for _, _, image in entries})
    _console.print(f"{len(entries)} emoji, {distinct} distinct, {unnamed} not listed, {sum(held_out)} held out")
    _console.print(f"{len(packed) / 1e6:.2f} MB; {[(g, labels.count(k)) for k, g in enumerate(order)]}")
    for name in ("emoji-32.xz", "emoji.json"):
        data = (TARGET / name).read_bytes()
        _console.print(name, hashlib.sha256(lzma.decompress(data) if name.endswith("xz") else data).hexdigest())


if __name__ == "__main__":
    main()
