"""`minigpt train`: train one run, resume one, or with -m run a sweep."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minigpt.commands.help import print_help, topics_of_plain_help
from minigpt.config.pairs import parse_override
from minigpt.errors import UserError
from minigpt.imports import without_garbage_collection
from minigpt.torchrun import require_no_torchrun

if TYPE_CHECKING:
    from minigpt.config.overrides import Composed


def main(arguments: list[str]) -> None:
    """Train a run or a sweep from the arguments. Raises UserError for wrong arguments."""
    topics = topics_of_plain_help(arguments)
    if topics is not None:
        print_help(topics, as_json="--json" in arguments)
        return
    from minigpt.config.hydra_main import as_overrides, help_request, hydra_main, needs_hydra_main
    from minigpt.config.overrides import compose_overrides, require_choices

    command = ["minigpt", "train", *arguments]
    arguments = as_overrides(arguments)
    request = help_request(arguments)
    if request is not None:
        print_help(request.topics, request.config_dir, request.as_json)
    elif needs_hydra_main(arguments):
        from minigpt.sweep.directory import sweep_directory

        require_no_torchrun("minigpt train -m")

        hydra_main(arguments, partial(train, command=command), sweep_directory)
    else:
        require_choices(arguments)
        train(compose_overrides([*_choices_of_resumed_run(arguments), *arguments]), command)


def _choices_of_resumed_run(arguments: list[str]) -> list[str]:
    """Return the choice of `data` that a resumed run has, so that `data.path` can be changed.

    Raises UserError for a change of an option that it keeps, which may be one of other choices.
    """
    resumed = [value for key, value in map(parse_override, arguments) if key == "resume"]
    if not resumed or resumed[-1] == "null":
        return []
    from minigpt.config.pairs import flat
    from minigpt.config.saved import read_config, require_resumable
    from minigpt.run.directory import find_run

    saved = read_config(find_run(resumed[-1], "resume").config)
    for argument in arguments:
        if parse_override(argument).key in flat(saved.to_dict()):
            require_resumable(argument)
    return [f"data={saved.data.name}"]


def train(composed: Composed, command: list[str]) -> None:
    """Train a new run, or resume the one that `resume=` names."""
    # Imported here, so that --help, --cfg and shell completion do not wait for torch.
    with without_garbage_collection():
        from minigpt.config.saved import read_config, resumed_config
        from minigpt.run.directory import RunDirectory, find_run
        from minigpt.run.initial import new_config
        from minigpt.train.distributed import run_of_earlier_attempt
        from minigpt.train.launch import start_run

    for override in composed.overrides:
        if override.startswith("sweep"):
            raise UserError(f"{override}: is an option of sweeps; add -m")
    if composed.swept:
        overrides, keys = " ".join(composed.overrides), ", ".join(composed.swept)
        raise UserError(f"{overrides}: sweeps over {keys}; add -m")
    if composed.resume is None:
        run, config = RunDirectory(composed.directory), new_config(composed)
    else:
        run = find_run(composed.resume, "resume")
        config = resumed_config(run.config, composed)
    resumed = composed.resume is not None
    earlier = run_of_earlier_attempt()
    if earlier is not None and RunDirectory(earlier).config.is_file():
        run, resumed = RunDirectory(earlier), True
        config = read_config(run.config)
    start_run(config, run, resumed, command)
