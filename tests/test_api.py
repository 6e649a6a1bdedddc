"""The functions of the package's top level: what they take and return, and that the command line says the same."""

import json

import numpy as np
import pytest
import torch
from support.config import write_config

import diverseevol_fast
from diverseevol_fast import InputError, diversity, embed, generate, kcenter, run, select
from diverseevol_fast.cli.main import as_options, main
from diverseevol_fast.cli.parser import build_parser
from diverseevol_fast.ops import reference


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)


def test_select_of_rows_in_memory_writes_nothing_and_picks_what_the_command_picks(
    rows, data_file, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = select(rows, 7, model=tiny_model, max_length=512)
    assert sorted(tmp_path.iterdir()) == [data_file]
    assert found.rows == [rows[index] for index in found.indices]
    assert (found.output, found.picks, found.embeddings) == (None, None, None)
    command = ["select", "--data", str(data_file), "--model", str(tiny_model), "-n", "7", "--output", "o.jsonl"]
    assert main([*command, "--quiet"]) == 0
    picks = json.loads((tmp_path / "o.picks.json").read_text())
    assert (picks["indices"], picks["sqdist"]) == (found.indices, found.sqdist)
    assert repr(found).startswith("Selection(7 rows, ")
    assert len(repr(found)) < 80


def test_select_writes_what_the_command_writes(data_file, tiny_model, tmp_path):
    found = select(str(data_file), 4, model=str(tiny_model), output=tmp_path / "o.jsonl", trainer="trl")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "completion"}] * 4
    assert json.loads(found.picks.read_text())["indices"] == found.indices
    assert found.embeddings == tmp_path / "o.embeddings.npy"
    assert found.trainer_notes[0].startswith("TRL: ")
    assert json.loads(json.dumps(found.to_dict()))["output"] == str(tmp_path / "o.jsonl")


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "list", "tensor"])
def test_select_takes_arrays_of_any_real_numbers(x, kind):
    given = {"list": x.tolist(), "tensor": torch.from_numpy(x)}.get(kind)
    given = x.astype(kind) if given is None else given
    picks, _ = reference.kcenter(torch.from_numpy(x.astype(np.float16) if kind == "float16" else x), 6, [3, 5])
    assert select(n=6, embeddings=given, selected=[3, 5]).indices == picks
    assert kcenter(given, 6, [3, 5]).indices.tolist() == picks


@pytest.mark.parametrize("trainer", ["trl", "llama-factory", "axolotl"])
def test_texts_are_refused_for_a_trainer_and_nothing_is_written(trainer, tmp_path):
    with pytest.raises(
        InputError, match=f"^trainer {trainer}: trains on responses, which rows of the text schema lack$"
    ):
        select(["one", "two", "three"], 2, embeddings=np.eye(3), output=tmp_path / "o.jsonl", trainer=trainer)
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_that_is_none_is_refused(rows, x, tmp_path):
    with pytest.raises(InputError, match=r"^trainer: expected trl, llama-factory or axolotl, got lora$"):
        select(rows, 2, embeddings=x, output=tmp_path / "o.jsonl", trainer="lora")


def test_select_without_n_is_refused(x):
    with pytest.raises(InputError, match=r"^n: is missing, how many rows to pick$"):
        select(embeddings=x)


def test_select_takes_texts_whatever_they_hold(tiny_model, tmp_path):
    texts = ["one", "a\0b", "two words", "/", str(tmp_path), "three more words"]
    found = select(texts, np.int64(3), model=tiny_model, output=tmp_path / "o.jsonl")
    assert [row["text"] for row in found.rows] == [texts[index] for index in found.indices]


def test_select_takes_a_dataset(rows, tiny_model):
    datasets = pytest.importorskip("datasets")
    plain = [{name: row[name] for name in ("instruction", "input", "output")} for row in rows]
    found = select(datasets.Dataset.from_list(plain), 5, model=tiny_model)
    assert found.indices == select(plain, 5, model=tiny_model).indices
    assert found.rows == [plain[index] for index in found.indices]


def test_another_arrays_output_is_not_replaced(x, rows, tmp_path):
    def again(values):
        return select(rows[:60], 3, embeddings=values, output=tmp_path / "o.jsonl").indices

    first = again(x)
    assert again(x) == first
    with pytest.raises(InputError, match=r"o\.picks\.json: exists .* overwrite=True"):
        again(x + 1)


def test_embed_takes_a_model_by_its_name(rows, tiny_model, tmp_path):
    by_name = embed(rows, tiny_model, max_length=64, store=tmp_path / "x.npy")
    assert torch.equal(by_name.values, embed(rows, str(tiny_model), max_length=64).values)
    assert "model_sha256" in json.loads((tmp_path / "x.npy.json").read_text())
    with pytest.raises(InputError, match="loaded already"):
        embed(rows, torch.nn.Identity(), dtype="bfloat16")


def test_run_takes_a_mapping_and_overrides(settings, tmp_path):
    finished = run(settings, n_round=1, evol_schedule_name="RandomSampling")
    assert (finished.rounds, len(finished.pool(1))) == (2, 11)
    assert finished.metrics(1)["train"]["validation_loss"] > 0
    assert (finished.model_folder(1) / "config.json").is_file()
    assert [entry["round"] for entry in finished.to_dict()["rounds"]] == [0, 1]
    assert repr(finished) == f"FinishedRun({settings['output_dir']!r}, 2 rounds, RandomSampling)"
    (found,) = diversity(finished.folder, random=1)
    assert [row["round"] for row in found.table()] == [0, 1]
    assert found.table()[1]["size"] == 11
    questions = tmp_path / "vicuna.jsonl"
    questions.write_text('{"question_id": 1, "text": "Why?"}\n')
    answers = generate(finished.folder, questions, output=tmp_path / "answers", max_new_tokens=2)
    assert [(one.round, one.metrics["questions"], one.finished_before) for one in answers] == [
        (0, 1, False),
        (1, 1, False),
    ]
    again = generate(finished.folder, [questions], output=tmp_path / "answers", max_new_tokens=2)
    assert [one.finished_before for one in again] == [True, True]
    assert again[0].to_dict() == answers[0].to_dict()


def test_no_message_of_a_function_spells_an_option(rows, tiny_model, x, tmp_path):
    empty = [*rows[:5], {"instruction": "", "output": "x"}]
    calls = [
        lambda: select(rows, 3),
        lambda: select(rows, 999, model=tiny_model),
        lambda: select(empty, 3, model=tiny_model),
        lambda: select(rows, 3, embeddings=x),
        lambda: select(n=3, embeddings=x, output=tmp_path / "o.jsonl"),
        lambda: diversity(tmp_path, random=-1),
        lambda: generate(tmp_path, []),
        lambda: run({}),
        lambda: diverseevol_fast.judge(tmp_path / "a", tmp_path / "b", base_url="x", model="m", api_key_env="K"),
        lambda: diverseevol_fast.score(tmp_path / "absent.jsonl", resamples=0),
        lambda: diverseevol_fast.report(tmp_path),
    ]
    for call in calls:
        with pytest.raises(InputError) as raised:
            call()
        assert "--" not in str(raised.value)


def test_the_command_line_puts_options_in_the_place_of_keywords():
    select, run = (build_parser().command(name) for name in ("select", "run"))
    assert as_options("o: exists; replace it: overwrite=True", select) == "o: exists; replace it: --overwrite"
    assert as_options("output: expected a file, got keep_embeddings=False", select) == (
        "--output: expected a file, got --no-keep-embeddings"
    )
    assert as_options("n: expected 3", select) == "-n: expected 3"
    assert as_options("the output: as it is", select) == "the output: as it is"
    assert as_options("rows are empty: skip_empty=True, restart=True", run) == (
        "rows are empty: --skip_empty true, --restart"
    )


@pytest.mark.parametrize("both", [False, True])
def test_the_older_name_of_a_key_is_read(settings, rows, tmp_path, both, capsys):
    settings["unseen"] = {"family": [rows[0]["family"]]}
    if both:
        settings["held_out_groups"] = settings["unseen"]
        assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
        assert "unseen is the older name of held_out_groups" in capsys.readouterr().err
    else:
        finished = run(settings, n_round=0, val_set_size=0, model_max_length=256)
        assert finished.config.held_out_groups == settings["unseen"]
        assert "held_out_groups_loss" in finished.metrics(0)["train"]
