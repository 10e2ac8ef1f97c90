"""`wandb agent` with the sweep of docs/howto/sweeps.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from minigpt.config.compose import composed_config
from minigpt.config.saved import read_config
from tests.conftest import TINY, inspect_wandb, the_run
from tests.logger.test_loggers import KEY, server

PAGE = Path(__file__).parents[2] / "docs/howto/sweeps.md"
(SWEEP,) = re.findall(r"```yaml\n(program: .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CHOSEN = {
    "positional": {"value": "alibi"},
    "optimizer.lr": {"value": 0.0031},
    "model.dropout": {"value": 0.1},
    "trainer.max_steps": {"value": 2},
}


def test_the_agent_writes_overrides_of_this_sweep() -> None:
    sweep = yaml.safe_load(SWEEP)
    assert sweep["parameters"].keys() == CHOSEN.keys()
    program, command, macro = create_sweep_command(sweep["command"])
    assert (program, sweep["program"], command) == ("${program}", "minigpt", "train")
    overrides = create_sweep_command_args({"args": CHOSEN})[macro[2:-1]]
    config = composed_config(overrides)
    assert config.model.positional.name == "alibi" and config.optimizer.lr == 0.0031
    assert config.model.dropout == 0.1 and config.trainer.max_steps == 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_agent_of_wandb_trains_a_run_of_this_sweep(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real agent, in a process of its own, and a server that gives it one run."""
    sweep = yaml.safe_load(SWEEP)
    tiny = [value for value in TINY if value not in ("logger=none", "trainer.max_steps=12")]
    sweep["command"][2:2] = [*tiny, "hydra.run.dir=run"]
    run = {"type": "run", "run_id": "ofagent", "program": sweep["program"], "args": CHOSEN}
    to_start = [run]
    node = {"id": "s", "name": "s", "config": yaml.safe_dump(sweep), "runs": {"edges": []}}
    project = {"name": "a project", "entity": {"name": "me"}}
    bucket = {"id": "id", "name": "ofagent", "project": project}
    user = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}

    def answer(request: str) -> dict[str, Any]:
        data: dict[str, Any] = {"viewer": user, "createAgent": {"agent": {"id": "a"}}}
        data["upsertBucket"] = {"bucket": bucket}
        if "SweepWithRuns" in request:
            data["project"] = {"sweep": node}
        if "agentHeartbeat" in request:
            started, to_start[:] = json.dumps(to_start), []
            data["agentHeartbeat"] = {"agent": {"id": "a"}, "commands": started}
        return data

    monkeypatch.delenv("WANDB_MODE")
    bin_ = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(workdir))  # where W&B has its settings
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    sent: list[str] = []
    with server(lambda path: 200, sent, answer) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        agent = [bin_ / "wandb", "agent", "--count", "1", "me/a project/s"]
        done = subprocess.run(agent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = read_config(the_run(workdir) / "config.yaml")
    assert config.model.positional.name == "alibi" and config.optimizer.lr == 0.0031
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"
    assert json.loads(Path("run/manifest.json").read_text())["tracker_id"] == "ofagent"
    (file,) = Path("run/wandb").glob("run-*/run-ofagent.wandb")
    assert '"sweep_id":"s"' in inspect_wandb(file)
    assert any("val_loss" in request for request in sent)
