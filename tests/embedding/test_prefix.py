"""Shared prefixes: the groups that rows make, and embeddings that do not change when a prefix is run once."""

import numpy as np
import pytest
import torch
from support.embedding import embed_rows, file_store
from support.model_families import CAUSAL, DIM, PLAIN, build, rows_after, tokens_of
from support.one_by_one import one_by_one

from diverseevol_fast.data.batches import pad
from diverseevol_fast.data.dataset import Data
from diverseevol_fast.data.schemas import Alpaca
from diverseevol_fast.data.templates import PROMPT, PROMPT_WITH_INPUT
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.embedding.prefix import can_share_prefixes, group_rows, run_prefix
from diverseevol_fast.embedding.store import FileStore
from diverseevol_fast.models.load import backbone, load_tokenizer


def embed(model, tokens, path, budget=1024, share=True):
    store = file_store(path, len(tokens), DIM, budget=budget)
    metrics = embed_rows(model, tokens, np.arange(len(tokens)), store, share_prefixes=share)
    return store.values.numpy(), metrics


def check_against_one_by_one(model, tokens, folder, budget=1024):
    """Both ways within 1e-5 of float64; returns their metrics."""
    shared, metrics = embed(model, tokens, folder / "shared.npy", budget)
    plain, plain_figures = embed(model, tokens, folder / "plain.npy", budget, share=False)
    expected = one_by_one(model, tokens)
    for got in (shared, plain):
        error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() <= 1e-5
    assert metrics["tokens"] == plain_figures["tokens"] == len(tokens.ids)
    assert plain_figures["prefix_share"] == 0
    return metrics, plain_figures


@pytest.mark.parametrize("family", CAUSAL)
def test_causal_models_share_and_equal_one_by_one(tmp_path, two_groups, family):
    model = build(family)
    assert can_share_prefixes(backbone(model))
    metrics, _ = check_against_one_by_one(model, two_groups, tmp_path)
    assert metrics["prefix_share"] == (49 * 40 + 39 * 45) / len(two_groups.ids)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention(tmp_path, two_groups, attention):
    model = build("mistral, window above the prefix")
    model.set_attn_implementation(attention)
    assert check_against_one_by_one(model, two_groups, tmp_path)[0]["prefix_share"] > 0


@pytest.mark.parametrize("family", PLAIN)
def test_other_models_run_whole_rows(tmp_path, two_groups, family):
    model = build(family)
    assert not can_share_prefixes(backbone(model))
    shared, metrics = embed(model, two_groups, tmp_path / "shared.npy")
    plain, _ = embed(model, two_groups, tmp_path / "plain.npy", share=False)
    np.testing.assert_array_equal(shared, plain)
    assert metrics["prefix_share"] == 0
    expected = one_by_one(model, two_groups)
    assert np.abs(shared - expected).max() <= 1e-5 * np.abs(expected).max()


def test_two_groups_are_found(two_groups):
    groups = group_rows(two_groups, np.arange(len(two_groups)), 1024)
    found = {len(group.prefix): sum(map(len, group.batches)) for group in groups}
    assert found == {40: 50, 45: 40, 0: 5}
    check_division(groups, two_groups, 1024)


def check_division(groups, tokens, budget):
    """Every row once, after its group's prefix and with a token of its own, in batches within the budget."""
    lengths = tokens.lengths()
    assert sorted(np.concatenate([batch for group in groups for batch in group.batches])) == list(range(len(tokens)))
    for group in groups:
        for batch in group.batches:
            assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
            for row in batch:
                assert tokens.row(row)[0][: len(group.prefix)].tolist() == group.prefix.tolist()
                assert lengths[row] > len(group.prefix)


def test_rows_of_a_template_with_and_without_input(rows, tiny_model):
    with_input = [row | {"input": f"{row['instruction'][::-1]} {place}"} for place, row in enumerate(rows)]
    columns = {name: name for name in ("instruction", "input", "output")}
    data = Data([*(row | {"input": ""} for row in rows), *with_input], Alpaca(), columns, "rows")
    tokenizer = load_tokenizer(tiny_model)
    tokens = tokenize(data, tokenizer, 512)
    groups = group_rows(tokens, np.arange(len(tokens)), 4096)
    check_division(groups, tokens, 4096)
    found = {tokenizer.decode(group.prefix): sorted(np.concatenate(group.batches).tolist()) for group in groups}
    count = len(rows)
    assert found == {
        text.split("{instruction}")[0]: list(members)
        for text, members in ((PROMPT, range(count)), (PROMPT_WITH_INPUT, range(count, 2 * count)))
    }


@pytest.mark.parametrize("budget", [1, 100, 4096])
def test_any_budget(tmp_path, two_groups, budget):
    check_division(group_rows(two_groups, np.arange(len(two_groups)), budget), two_groups, budget)
    metrics, _ = check_against_one_by_one(build("llama"), two_groups, tmp_path, budget)
    assert metrics["prefix_share"] > 0
    assert (metrics["padding"] == 0) == (budget == 1)


def test_groups_are_of_the_rows_asked_for(two_groups):
    rows = np.random.default_rng(1).permutation(len(two_groups))[:60]
    for group in group_rows(two_groups, rows, 1024):
        for batch in group.batches:
            for row in rows[batch]:
                assert two_groups.row(row)[0][: len(group.prefix)].tolist() == group.prefix.tolist()


COMMON = np.arange(10, 40)
SPECIAL = {
    "one row": [COMMON],
    "a row of one token": [COMMON[:1]],
    "a row that is another's beginning": [COMMON[:20], *rows_after(np.random.default_rng(0), COMMON, 60)],
    "a row equal to the common prefix": [COMMON, *rows_after(np.random.default_rng(1), COMMON, 60)],
    "all rows identical": [COMMON] * 80,
    "one row of another kind": [COMMON[::-1], *rows_after(np.random.default_rng(2), COMMON, 60)],
    "no two alike": rows_after(np.random.default_rng(3), COMMON[:0], 60),
    "one token over and over": [np.full(length, 7) for length in range(1, 200)],
}


@pytest.mark.parametrize("case", SPECIAL)
def test_special_rows(tmp_path, case):
    tokens = tokens_of(SPECIAL[case])
    groups = group_rows(tokens, np.arange(len(tokens)), 2048)
    check_division(groups, tokens, 2048)
    metrics, _ = check_against_one_by_one(build("llama"), tokens, tmp_path, 2048)
    shares_nothing = case in ("one row", "a row of one token", "no two alike", "one token over and over")
    assert (metrics["prefix_share"] == 0) == shares_nothing
    if case == "all rows identical":
        assert [len(group.prefix) for group in groups] == [len(COMMON) - 1]


def test_no_rows():
    assert group_rows(tokens_of([COMMON]), np.array([], dtype=np.int64), 100) == []


def test_a_batch_leaves_no_trace_in_the_next():
    generator = np.random.default_rng(0)
    tokens = tokens_of(rows_after(generator, COMMON, 12))
    for family in ("llama", "gpt2", "mistral, window below the prefix"):
        body = backbone(build(family))

        def hidden(prefix, rows, body=body):
            ids, _, _ = pad(tokens, rows)
            return prefix.run(body, ids[:, len(COMMON) :])

        with torch.inference_mode():
            prefix = run_prefix(body, COMMON, torch.device("cpu"))
            before = [layer.keys.clone() for layer in prefix.cache.layers]
            for rows in (np.arange(5), np.arange(5, 12), np.array([3])):
                alone = hidden(run_prefix(body, COMMON, torch.device("cpu")), rows)
                assert torch.equal(hidden(prefix, rows), alone)
        for layer, keys in zip(prefix.cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)


class StopHereError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("written", [1, 3, 6])
def test_started_again_it_gives_the_same_array(tmp_path, two_groups, monkeypatch, written):
    monkeypatch.setattr("diverseevol_fast.embedding.store.SECONDS_BETWEEN_FLUSHES", 0.0)
    undisturbed, _ = embed(build("llama"), two_groups, tmp_path / "y.npy")
    write, numbers = FileStore.write, []

    def write_until(store, number, rows, values):
        if len(numbers) == written:
            raise StopHereError
        numbers.append(number)
        write(store, number, rows, values)

    monkeypatch.setattr(FileStore, "write", write_until)
    with pytest.raises(StopHereError):
        embed(build("llama"), two_groups, tmp_path / "x.npy")
    monkeypatch.setattr(FileStore, "write", write)
    again, metrics = embed(build("llama"), two_groups, tmp_path / "x.npy")
    assert numbers == list(range(written))
    assert metrics["tokens"] < len(two_groups.ids)
    np.testing.assert_array_equal(again, undisturbed)


def test_other_batches_mean_another_store(tmp_path, monkeypatch):
    def opened():
        return file_store(tmp_path / "x.npy", 2, DIM)

    store = opened()
    store.write(0, torch.tensor([0]), torch.ones(1, DIM))
    store.flush()
    assert opened().done == {0}
    monkeypatch.setattr("diverseevol_fast.embedding.store.BATCHING", "another way")
    assert opened().done == set()
