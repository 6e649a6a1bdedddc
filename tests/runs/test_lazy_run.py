"""Runs with lazy rounds: the picks of runs that embed all rows, what their files say, and what is refused."""

import json
import logging
import shutil

import numpy as np
import pytest
from support.config import quick_settings, write_rows
from support.runs import picks, run

from diverseevol_fast import InputError
from diverseevol_fast import run as run_evol
from diverseevol_fast.embedding.store import rounds_of
from diverseevol_fast.runs.finished import read_run
from diverseevol_fast.runs.state import RunState

LAZY = {"lazy_rounds": True, "lazy_probe": 20, "lazy_audit": 20}


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    """More rows than a round embeds anyway."""
    from diverseevol_fast.demo.rows import generate_rows

    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", generate_rows(300, seed=3))


@pytest.fixture
def settings(tmp_path, many_rows, tiny_model):
    """Rounds between which embeddings hardly move."""
    settings = quick_settings(many_rows, tiny_model, output_dir=str(tmp_path / "out"), n_round=3)
    settings["train_args"]["learning_rate"] = 2e-4
    return settings


@pytest.fixture(scope="module")
def kept(tmp_path_factory, many_rows, tiny_model):
    """A lazy run whose embeddings are kept. Tests change copies of it."""
    folder = tmp_path_factory.mktemp("lazy") / "out"
    settings = quick_settings(many_rows, tiny_model, output_dir=str(folder), n_round=3, keep_embeddings=True)
    settings["train_args"]["learning_rate"] = 2e-4
    run_evol(settings | LAZY)
    return folder, settings | LAZY


@pytest.fixture
def copied(kept, tmp_path):
    """A copy of it, its settings, and the same before round 3 was selected."""
    folder, settings = kept
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy, settings | {"output_dir": str(copy)}


def before_round(folder, r):
    """Take away what round r and later ones have made."""
    for later in range(r, 4):
        shutil.rmtree(folder / "state" / f"rd_{later}")
        shutil.rmtree(folder / "output" / f"rd_{later}")


def rounds(folder, r):
    return np.load(rounds_of(RunState(folder).embeddings_file(r)))


@pytest.mark.parametrize("bound", ["residual", "drift"])
def test_the_picks_of_a_run_that_embeds_all_rows(tmp_path, settings, bound):
    assert run(tmp_path, settings) == 0
    lazy = settings | LAZY | {"output_dir": str(tmp_path / "lazy"), "lazy_bound": bound}
    assert run(tmp_path, lazy) == 0
    full, finished = read_run(tmp_path / "out"), read_run(tmp_path / "lazy")
    assert finished.pool(3) == full.pool(3)
    for r in (2, 3):
        metrics = finished.metrics(r)["select"]
        assert metrics["share_embedded"] < 0.6
        assert metrics["bound"] == bound
        assert all(group["largest_seen"] <= group["allowance"] for group in metrics["groups"])
        assert sum(group["probe"] for group in metrics["groups"]) == 20
        assert metrics["audits"][-1]["passed"]
        assert metrics["audits"][-1]["rows"] == 20
        assert f"{metrics['groups'][0]['allowance']:.4g}" in metrics["guarantee"]
        assert finished.metrics(r)["embed"]["tokens"] < 0.7 * full.metrics(r)["embed"]["tokens"]
    assert finished.metrics(1)["select"]["share_embedded"] == 1.0
    assert list((tmp_path / "lazy").rglob("*embeddings*")) == []


def test_the_table_says_how_many_rows_were_embedded(tmp_path, settings, capsys):
    assert run(tmp_path, settings | LAZY | {"n_round": 2}) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    header = next(line for line in lines if line[0] == "round")
    share = read_run(tmp_path / "out").metrics(2)["select"]["share_embedded"]
    assert "embedded" in header
    assert any(f"{share:.1%}" in line for line in lines)


def test_kept_embeddings_say_which_rows_are_whole(kept):
    folder, settings = kept
    finished, state = read_run(folder), RunState(folder)
    assert not rounds_of(state.embeddings_file(1)).exists()  # round 1 embedded all rows
    from diverseevol_fast import embed

    model, length = str(finished.model_folder(1)), settings["model_max_length"]
    all_rows = embed(str(settings["full_data_path"]), model, max_length=length).values.numpy()
    candidates = finished.candidates
    by_round, values = rounds(folder, 2), np.load(state.embeddings_file(2))
    anew = by_round == 2
    assert 0.1 < anew.mean() < 0.6
    assert set(by_round) == {1, 2}
    assert anew.mean() == pytest.approx(finished.metrics(2)["select"]["share_embedded"])
    error = np.linalg.norm(values - all_rows[candidates], axis=1)
    assert error[anew].max() < 1e-4 < error[~anew].max() < 0.1
    assert set(rounds(folder, 3)) == {1, 2, 3}
    pool = np.searchsorted(candidates, finished.pool(2))
    assert (rounds(folder, 3)[pool] == 3).all()


def test_kept_embeddings_are_not_taken_for_those_of_one_model(kept, tmp_path, capsys):
    from diverseevol_fast.cli.main import main

    path = RunState(kept[0]).embeddings_file(2)
    assert main(["select", "--embeddings", str(path), "-n", "3", "--picks", str(tmp_path / "p.json")]) == 2
    assert "holds predicted embeddings of the rows that were not embedded" in capsys.readouterr().err


def test_a_stop_before_the_picks_were_recorded(copied, monkeypatch):
    """The embeddings are finished: the same picks come out of the file, and no row is embedded."""
    folder, settings = copied
    before = picks(folder, 4)
    embedded = rounds(folder, 3)
    (folder / "state" / "rd_3" / "selected.json").unlink()
    shutil.rmtree(folder / "output" / "rd_3")
    with monkeypatch.context() as patched:
        patched.setattr("diverseevol_fast.embedding.embed_lazily.Engine", None)
        run_evol(settings)
    assert picks(folder, 4) == before
    assert np.array_equal(rounds(folder, 3), embedded)
    stored = rounds_of(RunState(folder).embeddings_file(3))
    (folder / "state" / "rd_3" / "selected.json").unlink()
    shutil.rmtree(folder / "output" / "rd_3")
    np.save(stored, np.minimum(embedded, 2))  # as if other rows had been embedded
    with pytest.raises(Exception, match="other rows are needed now than those that were embedded"):
        run_evol(settings)


def test_without_earlier_embeddings_a_round_embeds_all_rows(copied, caplog):
    folder, settings = copied
    before = read_run(folder).pool(3)
    before_round(folder, 3)
    RunState(folder).embeddings_file(2).unlink()
    with caplog.at_level(logging.WARNING, logger="diverseevol_fast"):
        run_evol(settings)
    assert "is not there to predict embeddings of round 3: embedding all rows" in caplog.text
    assert read_run(folder).pool(3) == before
    assert read_run(folder).metrics(3)["select"]["share_embedded"] == 1.0


def damage_sidecar(state, **changes):
    path = state.embeddings_file(2)
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text("utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda state: damage_sidecar(state, model_sha256="0" * 64),
            r"expected the embeddings of round 2 \(model: other",
        ),
        (lambda state: damage_sidecar(state, tokens_sha256="0" * 64), "tokens: other content"),
        (lambda state: damage_sidecar(state, data_sha256="0" * 64), "data: other content"),
        (lambda state: damage_sidecar(state, dim=16), "damaged, expected 290 x 16 numbers"),
        (lambda state: np.save(state.embeddings_file(2), np.zeros((3, 32), np.float32)), "damaged, expected 290 x 32"),
        (lambda state: state.embeddings_file(2).write_bytes(b"no array"), "damaged, expected 290 x 32"),
        (lambda state: rounds_of(state.embeddings_file(2)).unlink(), "missing or damaged, expected 290 numbers"),
        (
            lambda state: state.embeddings_file(2).with_name("embeddings.npy.json").unlink(),
            "does not say what it was made from",
        ),
    ],
)
def test_earlier_embeddings_that_do_not_belong_here_are_refused(copied, damage, message):
    folder, settings = copied
    before_round(folder, 3)
    damage(RunState(folder))
    with pytest.raises(InputError, match=message) as error:
        run_evol(settings)
    assert "remove it, and this round embeds all rows" in str(error.value)


def test_lazy_rounds_belong_to_what_a_run_is_made_from(copied):
    _folder, settings = copied
    with pytest.raises(InputError, match=r"an output of another run.*lazy_rounds"):
        run_evol(settings | {"lazy_rounds": False})
    with pytest.raises(InputError, match="lazy_probe: the run has 20, now 30"):
        run_evol(settings | {"lazy_probe": 30})


def test_records_without_lazy_rounds_are_those_of_earlier_versions(tmp_path, settings):
    assert run(tmp_path, settings | {"n_round": 0}) == 0
    record = json.loads((tmp_path / "out/state/run.json").read_text("utf-8"))
    assert not [key for key in record if "lazy" in key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evol_schedule_name": "RandomSampling"}, "lazy_rounds: RandomSampling has none"),
        ({"evol_schedule_name": "StaticKCenterSampling"}, "lazy_rounds: StaticKCenterSampling has none"),
        ({"evol_schedule_name": "OneShotKCenterSampling"}, "lazy_rounds: OneShotKCenterSampling has none"),
        ({"whiten_n_components": 4}, "lazy_rounds: whitening needs all embeddings"),
        ({"lazy_bound": "certain"}, "lazy_bound: expected residual or drift, got 'certain'"),
        ({"lazy_probe": 0}, "lazy_probe: expected at least 1, got 0"),
        ({"lazy_audit": -1}, "lazy_audit: expected at least 0, got -1"),
        ({"lazy_rounds": "yes"}, "lazy_rounds: expected bool"),
        # 290 candidates, 6 + 5 + 5 in the pool of round 2
        ({"lazy_probe": 275}, "lazy_probe: expected at most 274, the candidates outside the pool of the last round"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(settings, changes, message):
    with pytest.raises(InputError, match=message):
        run_evol(settings | LAZY | changes)


def test_a_round_that_left_out_no_row_is_followed_by_one_that_does_not_try(settings, caplog):
    with caplog.at_level(logging.INFO, logger="diverseevol_fast"):
        finished = run_evol(settings | LAZY | {"lazy_probe": 269, "lazy_audit": 0, "n_round": 4})
    assert [r for r in (1, 2, 3, 4) if "groups" in finished.metrics(r)["select"]] == [2, 4]
    assert "round 3: the round before could leave out no row" in caplog.text
    for r in (1, 2, 3, 4):
        assert finished.metrics(r)["select"]["share_embedded"] == 1.0
        assert finished.metrics(r)["select"]["guarantee"].startswith("All rows were embedded")


def test_large_movements_embed_all_rows(settings, tmp_path):
    """A learning rate that changes the model beyond recognition: the picks are still those of all embeddings."""
    settings["train_args"]["learning_rate"] = 0.05
    full = run_evol(settings)
    lazy = run_evol(settings | LAZY | {"output_dir": str(tmp_path / "lazy")})
    assert lazy.pool(3) == full.pool(3)


def test_an_audit_that_fails_says_what_to_do(caplog):
    from diverseevol_fast.runs.candidates import Candidates
    from diverseevol_fast.selection.lazy import AgeGroup, Audit, LazyResult

    result = LazyResult(
        indices=np.arange(2),
        sqdist=np.ones(2),
        embedded=np.array([True, False]),
        bound="residual",
        multiple=1.5,
        groups=[AgeGroup((1, 1), 50, 20, 1.0, 2.0)],
        audits=[Audit(30, 10, False), Audit(20, 10, True)],
        backend="native",
        seconds=0.1,
    )
    candidates = object.__new__(Candidates)
    candidates.r = 4
    with caplog.at_level(logging.INFO, logger="diverseevol_fast"):
        candidates._say(result)
    assert "round 4: 50.0% of the rows were embedded" in caplog.text
    assert "a larger lazy_probe, lazy_bound: drift or a lower learning_rate may help" in caplog.text
