"""Serve a report while its runs train: one page, for browsers on this machine, which it updates."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minigpt.errors import UserError, first_line
from minigpt.files import sha256
from minigpt.report.comparison import Comparison
from minigpt.report.page import Served, served_message, served_page
from minigpt.report.runs import NoRuns, file_states
from minigpt.run.directory import RunDirectory

LOOPBACK = "127.0.0.1"
HTTP_PORT = 80  # which browsers leave out of the Host header
SHARE = 0.1  # of a core that making pages may take: the runs train on the same cores
IDLE_SECONDS = 10.0  # after which a silent connection is closed
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Type": "text/html; charset=utf-8",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Page:
    """A page as it is sent. `tag`: of the state of the files that it shows."""

    tag: str
    content: bytes


class Dashboard:
    """The page of the runs in folders, made again once one of their files has changed.

    `read` compares the runs. A browser asks for a newer page every `seconds`.
    """

    def __init__(
        self, folders: Sequence[str], read: Callable[[], Comparison], seconds: float
    ) -> None:
        self.folders, self.read, self.seconds = folders, read, seconds
        self._lock = threading.Lock()
        self._page = Page("no page yet", b"")
        self._not_before = 0.0  # of the clock time.monotonic

    def page(self) -> Page:
        """Return the page of the files as they are, or shortly were."""
        with self._lock:
            tag = self._tag()
            if tag != self._page.tag and time.monotonic() >= self._not_before:
                start = time.thread_time()
                self._page = Page(tag, self._html(Served(tag, self.seconds)).encode("utf-8"))
                spent = time.thread_time() - start
                self._not_before = time.monotonic() + spent * (1 / SHARE - 1)
            return self._page

    def _tag(self) -> str:
        """Return a digest of all that a page depends on; "" if a folder was deleted meanwhile."""
        try:
            states = file_states([Path(folder) for folder in self.folders])
        except OSError:
            return ""
        runs = {path.parent for path in states if path.name == "config.yaml"}
        ended = {path.parent for path in states if path.name == "result.json"}
        training = sorted(str(path) for path in runs - ended if RunDirectory(path).is_running)
        return sha256(repr((sorted(states.items()), training)))[:16]

    def _html(self, served: Served) -> str:
        """Return the page of the runs, or one that says why there is none."""
        try:
            if not any(map(os.path.isdir, self.folders)):
                raise NoRuns
            return served_page(self.read(), served)
        except NoRuns:
            line = f"No runs yet in {', '.join(self.folders)}. They appear here once they train."
        except UserError as error:
            line = str(error)
        except Exception as error:  # a file of a run that nothing else expects; it may be mended
            line = f"The runs cannot be read ({type(error).__name__}: {first_line(error)})."
        return served_message(line, served)


class Server(ThreadingHTTPServer):
    """Answers requests of this machine for the page of a dashboard.

    Raises OSError if the port is taken; port 0 is any free one.
    """

    allow_reuse_address = os.name != "nt"  # Windows would give a port twice

    def __init__(self, dashboard: Dashboard, port: int) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.dashboard = dashboard
        # A page of another site may have its own name point here (DNS rebinding), and sends it.
        suffixes = [f":{self.server_port}"] + [""] * (self.server_port == HTTP_PORT)
        self.hosts = [[f"{n}{suffix}"] for n in (LOOPBACK, "localhost") for suffix in suffixes]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error, but not that a browser went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of `/`."""

    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        if self.headers.get_all("Host") not in server.hosts:
            self._send(HTTPStatus.FORBIDDEN)
        elif self.path != "/":
            self._send(HTTPStatus.NOT_FOUND)
        else:
            page = server.dashboard.page()
            tag = f'"{page.tag}"'
            is_known = self.headers.get("If-None-Match") == tag
            status = HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK
            self._send(status, b"" if is_known else page.content, ETag=tag)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = do_POST

    def _send(self, status: HTTPStatus, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: browsers ask every few seconds."""


def listen(dashboard: Dashboard, ports: Sequence[int]) -> Server:
    """Return a server at the first free port. Raises UserError if there is none."""
    reason = ""
    for port in ports:
        try:
            return Server(dashboard, port)
        except OSError as error:
            reason = error.strerror or str(error)
    named = str(ports[0]) if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"
    raise UserError(f"--port={named}: {reason}; choose another, or 0 for any free one")
