"""Named variants of a config group. One file per variant: options, class, registration."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from minigpt.errors import UserError, did_you_mean

T = TypeVar("T")
V = TypeVar("V")


class Registry(Generic[T]):
    """The variants of one config group.

    `group`: its name on the command line. `key`: the config key of its options. `package`: the
    package (or module) whose modules register the variants; all of them are imported.
    """

    def __init__(self, group: str, key: str, package: str) -> None:
        self.group, self.key, self._package = group, key, package
        self._variants: dict[str, tuple[type, type[T]]] = {}
        self._unlisted: set[str] = set()
        self._discovered = False

    def register(
        self, name: str, options: type, listed: bool = True
    ) -> Callable[[type[V]], type[V]]:
        """Decorate a class to register it under `name`, with the dataclass of its options.

        `listed`: whether a command line can choose it. Others are only in the configs of runs.
        """

        def add(variant: type[V]) -> type[V]:
            assert name not in self._variants, f"{self.group}={name} is registered twice"
            self._variants[name] = (options, cast(type[T], variant))
            self._unlisted |= set() if listed else {name}
            return variant

        return add

    def names(self) -> list[str]:
        """Return every name that a command line can choose, sorted."""
        self._discover()
        return sorted(self._variants.keys() - self._unlisted)

    def variants(self) -> list[type[T]]:
        """Return every registered class, also those that no command line can choose."""
        self._discover()
        return [variant for _, variant in self._variants.values()]

    def options(self, name: str) -> type:
        """Return the dataclass of a variant's options. Raises UserError for an unknown name."""
        return self._find(name)[0]

    def variant(self, name: str) -> type[T]:
        """Return the class registered under `name`. Raises UserError for an unknown name."""
        return self._find(name)[1]

    def build(self, options: Any, *args: Any) -> T:
        """Return variant(options, *args) for the variant `options.name`."""
        construct = cast(Callable[..., T], self.variant(options.name))
        return construct(options, *args)

    def _find(self, name: str) -> tuple[type, type[T]]:
        self._discover()
        if name not in self._variants:
            guess, known = did_you_mean(str(name), self.names()), ", ".join(self.names())
            raise UserError(f"{self.key}.name={name}: no such {self.group}.{guess} Known: {known}.")
        return self._variants[name]

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self._package}.{module.name}")
