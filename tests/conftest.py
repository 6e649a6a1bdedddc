"""Shared fixtures: a tiny model, tiny data, a run's config; and where the real data is."""

import os
from pathlib import Path

import pytest
import torch
from support.config import quick_settings, save_tiny_llama, write_rows

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
    from diverseevol_fast.demo.small_llama import train_tokenizer

    tokenizer = train_tokenizer([f"{row['instruction']}\n{row['output']}" for row in rows], vocabulary=400)
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), tokenizer, seed=0)


@pytest.fixture
def data_file(tmp_path, rows) -> Path:
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def settings(tmp_path, data_file, tiny_model) -> dict:
    """The values of a run that takes a few seconds."""
    return quick_settings(data_file, tiny_model, output_dir=str(tmp_path / "out"))


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
