"""Shared fixtures: a tiny model, tiny data, a run's config; and where the real data is."""

import json
import os
from pathlib import Path

import pytest
import torch
from support.config import TINY

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a Triton kernel is defined
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, or $DIVERSEEVOL_DATA."""
    folder = Path(os.environ.get("DIVERSEEVOL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set DIVERSEEVOL_DATA")
    return folder


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    from diverseevol_fast.demo.rows import generate_rows

    return generate_rows(90, seed=3)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, rows) -> Path:
    """A saved two-layer Llama with a byte-level BPE tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from diverseevol_fast.demo.small_llama import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = train_tokenizer([f"{row['instruction']}\n{row['output']}" for row in rows], vocabulary=400)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2, **TINY)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(tmp_path, rows) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path, data_file, tiny_model) -> dict:
    """The values of a run that takes a few seconds."""
    return {
        "full_data_path": str(data_file),
        "model_name_or_path": str(tiny_model),
        "output_dir": str(tmp_path / "out"),
        "model_max_length": 128,
        "max_tokens_per_batch": 1024,
        "val_set_size": 10,
        "init_label_num": 6,
        "n_round": 2,
        "n_query": 5,
        "train_args": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    }


@pytest.fixture
def judge_environment(monkeypatch):
    """A judge's key is set, and no proxy stands before the loopback."""
    from support.judge_fixtures import KEY

    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def files(tmp_path):
    """Three answers and their reference answers."""
    from support.judge_fixtures import Files

    return Files(tmp_path, 3)


@pytest.fixture
def two_groups():
    from support import model_families

    return model_families.two_groups()
