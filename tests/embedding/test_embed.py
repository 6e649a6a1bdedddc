"""embed: texts and rows to memory or a file that goes on after a crash, picks as kcenter's, and what is refused."""

import copy
import logging

import numpy as np
import pytest
import torch
from support.data import data_of
from support.embedding import stopped_after
from support.model_families import build
from support.one_by_one import StopHereError

from diverseevol_fast import embed, kcenter
from diverseevol_fast._common.errors import InputError, RunError
from diverseevol_fast.data.templates import PROMPT
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.demo.rows import generate_rows
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.embedding.precision import compare, lowered
from diverseevol_fast.models.load import backbone, load_tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PLACES = [("host", dtype) for dtype in DTYPES] + [("device", "bfloat16"), ("x.npy", "float32"), ("x.npy", "float16")]


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "{% for turn in messages %}<s>{{ turn.role }}: {{ turn.content }}</s>{% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def texts():
    return [f"{row['instruction']} {row['output']}"[:60] for row in generate_rows(540, seed=5)]


def other(model, change):
    """A model whose weight or setting is not quite the same."""
    config = copy.deepcopy(model.config)
    config.rope_parameters["rope_theta"] *= 0.01 if change == "settings" else 1
    changed = type(model)(config).eval()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.model.layers[0].self_attn.q_proj.weight[0, 0] += 1e-3 if change == "weights" else 0
    return changed


@torch.no_grad()
def check_alone(model, tokenizer, found, texts, length=None):
    for row, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[:, :length]
        expected = backbone(model)(input_ids=ids).last_hidden_state[0].mean(0)
        assert float((found.values[row] - expected).norm()) <= 1e-5 * float(expected.norm())


def test_texts_are_taken_as_they_are(model, tokenizer, texts):
    found = embed(texts[:20], model, tokenizer)
    check_alone(model, tokenizer, found, texts[:20])
    assert found.metrics["tokens"] == sum(len(tokenizer(text).input_ids) for text in texts[:20])


def test_alpaca_rows_as_a_model_is_trained_on_them(model, tokenizer, rows):
    chosen = [row for row in rows if not row.get("input")][:8]
    trained_on = [PROMPT.format(**row) + row["output"] + "</s>" for row in chosen]
    check_alone(model, tokenizer, embed(chosen, model, tokenizer), trained_on)
    check_alone(model, tokenizer, embed(data_of(chosen), model, tokenizer), trained_on)


def test_messages_go_through_the_chat_template(model, tokenizer, tiny_model):
    answer = {"role": "assistant", "content": "Yes."}
    rows = [{"messages": [{"role": "user", "content": text}, answer]} for text in "abc"]
    written = [f"<s>user: {text}</s><s>assistant: Yes.</s>" for text in "abc"]
    check_alone(model, tokenizer, embed(rows, model, tokenizer), written)
    with pytest.raises(InputError, match="conversations need a chat template"):
        embed(rows, model, load_tokenizer(tiny_model))


@pytest.mark.parametrize(("store", "dtype"), PLACES)
def test_stores_and_dtypes_hold_the_same(model, tokenizer, texts, tmp_path, store, dtype):
    place = store if store != "x.npy" else tmp_path / "folder" / store
    found = embed(texts[:20], model, tokenizer, store=place, store_dtype=dtype)
    assert found.values.dtype == DTYPES[dtype]
    assert torch.equal(found.values, embed(texts[:20], model, tokenizer).values.to(DTYPES[dtype]))
    if store == "x.npy":
        np.testing.assert_array_equal(np.load(place, allow_pickle=False), found.values.numpy())
        assert sorted(path.name for path in place.parent.iterdir()) == ["x.npy", "x.npy.json"]


@pytest.mark.parametrize(("store", "dtype"), PLACES)
def test_picks_after_centers_are_kcenters_and_go_on(model, tokenizer, texts, tmp_path, store, dtype):
    place = store if store != "x.npy" else tmp_path / store
    centers = list(range(500, 483, -1))
    found = embed(texts, model, tokenizer, store=place, store_dtype=dtype, centers_first=centers)
    first, then = found.select(15), found.select(50)
    expected = kcenter(found.values, 65, centers)
    assert [*first.indices, *then.indices] == expected.indices.tolist()
    assert [*first.sqdist, *then.sqdist] == expected.sqdist.tolist()
    assert first.passes < 1  # the block alone; kcenter screens all rows before
    found = embed(texts, model, tokenizer, store_dtype=dtype, centers_first=np.isin(np.arange(len(texts)), centers))
    radius = float(expected.sqdist[20]) ** 0.5
    assert found.select(None, radius=radius).indices.tolist() == expected.indices.tolist()[:20]


@pytest.mark.parametrize("centers", [None, [], np.zeros(60, dtype=bool)])
def test_without_centers_the_seed_draws_the_first_pick(model, tokenizer, texts, centers):
    for seed in (0, 5):
        found = embed(texts[:60], model, tokenizer, centers_first=centers)
        assert found.stream is None
        first, then = found.select(5, seed=seed), found.select(7)
        expected = kcenter(found.values, 12, seed=seed).indices.tolist()
        assert [*first.indices, *then.indices] == expected


def test_all_rows_as_centers_leave_nothing_to_pick(model, tokenizer, texts):
    found = embed(texts[:9], model, tokenizer, centers_first=range(9))
    assert found.select(0).indices.tolist() == found.select(None, radius=0.0).indices.tolist() == []


def stopped(written, *given, **options):
    """embed, stopped after so many batches."""
    with stopped_after(written, StopHereError), pytest.raises(StopHereError):
        embed(*given, **options)


@pytest.mark.parametrize("written", [0, 1, 4, 9])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("centers", [None, [4, 200, 77]])
def test_stopped_in_the_middle_it_goes_on(model, tokenizer, texts, tmp_path, written, dtype, centers):
    options, file = {"store_dtype": dtype, "centers_first": centers}, {"store": tmp_path / "x.npy"}
    whole = embed(texts, model, tokenizer, max_tokens_per_batch=500, **options)
    stopped(written, texts, model, tokenizer, max_tokens_per_batch=500, **options, **file)
    assert not file["store"].exists()
    found = embed(texts, model, tokenizer, max_tokens_per_batch=700, **options, **file)  # the first budget holds
    assert torch.equal(found.values, whole.values)
    assert (found.metrics["tokens"] < whole.metrics["tokens"]) == (written > 0)
    assert found.select(30).indices.tolist() == whole.select(30).indices.tolist()


def changed(change, model, tokenizer, texts):
    """What embed is given when one thing is changed."""
    model = other(model, change) if change in ("weights", "settings") else model
    texts = [*texts[:-1], texts[-1] + "!"] if change == "rows" else texts
    options = {"max_length": 9, "pooling": "last", "store_dtype": "float16"}
    return (texts, model, tokenizer), {name: value for name, value in options.items() if name == change}


def test_a_finished_file_serves_whatever_was_embedded_first(model, tokenizer, texts, tmp_path, monkeypatch):
    """Which rows were in a batch together is of no account; the picks begin with the centers asked for."""
    values = embed(texts[:60], model, tokenizer, store=tmp_path / "x.npy").values
    monkeypatch.setattr("diverseevol_fast.embedding.embed_tokens.Engine", None)
    found = embed(texts[:60], model, tokenizer, store=tmp_path / "x.npy", centers_first=[7, 3])
    assert found.select(9).indices.tolist() == kcenter(values, 9, [7, 3]).indices.tolist()


@pytest.mark.parametrize("change", ["weights", "settings", "rows", "max_length", "pooling", "store_dtype"])
def test_a_file_of_something_else_is_begun_anew_or_refused(model, tokenizer, texts, tmp_path, change):
    path = tmp_path / "x.npy"
    stopped(4, texts, model, tokenizer, store=path, max_tokens_per_batch=500)
    given, options = changed(change, model, tokenizer, texts)
    options["max_tokens_per_batch"] = 500
    found, expected = embed(*given, store=path, **options), embed(*given, **options)
    assert torch.equal(found.values, expected.values)
    with pytest.raises(InputError, match="not made from this data and model"):
        embed(texts, model, tokenizer, store=path)
    np.testing.assert_array_equal(np.load(path), expected.values.numpy())


def test_a_finished_file_is_reused_without_the_model(model, tokenizer, texts, tmp_path, monkeypatch):
    values = embed(texts[:30], model, tokenizer, store=tmp_path / "x.npy").values
    monkeypatch.setattr("diverseevol_fast.embedding.embed_tokens.Engine", None)
    found = embed(texts[:30], model, tokenizer, store=tmp_path / "x.npy", max_length=200)  # which cuts nothing
    assert torch.equal(found.values, values)
    assert (found.metrics, found.first, found.stream) == ({}, [], None)
    assert found.select(9).indices.tolist() == kcenter(values, 9).indices.tolist()


def test_too_long_rows_are_cut_and_counted(model, tokenizer, texts, caplog):
    with caplog.at_level(logging.WARNING, "diverseevol_fast"):
        found = embed(["a", *texts[:2]], model, tokenizer, max_length=3)
    assert "2 of 3 rows are longer than 3 tokens and were cut" in caplog.text
    check_alone(model, tokenizer, found, ["a", *texts[:2]], length=3)


@pytest.mark.parametrize("centers", [None, [0, 1], [17, 2]])
@pytest.mark.parametrize("store", ["host", "x.npy"])
def test_an_embedding_that_is_not_finite_names_its_row(tokenizer, model, texts, tmp_path, centers, store):
    place, rows = store if store == "host" else tmp_path / store, [*texts[:17], texts[17] + "\x7f", *texts[18:30]]
    broken, large = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        broken.get_input_embeddings().weight[tokenizer("\x7f").input_ids] = float("nan")
        large.model.norm.weight *= 1e6
    with pytest.raises(RunError, match="embedding of row 17 is not finite: "):
        embed(rows, broken, tokenizer, store=place, centers_first=centers)
    with pytest.raises(RunError, match=r"embedding of row \d+ is not finite in float16: "):
        embed(rows, large, tokenizer, store=place, centers_first=centers, store_dtype="float16")
    assert torch.isfinite(embed(rows, large, tokenizer, store=place, centers_first=centers).values).all()


TURN = {"instruction": "b", "output": "c"}
WRONG = [
    *(("centers_first", value) for value in ([3], [-1], [0, 0], [0.5], ["a"], np.zeros(2, dtype=bool), 1)),
    *((name, value) for name in ("max_tokens_per_batch", "max_length") for value in (0, -1, True, 2.5, "5")),
    *((name, value) for name in ("store", "store_dtype") for value in ("gpu", "x.bin", 5, None)),
    *(("rows", value) for value in ([], ("a",), None, ["a", TURN], [TURN, "a"], ["a", None], [{"x": 1}])),
    *(("rows, row 1", value) for value in (["a", ""], ["a", "\ud800"], ["a", 1], [TURN, {"instruction": "b"}])),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_arguments_are_named(model, tokenizer, name, value):
    keywords = {"data": value} if name.startswith("rows") else {"data": ["a b", "c", "d"], name: value}
    with pytest.raises(InputError, match=name):
        embed(model=model, tokenizer=tokenizer, **keywords)


def test_a_max_length_without_room_for_the_tokens_that_the_tokenizer_adds_is_refused(model, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_bos_token = tokenizer.add_eos_token = True
    with pytest.raises(InputError, match="max_length"):
        embed(["a b c d"], model, tokenizer, max_length=1)


@pytest.mark.parametrize(("dtype", "words"), [("bfloat16", "file holds float32 or float16"), ("float32", "0 to 99")])
def test_bfloat16_and_another_vocabulary_are_refused_before_a_file_is_made(tokenizer, texts, tmp_path, dtype, words):
    model = build("llama")
    model.resize_token_embeddings(100 if dtype == "float32" else 400)
    with pytest.raises(InputError, match=words):
        embed(texts, model, tokenizer, store=tmp_path / "x.npy", store_dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_model_beside_itself_picks_the_same_and_lowered_keeps_its_buffers(model, tokenizer, texts):
    tokens, encoder = tokenize(data_of(texts), tokenizer, 128), encoder_of(model)
    found = compare(encoder, encoder, tokens, np.arange(len(tokens)))
    assert (found["rows"], found["picks"], found["picks_that_differ"]) == (400, 100, 0)
    assert found["relative_error"] == found["largest_relative_error"] == 0
    rough = lowered(encoder, torch.bfloat16)
    assert 1e-4 < compare(encoder, rough, tokens, np.arange(len(tokens)))["relative_error"] < 0.2
    assert {weight.dtype for weight in rough.body.parameters()} == {rough.dtype} == {torch.bfloat16}
    assert torch.equal(rough.body.rotary_emb.inv_freq, encoder.body.rotary_emb.inv_freq)
    assert {weight.dtype for weight in encoder.body.parameters()} == {torch.float32}
    assert lowered(encoder, torch.float32) is encoder
