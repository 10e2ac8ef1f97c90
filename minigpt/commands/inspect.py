"""`minigpt inspect`: what a trained run attends to, how its positions work, what it expects."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser, add_run_arguments
from minigpt.errors import UserError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from minigpt.html import Section
    from minigpt.run.load import TrainedRun

PLAIN_PROMPT = "\n"
DRAWABLE = 256  # tokens
MOST_TOP = 20
PRINTED_STEPS, PRINTED_TOP = 10, 5
TICKS = 40  # token labels an axis holds
PAGE_WIDTH = 13.0  # inches


@dataclass(frozen=True)
class Look:
    """How one kind of values is drawn: maps with y and x axes, or curves without a y."""

    heading: str
    text: str
    unit: str
    x: str
    y: str = ""
    colours: str = "RdBu_r"


LOOKS = {
    "attention": Look(
        "Attention", "A query's weights sum to 1 over its row.", "weight", "key", "query", "viridis"
    ),
    "experts": Look(
        "Expert usage",
        "The share of a layer's assignments that each expert got, over the prompt.",
        *("share", "expert", "layer", "viridis"),
    ),
    "embed": Look(
        "Added to the embeddings", "What becomes of zeros.", "value", "channel", "position"
    ),
    "block_input": Look(
        "Added to the blocks' inputs", "What becomes of zeros.", "value", "channel", "position"
    ),
    "angles": Look(
        "Rotary angles",
        "How far each pair of channels of queries and keys is turned, measured.",
        *("radians", "channel pair", "position", "twilight"),
    ),
    "decay": Look(
        "Rotation by distance",
        "A query of ones times a key of ones so far behind it: the mean over channels.",
        *("mean of q k", "distance"),
    ),
    "score": Look(
        "Score term",
        "What the scheme adds to the scores of the prompt's own queries and keys.",
        *("added to the score", "key", "query"),
    ),
    "bias": Look(
        "Score term by distance",
        "From the last position back to the first.",
        *("added to the score", "distance"),
    ),
}
ALL_LAYERS = "A figure that names no layer holds for all of them."
NO_PICTURE = (
    "Nothing to draw: positions change neither embeddings nor block inputs, queries, keys or "
    "scores here. The order of the tokens shows in the causal mask alone."
)
NEXT = (
    "After each token of the prompt: the token that came next and the likeliest ones, with their "
    "probabilities. The last row is what comes after the prompt."
)


def main(arguments: list[str]) -> None:
    """Write one HTML page and PNGs, and print the next tokens' probabilities."""
    parser = Parser(
        "inspect",
        "Draw what a trained run does with a prompt: the attention of every layer and head, what\n"
        "its positional scheme adds or turns, and the next tokens it expects after each token.",
        [
            "minigpt inspect latest",
            "minigpt inspect runs/NAME --prompt 'To be, or not' --top 3 --out drawn",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--prompt", help="default: the first model.block_size tokens of the validation text"
    )
    parser.add_argument("--out", metavar="DIR", help="default: RUN/inspect")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="next tokens (default: 5)")
    options = parser.parse_args(arguments)
    require(options.prompt != "", "--prompt", "", "empty; give at least one character")
    require(options.out != "", "--out", "", "empty; give a folder")
    require(1 <= options.top <= MOST_TOP, "--top", options.top, f"must be from 1 to {MOST_TOP}")

    from rich.table import Table
    from rich.text import Text

    from minigpt.console import PipeConsole
    from minigpt.evaluate.inspect import next_tokens, record, scheme_values, token_label
    from minigpt.html import Section, write_page
    from minigpt.run.load import TrainedRun

    trained = TrainedRun.load(options.run, options.checkpoint, options.device, options.set)
    tokens, documents = _prompt(trained, options.prompt)
    labels = [token_label(trained.tokenizer.token_bytes(token)) for token in tokens]
    runtime = trained.runtime
    if runtime.device == "cpu":  # as in generation
        runtime = replace(runtime, precision="fp32", precision_reason="exact")
    console = PipeConsole(highlight=False)
    console.print(f"{trained.run.path} ({trained.label}), {runtime.describe()}", soft_wrap=True)
    out = trained.run.path / "inspect" if options.out is None else Path(options.out)
    with console.status("computing and drawing ..."):
        with runtime.autocast():
            recording = record(trained.model, tokens, documents)
        rows = next_tokens(recording, tokens, trained.tokenizer, options.top)
        found = scheme_values(trained.model, recording)
        about = type(trained.model.positional).__doc__ or ""
        name = f"Positions: {trained.config.model.positional.name}"
        sections = [
            Section(_size(labels, documents), " ".join(labels)),
            *_drawn("attention", recording.weights, labels),
            *([] if recording.weights else [Section("Attention", "None: there are no layers.")]),
            *_drawn("experts", recording.usage, labels),
            Section(name, f"{about}\n\n{ALL_LAYERS if found else NO_PICTURE}"),
            *(s for kind in LOOKS if kind in found for s in _drawn(kind, found[kind], labels)),
            Section("Next tokens", NEXT, "next", draw_next(rows, labels), _table(rows, labels)),
        ]
        title = f"{trained.run.path.name} ({trained.label}), inspected"
        try:
            written = write_page(out / "inspect.html", title, sections)
        except OSError as error:
            why = f"cannot be written ({error.strerror or error}); choose another folder"
            raise UserError(f"--out={out}: {why}") from None

    last = slice(-PRINTED_STEPS, None)
    head, *cells = _table([row[: PRINTED_TOP + 1] for row in rows[last]], labels[last])
    table = Table(*head)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)
    for path in written:
        console.print(f"drawn in {path}", soft_wrap=True)


def _prompt(trained: TrainedRun, prompt: str | None) -> tuple[list[int], list[int] | None]:
    """The tokens to look at, and their documents if the run has any.

    Raises UserError where the model or a figure has no room for them, or they cannot be written.
    """
    config, longest = trained.config.model, trained.model.positional.max_length or DRAWABLE
    limit = min(DRAWABLE, longest)
    if prompt is None:
        return _validation_text(trained, min(limit, config.block_size))
    try:
        tokens, documents = _encoded(trained, prompt)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None
    reason = "more are unreadable in a figure"
    if longest < DRAWABLE:
        reason = f"positional={config.positional.name} has no more positions"
    why = f"{len(tokens)} tokens, at most {limit} can be drawn: {reason}; shorten it"
    shown = prompt if len(prompt) <= 20 else f"{prompt[:20]}..."
    require(len(tokens) <= limit, "--prompt", repr(shown), why)
    return tokens, documents


def _validation_text(trained: TrainedRun, n: int) -> tuple[list[int], list[int] | None]:
    """Its first n tokens and their documents; a line end where the text is no longer there."""
    from minigpt.data.prepare import prepare

    try:
        data = prepare(trained.config.data, trained.config.tokenizer, of_run=trained.run)
    except UserError as error:
        print(f"no validation text, so --prompt={PLAIN_PROMPT!r}: {error}", file=sys.stderr)
        return _encoded(trained, PLAIN_PROMPT)
    val = data.tokens.val.head(n)
    return val.tokens.tolist(), None if val.documents is None else val.documents.tolist()


def _encoded(trained: TrainedRun, text: str) -> tuple[list[int], list[int] | None]:
    from minigpt.data.tokens import encode_documents

    separator = trained.config.data.separator
    tokens, documents = encode_documents(text, separator, trained.tokenizer)
    return tokens.tolist(), None if documents is None else documents.tolist()


def _size(labels: list[str], documents: list[int] | None) -> str:
    n = len({*documents}) if documents is not None else 1
    return f"Prompt: {len(labels)} tokens{f' in {n} documents' if n > 1 else ''}"


def _table(rows: list[list[tuple[str, float]]], labels: list[str]) -> list[list[str]]:
    head = ["after", "came next", *map(str, range(1, len(rows[0])))]
    cells = zip(labels, rows, strict=True)
    return [head, *([label, *(_cell(*pair) for pair in row)] for label, row in cells)]


def _cell(label: str, share: float) -> str:
    return "" if math.isnan(share) else f"{label} {100 * share:.1f}%"


def _drawn(kind: str, values: list[Tensor], labels: list[str]) -> list[Section]:
    """A section for each layer, or for all of them at once."""
    from minigpt.html import Section

    look = LOOKS[kind]
    sections = []
    for layer, shown in enumerate(values):
        if not shown.numel():  # nothing turns in this layer
            continue
        of, suffix = (f", layer {layer}", f"_layer{layer}") if len(values) > 1 else ("", "")
        figure = draw(look, shown, labels)
        sections.append(Section(look.heading + of, look.text, kind + suffix, figure))
    return sections


def draw(look: Look, values: Tensor, labels: list[str]) -> Figure:
    """Maps (h, y, x) or curves (h, x); `labels` are the prompt's tokens, which keys are."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n, of_tokens = len(values), look.x == "key"
    if not look.y:
        figure = Figure((9, 4.5), layout="constrained")
        axis = figure.add_subplot(xlabel=look.x, ylabel=look.unit)
        axis.grid(alpha=0.3)
        for head, line in enumerate(values.numpy()):
            axis.plot(line, color=colormaps["viridis"](0.9 * head / n), label=f"head {head}")
        if n > 1:
            figure.legend(loc="outside right upper", fontsize=8)
        return figure

    side = min(max(1.2 + 0.16 * len(labels), 2.6), 6.2)
    width, height = (side, side) if of_tokens else (PAGE_WIDTH - 3, 5.0)
    down = -(-n // min(4, int(PAGE_WIDTH // width)))
    across = -(-n // down)
    figure = Figure((across * width + 1.0, down * (height + 0.2) + 0.3), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    most = abs(values).nan_to_num().max().item() or 1.0
    scales = {"viridis": (0, 1), "twilight": (-math.pi, math.pi)}
    low, high = scales.get(look.colours, (-most, most))
    # Roots tell small weights apart: over many keys all are small.
    norm = PowerNorm(0.5, low, high) if low == 0 else Normalize(low, high)
    style: dict[str, Any] = {"cmap": look.colours, "norm": norm}
    style |= {"interpolation": "nearest", "aspect": "equal" if of_tokens else "auto"}
    for head, axis in enumerate(axes):
        if head >= n:
            axis.set_visible(False)
            continue
        axis.imshow(values[head].numpy(), **style)
        axis.set_facecolor("0.85")
        if n > 1:
            axis.set_title(f"head {head}", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        if of_tokens:
            upright = max(map(len, labels)) > 2 or len(labels) > TICKS
            _label(axis.set_xticks, labels, rotation=90 if upright else 0)
            _label(axis.set_yticks, labels)
    figure.supxlabel(look.x, fontsize=10)
    figure.supylabel(look.y, fontsize=10)
    figure.colorbar(axes[0].images[0], ax=axes, label=look.unit, shrink=0.8, aspect=30)
    return figure


def draw_next(rows: list[list[tuple[str, float]]], labels: list[str]) -> Figure:
    """Probabilities of the token that came and of the likeliest ones, a row a step."""
    from matplotlib.figure import Figure

    head, *cells = _table(rows, labels)
    figure = Figure((1.4 * len(head) + 0.1, 0.26 * len(rows) + 0.8), layout="constrained")
    axis = figure.add_subplot()
    shares = [[share for _, share in row] for row in rows]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "parse_math": False}
    for y, row in enumerate(cells):
        for x, text in enumerate(row[1:]):
            axis.text(x, y, text, color="white" if shares[y][x] > 0.6 else "black", **style)
    axis.axvline(0.5, color="0.3", linewidth=1)
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(head) - 1), head[1:], fontsize=9)
    axis.set_yticks(range(len(rows)), [f"after {label}" for label in labels], parse_math=False)
    figure.colorbar(image, ax=axis, label="probability", pad=0.02)
    return figure


def _label(set_ticks: Any, labels: list[str], rotation: int = 0) -> None:
    """Name the ticks of an axis by tokens; of many only some, with their places."""
    every = -(-len(labels) // TICKS)
    places = range(0, len(labels), every)
    shown = labels if every == 1 else [f"{place} {labels[place]}" for place in places]
    set_ticks(places, shown, fontsize=8, rotation=rotation, parse_math=False)
