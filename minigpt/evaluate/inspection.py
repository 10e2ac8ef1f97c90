"""The page of `minigpt inspect`: attention, positions and next tokens for one prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from minigpt.data.lazy import LazyTensor
from minigpt.data.tokens import encode_documents
from minigpt.errors import UserError, require
from minigpt.evaluate.inspect import next_tokens, record, scheme_values, token_label
from minigpt.evaluate.inspect_plots import STYLES, next_token_table, plot, plot_next_tokens
from minigpt.html import Section
from minigpt.run.load import TrainedRun
from minigpt.runtime import Runtime

MAX_TOKENS = 256  # maximum for a readable figure
ALL_LAYERS = "A figure without a layer in its heading applies to all layers."
NO_FIGURES = (
    "No figures: the scheme changes neither embeddings nor block inputs, queries, keys or scores. "
    "Only the causal mask depends on the order of the tokens."
)
NEXT_TOKENS = (
    "After each token of the prompt: the token that came next and the most probable ones, with "
    "their probabilities. The last row predicts what follows the prompt."
)


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt, and the document of each if the run's data has documents."""

    tokens: list[int]
    document_ids: list[int] | None


def encode_prompt(trained: TrainedRun, text: str) -> Prompt:
    """Encode a prompt. Raises UserError if it is too long for the positions or for a figure."""
    config, limit = trained.config, _max_tokens(trained)
    try:
        prompt = _prompt(*encode_documents(text, config.data.separator, trained.tokenizer))
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None
    reason = "more are unreadable in a figure"
    if limit < MAX_TOKENS:
        reason = f"positional={config.model.positional.name} has no more positions"
    n = len(prompt.tokens)
    why = f"{n} tokens, at most {limit} can be plotted: {reason}; shorten it"
    require(n <= limit, "--prompt", repr(text if len(text) <= 20 else f"{text[:20]}..."), why)
    return prompt


def validation_prompt(trained: TrainedRun) -> Prompt:
    """Return the first block of the validation text. Raises UserError if it is not available."""
    n = min(_max_tokens(trained), trained.config.model.block_size)
    val = trained.prepare().tokens.val.head(n)
    return _prompt(val.tokens, val.document_ids)


def _prompt(tokens: Tensor | LazyTensor, document_ids: Tensor | None) -> Prompt:
    return Prompt(tokens.tolist(), None if document_ids is None else document_ids.tolist())


def _max_tokens(trained: TrainedRun) -> int:
    return min(MAX_TOKENS, trained.model.positional.max_length or MAX_TOKENS)


def inspection_runtime(trained: TrainedRun) -> Runtime:
    """Return the run's runtime, with fp32 on a CPU."""
    runtime = trained.runtime
    if runtime.device == "cpu":  # as in decoding
        return replace(runtime, precision="fp32", precision_reason="exact")
    return runtime


def inspect_prompt(trained: TrainedRun, prompt: Prompt, top: int) -> list[Section]:
    """Record the forward pass of a prompt, and plot it and the positional scheme.

    `top`: number of most probable next tokens in the last section.
    """
    labels = [token_label(trained.tokenizer.token_bytes(token)) for token in prompt.tokens]
    with inspection_runtime(trained).autocast():
        recording = record(trained.model, prompt.tokens, prompt.document_ids)
    rows = next_tokens(recording, prompt.tokens, trained.tokenizer, top)
    values = scheme_values(trained.model, recording)
    n_documents = len({*(prompt.document_ids or [0])})
    documents = f" in {n_documents} documents" if n_documents > 1 else ""
    about = type(trained.model.positional).__doc__ or ""
    scheme = f"Positions: {trained.config.model.positional.name}"
    no_layers = Section("Attention", "None: the model has no layers.")
    figure, table = plot_next_tokens(rows, labels), next_token_table(rows, labels)
    return [
        Section(f"Prompt: {len(prompt.tokens)} tokens{documents}", " ".join(labels)),
        *(_sections("attention", recording.weights, labels) or [no_layers]),
        *_sections("experts", recording.usage, labels),
        Section(scheme, f"{about}\n\n{ALL_LAYERS if values else NO_FIGURES}"),
        *(s for kind in STYLES if kind in values for s in _sections(kind, values[kind], labels)),
        Section("Next tokens", NEXT_TOKENS, "next", figure, table),
    ]


def _sections(kind: str, values: list[Tensor], labels: list[str]) -> list[Section]:
    """Return a section per layer, or one for all layers; an empty list without values."""
    style, sections = STYLES[kind], []
    for layer, of_layer in enumerate(values):
        if not of_layer.numel():  # a layer without rotation has no angles
            continue
        heading, suffix = "", ""
        if len(values) > 1:
            heading, suffix = f", layer {layer}", f"_layer{layer}"
        figure = plot(style, of_layer, labels)
        sections.append(Section(style.heading + heading, style.text, kind + suffix, figure))
    return sections
