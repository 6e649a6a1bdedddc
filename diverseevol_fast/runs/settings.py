"""What each key of the config means: the one table that `diverseevol init` writes and the help of `run` prints."""

import textwrap
from dataclasses import MISSING, fields
from typing import Any

import yaml

from .._common.dtypes import DTYPES
from ..strategies import STRATEGIES
from .config import Config

WIDTH = 100  # characters in a line of help or of a comment

COMMON = {  # by heading: the keys that a new user sets
    "Data and model": {
        "full_data_path": "data set: JSON list, JSON lines, .gz, .parquet, a datasets folder, builtin:quickstart",
        "model_name_or_path": "base model: a local folder, a hub name, a .gguf file, builtin:small-llama",
        "model_max_length": "tokens; longer rows are cut, and counted",
        "columns": "the data's own names, such as {instruction: question, output: answer}",
        "skip_broken": "true leaves broken lines and malformed rows aside; row numbers count the rows that are left",
        "skip_empty": "true leaves rows with an empty instruction or output aside instead of refusing them",
    },
    "Where the run goes": {
        "result_dir_name": "the run's folder is evol_res/<result_dir_name>",
        "output_dir": "the run's folder, instead of result_dir_name",
    },
    "What is selected": {
        "evol_schedule_name": f"the strategy: {', '.join(STRATEGIES)}",
        "init_label_num": "rows of the initial pool, drawn at random",
        "n_round": "rounds of selection after that",
        "n_query": "rows that each round adds to the pool",
        "seed": "of the initial pool, the validation rows and training",
    },
    "How it is judged": {
        "val_set_size": "rows held out, never in the pool, for a loss in every round",
        "held_out_groups": "{key: [values]}: rows with these values are in no pool and have a loss of their own",
    },
    "Training": {
        "train_args": "any of transformers.TrainingArguments; what is not here is at its default",
        "dtype": f"of the weights: {', '.join(DTYPES)}, auto",
        "peft": "trains a LoRA adapter instead of all weights: settings of peft.LoraConfig, such as {r: 8}",
    },
}
FURTHER = {
    "template": "alpaca, plain, chat, or a text file that ends in {output}; none: alpaca, or chat for conversations",
    "max_tokens_per_batch": "of an embedding batch, padding included; auto: 2048 on a CPU, by a probe on a GPU",
    "embed_dtype": "of the weights while candidates are embedded, such as bfloat16; none: as trained",
    "keep_embeddings": "true keeps each round's embeddings.npy",
    "lazy_rounds": "K-Center: true embeds, from round 2 on, only the rows that can be picked",
    "lazy_bound": "of lazy rounds: residual, or drift, which assumes less and embeds more rows",
    "lazy_probe": "of lazy rounds: rows at random whose movement bounds that of the others",
    "lazy_audit": "of lazy rounds: rows at random that are embedded to see whether any would have been picked",
    "whiten_n_components": "K-Center: whiten the embeddings to this many directions; false: as they are",
    "max_random_times": "VendiSampling: how many random batches are compared; at least 1",
    "vendi_argmax_rank": "VendiSampling: which of them is taken; 0 is the most diverse, -1 the least",
    "attn_implementation": "of transformers: eager, sdpa, flash_attention_2",
    "report_to": "where the Trainer reports: none, tensorboard, wandb",
    "cache_dir": "where models from the hub and converted .gguf files are kept",
    "trust_remote_code": "true runs code that comes with the model",
}
MEANINGS = {key: meaning for group in (*COMMON.values(), FURTHER) for key, meaning in group.items()}
# What most users set, at transformers' defaults.
TRAIN_ARGS = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 5.0e-5}
DEFAULTS = {  # MISSING for a required key
    f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(Config)
}


def help_text() -> str:
    """A line for each key, with its default and its meaning."""
    lines = ["keys of the config, their defaults, and what they are for:"]
    for key, meaning in MEANINGS.items():
        lines += textwrap.wrap(
            f"{key} ({_default_text(key)}): {meaning}", WIDTH, initial_indent="  ", subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def config_text(heading: str, values: dict[str, Any]) -> str:
    """A commented YAML config: `values`, the other common keys at their defaults, the rest switched off by a #."""
    lines = _comment(heading)
    settings = DEFAULTS | {"train_args": TRAIN_ARGS} | values
    for heading, keys in COMMON.items():
        lines += ["", f"# --- {heading} ---"]
        for key in keys:
            lines += [*_comment(MEANINGS[key]), ("#" if settings[key] is None else "") + _entry(key, settings[key])]
    lines += ["", "# --- Less often needed ---"]
    for key, meaning in FURTHER.items():
        lines += [*_comment(meaning), f"#{_entry(key, settings[key])}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _default_text(key: str) -> str:
    default = DEFAULTS[key]
    if default is MISSING:
        return "required"
    return "not set" if default is None else _dumped(default)


def _entry(key: str, value: Any) -> str:
    """The key and its value as YAML; nothing stands after the colon where there is no value."""
    if value is MISSING:
        return f"{key}:  # required"
    return f"{key}:" if value is None else _dumped({key: value})


def _dumped(value: Any) -> str:
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("...\n").rstrip()
