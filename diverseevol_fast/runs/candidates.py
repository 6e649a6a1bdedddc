"""What a strategy may ask about the rows of a round: their embeddings, or how sure the model is of them."""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..embedding.embed_tokens import Embeddings, embed_tokens
from ..embedding.encoder import Encoder, encoder_of, uncertainty_encoder
from ..embedding.precision import in_dtype
from ..embedding.store import read_whole_npy
from ..models.load import folder_sha256, load_causal_lm
from .config import Config
from .inputs import RunInputs
from .state import FREE_UNTIL_SELECTED, RunState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("diverseevol_fast")

NOT_OF_EMBEDDINGS = FREE_UNTIL_SELECTED - {"config.embed_dtype"} | {"config.n_round"}  # settings that change none


class Candidates:
    """The candidates of round r by position, and the positions of those that are in the pool already."""

    def __init__(
        self,
        r: int,
        pool: list[int],
        last_model: "PreTrainedModel | None",
        inputs: RunInputs,
        config: Config,
        state: RunState,
    ):
        """last_model: that of round r - 1; None: it is read when it is asked for. pool: row numbers."""
        self.r, self.inputs, self.config, self.state = r, inputs, config, state
        self.pool = inputs.positions(pool).tolist()
        self._given_model = last_model

    def __len__(self) -> int:
        return len(self.inputs.candidates)

    def embedded(self) -> Embeddings:
        """By the model of the round before, the pool first."""
        model_sha256, encoder = self._last_sha256(), encoder_of(self._last_model())
        return self._embed(encoder, model_sha256, self.state.embeddings_file(self.r), self.pool, compared=self.r == 1)

    def embedded_by_base(self) -> torch.Tensor:
        """By the base model: [N, D]. Embedded once in a run."""
        base, store = self.inputs.base, self.state.base_embeddings_file
        finished = read_whole_npy(store)  # this run's, whose provenance was checked
        if finished is not None and finished.shape[0] == len(self):
            return torch.from_numpy(finished)
        self._given_model = None  # its memory is needed for the base model
        gc.collect()
        return self._embed(encoder_of(self._load(base)), folder_sha256(base), store, []).values

    def logit_statistics(self) -> torch.Tensor:
        """By the model of the round before: [N, 3], as strategies.uncertainty takes them."""
        model_sha256, encoder = self._last_sha256(), uncertainty_encoder(self._last_model())
        return self._embed(encoder, model_sha256, self.state.statistics_file(self.r), []).values

    def _last_sha256(self) -> str:
        return self.state.model_sha256(self.r - 1, loaded=self._given_model is None)

    def _last_model(self) -> "PreTrainedModel":
        return self._given_model or self._load(self.state.model_folder(self.r - 1))

    def _load(self, folder: Path) -> "PreTrainedModel":
        config = self.config
        return load_causal_lm(
            folder, dtype=config.dtype, attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code, base=self.inputs.base,
        )  # fmt: skip

    def _embed(
        self, encoder: Encoder, model_sha256: str, store: Path, first: list[int], compared: bool = False
    ) -> Embeddings:
        inputs, config = self.inputs, self.config
        log.info("round %d: embedding %d rows", self.r, len(self))
        encoder, changes = in_dtype(encoder, config.embed_dtype, inputs.tokens, inputs.candidates, compared=compared)
        embedded = embed_tokens(
            encoder, inputs.tokens, inputs.candidates,
            store=store,
            provenance={key: value for key, value in inputs.provenance.items() if key not in NOT_OF_EMBEDDINGS} | {
                "model_sha256": model_sha256, "tokens_sha256": inputs.tokens.sha256(),
            },
            first=first,
            replace=True,
            max_tokens_per_batch=config.max_tokens_per_batch,
        )  # fmt: skip
        if embedded.metrics:
            self.state.record_metrics(self.r, embed=embedded.metrics | changes)
        log.info("round %d: selecting among %d rows, %d of them in the pool", self.r, len(self), len(self.pool))
        return embedded
