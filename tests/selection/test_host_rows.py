"""Rows in host memory, copied to the device tile by tile; and selections that do not wait for a GPU."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import DTYPES, KINDS, make, problems
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diverseevol_fast import KCenterStream, kcenter
from diverseevol_fast.ops import backends, reference
from diverseevol_fast.selection import bounds, host_rows, stream, traversal
from diverseevol_fast.selection import device_rows as rows_module
from diverseevol_fast.selection.arguments import as_bytes, as_device

BACKENDS = [*([] if backends.native_unavailable() else ["native"]), "reference"]
needs_native = pytest.mark.skipif("native" not in BACKENDS, reason="the reference waits in its ops")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def from_host(monkeypatch):
    """HostRows are made of rows on the CPU, and the CPU is the device that they are copied to."""
    monkeypatch.setattr(host_rows, "is_on", lambda x, device: False)


@pytest.fixture
def asynchronous(monkeypatch):
    """The CPU takes the path of a GPU, on which the host does not wait."""
    monkeypatch.setattr(rows_module, "is_synchronous", lambda device: False)


class CountedWaits(TorchDispatchMode):
    """Counts operations that would wait for a GPU, if every tensor that `read` did not return were on it."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.here: set[int] = set()  # addresses of storages in host memory
        self.saved: list[torch.Tensor] = []  # alive, so that no address is used again

    def read(self, message: torch.Tensor) -> torch.Tensor:
        self.found.append("read")
        return self.settle(message.clone())

    def settle(self, tensor: torch.Tensor) -> torch.Tensor:
        self.saved.append(tensor)
        self.here.add(tensor.untyped_storage().data_ptr())
        return tensor

    def is_here(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.here

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(value)]
        if tensors and all(map(self.is_here, tensors)):
            for value in torch.utils._pytree.tree_leaves(out):
                if torch.is_tensor(value):
                    self.settle(value)
            return out
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(torch.is_tensor(i) and i.dtype == torch.bool for i in args[1])
        if name in self.WAIT or by_mask:
            self.found.append(name)
        return out


class CountedReads(TorchFunctionMode):
    """Counts reads that do not pass through the dispatcher on the CPU."""

    READS = ("cpu", "tolist", "numpy", "item", "__array__")

    def __init__(self, waits: CountedWaits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.READS and not self.waits.is_here(args[0]):
            self.waits.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(asynchronous, monkeypatch):
    """A context that counts waits; tensors made on the host may be read there without one."""
    mode = CountedWaits()

    def copy_to_device(values, device):
        mode.settle(values)
        sent = values.clone()
        mode.here.discard(sent.untyped_storage().data_ptr())
        mode.saved.append(sent)
        return sent

    for module in (bounds, traversal, stream):
        monkeypatch.setattr(module, "copy_to_device", copy_to_device)
    for module in (traversal, stream):
        monkeypatch.setattr(module, "read", mode.read)
    as_tensor = torch.as_tensor
    monkeypatch.setattr(torch, "as_tensor", lambda values: mode.settle(as_tensor(values)))
    return mode


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [32, 60])
def test_kcenter_waits_once(waits, dtype, count):
    """The first screen applies all centers, or only some of them."""
    x = torch.from_numpy(make("gaussian", 3000, 64, 1, 1.0, 2.0)).to(dtype)
    centers = list(range(count))
    expected, sqdist = reference.kcenter(x, 5, centers)
    with CountedReads(waits), waits:
        result = kcenter(x, 5, centers, block_size=512)
    assert waits.found == ["read"]
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist
    assert result.passes == (3000 + 512 + (2048 if count > 32 else 0)) / 3000


@needs_native
def test_the_counter_sees_waits(waits):
    x = torch.randn(300, 32)
    with CountedReads(waits), waits:
        kcenter(x, 200, [0], block_size=16)
    assert {"read", "nonzero", "_local_scalar_dense"} <= set(waits.found)
    waits.found.clear()
    with CountedReads(waits), waits:
        x.tolist()
        x[x > 0] = 1
    assert waits.found == ["tolist", "index_put_"]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_push_waits_never(waits, dtype):
    hidden, mask = torch.randn(400, 3, 16), torch.ones(400, 3, dtype=torch.bool)
    centers = torch.randn(40, 16)
    candidates = KCenterStream(centers, 800, store=torch.empty(800, 16, dtype=dtype))
    waits.settle(candidates.pushed)
    with CountedReads(waits), waits:
        for rows in torch.arange(400).split(150):
            candidates.push(hidden[rows], mask[rows])
        candidates.push_embeddings(hidden[:, 0], rows=range(400, 800))
        assert waits.found == []
        found = [*candidates.select(4).indices]
    assert waits.found == ["read", "read"]  # the flags of the pushes, and the block
    found += [*candidates.select(100).indices]
    together = torch.cat([centers, candidates.store.float()])
    assert [40 + row for row in found] == reference.kcenter(together, 104, list(range(40)))[0]


@needs_native
def test_what_push_finds_is_said_by_select(asynchronous):
    for push, words in (
        (lambda s, x: s.push_embeddings(x, rows=[2, 0]), "x: candidate 0 holds a value that is not finite"),
        (
            lambda s, x: s.push(x[:, None], torch.ones(2, 1, dtype=torch.bool), rows=[2, 0]),
            "hidden: candidate 0 pools to a value",
        ),
        (lambda s, x: s.push(x[:, None], torch.tensor([[1], [0]]), rows=[2, 0]), "mask: candidate 0 has no token"),
    ):
        candidates = KCenterStream(torch.randn(2, 4), 3)
        candidates.push_embeddings(torch.randn(1, 4), rows=[1])
        x = torch.randn(2, 4)
        x[1, 2] = float("nan")
        push(candidates, x)
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                candidates.select(1)


@needs_native
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(DTYPES), st.integers(1, 40))
def test_same_picks_without_waiting(problem, dtype, first_centers):
    array, k, centers, block = problem
    x = torch.from_numpy(array).to(dtype)
    if not torch.isfinite(x).all():
        return
    expected, sqdist = reference.kcenter(x, k, centers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "is_synchronous", lambda device: False)
        patch.setattr(bounds, "FIRST_CENTERS", first_centers)
        result = kcenter(x, k, centers, block_size=block)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@needs_native
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bad", [0, 170, 299])
@pytest.mark.parametrize("alone", [True, False])
def test_the_first_bad_row_is_named_without_waiting(asynchronous, value, bad, alone):
    """Also when the row is a center, and no other row is bad."""
    x = torch.randn(300, 12)
    x[bad, 3] = value
    if not alone:
        x[299, 11] = value
    for centers in ([0, 5, 170], None):
        for how in ({"block_size": 64}, {"method": "streaming"}, {"block_size": 300}, {}):
            with pytest.raises(ValueError, match=f"x: row {bad} holds"):
                kcenter(x, 30, centers, **how)


@needs_gpu
def test_kcenter_waits_once_for_a_gpu():
    pytest.importorskip("triton")
    x = torch.randn(20_000, 64, device="cuda")
    for _ in range(2):  # the first call loads kernels
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                kcenter(x, 20, list(range(100)), backend="triton")
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in caught if "called a synchronizing" in str(one.message)]) == 1


def tiles_of(patch, rows: int, x: torch.Tensor) -> None:
    patch.setattr(host_rows, "TILE_BYTES", rows * x.shape[1] * x.element_size())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(DTYPES), st.integers(1, 80), st.sampled_from(["block", "streaming"]))
def test_same_picks_from_host_memory(problem, dtype, tile, method):
    array, k, centers, block = problem
    x = torch.from_numpy(array).to(dtype)
    if not torch.isfinite(x).all():
        return
    expected, sqdist = reference.kcenter(x, k, centers)
    for backend in BACKENDS:
        resident = kcenter(x, k, centers, backend=backend, method=method, block_size=block)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host_rows, "is_on", lambda x, device: False)
            tiles_of(patch, tile, x)
            result = kcenter(x, k, centers, backend=backend, method=method, block_size=block)
        assert result.indices.tolist() == expected
        assert result.sqdist.tolist() == sqdist
        assert result.passes == resident.passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["block", "streaming"])
def test_larger_problems_from_host_memory(kind, method, from_host, monkeypatch):
    x = torch.from_numpy(make(kind, 1500, 40, 5, 1.0, 3.0))
    tiles_of(monkeypatch, 333, x)
    expected, sqdist = reference.kcenter(x, 120, [3, 700])
    result = kcenter(x, 120, [3, 700], method=method, block_size=128, device=DEVICE)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


def test_views_maps_radius_and_nothing_to_pick(tmp_path, from_host, monkeypatch):
    x = make("gaussian", 300, 12, 3, 1.0, 0.0)
    tiles_of(monkeypatch, 37, torch.from_numpy(x))
    expected, sqdist = reference.kcenter(torch.from_numpy(x), 90, [2, 9])
    np.save(tmp_path / "x.npy", x)
    wide = np.zeros((600, 24), dtype=np.float32)
    wide[::2, ::2] = x
    for form in (x, np.asfortranarray(x), wide[::2, ::2], np.load(tmp_path / "x.npy", mmap_mode="r")):
        for how in ({"block_size": 32}, {"method": "streaming"}, {}):
            assert kcenter(form, 90, [2, 9], device=DEVICE, **how).indices.tolist() == expected
            radius = sqdist[40] ** 0.5 + 1e-9
            assert kcenter(form, None, [2, 9], radius=radius, device=DEVICE, **how).indices.tolist() == expected[:40]
        assert kcenter(form, 0, [2, 9], device=DEVICE).indices.tolist() == []
        assert kcenter(form, 0, device=DEVICE).indices.tolist() == []


@pytest.mark.parametrize("how", [{"block_size": 32}, {"method": "streaming"}, {"k": 0}])
def test_the_first_bad_row_in_host_memory_is_named(how, from_host, monkeypatch):
    x = torch.randn(300, 12)
    tiles_of(monkeypatch, 37, x)
    x[170, 3] = x[290, 0] = float("nan")
    with pytest.raises(ValueError, match="x: row 170 holds"):
        kcenter(x, **({"k": 50, "centers": None if how == {"k": 0} else [1]} | how), device=DEVICE)


def test_a_stream_may_store_in_host_memory(from_host, monkeypatch):
    centers, x = torch.randn(5, 12, device=DEVICE), torch.randn(300, 12)
    store = torch.empty(300, 12, dtype=torch.bfloat16)
    tiles_of(monkeypatch, 37, store)
    candidates = KCenterStream(centers, 300, store=store)
    for rows in torch.randperm(300).split(90):
        candidates.push_embeddings(x[rows], rows=rows)
    together = torch.cat([centers.cpu(), x.bfloat16().float()])
    assert (candidates.select(290).indices + 5).tolist() == reference.kcenter(together, 290, list(range(5)))[0]


def test_the_least_memory_suffices_and_less_is_refused(from_host):
    x = torch.from_numpy(make("gaussian", 900, 24, 3, 1.0, 0.0)).to(torch.float16)
    expected, _ = reference.kcenter(x, 80, [0])
    with pytest.raises(ValueError, match="max_gpu_memory: these rows need at least") as caught:
        kcenter(x, 80, [0], device=DEVICE, max_gpu_memory=1)
    least = int(str(caught.value).split()[6].replace(",", ""))
    with pytest.raises(ValueError, match="at least"):
        kcenter(x, 80, [0], device=DEVICE, max_gpu_memory=least - 1)
    for limit in (least, least + 12345, "1 GiB"):
        for block_size in (64, 900):
            result = kcenter(x, 80, [0], device=DEVICE, max_gpu_memory=limit, block_size=block_size)
            assert result.indices.tolist() == expected


def test_how_a_limit_is_divided():
    x = torch.empty(1, 4096, dtype=torch.bfloat16).expand(1_000_000, 4096)
    assert host_rows.split_memory(None, x, 1000, 4096) == (8192, 4096)
    before = 0
    for limit in (150 << 20, 200 << 20, 400 << 20, 1 << 30, 8 << 30):
        tile, block_rows = host_rows.split_memory(limit, x, 1000, 4096)
        taken = 40 * len(x) + 12 * 1000 * 4096 + 8 * block_rows * (4096 + 1000 + block_rows) + tile * (4 * 4096 + 40)
        assert taken <= limit
        assert 1 <= tile <= 8192
        assert 256 <= block_rows <= 4096
        assert tile * block_rows >= before
        before = tile * block_rows
    assert before == 8192 * 4096


@needs_gpu
def test_the_limit_holds_on_a_gpu():
    pytest.importorskip("triton")
    x = torch.randn(60_000, 512).half()
    expected = kcenter(x, 50, list(range(100))).indices.tolist()
    for limit in ("20MB", "60MB"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = kcenter(x, 50, list(range(100)), device="cuda", max_gpu_memory=limit, backend="triton")
        assert result.indices.tolist() == expected
        assert torch.cuda.max_memory_allocated() - before < int(limit[:2]) * 10**6


@pytest.mark.parametrize("where", ["send", "screen", "update"])
def test_out_of_memory_halves_the_tile(where, from_host, monkeypatch):
    """Every tile of more than ten rows is out of memory."""
    x = torch.from_numpy(make("near-duplicates", 200, 12, 3, 1.0, 0.0))
    tiles_of(monkeypatch, 50, x)
    expected, sqdist = reference.kcenter(x, 60, [4])
    module, name = {
        "send": (host_rows._StagingBuffer, "send"),
        "screen": (host_rows, "screen_copy"),
        "update": (host_rows, "launch_update_argmax"),
    }[where]
    work = getattr(module, name)

    def short_of_memory(first, second, *rest):
        if (second if where == "send" else len(first)) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return work(first, second, *rest)

    monkeypatch.setattr(module, name, short_of_memory)
    how = {"method": "streaming"} if where == "update" else {"block_size": 40}
    with pytest.warns(UserWarning, match="out of GPU memory with tiles of") as warned:
        result = kcenter(x, 60, [4], device=DEVICE, **how)
    assert [int(str(one.message).split()[-1]) for one in warned] == [25, 12, 6]
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@pytest.mark.filterwarnings("ignore:out of GPU memory")
def test_no_memory_for_one_row_is_an_error(from_host, monkeypatch):
    def refuse(buffer, count):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(host_rows._StagingBuffer, "send", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        kcenter(torch.randn(50, 12), 20, [4], device=DEVICE)


def test_devices_and_limits_that_make_no_sense(monkeypatch):
    x = torch.randn(9, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for arguments, error, words in (
        ({"device": "gpu"}, ValueError, "device: expected None, 'cpu', 'cuda'"),
        ({"device": 1.5}, ValueError, "device: expected None"),
        ({"device": "meta"}, ValueError, "device: x is on cpu"),
        ({"device": "cuda:1"}, ValueError, "device: expected a GPU that is here"),
        ({"max_gpu_memory": "2GB"}, ValueError, "max_gpu_memory: for rows in host memory"),
        ({"max_gpu_memory": "2GB", "device": "cpu"}, ValueError, "max_gpu_memory: for rows in host memory"),
        ({"max_gpu_memory": "much"}, ValueError, "expected bytes or a text such as '2GB', got 'much'"),
        ({"max_gpu_memory": 0}, ValueError, "got 0"),
        ({"max_gpu_memory": True}, TypeError, "got bool"),
        ({"max_gpu_memory": 1.5}, TypeError, "got float"),
    ):
        with pytest.raises(error, match=words):
            kcenter(x, 3, **arguments)
    assert len(kcenter(x, 3, device="cpu").indices) == 3
    assert [as_bytes(text) for text in ("7", "7B", "2KB", "1.5 GB", " 3MiB ", "2G", np.int64(5))] == [
        7,
        7,
        2000,
        1_500_000_000,
        3 << 20,
        2_000_000_000,
        5,
    ]
    with pytest.raises(ValueError, match="device: x is on cuda:0 and can only be worked on there, got 'cpu'"):
        as_device("cpu", torch.device("cuda:0"))
    for same in (None, "cuda", "cuda:0"):
        assert as_device(same, torch.device("cuda:0")) == torch.device("cuda:0")
