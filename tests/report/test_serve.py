"""`minigpt report --serve`: a page of this machine only, which updates while runs train."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from minigpt.commands.report import PORTS
from minigpt.report import serve
from minigpt.report.comparison import Comparison, compare
from minigpt.report.serve import Dashboard, Server
from minigpt.run.directory import RunDirectory
from tests.conftest import Cli
from tests.report.conftest import needs_browser
from tests.report.synthetic import POSITIONS, config, make_run, make_sweep

SECONDS = 30.0  # a page is made again after this time at most

Answer = tuple[int, dict[str, str], str]


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Server]:
    dashboard = Dashboard([str(folder)], partial(compare, [str(folder)]), 0.2)
    with Server(dashboard, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three finished runs, and one that has not ended."""
    make_sweep(tmp_path / "runs", POSITIONS, seeds=(1,))
    make_run(tmp_path / "runs" / "now", config("rope", seed=2), loss=1.7, status=None)
    return tmp_path / "runs"


def ask(server: Server, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SECONDS)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode("utf-8")
    connection.close()
    return answer.status, dict(answer.headers), text


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def log(run: Path, step: int, loss: float) -> None:
    line = {"step": step, "train_loss": loss, "val_loss": loss, "seconds": step / 10}
    RunDirectory(run).append_metrics(line)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_page_is_new_once_a_file_has_changed(folder: Path) -> None:
    with serving(folder) as server, RunDirectory(folder / "now").locked():
        before = contents(folder)
        status, headers, text = ask(server)
        assert status == 200 and "1 run is training" in text
        table = text[text.index('id="unended"') : text.index('id="plot-')]
        assert ">running<" in table and ">2.2000<" in table  # 1.7 + 20 / 40, at step 40
        assert "Dotted: single runs that train now" in text
        assert ask(server, If_None_Match=headers["ETag"])[::2] == (304, "")
        assert ask(server, method="HEAD")[2] == "" and contents(folder) == before
        log(folder / "now", 50, 1.2345)
        wait(lambda: ask(server, If_None_Match=headers["ETag"])[0] == 200)
        _, newer, text = ask(server)
        assert newer["ETag"] != headers["ETag"] and ">1.2345<" in text
    with serving(folder) as server:  # the lock is free: the run was killed
        assert ">killed<" in ask(server)[2]


def test_a_page_is_new_once_a_run_is_killed(folder: Path) -> None:
    with serving(folder) as server:
        with RunDirectory(folder / "now").locked():
            tag = ask(server)[1]["ETag"]
        wait(lambda: ask(server, If_None_Match=tag)[0] == 200)
        assert ">killed<" in ask(server)[2]


def test_an_empty_folder_fills(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with serving(runs) as server:
        status, headers, text = ask(server)
        assert status == 200 and f"No runs yet in {runs}" in text
        runs.mkdir()
        assert "No runs yet" in ask(server)[2]
        make_run(runs / "one", config())
        wait(lambda: ask(server, If_None_Match=headers["ETag"])[0] == 200)
        assert "One design" in ask(server)[2]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "", "localhost:80"])
def test_another_host_is_refused(tmp_path: Path, host: str) -> None:
    with serving(tmp_path) as server:
        status, _, text = ask(server, Host=host)
        assert status == 403 and text == ""
        for own in ("127.0.0.1", "localhost"):
            assert ask(server, Host=f"{own}:{server.server_port}")[0] == 200


def test_browsers_leave_out_the_port_of_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another port stands for 80, which only root may use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(serve, "HTTP_PORT", port)
    with serving(tmp_path, port) as server:
        for host in ("127.0.0.1", f"127.0.0.1:{port}", "localhost"):
            assert ask(server, Host=host)[0] == 200
        for host in ("evil.example", "127.0.0.1:1", ""):
            assert ask(server, Host=host)[0] == 403


@pytest.mark.parametrize(
    "path", ["/result.json", "//now", "/?a", "/../now/result.json", "/%2e%2e/", "/favicon.ico", "*"]
)
def test_there_is_one_path(folder: Path, path: str) -> None:
    with serving(folder) as server:
        assert ask(server, path)[::2] == (404, "")


def test_only_get_and_head(folder: Path) -> None:
    with serving(folder) as server:
        before = contents(folder)
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            status, headers, text = ask(server, method=method)
            assert (status, headers["Allow"], text) == (405, "GET, HEAD", "")
        assert contents(folder) == before


def test_only_this_machine_connects(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_damaged_runs_do_not_end_the_server(folder: Path) -> None:
    (folder / "rope_seed=1" / "result.json").write_text('{"status": "fini')
    (folder / "alibi_seed=1" / "config.yaml").write_bytes(b"\xff: [")
    (folder / "now" / "metrics.jsonl").write_text("[]\n{")
    with serving(folder) as server:
        status, _, text = ask(server)
        assert status == 200 and "result.json: broken JSON" in text and "not readable YAML" in text


def test_an_error_is_shown_until_it_is_mended(folder: Path) -> None:
    damage = folder / "now" / "eval.json"
    damage.touch()

    def read() -> Comparison:
        if damage.exists():
            raise KeyError("<b>model</b>")
        return compare([str(folder)])

    dashboard = Dashboard([str(folder)], read, 1.0)
    text = dashboard.page().content.decode()
    assert "The runs cannot be read (KeyError: &#39;&lt;b&gt;model&lt;/b&gt;&#39;)" in text
    damage.unlink()
    wait(lambda: b"3 of 4 runs finished" in dashboard.page().content)


def test_a_baseline_that_has_not_begun_is_said(folder: Path) -> None:
    read = partial(compare, [str(folder)], baseline="never")
    page = Dashboard([str(folder)], read, 1.0).page()
    assert b"--baseline=never" in page.content


def test_ctrl_c_ends_the_command(folder: Path) -> None:
    """The first port is taken, so the next one is used."""
    command = [sys.executable, "-m", "minigpt.cli", "report", str(folder), "--serve"]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # another program has it
            other.bind(("127.0.0.1", PORTS[0]))
            other.listen()
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert line.startswith("http://127.0.0.1:") and f"(port {PORTS[0]} is taken)" in line
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--serve", "--fit"], "--fit: cannot be used with --serve"),
        (["--serve", "--live"], "--live: cannot be used with --serve"),
        (["--serve", "--out", "a.html"], "--out: cannot be used with --serve"),
        (["--serve", "--wandb", "me/mine"], "--wandb: cannot be used with --serve"),
        (["--serve", "--port", "-1"], "--port=-1: must be from 0"),
        (["--serve", "--port", "65536"], "--port=65536: must be from 0"),
        (["--port", "0"], "--port: is an option of --serve"),
        (["--open"], "--open: is an option of --serve"),
        (["--serve", "nowhere"], "DIR=nowhere: no such folder"),
    ],
)
def test_options_that_do_not_go_together(cli: Cli, options: list[str], words: str) -> None:
    folders = [] if "nowhere" in options else ["."]
    done = cli("report", *folders, *options)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


def test_a_taken_port_is_one_line(cli: Cli) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cli("report", ".", "--serve", "--port", str(port))
    assert done.code == 2 and f"--port={port}: {os.strerror(98)}; choose another" in done.err


@needs_browser
def test_the_page_updates_in_the_browser(folder: Path, browser: Browser) -> None:
    """Without loading it again: scroll position, folds, hidden designs, zoom and a mark stay."""
    shown = browser.new_page(viewport={"width": 900, "height": 600})
    said: list[str] = []
    shown.on("pageerror", lambda error: said.append(str(error)))
    with serving(folder) as server, RunDirectory(folder / "now").locked():
        shown.goto(server.url)
        shown.wait_for_selector("body[data-drawn]", timeout=20_000)
        shown.evaluate("window.mark = 1")
        shown.locator("#runs summary").click()
        shown.locator('[data-design^="positional=alibi"]').first.click()
        plot = shown.locator("#plot-learning_val_loss")
        box = plot.locator(".nsewdrag").first.bounding_box()
        assert box is not None
        shown.mouse.move(box["x"] + 200, box["y"] + 60)
        shown.mouse.down()
        shown.mouse.move(box["x"] + 400, box["y"] + 160, steps=3)
        shown.mouse.up()
        zoom = "document.getElementById('plot-learning_val_loss')._fullLayout.xaxis.range"
        shown.wait_for_function(f"{zoom}[0] > 10")
        zoomed = shown.evaluate(zoom)
        top = shown.evaluate("window.scrollY")
        assert top > 0
        log(folder / "now", 50, 1.2345)
        make_run(folder / "new", config("nope"), 1.9)
        shown.wait_for_selector("#unended >> text=1.2345", timeout=1000 * SECONDS)
        shown.wait_for_selector("#leaderboard >> text=nope")
        last = "Math.max(...document.getElementById('plot-learning_val_loss').data[1].x)"
        shown.wait_for_function(f"{last} == 50")
        assert shown.evaluate("window.mark") == 1 and shown.evaluate("window.scrollY") == top
        assert shown.evaluate(zoom) == zoomed
        assert shown.locator("#runs details[open]").count() == 1
        assert shown.locator('[data-design^="positional=alibi"][aria-pressed="false"]').count() > 1
        assert shown.locator("#connection").text_content() == ""
    shown.wait_for_selector("#connection >> text=No answer since")
    assert said == []
    shown.close()
