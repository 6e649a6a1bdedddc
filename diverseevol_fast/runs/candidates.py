"""The candidates of a round as strategies use them: their embeddings, or how sure the model is of them."""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..embedding.embed_tokens import Embeddings, embed_tokens
from ..embedding.encoder import Encoder, encoder_of, uncertainty_encoder
from ..embedding.precision import in_dtype
from ..embedding.store import read_whole_npy
from ..models.load import folder_sha256
from .config import Config
from .inputs import RunInputs
from .state import FREE_UNTIL_SELECTED, RunState
from .training import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("diverseevol_fast")

NOT_OF_EMBEDDINGS = FREE_UNTIL_SELECTED - {"config.embed_dtype"} | {"config.n_round"}  # they change no embedding


class Candidates:
    """The candidates of round r by position, and the positions of those that are in the pool."""

    def __init__(
        self,
        r: int,
        pool: list[int],
        previous_model: "PreTrainedModel | None",
        inputs: RunInputs,
        config: Config,
        state: RunState,
    ):
        """previous_model: that of round r - 1; None: it is read when it is needed. pool: indices."""
        self.r, self.inputs, self.config, self.state = r, inputs, config, state
        self.pool = inputs.positions(pool).tolist()
        self._previous_model = previous_model

    def __len__(self) -> int:
        return len(self.inputs.candidates)

    def embedded(self) -> Embeddings:
        """Embed by the previous round's model, the pool first."""
        model_sha256, encoder = self._previous_sha256(), encoder_of(self._load_previous())
        return self._embed(encoder, model_sha256, self.state.embeddings_file(self.r), self.pool, compared=self.r == 1)

    def embedded_by_base(self) -> torch.Tensor:
        """[N, D] by the base model, which embeds once in a run."""
        base, store = self.inputs.base, self.state.base_embeddings_file
        finished = read_whole_npy(store)  # `prepare` has compared the run's provenance, or removed the file
        if finished is not None and finished.shape[0] == len(self):
            return torch.from_numpy(finished)
        self._previous_model = None  # the base model needs its memory
        gc.collect()
        return self._embed(encoder_of(load_model(base, self.config, base)), folder_sha256(base), store, []).values

    def logit_statistics(self) -> torch.Tensor:
        """[N, 3] by the previous round's model, as strategies.uncertainty takes them."""
        model_sha256, encoder = self._previous_sha256(), uncertainty_encoder(self._load_previous())
        return self._embed(encoder, model_sha256, self.state.statistics_file(self.r), []).values

    def _previous_sha256(self) -> str:
        return self.state.model_sha256(self.r - 1, loaded=self._previous_model is None)

    def _load_previous(self) -> "PreTrainedModel":
        folder = self.state.model_folder(self.r - 1)
        return self._previous_model or load_model(folder, self.config, self.inputs.base)

    def _embed(
        self, encoder: Encoder, model_sha256: str, store: Path, first: list[int], compared: bool = False
    ) -> Embeddings:
        inputs, config = self.inputs, self.config
        log.info("round %d: embedding %d rows", self.r, len(self))
        encoder, changes = in_dtype(encoder, config.embed_dtype, inputs.tokens, inputs.candidates, compared=compared)
        provenance = {key: value for key, value in inputs.provenance.items() if key not in NOT_OF_EMBEDDINGS}
        embedded = embed_tokens(
            encoder,
            inputs.tokens,
            inputs.candidates,
            store=store,
            provenance=provenance | {"model_sha256": model_sha256, "tokens_sha256": inputs.tokens.sha256()},
            first=first,
            replace=True,
            max_tokens_per_batch=config.max_tokens_per_batch,
        )
        if embedded.metrics:
            self.state.record_metrics(self.r, embed=embedded.metrics | changes)
        log.info("round %d: selecting among %d rows, %d of them in the pool", self.r, len(self), len(self.pool))
        return embedded
