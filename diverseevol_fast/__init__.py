"""diverseevol_fast: DiverseEvol data selection, exact and fast. Public names are imported when first used."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "Embeddings": ".embedding.embed_tokens",
    "KCenterStream": ".selection.stream",
    "embed": ".embedding.embed",
    "kcenter": ".selection.traversal",
    "masked_mean_pool": ".ops.masked_mean_pool",
}
__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from .embedding.embed import embed as embed
    from .embedding.embed_tokens import Embeddings as Embeddings
    from .ops.masked_mean_pool import masked_mean_pool as masked_mean_pool
    from .selection.stream import KCenterStream as KCenterStream
    from .selection.traversal import kcenter as kcenter


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
