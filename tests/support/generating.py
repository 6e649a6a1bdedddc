"""Runs and question files for the tests of generated answers."""

import json
import shutil
from pathlib import Path

import torch
from support.config import TINY, write_config

from diverseevol_fast.cli.main import main

QUESTIONS = [
    {"question": "Name three colours.", "input": "red, green, blue", "id": "a"},
    {"question": "What is " + "very " * 25 + "long?", "id": "b"},
    {"instruction": "Reverse the word.", "input": "", "id": 7, "kept": {"as": ["it", 1.5, None]}},
    {"question": "Why?", "id": "d"},
    {"question": "Größe 😀 \u2028 \u0000 {curly}?", "id": "e"},
]


def talkative(folder, tiny_model):
    """The tiny model with weights so large that what it says depends on every token and its position."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_model, folder)
    torch.manual_seed(1)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.4, **TINY
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def make_run(folder, rows, model, **settings):
    settings = {
        "full_data_path": str(write_lines(folder / "rows.jsonl", rows)),
        "model_name_or_path": str(model),
        "output_dir": str(folder / "a-run"),
        "model_max_length": 128,
        "init_label_num": 20,
        "n_round": 1,
        "n_query": 5,
        "train_args": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    } | settings
    assert main(["run", str(write_config(folder, settings)), "--quiet"]) == 0
    return folder / "a-run"


def answers(folder, r=0):
    return [record["answer"] for record in read_lines(folder / f"rd_{r}.jsonl")]


def metrics(folder, r=0):
    return json.loads((folder / f"rd_{r}.jsonl.json").read_text(encoding="utf-8"))["metrics"]
