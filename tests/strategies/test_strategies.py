"""Every strategy in a run, against the same picks made by hand from the run's own models; and their parts alone."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from support.config import write_config

from diverseevol_fast._common.errors import InputError
from diverseevol_fast._common.vendi_score import vendi_score
from diverseevol_fast.cli.main import main
from diverseevol_fast.data.dataset import load_data
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.embedding.encoder import check_head, uncertainty_encoder
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer
from diverseevol_fast.ops import reference
from diverseevol_fast.runs.state import RunState
from diverseevol_fast.selection.stream import CandidateError
from diverseevol_fast.selection.whitening import whiten
from diverseevol_fast.strategies import STRATEGIES
from diverseevol_fast.strategies.random_sampling import draw
from diverseevol_fast.strategies.vendi import pick_by_vendi

VENDI = {"max_random_times": 4, "vendi_argmax_rank": -1}


def made(tmp_path, settings, schedule, **more) -> RunState:
    """The state of a finished run with this strategy."""
    settings = settings | {"evol_schedule_name": schedule, "output_dir": str(tmp_path / schedule)} | more
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0
    return RunState(Path(settings["output_dir"]))


def rounds_of(state: RunState) -> list[list[int]]:
    return [state.selected(r) for r in range(3)]


@pytest.fixture
def alone(settings, tiny_model):
    """By a model, one row at a time in float64: embeddings [N, D] and mean logit statistics [N, 3], and the rows."""
    data, _ = load_data(settings["full_data_path"])
    tokens = tokenize(data, load_tokenizer(tiny_model), settings["model_max_length"])

    @torch.inference_mode()
    def by(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
        model = load_causal_lm(folder).double().eval()
        embeddings, statistics = [], []
        for row in range(len(tokens)):
            found = model(torch.from_numpy(tokens.row(row)[0])[None].long(), output_hidden_states=True)
            top = found.logits[0].topk(2, dim=1).values
            entropy = torch.distributions.Categorical(logits=found.logits[0]).entropy()
            statistics.append(torch.stack([top[:, 0], top[:, 0] - top[:, 1], entropy]).mean(dim=1))
            embeddings.append(found.hidden_states[-1][0].mean(dim=0))
        return torch.stack(embeddings), torch.stack(statistics)

    return by


def greedy(x: torch.Tensor, candidates: np.ndarray, pool: list[int], k: int) -> list[int]:
    """Row numbers that K-Center greedy picks, as the specification does."""
    centers = np.searchsorted(candidates, pool).tolist()
    return candidates[reference.kcenter(x[candidates], k, centers)[0]].tolist()


@pytest.fixture
def candidates(settings):
    """What a run may pick from: all but the validation rows."""
    validation = np.random.default_rng(0).permutation(90)[: settings["val_set_size"]]
    return np.setdiff1d(np.arange(90), validation)


def test_the_config_knows_every_strategy():
    assert all(strategy.name == name and strategy.title for name, strategy in STRATEGIES.items())


@pytest.mark.slow
def test_all_begin_with_the_same_pool_and_pick_others(tmp_path, settings, candidates):
    found = {schedule: rounds_of(made(tmp_path, settings, schedule, **VENDI)) for schedule in STRATEGIES}
    assert len({tuple(rounds[0]) for rounds in found.values()}) == 1
    for rounds in found.values():
        rows = list(chain(*rounds))
        assert [len(part) for part in rounds] == [6, 5, 5]
        assert len(set(rows)) == 16
        assert set(rows) <= set(candidates)
    picked = {tuple(rounds[1]) for schedule, rounds in found.items() if schedule != "OneShotKCenterSampling"}
    assert len(picked) == len(STRATEGIES) - 1  # one-shot begins as K-Center does
    assert found["OneShotKCenterSampling"][1] == found["KCenterSampling"][1]
    assert found["OneShotKCenterSampling"][2] != found["KCenterSampling"][2]


@pytest.mark.parametrize(
    ("schedule", "column", "descending"),
    [("LeastConfidence", 0, False), ("MarginSampling", 1, False), ("EntropySampling", 2, True)],
)
def test_uncertainty_is_that_of_the_last_model(schedule, column, descending, tmp_path, settings, candidates, alone):
    state = made(tmp_path, settings, schedule)
    pool = []
    for r, selected in enumerate(rounds_of(state)):
        if r > 0:
            values = alone(state.model_folder(r - 1))[1][:, column]
            rest = np.setdiff1d(candidates, pool)
            expected = values[rest].sort(descending=descending).values[:5]
            assert set(selected) <= set(rest)
            torch.testing.assert_close(values[selected], expected, rtol=1e-6, atol=0)  # rows may tie in float32
        pool += selected
    assert "radius" not in state.metrics(1)["select"]
    assert not list(state.folder.rglob("statistics.npy*"))


def test_one_shot_is_one_embedding_and_the_nested_picks_of_its_model(tmp_path, settings, candidates, alone):
    state = made(tmp_path, settings, "OneShotKCenterSampling")
    pool, *picked = rounds_of(state)
    assert list(chain(*picked)) == greedy(alone(state.model_folder(0))[0], candidates, pool, 10)
    assert "embed" in state.metrics(1)
    assert "embed" not in state.metrics(2)
    for r in (1, 2):  # each round's own last pick
        last = json.loads((state.round_folder(r) / "selected.json").read_text())["sqdist"][-1]
        assert state.metrics(r)["select"]["radius"] == last**0.5
    assert list(state.metrics(2)["select"]) == ["radius"]
    record = json.loads((state.round_folder(2) / "selected.json").read_text())
    assert len(record["sqdist"]) == 5


@pytest.mark.slow
def test_static_embeddings_are_the_base_models(tmp_path, settings, candidates, alone, tiny_model):
    state = made(tmp_path, settings, "StaticKCenterSampling")
    pool, *picked = rounds_of(state)
    assert list(chain(*picked)) == greedy(alone(tiny_model)[0], candidates, pool, 10)
    assert "embed" in state.metrics(1)
    assert "embed" not in state.metrics(2)  # embedded once
    assert not list(state.folder.rglob("*embeddings.npy*"))
    kept = made(
        tmp_path,
        settings | {"output_dir": str(tmp_path / "kept")},
        "StaticKCenterSampling",
        output_dir=str(tmp_path / "kept"),
        keep_embeddings=True,
    )
    assert kept.base_embeddings_file.is_file()


@pytest.mark.slow
def test_vendi_sampling_takes_the_batch_of_the_rank(tmp_path, settings, candidates, alone, tiny_model):
    x = alone(tiny_model)[0][candidates]
    pool = None
    for rank in (0, 1, -1):
        state = made(
            tmp_path,
            settings,
            "VendiSampling",
            output_dir=str(tmp_path / f"rank{rank}"),
            max_random_times=4,
            vendi_argmax_rank=rank,
        )
        pool = np.searchsorted(candidates, state.selected(0)).tolist()
        scores = sorted(vendi_score(x[pool + draw(80, pool, 5, 0, 4 + number)]) for number in range(4))[::-1]
        assert state.metrics(1)["select"]["vendi"] == pytest.approx(scores[rank], rel=1e-5)
        added = np.searchsorted(candidates, state.selected(1)).tolist()
        assert vendi_score(x[pool + added]) == pytest.approx(scores[rank], rel=1e-5)


def test_whitening_in_a_run(tmp_path, settings, candidates, alone, capsys):
    state = made(tmp_path, settings, "KCenterSampling", whiten_n_components=8)
    pool, first, _ = rounds_of(state)
    x = alone(state.model_folder(0))[0][candidates]
    centers = np.searchsorted(candidates, pool).tolist()
    assert first == candidates[reference.kcenter(whiten(x, 8), 5, centers)[0]].tolist()
    settings |= {"whiten_n_components": 50, "output_dir": str(tmp_path / "too-many")}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
    expected = "whiten_n_components: expected at most 32 with 80 candidates in 32 dimensions, got 50"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "too-many" / "output").exists()
    settings["whiten_n_components"] = 8
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0  # the folder is not spoilt


@pytest.mark.slow
def test_stopped_after_one_shot_has_chosen_for_some_rounds(tmp_path, settings):
    """Later rounds' picks are recorded first: round 1's stands for all of them."""
    state = made(tmp_path, settings, "OneShotKCenterSampling")
    before = rounds_of(state)
    for r in (1, 2):
        for name in ("output", "state"):
            folder = state.folder / name / f"rd_{r}"
            folder.rename(tmp_path / f"{name}{r}")
    state.record_selected(2, [0, 1, 2, 3, 4], None)  # as of a stop between the two records
    assert main(["run", str(tmp_path / "config.yml"), "--quiet"]) == 0
    assert rounds_of(state) == before


def test_whitened_rows_have_equal_variances_in_all_directions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 100
    exact = x.double() - x.double().mean(dim=0)
    u, s, _ = torch.linalg.svd(exact.T @ exact / 500)
    for n in (1, 5, 12):
        expected = torch.nn.functional.normalize(exact @ u[:, :n] @ torch.diag(s[:n].rsqrt()), dim=1)
        found = whiten(x, n)
        assert found.dtype == torch.float32
        torch.testing.assert_close((found @ found.T).double(), expected @ expected.T, rtol=0, atol=1e-5)
    constant = torch.ones(5, 3)
    constant[0] = 2.0
    assert whiten(constant, 1).shape == (5, 1)
    with pytest.raises(ValueError, match="expected 1 to 1, the rank of 5 rows, got 2"):
        whiten(constant, 2)
    with pytest.raises(ValueError, match="expected 1 to 0, the rank of 5 rows, got 1"):
        whiten(torch.ones(5, 3), 1)


def test_random_picks_are_seeded_by_seed_and_round():
    pool = [3, 7]
    found = draw(50, pool, 10, 0, 1)
    assert found == draw(50, pool, 10, 0, 1)
    assert len({tuple(draw(50, pool, 10, seed, r)) for seed in (0, 1) for r in (1, 2)}) == 4
    assert sorted(draw(50, pool, 48, 0, 1) + pool) == list(range(50))


def test_uncertain_ties_go_to_the_lowest_row():
    statistics = torch.tensor([[1.0, 5.0, 2.0], [1.0, 4.0, 2.0], [0.5, 4.0, 3.0], [1.0, 4.0, 2.0]])
    assert STRATEGIES["LeastConfidence"].pick_from(statistics, [2], 3) == [0, 1, 3]
    assert STRATEGIES["MarginSampling"].pick_from(statistics, [2], 2) == [1, 3]
    assert STRATEGIES["EntropySampling"].pick_from(statistics, [], 2) == [2, 0]


def test_vendi_ranks_all_draws():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    ranked = [pick_by_vendi(x, [0, 1], 5, times=6, rank=rank, seed=0, r=1)[1] for rank in range(6)]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) == 6
    draws = [draw(40, [0, 1], 5, 0, 6 + number) for number in range(6)]
    assert sorted(vendi_score(x[[0, 1, *draw]]) for draw in draws) == ranked[::-1]


def test_statistics_do_not_depend_on_the_batch(tiny_model):
    encoder = uncertainty_encoder(load_causal_lm(tiny_model))
    ids = torch.randint(0, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20)[None] < torch.tensor([20, 7, 1])[:, None]
    with torch.inference_mode():
        hidden = encoder.body(input_ids=ids).last_hidden_state
        together = encoder.pool(hidden, mask)
        apart = [encoder.pool(hidden[i : i + 1, : mask[i].sum()], mask[i : i + 1, : mask[i].sum()]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-6, atol=1e-6)


def test_the_head_is_found_alone_under_the_autocast_that_training_leaves(tmp_path):
    """At more than tiny width, rounding in bfloat16 is larger than any tolerance that would find a cap."""
    from accelerate.utils.operations import convert_outputs_to_fp32
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=8,
            num_attention_heads=4,
            initializer_range=0.1,
        )
    )
    check_head(model)
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    check_head(model)


def test_a_lora_head_is_refused(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_causal_lm(tiny_model), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(InputError, match="does more to its logits than its head does"):
        check_head(model)


@pytest.mark.parametrize(("schedule", "backend"), [("LeastConfidence", "native"), ("KCenterSampling", "torch")])
def test_a_backend_that_a_strategy_has_not_is_said_before_any_work(
    schedule, backend, tmp_path, settings, monkeypatch, capsys
):
    monkeypatch.setenv("DIVERSEEVOL_BACKEND", backend)
    settings |= {"evol_schedule_name": schedule, "output_dir": str(tmp_path / "run")}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
    assert f"DIVERSEEVOL_BACKEND='{backend}'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "output").exists()


def test_a_model_whose_logits_are_capped_is_refused_before_training(tmp_path, settings, capsys, monkeypatch):
    def refuse(model):
        raise InputError("model: capped")

    monkeypatch.setattr("diverseevol_fast.runs.inputs.check_head", refuse)
    settings |= {"evol_schedule_name": "EntropySampling", "output_dir": str(tmp_path / "run")}
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 2
    assert "model: capped" in capsys.readouterr().err
    assert not (tmp_path / "run" / "output").exists()


def test_a_row_whose_logits_are_not_finite_is_named(tiny_model):
    model = load_causal_lm(tiny_model)
    encoder = uncertainty_encoder(model)
    hidden, mask = torch.randn(3, 5, 32), torch.arange(5)[None] < torch.tensor([5, 2, 3])[:, None]
    hidden[1, 4] = torch.inf  # padding
    hidden[2, 1] = torch.inf
    with pytest.raises(CandidateError) as raised:
        encoder.pool(hidden, mask)
    assert raised.value.candidate == 2


@pytest.mark.parametrize("cap", [0.1, 30.0])
def test_a_model_that_caps_its_logits_is_refused(cap):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=cap,
    )
    with pytest.raises(InputError, match="Gemma2ForCausalLM does more to its logits than its head does"):
        uncertainty_encoder(Gemma2ForCausalLM(config))
