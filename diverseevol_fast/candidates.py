"""What a strategy may ask about the rows of a round: their embeddings, or how sure the model is of them."""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .config import Config
from .embedding import Embeddings, embed_tokens
from .encoders import Encoder, encoder_of, uncertainty_encoder
from .models import folder_sha256, load_causal_lm
from .precision import in_dtype
from .preparation import Given
from .state import RunState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("diverseevol_fast")


class Candidates:
    """The candidates of round r by position, and the positions of those that are in the pool already."""

    def __init__(
        self,
        r: int,
        pool: list[int],
        last_model: "PreTrainedModel | None",
        given: Given,
        config: Config,
        state: RunState,
    ):
        """last_model: that of round r - 1; None: it is read when it is asked for. pool: row numbers."""
        self.r, self.given, self.config, self.state = r, given, config, state
        self.pool = given.positions(pool).tolist()
        self._given_model = last_model

    def __len__(self) -> int:
        return len(self.given.candidates)

    def embedded(self) -> Embeddings:
        """By the model of the round before, the pool first."""
        encoder, folder = encoder_of(self._last_model()), self.state.model_folder(self.r - 1)
        return self._embed(encoder, folder, self.state.embeddings_file(self.r), self.pool, compared=self.r == 1)

    def embedded_by_base(self) -> torch.Tensor:
        """By the base model: [N, D]. Embedded once in a run."""
        base, store = self.given.base, self.state.base_embeddings_file
        if store.exists():  # whole, and this run's, whose identity was checked
            return torch.from_numpy(np.load(store, mmap_mode="c", allow_pickle=False))
        self._given_model = None  # its memory is needed for the base model
        gc.collect()
        return self._embed(encoder_of(self._load(base)), base, store, []).values

    def logit_statistics(self) -> torch.Tensor:
        """By the model of the round before: [N, 3], as selection.uncertainty takes them."""
        encoder, folder = uncertainty_encoder(self._last_model()), self.state.model_folder(self.r - 1)
        return self._embed(encoder, folder, self.state.statistics_file(self.r), []).values

    def _last_model(self) -> "PreTrainedModel":
        return self._given_model or self._load(self.state.model_folder(self.r - 1))

    def _load(self, folder: Path) -> "PreTrainedModel":
        config = self.config
        return load_causal_lm(
            folder, dtype=config.dtype, attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code, base=self.given.base,
        )  # fmt: skip

    def _embed(
        self, encoder: Encoder, model: Path, store: Path, first: list[int], compared: bool = False
    ) -> Embeddings:
        given, config = self.given, self.config
        log.info("round %d: embedding %d rows", self.r, len(self))
        encoder, changes = in_dtype(encoder, config.embed_dtype, given.tokens, given.candidates, compared=compared)
        embedded = embed_tokens(
            encoder, given.tokens, given.candidates,
            store=store,
            made_from=given.identity | {
                "model_sha256": folder_sha256(model), "tokens_sha256": given.tokens.sha256(),
            },
            first=first,
            max_tokens_per_batch=config.max_tokens_per_batch,
        )  # fmt: skip
        if embedded.figures:
            self.state.record_metrics(self.r, embed=embedded.figures | changes)
        log.info("round %d: selecting among %d rows, %d of them in the pool", self.r, len(self), len(self.pool))
        return embedded
