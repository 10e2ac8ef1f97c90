"""Relative paths of a config, resolved against the working directory of the command."""

from __future__ import annotations

import dataclasses
import os

from minigpt.data.corpus import DataConfig

PATH_FIELDS = ("dir", "path")


def absolute_path(path: str) -> str:
    """Return a path with ~ expanded, absolute; symbolic links stay."""
    return os.path.abspath(os.path.expanduser(path))


def with_absolute_paths(data: DataConfig) -> DataConfig:
    """Return the data options with absolute paths, so that another process reads the same files."""
    paths = {
        field.name: absolute_path(getattr(data, field.name))
        for field in dataclasses.fields(data)
        if field.name in PATH_FIELDS
    }
    return dataclasses.replace(data, **paths)
