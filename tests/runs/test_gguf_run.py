"""A run, its report and its answers with a model in a GGUF file."""

import json
import shutil
from pathlib import Path

import pytest
from support.config import write_config, write_rows
from support.gguf_files import CHAT_TEMPLATE, write_gguf
from support.runs import picks
from transformers import AutoTokenizer, LlamaForCausalLM

from diverseevol_fast.cli.main import main
from diverseevol_fast.runs.finished import read_run


@pytest.fixture
def gguf(tmp_path, tiny_model, monkeypatch) -> Path:
    """The tiny model as a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    write_gguf(
        file, LlamaForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model), pre="gpt-2"
    )
    return file


def test_a_run_picks_what_it_picks_with_the_folder(tmp_path, settings, tiny_model, gguf):
    for name, model in (("folder", tiny_model), ("file", gguf)):
        config = settings | {"model_name_or_path": str(model), "output_dir": str(tmp_path / name)}
        (tmp_path / f"{name}-config").mkdir()
        assert main(["run", str(write_config(tmp_path / f"{name}-config", config)), "--quiet"]) == 0
    assert picks(tmp_path / "file") == picks(tmp_path / "folder")


def test_a_run_goes_on_where_the_file_was_moved_and_stops_where_it_changed(
    tmp_path, settings, gguf, tiny_model, capsys
):
    settings |= {"model_name_or_path": str(gguf), "n_round": 1}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0
    moved = Path(shutil.move(gguf, tmp_path / "moved.gguf"))
    settings |= {"model_name_or_path": str(moved), "n_round": 2}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0
    capsys.readouterr()
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data[0] += 1
    write_gguf(moved, model, AutoTokenizer.from_pretrained(tiny_model), pre="gpt-2")
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
    assert "base_model: other content" in capsys.readouterr().err


@pytest.mark.slow
def test_report_and_answers(tmp_path, settings, gguf):
    settings |= {"model_name_or_path": str(gguf), "n_round": 1, "template": "chat", "output_dir": str(tmp_path / "run")}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0
    run = read_run(tmp_path / "run")
    assert AutoTokenizer.from_pretrained(run.model_folder(1)).chat_template == CHAT_TEMPLATE
    questions = write_rows(
        tmp_path / "my_questions.jsonl", [{"question_id": i, "text": f"What is {i}?"} for i in range(3)]
    )
    answers = tmp_path / "answers"
    generate = [
        "generate",
        str(tmp_path / "run"),
        "--questions",
        str(questions),
        "--rounds",
        "1",
        "--max-new-tokens",
        "8",
    ]
    assert main([*generate, "--output", str(answers), "--quiet"]) == 0
    (file,) = answers.rglob("rd_1.jsonl")
    assert [json.loads(line)["question_id"] for line in file.read_text().splitlines()] == [0, 1, 2]
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--answers", str(file), "--output", str(page), "--quiet"]) == 0
    assert "my_test: the first 3 questions" in page.read_text()
