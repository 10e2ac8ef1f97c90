"""Names that people bring from other projects, and ours for them.

From nanoGPT, minGPT, litgpt, lightning-hydra-template and Hugging Face. A table of data: an entry
only improves the message for a name that is not ours.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import NamedTuple


class Entry(NamedTuple):
    """`names`: foreign ones, separated by spaces; one with a dot is a full key, any other also the
    last part of one. `ours`: an option or a config group; empty if there is none.
    `hint`: sentences, where the meaning differs.
    """

    names: str
    ours: str
    hint: str = ""


IN_STEPS = "It is a number of steps, of trainer.batch_size * model.block_size tokens each."
ONE_DEVICE = "A run uses one device, trainer.device; several runs may train at once with -m."
OPTIONS = (
    # length, batches and intervals
    Entry("max_iters num_steps n_steps train_steps iters iterations steps", "trainer.max_steps"),
    Entry("epochs num_epochs n_epochs num_train_epochs", "trainer.max_steps", IN_STEPS),
    Entry("max_epochs min_epochs max_tokens", "trainer.max_steps", IN_STEPS),
    Entry("lr_decay_iters", "trainer.max_steps", "A schedule ends at the last step."),
    Entry("debug fast_dev_run", "trainer.max_steps", "trainer.max_steps=1 is a short run."),
    Entry("global_batch_size per_device_train_batch_size bs", "trainer.batch_size"),
    Entry(
        "gradient_accumulation_steps accumulate_grad_batches grad_accum",
        "trainer.grad_accum_steps",
        "trainer.batch_size is the whole batch: the micro-batch times these steps.",
    ),
    Entry("micro_batch_size", "trainer.grad_accum_steps", "It is the batch / micro-batch size."),
    Entry("eval_interval eval_steps eval.interval", "trainer.eval_every"),
    Entry("val_check_interval check_val_every_n_epoch", "trainer.eval_every", "It is in steps."),
    Entry("log_interval logging_steps log_every_n_steps", "trainer.log_every"),
    Entry("save_interval save_steps", "trainer.checkpoint_every"),
    Entry(
        "always_save_checkpoint", "trainer.checkpoint_every", "The best checkpoint is always kept."
    ),
    Entry(
        "eval_iters eval.max_iters limit_val_batches",
        "",
        "An evaluation covers the whole validation split; minigpt eval RUN --random-batches 50 "
        "estimates it as nanoGPT does.",
    ),
    # the learning rate and the optimizer
    Entry("learning_rate max_lr peak_lr", "optimizer.lr"),
    Entry("min_lr", "schedule.final_fraction", "It is min_lr / learning_rate."),
    Entry("decay_lr", "schedule", "schedule=constant does not decay."),
    Entry("scheduler lr_scheduler lr_scheduler_type", "schedule"),
    Entry("warmup_iters lr_warmup_steps warmup", "schedule.warmup_steps"),
    Entry("warmup_ratio lr_warmup_fraction", "schedule.warmup_fraction"),
    Entry("wd", "optimizer.weight_decay"),
    Entry("max_norm max_grad_norm grad_norm_clip gradient_clip_val", "optimizer.grad_clip"),
    Entry("adam_beta1", "optimizer.beta1"),
    Entry("adam_beta2", "optimizer.beta2"),
    Entry("betas", "optimizer.beta1", "The other one is optimizer.beta2."),
    Entry("optim", "optimizer"),
    # the model
    Entry("model_type model_name", "model"),
    Entry("n_ctx n_positions max_position_embeddings max_seq_length", "model.block_size"),
    Entry("max_seq_len seq_len seq_length context_length context", "model.block_size"),
    Entry("n_layers num_layers num_hidden_layers depth", "model.n_layer"),
    Entry("n_heads num_heads num_attention_heads heads", "model.n_head"),
    Entry("n_query_groups num_key_value_heads n_kv_heads", "model.n_kv_head"),
    Entry("hidden_size d_model dim embed_dim emb_dim", "model.n_embd"),
    Entry("head_dim d_kv", "model.head_size"),
    Entry("embd_pdrop resid_pdrop attn_pdrop", "model.dropout", "One rate is used everywhere."),
    Entry("attn_bias attention_bias qkv_bias", "model.bias"),
    Entry("parallel_residual use_parallel_residual parallel_attn", "model.block"),
    Entry("norm_qk", "model.qk_norm"),
    Entry("norm_class_name", "model.norm.kind"),
    Entry("norm_eps rms_norm_eps layer_norm_eps layer_norm_epsilon", "model.norm.eps"),
    Entry("mlp_class_name hidden_act activation activation_function", "ffn"),
    Entry(
        "intermediate_size n_inner", "model.ffn.expansion", "It is the hidden width / model.n_embd."
    ),
    Entry("n_expert_per_token num_experts_per_tok", "model.ffn.n_active", "Needs ffn=moe."),
    Entry("rope_base rope_theta", "model.positional.base", "Needs positional=rope."),
    Entry("rotary_percentage", "model.positional.fraction", "Needs positional=rope."),
    Entry("sliding_window_size", "model.attention.window", "Needs attention=sliding_window."),
    Entry("attention_logit_softcapping attn_logit_softcapping", "model.logit_softcap"),
    Entry("final_logit_softcapping", "model.final_softcap"),
    Entry("tie_embeddings tie_word_embeddings", "embedding", "It is tied or untied."),
    Entry("vocab_size padded_vocab_size", "tokenizer.vocab_size", "Needs tokenizer=bpe."),
    # data, runs and trackers
    Entry("dataset", "data", "Your own text is data=text data.path=FILE."),
    Entry("data_dir", "data.dir", "Your own text is data=text data.path=FILE."),
    Entry("num_workers pin_memory", "", "Batches are read without worker processes."),
    Entry("out_dir output_dir work_dir", "hydra.run.dir", "name=NAME names the run in runs/."),
    Entry("wandb_run_name run_name task_name", "name"),
    Entry("wandb_log", "logger", "logger=wandb turns it on, logger=none off."),
    Entry("wandb_project logger.wandb.project", "logger.project"),
    Entry("report_to logger_name", "logger"),
    Entry("init_from", "resume", "init=PATH starts a new run from trained weights."),
    Entry("ckpt_path resume_from_checkpoint", "resume", "It is a run directory, or latest."),
    Entry("seed_everything random_seed manual_seed", "seed"),
    Entry("hparams_search", "", "Search with minigpt tune."),
    Entry("eval_only train test", "", "minigpt train trains; minigpt eval RUN evaluates."),
    # the machine
    Entry("dtype fp16 bf16 amp mixed_precision", "trainer.precision", "It is fp32 or bf16."),
    Entry("accelerator", "trainer.device"),
    Entry("devices num_nodes strategy", "", ONE_DEVICE),
    Entry("deterministic", "", "On a CPU, runs of one seed and trainer.threads are bit-equal."),
    Entry("max_new_tokens", "trainer.sample_tokens"),
)

GPU = "Choose one GPU with the environment variable CUDA_VISIBLE_DEVICES, and use cuda."
FP16 = "fp16 is not supported, since it needs loss scaling; use bf16, or fp32."
# Foreign values (patterns, separated by spaces), by the last part of our key.
VALUES = (
    ("device", "cuda:* gpu:* [0-9]*", GPU),
    ("device", "gpu", "Use cuda."),
    ("precision", "float16 fp16 half 16 16-* fp16-*", FP16),
    ("precision", "bfloat16 bf16-*", "Use bf16 (autocast, with fp32 weights)."),
    ("precision", "float32 float full single 32 32-* fp32-*", "Use fp32."),
    ("trainer", "gpu mps", "Did you mean trainer.device=cuda or trainer.device=mps?"),
    ("trainer", "cpu", "Did you mean trainer.device=cpu?"),
    ("trainer", "ddp* fsdp*", ONE_DEVICE),
    ("logger", "csv", "metrics.jsonl is always written; logger=none writes nothing else."),
    ("backend", "nccl gloo", f"backend= is the implementation of attention. {ONE_DEVICE}"),
    ("optimizer", "adam sgd", "Did you mean adamw?"),
    ("schedule", "none", "Did you mean constant?"),
    ("positional", "rotary", "Did you mean rope?"),
    ("norm", "rmsnorm rms layernorm ln", "The kind of norm is model.norm.kind; norm is its place."),
)

# Foreign flags of commands that use a trained run, such as nanoGPT's sample.py.
FLAGS = (
    Entry("start input", "--prompt"),
    Entry("file prompt_file", "--prompts"),
    Entry("num_return_sequences", "--num-samples"),
    Entry("max_tokens max_length num_tokens length", "--max-new-tokens"),
    Entry("temp", "--temperature"),
    Entry("eval_iters", "--random-batches"),
    Entry("gpu", "--device"),
    Entry("out_dir checkpoint_dir ckpt_path init_from", "", "Give the run directory as RUN."),
)


def our_option(key: str, value: str = "") -> str:
    """Return ' Did you mean OURS? Hint.' for an option of another project, or ''."""
    full = [entry for entry in OPTIONS if key in entry.names.split()]
    short = key.rpartition(".")[2]
    for entry in full or [entry for entry in OPTIONS if short in entry.names.split()]:
        hint = our_value(entry.ours, value) or _sentence(entry.hint)
        return (f" Did you mean {entry.ours}?" if entry.ours else "") + hint
    return ""


def our_value(key: str, value: str) -> str:
    """Return what to use for a value of another project, or ''."""
    short = key.rpartition(".")[2]
    for name, patterns, hint in VALUES:
        if name == short and any(fnmatchcase(value, pattern) for pattern in patterns.split()):
            return _sentence(hint)
    return ""


def our_flag(flag: str, flags: Collection[str]) -> str:
    """Return ' Did you mean OURS?' for a flag of another project, or ''. `flags`: ours."""
    name = flag.lstrip("-").replace("-", "_")
    for entry in FLAGS:
        if name in entry.names.split() and (not entry.ours or entry.ours in flags):
            return f" Did you mean {entry.ours}?" if entry.ours else _sentence(entry.hint)
    return ""


def _sentence(text: str) -> str:
    return text and f" {text}"
