"""Folders whose weights are in several files, as transformers writes large models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from minigpt.errors import UserError
from minigpt.export.folder import read_folder
from minigpt.export.shards import INDEX, WEIGHTS, weight_files
from minigpt.files import sha256_of_file, sha256_of_files
from tests.conftest import Cli
from tests.export.test_finetune import TOKENIZER, TRAIN, save


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_shards_are_read_as_one_file(cli: Cli, kind: str) -> None:
    save(kind, max_shard_size="4KB")
    files = weight_files(Path("given"))
    assert len(files) > 2 and not Path("given", WEIGHTS).exists()
    model = AutoModelForCausalLM.from_pretrained("given")
    tokens = torch.tensor([TOKENIZER.encode("Line 7")])
    read = read_folder(Path("given"))
    torch.testing.assert_close(read.model(tokens), model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_commands_take_a_folder_with_shards(cli: Cli) -> None:
    save("gpt2", max_shard_size="4KB")
    sampled = cli("sample", "given", "--prompt", "Line ", "--greedy", "--max-new-tokens", "3")
    assert sampled.code == 0 and sampled.out.startswith("Line ")
    assert cli("inspect", "given", "--prompt", "Line ").code == 0
    done = cli(*TRAIN, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert cli("export", "run", "--to", "hf", "out").code == 0
    model = AutoModelForCausalLM.from_pretrained("out")
    Path("out", WEIGHTS).unlink()
    model.save_pretrained("out", max_shard_size="4KB")
    assert cli("eval", "out").code == 0
    entry = json.loads(Path("out/eval.json").read_text())["exported"]
    assert entry["weights_sha256"] == sha256_of_files(weight_files(Path("out")))
    last = weight_files(Path("given"))[-1]
    last.rename("elsewhere")
    for command in (["sample", "given"], [*TRAIN, "hydra.run.dir=again"]):
        refused = cli(*command)
        assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
        assert f"{last}: no such file (1 of the " in refused.err
    assert not Path("again").exists()


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{WEIGHTS}: no such file, and no {INDEX}"):
        weight_files(tmp_path)
    index = tmp_path / INDEX
    for content in ("{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}', "[]"):
        index.write_text(content)
        with pytest.raises(UserError, match="not an index of files with weights"):
            weight_files(tmp_path)
    (tmp_path / WEIGHTS).touch()
    assert weight_files(tmp_path) == [tmp_path / WEIGHTS]
    assert sha256_of_files([tmp_path / WEIGHTS]) == sha256_of_file(tmp_path / WEIGHTS)
