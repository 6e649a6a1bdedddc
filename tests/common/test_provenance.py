"""What select is given belongs together, and what it writes replaces nothing of another input."""

import json
import os
import stat
import subprocess
import threading

import numpy as np
import pytest
from support.runs import DIVERSEEVOL

from diverseevol_fast import kcenter
from diverseevol_fast._common import provenance
from diverseevol_fast._common.errors import InputError
from diverseevol_fast._common.files import atomic_path, locked, write_json
from diverseevol_fast.cli.main import main
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer


@pytest.fixture
def other_data(tmp_path, rows):
    """As many rows, in another order."""
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]), encoding="utf-8")
    return path


@pytest.fixture
def embeddings(tmp_path, data_file, tiny_model):
    path = tmp_path / "x.npy"
    assert main(["embed", "--data", str(data_file), "--model", str(tiny_model), "--output", str(path), "--quiet"]) == 0
    return path


def select(*arguments) -> int:
    return main(["select", "--quiet", *map(str, arguments)])


def refused(capsys, words, *arguments):
    capsys.readouterr()
    assert select(*arguments) == 2
    error = capsys.readouterr().err
    for word in words if isinstance(words, list) else [words]:
        assert word in error


def test_embeddings_of_other_data_are_refused(embeddings, data_file, other_data, tmp_path, capsys):
    both = ["--embeddings", embeddings, "-n", 5, "--output", tmp_path / "o.jsonl"]
    words = [f"--embeddings {embeddings}: is of other data than data {other_data}", "--allow-other-data"]
    refused(capsys, words, *both, "--data", other_data)
    assert not (tmp_path / "o.jsonl").exists()
    assert select(*both, "--data", data_file) == 0
    assert select(*both, "--data", other_data, "--allow-other-data", "--overwrite") == 0


def test_embeddings_that_took_the_place_of_others_are_refused(embeddings, tmp_path, capsys):
    np.save(embeddings, np.zeros((7, 4), dtype=np.float32))
    refused(
        capsys,
        "x.npy.json: is about 90 embeddings, but x.npy has 7",
        "--embeddings",
        embeddings,
        "-n",
        1,
        "--picks",
        tmp_path / "p.json",
    )


def test_picks_of_other_data_are_refused(embeddings, data_file, other_data, tiny_model, tmp_path, capsys):
    first = tmp_path / "first.picks.json"
    assert select("--data", other_data, "--model", tiny_model, "-n", 5, "--output", tmp_path / "first.jsonl") == 0
    for of_data in (["--data", data_file], []):  # without it the embeddings say what they are of
        refused(
            capsys,
            f"--selected {first}: is of other data than",
            "--embeddings",
            embeddings,
            *of_data,
            "--selected",
            first,
            "-n",
            5,
            "--output" if of_data else "--picks",
            tmp_path / "o.json",
        )
    again = ["--embeddings", embeddings, "--selected", first, "-n", 5, "--picks", tmp_path / "o.json"]
    assert select(*again, "--allow-other-data") == 0
    np.save(tmp_path / "y.npy", np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32))
    refused(capsys, "its number of rows is 90, not 80", "--embeddings", tmp_path / "y.npy", *again[2:])


def test_a_runs_selection_says_what_data_it_is_of(settings, data_file, other_data, embeddings, tmp_path, capsys):
    from support.runs import write_config

    assert main(["run", str(write_config(tmp_path, settings | {"n_round": 0})), "--quiet"]) == 0
    selected = tmp_path / "out/state/rd_0/selected.json"
    base = ["--selected", selected, "-n", 5, "--output", tmp_path / "o.jsonl"]
    x = tmp_path / "y.npy"
    np.save(x, np.load(embeddings))
    refused(capsys, f"--selected {selected}: is of other data", *base, "--embeddings", x, "--data", other_data)
    assert select(*base, "--embeddings", x, "--data", data_file) == 0


def test_some_rows_embeddings_are_not_taken_for_all(tmp_path, rows, tiny_model, capsys):
    """The file that select --skip-empty keeps counts other rows than the picks do."""
    data = tmp_path / "empty.jsonl"
    data.write_text(
        "".join(json.dumps(row | {"output": row["output"] * (i != 3)}) + "\n" for i, row in enumerate(rows))
    )
    made = ["--data", data, "--model", tiny_model, "--output", tmp_path / "o.jsonl", "--skip-empty"]
    assert select(*made, "-n", 5) == 0
    assert select(*made, "-n", 6) == 0
    kept = tmp_path / "o.embeddings.npy"
    refused(capsys, "holds 89 of the data set's 90 rows", "--embeddings", kept, "-n", 5, "--picks", tmp_path / "p.json")


def test_another_n_is_made_from_the_embeddings_kept(tmp_path, data_file, tiny_model, monkeypatch, capsys):
    made = ["--data", data_file, "--model", tiny_model, "--output", tmp_path / "o.jsonl"]
    assert select(*made, "-n", 5) == 0
    assert "o.embeddings.npy: 90 x 32 embeddings, 0.0 MB, kept" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr("diverseevol_fast.embedding.from_folder._load", None)  # no model is loaded
        assert select(*made, "-n", 8) == 0
    monkeypatch.setattr("diverseevol_fast.embedding.embed_tokens.Engine", None)
    picked = json.loads((tmp_path / "o.picks.json").read_text())["indices"]
    values = np.load(tmp_path / "o.embeddings.npy")
    assert picked == kcenter(values, 8, seed=0).indices.tolist()
    (tmp_path / "s.json").write_text("[4, 2]")
    assert select(*made, "-n", 3, "--selected", tmp_path / "s.json", "--no-keep-embeddings") == 0
    assert json.loads((tmp_path / "o.picks.json").read_text())["indices"] == kcenter(values, 3, [4, 2]).indices.tolist()
    assert (tmp_path / "o.embeddings.npy").exists()  # another command kept them
    assert select(*made, "-n", 8, "--model-max-length", 400) == 0  # which cuts nothing: the same tokens
    refused(capsys, "tokens: other content", *made, "-n", 8, "--template", "plain")


def test_embeddings_are_not_kept_where_they_are_not_wanted(tmp_path, data_file, tiny_model, capsys):
    out = tmp_path / "o.jsonl"
    made = ["--data", data_file, "--model", tiny_model, "--output", out, "-n", 5]
    assert select(*made, "--no-keep-embeddings") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "o.picks.json", "rows.jsonl"]
    assert "o.embeddings.npy" not in capsys.readouterr().out


def test_two_choices_in_one_folder_keep_their_records(embeddings, data_file, tmp_path):
    for name, n in (("a.jsonl", 4), ("b.json.gz", 6)):
        assert select("--embeddings", embeddings, "--data", data_file, "-n", n, "--output", tmp_path / name) == 0
    assert [len(json.loads((tmp_path / f"{name}.picks.json").read_text())["indices"]) for name in "ab"] == [4, 6]


def test_nothing_of_another_input_is_replaced(embeddings, data_file, other_data, tiny_model, tmp_path, capsys):
    out, picks = tmp_path / "o.jsonl", tmp_path / "o.picks.json"
    assert select("--embeddings", embeddings, "--data", data_file, "-n", 4, "--output", out) == 0
    before = out.read_bytes(), picks.read_bytes()
    other = ["--data", other_data, "--model", tiny_model, "-n", 4, "--output", out]
    refused(capsys, ["o.picks.json: exists (data: other content", "--overwrite"], *other)
    same = ["--embeddings", embeddings, "--data", data_file, "-n", 3, "--output"]
    refused(capsys, "o.picks.json: exists (it is the record of o.jsonl)", *same, tmp_path / "o.json")
    assert (out.read_bytes(), picks.read_bytes()) == before
    assert select(*same, out) == 0  # the same input
    assert len(out.read_text().splitlines()) == 3
    assert select(*other, "--overwrite") == 0
    assert json.loads(picks.read_text())["provenance"]["data_rows"] == 90
    once_more = ["--data", other_data, "--model", tiny_model, "-n", 2, "--output", out, "--picks", tmp_path / "p.json"]
    assert select(*once_more) == 0  # the embeddings beside it say that the input is the same
    (tmp_path / "thesis.jsonl").write_text("mine")
    refused(capsys, "thesis.jsonl: exists (nothing says what of)", *same, tmp_path / "thesis.jsonl")
    assert (tmp_path / "thesis.jsonl").read_text() == "mine"


def test_embeddings_of_another_input_are_replaced_when_asked(embeddings, other_data, tiny_model, capsys):
    again = ["embed", "--data", str(other_data), "--model", str(tiny_model), "--output", str(embeddings), "--quiet"]
    before = np.load(embeddings)
    assert main(again) == 2
    assert "not made from this data and model (data: other content" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    np.testing.assert_allclose(np.load(embeddings), before[::-1], rtol=0, atol=1e-5)


def test_differences_reach_into_dictionaries():
    before, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}}
    assert provenance.differences(before, now, "it") == ["b.c: it has 2, now 4", "b.d: it has 3, now None"]
    assert provenance.differences(before, before, "it") == []
    assert provenance.differences(before, now, "it", ignored=("b",)) == []
    assert provenance.differences({"x_sha256": "1"}, {"x_sha256": "2"}, "it") == ["x: other content"]


def test_two_selections_with_one_output_are_one_after_the_other(tmp_path, data_file, tiny_model):
    """Of two at once one may be refused, and none is wrong."""
    command = [
        *DIVERSEEVOL,
        "select",
        "--data",
        str(data_file),
        "--model",
        str(tiny_model),
        "--output",
        str(tmp_path / "o.jsonl"),
        "--quiet",
    ]
    both = [subprocess.Popen([*command, "-n", str(n)], stderr=subprocess.PIPE, text=True) for n in (5, 7)]
    ended = [(process.communicate()[1], process.returncode) for process in both]
    assert 0 in [status for _, status in ended]
    assert all(status == 0 or (status == 2 and "another process is writing it" in error) for error, status in ended)
    picked = json.loads((tmp_path / "o.picks.json").read_text())["indices"]
    assert picked == kcenter(np.load(tmp_path / "o.embeddings.npy"), len(picked), seed=0).indices.tolist()
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == len(picked)
    assert not list(tmp_path.glob(".*"))


def test_what_another_process_writes_is_refused(tmp_path, data_file, tiny_model, capsys):
    made = ["--data", data_file, "--model", tiny_model, "-n", 2, "--output", tmp_path / "o.jsonl"]
    for name in ("o.jsonl", "o.picks.json", "o.embeddings.npy"):
        with locked(tmp_path / name):
            refused(capsys, f"{name}: another process is writing it", *made)
    with locked(tmp_path / "x.npy"):
        assert main(["embed", *map(str, made[:4]), "--output", str(tmp_path / "x.npy"), "--quiet"]) == 2
    assert select(*made) == 0


def test_one_holder_at_a_time(tmp_path):
    """Also when the holder removes the lock's file while others wait to open it."""
    held, most, refusals = [], [], []

    def hold():
        for _ in range(200):
            try:
                with locked(tmp_path / "x"):
                    held.append(1)
                    most.append(len(held))
                    held.pop()
            except InputError:
                refusals.append(1)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refusals) == 800
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_to_and_a_link_is_followed(tmp_path, embeddings):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert select("--embeddings", embeddings, "-n", 3, "--picks", pipe) == 0
    reader.join()
    assert len(json.loads(read[0])["indices"]) == 3
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "folder" / "picks.json")
    assert select("--embeddings", embeddings, "-n", 4, "--picks", link) == 0
    assert link.is_symlink()
    assert len(json.loads((tmp_path / "folder" / "picks.json").read_text())["indices"]) == 4
    assert select("--embeddings", embeddings, "-n", 4, "--picks", "/dev/null") == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_is_no_file_to_write_to(tmp_path, embeddings, capsys):
    refused(
        capsys, "expected a file to write to, got a folder", "--embeddings", embeddings, "-n", 3, "--picks", tmp_path
    )
    with pytest.raises(InputError, match="got a folder"), atomic_path(tmp_path):
        pass
    write_json(tmp_path / "a.json", [1])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_record_of_old_is_taken_as_it_is(tmp_path, embeddings):
    """picks.json had no provenance."""
    (tmp_path / "picks.json").write_text('{"indices": [3, 4], "data": "gone.jsonl"}')
    again = ["--embeddings", embeddings, "-n", 3, "--selected", tmp_path / "picks.json"]
    assert select(*again, "--picks", tmp_path / "p.json") == 0


def test_a_tokenizer_of_its_own_is_another_model(tmp_path, data_file, tiny_model, capsys):
    """The whole model folder is compared, not its name."""
    made = ["--data", data_file, "-n", 2, "--output", tmp_path / "o.jsonl", "--model"]
    assert select(*made, tiny_model) == 0
    load_causal_lm(tiny_model).save_pretrained(tmp_path / "m")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "note.txt").write_text("changed")
    refused(capsys, "model: other content", *made, tmp_path / "m")


def test_diversity_of_other_datas_picks_or_embeddings_is_refused(embeddings, data_file, other_data, tmp_path, capsys):
    assert select("--embeddings", embeddings, "--data", data_file, "-n", 5, "--output", tmp_path / "o.jsonl") == 0
    picks = tmp_path / "o.picks.json"
    plain = tmp_path / "y.npy"
    np.save(plain, np.load(embeddings))
    (tmp_path / "rows.json").write_text("[3, 1, 4]")
    for x, chosen, what in (
        (embeddings, tmp_path / "rows.json", f"--embeddings {embeddings}"),
        (plain, picks, f"--picks {picks}"),
    ):
        measured = ["diversity", "--picks", str(chosen), "--embeddings", str(x), "--quiet", "--random", "0"]
        assert main([*measured, str(other_data)]) == 2
        assert f"{what}: is of other data than {other_data}" in capsys.readouterr().err
        assert main([*measured, str(data_file)]) == main([*measured, str(other_data), "--allow-other-data"]) == 0
