"""Other projects' kernels for the screen on a GPU."""

import importlib.util

import torch
from device_timing import DEVICE, times

from diverseevol_fast.ops.audit import sqdist_from_below

SHAPE = (65_536, 1024, 4096)  # N, D, centers


def flash_kmeans(x: torch.Tensor, centers: torch.Tensor):
    """flash-kmeans' assignment kernel, then the distances to what it assigned, which are timed apart."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    squares, center_squares = x.float().square().sum(1)[None], centers.float().square().sum(1)[None]

    def assign():
        return euclid_assign_triton(x[None], centers[None], squares, c_sq=center_squares)

    return assign, lambda numbers: (x.float() - centers[numbers[0].long()].float()).square().sum(1)


def cuvs(x: torch.Tensor, centers: torch.Tensor):
    """cuVS, the nearest center by brute force."""
    from cuvs.neighbors import brute_force

    index = brute_force.build(centers, metric="sqeuclidean")
    return lambda: brute_force.search(index, x, 1)[0], lambda found: torch.as_tensor(found, device=DEVICE)[:, 0]


def keops(x: torch.Tensor, centers: torch.Tensor):
    """KeOps, the minimum over a symbolic matrix of squared distances."""
    from pykeops.torch import LazyTensor

    def nearest():
        return ((LazyTensor(x[:, None, :]) - LazyTensor(centers[None])) ** 2).sum(-1).min(dim=1)

    return nearest, lambda found: found[:, 0]


FOREIGN = {  # name: (module, function, dtype)
    "flash-kmeans": ("flash_kmeans", flash_kmeans, torch.float16),
    "cuVS": ("cuvs", cuvs, torch.float16),
    "KeOps": ("pykeops", keops, torch.float32),
}


def describe(name: str) -> dict:
    """What a line says of one of FOREIGN, whatever happens."""
    n, dim, count = SHAPE
    return {
        "op": "min_sqdist",
        "backend": name,
        "shape": list(SHAPE),
        "dtype": str(FOREIGN[name][2]).removeprefix("torch."),
        "flops": 2 * n * dim * count,
        "bytes": n * dim * FOREIGN[name][2].itemsize,
    }


def measure(name: str) -> dict:
    """Check one of FOREIGN, then time it; why not, where it is not installed."""
    module, peer, dtype = FOREIGN[name]
    if importlib.util.find_spec(module) is None:
        return describe(name) | {"passed": None, "reason": f"{module} is not installed"}
    n, dim, count = SHAPE
    x = torch.randn(n, dim, device=DEVICE).to(dtype)
    centers = x[:count].clone()
    exact = sqdist_from_below(x, centers.float(), x[:1024].float().mean(dim=0))
    run, distances = peer(x, centers)
    passed = bool(((distances(run()).double() - exact).abs() < 0.05 * exact + 0.05 * dim).all())
    return describe(name) | {"passed": passed} | (times(run) if passed else {})
