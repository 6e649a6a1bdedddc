"""Values that change after they were pushed are an error on every backend and device, and never change picks."""

import contextlib

import pytest
import torch
from support.gpu import DEVICE, cuda_works
from support.problems import make

from diverseevol_fast import Embeddings, KCenterStream, kcenter
from diverseevol_fast.embedding.store import MemoryStore
from diverseevol_fast.ops import audit, backends, reference
from diverseevol_fast.selection import device_rows as rows_module
from diverseevol_fast.selection import host_rows, integrity
from diverseevol_fast.selection.integrity import CandidateError, checksums

POOL = range(3)
HOW = {
    "normalized": lambda values: values.div_(values.float().norm(dim=1, keepdim=True)),
    "larger": lambda values: values.mul_(3.0),
    "shuffled": lambda values: values.copy_(values.flip(0)),
    "negated": lambda values: values.neg_(),
    "nan": lambda values: values.fill_(float("nan")),
    "infinite": lambda values: values[:, 1].fill_(float("inf")),
}
NATIVE = [] if backends.native_unavailable() else ["native"]
TRITON = [] if backends.unusable("triton", "cpu" if DEVICE == "cpu" else DEVICE) else ["triton"]
ON_CPU = [*NATIVE, "reference"] if DEVICE == "cpu" else []
BACKENDS = [*ON_CPU, *TRITON, "cuda"]


@contextlib.contextmanager
def on(backend: str, monkeypatch: pytest.MonkeyPatch):
    """The backend works on DEVICE; GPU kernels on the path that does not wait."""
    if backend in ("triton", "cuda"):
        monkeypatch.setattr(rows_module, "is_synchronous", lambda device: False)
    with cuda_works() if backend == "cuda" else contextlib.nullcontext():
        yield


def stream_of(x: torch.Tensor, **more) -> KCenterStream:
    """A stream whose store is x, into which all rows but POOL have been pushed."""
    stream = KCenterStream(x[list(POOL)], len(x), store=x, exclude=POOL, **more)
    stream.bound_embeddings(x[len(POOL) :], rows=range(len(POOL), len(x)))
    return stream


def gaussian(n: int, d: int = 16, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(make("gaussian", n, d, 3, 1.0, 1.0)).to(DEVICE, dtype)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_values_are_an_error_in_every_backend(backend, how, monkeypatch):
    x = gaussian(60, 9)
    with on(backend, monkeypatch):
        stream = stream_of(x, backend=backend)
        expected, _ = reference.kcenter(x.cpu(), 6, list(POOL))
        assert stream.select(2).indices.tolist() == expected[:2]
        HOW[how](x)
        for _ in range(2):  # a second call is refused too
            with pytest.raises(
                CandidateError, match=r"values changed since they were pushed: those of row 3\b"
            ) as found:
                stream.select(4)
            assert found.value.candidate == 3
            assert ("not finite" in str(found.value)) == (how in ("nan", "infinite"))
            assert "select among the changed ones with kcenter" in str(found.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["here", "in host memory", "streaming"])
def test_one_row_that_a_pick_depends_on(where, dtype, monkeypatch):
    if where == "in host memory":
        monkeypatch.setattr(host_rows, "is_on", lambda x, device: False)
    x = gaussian(400, 15, dtype)
    stream = stream_of(x, backend=NATIVE[0] if NATIVE and DEVICE == "cpu" else "auto")
    if where == "streaming":
        monkeypatch.setattr(type(stream._traversal), "pick_blocks", lambda self, k, size: self.stream(k))
    farthest = reference.kcenter(x.cpu(), 1, list(POOL))[0][0]
    x[farthest] *= 0.5  # it stays below its bound, so that no audit finds it
    with pytest.raises(CandidateError, match=rf"values changed since they were pushed: those of row {farthest}\b"):
        stream.select(5)


def test_the_reference_does_not_go_on_with_changed_values():
    x = gaussian(400)
    stream = stream_of(x, on_violation="reference")
    x *= 3.0
    with pytest.raises(CandidateError, match="values changed"):
        stream.select(5)


def test_an_audit_tells_changed_values_from_a_wrong_kernel(monkeypatch):
    """The row that the audit found is not in the block."""
    x = gaussian(4_000)
    nearest = int(sum(reference.sqdist_to(x.cpu(), x[row].cpu()) for row in POOL).argsort()[10])
    for change in (True, False):
        stream = stream_of(x)
        if change:
            x[nearest] += 1.0
        stream._bounds.violation.fill_(nearest)
        with pytest.raises(CandidateError if change else audit.BoundViolationError, match=rf"row {nearest}\b"):
            stream.select(1)


def test_the_sign_of_a_zero_is_no_change():
    x = gaussian(50)
    x[:, 2] = -0.0
    stream = stream_of(x)
    x[:, 2] = 0.0  # as a sum over several processes leaves it
    assert stream.select(9).indices.tolist() == reference.kcenter(x.cpu(), 9, list(POOL))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 64])
def test_checksums(d, dtype, monkeypatch):
    x = gaussian(90, d, dtype)
    whole = checksums(x)
    monkeypatch.setattr(integrity, "CACHED_ELEMENTS", 5 * d)
    wide = torch.zeros(90, 2 * d + 1, dtype=dtype, device=DEVICE)
    wide[:, 1::2] = x
    assert torch.equal(checksums(wide[:, 1::2]), whole)
    assert torch.equal(checksums(x.float().to(dtype)), whole)
    for column in range(d):
        other = x.clone()
        other[:, column] *= 1.5
        assert (checksums(other) != whole).all()
    assert checksums(x[:0]).tolist() == []


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("only", [None, "a center", "the next pick"])
def test_the_values_of_embeddings(how, only):
    store = MemoryStore(300, 8, torch.float32, DEVICE, 100)
    store.values.copy_(gaussian(300, 8))
    expected = kcenter(store.values, 9, list(POOL)).indices.tolist()
    found = Embeddings(store, {}, list(POOL), stream_of(store.values))
    assert found.select(4).indices.tolist() == expected[:4]
    assert repr(found) == f"Embeddings([300, 8] float32, {store.values.device}; 3 embedded first, 4 picked)"
    row = {None: 0, "a center": 1, "the next pick": expected[4]}[only]
    if how == "shuffled" and only is not None:
        found.values[row] = found.values[row].flip(0)
    else:
        HOW[how](found.values if only is None else found.values[row : row + 1])
    with pytest.raises(CandidateError, match=rf"values changed since they were pushed: those of row {row}\b"):
        found.select(5)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_member_that_is_not_finite_after_the_screen(backend, monkeypatch):
    """Rows that another thread changes while kcenter runs."""
    x = gaussian(500, 30)
    original = host_rows.DeviceRows.gather

    def gather(self, indices):
        if len(indices) > 3:
            self.x[400:] = float("nan")
        return original(self, indices)

    monkeypatch.setattr(host_rows.DeviceRows, "gather", gather)
    with pytest.raises(ValueError, match="x: row 400 holds a value that is not finite"):
        kcenter(x, 20, [1, 2], backend=backend, block_size=490)
