"""Rules about choices of a design that cannot be combined.

An options class checks single values. The rules here compare several values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from minigpt.errors import UserError
from minigpt.model.attention import ATTENTION
from minigpt.model.attention.landmark import LandmarkConfig
from minigpt.model.backends import BACKENDS
from minigpt.model.config import ModelConfig
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.norm import PLACEMENTS, no_residual, post_norm
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.block_input import BlockInputConfig
from minigpt.model.positional.relative import RelativeConfig
from minigpt.model.positional.rope import RopeConfig
from minigpt.model.positional.sinusoidal import SinusoidalConfig
from minigpt.model.positional.t5 import T5Config
from minigpt.model.positional.xpos import XposConfig

Use = Literal["training", "inference"]
USES: tuple[Use, ...] = ("training", "inference")
FLEX_MIN_HEAD_SIZE = 16  # minimum of FlexAttention's GPU kernels
SHORT_BLOCK = 64  # in tokens; see docs/performance.md
LONG_CONTEXT = 512  # keys per query, on a CPU; see docs/performance.md
FUSED = "torch's fused kernels"
NO_BLOCKS = "needs blocks, but model.n_layer=0 has no blocks"


@dataclass(frozen=True)
class Problem:
    """A choice `key`=`value` that cannot be combined with others. `why` ends with what to do."""

    key: str
    value: object
    why: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.why}"


def problems(
    config: ModelConfig,
    device: str | None = None,
    use: Use | None = None,
    documents: bool = False,
    optimizer: str | None = None,
) -> list[Problem]:
    """Return all reasons why a design cannot be built, or used on a device; [] if it can.

    Without `device` and `use`, only reasons that hold for every device are returned. `documents`:
    whether a window of the data may hold several documents. `optimizer`: the optimizer's name.
    """
    rules = (_without_layers, _heads, _block, _positional, _attention, _architecture)
    result = [problem for rule in rules for problem in rule(config)]
    result += _exceeding_block_size(config, "ffn.kernel")
    able = [name for name in ATTENTION.names() if ATTENTION.variant(name).supports_documents]
    if documents and config.attention.name not in able:
        why = f"cannot mask other documents of a row; use {', '.join(able)}"
        why += ", or data.document_separator=null"
        result.append(Problem("attention", config.attention.name, why))
    if optimizer == "muon" and config.n_layer == 0:
        result.append(Problem("optimizer", optimizer, "has no matrix to update; use adamw"))
    if device is not None and use is not None:
        result += _backend(config, device, use)
    return result


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
    """Return why a backend does not support a design, use and device type; None if it does."""
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
    if use == "inference":
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

    Raises UserError if the configured backend does not support the design.
    """
    name = config.backend.name
    if name != "auto":
        _raise_first(_backend(config, device, use))
        return name, "as configured"
    limit = backend_limit(config, "sdpa", device, use)
    if device == "cpu" and use == "training":
        return _choose_for_cpu_training(config, bf16, limit)
    if limit is not None:
        return "eager", f"sdpa: {limit}"
    return "sdpa", FUSED


def _choose_for_cpu_training(config: ModelConfig, bf16: bool, limit: str | None) -> tuple[str, str]:
    """Return `choose_backend` for training on a CPU; `limit`: SDPA's limit of the design."""
    unfused = limit or _without_flash(config)
    by_content = POSITIONAL.variant(config.positional.name).bias_depends_on == "content"
    if backend_limit(config, "blockwise", "cpu", "training") is None and _is_long(config):
        if unfused is None:
            return "sdpa", FUSED
        if not by_content:  # else computing the bias takes most of the time
            return "blockwise", f"sdpa: {unfused}"
    if limit is not None or (bf16 and unfused is not None):
        return "eager", f"sdpa: {unfused}"
    if bf16:
        return "eager", "the backward pass of torch's bf16 flash attention is slow at this length"
    if config.block_size <= SHORT_BLOCK:
        return "eager", "torch's flash attention is slower than dense matmuls at this length"
    return "sdpa", FUSED


def _without_flash(config: ModelConfig) -> str | None:
    """Return why torch trains a design on a CPU without its flash attention; None if with it."""
    if config.dropout > 0:
        return "torch's flash attention has no dropout on CPUs"
    if POSITIONAL.variant(config.positional.name).has_learned_bias(config.positional):
        return "torch's flash attention has no gradient of a learned bias"
    return None


def _is_long(config: ModelConfig) -> bool:
    horizon = ATTENTION.build(config.attention, config.shape).horizon
    return (config.block_size if horizon is None else horizon) >= LONG_CONTEXT


def graph_limit(config: ModelConfig, device: str, backend: str) -> str | None:
    """Return why a training step cannot be captured as a CUDA graph; None if it can.

    `backend`: the name of the attention backend of training steps.
    """
    if device != "cuda":
        return f"CUDA graphs need trainer.device=cuda, and this run uses {device}"
    if config.ffn.name == "moe":
        return "ffn=moe waits for the number of tokens of each expert, which depends on the data"
    if backend == "flex":
        return "no test has captured FlexAttention, which builds a block mask in each step"
    return None


def choose_graph(graph: str, config: ModelConfig, device: str, backend: str) -> tuple[str, str]:
    """Return on or off for a `trainer.graph`, and the reason for it.

    Raises UserError for `on` where a step cannot be captured.
    """
    limit = graph_limit(config, device, backend)
    if graph == "on" and limit is not None:
        raise UserError(str(Problem("trainer.graph", graph, f"{limit}; use auto or off")))
    if graph == "auto":
        return ("on", "one launch per step") if limit is None else ("off", limit)
    return graph, "as configured"


def replica_problems(config: ModelConfig) -> list[Problem]:
    """Return all reasons why runs of a design cannot be trained as replicas."""
    dropout, ffn, backend = config.dropout, config.ffn.name, config.backend.name
    elsewhere = "or another hydra/launcher"
    masks = f"replicas would draw other dropout masks than separate runs; use 0, {elsewhere}"
    routing = f"expert routing has no batching rule in torch.vmap; use another ffn, {elsewhere}"
    batched = "only eager attention has a batching rule in torch.vmap; use eager or auto"
    rules = (
        (dropout > 0, Problem("model.dropout", dropout, masks)),
        (ffn == "moe", Problem("ffn", ffn, routing)),
        (backend not in ("eager", "auto"), Problem("model.backend.name", backend, batched)),
    )
    return [problem for applies, problem in rules if applies]


def _raise_first(found: Iterable[Problem]) -> None:
    for problem in found:
        raise UserError(str(problem))


def _without_layers(config: ModelConfig) -> Iterator[Problem]:
    """Yield choices that need layers; defaults and plain MLPs are accepted without effect."""
    n = config.n_layer
    if config.name == "bigram" and n > 0:
        why = f"a bigram has no layers, but model.n_layer={n}; set model.n_layer=0"
        yield Problem("model", "bigram", why)
    for key, value in (("value_residual", config.value_residual), ("unet_skips", "true")):
        if getattr(config, key) and n < 2:
            why = f"connects layers, but model.n_layer={n}; use 2 layers or more"
            yield Problem(f"model.{key}", value, why)
    if n > 0:
        return
    if config.head_gates:
        yield Problem("model.head_gates", "true", f"{NO_BLOCKS}; use false")
    if type(config.ffn) is not FeedForwardConfig:
        yield Problem("ffn", config.ffn.name, f"{NO_BLOCKS}; use relu2")
    if config.block != "sequential":
        yield Problem("model.block", config.block, f"{NO_BLOCKS}; use sequential")
    for key in ("n_kv_head", "head_size", "logit_softcap", "score_scale"):
        if getattr(config, key) is not None:
            yield Problem(f"model.{key}", getattr(config, key), f"{NO_BLOCKS}; use null")
    if config.attention.name != "full":
        yield Problem("attention", config.attention.name, f"{NO_BLOCKS}; use full")
    name = config.positional.name
    if any(map(POSITIONAL.variant(name).overrides, ("block_input", "rotate", "score_mod"))):
        why = f"{NO_BLOCKS}; use nope, learned or sinusoidal"
        yield Problem("model.positional.name", name, why)


def _heads(config: ModelConfig) -> Iterator[Problem]:
    pairs = []
    if config.head_size is None:
        pairs.append(("n_head", config.n_head, "n_embd", config.n_embd))
    if config.n_kv_head is not None:
        pairs.append(("n_kv_head", config.n_kv_head, "n_head", config.n_head))
    for key, heads, of_key, of in pairs:
        if of % heads != 0:
            divisors = [n for n in range(1, of + 1) if of % n == 0]
            nearest = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:3])
            remedy = f"use {', '.join(map(str, nearest))} heads, or another {of_key}"
            yield Problem(f"model.{key}", heads, f"must divide model.{of_key}={of}; {remedy}")


def _block(config: ModelConfig) -> Iterator[Problem]:
    block, norm = config.block, config.norm.placement
    if block != "sequential" and PLACEMENTS[norm].residual is post_norm:
        why = f"norm={norm} normalises the sum after each sublayer, but parallel ones have one sum"
        yield Problem("model.block", block, f"{why}; use another norm, or sequential")
    if block != "sequential" and PLACEMENTS[norm].residual is no_residual:
        why = f"norm={norm} has no residual connection, to which parallel sublayers are added"
        yield Problem("model.block", block, f"{why}; use another norm, or sequential")
        return
    if block == "parallel_shared" and not PLACEMENTS[norm].on_input:
        why = f"norm={norm} has no norm of the input that the sublayers could share; use parallel"
        yield Problem("model.block", block, why)


def _positional(config: ModelConfig) -> Iterator[Problem]:
    options = config.positional
    if isinstance(options, RopeConfig | XposConfig):
        fraction = options.fraction if isinstance(options, RopeConfig) else 1.0
        size = config.shape.head_size
        n = round(fraction * size)
        if not math.isclose(n, fraction * size) or n < 2 or n % 2 != 0:
            part = "" if fraction == 1 else f"model.positional.fraction={fraction:g} of "
            source, remedy = f" (n_embd={config.n_embd} over n_head)", "number of heads"
            key, value = "model.n_head", config.n_head
            if config.head_size is not None:
                source, remedy, key, value = "", "size", "model.head_size", size
            yield Problem(
                *(key, value),
                f"{options.name} pairs the channels of a head, and {part}the head size {size}"
                f"{source} is not an even number; choose another "
                f"{remedy}{', or another fraction' if part else ''}",
            )
        if isinstance(options, RopeConfig) and options.scaling == "ntk" and n <= 2:
            why = "ntk needs two or more rotated channel pairs; choose larger heads"
            yield Problem("model.positional.scaling", "ntk", why)
    waves = isinstance(options, BlockInputConfig) and options.table == "sinusoidal"
    if (waves or isinstance(options, SinusoidalConfig)) and config.n_embd % 2 != 0:
        why = "sinusoidal positions pair the channels; use an even width"
        yield Problem("model.n_embd", config.n_embd, why)
    if config.embedding.scale and isinstance(options, SinusoidalConfig):
        why = "positional=sinusoidal multiplies the embeddings by sqrt(n_embd) too; use false"
        yield Problem("model.embedding.scale", "true", why)
    longest = options.max_distance if isinstance(options, RelativeConfig) else None
    if longest is not None and longest >= config.block_size:
        why = f"must be below model.block_size={config.block_size}; use less, or null"
        yield Problem("model.positional.max_distance", longest, why)
    yield from _exceeding_block_size(config, "positional.max_position")


def _exceeding_block_size(config: ModelConfig, key: str) -> Iterator[Problem]:
    """Yield a problem if the option `key` of the model exceeds model.block_size."""
    section, option = key.split(".")
    value = getattr(getattr(config, section), option, None)
    if value is not None and value > config.block_size:
        why = f"exceeds model.block_size={config.block_size}; use that or less"
        yield Problem(f"model.{key}", value, why)


def _attention(config: ModelConfig) -> Iterator[Problem]:
    options, name, block_size = config.attention, config.attention.name, config.block_size
    positional = config.positional.name
    if isinstance(options, LandmarkConfig):
        block = options.block_length(block_size)
        if block_size % block != 0 or block_size // block < 2:
            why = f"model.block_size={block_size} must hold two or more full blocks; use a divisor"
            yield Problem("model.attention.block", block, f"{why} of it, or a larger block_size")
    else:
        for option in ("window", "chunk", "block"):
            yield from _exceeding_block_size(config, f"attention.{option}")
    landmark = {
        "it scores keys in blocks, but positional=cope counts over all keys; use another scheme": (
            positional == "cope"
        ),
        "ffn=conv would convolve its landmarks with neighbouring tokens; use another ffn": (
            config.ffn.name == "conv"
        ),
    }
    performer = {
        "it computes no scores, to which this positional scheme adds; use positional=rope": (
            POSITIONAL.variant(positional).overrides("score_mod")
        ),
        "it computes no scores, which model.logit_softcap bounds; set that to null": (
            config.logit_softcap is not None
        ),
        "it has no attention weights to apply model.dropout to; set that to 0": config.dropout > 0,
    }
    reasons = {"landmark": landmark, "performer": performer}.get(name, {})
    yield from (Problem("attention", name, why) for why, applies in reasons.items() if applies)
    if config.n_layer > 0 and not any(options.by_layer(config.n_layer)):
        why = f"no layer of model.n_layer={config.n_layer} uses {name}; put it first"
        yield Problem("model.attention.layers", getattr(options, "layers", None), why)


def _architecture(config: ModelConfig) -> Iterator[Problem]:
    """Yield choices that are not defined for keys after the query, or beside an encoder."""
    architecture = config.architecture
    if architecture != "encoder_decoder" and config.n_encoder_layer is not None:
        why = f"model.architecture={architecture} has no encoder; use null, or objective=denoise"
        yield Problem("model.n_encoder_layer", config.n_encoder_layer, why)
    if architecture != "encoder_decoder" and not config.shared_embedding:
        why = f"model.architecture={architecture} has no encoder; use true, or objective=denoise"
        yield Problem("model.shared_embedding", "false", why)
    if config.encoder is not None:
        for problem in _without_layers(config.encoder):
            why = f"{problem.why}, or another model.n_encoder_layer"
            yield Problem(problem.key, problem.value, why)
    if architecture == "decoder":
        return
    why = f"without blocks no token sees another one, as model.architecture={architecture} needs"
    if config.n_layer == 0:
        yield Problem("model.n_layer", 0, f"{why}; use 1 or more")
    attention = ATTENTION.variant(config.attention.name)
    able = ", ".join(
        name for name in ATTENTION.names() if ATTENTION.variant(name).without_two_sided is None
    )
    why = attention.without_two_sided
    if why is not None:
        why = f"{why}, so it is not defined for keys after the query; use {able}"
        yield Problem("attention", config.attention.name, why)
    why = attention.without_prefix
    if architecture == "prefix_decoder" and why is not None:
        yield Problem("attention", config.attention.name, f"{why}, not of a prefix; use full")
    name = config.positional.name
    if not POSITIONAL.variant(name).has_two_sided_form:
        why = "is not defined for keys after the query; use another scheme"
        yield Problem("model.positional.name", name, why)
    if isinstance(config.positional, T5Config) and config.positional.buckets < 4:
        why = "half of them are for keys after the query, two at least; use 4 or more"
        yield Problem("model.positional.buckets", config.positional.buckets, why)
    if architecture == "encoder_decoder" and config.block != "sequential":
        why = "has no cross-attention, which model.architecture=encoder_decoder needs"
        yield Problem("model.block", config.block, f"{why}; use sequential")


def _backend(config: ModelConfig, device: str, use: Use) -> Iterator[Problem]:
    name = config.backend.name
    limit = None if name == "auto" else backend_limit(config, name, device, use)
    if limit is not None:
        able = [n for n in BACKENDS if backend_limit(config, n, device, use) is None]
        why = f"does not support {use} of this design on {device}: {limit}"
        why += f"; use {', '.join(able)} or auto"
        yield Problem("model.backend.name", name, why)
