"""The config of a new run, also of one that starts from the weights of another: `init=PATH`."""

from __future__ import annotations

from dataclasses import replace

from minigpt.config.compose import to_config
from minigpt.config.overrides import Composed
from minigpt.config.saved import initial_config, read_config
from minigpt.config.schema import Config
from minigpt.export.folder import read_design
from minigpt.files import absolute_path
from minigpt.objective.base import CausalConfig
from minigpt.run.directory import ExportedFolder, find_base
from minigpt.run.load import TEACHER, as_trained


def new_config(composed: Composed) -> Config:
    """Return the config of a new run. With `init` its design and tokenizer are those of that run.

    Raises UserError as `to_config`, if `init` is not a run, and for a change of its design that its
    weights do not allow.
    """
    if composed.init is None:
        return with_absolute_teacher(to_config(composed))
    run = find_base("init", composed.init)
    if isinstance(run, ExportedFolder):
        saved = read_design(run.path).config
    else:
        saved = as_trained(run, read_config(run.config))
    return with_absolute_teacher(initial_config(composed, saved, absolute_path(str(run.path))))


def with_absolute_teacher(config: Config) -> Config:
    """Return the config with the teacher's path as it can be found from any folder."""
    teacher = config.teacher
    if teacher is None:
        return config
    assert isinstance(config.objective, CausalConfig)
    path = absolute_path(str(find_base(TEACHER, teacher).path))
    return replace(config, objective=replace(config.objective, teacher=path))
