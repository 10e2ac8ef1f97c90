"""`minigpt sample` and `minigpt eval` of a trained run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from minigpt.model import GPT
from tests.conftest import TINY, Cli


@pytest.mark.fast
def test_sample_depends_only_on_the_seed(cli: Cli) -> None:
    assert cli("train", *TINY).code == 0
    arguments = ["sample", "latest", "--prompt", "Line", "--max-new-tokens", "20", "--seed", "3"]
    first = cli(*arguments)
    assert first.code == 0, first.err
    assert first.out.startswith("Line") and len(first.out) == len("Line") + 20 + 1
    assert cli(*arguments).out == first.out
    assert cli(*arguments[:-1], "4").out != first.out
    several = cli(*arguments, "--num-samples", "2").out
    assert several.startswith("--- sample 1 of 2 ---\n" + first.out)
    greedy = [cli(*arguments[:-1], seed, "--greedy").out for seed in ("1", "2")]
    assert greedy[0] == greedy[1]
    assert cli(*arguments[:-1], "9", "--top-k", "1").out == greedy[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "§"], "--prompt: text='§' (U+00A7) at offset 0"),
        (["--prompt", ""], "--prompt=: empty"),
        (["--top-p", "0"], "--top-p=0.0: must be above 0"),
        (["--top-k", "0"], "--top-k=0: must be 1 or more"),
        (["--temperature", "-1"], "--temperature=-1.0: must be 0 or more"),
        (["--temperature", "hot"], "--temperature=hot: must be a number"),
        (["--max-new-tokens", "0"], "--max-new-tokens=0: must be 1 or more"),
        (["--greedy", "--top-k", "3"], "--greedy: cannot be combined with --top-k"),
        (["--greedy", "--min-p", "0.1"], "--greedy: cannot be combined with --min-p"),
        (["--min-p", "2"], "--min-p=2.0: must be above 0"),
        (
            ["--beams", "2", "--top-p", "0.9", "--greedy"],
            "--beams: cannot be combined with --top-p, --greedy; le",
        ),
        (["--beams", "2", "--temperature", "0"], "--beams: cannot be combined with --temperature"),
        (["--beams", "2", "--num-samples", "2"], "--beams: cannot be combined with --num-samples"),
        (["--beams", "2", "--draft", "latest"], "--beams: cannot be combined with --draft"),
        (["--beams", "0"], "--beams=0: must be 1 or more"),
        (["--beams", "2", "--repetition-penalty", "0"], "--repetition-penalty=0.0: must be a"),
        (["--beams", "2", "--context", "0"], "--context=0: must be an integer of 1"),
        (["--beams", "2", "--length-penalty", "-1"], "--length-penalty=-1.0: must be 0 or more"),
        (["--length-penalty", "1"], "--length-penalty: needs --beams"),
        (["--draft-tokens", "4"], "--draft-tokens: needs --draft"),
        (["--draft", "latest", "--draft-tokens", "0"], "--draft-tokens=0: must be 1 or more"),
        (["--draft", "nowhere"], "--draft: nowhere: no such run directory; give"),
        (
            ["--repetition-penalty", "inf"],
            "--repetition-penalty=inf: must be a finite number above",
        ),
        (["--stop", ""], "--stop=: empty"),
        (["--stop", r"\d"], r"--stop=\d: invalid escape; use \n, \t, \r or"),
        (["--beams", "1", "--length-penalty", "2"], "--length-penalty: needs several beams"),
        (["--beams", "2", "--length-penalty", "2"], "--length-penalty: compares texts that end at"),
        (["--prompts", "nowhere.txt"], "--prompts=nowhere.txt: No such file or directory; give"),
        (["--prompts", "."], "--prompts=.: Is a directory; give a text file"),
        (["--num-sample", "3"], "unrecognized arguments: --num-sample"),
        (["--seed", "-1"], "--seed=-1: must be from 0"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
        (["--context", "0"], "--context=0: must be an integer of 1 or more, or all"),
        (["--context", "1e3"], "--context=1e3: must be an integer"),
        (["--prompt", "a", "--prompt", ""], "--prompt=: empty"),
        (
            ["--set", "model.n_head=4"],
            "--set model.n_head=4: a trained run can change only the options of its",
        ),
        (["--set", "model.positional.=3"], "can change only"),
        (["--set", "model.positional.base=9", "--set", "model.positional.base=8"], "given twice"),
        (["--set", "model.positional.name=alibi"], "can change only"),
        (["--set", "model.positional"], "can change only"),
        (["--set", "model.positional.bse=9"], "--set model.positional.bse: no such option. Did yo"),
        (["--set", "model.positional.base=x"], "--set model.positional.base=x: not a valid float"),
    ],
)
def test_sample_mistakes_print_one_line(
    cli: Cli, tiny_run: Path, arguments: list[str], message: str
) -> None:
    outcome = cli("sample", "run", *arguments)
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.fast
def test_eval_equals_the_result_of_training(cli: Cli, tiny_run: Path) -> None:
    outcome = cli("eval", "run", "--checkpoint", "last")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    evaluated = json.loads(Path("run/eval.json").read_text())["last"]
    for key in ("train_loss", "val_loss", "val_perplexity", "val_bits_per_byte"):
        assert evaluated[key] == result[key]
    assert {"train_perplexity", "train_bits_per_byte"} <= evaluated.keys()


def test_a_training_loss_says_which_part_it_is_of(cli: Cli, tiny_run: Path) -> None:
    """By default of as many tokens as the validation split has, with --full of all of them."""
    n = json.loads(Path("run/manifest.json").read_text())["tokens"]
    assert n["val"] < n["train"]
    first = cli("eval", "run")
    assert first.code == 0 and f"first {n['val']:,} " in first.out
    of_slice = json.loads(Path("run/eval.json").read_text())["best"]
    assert of_slice["train_tokens"] == of_slice["val_tokens"] == n["val"]
    # Of a folder, only what is not known is evaluated; a loss of another part does not count.
    shutil.copytree("run", "folder/one")
    shutil.copytree("run", "folder/two")
    assert cli("eval", "folder").out.count("already evaluated") == 2
    for known in (0, 2):
        again = cli("eval", "folder", "--full")
        assert again.out.count("already evaluated") == known and "first" not in again.out
    both = json.loads(Path("folder/one/eval.json").read_text())["best"]
    assert both["full_train_tokens"] == n["train"] and both["full_train_loss"] != both["train_loss"]
    assert {key: both[key] for key in of_slice} == of_slice
    # A file of an earlier version: all of the training split, without its number of tokens.
    earlier = {k: v for k, v in both.items() if not k.endswith("_tokens")}
    Path("folder/one/eval.json").write_text(json.dumps({"best": earlier}))
    assert cli("eval", "folder").out.count("already evaluated") == 1
    assert json.loads(Path("folder/one/eval.json").read_text())["best"] == earlier | of_slice


def test_eval_at_several_lengths(cli: Cli) -> None:
    assert cli("train", *TINY, "positional=learned", "hydra.run.dir=run").code == 0
    outcome = cli("eval", "run", "--lengths", "16,4,8", "--by-position")
    assert outcome.code == 0, outcome.err
    assert "undefined: learned has 8 positions" in " ".join(outcome.out.split())
    entry = json.loads(Path("run/eval.json").read_text())["best"]
    assert [*entry["lengths"]] == ["4", "8", "16"]
    four, eight, sixteen = entry["lengths"].values()
    assert eight["loss"] == entry["val_loss"] and four["loss"] != eight["loss"]
    assert sixteen["loss"] is None and sixteen["perplexity"] is None
    assert {name: len(losses) for name, losses in entry["by_position"].items()} == {"4": 4, "8": 8}
    page = Path("run/eval/best.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2 and "undefined" in page
    for name in ("lengths", "by_position"):
        assert Path(f"run/eval/best_{name}.png").read_bytes().startswith(b"\x89PNG")

    # A later call extends the results of the same weights and discards those of other weights.
    assert cli("eval", "run", "--checkpoint", "last").code == 0
    entries = json.loads(Path("run/eval.json").read_text())
    assert entries["best"] == entry and "lengths" not in entries["last"]
    assert cli("eval", "run").code == 0
    assert json.loads(Path("run/eval.json").read_text())["best"] == entry
    assert cli("eval", "run", "--lengths", "2").code == 0
    more = json.loads(Path("run/eval.json").read_text())["best"]
    assert {*more["lengths"]} == {"2", "4", "8", "16"}
    assert not Path("run/eval/best_by_position.png").exists()  # the new page has no such figure
    assert cli("eval", "run", "--checkpoint", "last", "--lengths", "4").code == 0
    before = json.loads(Path("run/eval.json").read_text())["last"]
    assert cli("train", "resume=run", "trainer.max_steps=20").code == 0
    assert cli("eval", "run", "--checkpoint", "last").code == 0
    after = json.loads(Path("run/eval.json").read_text())["last"]
    assert after["weights_sha256"] != before["weights_sha256"]
    assert "lengths" in before and "lengths" not in after


def test_configs_without_later_options_load_with_equal_results(cli: Cli) -> None:
    """Options missing in a config.yaml of an earlier version take the earlier behaviour."""
    added_options = {
        "rope": (
            *("fraction", "scaling", "factor", "n_kv_head", "logit_softcap", "head_size", "block"),
            *("score_scale", "final_softcap", "scale", "unit_offset", "on_embeddings"),
        ),
        "alibi": ("slopes", "n_kv_head", "logit_softcap", "document_separator", "attention"),
    }
    for scheme, options in added_options.items():
        assert cli("train", *TINY, f"model={scheme}", f"hydra.run.dir={scheme}").code == 0
        config = Path(scheme) / "config.yaml"
        saved = yaml.safe_load(config.read_text())
        model = saved["model"]
        sections = (saved["data"], model, model["positional"], model["embedding"], model["norm"])
        removed = [
            name
            for section in sections
            for name in options
            if section.pop(name, section) is not section
        ]
        assert {*removed} == {*options}
        assert cli("eval", scheme).code == 0
        evaluated = Path(scheme, "eval.json").read_text()
        config.write_text(yaml.safe_dump(saved))
        assert cli("eval", scheme).code == 0
        assert Path(scheme, "eval.json").read_text() == evaluated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "8,x"], "--lengths=8,x: not integers; write them as 32,64,128"),
        (["--lengths", ""], "--lengths=: not integers"),
        (["--lengths", "0,8"], "--lengths=0,8: context lengths must be 1 or more"),
        (["--lengths", "100000"], "--lengths=100000: the val split has only"),
        (["--set", "model.positional.slopes=learned"], "needs other parameters than this run has"),
    ],
)
def test_eval_mistakes_print_one_line(cli: Cli, arguments: list[str], message: str) -> None:
    assert cli("train", *TINY, "positional=alibi", "trainer.max_steps=1").code == 0
    outcome = cli("eval", "latest", *arguments)
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_sample_reads_prompts_from_a_file_and_prints_json(cli: Cli, tiny_run: Path) -> None:
    Path("prompts.txt").write_text("the quick\n\nfox\n")
    sample = ["sample", "run", "--max-new-tokens", "9", "--seed", "5"]
    outcome = cli(*sample, "--prompts", "prompts.txt", "--num-samples", "2", "--json")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    samples = [(row["prompt"], row["sample"], row["seed"]) for row in rows]
    assert samples == [("the quick", 1, 5), ("fox", 1, 5), ("the quick", 2, 6), ("fox", 2, 6)]
    single = cli(*sample, "--prompt", "fox")
    assert single.out == "fox" + rows[1]["text"] + "\n"
    Path("foreign.txt").write_text("fox\n\nf§\n", encoding="utf-8")
    foreign = "--prompts=foreign.txt: line 3: text='§' (U+00A7) at offset 1: not among"
    assert foreign in cli(*sample, "--prompts", "foreign.txt").err
    Path("empty.txt").write_text("\n\n")
    assert "all lines are empty" in cli(*sample, "--prompts", "empty.txt").err
    Path("latin.txt").write_bytes(b"caf\xe9")
    assert "--prompts=latin.txt: not UTF-8 at byte 3" in cli(*sample, "--prompts", "latin.txt").err


def test_sample_with_beam_search(cli: Cli, tiny_run: Path) -> None:
    sample = ["sample", "run", "--max-new-tokens", "12", "--prompt", "Line"]
    assert cli(*sample, "--beams", "1").out == cli(*sample, "--greedy").out
    five = cli(*sample, "--beams", "5")
    assert five.code == 0 and five.err == "" and len(five.out) == len("Line") + 12 + 1
    assert (
        "--beams: cannot be combined with --seed" in cli(*sample, "--beams", "5", "--seed", "9").err
    )
    both = cli(*sample, "--prompt", "the quick", "--beams", "5").out  # exceeds the block
    assert both.startswith(f"--- sample 1 of 1 of 'Line' ---\n{five.out}---")
    row = json.loads(cli(*sample, "--beams", "5", "--json").out)
    assert "Line" + row["text"] + "\n" == five.out
    assert row["score"] == pytest.approx(row["log_probability"] / 12)
    assert "seed" not in row  # beam search is deterministic
    penalized = cli(*sample, "--beams", "5", "--repetition-penalty", "9").out
    assert penalized != five.out

    # Beams end at the stop text, which is not printed; a length penalty favours longer texts.
    stop = row["text"][2:4]
    rows = [
        json.loads(
            cli(*sample, "--beams", "5", "--json", "--length-penalty", a, "--stop", stop).out
        )
        for a in ("0", "9")
    ]
    assert all(stop not in row["text"] for row in rows)
    assert len(rows[0]["text"]) <= len(rows[1]["text"])
    assert rows[0]["log_probability"] > rows[1]["log_probability"]
    assert rows[0]["score"] == rows[0]["log_probability"]


def test_sample_with_speculative_decoding(cli: Cli, tiny_run: Path) -> None:
    small = ["model.n_embd=8", "model.block_size=5", "positional=learned"]
    assert cli("train", *TINY, *small, "hydra.run.dir=small").code == 0
    sample = ["sample", "run", "--max-new-tokens", "14", "--prompt", "Line"]
    plain = cli(*sample, "--greedy")
    drafted = cli(*sample, "--greedy", "--draft", "small", "--draft-tokens", "3")
    assert drafted.code == 0 and drafted.out == plain.out
    assert re.fullmatch(
        r"draft: \d+ of \d+ proposed tokens accepted \(\d+%\), [1-4]\.\d\d tokens per "
        r"forward pass of the model; timing 14 tokens without it \.\.\.\n"
        r"draft: \d+\.\d\d times as fast as without it \(\d+\.\d\d s, and \d+\.\d\d s without\)\n",
        drafted.err,
    )
    identical_draft = ["--draft", "run", "--draft-tokens", "6"]
    all_accepted = cli(*sample, *identical_draft)
    assert all_accepted.err.startswith(
        "draft: 11 of 11 proposed tokens accepted (100%), 4.67 tokens per"
    )
    assert cli(*sample, *identical_draft).out == all_accepted.out
    assert cli(*sample, *identical_draft, "--seed", "2").out != all_accepted.out
    stopped = cli(*sample, *identical_draft, "--stop", all_accepted.out[5:7]).out
    assert stopped == all_accepted.out.partition(all_accepted.out[5:7])[0] + "\n"

    several = [*sample, "--draft", "small", "--prompt", "the quick", "--num-samples", "2"]
    outcome = cli(*several)
    assert outcome.out.count("--- sample ") == 4 and "timing" not in outcome.err
    rows = cli(*several, "--json")
    assert [0 <= json.loads(row)["acceptance_rate"] <= 1 for row in rows.out.splitlines()] == [
        1
    ] * 4
    assert rows.err == outcome.err and rows.err.count("\n") == 1
    first = json.loads(rows.out.splitlines()[0])["text"]
    assert f"Line{first}\n---" in outcome.out
    one = json.loads(cli(*sample[:-4], "--max-new-tokens", "1", "--draft", "small", "--json").out)
    assert one["acceptance_rate"] is None
    # The context of the draft is shorter.
    assert cli(*sample, "--draft", "small", "--context", "all").code == 0
    assert cli("train", *TINY, "tokenizer=bpe", "hydra.run.dir=bpe").code == 0
    refused = cli(*sample, "--draft", "bpe")
    assert refused.code == 2 and refused.out == ""
    assert refused.err == (
        "minigpt: --draft=bpe: its tokenizer differs from that of run; use a draft trained with "
        "the same tokenizer on the same text\n"
    )


@pytest.mark.parametrize("content", ["", "[]", "3", "{", '{"best": 3}', '{"val_loss": 2.2}'])
def test_eval_rejects_a_foreign_eval_json(cli: Cli, tiny_run: Path, content: str) -> None:
    Path("run/eval.json").write_text(content)
    outcome = cli("eval", "run")
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err == (
        "minigpt: run/eval.json: not written by minigpt eval; delete it and evaluate again\n"
    )
    assert Path("run/eval.json").read_text() == content


def test_eval_out_of_memory_prints_one_line_and_keeps_results(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise torch's own error by allocating a huge tensor."""
    assert cli("train", *TINY, "positional=alibi", "hydra.run.dir=run").code == 0
    loss = GPT.loss

    def allocate_and_compute(
        self: GPT, tokens: torch.Tensor, *rest: object, **options: object
    ) -> torch.Tensor:
        if tokens.shape[1] > 8:
            torch.zeros(2**45)
        return loss(self, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GPT, "loss", allocate_and_compute)
    outcome = cli("eval", "run", "--lengths", "4,16")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "out of memory; --lengths=16 is too long" in outcome.err
    entry = json.loads(Path("run/eval.json").read_text())["best"]
    assert [*entry["lengths"]] == ["4"]  # results of shorter lengths are kept


def test_concurrent_evaluations_are_both_recorded(cli: Cli) -> None:
    assert cli("train", *TINY, "positional=alibi", "hydra.run.dir=run").code == 0
    code = "import sys; from minigpt.cli import main; sys.exit(main())"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "eval", "run", "--lengths", length],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for length in ("4", "16")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert {*json.loads(Path("run/eval.json").read_text())["best"]["lengths"]} == {"4", "16"}


def test_eval_with_another_rope_scaling(cli: Cli, tiny_run: Path) -> None:
    scaled = ["--set", "model.positional.scaling=linear", "--set", "model.positional.factor=2"]
    assert cli("eval", "run").code == cli("eval", "run", *scaled).code == 0
    entries = json.loads(Path("run/eval.json").read_text())
    plain, other = entries.values()
    assert plain["weights_sha256"] == other["weights_sha256"]
    assert plain["val_loss"] != other["val_loss"]
    assert "model.positional.factor=2" in [*entries][1]


def test_sample_several_prompts_longer_than_the_block(cli: Cli) -> None:
    assert cli("train", *TINY, "positional=alibi", "hydra.run.dir=run").code == 0
    sample = ["sample", "run", "--greedy", "--max-new-tokens", "30"]
    single = cli(*sample, "--prompt", "the quick brown").out
    both = cli(*sample, "--prompt", "L", "--prompt", "the quick brown").out
    assert single in both and both.count("--- sample 1 of 1 of ") == 2
    full_context = cli(*sample, "--prompt", "the quick brown", "--context", "all")
    assert full_context.code == 0 and full_context.out[:15] == single[:15]
    assert cli("train", *TINY, "positional=learned", "hydra.run.dir=learned").code == 0
    sample[1] = "learned"
    assert len(cli(*sample, "--context", "all").out) >= 30
    refused = cli(*sample, "--context", "9")
    assert refused.code == 2
    assert refused.err == "minigpt: --context=9: learned has 8 positions; use that or fewer\n"
