"""Keys of a Hugging Face config.json and the options that they stand for, in both directions.

`write` returns the keys of a design. `read` returns overrides by key, as `minigpt train` takes
them, and raises UserError for a value that no option expresses.
"""

from __future__ import annotations

import math
import re
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


@dataclass(frozen=True)
class Kind:
    """What a value of a JSON file must be, if it is not null. `name`: for messages."""

    name: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


ANY = Kind("anything", lambda value: True)
SIZE = Kind("a whole number above 0", lambda n: _is_number(n) and isinstance(n, int) and n > 0)
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number above 0", lambda number: _is_number(number) and number > 0)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
LIST = Kind("a list", lambda value: isinstance(value, list))
SECTION = Kind("an object", lambda value: isinstance(value, dict))
Kinds = Mapping[str, Kind]  # by key


def require_kinds(values: Values, kinds: Kinds, prefix: str) -> None:
    """Raise UserError for a value that is not what `kinds` says. `prefix`: of keys in messages."""
    for key, kind in kinds.items():
        value = values.get(key)
        if value is not None and not kind.accepts(value):
            raise UserError(f"{prefix}{key}={shortened(value)}: not {kind.name}")


def shortened(value: object) -> str:
    """Return a value as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Keys that do not change the logits of a trained model: names and versions, precision, initial
# values, dropout, heads of other tasks, generation, how an implementation computes the same.
HARMLESS = re.compile(
    r"_name_or_path|_commit_hash|architectures|auto_map|model_type|tokenizer_class|model_max_length"
    r"|transformers_version|transformers\.js_config|is_llama_config|finetuning_task|problem_type"
    r"|dtype|torch_dtype|_?attn_implementation|attn_impl|init_device|gradient_checkpointing"
    r"|pretraining_tp|slow_but_exact|\w+_in_fp32|\w+_fusion|skip_bias_add\w*|offset_alibi"
    r"|reorder_and_upcast_attn|chunk_size_feed_forward|n_ctx|original_max_position_embeddings"
    r"|initializer_range|\w*dropout\w*|\w*pdrop|router_(aux_loss_coef|jitter_noise)|is_decoder"
    r"|summary_\w+|task_specific_params|id2label|label2id|num_labels|return_dict|output_\w+"
    r"|\w+_token_id|use_cache|cache_implementation|do_sample|temperature|top_[kp]|max_length"
)
# Keys of every architecture with the one value that is read, and why not others.
EXPECTED = {
    "is_causal": (True, "minigpt has only causal models"),
    "add_cross_attention": (False, "minigpt has no cross-attention"),
    "quantization_config": (None, "minigpt reads only weights that are not quantized"),
}


def require_known(values: Values, kinds: Kinds, prefix: str = "") -> None:
    """Raise UserError for a value of another kind, and for a key that may change the logits.

    A key that is not in `kinds` may do so unless it is HARMLESS, null, false or empty.
    """
    require_kinds(values, kinds, f"{CONFIG}: {prefix}")
    for key, value in values.items():
        if key in EXPECTED and value not in (None, EXPECTED[key][0]):
            raise unreadable(f"{prefix}{key}", shortened(value), EXPECTED[key][1])
        is_off = value is None or value is False or value in ({}, [], "")
        if not (is_off or key in EXPECTED or key in kinds or HARMLESS.fullmatch(key)):
            why = "minigpt does not know this key; remove it if the model computes without it"
            raise unreadable(f"{prefix}{key}", shortened(value), why)


class Field(ABC):
    """One or more keys of config.json."""

    @property
    def reads(self) -> Kinds:
        """The keys of config.json that it reads, or that may have any value."""
        return {}

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
    value = values.get(key, default)
    if default is REQUIRED and value in (REQUIRED, None):
        raise UserError(f"{CONFIG}: has no {key}; restore the file")
    return value


LAYER_TYPES = ("full_attention", "sliding_attention")


def layer_types(values: Values, known: tuple[str, ...]) -> list[str] | None:
    """Return `layer_types`, which must be among the known ones. Raises UserError."""
    types, n_layer = values.get("layer_types"), values.get("num_hidden_layers")
    for name in types or ():
        if name not in known:
            raise unreadable("layer_types", name, f"minigpt reads only {', '.join(known)}")
    if types is not None and len(types) != n_layer:
        why = f"{len(types)} layers, and num_hidden_layers={n_layer}; restore the file"
        raise unreadable("layer_types", shortened(types), why)
    return types


FRACTIONAL = ("model.norm.eps", "model.logit_softcap", "model.final_softcap")


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
    def reads(self) -> Kinds:
        kind = NUMBER if self.ours in FRACTIONAL else SIZE
        return {name: kind for name in (self.theirs, self.before) if name is not None}

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
    def reads(self) -> Kinds:
        is_flag = any(isinstance(name, bool) for names in self.names.values() for name in names)
        return {self.theirs: FLAG if is_flag else TEXT}

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

    @property
    def reads(self) -> Kinds:
        return {self.theirs: ANY}

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

    @property
    def reads(self) -> Kinds:
        return {self.theirs: ANY}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: self.value(config)}

    def read(self, values: Values) -> Overrides:
        return {}


@dataclass(frozen=True)
class Unread(Field):
    """Keys that an architecture does not use in the designs that are read, with any value."""

    theirs: tuple[str, ...]

    @property
    def reads(self) -> Kinds:
        return dict.fromkeys(self.theirs, ANY)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {}

    def read(self, values: Values) -> Overrides:
        return {}


@dataclass(frozen=True)
class LongEnough(Field):
    """The longest text, `shortest` or the context of training if that is longer."""

    theirs: str
    shortest: int

    @property
    def reads(self) -> Kinds:
        return {self.theirs: SIZE}

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

    @property
    def reads(self) -> Kinds:
        return {self.theirs: SECTION}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: dict(self.written)}

    def read(self, values: Values) -> Overrides:
        section = values.get(self.theirs) or {}
        require_known(section, dict.fromkeys(self.supported, ANY), f"{self.theirs}.")
        for key, only in self.supported.items():
            if section.get(key, only) != only:
                raise unreadable(f"{self.theirs}.{key}", section[key], f"minigpt reads only {only}")
        return {}


@dataclass(frozen=True)
class WithoutRope(Field):
    """Layers without rotary positions: all of them."""

    @property
    def reads(self) -> Kinds:
        unused = ("no_rope_layer_interval", "rope_parameters", "rope_scaling", "rope_theta")
        return {"no_rope_layers": LIST, "layer_types": LIST, **dict.fromkeys(unused, ANY)}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"no_rope_layers": [0] * config.n_layer, "no_rope_layer_interval": 1}

    def read(self, values: Values) -> Overrides:
        layer_types(values, LAYER_TYPES[:1])
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
    def reads(self) -> Kinds:
        return {"attention_bias": FLAG, "mlp_bias": FLAG}

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

    @property
    def reads(self) -> Kinds:
        return dict.fromkeys(self.theirs, ANY)

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
    def reads(self) -> Kinds:
        return {self.theirs: SIZE}

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
    def reads(self) -> Kinds:
        return {self.theirs: SIZE}

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
    def reads(self) -> Kinds:
        return {self.theirs: SIZE}

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
    def reads(self) -> Kinds:
        return {self.theirs: POSITIVE}

    @property
    def keys(self) -> tuple[str, ...]:
        return ("model.score_scale",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {self.theirs: round(score_scale(config) ** -2)}

    def read(self, values: Values) -> Overrides:
        scalar = value_of(values, self.theirs) if self.theirs in values else self.default
        size = values.get("head_dim", self.default)
        return {"model.score_scale": None if scalar == size else scalar**-0.5}


@dataclass(frozen=True)
class FalconBlocks(Field):
    """Parallel sublayers with one norm and one key-value head (7B), or with any number (40B)."""

    @property
    def reads(self) -> Kinds:
        flags = dict.fromkeys(("new_decoder_architecture", "multi_query", "parallel_attn"), FLAG)
        return {**flags, "num_kv_heads": SIZE, "num_ln_in_parallel_attn": SIZE}

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
            if n_norm > 2:
                raise unreadable("num_ln_in_parallel_attn", n_norm, "minigpt reads only 1 and 2")
        else:
            n = 1 if values.get("multi_query", True) else None
        return {
            "model.n_kv_head": None if n == n_head else n,
            "model.block": "parallel_shared" if n_norm == 1 else "parallel",
        }


ROPE_PARAMETERS = {
    **{"rope_type": TEXT, "type": TEXT, "rope_theta": POSITIVE, "factor": POSITIVE},
    **{"partial_rotary_factor": POSITIVE, "original_max_position_embeddings": SIZE},
}


@dataclass(frozen=True)
class Rope(Field):
    """Rotary positions. `default_base`, `default_fraction`: of transformers, without the keys.

    Scaling by NTK is a larger base, and is read as such.
    """

    default_base: float = 10000.0
    default_fraction: float = 1.0

    @property
    def reads(self) -> Kinds:
        numbers = ("rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct")
        sections = ("rope_parameters", "rope_scaling")
        return {**dict.fromkeys(numbers, POSITIVE), **dict.fromkeys(sections, SECTION)}

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
        require_kinds(rope, ROPE_PARAMETERS, f"{CONFIG}: rope_parameters.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "linear", "yarn"):
            raise unreadable("rope_type", kind, "minigpt reads only default, linear and yarn")
        base = rope.get("rope_theta", values.get("rope_theta", values.get("rotary_emb_base")))
        fraction = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
        fraction = values.get("rotary_pct") if fraction is None else fraction
        length = values.get("max_position_embeddings")
        original = rope.get("original_max_position_embeddings", length)
        for name in sorted(rope.keys() - ROPE_PARAMETERS.keys()):
            raise unreadable(f"rope_parameters.{name}", rope[name], "minigpt has no such option")
        if kind == "yarn" and original != length:
            name = "rope_parameters.original_max_position_embeddings"
            raise unreadable(name, original, f"minigpt reads only max_position_embeddings={length}")
        if kind != "default" and rope.get("factor") is None:
            raise unreadable("rope_parameters.rope_type", kind, "has no factor; restore the file")
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
    def reads(self) -> Kinds:
        return {self.theirs: SIZE}

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
    def reads(self) -> Kinds:
        switch = {"use_sliding_window": FLAG, "max_window_layers": ANY} if self.switched else {}
        return {"sliding_window": SIZE, "layer_types": LIST, **switch}

    @property
    def keys(self) -> tuple[str, ...]:
        return ATTENTION_KEYS

    def write(self, config: ModelConfig) -> dict[str, Any]:
        window, slides = window_of(config), config.attention.by_layer(config.n_layer)
        layers = [LAYER_TYPES[window is not None and own] for own in slides]
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
        types = layer_types(values, LAYER_TYPES)
        if types is None:
            if window is not None:
                raise unreadable("sliding_window", window, "minigpt reads it with layer_types only")
            types = []
        return sliding(window, [name == "sliding_attention" for name in types])
