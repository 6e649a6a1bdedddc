"""Token budgets: halved when memory runs out, without a row lost or an embedding changed."""

import numpy as np
import pytest
import torch
from support.embedding import NONE
from support.model_families import DIM, build

from diverseevol_fast import kcenter
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.embedding.engine import Engine
from diverseevol_fast.embedding.store import FileStore, MemoryStore
from diverseevol_fast.models.load import backbone
from diverseevol_fast.models.token_budget import CPU_TOKENS, TokenBudget, find_budget

CPU_TEXT = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
OUT_OF_MEMORY = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError(CPU_TEXT),
    "python": MemoryError,
}


def refuse_probe(rows, tokens):
    raise AssertionError("nothing is to be run on a CPU")


@pytest.mark.parametrize(("longest", "expected"), [(1, CPU_TOKENS), (CPU_TOKENS, CPU_TOKENS), (5000, 5000)])
def test_on_a_cpu_the_budget_is_fixed_and_holds_the_longest_row(longest, expected):
    assert find_budget(longest, torch.device("cpu"), refuse_probe) == expected


class Gpu:
    """Memory in which a token takes `each` bytes and `size` are free."""

    def __init__(self, monkeypatch, size, each):
        self.size, self.each, self.probed = size, each, []
        monkeypatch.setattr("diverseevol_fast.models.token_budget._free", lambda device: size)
        monkeypatch.setattr("diverseevol_fast.models.token_budget._peak", lambda device, work: work())

    def probe(self, rows, tokens):
        self.probed.append((rows, tokens))
        taken = rows * tokens * self.each
        return taken if taken <= self.size else None


@pytest.mark.parametrize(
    ("longest", "size", "expected", "probes"),
    [
        (100, 10**9, 65_536, [4096, 8192, 16_384, 32_768, 65_536]),
        (100, 30_000, 16_384, [4096, 8192, 16_384]),  # the next would need more than is free by far
        (100, 9000, 4096, [4096]),
        (100, 2000, 100, [4096]),
        (5000, 10**9, 65_536, [8192, 16_384, 32_768, 65_536]),
        (100_000, 10**9, 100_000, []),
    ],
)
def test_on_a_gpu_the_budget_doubles_while_memory_is_free(monkeypatch, longest, size, expected, probes):
    gpu = Gpu(monkeypatch, size, 1)
    assert find_budget(longest, torch.device("cuda"), gpu.probe) == expected
    assert gpu.probed == [(tokens // longest, longest) for tokens in probes]


def worker(lengths, room, error=OUT_OF_MEMORY["cuda"]):
    """Returns its part; out of memory when its rows, padded, are more than `room` tokens."""
    asked = []

    def work(part):
        asked.append(part.tolist())
        if len(part) * lengths[part].max() > room:
            raise error()
        return part

    return work, asked


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("count", [2, 7, 64])
@pytest.mark.parametrize("room", [20, 55, 130, 10_000])
def test_out_of_memory_splits_and_no_row_is_lost(kind, count, room):
    generator = np.random.default_rng(count)
    lengths, rows = generator.integers(1, 20, 100), generator.permutation(100)[:count]
    work, asked = worker(lengths, room, OUT_OF_MEMORY[kind])
    budget = TokenBudget(1000)
    parts = budget.run(rows, lengths[rows], work)
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert all(len(part) * lengths[part].max() <= room for part in parts)
    assert (budget.tokens < 1000) == (len(asked) > len(parts))


def test_the_budget_halves_and_stays():
    lengths, rows = np.full(64, 10), np.arange(64)
    work, asked = worker(lengths, 200)
    budget = TokenBudget(640)
    budget.run(rows, lengths, work)
    assert [len(part) for part in asked] == [64, 32, 16, 16, 16, 16]
    assert budget.tokens == 160
    asked.clear()
    budget.run(rows, lengths, work)
    assert [len(part) for part in asked] == [16] * 4  # none was too large again
    assert budget.tokens == 160


def test_a_batch_above_the_budget_is_run_in_parts_without_trying():
    lengths = np.array([50, 40, 30, 20, 10])
    work, asked = worker(lengths, 100)
    parts = TokenBudget(100).run(np.arange(5), lengths, work)
    assert asked == [[0, 1], [2, 3, 4]] == [part.tolist() for part in parts]


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_a_single_row_that_is_too_large_raises_what_came(kind):
    raised = []

    def work(part):
        raised.append(OUT_OF_MEMORY[kind]())
        raise raised[-1]

    with pytest.raises(type(OUT_OF_MEMORY[kind]())) as caught:
        TokenBudget(100).run(np.array([4, 5]), np.array([30, 30]), work)
    assert caught.value is raised[-1]
    assert len(raised) == 2


def test_a_row_above_the_budget_is_tried():
    work, asked = worker(np.array([500]), 1000)
    assert len(TokenBudget(100).run(np.array([0]), np.array([500]), work)) == 1
    assert asked == [[0]]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("x"), KeyError(1)])
def test_other_errors_pass_through(error):
    calls, budget = [], TokenBudget(100)

    def work(part):
        calls.append(part)
        raise error

    with pytest.raises(type(error)) as caught:
        budget.run(np.arange(4), np.full(4, 10), work)
    assert caught.value is error
    assert len(calls) == 1
    assert budget.tokens == 100


ROOM = 300  # tokens


def short_of_memory(model, kind="cuda", room=ROOM):
    """The model, out of memory in its last layer with more than `room` tokens; counts how often."""
    body, failures = backbone(model), []
    last = [module for module in body.modules() if isinstance(module, torch.nn.ModuleList)][-1][-1]

    def hook(module, given):
        if given[0].shape[:2].numel() > room:
            failures.append(given[0].shape[:2])
            raise OUT_OF_MEMORY[kind]()

    last.register_forward_pre_hook(hook)
    return model, failures


def fill(model, tokens, store, first=NONE, **options):
    engine = Engine(encoder_of(model), tokens, np.arange(len(tokens)), store, store.budget, **options)
    return engine, engine.run(np.asarray(first), progress=False)


def in_memory(tokens, dtype=torch.float32):
    return MemoryStore(len(tokens), DIM, dtype, "cpu", 1024)


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral, window above the prefix", "bert"])
def test_short_of_memory_all_is_embedded_the_same(two_groups, family, share, kind):
    expected, store = in_memory(two_groups), in_memory(two_groups)
    _, undisturbed = fill(build(family), two_groups, expected, share_prefixes=share)
    model, failures = short_of_memory(build(family), kind)
    _, metrics = fill(model, two_groups, store, share_prefixes=share)
    assert failures
    error = (store.values - expected.values).norm(dim=1) / expected.values.norm(dim=1)
    assert float(error.max()) <= 1e-6
    assert undisturbed["tokens_per_batch"] == 1024
    assert metrics["tokens_per_batch"] < 1024
    assert metrics["tokens"] == undisturbed["tokens"] == len(two_groups.ids)
    assert metrics["prefix_share"] == undisturbed["prefix_share"]
    assert metrics["padding"] <= undisturbed["padding"]


def test_the_metric_is_the_lowered_budget(two_groups):
    model, failures = short_of_memory(build("llama"))
    engine, metrics = fill(model, two_groups, in_memory(two_groups), share_prefixes=False)
    sizes = [shape.numel() for shape in failures]
    assert metrics["tokens_per_batch"] == engine.budget.tokens == sizes[-1] // 2
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [True, False])
def test_short_of_memory_every_row_comes_once_into_the_stream(two_groups, monkeypatch, dtype, share):
    from diverseevol_fast.selection.stream import KCenterStream

    came, record = [], KCenterStream._record
    monkeypatch.setattr(KCenterStream, "_record", lambda *args: (came.extend(args[1].tolist()), record(*args))[1])
    first = [80, 3, 41]
    model, failures = short_of_memory(build("qwen2"))
    store = in_memory(two_groups, dtype)
    engine, _ = fill(model, two_groups, store, first, share_prefixes=share)
    assert failures
    assert sorted(came) == sorted(set(range(len(two_groups))) - set(first))
    found, expected = engine.stream.select(30), kcenter(store.values, 30, first)
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.sqdist.tolist() == expected.sqdist.tolist()


def test_out_of_memory_in_the_stream_does_not_push_twice(two_groups, monkeypatch):
    from diverseevol_fast.selection import stream

    pool, failures = stream.launch_pool_min_sqdist, []

    def short(states, *more):
        if states.hidden.shape[:2].numel() > ROOM:
            failures.append(states.hidden.shape)
            raise torch.OutOfMemoryError
        return pool(states, *more)

    monkeypatch.setattr(stream, "launch_pool_min_sqdist", short)
    store = in_memory(two_groups)
    engine, _ = fill(build("llama"), two_groups, store, [5])
    assert failures
    assert engine.stream.select(20).indices.tolist() == kcenter(store.values, 20, [5]).indices.tolist()


def test_a_model_without_room_for_one_row_raises_and_can_go_on(two_groups, tmp_path):
    def store():
        return FileStore(tmp_path / "x.npy", len(two_groups), DIM, {}, 1024)

    model, _ = short_of_memory(build("llama"), room=30)
    with pytest.raises(torch.OutOfMemoryError):
        fill(model, two_groups, store(), share_prefixes=False)
    kept, expected = store(), in_memory(two_groups)
    fill(build("llama"), two_groups, kept, share_prefixes=False)
    fill(build("llama"), two_groups, expected, share_prefixes=False)
    np.testing.assert_array_equal(kept.values.numpy(), expected.values.numpy())
