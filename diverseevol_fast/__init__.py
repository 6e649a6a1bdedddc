"""diverseevol_fast: DiverseEvol data selection, exact and fast. Public names are imported when first used."""

import importlib
from typing import TYPE_CHECKING

from ._common.version import __version__ as __version__

_HOME = {
    "Embeddings": ".embedding.embed_tokens",
    "InputError": "._common.errors",
    "KCenterStream": ".selection.stream",
    "LazyTraversal": ".selection.lazy",
    "RunError": "._common.errors",
    "diversity": ".evaluate.diversity",
    "embed": ".embedding.embed",
    "generate": ".evaluate.generate",
    "judge": ".evaluate.judge.judge",
    "kcenter": ".selection.traversal",
    "load_data": ".data.dataset",
    "masked_mean_pool": ".ops.masked_mean_pool",
    "report": ".evaluate.report.report",
    "run": ".loop",
    "score": ".evaluate.judge.score",
    "select": ".subset",
}
__all__ = [
    "Embeddings",
    "InputError",
    "KCenterStream",
    "LazyTraversal",
    "RunError",
    "__version__",
    "diversity",
    "embed",
    "generate",
    "judge",
    "kcenter",
    "load_data",
    "masked_mean_pool",
    "report",
    "run",
    "score",
    "select",
]

if TYPE_CHECKING:
    from ._common.errors import InputError as InputError
    from ._common.errors import RunError as RunError
    from .data.dataset import load_data as load_data
    from .embedding.embed import embed as embed
    from .embedding.embed_tokens import Embeddings as Embeddings
    from .evaluate.diversity import diversity as diversity
    from .evaluate.generate import generate as generate
    from .evaluate.judge.judge import judge as judge
    from .evaluate.judge.score import score as score
    from .evaluate.report.report import report as report
    from .loop import run as run
    from .ops.masked_mean_pool import masked_mean_pool as masked_mean_pool
    from .selection.lazy import LazyTraversal as LazyTraversal
    from .selection.stream import KCenterStream as KCenterStream
    from .selection.traversal import kcenter as kcenter
    from .subset import select as select


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
