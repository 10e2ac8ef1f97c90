"""Keys of a Hugging Face config.json and the options that they stand for, in both directions.

`write` returns the keys of a design. `read` returns overrides by key, as `minigpt train` takes
them, and raises UserError for a value that no option expresses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minigpt.errors import UserError
from minigpt.export.rewriting import score_scale
from minigpt.model.attention import ATTENTION
from minigpt.model.config import ModelConfig
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.positional.rope import RopeConfig, rotary_channels

CONFIG = "config.json"
Values = Mapping[str, Any]  # of a config.json
Overrides = dict[str, Any]


def option(config: ModelConfig, key: str) -> Any:
    """Return the option with a full key such as model.norm.eps. AttributeError if it has none."""
    value: Any = config
    for name in key.split(".")[1:]:
        value = getattr(value, name)
    return value


def unreadable(key: str, value: object, why: str) -> UserError:
    """Return the error for a value of config.json. `why` ends with what minigpt reads."""
    return UserError(f"{CONFIG}: {key}={value}: {why}")


class Field(ABC):
    """One or more keys of config.json."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The options that they express for every value, by full key."""
        return ()

    @abstractmethod
    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Return the keys of config.json that express the options."""

    @abstractmethod
    def read(self, values: Values) -> Overrides:
        """Return the options that config.json expresses."""


REQUIRED = object()  # the default of a key that must be there


def value_of(values: Values, key: str, default: Any = REQUIRED) -> Any:
    """Return a value of config.json. Raises UserError if it is missing and has no default."""
    if key not in values and default is REQUIRED:
        raise UserError(f"{CONFIG}: has no {key}; restore the file")
    return values.get(key, default)


@dataclass(frozen=True)
class Same(Field):
    """The value of an option under another name. `default`: that of transformers.

    `before`: the name in earlier versions of transformers.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    before: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.ours,)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: option(config, self.ours)}

    def read(self, values: Values) -> Overrides:
        earlier = self.before in values and self.theirs not in values
        key = self.before if earlier and self.before is not None else self.theirs
        return {self.ours: value_of(values, key, self.default)}


@dataclass(frozen=True)
class Choice(Field):
    """A named choice. `names`: their names by ours, the one to write first.

    `ours`: the config group on the command line; `key`: its full key.
    """

    theirs: str
    ours: str
    key: str
    names: Mapping[Any, tuple[Any, ...]]
    default: Any = REQUIRED

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: self.names[option(config, self.key)][0]}

    def read(self, values: Values) -> Overrides:
        value = value_of(values, self.theirs, self.default)
        for ours, theirs in self.names.items():
            if value in theirs:
                return {self.ours: ours}
        known = ", ".join(str(name) for theirs in self.names.values() for name in theirs)
        raise unreadable(self.theirs, value, f"minigpt has only {known}")


@dataclass(frozen=True)
class Fixed(Field):
    """A key with one supported value. `default`: that of transformers; REQUIRED: the same."""

    theirs: str
    value: Any
    default: Any = REQUIRED

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: self.value}

    def read(self, values: Values) -> Overrides:
        default = self.value if self.default is REQUIRED else self.default
        value = values.get(self.theirs, default)
        if value != self.value:
            raise unreadable(self.theirs, value, f"minigpt reads only {self.value}")
        return {}


@dataclass(frozen=True)
class Written(Field):
    """A key that transformers needs or ignores, as a function of the design. Not read."""

    theirs: str
    value: Callable[[ModelConfig], Any]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: self.value(config)}

    def read(self, values: Values) -> Overrides:
        return {}


@dataclass(frozen=True)
class LongEnough(Field):
    """The longest text, `shortest` or the context of training if that is longer."""

    theirs: str
    shortest: int

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: max(self.shortest, config.block_size)}

    def read(self, values: Values) -> Overrides:
        return {"model.block_size": values.get(self.theirs, self.shortest)}


@dataclass(frozen=True)
class Nested(Field):
    """Keys of a section of config.json. `supported`: the only values, which may be left out."""

    theirs: str
    written: Mapping[str, Any]
    supported: Mapping[str, Any]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: dict(self.written)}

    def read(self, values: Values) -> Overrides:
        section = values.get(self.theirs) or {}
        for key, only in self.supported.items():
            if section.get(key, only) != only:
                raise unreadable(f"{self.theirs}.{key}", section[key], f"minigpt reads only {only}")
        return {}


@dataclass(frozen=True)
class WithoutRope(Field):
    """Layers without rotary positions: all of them."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"no_rope_layers": [0] * config.n_layer, "no_rope_layer_interval": 1}

    def read(self, values: Values) -> Overrides:
        layers = values.get("no_rope_layers")
        if layers is None or any(layers):
            raise unreadable("no_rope_layers", layers, "minigpt reads only 0 in every layer")
        return {"positional": "nope"}


@dataclass(frozen=True)
class Implied(Field):
    """Options that every design of an architecture has; no key stands for them.

    `covers`: options whose other values it computes as well, such as zeros for biases.
    """

    overrides: Mapping[str, Any]
    covers: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return self.covers

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {}

    def read(self, values: Values) -> Overrides:
        return dict(self.overrides)


@dataclass(frozen=True)
class LinearBiases(Field):
    """Biases of attention and of feed-forward layers; where q, k and v alone have them, zeros."""

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.bias",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"attention_bias": config.bias is not False, "mlp_bias": config.bias is True}

    def read(self, values: Values) -> Overrides:
        attention, mlp = values.get("attention_bias", False), values.get("mlp_bias", False)
        if mlp and not attention:
            raise unreadable("mlp_bias", mlp, "minigpt reads it with attention_bias=true only")
        return {"model.bias": mlp or ("qkv" if attention else False)}


@dataclass(frozen=True)
class Dropout(Field):
    """Keys with the dropout of training, which a loaded model does not apply. Not read."""

    theirs: tuple[str, ...]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return dict.fromkeys(self.theirs, config.dropout)

    def read(self, values: Values) -> Overrides:
        return {}


@dataclass(frozen=True)
class Width(Field):
    """The hidden width of a feed-forward layer; null: four times the width of the model."""

    theirs: str
    width: str  # their key of n_embd

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.ffn.expansion",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: config.ffn.hidden_width(config.n_embd)}

    def read(self, values: Values) -> Overrides:
        n_embd, hidden = value_of(values, self.width), values.get(self.theirs)
        hidden = 4 * n_embd if hidden is None else hidden
        if hidden % 8 != 0:
            raise unreadable(self.theirs, hidden, "minigpt has only widths that 8 divides")
        expansion = hidden / n_embd
        if FeedForwardConfig("gelu", expansion).hidden_width(n_embd) != hidden:
            expansion = (hidden - 1) / n_embd  # the width is rounded up; a quotient may be too
        return {"model.ffn.expansion": expansion}


@dataclass(frozen=True)
class KeyValueHeads(Field):
    """The number of key-value heads."""

    theirs: str = "num_key_value_heads"
    heads: str = "num_attention_heads"

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.n_kv_head",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: config.shape.n_kv_head}

    def read(self, values: Values) -> Overrides:
        n, n_head = values.get(self.theirs), value_of(values, self.heads)
        return {"model.n_kv_head": None if n is None or n == n_head else n}


@dataclass(frozen=True)
class HeadSize(Field):
    """Channels per head. `default`: that of transformers; None: n_embd / n_head."""

    default: int | None = None
    theirs: str = "head_dim"

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.head_size",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: config.shape.head_size}

    def read(self, values: Values) -> Overrides:
        n_embd, n_head = (value_of(values, key) for key in ("hidden_size", "num_attention_heads"))
        size = values.get(self.theirs, self.default)
        return {"model.head_size": None if size is None or size * n_head == n_embd else size}


@dataclass(frozen=True)
class ScoreScale(Field):
    """The whole number by whose square root scores are divided."""

    theirs: str
    default: int

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.score_scale",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: round(score_scale(config) ** -2)}

    def read(self, values: Values) -> Overrides:
        scalar, size = values.get(self.theirs, self.default), values.get("head_dim", self.default)
        return {"model.score_scale": None if scalar == size else scalar**-0.5}


@dataclass(frozen=True)
class FalconBlocks(Field):
    """Parallel sublayers with one norm and one key-value head (7B), or with any number (40B)."""

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.n_kv_head", "model.block")

    def write(self, config: ModelConfig) -> dict[str, Any]:
        n, n_norm = config.shape.n_kv_head, 1 if config.block == "parallel_shared" else 2
        old = n == 1 and n_norm == 1
        form = {"multi_query": True} if old else {"num_ln_in_parallel_attn": n_norm}
        return {
            "new_decoder_architecture": not old,
            "num_kv_heads": n,
            "parallel_attn": True,
        } | form

    def read(self, values: Values) -> Overrides:
        if not values.get("parallel_attn", True):
            raise unreadable("parallel_attn", False, "minigpt reads only true")
        n_head, n_norm = value_of(values, "num_attention_heads"), 1
        if values.get("new_decoder_architecture", False):
            n, given = values.get("num_kv_heads"), values.get("num_ln_in_parallel_attn")
            n_norm = 2 if given is None else given
        else:
            n = 1 if values.get("multi_query", True) else None
        return {
            "model.n_kv_head": None if n == n_head else n,
            "model.block": "parallel_shared" if n_norm == 1 else "parallel",
        }


@dataclass(frozen=True)
class Rope(Field):
    """Rotary positions. `default_base`, `default_fraction`: of transformers, without the keys.

    Scaling by NTK is a larger base, and is read as such.
    """

    default_base: float = 10000.0
    default_fraction: float = 1.0

    @property
    def keys(self) -> tuple[str, ...]:
        names = ("name", "base", "fraction", "scaling", "factor")
        return tuple(f"model.positional.{name}" for name in names)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        options = config.positional
        assert isinstance(options, RopeConfig)
        size, n = config.shape.head_size, rotary_channels(options.fraction, config.shape)
        base, kind = float(options.base), options.scaling
        if kind == "ntk":
            base *= options.factor ** (n / (n - 2))
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
        if n != size or self.default_fraction != 1:
            rope["partial_rotary_factor"] = _fraction(n, size)
        if kind in ("linear", "yarn"):
            rope |= {"rope_type": kind, "factor": float(options.factor)}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = config.block_size
        return {"rope_parameters": rope}

    def read(self, values: Values) -> Overrides:
        # Before transformers 5 the keys were apart.
        rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "linear", "yarn"):
            raise unreadable("rope_type", kind, "minigpt reads only default, linear and yarn")
        base = rope.get("rope_theta", values.get("rope_theta", values.get("rotary_emb_base")))
        fraction = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
        fraction = values.get("rotary_pct") if fraction is None else fraction
        known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor")
        if kind == "yarn":
            known += ("original_max_position_embeddings",)
        for name in rope.keys() - {*known}:
            raise unreadable(f"rope_parameters.{name}", rope[name], "minigpt has no such option")
        return {
            "positional": "rope",
            "model.positional.base": self.default_base if base is None else base,
            "model.positional.fraction": self.default_fraction if fraction is None else fraction,
            "model.positional.scaling": "none" if kind == "default" else kind,
            "model.positional.factor": 1.0 if kind == "default" else rope["factor"],
        }


def _fraction(n: int, size: int) -> float:
    """Return a fraction of `size` that gives n when transformers truncates it."""
    fraction = n / size
    while int(size * fraction) < n:
        fraction = math.nextafter(fraction, 2.0)
    return fraction


def window_of(config: ModelConfig) -> int | None:
    """Return the window of attention=sliding_window; None with full attention."""
    if config.attention.name != "sliding_window":
        return None
    return ATTENTION.build(config.attention, config.shape).horizon


def sliding(window: int | None, by_layer: list[bool]) -> Overrides:
    """Return the options of a window in some layers; without one, full attention."""
    if window is None or not any(by_layer):
        return {"attention": "full"}
    layers = ["sliding_window" if own else "full" for own in by_layer]
    layers = layers[:1] if len(set(layers)) == 1 else layers
    return {
        "attention": "sliding_window",
        "model.attention.window": window,
        "model.attention.layers": layers,
    }


ATTENTION_KEYS = tuple(f"model.attention.{name}" for name in ("name", "window", "layers"))


@dataclass(frozen=True)
class Window(Field):
    """A sliding window in all layers, or null for none."""

    theirs: str = "sliding_window"

    @property
    def keys(self) -> tuple[str, ...]:
        return ATTENTION_KEYS

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: window_of(config)}

    def read(self, values: Values) -> Overrides:
        return sliding(values.get(self.theirs), [True])


@dataclass(frozen=True)
class WindowByLayer(Field):
    """A sliding window in some layers. `switched`: whether use_sliding_window must be true."""

    switched: bool

    @property
    def keys(self) -> tuple[str, ...]:
        return ATTENTION_KEYS

    def write(self, config: ModelConfig) -> dict[str, Any]:
        window, slides = window_of(config), config.attention.by_layer(config.n_layer)
        types = ("full_attention", "sliding_attention")
        layers = [types[window is not None and own] for own in slides]
        switch = {"use_sliding_window": window is not None, "max_window_layers": 0}
        # a window that no layer has is written as the longest one
        written = config.block_size if window is None else window
        return {
            **(switch if self.switched else {}),
            "sliding_window": written,
            "layer_types": layers,
        }

    def read(self, values: Values) -> Overrides:
        window = value_of(values, "sliding_window", None)
        if self.switched and not values.get("use_sliding_window", False):
            window = None
        types = values.get("layer_types")
        if types is None:
            if window is not None:
                raise unreadable("sliding_window", window, "minigpt reads it with layer_types only")
            types = []
        return sliding(window, [name == "sliding_attention" for name in types])
