"""A run's folder that was altered is refused by name or mended; what may change of a run that was begun does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.config import quick_settings, write_config, write_rows
from support.embedding import stopped_after
from support.runs import picks, run, selected

from diverseevol_fast.cli.main import main
from diverseevol_fast.runs import inputs, state


@pytest.fixture(scope="module")
def made(tmp_path_factory, rows, tiny_model):
    """A finished run of two rounds after the first, its embeddings kept."""
    folder = tmp_path_factory.mktemp("made")
    data = write_rows(folder / "rows.jsonl", rows)
    settings = quick_settings(data, tiny_model, val_set_size=0, keep_embeddings=True)
    assert run(folder, settings | {"output_dir": str(folder / "out")}) == 0
    return folder / "out", settings


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the run, and its settings."""
    out, settings = made
    shutil.copytree(out, tmp_path / "out")
    return tmp_path / "out", settings | {"output_dir": str(tmp_path / "out")}


def unfinish(out, *rounds):
    """As it was before these rounds were trained, and their rows selected."""
    for r in rounds:
        shutil.rmtree(out / f"output/rd_{r}")
        (out / f"state/rd_{r}/selected.json").unlink()
        (out / f"state/rd_{r}/embeddings.npy").unlink(missing_ok=True)


def digit(out):
    path = out / "state/rd_1/selected.json"
    record = json.loads(path.read_text())
    record["indices"][0] += 1
    path.write_text(json.dumps(record))
    return path.name


def weights(out):
    path = out / "output/rd_0/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    return "output/rd_0"


def cut_weights(out):
    path = out / "output/rd_1/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "output/rd_1/model.safetensors"


def settings_of_model(out):
    path = out / "output/rd_2/config.json"
    path.write_text(path.read_text().replace("1e-06", "1e-05"))
    return "output/rd_2"


def tokens(out):
    np.savez(out / "state/tokens.npz", ids=np.zeros(3, np.int32))
    return "state/tokens.npz"


def no_tokens(out):
    (out / "state/tokens.npz").unlink()
    return "state/tokens.npz"


def no_identity(out):
    (out / "state/run.json").unlink()
    return "state/run.json"


@pytest.mark.parametrize("alter", [digit, weights, cut_weights, settings_of_model, tokens, no_tokens, no_identity])
def test_what_was_altered_is_refused_by_name(copied, tmp_path, capsys, alter):
    out, settings = copied
    name = alter(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    assert run(tmp_path, settings) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "--restart" in error
    assert {path: path.read_bytes() for path in before} == before


def test_a_large_model_is_hashed_when_it_is_loaded(copied, tmp_path, capsys, monkeypatch):
    out, settings = copied
    monkeypatch.setattr(state, "HASHED_AT_START", 0)
    weights(out)
    assert run(tmp_path, settings) == 0
    unfinish(out, 1, 2)
    assert run(tmp_path, settings) == 2
    assert "output/rd_0: has changed since the run wrote it" in capsys.readouterr().err


def test_a_round_is_not_continued_with_other_rows_than_its_model_was_trained_on(copied, tmp_path, capsys):
    out, settings = copied
    manifest = out / "state/rd_2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"selected_sha256": "', '"selected_sha256": "0'))
    (out / "state/rd_2/selected.json").unlink()
    assert run(tmp_path, settings) == 2
    assert "output/rd_2: was trained on other rows" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [1, 400, 5000])
def test_kept_embeddings_that_were_cut_short_are_made_again(copied, tmp_path, cut):
    out, settings = copied
    before = picks(out)
    unfinish(out, 2)
    kept = out / "state/rd_2/embeddings.npy"
    shutil.copy(out / "state/rd_1/embeddings.npy", kept)
    kept.write_bytes(kept.read_bytes()[:-cut])
    assert run(tmp_path, settings) == 0
    assert picks(out) == before


@pytest.mark.slow
def test_base_embeddings_that_were_cut_short_are_made_again(made, tmp_path):
    _, settings = made
    settings = settings | {"evol_schedule_name": "StaticKCenterSampling"}
    whole, again = (settings | {"output_dir": str(tmp_path / name)} for name in ("whole", "again"))
    assert run(tmp_path, whole) == 0
    assert run(tmp_path, again) == 0
    out = tmp_path / "again"
    unfinish(out, 2)
    kept = out / "state/base_embeddings.npy"
    np.save(kept, np.zeros((90, 32), np.float32))
    kept.write_bytes(kept.read_bytes()[:-1000])
    assert run(tmp_path, again) == 0
    assert picks(out) == picks(tmp_path / "whole")


@pytest.fixture
def half_embedded(copied, tmp_path):
    """A run that was stopped in the middle of round 2's embedding, and the picks that it ends with."""
    out, settings = copied
    settings |= {"max_tokens_per_batch": 256}
    before = picks(out)
    unfinish(out, 2)
    with stopped_after(8, KeyboardInterrupt):
        assert run(tmp_path, settings) == 130
    assert (out / "state/rd_2/embeddings.npy.part").exists()
    return out, settings, before


def cut_part(folder):
    path = folder / "embeddings.npy.part"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 5])


def other_budget(folder):
    path = folder / "embeddings.npy.progress"
    header, _, lines = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(header) | {"budget": 700}) + "\n" + lines)


def wrong_batches(folder):
    path = folder / "embeddings.npy.progress"
    header, _, _ = path.read_text().partition("\n")
    path.write_text(header + "\n" + "".join(f"{number}\n" for number in range(20)) + "nonsense\n-4\n")


def no_header(folder):
    path = folder / "embeddings.npy.progress"
    path.write_text("[" + path.read_text())


def budget_of_nothing(folder):
    path = folder / "embeddings.npy.progress"
    header, _, lines = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(header) | {"budget": -1}) + "\n" + lines)


@pytest.mark.parametrize("alter", [cut_part, other_budget, wrong_batches, no_header, budget_of_nothing])
def test_unfinished_embeddings_that_were_altered_are_made_again_where_they_must(half_embedded, tmp_path, alter):
    out, settings, before = half_embedded
    alter(out / "state/rd_2")
    assert run(tmp_path, settings) == 0
    values = np.load(out / "state/rd_2/embeddings.npy")
    assert (np.abs(values).sum(axis=1) > 0).all()
    assert [record["indices"] for record in picks(out)] == [record["indices"] for record in before]


@pytest.mark.slow
def test_a_finished_run_is_extended_by_more_rounds(copied, tmp_path, capsys):
    """As if it had been asked for all of them at once."""
    out, settings = copied
    longer = settings | {"n_round": 4}
    assert run(tmp_path, longer) == 0
    assert run(tmp_path, longer | {"output_dir": str(tmp_path / "at-once")}) == 0
    assert picks(out, 5) == picks(tmp_path / "at-once", 5)
    assert main(["report", str(out), "--output", str(tmp_path / "r.html"), "--quiet"]) == 0
    assert "100 + 2 rounds" not in (tmp_path / "r.html").read_text()
    assert run(tmp_path, settings) == 0  # and asked for fewer, it shows those
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-5:-1]] == ["round", "0", "1", "2"]


def test_one_shot_rounds_cannot_be_extended(made, tmp_path, capsys):
    """They were chosen together, by the model of round 0."""
    settings = made[1] | {"evol_schedule_name": "OneShotKCenterSampling", "output_dir": str(tmp_path / "out")}
    assert run(tmp_path, settings | {"n_round": 1}) == 0
    assert run(tmp_path, settings) == 2
    assert "config.n_round: the run has 1, now 2" in capsys.readouterr().err


def test_settings_of_a_later_stage_may_change_until_it_is_reached(copied, tmp_path, capsys):
    out, settings = copied
    unfinish(out, 1, 2)
    changed = settings | {"n_query": 3, "evol_schedule_name": "RandomSampling"}
    assert run(tmp_path, changed | {"train_args": {"learning_rate": 1e-4}}) == 2  # round 0 is trained
    assert "config.train_args.learning_rate: the run has 0.001, now 0.0001" in capsys.readouterr().err
    assert run(tmp_path, changed) == 0
    assert run(tmp_path, changed | {"output_dir": str(tmp_path / "anew")}) == 0
    assert picks(out) == picks(tmp_path / "anew")
    assert run(tmp_path, settings) == 2
    assert "config.n_query: the run has 3, now 5" in capsys.readouterr().err


def test_a_strategy_that_does_not_fit_is_refused_when_it_is_changed_to(copied, tmp_path, capsys):
    out, settings = copied
    unfinish(out, 1, 2)
    assert run(tmp_path, settings | {"whiten_n_components": 80}) == 2
    assert "whiten_n_components: expected at most 32" in capsys.readouterr().err
    assert run(tmp_path, settings) == 0


def test_a_run_of_which_nothing_was_trained_is_begun_anew(made, tmp_path, capsys):
    """With the setting that its own message recommends."""
    settings = made[1] | {"output_dir": str(tmp_path / "out"), "n_round": 1}
    wild = settings["train_args"] | {"learning_rate": 1e30, "max_grad_norm": 0}
    assert run(tmp_path, settings | {"train_args": wild, "val_set_size": 10}) == 1
    assert "lower train_args.learning_rate" in capsys.readouterr().err
    assert run(tmp_path, settings) == 0
    assert run(tmp_path, settings | {"output_dir": str(tmp_path / "anew")}) == 0
    assert picks(tmp_path / "out", 2) == picks(tmp_path / "anew", 2)


def test_a_base_model_built_for_other_data_is_built_again(tmp_path, settings, rows, monkeypatch):
    settings |= {"model_name_or_path": "builtin:small-llama", "n_round": 0}
    with monkeypatch.context() as patched:
        patched.setattr("diverseevol_fast.loop.train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(tmp_path, settings) == 130
    before = (tmp_path / "out/base/model.safetensors").read_bytes()
    assert run(tmp_path, settings | {"seed": 3}) == 0
    assert (tmp_path / "out/base/model.safetensors").read_bytes() != before


def test_stopped_while_the_base_model_is_built_the_same_command_goes_on(tmp_path, settings, monkeypatch, capsys):
    settings |= {"model_name_or_path": "builtin:small-llama", "n_round": 0}

    def stopped(data, folder, seed):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inputs, "build_base_model", stopped)
        assert run(tmp_path, settings) == 130
    assert not Path(settings["output_dir"]).exists()
    assert run(tmp_path, settings) == 0


def test_restart_keeps_what_was_made_aside(copied, tmp_path, capsys):
    out, settings = copied
    before = picks(out)
    assert run(tmp_path, settings | {"n_query": 4, "n_round": 1}, "--restart") == 0
    assert len(selected(out, 1)["indices"]) == 4
    assert picks(tmp_path / "out.before-1") == before
    assert run(tmp_path, settings | {"n_round": 0}, "--restart") == 0
    assert len(selected(tmp_path / "out.before-2", 1)["indices"]) == 4
    assert run(tmp_path, settings | {"init_label_num": 500}, "--restart") == 2  # and then nothing is put aside
    assert not (tmp_path / "out.before-3").exists()
    assert selected(out, 0) == before[0]
    with state.open_run(out):
        assert run(tmp_path, settings, "--restart") == 2
    assert "another process is running it" in capsys.readouterr().err


def test_restart_of_a_folder_that_is_no_run_is_refused(tmp_path, settings, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert main(["run", str(write_config(tmp_path, settings)), "--restart", "--quiet"]) == 2
    assert "holds files that are not a run's" in capsys.readouterr().err


def test_a_run_of_old_without_hashes_goes_on(copied, tmp_path):
    out, settings = copied
    before = picks(out)
    for manifest in out.glob("state/rd_*/manifest.json"):
        record = json.loads(manifest.read_text())
        for key in ("selected_sha256", "tokens_sha256", "model_sha256", "model_bytes"):
            record.pop(key, None)
        manifest.write_text(json.dumps(record))
    unfinish(out, 2)
    assert run(tmp_path, settings) == 0
    assert picks(out) == before
