"""Whole selections, block-exact against streaming, with pytest-benchmark: pytest bench --benchmark-enable.

The picks are checked before they are timed. bench/cpu/selection.py compares with other projects.
"""

import numpy as np
import pytest

from diverseevol_fast import kcenter

SHAPES = [  # N, D, M, k: small and large, narrow and wide, few picks and many
    (1_000, 16, 1, 10),
    (1_000, 4_096, 10, 10),
    (5_000, 3, 1, 100),
    (5_000, 128, 100, 100),
    (30_000, 5, 1, 30),
    (30_000, 64, 1, 1_000),
    (20_000, 384, 100, 100),
    (15_011, 1_024, 1, 5),
    (15_011, 4_096, 100, 100),
]


def rows_of(kind: str, n: int, d: int) -> np.ndarray:
    """Rows without structure, in 50 clusters, or a tenth of them with nine copies each."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    if kind == "clusters":
        return 10 * x[rng.integers(0, 50, n)] + x
    return x[rng.integers(0, n // 10, n)] if kind == "duplicates" else x


@pytest.mark.parametrize("method", ["block", "streaming"])
@pytest.mark.parametrize("kind", ["gaussian", "clusters", "duplicates"])
@pytest.mark.parametrize("shape", SHAPES, ids="N={0[0]} D={0[1]} M={0[2]} k={0[3]}".format)
def test_kcenter(benchmark, shape, kind, method):
    n, d, m, k = shape
    x, centers = rows_of(kind, n, d), list(range(m))
    benchmark.group = f"N={n} D={d} M={m} k={k} {kind}"
    result = kcenter(x, k, centers, method=method)
    other = kcenter(x, k, centers, method="streaming" if method == "block" else "block")
    assert result.indices.tolist() == other.indices.tolist()
    benchmark.extra_info["passes"] = result.passes
    benchmark(lambda: kcenter(x, k, centers, method=method))
