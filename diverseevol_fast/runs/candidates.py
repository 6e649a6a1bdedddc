"""The candidates of a round as strategies use them: their embeddings, or how sure the model is of them."""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..embedding.embed_lazily import Earlier, LazyPicks, embed_lazily, read_earlier
from ..embedding.embed_tokens import Embeddings, embed_tokens
from ..embedding.encoder import Encoder, encoder_of, uncertainty_encoder
from ..embedding.precision import in_dtype
from ..embedding.store import read_whole_npy
from ..models.load import folder_sha256
from ..selection.lazy import LazyResult
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

    def picked_lazily(self, k: int) -> LazyPicks | None:
        """The k picks of a lazy round; None where the round has to embed all rows.

        That is so where no embeddings of the round before are there, or where it was lazy in vain: trying costs a few
        per cent, so that only every other round does where embeddings move far.
        """
        earlier = self._earlier() if self.r > 1 else None
        if earlier is None:
            return None
        config, model_sha256, encoder = self.config, self._previous_sha256(), encoder_of(self._load_previous())
        log.info("round %d: embedding the rows that can be picked, of %d", self.r, len(self))
        encoder, _ = in_dtype(encoder, config.embed_dtype, self.inputs.tokens, self.inputs.candidates, compared=False)
        settings = {"bound": config.lazy_bound, "probe": config.lazy_probe, "audit": config.lazy_audit}
        picks = embed_lazily(
            encoder,
            self.inputs.tokens,
            self.inputs.candidates,
            k,
            r=self.r,
            earlier=earlier,
            store=self.state.embeddings_file(self.r),
            provenance=self._provenance(model_sha256),
            first=self.pool,
            settings=settings | {"seed": config.seed},
            max_tokens_per_batch=config.max_tokens_per_batch,
        )
        if picks.metrics:
            self.state.record_metrics(self.r, embed=picks.metrics)
        if picks.result is not None:
            self._say(picks.result)
        return picks

    def _say(self, result: LazyResult) -> None:
        """Log what is known of a lazy round's picks."""
        log.info(
            "round %d: %.1f%% of the rows were embedded. %s", self.r, 100 * result.share_embedded, result.guarantee
        )
        if not all(audit.passed for audit in result.audits):
            log.warning(
                "round %d: an audit found other picks, and bounds were widened. If it does in every round, "
                "embeddings move too unevenly to be predicted: a larger lazy_probe, lazy_bound: drift or a lower "
                "learning_rate may help; lazy_rounds: false embeds all rows",
                self.r,
            )

    def _earlier(self) -> Earlier | None:
        """The embeddings of the round before."""
        path = self.state.embeddings_file(self.r - 1)
        earlier = read_earlier(path, self.r - 1, self._provenance(self.state.model_sha256(self.r - 2, loaded=False)))
        if earlier is None:
            log.warning("%s: is not there to predict embeddings of round %d: embedding all rows", path, self.r)
        elif earlier.was_in_vain:
            log.info("round %d: the round before could leave out no row, so that this one embeds all at once", self.r)
            return None
        return earlier

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
        embedded = embed_tokens(
            encoder,
            inputs.tokens,
            inputs.candidates,
            store=store,
            provenance=self._provenance(model_sha256),
            first=first,
            replace=True,
            max_tokens_per_batch=config.max_tokens_per_batch,
        )
        if embedded.metrics:
            self.state.record_metrics(self.r, embed=embedded.metrics | changes)
        log.info("round %d: selecting among %d rows, %d of them in the pool", self.r, len(self), len(self.pool))
        return embedded

    def _provenance(self, model_sha256: str) -> dict[str, Any]:
        """What embeddings of the candidates by this model are made from."""
        inputs = self.inputs
        provenance = {key: value for key, value in inputs.provenance.items() if key not in NOT_OF_EMBEDDINGS}
        return provenance | {"model_sha256": model_sha256, "tokens_sha256": inputs.tokens.sha256()}
