"""Embeddings: equal to one row at a time in float64, kept across a crash, refused when not finite."""

import numpy as np
import pytest
import torch
from support.embedding import embed_rows, file_store
from support.one_by_one import StopHereError, one_by_one
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from diverseevol_fast._common.errors import InputError, RunError
from diverseevol_fast.data.batches import pad, token_budget_batches
from diverseevol_fast.data.dataset import load_data
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.embedding.embed_tokens import embed_tokens
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.models.load import backbone, load_causal_lm, load_encoder, load_tokenizer


@pytest.fixture
def tokens(data_file, tiny_model):
    return tokenize(load_data(str(data_file))[0], load_tokenizer(tiny_model), 128)


def store_for(path, tokens, dim=32, **provenance):
    return file_store(path, len(tokens), dim, **provenance)


def families(tiny_model, vocabulary):
    torch.manual_seed(1)
    gpt2 = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    bert = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    return {
        "llama": LlamaForCausalLM.from_pretrained(tiny_model),
        "llama without head": AutoModel.from_pretrained(tiny_model),
        "gpt2": GPT2LMHeadModel(gpt2),
        "bert": BertModel(bert),
    }


@pytest.mark.parametrize("family", ["llama", "llama without head", "gpt2", "bert"])
@pytest.mark.parametrize("budget", [1, 300, 5000])
def test_equals_one_by_one_float64(tmp_path, tokens, tiny_model, family, budget):
    model = families(tiny_model, int(tokens.ids.max()) + 1)[family]
    store = store_for(tmp_path / "x.npy", tokens, budget=budget)
    metrics = embed_rows(model, tokens, np.arange(len(tokens)), store)
    expected = one_by_one(model, tokens)
    got = store.values.numpy()
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert metrics["tokens"] == len(tokens.ids)
    assert (metrics["padding"] == 0) == (budget == 1)


def test_a_subset_of_rows_in_their_order(tmp_path, tokens, tiny_model):
    model = load_causal_lm(tiny_model)
    everything, some = store_for(tmp_path / "a.npy", tokens), np.array([7, 3, 50])
    embed_rows(model, tokens, np.arange(len(tokens)), everything)
    store = file_store(tmp_path / "b.npy", 3)
    embed_rows(model, tokens, some, store)
    np.testing.assert_allclose(store.values.numpy(), everything.values.numpy()[some], rtol=0, atol=1e-6)


def test_batches_cover_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    batches = token_budget_batches(lengths, 1000)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 1000
    assert lengths[batches[0]].max() == lengths.max()
    assert [len(batch) for batch in token_budget_batches(np.array([50, 3]), 10)] == [1, 1]
    assert token_budget_batches(np.array([], dtype=np.int64), 10) == []


def test_pad(tokens):
    rows = np.array([4, 9])
    ids, mask, is_response = pad(tokens, rows)
    for place, row in enumerate(rows):
        length = tokens.lengths()[row]
        assert ids[place][mask[place]].tolist() == tokens.row(row)[0].tolist()
        assert is_response[place][:length].tolist() == tokens.row(row)[1].tolist()
        assert not mask[place][length:].any()
        assert not is_response[place][length:].any()


def counting(model, stop_after=None):
    """The model with the batches that go through it counted; raises after `stop_after` of them."""
    body = backbone(model)
    calls = []

    def hook(module, args, kwargs):
        if len(kwargs["input_ids"]) == 1:  # a look at what the model can do
            return
        if stop_after is not None and len(calls) == stop_after:
            raise StopHereError
        calls.append(kwargs["input_ids"].shape)

    body.register_forward_pre_hook(hook, with_kwargs=True)
    return model, calls


def test_finished_batches_survive_a_crash(tmp_path, tokens, tiny_model, monkeypatch):
    monkeypatch.setattr("diverseevol_fast.embedding.store.SECONDS_BETWEEN_FLUSHES", 0.0)
    rows, path = np.arange(len(tokens)), tmp_path / "x.npy"
    undisturbed = store_for(tmp_path / "y.npy", tokens)
    model, all_calls = counting(load_causal_lm(tiny_model))
    embed_rows(model, tokens, rows, undisturbed, share_prefixes=False)

    model, calls = counting(load_causal_lm(tiny_model), stop_after=5)
    with pytest.raises(StopHereError):
        embed_rows(model, tokens, rows, store_for(path, tokens), share_prefixes=False)
    assert not path.exists()

    model, calls = counting(load_causal_lm(tiny_model))
    store = store_for(path, tokens)
    assert store.done == set(range(5))
    embed_rows(model, tokens, rows, store, share_prefixes=False)
    assert len(calls) == len(all_calls) - 5
    np.testing.assert_array_equal(store.values.numpy(), undisturbed.values.numpy())

    assert store_for(path, tokens).complete
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("x")) == ["x.npy", "x.npy.json"]


def test_a_half_written_progress_line_is_not_trusted(tmp_path, tokens):
    store = store_for(tmp_path / "x.npy", tokens)
    store.write(3, torch.tensor([0]), torch.ones(1, 32))
    store.flush()
    with open(store.progress, "a", encoding="utf-8") as file:
        file.write("1")
    store = store_for(tmp_path / "x.npy", tokens)
    assert store.done == {3}
    store.write(5, torch.tensor([1]), torch.ones(1, 32))
    store.flush()
    assert store_for(tmp_path / "x.npy", tokens).done == {3, 5}


def test_another_fingerprint_starts_anew_or_is_refused(tmp_path, tokens, tiny_model):
    model, path = load_causal_lm(tiny_model), tmp_path / "x.npy"
    store = store_for(path, tokens, model="a")
    store.write(0, torch.tensor([0]), torch.ones(1, 32))
    store.flush()
    assert store_for(path, tokens, model="a").done == {0}
    assert store_for(path, tokens, model="b").done == set()
    store = store_for(path, tokens, model="b")
    embed_rows(model, tokens, np.arange(len(tokens)), store)
    assert store_for(path, tokens, model="b").complete
    with pytest.raises(InputError, match="not made from this data and model"):
        store_for(path, tokens, model="c")


def test_an_embedding_that_is_not_finite_names_the_row(tmp_path, tokens, tiny_model):
    model = load_causal_lm(tiny_model)
    with torch.no_grad():
        model.get_input_embeddings().weight[int(tokens.row(17)[0][-2])] = float("nan")
    bad = [row for row in range(len(tokens)) if int(tokens.row(17)[0][-2]) in tokens.row(row)[0]]
    with pytest.raises(RunError, match=r"embedding of row (\d+) is not finite") as caught:
        embed_rows(model, tokens, np.arange(len(tokens)), store_for(tmp_path / "x.npy", tokens))
    assert int(str(caught.value).split("row ")[1].split()[0]) in bad


def test_a_vocabulary_that_does_not_fit(tmp_path, tokens, tiny_model):
    model = load_causal_lm(tiny_model)
    model.resize_token_embeddings(300)
    with pytest.raises(InputError, match="the model has embeddings for 0 to 299"):
        embed_tokens(encoder_of(model), tokens, np.arange(len(tokens)), store=tmp_path / "x.npy", provenance={})
    assert list(tmp_path.glob("x.npy*")) == []


def test_encoder_decoders_are_refused(tmp_path):
    from transformers import T5Config, T5Model

    T5Model(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="an encoder-decoder model"):
        encoder_of(load_encoder(tmp_path))
