"""A lazy round's file: what is interrupted goes on where it was; what does not fit is refused."""

import copy

import numpy as np
import pytest
import torch

from diverseevol_fast import InputError, RunError, load_data
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.embedding.embed_lazily import Earlier, embed_lazily
from diverseevol_fast.embedding.embed_tokens import embed_tokens
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.embedding.engine import Engine
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer

POOL = [3, 4, 50]
SETTINGS = {"bound": "residual", "probe": 20, "audit": 20, "seed": 1}


@pytest.fixture(scope="module")
def round_two(tiny_model):
    """An encoder that differs a little from the one before, the rows' tokens, and their earlier embeddings."""
    from diverseevol_fast.demo.rows import generate_rows

    tokens = tokenize(load_data(generate_rows(250, seed=4))[0], load_tokenizer(tiny_model), 128)
    model = load_causal_lm(tiny_model)
    first = embed_tokens(encoder_of(model), tokens, np.arange(250), store="host", provenance={}, progress=False)
    changed = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in changed.parameters():
            weight += 1e-3 * torch.randn_like(weight)
    return encoder_of(changed), tokens, Earlier(first.values, np.full(250, 1, dtype=np.int32))


def lazily(round_two, folder, **changes):
    encoder, tokens, earlier = round_two
    kwargs = {"r": 2, "earlier": earlier, "store": folder / "x.npy", "provenance": {"of": "a test"}, "first": POOL}
    kwargs |= {"settings": SETTINGS, "max_tokens_per_batch": 256} | changes
    return embed_lazily(encoder, tokens, np.arange(len(tokens)), 12, **kwargs)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("batches", [0, 1, 5, 20, 32])
def test_what_is_interrupted_goes_on(round_two, tmp_path, monkeypatch, batches):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    expected = lazily(round_two, alone)
    run_batch, count = Engine._run_batch, iter(range(1000))

    def stopping(self, batch):
        if next(count) == batches:
            raise KeyboardInterrupt
        run_batch(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_run_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            lazily(round_two, stopped)
    assert not (stopped / "x.npy").exists()
    found = lazily(round_two, stopped)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.result.embedded, expected.result.embedded)
    assert files(stopped) == files(alone)
    assert (found.metrics["tokens"] < expected.metrics["tokens"]) == (batches > 0)


def test_only_rows_that_are_asked_for_are_embedded(round_two, tmp_path):
    encoder, tokens, earlier = round_two
    picks = lazily(round_two, tmp_path)
    whole = embed_tokens(encoder, tokens, np.arange(250), store="host", provenance={}, progress=False, first=POOL)
    assert np.array_equal(picks.indices, whole.select(12).indices)
    embedded, values = picks.result.embedded, np.load(tmp_path / "x.npy")
    assert 0.2 < embedded.mean() < 0.7
    assert picks.metrics["tokens"] == tokens.lengths()[embedded].sum()
    np.testing.assert_allclose(values[embedded], whole.values.numpy()[embedded], atol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy.rounds.npy"), np.where(embedded, 2, 1))
    moved = values[~embedded] - earlier.values.numpy()[~embedded]
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-6)  # the same for all


def test_other_settings_begin_anew(round_two, tmp_path):
    first = lazily(round_two, tmp_path)
    assert not lazily(round_two, tmp_path).metrics  # finished: nothing is embedded
    other = lazily(round_two, tmp_path, settings=SETTINGS | {"seed": 2})
    assert other.metrics["tokens"] > 0
    assert not np.array_equal(other.result.embedded, first.result.embedded)
    later = lazily(round_two, tmp_path, r=3)
    assert set(np.load(tmp_path / "x.npy.rounds.npy")) == {1, 3}
    assert later.metrics["tokens"] > 0


def test_earlier_embeddings_of_another_width_or_number(round_two, tmp_path):
    earlier = round_two[2]
    for values in (earlier.values[:, :-1], earlier.values[:-1]):
        with pytest.raises(InputError, match=r"expected earlier embeddings of \(250, 32\), got"):
            lazily(round_two, tmp_path, earlier=Earlier(values, earlier.rounds[: len(values)]))
    assert files(tmp_path) == {}


def test_embeddings_that_are_not_finite(round_two, tmp_path):
    encoder, tokens, earlier = round_two
    broken = copy.deepcopy(encoder.model)
    with torch.no_grad():
        next(iter(broken.parameters()))[5:200] = float("nan")
    with pytest.raises(RunError, match=r"the model's embedding of row \d+ is not finite"):
        lazily((encoder_of(broken), tokens, earlier), tmp_path)
