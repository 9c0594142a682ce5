"""The document model: a text is a list of blocks, rendered as Markdown, as a web page or for a terminal."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from proxflow.runtime.escape import html, markdown, terminal, terminal_lines
from proxflow.runtime.files import open_plain, write_text


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Strong:
    """An emphasised table entry."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        head: Headings of the columns.
        rows: Entries, as many per row as there are headings.
        labels: Number of first columns with text; the others have numbers and are right-aligned.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str | Strong, ...], ...]
    labels: int


@dataclass(frozen=True)
class Picture:
    """A picture from the report's folder.

    Args:
        file: Its file name.
        description: Alternative text.
        caption: Text below it.
    """

    file: str
    description: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture


def _markdown_entry(entry: str | Strong) -> str:
    return f"**{markdown(entry.text)}**" if isinstance(entry, Strong) else markdown(entry)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Render blocks as Markdown, with pictures as relative links."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {markdown(text)}")
            case Paragraph(text):
                parts.append(markdown(text))
            case Bullets(items):
                parts.append("\n".join(f"- {markdown(item)}" for item in items))
            case Table(head, rows, labels):
                rule = [":---"] * labels + ["---:"] * (len(head) - labels)
                lines = [[markdown(text) for text in head], rule, *([_markdown_entry(e) for e in row] for row in rows)]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Picture(file, description, caption):
                parts.append(f"![{markdown(description)}]({file})\n\n{markdown(caption)}")
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --quiet: #5b5b60; --ground: #ffffff; --rule: #d8d8dc; --band: #f4f4f6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --quiet: #a5a5ac; --ground: #17181a; --rule: #3a3b40; --band: #202226 }
}
body { font: 1rem/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 66rem; margin: 0 auto; padding: 1rem 1.1rem 4rem; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin-top: 2.6rem }
p, li { max-width: 46rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .65rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }
thead th { border-bottom: 2px solid var(--quiet) } tbody tr:nth-child(even) { background: var(--band) }
.number { text-align: right; white-space: nowrap }
figure { margin: 1.4rem 0 } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
img.wide { min-width: 38rem }
figcaption { color: var(--quiet); font-size: .92rem; max-width: 46rem }
"""


def _html_entry(tag: str, entry: str | Strong, number: bool) -> str:
    text = f"<strong>{html(entry.text)}</strong>" if isinstance(entry, Strong) else html(entry)
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}>{text}</{tag}>"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """Render blocks as a self-contained web page, with the pictures in ``folder`` embedded."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"<h{level}>{html(text)}</h{level}>")
            case Paragraph(text):
                parts.append(f"<p>{html(text)}</p>")
            case Bullets(items):
                parts.append("<ul>\n" + "\n".join(f"<li>{html(item)}</li>" for item in items) + "\n</ul>")
            case Table(head, rows, labels):
                cells = [_html_entry("th", text, k >= labels) for k, text in enumerate(head)]
                lines = ["".join(_html_entry("td", e, k >= labels) for k, e in enumerate(row)) for row in rows]
                body = "\n".join(f"<tr>{line}</tr>" for line in lines)
                parts.append(
                    f'<div class="scroll"><table>\n<thead><tr>{"".join(cells)}</tr></thead>\n'
                    f"<tbody>\n{body}\n</tbody>\n</table></div>"
                )
            case Picture(file, description, caption):
                path = folder / file
                with open_plain(path) as content:
                    data = base64.b64encode(content.read()).decode("ascii")
                    with Image.open(content, formats=["PNG", "GIF"]) as image:
                        width, height = image.size
                # A wide picture is scrolled on a phone, where it would be too small to see.
                kind = ' class="wide"' if width > 800 else ""
                parts.append(
                    f'<figure><div class="scroll"><img{kind} width="{width}" height="{height}" '
                    f'alt="{html(description)}" src="data:image/{path.suffix[1:]};base64,{data}"></div>\n'
                    f"<figcaption>{html(caption)}</figcaption></figure>"
                )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def write(out: Path, blocks: Sequence[Block]) -> list[Path]:
    """Write ``report.md`` and ``report.html`` beside the pictures of a text; return all of these files.

    Raises:
        OutputError: A file cannot be written.
    """
    write_text(out / "report.md", to_markdown(blocks))
    write_text(out / "report.html", to_html(blocks, out))
    pictures = (out / block.file for block in blocks if isinstance(block, Picture))
    return [*pictures, out / "report.md", out / "report.html"]


def show(blocks: Sequence[Block]) -> None:
    """Print blocks to the terminal, with aligned tables and without pictures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    for block in blocks:
        match block:
            case Heading(_, text) | Paragraph(text):
                sys.stdout.write(f"{terminal_lines(text)}\n")
            case Bullets(items):
                sys.stdout.writelines(f"- {terminal(item)}\n" for item in items)
            case Table(head, rows, labels):
                grid = Grid(box=box.SIMPLE_HEAD)
                for k, text in enumerate(head):
                    grid.add_column(
                        Text(terminal_lines(text)), justify="left" if k < labels else "right", overflow="fold"
                    )
                for row in rows:
                    grid.add_row(
                        *(Text(terminal(e.text), "bold") if isinstance(e, Strong) else Text(terminal(e)) for e in row)
                    )
                Console(file=sys.stdout, highlight=False, width=120).print(grid)
