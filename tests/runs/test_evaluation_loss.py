"""The loss on rows that are in no pool: its value, its interval, and that such rows stay out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.config import write_config

from diverseevol_fast._common.statistics import ratio_interval
from diverseevol_fast.cli.main import main
from diverseevol_fast.data.dataset import load_data
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer
from diverseevol_fast.runs.evaluation_loss import RESAMPLES, evaluate_loss
from diverseevol_fast.runs.finished import read_run


def test_the_loss_is_that_of_one_row_at_a_time(tiny_model, data_file):
    data, _ = load_data(str(data_file))
    tokens, model = tokenize(data, load_tokenizer(tiny_model), 128), load_causal_lm(tiny_model)
    rows = np.array([3, 50, 7, 20])
    found = evaluate_loss(model, tokens, rows, "held_out_groups")
    losses = []
    with torch.inference_mode():
        for row in rows:
            ids, is_response = (torch.from_numpy(part) for part in tokens.row(row))
            logits = model.double()(ids[None].long()).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")[is_response[1:]])
    assert found["held_out_groups_loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    sums, counts = np.array([float(row.sum()) for row in losses]), np.array([len(row) for row in losses])
    expected = ratio_interval(sums[counts > 0], counts[counts > 0], RESAMPLES, 0)
    assert found["held_out_groups_interval"] == pytest.approx(list(expected), rel=1e-6)
    assert found["held_out_groups_seconds"] > 0
    assert evaluate_loss(model, tokens, rows[:0], "held_out_groups") == {}


def test_rows_without_a_response_token_say_nothing(monkeypatch):
    found = np.zeros((2, 1000))
    found[:, ::10] = [[6.0], [2.0]]
    monkeypatch.setattr("diverseevol_fast.runs.evaluation_loss.response_losses", lambda *given: found)
    kept = evaluate_loss(None, None, np.arange(1000), "validation")
    assert (kept["validation_loss"], kept["validation_interval"]) == (3.0, [3.0, 3.0])


def test_unseen_kinds_stay_out_of_every_pool(tmp_path, settings, rows, capsys):
    families = sorted({row["family"] for row in rows})[:3]
    settings["held_out_groups"] = {"family": families}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0
    assert "held-out groups loss" in capsys.readouterr().out.splitlines()[0]
    run = read_run(Path(settings["output_dir"]))
    kept = [row for row in range(90) if rows[row]["family"] not in families]
    assert set(run.candidates) < set(kept)
    assert len(run.candidates) == len(kept) - 10
    assert set(run.pool(2)) <= set(run.candidates)
    losses = [run.state.metrics(r)["train"] for r in range(3)]
    assert all(
        low < found["held_out_groups_loss"] < high
        for found in losses
        for low, high in [found["held_out_groups_interval"]]
    )
    assert losses[0]["held_out_groups_loss"] != losses[0]["validation_loss"]
    unlabeled = json.loads((run.state.data_file(0, "unlabeled")).read_text())
    assert not {row["family"] for row in unlabeled} & set(families)


@pytest.mark.parametrize("kinds", [[["add"]], [{"a": 1}]])
def test_kinds_that_are_no_values(kinds, tmp_path, settings, capsys):
    settings["held_out_groups"] = {"family": kinds}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
    assert "config: held_out_groups.family: expected texts or numbers, got [" in capsys.readouterr().err


def test_a_kind_that_no_row_is_of(tmp_path, settings, capsys):
    settings["held_out_groups"] = {"family": ["add", "ode"]}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
    assert "held_out_groups: no row of" in (told := capsys.readouterr().err)
    assert "has 'ode' under 'family'" in told
