"""Packed rows: equal to one by one in float64 where the kernel is right; where it is not, found out and padded."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.embedding import NONE
from support.model_families import CAUSAL, DIM, GROUPED_QUERY, build, rows_after, spread, tokens_of
from support.one_by_one import one_by_one
from transformers import (
    DeepseekV3Config,
    DeepseekV3Model,
    Gemma2Config,
    Gemma2Model,
    Llama4TextConfig,
    Llama4TextModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
)

from diverseevol_fast import kcenter
from diverseevol_fast.embedding import packing
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.embedding.engine import Engine
from diverseevol_fast.embedding.packing import NAME, Layout, kernel_for, packed
from diverseevol_fast.embedding.store import MemoryStore
from diverseevol_fast.models.load import backbone

SMALL = GROUPED_QUERY | {"num_hidden_layers": 2}
BUDGET = 1024


def kernel(query, key, value, queries, keys, longest_query, longest_key, scale, window, causal_at="end", apart=True):
    """The Kernel contract in plain torch; causal_at "start" and apart=False are two ways to be wrong."""
    assert queries.dtype == keys.dtype == torch.int32
    assert longest_query == int(queries.diff().max())
    assert longest_key == int(keys.diff().max())
    repeats, out = query.shape[1] // key.shape[1], torch.empty_like(query)
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if not apart:
        queries, keys = queries[[0, -1]], keys[[0, -1]]
    for i, j, k, m in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
        offset = (m - k) - (j - i) if causal_at == "end" else 0
        at, of = torch.arange(j - i)[:, None] + offset, torch.arange(m - k)[None]
        left, right = (reach if reach >= 0 else len(key) for reach in window)
        scores = torch.einsum("qhd,khd->hqk", query[i:j], key[k:m])
        scores *= query.shape[-1] ** -0.5 if scale is None else scale
        weights = scores.masked_fill((of < at - left) | (of > at + right), -torch.inf).softmax(-1)
        out[i:j] = torch.einsum("hqk,khd->qhd", weights, value[k:m])
    return out


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """As if there were a kernel for this device."""
    monkeypatch.setattr(packing, "kernel_for", lambda body: kernel)


@pytest.fixture
def calls(monkeypatch):
    """How many batches and prefixes ran packed."""
    seen, call = [], packing.Packing._call
    monkeypatch.setattr(packing.Packing, "_call", lambda *given: (seen.append(len(given[1])), call(*given))[1])
    return seen


def run(model, tokens, share=True, pack=True, first=NONE):
    encoder = encoder_of(model)
    store = MemoryStore(len(tokens), encoder.dim, torch.float32, "cpu", BUDGET)
    engine = Engine(encoder, tokens, np.arange(len(tokens)), store, BUDGET, share_prefixes=share, pack=pack)
    return store.values.numpy(), engine.run(np.asarray(first), progress=False)


def check_equal(model, tokens, share=True, pack=True):
    """Within 1e-5 of one by one in float64, with the attention as it was; returns the metrics."""
    body = backbone(model)
    before = body.config._attn_implementation
    values, metrics = run(model, tokens, share, pack)
    assert body.config._attn_implementation == before != NAME
    expected = one_by_one(model, tokens)
    error = np.linalg.norm(values - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() <= 1e-5
    return metrics


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_packed_equals_one_by_one_and_has_no_padding(two_groups, family, share, calls):
    metrics = check_equal(build(family), two_groups, share)
    assert len(calls) > 3
    assert metrics["padding"] == 0
    shared = 49 * 40 + 39 * 45 if share and family != "bert" else 0
    assert metrics["prefix_share"] == shared / len(two_groups.ids)


def test_pack_false_runs_padded(two_groups, calls):
    assert check_equal(build("llama"), two_groups, pack=False)["padding"] > 0
    assert not calls


def test_packed_batches_arrive_in_the_stream(two_groups):
    model, first = build("qwen2"), [3, 60, 17]
    encoder = encoder_of(model)
    store = MemoryStore(len(two_groups), DIM, torch.float32, "cpu", BUDGET)
    engine = Engine(encoder, two_groups, np.arange(len(two_groups)), store, BUDGET)
    assert engine.run(np.array(first), progress=False)["padding"] == 0
    np.testing.assert_array_equal(engine.stream.select(20).indices, kcenter(store.values, 20, first).indices)


def test_the_attention_is_restored_after_an_exception(two_groups):
    body = backbone(build("llama"))
    before = body.config._attn_implementation
    with pytest.raises(ZeroDivisionError), packed(body, True) as found:  # noqa: PT012
        assert found is not None
        assert body.config._attn_implementation == NAME
        raise ZeroDivisionError
    assert body.config._attn_implementation == before
    ids = torch.arange(5)[None]
    assert torch.isfinite(body(input_ids=ids).last_hidden_state).all()


def test_no_batch_is_left_behind_by_an_exception_within_it():
    body = backbone(build("llama"))
    with packed(body, False) as found:
        with pytest.raises(IndexError):
            found.run(torch.tensor([0, 10**6]), torch.tensor([2]), None)
        assert packing._layout is None
        assert found.run(torch.tensor([5, 6, 7]), torch.tensor([2, 1]), None).shape == (3, DIM)


WRONG = {"rows see each other": {"apart": False}, "aligned at the start": {"causal_at": "start"}}
FOUND_IN = [(family, wrong) for family in ("llama", "gpt2", "mistral, window above the prefix") for wrong in WRONG]


@pytest.mark.parametrize(("family", "wrong"), [*FOUND_IN, ("bert", "rows see each other")])
def test_a_wrong_kernel_is_found_by_the_probe(monkeypatch, family, wrong):
    monkeypatch.setattr(packing, "kernel_for", lambda body: lambda *given: kernel(*given, **WRONG[wrong]))
    with packed(backbone(build(family)), with_prefix=family != "bert") as found:
        assert found is None


@pytest.mark.parametrize(("family", "wrong"), [*FOUND_IN, ("bert", "rows see each other")])
def test_with_a_wrong_kernel_rows_are_padded(monkeypatch, two_groups, family, wrong):
    monkeypatch.setattr(packing, "kernel_for", lambda body: lambda *given: kernel(*given, **WRONG[wrong]))
    assert check_equal(build(family), two_groups)["padding"] > 0


def test_rows_that_see_each_other_are_found_in_a_model_of_fresh_weights(monkeypatch):
    monkeypatch.setattr(packing, "kernel_for", lambda body: lambda *given: kernel(*given, apart=False))
    with packed(LlamaModel(LlamaConfig(**SMALL)).eval(), with_prefix=False) as found:
        assert found is None


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, NotImplementedError])
def test_with_a_kernel_that_refuses_the_model_rows_are_padded(monkeypatch, two_groups, error):
    def refuse(*given):
        raise error("head dimension 8 is not supported")

    monkeypatch.setattr(packing, "kernel_for", lambda body: refuse)
    assert check_equal(build("llama"), two_groups)["padding"] > 0


MORE_THAN_THE_KERNEL = {
    "gemma2, softcap": lambda: Gemma2Model(Gemma2Config(**SMALL, head_dim=8)),
    "modernbert, windows to both sides": lambda: ModernBertModel(
        ModernBertConfig(
            **SMALL,
            local_attention=16,
            pad_token_id=0,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "deepseek, values narrower than keys": lambda: DeepseekV3Model(
        DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=2,
        )
    ),
}


@pytest.mark.parametrize("family", MORE_THAN_THE_KERNEL)
@pytest.mark.parametrize("share", [True, False])
def test_attention_that_is_more_than_the_kernel_is_padded(two_groups, family, share):
    assert check_equal(spread(MORE_THAN_THE_KERNEL[family]()), two_groups, share)["padding"] > 0


def test_attention_in_chunks_equals_one_by_one():
    config = Llama4TextConfig(
        **SMALL, head_dim=8, intermediate_size_mlp=64, attention_chunk_size=16, num_local_experts=2
    )
    tokens = tokens_of(rows_after(np.random.default_rng(0), np.arange(3), 20))
    check_equal(spread(Llama4TextModel(config)), tokens)


def test_rotary_frequencies_by_length_equal_one_by_one():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    config = LlamaConfig(**SMALL, rope_parameters=rope | {"original_max_position_embeddings": 40})
    tokens = tokens_of(rows_after(np.random.default_rng(0), np.arange(3), 20))
    model = spread(LlamaModel(config))
    for pack in (False, True):
        check_equal(model.float(), tokens, pack=pack)


def test_layout_by_hand():
    layout = Layout(torch.tensor([2, 1, 3]), 3, kernel, torch.device("cpu"))
    assert layout.queries.tolist() == [0, 2, 3, 6]
    assert layout.queries.dtype == torch.int32
    assert layout.keys(0)[0] is None
    places, limits = layout.keys(2)  # keys 0 and 1 are the prefix's, 2 to 7 the rows'
    assert places.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 5, 6, 7]
    assert limits.tolist() == [0, 4, 7, 12]
    assert limits.dtype == torch.int32
    assert layout.keys(2)[0] is places


def test_there_is_no_kernel_on_a_cpu(monkeypatch):
    monkeypatch.undo()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert kernel_for(torch.nn.Linear(2, 2, dtype=dtype)) is None
    with packed(backbone(build("llama")), True) as found:
        assert found is None


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (0, 0), (7, 0)])
def test_flash_attention_is_told_the_window(monkeypatch, window):
    monkeypatch.undo()
    told = {}
    flash = SimpleNamespace(flash_attn_varlen_func=lambda *given, **options: told.update(options))
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    weight = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    run = kernel_for(SimpleNamespace(parameters=lambda: iter([weight])))
    run(None, None, None, None, None, 1, 1, 0.5, window)
    assert told["causal"] == (window[1] == 0)
    assert told["softmax_scale"] == 0.5
    assert told["window_size"] == (window if window[0] >= 0 else (-1, -1))
