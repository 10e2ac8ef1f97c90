"""What an architecture of transformers is here: keys of its config.json, requirements, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from minigpt.config.pairs import as_typed
from minigpt.errors import UserError
from minigpt.export.fields import (
    CONFIG,
    SIZE,
    Field,
    Overrides,
    Values,
    option,
    require_known,
)
from minigpt.export.rewriting import Conventions, plain
from minigpt.export.tensors import Part
from minigpt.model.config import ModelConfig

# Options without effect on what a trained model computes, and those in the sizes of weights.
WITHOUT_EFFECT = (
    *("model.name", "model.dropout", "model.residual_init", "model.vocab_multiple"),
    *("model.backend.name", "model.ffn.balance", "model.norm.affine"),
)


@dataclass(frozen=True)
class Requirement:
    """An option that an architecture allows only some values of.

    `values`: those values, the one to use first; or `allows`, a function of the design, with
    `values` to use. `why`: what the architecture has or lacks, after its name.
    """

    key: str
    values: tuple[Any, ...]
    why: str
    allows: Callable[[ModelConfig], bool] | None = None

    def holds(self, config: ModelConfig) -> bool:
        """Return whether a design has an allowed value, or no such option at all."""
        try:
            value = option(config, self.key)
        except AttributeError:
            return True
        return value in self.values if self.allows is None else self.allows(config)

    @property
    def remedy(self) -> str:
        """The override of `minigpt train` that meets it."""
        value = self.values[0]
        text = f"[{','.join(value)}]" if isinstance(value, list) else as_typed(value)
        return f"{group_of(self.key)}={text}"

    def describe(self) -> str:
        """Return the allowed values, for a table."""
        return " or ".join(as_typed(value) for value in self.values)


def group_of(key: str) -> str:
    """Return the name on the command line of an option: the config group of a named choice."""
    if key == "model.norm.placement":
        return "norm"
    section, _, name = key.removeprefix("model.").rpartition(".")
    return section if name == "name" else key


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    `model_type`, `class_name`: as in config.json. `prefix`: of the names of its weights, which some
    published files lack. `conventions`: returns the equal design that it has; see `rewriting`.
    `own_tokenizer`: whether transformers replaces the tokenizer of every such folder by one of the
    architecture's own, which splits text otherwise. No design leaves as one; folders are read.
    """

    name: str
    model_type: str
    class_name: str
    fields: tuple[Field, ...]
    requirements: tuple[Requirement, ...]
    parts: tuple[Part, ...]
    prefix: str = "model."
    conventions: Conventions = plain
    own_tokenizer: bool = False

    def violations(self, config: ModelConfig) -> list[Requirement]:
        """Return the requirements that a design does not meet; [] if it can leave like this."""
        config = self.conventions(config)
        found = [one for one in self.requirements if not one.holds(config)]
        known = {key for field in self.fields for key in field.keys}
        known |= {one.key for one in self.requirements} | {*WITHOUT_EFFECT}
        known |= {f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "block_size")}
        # the options of a refused choice are refused with it
        refused = tuple(one.key.removesuffix("name") for one in found if one.key.endswith(".name"))
        for key, value, default in _options(config, "model."):
            if key not in known and not key.startswith(refused or "-") and value != default:
                found.append(Requirement(key, (default,), "does not know this option"))
        return found

    def rewrites(self, config: ModelConfig) -> bool:
        """Return whether a design leaves as an equal one, with rounding errors in its weights."""
        return self.conventions(config) != config

    def config_of(self, config: ModelConfig, n_vocab: int) -> dict[str, Any]:
        """Return config.json of a design in its conventions that meets the requirements."""
        values = {key: value for field in self.fields for key, value in field.write(config).items()}
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "vocab_size": n_vocab,
            **values,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "float32",
        }

    def overrides_of(self, values: Values) -> Overrides:
        """Return the options of a design from its config.json.

        Raises UserError for a value of another type, and for what no option expresses.
        """
        kinds = {key: kind for field in self.fields for key, kind in field.reads.items()}
        require_known(values, {"vocab_size": SIZE, **kinds})
        overrides: Overrides = {}
        for field in self.fields:
            for key, value in field.read(values).items():
                if overrides.setdefault(key, value) != value:
                    why = f"gives {key}={value}, and another key {overrides[key]}"
                    raise UserError(f"{CONFIG}: {why}; minigpt has one option for both")
        return overrides


def _options(config: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and default of every option, also of nested ones."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{field.name}.")
        else:
            default = None if field.default is MISSING else field.default
            yield f"{prefix}{field.name}", value, default
