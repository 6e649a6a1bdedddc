"""Wrong arguments of kcenter, KCenterStream and masked_mean_pool: a TypeError or ValueError that begins with a name."""

import random
import re

import numpy as np
import pytest
import torch

from diverseevol_fast import KCenterStream, kcenter, masked_mean_pool

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")


class NotDLPack:
    __dlpack__ = None


def a_tensor(shape=(6, 4), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


# Made anew for each call: some are changed by it.
WRONG = {
    "None": lambda: None,
    "bool": lambda: True,
    "numpy bool": lambda: np.True_,
    "negative": lambda: -1,
    "a fraction": lambda: 1.5,
    "nan": lambda: float("nan"),
    "infinite": lambda: float("inf"),
    "large": lambda: 1e308,
    "2^40": lambda: 1 << 40,
    "2^63": lambda: 1 << 63,
    "5,000 digits": lambda: 10**5000,
    "-5,000 digits": lambda: -(10**5000),
    "complex": lambda: 1j,
    "text": lambda: "text",
    "a megabyte": lambda: "x" * 1_000_000,
    "a number as text": lambda: "9" * 5000 + "GB",
    "bytes": lambda: b"\xff\x00",
    "a surrogate": lambda: "\ud800",
    "empty": list,
    "ragged": lambda: [[1.0, 2.0], [1.0]],
    "texts": lambda: [["a", "b"]],
    "large integers": lambda: [[10**400, 1]],
    "nested": lambda: [[[[[1.0]]]]],
    "a dict": lambda: {1: 2},
    "a set": lambda: {1, 2},
    "an object": object,
    "a type": lambda: int,
    "no DLPack": NotDLPack,
    "0-d": lambda: np.array(1),
    "0-d mask": lambda: np.array(True),
    "0-d tensor": lambda: torch.tensor(1),
    "0-d mask tensor": lambda: torch.tensor(False),
    "objects": lambda: np.array([[None, 1]] * 6, dtype=object),
    "dates": lambda: np.zeros((6, 4), dtype="datetime64[s]"),
    "a record": lambda: np.zeros(6, dtype=[("a", "f4")]),
    "uint64": lambda: np.array([2**64 - 1], dtype=np.uint64),
    "no rows": lambda: torch.zeros(0, 4),
    "no columns": lambda: torch.zeros(6, 0),
    "three dimensions": lambda: torch.zeros(2, 3, 4),
    "a vector": lambda: torch.zeros(6),
    "complex tensor": lambda: torch.zeros(6, 4, dtype=torch.complex64),
    "sparse": lambda: torch.eye(6, 4).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(a_tensor(), 0.1, 0, torch.qint8),
    "meta": lambda: torch.zeros(6, 4, device="meta"),
    "nan tensor": lambda: torch.full((6, 4), float("nan")),
    "with a gradient": lambda: a_tensor().requires_grad_(),
    "bfloat16": lambda: a_tensor(dtype=torch.bfloat16),
    "expanded": lambda: torch.zeros(1, 4).expand(6, 4),
    "claimed": lambda: torch.zeros(1, 1).expand(1 << 40, 4),
    "a shorter mask": lambda: torch.ones(5, dtype=torch.bool),
    "repeated": lambda: [1, 1],
    "outside": lambda: [0, 6],
    "wrapping": lambda: torch.tensor([0, 2**63 - 1, -2, 6]),
}


def pushed(**given):
    stream = KCenterStream(a_tensor((2, 4)), 6)
    return stream.push(**({"hidden": a_tensor((3, 5, 4)), "mask": torch.ones(3, 5, dtype=torch.bool)} | given))


def pushed_packed(**given):
    stream = KCenterStream(a_tensor((2, 4)), 6)
    return stream.push(**({"hidden": a_tensor(), "cu_seqlens": torch.tensor([0, 2, 6])} | given))


def pooled(**given):
    return masked_mean_pool(**({"hidden": a_tensor((3, 5, 4)), "mask": torch.ones(3, 5, dtype=torch.bool)} | given))


def pooled_packed(**given):
    return masked_mean_pool(**({"hidden": a_tensor(), "cu_seqlens": torch.tensor([0, 2, 6])} | given))


def with_prefix(**given):
    return pooled(**({"prefix_sum": torch.zeros(4), "prefix_len": 3} | given))


def pushed_embeddings(**given):
    return KCenterStream(a_tensor((2, 4)), 6).push_embeddings(**({"x": a_tensor(), "rows": range(6)} | given))


def selected(**given):
    stream = KCenterStream(a_tensor((2, 4)), 6)
    stream.push_embeddings(a_tensor())
    return stream.select(**({"k": 2} | given))


def streamed(**given):
    return KCenterStream(**({"centers": a_tensor((2, 4)), "n": 6} | given))


def chosen(**given):
    return kcenter(**({"x": a_tensor(), "k": 2} | given))


CALLS = {
    chosen: (
        "x",
        "k",
        "centers",
        "radius",
        "seed",
        "backend",
        "method",
        "block_size",
        "device",
        "max_gpu_memory",
        "on_violation",
    ),
    streamed: ("centers", "n", "store", "exclude", "backend", "on_violation"),
    pushed: ("hidden", "mask", "rows", "cu_seqlens", "prefix_sum", "prefix_len"),
    pushed_packed: ("hidden", "mask", "rows", "cu_seqlens", "prefix_sum", "prefix_len"),
    pushed_embeddings: ("x", "rows"),
    selected: ("k", "radius"),
    pooled: ("hidden", "mask", "cu_seqlens", "prefix_sum", "prefix_len", "backend"),
    pooled_packed: ("hidden", "mask", "cu_seqlens", "prefix_sum", "prefix_len", "backend"),
    with_prefix: ("prefix_sum", "prefix_len"),
}
NAMES = {name for names in CALLS.values() for name in names}


def refused(call, given: dict[str, str]) -> bool:
    """Whether the call was refused, as it should be; a value that turns out to be right is no mistake."""
    try:
        call(**{name: WRONG[value]() for name, value in given.items()})
    except (TypeError, ValueError) as error:
        said = str(error)
    else:
        return False
    assert len(said) < 300, (call.__name__, given, said[:400])
    assert re.match(rf"({'|'.join(NAMES)})\b", said), (call.__name__, given, said)
    return True


@pytest.mark.parametrize("call", CALLS)
def test_every_wrong_value_of_every_argument(call):
    for name in CALLS[call]:
        found = sum(refused(call, {name: value}) for value in WRONG)
        assert found >= len(WRONG) // 2, name


def test_two_wrong_arguments_at_once():
    draw = random.Random(7)
    for _ in range(1500):
        call = draw.choice(list(CALLS))
        names = draw.sample(CALLS[call], 2)
        refused(call, {name: draw.choice(list(WRONG)) for name in names})
