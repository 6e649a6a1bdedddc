"""Embeddings by one fixed model: of which texts, in which file, and what happens where the file cannot be written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.data import data_of
from support.public_text import public_text

from diverseevol_fast.cli.main import main
from diverseevol_fast.data.dataset import load_data
from diverseevol_fast.evaluate import evaluation_encoder
from diverseevol_fast.evaluate.diversity import measure_run
from diverseevol_fast.evaluate.evaluation_encoder import fixed_embeddings, fixed_space, fixed_texts, is_own, load_json
from diverseevol_fast.models.load import load_encoder, load_tokenizer
from diverseevol_fast.runs.finished import read_run


def test_embeddings_are_the_base_models_of_the_candidates_texts(run, rows, tiny_model):
    values = fixed_embeddings(run)
    assert values.shape == (80, 32)
    assert values.dtype == torch.float32
    model, tokenizer = load_encoder(tiny_model), load_tokenizer(tiny_model)
    validation = set(range(90)) - set(run.candidates.tolist())
    assert len(validation) == 10
    for i, row in enumerate(run.candidates):
        text = public_text(rows[row]["instruction"], rows[row].get("input", ""), rows[row]["output"])
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :128]
        with torch.inference_mode():
            expected = model(ids).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(values[i], expected, atol=1e-5, rtol=1e-5)


def test_texts_have_no_end_token_and_one_space_before(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    data = data_of(
        [
            {"instruction": "A", "output": " C \n"},
            {"instruction": "A", "output": "C</s>"},
            {"instruction": "A", "output": "\n"},
        ]
    )
    prompt, said, end_in_the_data, nothing_said = (
        (
            " Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nA\n\n### Response:"
        ),
        *fixed_texts(data, np.arange(3), tokenizer),
    )
    assert (said, end_in_the_data, nothing_said) == (prompt + "\n C", prompt + "\nC</s>", prompt)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1."}]
    two_turns = data_of([{"messages": turns + turns}])
    assert fixed_texts(two_turns, np.arange(1), tokenizer) == [" <user>One?<assistant>1.</s><user>One?<assistant>1."]


def test_texts_are_those_of_the_public_implementation(shared_data, tiny_model, rows):
    data = data_of([*load_data(str(shared_data / "alpaca_debug_6.json"))[0].rows, *rows])
    expected = [public_text(row["instruction"], row.get("input"), row["output"]) for row in data.rows]
    assert {"### Input:" in text for text in expected} == {True, False}
    assert fixed_texts(data, np.arange(len(data.rows)), load_tokenizer(tiny_model)) == expected


def test_embeddings_of_other_texts_do_not_compare(run, monkeypatch):
    before = fixed_space(run)
    assert is_own(run, before)
    monkeypatch.setattr(evaluation_encoder, "TEXTS", before.provenance["texts"] + 1)
    assert not is_own(run, before)
    assert is_own(run, fixed_space(run))


def test_finished_embeddings_are_opened_without_the_model(run, folder, tiny_model, tmp_path, monkeypatch):
    spaces = [
        None,
        fixed_space(run, str(shutil.copytree(tiny_model, tmp_path / "m"))),
        replace(fixed_space(run), max_length=32),
    ]
    values = [fixed_embeddings(run, space).clone() for space in spaces]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert len(list(folder.glob("diversity/embeddings*.npy"))) == 2
    monkeypatch.setattr("diverseevol_fast.evaluate.evaluation_encoder.load_for_embedding", None)
    for space, before in zip(spaces, values, strict=True):
        assert torch.equal(fixed_embeddings(read_run(folder), space), before)
    (folder / "diversity/embeddings.npy").unlink()
    with pytest.raises(TypeError):  # the model is loaded, because the file is gone, even though its record is there
        fixed_embeddings(run)


def test_a_record_that_is_not_text_is_none(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff{")
    assert load_json(tmp_path / "x.json") == {}


KILLED = """
import os, signal, sys
import diverseevol_fast.embedding.store as store
from diverseevol_fast.cli.main import main

flush, calls = store.FileStore.flush, []

def killed(self):
    flush(self)
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

store.SECONDS_BETWEEN_FLUSHES = 0.0
store.FileStore.flush = killed
sys.exit(main(sys.argv[1:]))
"""


def test_killed_while_embedding_it_goes_on(run, folder, three_rounds, tmp_path, capsys):
    process = subprocess.run([sys.executable, "-c", KILLED, "diversity", str(folder)], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL
    progress = folder / "diversity/embeddings.npy.progress"
    finished = progress.read_text().split()[-3:]
    assert all(number.isdigit() for number in finished)
    assert not (folder / "diversity/embeddings.npy").exists()
    part = np.load(folder / "diversity/embeddings.npy.part", mmap_mode="r+")
    done = np.flatnonzero((part != 0).any(axis=1))
    assert 0 < len(done) < 80
    part[done[0]] += 1  # embedding the row again would undo this
    part.flush()
    assert main(["diversity", str(folder), "--random", "1", "--quiet"]) == 0
    resumed = np.load(folder / "diversity/embeddings.npy")
    whole = fixed_embeddings(read_run(shutil.copytree(three_rounds, tmp_path / "whole"))).numpy()
    assert np.flatnonzero(np.abs(resumed - whole).max(axis=1) > 0.5).tolist() == [done[0]]
    assert not progress.exists()


@pytest.mark.parametrize("way", ["a file for the folder", "read-only"])
def test_a_run_that_cannot_be_written_to(way, run, folder, three_rounds, tmp_path, monkeypatch, caplog):
    whole = measure_run(read_run(shutil.copytree(three_rounds, tmp_path / "whole")), random=1)
    if way == "read-only":

        def replace(*_args):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(os, "replace", replace)
    else:
        (folder / "diversity").write_text("")
    embedded = []
    embed = evaluation_encoder.embed
    monkeypatch.setattr(
        evaluation_encoder, "embed", lambda *args, **more: embedded.append(more["store"]) or embed(*args, **more)
    )
    assert measure_run(run, random=1) == whole
    assert fixed_embeddings(run).shape == (80, 32)  # report calls it next
    assert embedded == [folder / "diversity/embeddings.npy", "host"]
    for name in ("embeddings.npy", "measures.json"):
        assert any(text.startswith(f"{folder / 'diversity' / name}: not kept") for text in caplog.messages)
    assert not (folder / "diversity/measures.json").exists()


def test_a_full_disk_is_not_taken_for_a_folder_of_others(run, monkeypatch):
    def replace(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        measure_run(run, random=0)


def test_another_runs_embeddings_of_the_same_rows_are_copied(three_rounds, tmp_path, monkeypatch):
    first, second = (read_run(shutil.copytree(three_rounds, tmp_path / name)) for name in ("first", "second"))
    space = replace(fixed_space(first), plain_texts=True)
    values = fixed_embeddings(first, space).clone()
    monkeypatch.setattr(evaluation_encoder, "_embedded", pytest.fail)
    folder = first.state.folder / "diversity"
    assert torch.equal(fixed_embeddings(second, space, others=[tmp_path / "none", folder]), values)
    assert torch.equal(fixed_embeddings(second, space), values)  # it has a file of its own now
    for path in folder.iterdir():
        path.unlink()
    assert torch.equal(fixed_embeddings(second, space), values)


def test_another_runs_embeddings_of_other_rows_are_not_taken(three_rounds, tmp_path, monkeypatch):
    first, second = (read_run(shutil.copytree(three_rounds, tmp_path / name)) for name in ("first", "second"))
    space = replace(fixed_space(first), plain_texts=True)
    fixed_embeddings(first, space)
    folder = first.state.folder / "diversity"
    (record,) = folder.glob("*.source.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"rows_sha256": "another"}))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    values = fixed_embeddings(second, space, others=[folder])
    assert len(values) == len(second.candidates)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not os.path.samefile(next(folder.glob("*.npy")), next((second.state.folder / "diversity").glob("*.npy")))
