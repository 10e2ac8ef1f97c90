"""Every reason why choices of a design cannot be combined, as data.

A value that is wrong by itself is refused by the options class that holds it. A rule here compares
several values; a new variant that has one adds it here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minigpt.errors import UserError
from minigpt.model.attention import ATTENTION
from minigpt.model.attention.landmark import LandmarkConfig
from minigpt.model.backends import BACKENDS
from minigpt.model.config import ModelConfig
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.ffn.conv import ConvConfig
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.block_input import BlockInputConfig
from minigpt.model.positional.cope import CopeConfig
from minigpt.model.positional.relative import RelativeConfig
from minigpt.model.positional.rope import RopeConfig
from minigpt.model.positional.sinusoidal import SinusoidalConfig
from minigpt.model.positional.xpos import XposConfig

Use = Literal["train", "decode"]
USES: tuple[Use, ...] = ("train", "decode")
FLEX_MIN_HEAD_SIZE = 16  # of its GPU kernels
SHORT_BLOCK = 64  # tokens; see docs/performance.md
NO_BLOCKS = "works inside blocks, and model.n_layer=0 has none"
# The option of an attention that is a number of positions.
SPANS = {"sliding_window": "window", "chunked": "chunk", "bigbird": "block"}


@dataclass(frozen=True)
class Problem:
    """A choice `key`=`value` that cannot be combined with the others, why, and what to do."""

    key: str
    value: object
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.reason}; {self.remedy}"


def problems(
    config: ModelConfig,
    device: str | None = None,
    use: Use | None = None,
    documents: bool = False,
    optimizer: str | None = None,
) -> list[Problem]:
    """Return every reason why a design cannot be built, or used on a device; [] if it can.

    Without `device` and `use`, only reasons that hold for every device are returned. `documents`:
    whether the rows of the data hold several documents. `optimizer`: its name.
    """
    rules = (_without_layers, _heads, _positional, _attention, _ffn)
    every = [problem for rule in rules for problem in rule(config)]
    if documents:
        every += _documents(config)
    if optimizer == "muon" and config.n_layer == 0:
        every.append(Problem("optimizer", optimizer, "has no matrix to step", "use adamw"))
    if device is not None and use is not None:
        every += _backend(config, device, use)
    return every


def require_compatible(
    config: ModelConfig,
    device: str | None = None,
    use: Use | None = None,
    documents: bool = False,
    optimizer: str | None = None,
) -> None:
    """Raise UserError for the first of `problems`."""
    _raise_first(problems(config, device, use, documents, optimizer))


def backend_limit(config: ModelConfig, backend: str, device: str, use: Use) -> str | None:
    """Return why a backend cannot compute a design for a use on a device type; None if it can."""
    positional = POSITIONAL.variant(config.positional.name)
    if backend != "eager" and not ATTENTION.variant(config.attention.name).uses_backend:
        return "the attention has its own implementation"
    if backend == "sdpa" and config.logit_softcap is not None:
        return "it has no logit soft-cap"
    if backend != "flex":
        return None
    if device == "mps":
        return "FlexAttention has no kernels for mps"
    if device == "cuda" and config.shape.head_size < FLEX_MIN_HEAD_SIZE:
        return f"its GPU kernels need heads of {FLEX_MIN_HEAD_SIZE} channels or more"
    if use == "decode":
        return None
    if device == "cpu":
        return "FlexAttention has no backward on CPUs"
    if config.dropout > 0:
        return "FlexAttention has no dropout"
    if positional.has_learned_bias(config.positional):
        return "FlexAttention sums the gradients of a learned bias in no fixed order"
    return None


def choose_backend(config: ModelConfig, device: str, bf16: bool, use: Use) -> tuple[str, str]:
    """Return the backend's name for a device type, precision and use, and the reason for it.

    Raises UserError where the configured backend cannot compute the design.
    """
    name = config.backend.name
    if name != "auto":
        _raise_first([*_backend(config, device, use)])
        return name, "as configured"
    limit = backend_limit(config, "sdpa", device, use)
    if limit is not None:
        return "eager", f"sdpa: {limit}"
    if device == "cpu" and bf16 and use == "train":
        return "eager", "the backward pass of torch's bf16 flash attention is slow on CPUs"
    if device == "cpu" and use == "train" and config.block_size <= SHORT_BLOCK:
        return "eager", "torch's flash attention is slower than plain products of this length"
    return "sdpa", "torch's fused kernels"


def replica_problems(config: ModelConfig) -> list[Problem]:
    """Return every reason why runs of a design cannot be computed together as replicas."""
    every = []
    elsewhere = "or another hydra/launcher"
    if config.dropout > 0:
        reason = "replicas would drop other channels than single runs"
        every.append(Problem("model.dropout", config.dropout, reason, f"use 0, {elsewhere}"))
    if config.ffn.name == "moe":
        reason = "each replica would send its tokens to experts of its own"
        every.append(Problem("ffn", "moe", reason, f"use another ffn, {elsewhere}"))
    name = config.backend.name
    if name not in ("eager", "auto"):
        reason = "torch batches no fused attention over replicas"
        every.append(Problem("model.backend.name", name, reason, "use eager or auto"))
    return every


def _raise_first(every: list[Problem]) -> None:
    if every:
        raise UserError(str(every[0]))


def _without_layers(config: ModelConfig) -> Iterator[Problem]:
    """Choices that need layers. Defaults are not reported: the user did not choose them."""
    n = config.n_layer
    if config.name == "bigram" and n > 0:
        reason = f"a bigram has no layers, and model.n_layer={n}"
        yield Problem("model", "bigram", reason, "set model.n_layer=0")
    for key in ("value_residual", "unet_skips"):
        if getattr(config, key) and n < 2:
            reason = f"connects layers, and model.n_layer={n}"
            yield Problem(f"model.{key}", "true", reason, "use 2 layers or more")
    if n > 0:
        return
    if type(config.ffn) is not FeedForwardConfig:
        yield Problem("ffn", config.ffn.name, NO_BLOCKS, "use relu2")
    for key in ("n_kv_head", "logit_softcap"):
        if getattr(config, key) is not None:
            yield Problem(f"model.{key}", getattr(config, key), NO_BLOCKS, "use null")
    if config.attention.name != "full":
        yield Problem("attention", config.attention.name, NO_BLOCKS, "use full")
    positional = POSITIONAL.variant(config.positional.name)
    if any(positional.overrides(hook) for hook in ("block_input", "rotate", "score_mod")):
        remedy = "use nope, learned or sinusoidal"
        yield Problem("model.positional.name", config.positional.name, NO_BLOCKS, remedy)


def _heads(config: ModelConfig) -> Iterator[Problem]:
    pairs = [("n_head", config.n_head, "n_embd", config.n_embd)]
    if config.n_kv_head is not None:
        pairs.append(("n_kv_head", config.n_kv_head, "n_head", config.n_head))
    for key, heads, of_key, of in pairs:
        if of % heads != 0:
            divisors = [n for n in range(1, of + 1) if of % n == 0]
            nearest = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:3])
            remedy = f"use {', '.join(map(str, nearest))} heads, or another {of_key}"
            yield Problem(f"model.{key}", heads, f"must divide model.{of_key}={of}", remedy)


def _positional(config: ModelConfig) -> Iterator[Problem]:
    options, block = config.positional, f"model.block_size={config.block_size}"
    if isinstance(options, RopeConfig):
        yield from _rotary_channels(config, options.fraction)
        if options.scaling == "ntk" and round(options.fraction * config.shape.head_size) <= 2:
            reason = "ntk needs two or more rotated channel pairs"
            yield Problem("model.positional.scaling", "ntk", reason, "choose larger heads")
    if isinstance(options, XposConfig):
        yield from _rotary_channels(config, 1.0)
    waves = isinstance(options, BlockInputConfig) and options.table == "sinusoidal"
    if (waves or isinstance(options, SinusoidalConfig)) and config.n_embd % 2 != 0:
        reason = "sinusoidal positions pair the channels"
        yield Problem("model.n_embd", config.n_embd, reason, "use an even width")
    if isinstance(options, RelativeConfig):
        longest = options.max_distance
        if longest is not None and longest >= config.block_size:
            reason = f"no text of {block} is so long"
            yield Problem("model.positional.max_distance", longest, reason, "use less, or null")
    if isinstance(options, CopeConfig):
        last = options.max_position
        if last is not None and last > config.block_size:
            reason = f"no text of {block} counts so far"
            yield Problem("model.positional.max_position", last, reason, "use that or less")


def _rotary_channels(config: ModelConfig, fraction: float) -> Iterator[Problem]:
    name, size = config.positional.name, config.shape.head_size
    n = round(fraction * size)
    if math.isclose(n, fraction * size) and n >= 2 and n % 2 == 0:
        return
    part = "" if fraction == 1 else f"model.positional.fraction={fraction:g} of "
    reason = (
        f"{name} pairs the channels of a head, and {part}the head size {size} (n_embd="
        f"{config.n_embd} over n_head) is not an even number"
    )
    remedy = f"choose another number of heads{', or another fraction' if part else ''}"
    yield Problem("model.n_head", config.n_head, reason, remedy)


def _attention(config: ModelConfig) -> Iterator[Problem]:
    options, name = config.attention, config.attention.name
    positional, block_size = config.positional.name, config.block_size
    span = getattr(options, SPANS.get(name, ""), None)
    if span is not None and span > block_size:
        reason = f"reaches over model.block_size={block_size} in training"
        yield Problem(f"model.attention.{SPANS[name]}", span, reason, "use that or less")
    if isinstance(options, LandmarkConfig):
        block = options.block_length(block_size)
        if block_size % block != 0 or block_size // block < 2:
            reason = f"model.block_size={block_size} must hold two or more whole blocks of it"
            remedy = "use a divisor of it, or a longer block_size"
            yield Problem("model.attention.block", block, reason, remedy)
        if positional == "cope":
            reason = (
                "it compares keys a block at a time, and positional=cope counts through all of them"
            )
            yield Problem("attention", name, reason, "use another scheme")
        if config.ffn.name == "conv":
            reason = "its landmarks stand in no text, and ffn=conv looks at neighbours"
            yield Problem("attention", name, reason, "use another")
    if name == "performer":
        never = "it never computes scores"
        if POSITIONAL.variant(positional).overrides("score_mod"):
            remedy = "use one that does not, as positional=rope"
            reason = f"{never}, and the positional scheme adds to them"
            yield Problem("attention", name, reason, remedy)
        if config.logit_softcap is not None:
            reason = f"{never}, and model.logit_softcap bounds them"
            yield Problem("attention", name, reason, "set it to null")
        if config.dropout > 0:
            reason = "it has no weights for model.dropout to drop"
            yield Problem("attention", name, reason, "set it to 0")
    if config.n_layer > 0 and not any(options.by_layer(config.n_layer)):
        reason = f"no layer of model.n_layer={config.n_layer} has it"
        layers = getattr(options, "layers", None)
        yield Problem("model.attention.layers", layers, reason, f"name {name} first")


def _ffn(config: ModelConfig) -> Iterator[Problem]:
    options = config.ffn
    if isinstance(options, ConvConfig) and options.kernel > config.block_size:
        reason = f"reaches over model.block_size={config.block_size}"
        yield Problem("model.ffn.kernel", options.kernel, reason, "use that or less")


def _documents(config: ModelConfig) -> Iterator[Problem]:
    able = [name for name in ATTENTION.names() if ATTENTION.variant(name).supports_documents]
    if config.attention.name not in able:
        remedy = f"use {', '.join(able)}, or data.document_separator=null"
        reason = "cannot mask other documents of a row"
        yield Problem("attention", config.attention.name, reason, remedy)


def _backend(config: ModelConfig, device: str, use: Use) -> Iterator[Problem]:
    name = config.backend.name
    limit = None if name == "auto" else backend_limit(config, name, device, use)
    if limit is not None:
        able = [n for n in BACKENDS if backend_limit(config, n, device, use) is None]
        reason = f"cannot {use} this design on {device}: {limit}"
        yield Problem("model.backend.name", name, reason, f"use {', '.join(able)} or auto")
