"""A finished run, a copy of it that a test may change, and a second model."""

import shutil

import pytest
from support.config import quick_settings, save_tiny_llama, write_config, write_rows

from diverseevol_fast.cli.main import main
from diverseevol_fast.models.load import load_tokenizer
from diverseevol_fast.runs.finished import read_run


@pytest.fixture(scope="session")
def three_rounds(tmp_path_factory, tiny_model, rows):
    """A finished run of three rounds, its data beside it: 80 candidates, pools of 6, 11 and 16 rows."""
    folder = tmp_path_factory.mktemp("three-rounds")
    data = write_rows(folder / "rows.jsonl", rows)
    quick = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    settings = quick_settings(data, tiny_model, output_dir=str(folder / "run"), train_args=quick)
    assert main(["run", str(write_config(folder, settings)), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def folder(three_rounds, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(three_rounds, tmp_path / "run")


@pytest.fixture
def run(folder):
    return read_run(folder)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory, tiny_model):
    """A model with the same shape and tokenizer, and other weights."""
    return save_tiny_llama(tmp_path_factory.mktemp("other-llama"), load_tokenizer(tiny_model), seed=9)
