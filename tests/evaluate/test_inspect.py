"""`minigpt inspect`: recorded values, plots, the page and error messages."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.config.compose import composed_config
from minigpt.evaluate.inspect import (
    Recording,
    next_tokens,
    record,
    rotary_angles,
    scheme_values,
    token_label,
)
from minigpt.evaluate.inspect_plots import STYLES, plot, plot_next_tokens
from minigpt.html import Section, write_page
from minigpt.model import GPT
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.alibi import alibi_slopes
from minigpt.tokenizer import TOKENIZERS, Tokenizer
from tests.conftest import TINY, Cli, the_run

N_VOCAB = 13
TOKENS = [3, 1, 4, 1, 5, 9]
LABELS = ["R", "⏎", "␣", "$a$", "<b>", "longer"]
SCHEMES = POSITIONAL.names()


def tiny_model(scheme: str, *overrides: str, **changes: object) -> GPT:
    """Return a two-layer model whose parameters are random with a large variance."""
    config = composed_config([f"positional={scheme}", *overrides]).model
    small: dict[str, object] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}
    model = GPT(replace(config, **{**small, **changes}), N_VOCAB)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def char_tokenizer() -> Tokenizer:
    """Return a character tokenizer with N_VOCAB characters."""
    config = TOKENIZERS.options("char")(name="char")
    return TOKENIZERS.variant("char").create(config, "\n []abcdefghi", 4, Path("unused"))


def inspect_scheme(model: GPT) -> tuple[Recording, dict[str, list[Tensor]]]:
    """Return a recorded forward pass and the matrices of the scheme."""
    recording = record(model, TOKENS)
    return recording, scheme_values(model, recording)


# --- the recorded forward pass


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_recording_equals_the_forward_pass(scheme: str, kv_heads: int | None) -> None:
    model = tiny_model(scheme, n_kv_head=kv_heads)
    backend = model.backend
    recording = record(model, TOKENS)
    assert model.backend is backend
    torch.testing.assert_close(recording.logits, model(torch.tensor([TOKENS]))[0].detach())
    assert len(recording.weights) == 2
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for weights in recording.weights:
        assert weights.shape == (2, 6, 6)
        assert torch.equal(weights.isnan(), later.expand(2, -1, -1))
        torch.testing.assert_close(weights.nansum(-1), torch.ones(2, 6))
    assert len(recording.biases) == (0 if model.positional.bias_depends_on == "nothing" else 2)
    assert all(torch.equal(term[0].isnan(), later) for term in recording.biases)


def test_backend_is_restored_after_an_error() -> None:
    model = tiny_model("rope")
    backend = model.backend
    with pytest.raises(IndexError):
        record(model, [N_VOCAB])
    assert model.backend is backend


def test_recorded_weights_equal_the_formula() -> None:
    model = tiny_model("alibi", n_layer=1)
    attention = model.blocks[0].self_attention  # type: ignore[union-attr]
    x = model.blocks[0].attention_norm(model.token_embedding(torch.tensor(TOKENS)))  # type: ignore
    q, k, _ = rearrange(attention.qkv(x), "t (three h e) -> three h t e", three=3, h=2)  # type: ignore
    q, k = F.rms_norm(q, (8,)), F.rms_norm(k, (8,))
    recording, matrices = inspect_scheme(model)
    for h, slope in enumerate(alibi_slopes(2)):
        for i in range(len(TOKENS)):
            terms = [-slope * (i - j) for j in range(i + 1)]
            scores = [q[h, i] @ k[h, j] / math.sqrt(8) + terms[j] for j in range(i + 1)]
            expected = torch.stack(scores).softmax(0).detach()
            torch.testing.assert_close(recording.weights[0][h, i, : i + 1], expected)
            torch.testing.assert_close(recording.biases[0][h, i, : i + 1], torch.tensor(terms))
    distances = torch.arange(8)
    expected = -torch.tensor(alibi_slopes(2))[:, None] * distances
    torch.testing.assert_close(matrices["bias"], [expected])


def test_next_token_probabilities() -> None:
    model, tokenizer = tiny_model("rope"), char_tokenizer()
    recording = record(model, TOKENS)
    rows = next_tokens(recording, TOKENS, tokenizer, 3)
    p = model(torch.tensor([TOKENS]))[0].softmax(-1)
    for place, (actual, *top) in enumerate(rows):
        if place + 1 < len(TOKENS):
            label = token_label(tokenizer.token_bytes(TOKENS[place + 1]))
            assert actual == (label, pytest.approx(p[place, TOKENS[place + 1]].item()))
        order = p[place].argsort(descending=True)[:3].tolist()
        assert [label for label, _ in top] == [
            token_label(tokenizer.token_bytes(token)) for token in order
        ]
        assert [p_token for _, p_token in top] == pytest.approx(p[place, order].tolist())
    assert rows[-1][0][0] == "" and math.isnan(rows[-1][0][1])
    all_tokens = next_tokens(recording, TOKENS, tokenizer, 99)
    assert sum(p_token for _, p_token in all_tokens[0][1:]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"\n", "⏎"),
        (b" the", "␣the"),
        (b"\t\x00\r", "⇥\\x00\\r"),
        ("é€😀".encode(), "é€😀"),
        ("😀".encode()[:2], "<f0 9f>"),
        (b"-" * 12, "-" * 12),
        (b"-" * 13, "-" * 11 + "…"),
    ],
)
def test_token_labels(content: bytes, label: str) -> None:
    assert token_label(content) == label


def test_expert_usage_is_plotted(cli: Cli, workdir: Path) -> None:
    model = tiny_model("rope", "ffn=moe")
    (usage,) = record(model, TOKENS).usage
    assert usage.shape == (1, 2, 8)
    torch.testing.assert_close(usage.sum(-1), torch.ones(1, 2))
    assert torch.equal(usage * 2 * len(TOKENS), (usage * 2 * len(TOKENS)).round())
    assert record(tiny_model("rope"), TOKENS).usage == []
    assert cli("train", "ffn=moe", *TINY).code == 0
    outcome = cli("inspect", "latest", "--prompt", "Line 1:\n")
    assert outcome.code == 0, outcome.err
    assert "inspect_experts.png" in outcome.out
    page = (the_run(workdir) / "inspect/inspect.html").read_text(encoding="utf-8")
    assert "<h2>Expert usage</h2>" in page


# --- matrices of the scheme

KINDS = {
    "embed": {"learned", "sinusoidal"},
    "block_input": {"block_input"},
    "angles": {"rope", "xpos"},
    "decay": {"rope", "xpos"},
    "bias": {"alibi", "fire", "kerple", "relative_bias", "t5"},
    "score": {"alibi", "fire", "kerple", "relative_bias", "t5", "cope", "integrated", "relative"},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_plotted(scheme: str, tmp_path: Path) -> None:
    """A scheme that is not in KINDS is plotted by the hooks it overrides."""
    recording, matrices_by_kind = inspect_scheme(tiny_model(scheme))
    if scheme in {"nope"}.union(*KINDS.values()):
        assert set(matrices_by_kind) == {
            kind for kind, schemes in KINDS.items() if scheme in schemes
        }
    shapes = {"embed": (1, 8, 16), "block_input": (1, 8, 16), "angles": (1, 8, 4)}
    shapes |= {"decay": (1, 8), "bias": (2, 8), "score": (2, 6, 6)}
    sections = []
    for kind, values in {"attention": recording.weights, **matrices_by_kind}.items():
        for layer, matrices in enumerate(values):
            assert matrices.shape == shapes.get(kind, (2, 6, 6))
            assert matrices.isfinite().sum() > 0
            figure = plot(STYLES[kind], matrices, LABELS)
            sections.append(Section(kind, "", f"{kind}{layer}", figure))
    figure = plot_next_tokens(next_tokens(recording, TOKENS, char_tokenizer(), 2), LABELS)
    sections.append(Section("next", "", "next", figure))
    assert len(write_page(tmp_path / "page.html", scheme, sections[-2:])) == 1 + len(sections[-2:])


@pytest.mark.parametrize(("layers", "n"), [("shared", 1), ("own", 2)])
def test_shared_layers_are_shown_once(layers: str, n: int) -> None:
    model = tiny_model("t5", f"model.positional.layers={layers}")
    _, matrices = inspect_scheme(model)
    assert [len(values) for values in matrices.values()] == [n, n]


def test_shown_tables_are_the_parameters() -> None:
    learned, block_input = tiny_model("learned"), tiny_model("block_input")
    table = dict(learned.positional.named_parameters())["table.weight"]
    assert torch.equal(inspect_scheme(learned)[1]["embed"][0][0], table)
    tables = dict(block_input.positional.named_parameters())["table"]
    plotted = torch.cat(inspect_scheme(block_input)[1]["block_input"])
    assert torch.equal(plotted, tables)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_angles_equal_the_formula(fraction: float) -> None:
    model = tiny_model("rope", f"model.positional.fraction={fraction}", n_embd=32)
    positions = torch.arange(50)[None]
    rotated = int(16 * fraction)
    pair = torch.arange(rotated // 2)
    expected = torch.arange(50)[:, None] * 10000.0 ** (-2 * pair / rotated)
    angles = rotary_angles(model, positions, 0)
    assert angles.shape == (1, 50, rotated // 2)
    difference = torch.remainder(angles[0] - expected + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-5)
    frequencies = 10000.0 ** (-2 * pair / rotated)
    decay = (torch.arange(8)[:, None] * frequencies).cos().mean(-1) * fraction + 1 - fraction
    torch.testing.assert_close(inspect_scheme(model)[1]["decay"][0][0], decay)


def test_bias_by_distance_equals_the_last_row_of_scores() -> None:
    for scheme in KINDS["bias"]:
        model = tiny_model(scheme)
        recording = record(model, [1, 2, 3, 4, 5, 6, 7, 8])
        matrices = scheme_values(model, recording)
        torch.testing.assert_close(matrices["bias"][0], matrices["score"][0][:, -1].flip(-1))


# --- the command


def test_page_is_self_contained(cli: Cli, workdir: Path) -> None:
    assert cli("train", "model=rope", *TINY).code == 0
    run = the_run(workdir)
    outcome = cli("inspect", "latest", "--prompt", "Line 1:\n", "--top", "3")
    assert outcome.code == 0, outcome.err
    folder = run / "inspect"
    pngs = {path.name for path in folder.glob("*.png")}
    assert pngs == {f"inspect_{name}.png" for name in ("attention", "angles", "decay", "next")}
    for name in (*pngs, "inspect.html"):
        assert f"{folder.relative_to(workdir) / name}" in outcome.out
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pngs)
    page = (folder / "inspect.html").read_text(encoding="utf-8")
    sources = re.findall(r'<img [^>]*src="([^"]*)"', page)
    assert page.count('<div class="drawing">') == len(pngs) < len(sources)
    prefix = "data:image/svg+xml;base64,"
    drawings = [base64.b64decode(s.removeprefix(prefix)).decode("utf-8") for s in sources]
    for text in (page, *drawings):
        links = re.findall(r"(?:https?|file)://[^\s\"'<>]*", text)
        assert all(link.startswith("http://www.w3.org/") for link in links), links
        assert not re.findall(r'(?:href|src)="(?!data:|#)', text)
    for label in "Line␣1:⏎":
        assert label in page and any(f">{label}</text>" in drawing for drawing in drawings)
    assert "<h2>Step by step</h2>" in page and "(t, d) = (8, " in page
    assert "<th>after</th><th>came next</th><th>1</th><th>2</th><th>3</th></tr>" in page
    assert page.count("<tr>") == 1 + len("Line 1:\n")
    assert "⏎" in outcome.out and "came next" in outcome.out
    before = (folder / "inspect.html").read_bytes()
    assert cli("inspect", str(run), "--prompt", "Line 1:\n", "--top", "3").code == 0
    assert (folder / "inspect.html").read_bytes() == before


def test_default_prompt_is_the_validation_text(cli: Cli, workdir: Path) -> None:
    assert cli("train", *TINY, "data.document_separator=3").code == 0
    text = Path("text.txt").read_text(encoding="utf-8")
    start = text[int(0.9 * len(text)) :][:8]
    assert cli("inspect", "latest", "--out", "default").code == 0
    assert cli("inspect", "latest", "--out", "given", "--prompt", start).code == 0
    pages = [Path(name, "inspect.html").read_bytes() for name in ("default", "given")]
    assert pages[0] == pages[1]
    Path("text.txt").write_text("gone")
    outcome = cli("inspect", "latest")
    assert outcome.code == 0 and "Prompt: 1 tokens" in (
        the_run(workdir) / "inspect/inspect.html"
    ).read_text(encoding="utf-8")
    assert outcome.err.startswith(r"no validation text, so --prompt='\n': ")


def test_inspect_of_a_model_without_layers(cli: Cli, workdir: Path) -> None:
    tiny = [option for option in TINY if not option.startswith("model.n_layer")]
    assert cli("train", "model=bigram", *tiny).code == 0
    outcome = cli("inspect", "latest", "--out", "drawn", "--top", "20")
    assert outcome.code == 0, outcome.err
    page = Path("drawn/inspect.html").read_text(encoding="utf-8")
    assert "the model has no layers" in page and "No figures: " in page
    assert [path.name for path in Path("drawn").glob("*.png")] == ["inspect_next.png"]


def test_mistakes_print_one_line_and_create_no_files(cli: Cli, workdir: Path) -> None:
    assert cli("train", "model=learned", *TINY).code == 0
    before = sorted(workdir.rglob("*"))
    mistakes = {
        ("--prompt", ""): "--prompt=: empty; give at least one character",
        ("--prompt", "Line 1: fox"): (
            "--prompt='Line 1: fox': 11 tokens, at most 8 can be plotted: "
            "positional=learned has no more positions; shorten it"
        ),
        ("--prompt", "§"): "--prompt: text='§' (U+00A7) at offset 0: not among the",
        ("--top", "0"): "--top=0: must be from 1 to 20",
        ("--top", "21"): "--top=21: must be from 1 to 20",
        ("--top", "x"): "--top=x: must be a whole number",
        ("--out", "text.txt"): "--out=text.txt: cannot be written (File exists)",
    }
    for arguments, message in mistakes.items():
        outcome = cli("inspect", "latest", *arguments)
        assert outcome.code == 2, arguments
        assert message in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert sorted(workdir.rglob("*")) == before
    assert cli("train", "model=rope", *TINY, "name=rope").code == 0
    outcome = cli("inspect", "latest", "--prompt", "fox" * 100)
    assert "300 tokens, at most 256 can be plotted: more are unreadable" in outcome.err
