"""A tiny model's sizes, a small run's settings, rows and a config on the disk. Older environments load it, too."""

import json
from pathlib import Path

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Save rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def quick_settings(data: Path, model: Path, **more) -> dict:
    """The settings of a run of three rounds that takes a few seconds."""
    return {
        "full_data_path": str(data),
        "model_name_or_path": str(model),
        "model_max_length": 128,
        "max_tokens_per_batch": 1024,
        "val_set_size": 10,
        "init_label_num": 6,
        "n_round": 2,
        "n_query": 5,
        "train_args": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    } | more


def save_tiny_llama(folder: Path, tokenizer, seed: int) -> Path:
    """Save a two-layer Llama with random weights, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2, **TINY)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_config(folder: Path, settings: dict) -> Path:
    """Save settings as YAML."""

    import yaml

    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
