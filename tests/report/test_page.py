"""The report page in a browser: no errors, no requests, small screens, dark mode."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from minigpt.commands.report import main
from minigpt.report.figures import COLOURS, DASHES, SYMBOLS, styles
from minigpt.report.page import GLYPHS, MOST_BESIDE, STROKES
from tests.report.conftest import needs_browser
from tests.report.synthetic import POSITIONS, config, make_run, make_sweep

HOSTILE = "</script><script>window.hacked=1</script>&_%"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three designs with every part of a page, and hostile names."""
    folder = make_sweep(tmp_path_factory.mktemp("page") / "sweep", POSITIONS)
    for seed in (1, 2):
        settings = config("learned", seed=seed, trainer__sample_prompt=HOSTILE)
        costs = {"parameters": {"total": 2000, "active": 2000}, "flops_per_token": 9000}
        make_run(folder / f"<b>{seed}", settings, 1.9 + seed / 50, result=costs | {"seconds": 9.0})
    main([str(folder)])
    return folder / "report.html"


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_is_drawn_without_other_requests(
    page: Path, browser: Browser, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if scheme == "dark" else "light",
        has_touch=width < 500,
        is_mobile=width < 500,
    )
    shown = context.new_page()
    said: list[str] = []
    requests: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(page.as_uri())
    shown.wait_for_selector("body[data-drawn]", timeout=20_000)
    assert said == [] and requests == [page.as_uri()]
    assert shown.evaluate("window.hacked") is None

    names = shown.eval_on_selector_all(".plot", "plots => plots.map(plot => plot.id)")
    assert names == [
        *("plot-forest", "plot-learning_val_loss", "plot-learning_train_loss", "plot-flops"),
        *("plot-lengths", "plot-positions", "plot-parameters", "plot-time"),
    ]
    for name in names:
        traces = shown.locator(f"#{name} .scatterlayer .trace").count()
        assert traces >= 3 and shown.locator(f"#{name} .main-svg").count() >= 2
        assert shown.locator(f"#{name} .scatterlayer path").count() >= 3
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    back, text = (
        shown.evaluate(f"getComputedStyle(document.body).{key}")
        for key in ("backgroundColor", "color")
    )
    tick = shown.locator("#plot-lengths .xtick text").first.evaluate(
        "t => getComputedStyle(t).fill"
    )
    assert _bright(back) == (scheme == "light") and _bright(text) != _bright(back)
    assert tick == text
    for name in names:
        _labels_are_apart(shown, name)
    context.close()


def _labels_are_apart(shown: Page, name: str) -> None:
    """Labels beside lines are on the screen, inside the plot's height, and do not overlap."""
    boxes = shown.eval_on_selector_all(
        f".legend:has(+ #{name}) button",
        "buttons => buttons.map(b => b.getBoundingClientRect().toJSON())",
    )
    plot = shown.eval_on_selector(f"#{name}", "plot => plot.getBoundingClientRect().toJSON()")
    width = shown.evaluate("window.innerWidth")
    n_designs = 3 if name in ("plot-lengths", "plot-positions") else 4
    assert len(boxes) == (0 if name == "plot-forest" else n_designs)
    for box in boxes:
        assert 0 < box["left"] < box["right"] <= width
        assert plot["top"] <= box["top"] < box["bottom"] <= plot["bottom"]
    boxes.sort(key=lambda box: box["top"])
    assert all(a["bottom"] <= b["top"] + 0.5 for a, b in pairwise(boxes))


@needs_browser
def test_reader_switches_axes_and_designs(page: Path, browser: Browser) -> None:
    shown = browser.new_page()
    shown.goto(page.as_uri())
    shown.wait_for_selector("body[data-drawn]")
    plot = shown.locator("#plot-learning_val_loss")
    before = plot.locator(".scatterlayer .js-line").nth(1).get_attribute("d")
    for name in ("tokens", "FLOPs", "seconds"):
        shown.locator(f'[data-plot="learning_val_loss"]:text-is("{name}")').click()
        shown.wait_for_function(
            "name => document.querySelector('#plot-learning_val_loss .xtitle').textContent == name",
            arg=name,
        )
    assert plot.locator(".scatterlayer .js-line").nth(1).get_attribute("d") != before
    traces = plot.locator(".scatterlayer .trace")
    n = traces.count()
    shown.locator('[data-design^="positional=alibi"]').first.click()
    shown.wait_for_function(
        "n => document.querySelectorAll('#plot-learning_val_loss .scatterlayer .trace').length < n",
        arg=n,
    )
    assert shown.locator('[data-design^="positional=alibi"][aria-pressed="false"]').count() > 1
    shown.emulate_media(color_scheme="dark")
    shown.wait_for_function(
        "() => getComputedStyle(document.querySelector('.xtick text')).fill"
        " == getComputedStyle(document.body).color"
    )
    shown.close()


@needs_browser
@pytest.mark.parametrize("refused", [False, True])
def test_commands_are_copied_and_folds_stay_open(
    page: Path, browser: Browser, refused: bool
) -> None:
    context = browser.new_context()
    if not refused:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = context.new_page()
    if refused:  # as in a browser that has no clipboard for files
        shown.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    shown.goto(page.as_uri())
    shown.wait_for_selector("body[data-drawn]")
    button = shown.locator("#leaderboard .copy").first
    assert button.get_attribute("data-copy") == "minigpt train"  # without the seed
    button.click()
    shown.wait_for_function("() => document.querySelector('.copy').textContent == 'copied'")
    if not refused:
        assert shown.evaluate("navigator.clipboard.readText()") == "minigpt train"
    assert shown.locator("details[open]").count() == 1
    shown.locator("#runs summary").click()
    assert shown.locator("#runs .copy").first.get_attribute("data-copy") == "minigpt train seed=1"
    shown.locator("#leaderboard summary").click()
    shown.wait_for_function("() => state.folds.runs && state.folds.leaderboard === false")
    shown.reload()
    shown.wait_for_selector("body[data-drawn]")
    assert shown.locator("#runs details[open]").count() == 1
    assert shown.locator("#leaderboard details[open]").count() == 0
    context.close()


def test_the_verdict_comes_first_and_tables_are_folded(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = ['<p class="verdict">', 'id="plot-forest"', 'id="plot-learning_val_loss"']
    parts += ['id="plot-flops"', 'id="plot-lengths"', ">Samples<", 'id="leaderboard"', 'id="runs"']
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert text.count("<details open") == 1 and text.count("<details") == 7
    assert 'title="positional=rope sample_prompt' not in text
    rope = "positional=rope trainer.sample_prompt=&#34;\\n&#34;"
    assert f'<span title="{rope}">rope</span>' in text


def test_page_without_a_browser(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in text and HOSTILE not in text
    assert "The &lt;king&gt; &amp; seed 1." in text and "aaaaaaaa" in text


def test_many_labels_are_above_the_plots(tmp_path: Path) -> None:
    for n in range(MOST_BESIDE + 1):
        make_run(tmp_path / str(n), config(model__n_embd=16 + n), 1.5 + n / 10)
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<div class="legend">' in text
    (tmp_path / "0" / "result.json").unlink()
    (tmp_path / "0" / "metrics.jsonl").unlink()
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<div class="legend beside">' in text and '<div class="legend">' not in text


def test_styles_of_designs_differ() -> None:
    """Each colour has contrast with white and black, each dash and marker a sign in the legend."""
    for colour in COLOURS:
        light = _luminance(colour)
        assert 1.05 / (light + 0.05) >= 3 and (light + 0.05) / (_luminance("#14171a") + 0.05) >= 3
    assert {*STROKES} == {*DASHES} and {*GLYPHS} == {*SYMBOLS}
    n_designs = len(COLOURS) * len(DASHES)
    found = styles([*map(str, range(n_designs))]).values()
    assert len({(style.colour, style.dash) for style in found}) == n_designs >= 14
    assert len({(style.colour, style.symbol) for style in found}) == n_designs


def _luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _bright(rgb: str) -> bool:
    return sum(int(part) for part in rgb[rgb.index("(") + 1 : -1].split(",")[:3]) > 3 * 128


@needs_browser
def test_the_axis_leaves_out_the_start_also_of_what_is_left(
    tmp_path: Path, browser: Browser
) -> None:
    """The loss at step s is 20 / s above the last one."""
    for name, loss in (("rope", 1.5), ("alibi", 2.5)):
        make_run(tmp_path / name, config(name, trainer__max_steps=200), loss)
    main([str(tmp_path)])
    shown = browser.new_page()
    shown.goto((tmp_path / "report.html").as_uri())
    shown.wait_for_selector("body[data-drawn]")
    assert "leaves out the losses of the first 10%" in (tmp_path / "report.html").read_text()
    high = "document.getElementById('plot-learning_val_loss').layout.yaxis.range[1]"
    low = high.replace("range[1]", "range[0]")
    assert 3.5 < shown.evaluate(high) < 3.7 and 1.4 < shown.evaluate(low) < 1.6
    shown.locator('[data-plot="learning_val_loss"]:text-is("seconds")').click()
    shown.wait_for_function(f"{high} < 3.7")
    shown.locator('[data-design="positional=alibi"]').first.click()
    shown.wait_for_function(f"{high} < 2.7 && {low} > 1.4")
    shown.close()


@needs_browser
def test_page_of_several_objectives(tmp_path: Path, browser: Browser) -> None:
    for number, (name, seed) in enumerate(product(("causal", "masked"), (1, 2))):
        for positional in ("learned", "rope"):
            settings = config(positional, seed=seed)
            settings["objective"] = {"name": name}
            make_run(tmp_path / "runs" / f"{name}_{positional}_{seed}", settings, 1.5 + number / 9)
    main([str(tmp_path / "runs")])
    shown = browser.new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.goto((tmp_path / "runs" / "report.html").as_uri())
    shown.wait_for_selector("body[data-drawn]", timeout=20_000)
    assert said == []
    names = shown.eval_on_selector_all(".plot", "plots => plots.map(plot => plot.id)")
    assert len({*names}) == len(names) and "plot-learning_val_loss_masked" in names
    count = "plot => plot.querySelectorAll('.scatterlayer .js-line').length"
    for name in ("causal", "masked"):
        lines = shown.eval_on_selector(f"#plot-learning_val_loss_{name}", count)
        assert lines == 4  # line and band of its own two designs
