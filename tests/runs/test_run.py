"""Whole runs: the output tree, continuing, refusing, the public config's shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.config import write_config
from support.embedding import embed_rows, file_store
from support.runs import PUBLIC, picks, run, selected

from diverseevol_fast import kcenter
from diverseevol_fast.cli.main import main
from diverseevol_fast.data.tokens import Tokens, tokenize
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer


@pytest.fixture
def finished(tmp_path, settings, capsys):
    settings["keep_embeddings"] = True
    assert run(tmp_path, settings) == 0
    return Path(settings["output_dir"]), capsys.readouterr().out


def test_output_tree_and_records(finished, rows, settings):
    out, printed = finished
    pool = []
    for r in range(3):
        record = selected(out, r)
        assert len(record["indices"]) == (6, 5, 5)[r]
        pool += record["indices"]
        labeled, unlabeled = (json.loads((out / f"data/rd_{r}_{p}.json").read_text()) for p in ("labeled", "unlabeled"))
        assert labeled == [rows[row] for row in pool]
        assert len(unlabeled) == 90 - 10 - len(pool)
        assert (out / f"output/rd_{r}/model.safetensors").is_file()
        assert (out / f"output/rd_{r}/tokenizer.json").is_file()
        manifest = json.loads((out / f"state/rd_{r}/manifest.json").read_text())
        assert len(manifest["provenance"]["data_sha256"]) == 64
        assert manifest["versions"]["torch"] == torch.__version__
        assert set(manifest["random_state_sha256"]) == {"python", "numpy", "torch"}
        metrics = json.loads((out / f"state/rd_{r}/metrics.json").read_text())
        assert metrics["pool"] == len(pool)
        low, high = metrics["train"]["validation_interval"]
        assert 0 < low < metrics["train"]["validation_loss"] < high
        if r > 0:
            assert metrics["embed"]["tokens_per_second"] > 0
            assert metrics["select"]["radius"] == pytest.approx(record["sqdist"][-1] ** 0.5)
    assert len(set(pool)) == 16
    assert not list(out.rglob("*.partial*"))
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.pt")) + list(out.rglob("*.pkl"))
    table = printed.splitlines()
    assert table[0].split()[:2] == ["round", "pool"]
    assert [line.split()[1] for line in table[1:4]] == ["6", "11", "16"]


def test_a_rounds_picks_are_those_of_its_model(finished, tmp_path, settings, tiny_model, data_file):
    """From the saved model alone, by hand: embed, float64 greedy, same rows."""
    from diverseevol_fast.data.dataset import load_data

    out, _ = finished
    tokens = tokenize(load_data(str(data_file))[0], load_tokenizer(tiny_model), 128)
    pool = selected(out, 0)["indices"]
    unlabeled = json.loads((out / "data/rd_0_unlabeled.json").read_text())
    everything = load_data(str(data_file))[0].rows
    candidates = np.array([i for i, row in enumerate(everything) if row in unlabeled or i in pool])
    store = file_store(tmp_path / "x.npy", len(candidates), budget=1024)
    first = np.searchsorted(candidates, pool)
    embed_rows(load_causal_lm(out / "output/rd_0"), tokens, candidates, store, first)
    kept = np.load(out / "state/rd_1/embeddings.npy")
    np.testing.assert_array_equal(store.values.numpy(), kept)
    result = kcenter(store.values.numpy(), 5, first)
    assert candidates[result.indices].tolist() == selected(out, 1)["indices"]


def test_a_finished_run_is_only_reported(finished, tmp_path, settings, capsys):
    out, printed = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    assert run(tmp_path, settings) == 0
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path, settings):
    out, _ = finished
    assert run(tmp_path, settings, "--output_dir", str(tmp_path / "again")) == 0
    assert picks(tmp_path / "again") == picks(out)
    assert run(tmp_path, settings, "--output_dir", str(tmp_path / "other"), "--seed", "1", "--n_round", "0") == 0
    assert selected(tmp_path / "other", 0) != selected(out, 0)


@pytest.mark.parametrize(
    "lost", ["output/rd_2", "output/rd_1+", "state/rd_1/selected.json+", "state/rd_2/selected.json+"]
)
def test_a_run_that_lost_its_last_stages_ends_the_same(finished, tmp_path, settings, lost):
    import shutil

    out, _ = finished
    before = picks(out)
    rounds = [int(lost.split("rd_")[1][0])] if not lost.endswith("+") else range(int(lost.split("rd_")[1][0]), 3)
    for r in rounds:
        shutil.rmtree(out / f"output/rd_{r}")
        if r > rounds[0] or "selected" in lost:
            (out / f"state/rd_{r}/selected.json").unlink()
            (out / f"state/rd_{r}/embeddings.npy").unlink()
    assert run(tmp_path, settings) == 0
    assert picks(out) == before


def test_an_output_of_another_run_is_refused(finished, tmp_path, settings, rows, capsys):
    out, _ = finished
    before = picks(out)
    assert run(tmp_path, settings, "--n_query", "4") == 2
    error = capsys.readouterr().err
    assert "an output of another run" in error
    assert "config.n_query: the run has 5, now 4" in error
    assert run(tmp_path, settings, "--train_args.learning_rate", "0.5") == 2
    assert "config.train_args.learning_rate: the run has 0.001, now 0.5" in capsys.readouterr().err
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]), encoding="utf-8")
    assert run(tmp_path, settings, "--full_data_path", str(changed)) == 2
    assert "data: other content" in capsys.readouterr().err
    assert picks(out) == before


def test_the_public_config_runs_as_it_is(tmp_path, tiny_model, rows, monkeypatch, capsys):
    (tmp_path / "rows.json").write_text(json.dumps(rows[:6]), encoding="utf-8")
    (tmp_path / "a-model").symlink_to(tiny_model)
    (tmp_path / "config_debug.yml").write_text(PUBLIC, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "config_debug.yml"]) == 0
    said = capsys.readouterr().err
    for word in ("evaluation_strategy is now eval_strategy", "warmup_ratio is now warmup_steps", "fsdp is dropped"):
        assert word in said
    for r in range(3):
        assert len(json.loads(Path(f"evol_res/debug/data/rd_{r}_labeled.json").read_text())) == 2 + 2 * r
        assert len(json.loads(Path(f"evol_res/debug/data/rd_{r}_unlabeled.json").read_text())) == 4 - 2 * r
        assert Path(f"evol_res/debug/output/rd_{r}/model.safetensors").is_file()


def test_real_alpaca_debug(tmp_path, tiny_model, shared_data, monkeypatch):
    (tmp_path / "a-model").symlink_to(tiny_model)
    (tmp_path / "c.yml").write_text(PUBLIC, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "c.yml", "--quiet", "--full_data_path", str(shared_data / "alpaca_debug_6.json")]) == 0
    assert sorted(row for r in range(3) for row in selected("evol_res/debug", r)["indices"]) == list(range(6))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora(tmp_path, settings, dtype, monkeypatch):
    pytest.importorskip("peft")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    settings |= {"peft": lora, "n_round": 1, "dtype": dtype, "n_query": 30}
    assert run(tmp_path, settings) == 0
    out = Path(settings["output_dir"])
    assert (out / "output/rd_1/adapter_model.safetensors").is_file()
    before = selected(out, 1)
    (out / "state/rd_1/selected.json").unlink()
    (out / "output/rd_1").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    config = write_config(tmp_path, settings)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["run", str(config), "--quiet"]) == 0  # the adapter of round 0 is loaded on its base model
    assert selected(out, 1) == before
    assert main(["select", "--data", settings["full_data_path"], "--model", str(out / "output/rd_1"), "-n", "3"]) == 0


def test_only_one_model_is_in_memory(tmp_path, settings, monkeypatch):
    """Mixed precision leaves a reference cycle on a trained model."""
    import gc

    from transformers import LlamaForCausalLM

    from diverseevol_fast.runs import training

    alive, load = [], training.load_causal_lm

    def counting(*args, **kwargs):
        gc.disable()
        alive.append(sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects()))
        gc.enable()
        return load(*args, **kwargs)

    gc.collect()
    monkeypatch.setattr(training, "load_causal_lm", counting)
    settings["train_args"]["bf16"] = True
    assert run(tmp_path, settings) == 0
    assert alive == [0, 0, 0]


def test_the_days_date_in_a_chat_template_changes_nothing(tmp_path, settings, tiny_model, rows, monkeypatch):
    """The tokens of the first day are kept."""
    from diverseevol_fast.runs import inputs

    assert run(tmp_path, settings, "--n_round", "1") == 0
    out = Path(settings["output_dir"])
    before = selected(out, 1)
    (out / "state/rd_1/selected.json").unlink()
    monkeypatch.setattr(inputs, "tokenize", lambda *args: pytest.fail("tokenized again"))
    assert run(tmp_path, settings, "--n_round", "1") == 0
    assert selected(out, 1) == before


def test_a_refused_start_leaves_nothing_and_can_be_mended(tmp_path, settings, capsys):
    assert run(tmp_path, settings, "--model_max_length", "20") == 2
    assert "model_max_length 20 cuts the response of every row" in capsys.readouterr().err
    assert run(tmp_path, settings, "--full_data_path", "absent.json") == 2
    assert not Path(settings["output_dir"]).exists()
    assert run(tmp_path, settings, "--n_round", "0") == 0


def test_memory_can_be_saved_in_the_middle_of_a_run(finished, tmp_path, settings):
    assert run(tmp_path, settings, "--max_tokens_per_batch", "256") == 0


@pytest.mark.parametrize("args", [{"group_by_length": True}, {"warmup_ratio": 0.1, "warmup_steps": 2}])
def test_older_train_args_run(tmp_path, settings, args):
    settings["train_args"] |= args
    assert run(tmp_path, settings, "--n_round", "0") == 0


def test_conversations_run(tmp_path, settings, tiny_model, rows):
    from support.runs import CHAT

    tokenizer = load_tokenizer(tiny_model)
    model = tmp_path / "chat-model"
    load_causal_lm(tiny_model).save_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    data = tmp_path / "chat.jsonl"
    turns = [
        {"conversations": [{"from": "human", "value": r["instruction"]}, {"from": "gpt", "value": r["output"]}]}
        for r in rows[:30]
    ]
    data.write_text("".join(json.dumps(turn) + "\n" for turn in turns), encoding="utf-8")
    settings |= {"full_data_path": str(data), "model_name_or_path": str(model), "n_round": 1, "val_set_size": 0}
    assert run(tmp_path, settings) == 0
    assert len(selected(settings["output_dir"], 1)["indices"]) == 5


def test_a_refused_start_leaves_nothing_in_the_way(tmp_path, settings, monkeypatch, capsys):
    settings |= {"model_name_or_path": "builtin:small-llama", "model_max_length": 8, "max_tokens_per_batch": 512}
    assert run(tmp_path, settings) == 2
    assert "raise it" in capsys.readouterr().err
    assert not Path(settings["output_dir"]).exists()
    monkeypatch.setenv("DIVERSEEVOL_BACKEND", "foo")
    assert run(tmp_path, settings) == 2
    assert "DIVERSEEVOL_BACKEND: expected 'auto' or one of" in capsys.readouterr().err


def test_a_template_of_the_configs_is_what_is_trained_on(tmp_path, settings, tiny_model, rows, capsys):
    settings |= {"n_round": 0, "val_set_size": 0}
    own = tmp_path / "own.txt"
    own.write_text("Q: {instruction}\nA: {output}")
    assert run(tmp_path, settings, "--template", str(own)) == 0
    out, tokenizer = Path(settings["output_dir"]), load_tokenizer(tiny_model)
    ids, is_response = Tokens.load(out / "state/tokens.npz").row(3)
    assert tokenizer.decode(ids[~is_response]) == f"Q: {rows[3]['instruction']}\nA: "
    assert tokenizer.decode(ids[is_response]) == rows[3]["output"] + "</s>"
    assert json.loads((out / "state/rd_0/manifest.json").read_text())["template"] == str(own)
    assert run(tmp_path, settings) == 2
    assert "template: the run has" in capsys.readouterr().err
    own.rename(tmp_path / "renamed.txt")
    assert run(tmp_path, settings, "--template", str(tmp_path / "renamed.txt")) == 0
    (tmp_path / "renamed.txt").write_text("{output} of {instruction}")
    assert (
        run(tmp_path, settings, "--template", str(tmp_path / "renamed.txt"), "--output_dir", str(tmp_path / "o")) == 2
    )
    assert "renamed.txt: expected {output} once, as its end" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()

    other = tmp_path / "other"
    assert run(tmp_path, settings, "--output_dir", str(other), "--template", "alpaca") == 0
    provenance = json.loads((other / "state/run.json").read_text())
    assert "template" not in provenance  # nor in those of earlier versions, which are continued
    assert "config.template" not in provenance
    assert run(tmp_path, settings, "--output_dir", str(other)) == 0
