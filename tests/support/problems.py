"""Rows of every kind that selection is tested on."""

import numpy as np
from hypothesis import strategies as st

from diverseevol_fast._common import dtypes

DTYPES = list(map(dtypes.torch_dtype, dtypes.DTYPES))


def make(kind: str, n: int, d: int, seed: int, scale: float, offset: float) -> np.ndarray:
    """Rows of one kind that is hard to select from, [n, d] float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    some = rng.integers(0, max(1, n // 4), n)
    if kind == "duplicates":
        x = x[some]
    elif kind == "near-duplicates":
        x = x[some] * (1 + 1e-6 * rng.standard_normal((n, 1)))
    elif kind == "constant":
        x = np.ones_like(x)
    elif kind == "unit":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif kind == "integers":
        x = rng.integers(-3, 4, (n, d)).astype(float)
    elif kind == "permuted":  # the same values in another order: equal distances that rounding could tell apart
        x = np.stack([rng.permutation(x[0]) for _ in range(n)])
    elif kind == "one far":
        x *= 1e-3
        x[n // 2] += 10
    elif kind == "sparse":
        x *= rng.random((n, d)) < 0.1
    return ((x + offset) * scale).astype(np.float32)


KINDS = ["gaussian", "duplicates", "near-duplicates", "constant", "unit", "integers", "permuted", "one far", "sparse"]


@st.composite
def problems(draw):
    n, d = draw(st.integers(2, 70)), draw(st.integers(1, 40))
    scale = 10.0 ** draw(st.sampled_from([-15, -6, 0, 0, 0, 6, 15]))
    offset = draw(st.sampled_from([0.0, 0.0, 1.0, 1e3, 1e4]))
    x = make(draw(st.sampled_from(KINDS)), n, d, draw(st.integers(0, 10**6)), scale, offset)
    centers = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True))
    k = draw(st.integers(1, n - len(centers)))
    block = draw(st.one_of(st.none(), st.integers(1, n), st.integers(1, n)))
    return x, k, centers, block
