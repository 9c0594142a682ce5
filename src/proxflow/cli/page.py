"""``proxflow page``: an interactive page for the browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from proxflow.cli._common import File
from proxflow.errors import ArgumentError


@dataclass(frozen=True)
class Page:
    """Serve an interactive page in the browser of this machine.

    On it you draw digits and watch beliefs, targets and steps, compare with a Bayesian Flow Network, choose classes and
    guidance, complete half a digit, and bend paths of beliefs. The networks run in the browser, and nothing leaves the
    machine.

    For example:
        proxflow page                       prints the address; Ctrl-C ends it
        proxflow page --export site/play    writes the page as files that any web server can serve

    Args:
        port: Port on the loopback interface.
        export: Folder to write the page into, index.html and its files, instead of serving it.
    """

    port: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: a free one)")] = 0
    export: Annotated[File, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")] = None


def run(options: Page) -> None:
    """Write the page, or serve it until it is interrupted."""
    import sys
    from contextlib import suppress

    from proxflow import page

    if options.export is not None:
        if options.port:
            raise ArgumentError("--export writes files and serves nothing: leave out --port")
        size = page.write(options.export)
        sys.stdout.write(f"{options.export}: index.html and what belongs to it, {size / 1e6:.1f} MB\n")
        return
    with page.server(options.port) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):  # Ctrl-C is how to end it
            server.serve_forever()
