"""Generation and filling with prefix decoders, encoders and encoder-decoders."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config.compose import composed_config
from minigpt.errors import UserError
from minigpt.inference.beam import BeamSearch, beam_search
from minigpt.inference.fill import Filler
from minigpt.inference.generate import Decoder, Sampling, context_start, generate
from minigpt.inference.speculative import Draft, speculate
from minigpt.model import GPT
from minigpt.model.block import Block
from minigpt.model.positional import POSITIONAL
from minigpt.objective import OBJECTIVES, Objective
from minigpt.runtime import choose_runtime
from minigpt.tokenizer.char import CharTokenizer
from tests.conftest import TINY, Cli
from tests.model.contract import assert_equal
from tests.model.tiny import first_problem, random_model, tiny_config

CPU = choose_runtime("cpu", "fp32")
TEXT = "to be or not to be, that is the question"
N_SPECIAL = 3
SCHEMES = [name for name in POSITIONAL.names() if POSITIONAL.variant(name).has_two_sided_form]
PREFIX: dict[str, Any] = {"architecture": "prefix_decoder"}
BOTH: dict[str, Any] = {"architecture": "encoder_decoder", "n_special_tokens": N_SPECIAL}
PROMPTS = [[3, 1, 4, 1, 5], [2, 7], [1, 8, 2, 8, 1, 8, 4]]
SOURCES = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5]]
GREEDY = Sampling(temperature=0.0)


def full_logits(model: GPT, sequence: list[int], lengths: int | None, source: Any) -> Tensor:
    """Return the logits (n_vocab,) after a sequence, from one pass without a cache."""
    memory = None if source is None else model.encode(torch.tensor([source]))
    prefix = None if lengths is None else torch.tensor([lengths])
    return model(torch.tensor([sequence]), lengths=prefix, memory=memory)[0, -1]


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("attention", ["full", "sliding_window", "bigbird", "chunked"])
def test_a_prefix_is_read_in_both_directions(scheme: str, attention: str) -> None:
    model = random_model(tiny_config(scheme, attention=attention, block_size=16, **PREFIX))
    decoder = Decoder(model, PROMPTS, 16)
    for step in range(4):
        for row, sequence in enumerate(decoder.sequences):
            expected = full_logits(model, sequence, len(PROMPTS[row]), None)
            assert_equal(decoder.next_logits[row], expected)
        decoder.append([step, 2 * step, 3])


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("scheme", ["rope", "learned", "t5"])
def test_what_is_left_of_a_prompt_after_a_cut_is_the_prefix(scheme: str) -> None:
    model, context = random_model(tiny_config(scheme, block_size=8, **PREFIX)), 8
    decoder = Decoder(model, PROMPTS[2:], context)
    for step in range(12):
        sequence = decoder.sequences[0]
        start = context_start(len(sequence), context)
        prefix = max(0, len(PROMPTS[2]) - start)
        expected = full_logits(model, sequence[start:], prefix, None)
        assert_equal(decoder.next_logits[0], expected)
        decoder.append([step % 11])


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("n_kv_head", [None, 1])
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_an_encoder_decoder_decodes_with_its_caches(scheme: str, n_kv_head: int | None) -> None:
    config = tiny_config(scheme, n_kv_head=n_kv_head, n_encoder_layer=1, **BOTH)
    if first_problem(config) is not None:
        pytest.skip("refused")
    model = random_model(config)
    begin = [[model.n_ordinary]] * len(SOURCES)
    passes: list[int] = []
    assert model.encoder is not None
    model.encoder.final_norm.register_forward_hook(lambda *_: passes.append(1))
    projected: list[int] = []
    for block in model.blocks:
        assert isinstance(block, Block) and block.cross_attention is not None
        block.cross_attention.kv.register_forward_hook(lambda *_: projected.append(1))
    decoder = Decoder(model, begin, 16, sources=SOURCES)
    steps = [decoder.next_logits.clone()]
    for step in range(3):
        decoder.append([step, 2, 5])
        steps.append(decoder.next_logits.clone())
    assert len(passes) == 1 and len(projected) == len(model.blocks)
    for row, source in enumerate(SOURCES):
        for n, logits in enumerate(steps, 1):
            expected = full_logits(model, decoder.sequences[row][:n], None, source)
            assert_equal(logits[row, : model.n_ordinary], expected[: model.n_ordinary])
            assert (logits[row, model.n_ordinary :] == -math.inf).all()
    before = decoder.next_logits
    decoder.select([2, 0, 2])
    assert_equal(decoder.next_logits, before[[2, 0, 2]])
    decoder.append([1, 1, 1])
    for row, source in enumerate((2, 0, 2)):
        expected = full_logits(model, decoder.sequences[row], None, SOURCES[source])
        assert_equal(decoder.next_logits[row, : model.n_ordinary], expected[: model.n_ordinary])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_special_tokens_are_never_sampled(temperature: float) -> None:
    model = random_model(tiny_config("rope", **BOTH))
    with torch.no_grad():
        model.head.weight[model.n_ordinary :] *= 50
    begin, sampling = [[model.n_ordinary]] * 3, Sampling(temperature)
    rows = list(generate(model, begin, 40, sampling, seed=3, sources=SOURCES, runtime=CPU))
    assert max(itertools.chain(*rows)) < model.n_ordinary
    best = beam_search(model, begin[0], 10, BeamSearch(3), source=SOURCES[0], runtime=CPU)
    assert max(best.tokens) < model.n_ordinary


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("changes", [PREFIX, BOTH])
def test_beams_find_the_likeliest_continuation(changes: dict[str, Any]) -> None:
    """With as many beams as there are continuations, compared with all of them."""
    model = random_model(tiny_config("t5", n_layer=1, **changes), n_vocab=4)
    source = [3, 1, 2] if changes is BOTH else None
    prompt, prefix = ([4], None) if changes is BOTH else ([3, 1], 2)
    totals: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(4), repeat=3):
        total = 0.0
        for n, token in enumerate(tokens):
            logits = full_logits(model, [*prompt, *tokens[:n]], prefix, source)[:4]
            total += float(logits.log_softmax(-1)[token])
        totals[tokens] = total
    best = beam_search(model, prompt, 3, BeamSearch(64), source=source, runtime=CPU)
    assert tuple(best.tokens) == max(totals, key=totals.__getitem__)
    assert best.log_probability == pytest.approx(max(totals.values()), rel=1e-5)


def test_a_draft_proposes_for_a_prefix_decoder() -> None:
    model, draft = (random_model(tiny_config(name, **PREFIX)) for name in ("alibi", "rope"))
    prompt = PROMPTS[0]
    plain = [row[0] for row in generate(model, [prompt], 30, GREEDY, runtime=CPU)]
    drafted = speculate(model, Draft(draft, 3), prompt, 30, GREEDY, runtime=CPU)
    assert list(drafted) == plain


# --- filling


def filler(objective_name: str, **changes: Any) -> Filler:
    """Return a random model of an objective with the characters of TEXT."""
    tokenizer = CharTokenizer("".join(sorted(set(TEXT))))
    config = composed_config([f"objective={objective_name}", "model.block_size=64"])
    objective: Objective = OBJECTIVES.build(config.objective, tokenizer, 64)
    design = objective.design(config.objective, 64)
    model = random_model(replace(tiny_config("rope", block_size=64), **design), tokenizer.n_vocab)
    return Filler(model, objective, CPU, **changes)


def test_masks_are_filled_with_the_likeliest_tokens() -> None:
    one = filler("masked", top=4)
    filled = one.fill("to [MASK]e or [MASK]ot")
    encode, mask = one.objective.tokenizer.encode, one.objective.tokenizer.n_vocab
    tokens = [*encode("to "), mask, *encode("e or "), mask, *encode("ot")]
    with torch.inference_mode():
        logits = one.model(torch.tensor([tokens]))[0]
    for gap, index in zip(filled.gaps, (3, 9), strict=True):
        probabilities = logits[index, : one.model.n_ordinary].softmax(-1)
        best = probabilities.argsort(descending=True)[:4].tolist()
        assert [one.objective.tokenizer.encode(candidate.text) for candidate in gap] == [
            [t] for t in best
        ]
        assert [c.probability for c in gap] == pytest.approx(probabilities[best].tolist())
    texts = [gap[0].text for gap in filled.gaps]
    assert filled.text == f"to {texts[0]}e or {texts[1]}ot"


def test_spans_are_filled_one_after_the_other() -> None:
    one = filler("denoise", limit=4)
    with torch.no_grad():  # so that spans end by themselves too
        one.model.head.weight[one.model.n_ordinary :] *= 1.5
    filled = one.fill("to [MASK] or not [MASK]")
    encode, first = one.objective.tokenizer.encode, one.objective.tokenizer.n_vocab
    source = torch.tensor([[*encode("to "), first, *encode(" or not "), first + 1]])
    written, texts = [first], []
    with torch.inference_mode():
        memory = one.model.encode(source)
        for end in (first + 1, first + 2):
            span, probability = [], 1.0
            while True:
                logits = one.model(torch.tensor([written]), memory=memory)[0, -1]
                allowed = torch.full_like(logits, -math.inf)
                allowed[: one.model.n_ordinary] = logits[: one.model.n_ordinary]
                allowed[end] = logits[end]
                token = end if len(span) == 4 else int(allowed.argmax())
                probability *= float(allowed.softmax(-1)[token])
                written.append(token)
                if token == end:
                    break
                span.append(token)
            texts.append((one.objective.tokenizer.decode(span), probability))
    assert [(gap[0].text, gap[0].probability) for gap in filled.gaps] == [
        (text, pytest.approx(probability, rel=1e-4)) for text, probability in texts
    ]
    assert filled.text == f"to {texts[0][0]} or not {texts[1][0]}"


@pytest.mark.parametrize(
    ("objective", "text", "message"),
    [
        ("masked", "to be", r"gaps=0: there is no \[MASK\]; write one for each gap"),
        ("masked", "to [MASK]" + "o" * 70, "tokens=74: more than model.block_size=64"),
        ("masked", "Z[MASK]", "text='Z'.* at offset 0"),
        ("denoise", "[MASK]o" * 9, "gaps=9: the model knows 3 gaps at most"),
    ],
)
def test_texts_that_cannot_be_filled(objective: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filler(objective).fill(text)


# --- commands


@pytest.mark.parametrize("objective", ["prefix", "masked", "denoise"])
def test_train_fill_and_sample(cli: Cli, objective: str) -> None:
    trained = cli("train", *TINY, f"objective={objective}", "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    samples = Path("run/samples.txt").read_text()
    assert "step 6" in samples and "step 12" in samples
    again = cli("train", *TINY, f"objective={objective}", "hydra.run.dir=again")
    assert again.code == 0
    weights = [Path(run, "checkpoints/last/model.safetensors") for run in ("run", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    evaluated = cli("eval", "run")
    assert evaluated.code == 0, evaluated.err
    result = json.loads(Path("run/result.json").read_text())
    recorded = json.loads(Path("run/eval.json").read_text())["best"]
    assert recorded["val_loss"] == result["best_val_loss"]
    if objective != "denoise":  # which has sentinels beside the characters, of one byte each
        bits = recorded["val_loss"] / math.log(2)
        assert recorded["val_bits_per_byte"] == pytest.approx(bits)
    sampled = cli("sample", "run", "--prompt", "Line 1", "--max-new-tokens", "9")
    filled = cli("fill", "run", "--text", "Lin[MASK]", "--json")
    if objective == "masked":
        assert sampled.code == 2 and "use minigpt fill" in sampled.err
        assert samples.count("[") >= 2  # a masked token in each sample
    else:
        assert sampled.code == 0 and sampled.out.startswith("Line 1"), sampled.err
    if objective == "prefix":
        assert filled.code == 2 and filled.err.count("\n") == 1
        assert "use minigpt sample" in filled.err
    else:
        assert filled.code == 0, filled.err
        values = json.loads(filled.out)
        assert values["filled"] == "Lin" + values["gaps"][0][0]["text"]


def test_texts_of_a_file(cli: Cli) -> None:
    assert cli("train", *TINY, "objective=masked", "hydra.run.dir=run").code == 0
    Path("gaps.txt").write_text("Li[MASK]e\n\n[MASK]ox\n")
    done = cli("fill", "run", "--texts", "gaps.txt", "--top", "2")
    assert done.code == 0 and done.out.count("gap") == 2, done.err
    for arguments, message in (
        ((), "--text: give a text with gaps"),
        (("--text", "Line"), "--text: gaps=0: there is no [MASK]"),
        (("--text", "[MASK]", "--top", "0"), "--top=0: must be 1 or more"),
        (("--texts", "none.txt"), "--texts=none.txt: No such file"),
        (("--text", "[MASK]", "--mark", ""), "--mark=: empty"),
        (
            ("--text", "[MASK]", "--max-new-tokens", "3"),
            "--max-new-tokens: has no effect with objective=masked; leave it out",
        ),
    ):
        refused = cli("fill", "run", *arguments)
        assert refused.code == 2 and message in refused.err, refused.err
        assert refused.err.count("\n") == 1


def test_a_span_has_no_other_candidates(cli: Cli) -> None:
    assert cli("train", *TINY, "objective=denoise", "hydra.run.dir=run").code == 0
    refused = cli("fill", "run", "--text", "Li[MASK]", "--top", "3")
    assert refused.code == 2
    assert "--top: has no effect with objective=denoise; leave it out" in refused.err


def test_a_run_names_the_command_that_uses_it(cli: Cli) -> None:
    done = cli("train", *TINY, "objective=masked", "hydra.run.dir=run")
    assert "next       minigpt fill --text '[MASK]' run\n" in done.out, done.out
    assert cli("fill", "--text", "[MASK]", "run").code == 0


def test_init_keeps_the_objective(cli: Cli) -> None:
    for name in ("masked", "causal"):
        assert cli("train", *TINY, f"objective={name}", f"hydra.run.dir={name}").code == 0
    kept = [option for option in TINY if not option.startswith("model.")]
    done = cli("train", *kept, "init=masked", "hydra.run.dir=more")
    assert done.code == 0, done.err
    assert "name: masked" in Path("more/config.yaml").read_text()
    prefix = cli("train", *kept, "init=causal", "objective=prefix", "hydra.run.dir=prefix")
    assert prefix.code == 0, prefix.err
    refused = cli("train", *kept, "init=causal", "objective=masked", "hydra.run.dir=none")
    assert refused.code == 2 and refused.err.startswith(
        "minigpt: objective=masked: needs another model than objective=causal, with which "
    )


def test_options_without_effect_are_refused(cli: Cli) -> None:
    for arguments, message in (
        (("train", *TINY, "model.shared_embedding=false"), "has no encoder; use true"),
        (
            *(
                (
                    "train",
                    *TINY,
                    "objective=denoise",
                    "model.n_layer=2",
                    "model.unet_skips=true",
                    "model.n_encoder_layer=1",
                ),
            ),
            "connects layers, but model.n_layer=1",
        ),
        (("bench", "decode", "objective=denoise"), "bench decode measures causal models"),
    ):
        refused = cli(*arguments)
        assert refused.code == 2 and message in refused.err, refused.err
