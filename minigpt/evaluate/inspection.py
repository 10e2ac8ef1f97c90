"""The page of `minigpt inspect`: attention, positions and next tokens for one prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.data.tokens import Batch, encode_documents
from minigpt.errors import UserError, require
from minigpt.evaluate.inspect import (
    StackRecording,
    label_of,
    next_tokens,
    record,
    scheme_values,
)
from minigpt.evaluate.inspect_plots import (
    STYLES,
    next_token_table,
    plot,
    plot_next_tokens,
    plot_step,
)
from minigpt.evaluate.steps import HEAD, LAYER, Step, Watch, steps
from minigpt.html import Section, Stage
from minigpt.inference.fill import Filler, written_spans
from minigpt.inference.generate import decoding_runtime
from minigpt.model.stack import Stack
from minigpt.objective.base import Objective
from minigpt.objective.denoise import Denoise
from minigpt.objective.masked import MARK, Masked
from minigpt.objective.prefix import PrefixLM
from minigpt.run.load import TrainedRun
from minigpt.runtime import Runtime
from minigpt.tokenizer import Tokenizer

MAX_TOKENS = 256  # maximum for a readable figure
SHOWN_IDS = 16  # of the last tokens
SHOWN_BEST = 5  # most probable tokens of the prediction step by step
ALL_LAYERS = "A figure without a layer in its heading applies to all layers."
NO_FIGURES = (
    "No figures: the scheme changes neither embeddings nor block inputs, queries, keys or scores. "
    "{} the order of the tokens."
)
TWO_SIDED = " Negative distances are those of keys after the query, which is at the first position."
UNKNOWN = -1  # as a target


@dataclass(frozen=True)
class Words:
    """How a page names a stack of an architecture, its tokens, its mask and what it predicts.

    `of`: ends headings. `where`, `actual`: see `next_token_table`.
    """

    of: str = ""
    tokens: str = "Prompt"
    mask: str = "Only the causal mask depends on"
    heading: str = "Next tokens"
    text: str = (
        "After each token of the prompt: the token that came next and the most probable ones, with "
        "their probabilities. The last row predicts what follows the prompt."
    )
    where: str = "after"
    actual: str = "came next"


WORDS = {
    "decoder": Words(),
    "prefix_decoder": Words(mask="Only the mask after the prefix depends on"),
    "encoder": Words(
        of=" of the encoder",
        mask="Nothing depends on",
        heading="Predicted tokens",
        text="At each token: the token of the text, where it is known, and the most probable ones, "
        "with their probabilities.",
        where="at",
        actual="of the text",
    ),
    "encoder_decoder": Words(
        of=" of the decoder",
        tokens="Decoder",
        text="After each token of the decoder: the token that came next and the most probable "
        "ones, with their probabilities.",
    ),
}


@dataclass(frozen=True)
class Prompt:
    """What a model reads of a prompt, and what it predicts at each token; None: unknown.

    `document_ids`: if the run's data has documents. `prefix`, `source`: see `record`. `origin`:
    where the tokens come from, in a heading.
    """

    tokens: list[int]
    targets: list[int | None]
    document_ids: list[int] | None = None
    prefix: int | None = None
    source: list[int] | None = None
    origin: str = ""


def encode_prompt(trained: TrainedRun, text: str) -> Prompt:
    """Encode a prompt, which is read as when the model continues it, or fills its gaps.

    Raises UserError if it is too long for the positions or for a figure.
    """
    objective, separator = trained.objective, trained.config.data.separator
    try:
        encoded = encode_documents(text, separator, WithGaps(trained.tokenizer, objective))
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None
    n, (limit, reason) = len(encoded[0]), _limit(trained)
    why = f"{n} tokens, at most {limit} can be plotted: {reason}; shorten it"
    require(n <= limit, "--prompt", repr(text if len(text) <= 20 else f"{text[:20]}..."), why)
    try:
        return READ.get(type(objective), as_evaluated)(trained, *encoded)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None


def validation_prompt(trained: TrainedRun) -> Prompt:
    """Return the first block of the validation text, as an evaluation reads it.

    Raises UserError if it is not available.
    """
    n = min(_limit(trained)[0], trained.config.model.block_size)
    val = trained.prepare().tokens.val.head(n)
    ids = None if val.document_ids is None else torch.tensor(val.document_ids.tolist())
    return as_evaluated(trained, torch.tensor(val.tokens.tolist()), ids)


def _limit(trained: TrainedRun) -> tuple[int, str]:
    """Return the maximum number of tokens of a prompt, and the reason."""
    config, limits = trained.config.model, [(MAX_TOKENS, "more are unreadable in a figure")]
    n_positions = trained.model.positional.max_length
    if n_positions is not None:
        limits.append((n_positions, f"positional={config.positional.name} has no more positions"))
    if trained.model.encoder is not None:
        limits.append((config.block_size, "more than model.block_size may have too many gaps"))
    return min(limits, key=lambda limit: limit[0])


@dataclass(frozen=True)
class WithGaps:
    """Encodes text in which MARK is a gap, if the objective has a token for gaps."""

    tokenizer: Tokenizer
    objective: Objective

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text. Raises UserError at a character that has no token."""
        if self.objective.gap(0) is None:
            return self.tokenizer.encode(text)
        first, *others = text.split(MARK)
        tokens = self.tokenizer.encode(first)
        for number, part in enumerate(others):
            gap = self.objective.gap(number)
            assert gap is not None
            tokens += [gap, *self.tokenizer.encode(part)]
        return tokens


def as_evaluated(trained: TrainedRun, tokens: Tensor, ids: Tensor | None) -> Prompt:
    """Return what the model reads of a text in an evaluation, with fixed draws."""
    objective, n = trained.objective, len(tokens)
    following = F.pad(tokens[1:], (0, 1), value=UNKNOWN)
    rows = [None if x is None else x[None].long() for x in (tokens, following, ids)]
    assert rows[0] is not None and rows[1] is not None
    draws = objective.draws_of_evaluation(1, n, n, tokens.device)
    batch = objective.apply(Batch(rows[0], rows[1], rows[2]), draws)
    targets = [None if token == UNKNOWN else token for token in batch.targets[0].tolist()]
    return Prompt(
        batch.inputs[0].tolist(),
        targets,
        None if batch.document_ids is None else batch.document_ids[0].tolist(),
        None if batch.lengths is None else int(batch.lengths[0]),
        None if batch.source is None else batch.source[0].tolist(),
    )


def as_prefix(trained: TrainedRun, tokens: Tensor, ids: Tensor | None) -> Prompt:
    """Return a text that is read in both directions, and continued."""
    return replace(as_evaluated(trained, tokens, ids), prefix=len(tokens))


def with_masks(trained: TrainedRun, tokens: Tensor, ids: Tensor | None) -> Prompt:
    """Return a text that an encoder reads as it is, also with masks."""
    n_ordinary, read = trained.tokenizer.n_vocab, tokens.tolist()
    targets = [token if token < n_ordinary else None for token in read]
    return Prompt(read, targets, None if ids is None else ids.tolist())


def with_spans(trained: TrainedRun, tokens: Tensor, ids: Tensor | None) -> Prompt:
    """Return a text with gaps and what a decoder writes into them; without gaps, some are drawn."""
    objective, source = trained.objective, tokens.tolist()
    gaps = [token for token in source if token >= trained.tokenizer.n_vocab]
    if not gaps:
        return as_evaluated(trained, tokens, ids)
    runtime = decoding_runtime(trained.model, trained.runtime)
    room = min(MAX_TOKENS, trained.config.model.block_size) // len(gaps) - 1
    parts = (trained.model, objective, runtime)
    filler = Filler(*parts, limit=max(1, min(Filler.limit, room)))
    with trained.model.evaluating(), runtime.autocast():
        spans = written_spans(filler, source, len(gaps))
    written = [token for gap, (span, _) in zip(gaps, spans, strict=True) for token in (gap, *span)]
    targets = [*written[1:], gaps[-1] + 1]
    return Prompt(written, targets, source=source, origin=", the likeliest ones")


READ: dict[type[Objective], Callable[[TrainedRun, Tensor, Tensor | None], Prompt]] = {
    PrefixLM: as_prefix,
    Masked: with_masks,
    Denoise: with_spans,
}
"""How a given text is read, by objective; by others, as in an evaluation."""


def inspection_runtime(trained: TrainedRun) -> Runtime:
    """Return the run's runtime, with fp32 on a CPU."""
    runtime = trained.runtime
    if runtime.device == "cpu":  # as in decoding
        return replace(runtime, precision="fp32", precision_reason="exact")
    return runtime


def inspect_prompt(trained: TrainedRun, prompt: Prompt, top: int) -> list[Section]:
    """Record the forward pass of a prompt, and plot it and the positional schemes.

    `top`: number of most probable tokens in the last section.
    """
    model, special = trained.model, trained.objective.special_names

    def labels_of(tokens: list[int]) -> list[str]:
        return [label_of(token, trained.tokenizer, special) for token in tokens]

    with inspection_runtime(trained).autocast():
        read = (prompt.tokens, prompt.document_ids, prompt.prefix, prompt.source)
        with Watch(model) as watch:
            recording = record(model, *read)
        computed = steps(watch, recording, place := explained(trained, prompt))
    labels, words = labels_of(prompt.tokens), WORDS[model.config.architecture]
    n_documents = len({*(prompt.document_ids or [0])})
    documents = f" in {n_documents} documents" if n_documents > 1 else ""
    prefix = (
        "" if prompt.prefix is None else f" with a prefix of {prompt.prefix} in both directions"
    )
    heading = f"{words.tokens}: {len(labels)} tokens{documents}{prefix}{prompt.origin}"
    sections = [Section(heading, " ".join(labels))]
    parts = [Part(model, recording, labels, prefix=prefix)]
    if prompt.source is not None:
        assert model.encoder is not None and recording.encoder is not None
        source = labels_of(prompt.source)
        encoder = Part(model.encoder, recording.encoder, source, "encoder_")
        parts = [encoder, Part(model, recording, labels, "decoder_", source=source)]
        sections.insert(0, Section(f"Source: {len(source)} tokens", " ".join(source)))
    rows = next_tokens(recording, prompt.tokens, trained.tokenizer, top, prompt.targets, special)
    best = next_tokens(recording, prompt.tokens, trained.tokenizer, SHOWN_BEST, None, special)
    best = best[place][-SHOWN_BEST:]
    predictions = (rows, labels, words.where, words.actual)
    figure, table = plot_next_tokens(*predictions), next_token_table(*predictions)
    return [
        *sections,
        _step_by_step(computed, place, labels[place], best, words),
        *(section for part in parts for section in part.forward_pass()),
        *(section for part in parts for section in part.positions()),
        Section(words.heading, words.text, "next", figure, table),
    ]


def explained(trained: TrainedRun, prompt: Prompt) -> int:
    """Return the position that is shown step by step: the last one, of an encoder the last mask."""
    masks = [n for n, token in enumerate(prompt.tokens) if token >= trained.tokenizer.n_vocab]
    is_encoder = trained.config.model.architecture == "encoder"
    return masks[-1] if is_encoder and masks else len(prompt.tokens) - 1


def _step_by_step(
    computed: list[Step], place: int, label: str, best: list[tuple[str, float]], words: Words
) -> Section:
    stages = [_stage(step) for step in computed]
    top = ", ".join(f"{token} {100 * p:.1f}%" for token, p in best)
    stages.append(Stage("Most probable", "", "", top))
    text = (
        f"The prediction {words.where} token {place} ({label}), in values of the forward pass. "
        f"Attention is that of head {HEAD} in layer {LAYER}. Axes: t tokens, d model, e head, "
        f"n vocabulary. Red is above 0, blue below."
    )
    return Section(f"Step by step{words.of}", text, stages=stages)


def _stage(step: Step) -> Stage:
    """Return a step with a picture of its values, or its note alone; token ids are text."""
    values = step.values
    if values is None:
        return Stage(step.name, step.formula, "", step.note)
    if not values.is_floating_point():
        ids = map(str, values[-SHOWN_IDS:].tolist())
        note = "… " * (len(values) > SHOWN_IDS) + ", ".join(ids)
        return Stage(step.name, step.formula, step.shape, note)
    low, high = values.nan_to_num().min(), values.nan_to_num().max()
    note = step.note or f"From {low:.3g} to {high:.3g}."
    return Stage(step.name, step.formula, step.shape, note, plot_step(values))


@dataclass(frozen=True)
class Part:
    """A stack and what it computed for tokens with `labels`.

    `name`: what its files are called, before the kind of figure. `prefix`: ends the heading of its
    attention. `source`: the labels of what its cross-attention reads.
    """

    stack: Stack
    recording: StackRecording
    labels: list[str]
    name: str = ""
    prefix: str = ""
    source: list[str] | None = None

    @property
    def words(self) -> Words:
        """The names of its architecture."""
        return WORDS[self.stack.config.architecture]

    def forward_pass(self) -> list[Section]:
        """Return the sections of attention and routers."""
        recording, attention = self.recording, f"Attention{self.words.of}{self.prefix}"
        weights = self._sections("attention", recording.weights, self.prefix)
        return [
            *(weights or [Section(attention, "None: the model has no layers.")]),
            *self._sections("cross", recording.cross),
            *self._sections("experts", recording.usage),
        ]

    def positions(self) -> list[Section]:
        """Return the sections of the positional scheme."""
        scheme, values = self.stack.positional, scheme_values(self.stack, self.recording)
        heading = f"Positions{self.words.of}: {self.stack.config.positional.name}"
        about = ALL_LAYERS if values else NO_FIGURES.format(self.words.mask)
        return [
            Section(heading, f"{type(scheme).__doc__ or ''}\n\n{about}"),
            *(s for kind in STYLES if kind in values for s in self._sections(kind, values[kind])),
        ]

    def _sections(self, kind: str, values: list[Tensor], about: str = "") -> list[Section]:
        """Return a section per layer, or one for all layers; an empty list without values."""
        style, sections = STYLES[kind], []
        columns = self.source if kind == "cross" and self.source is not None else self.labels
        two_sided = style.x == "distance" and self.stack.positional.two_sided
        for layer, of_layer in enumerate(values):
            if not of_layer.numel():  # a layer without rotation has no angles
                continue
            heading, suffix = f"{style.heading}{self.words.of}{about}", ""
            if len(values) > 1:
                heading, suffix = f"{heading}, layer {layer}", f"_layer{layer}"
            first = -(of_layer.shape[-1] // 2) if two_sided else 0
            figure = plot(style, of_layer, columns, self.labels, first)
            text = style.text + (TWO_SIDED if two_sided else "")
            sections.append(Section(heading, text, f"{self.name}{kind}{suffix}", figure))
        return sections
