"""An interactive page for the browser: static files, and a local server for them.

Networks run in the browser with onnxruntime-web, and proximal steps in ``files/proximal.js`` are those of the library.
The page loads nothing from other machines: all it needs is beside it.
"""

from __future__ import annotations

import lzma
import mimetypes
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from proxflow.errors import ArgumentError, OutputError
from proxflow.runtime.files import writable_folder, write_atomically

FILES = Path(__file__).parent / "files"
"""The files of the page; .xz files are served decompressed."""

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; style-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The content security policy of the page; ``index.html`` repeats it for hosts that send no headers."""

_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}


def pages() -> dict[str, Path]:
    """Return the files of the page by URL path, ``index.html`` first."""
    found = sorted(path for path in FILES.rglob("*") if path.is_file())
    names = {path.relative_to(FILES).as_posix().removesuffix(".xz"): path for path in found}
    return {"index.html": names.pop("index.html"), **names}


def content(path: Path) -> bytes:
    """Return the content of a file as served."""
    held = path.read_bytes()
    return lzma.decompress(held) if path.suffix == ".xz" else held


def write(folder: Path | str) -> int:
    """Write the page into a folder, as files for any web server, and return their size in bytes.

    Raises:
        OutputError: They cannot be written.
    """
    folder, total = writable_folder(Path(folder)), 0
    for name, path in reversed(pages().items()):  # index.html last, so that an existing page is complete
        held = content(path)

        def put(temporary: Path, held: bytes = held) -> None:
            temporary.write_bytes(held)

        place = folder / name
        writable_folder(place.parent)
        write_atomically(place, put)
        total += len(held)
    return total


class _Handler(BaseHTTPRequestHandler):
    """Serves the files of the page, and nothing else."""

    protocol_version = "HTTP/1.1"
    held: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/") or "index.html"
        path = pages().get(name)
        if path is None:
            self.send_error(404)
            return
        if name not in self.held:
            self.held[name] = content(path)
        body, kind = self.held[name], _TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0]
        self.send_response(200)
        self.send_header(
            "Content-Type", f"{kind or 'text/plain'}{'; charset=utf-8' if kind and 'text' in kind else ''}"
        )
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base's)
        """Log nothing: the terminal shows the address."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections, as when a page is closed while it loads."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def server(port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the page on the loopback interface, bound and not yet serving; its ``server_port`` is the port.

    Args:
        port: The port; 0 takes a free one.

    Raises:
        ArgumentError: There is no such port.
        OutputError: The port is in use.
    """
    if not 0 <= port < 2**16:
        raise ArgumentError(f"--port is a number from 0, for a free one, to 65535, got {port}")
    # Decompressed in advance: the first picture needs these.
    first = ("ort/ort-wasm-simd-threaded.wasm", "models/mnist.onnx")
    _Handler.held.update({name: content(path) for name, path in pages().items() if name in first})
    try:
        return _Server(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise OutputError(
            f"cannot serve on port {port}: {error.strerror}; give another, or none for a free one"
        ) from error


__all__ = ["FILES", "POLICY", "content", "pages", "server", "write"]
