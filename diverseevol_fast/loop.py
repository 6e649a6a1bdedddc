"""DiverseEvol (arXiv 2311.08182): train on the pool, embed every candidate with the model, add the farthest."""

import gc
import logging
import time
from pathlib import Path

from . import distributed, preparation
from .config import Config
from .embedding import embed_tokens
from .encoders import encoder_of
from .models import folder_sha256, load_causal_lm
from .precision import in_dtype
from .state import RunState, build_folder_together, open_run
from .store import remove_embeddings
from .training import held_out_loss, train

log = logging.getLogger("diverseevol_fast")


def run(config: Config) -> RunState:
    """Run every round that is not finished yet; returns the run's records.

    Raises:
        InputError: something the user gave is wrong; nothing was changed.
        RunError: numbers that are not finite on the way; every finished stage stands.
    """
    with open_run(config.output_path) as state:
        with distributed.first_then_others():
            given = preparation.prepare(config, state)
        model, pool = None, []
        for r in range(config.n_round + 1):
            if state.selected(r) is None:
                if r == 0:
                    state.record_selected(0, given.initial_pool, None)
                else:
                    model = model or _load(state.model_folder(r - 1), given, config)
                    select_round(r, model, pool, given, config, state)
            pool += state.selected(r)
            if distributed.is_first():
                if not config.keep_embeddings:
                    remove_embeddings(state.embeddings_file(r))
                preparation.write_pool_files(state, r, given, pool)
            model = None
            gc.collect()  # mixed precision leaves a cycle on the model; its memory is needed for the next one
            if not state.is_trained(r):
                model = train_round(r, pool, given, config, state)
        return state


def select_round(r: int, model, pool: list[int], given: preparation.Given, config: Config, state: RunState) -> None:
    """Embed all candidates with the model of round r - 1, the pool first; add the n_query farthest from the pool."""
    log.info("round %d: embedding %d rows", r, len(given.candidates))
    encoder, changes = in_dtype(encoder_of(model), config.embed_dtype, given.tokens, given.candidates, compared=r == 1)
    embedded = embed_tokens(
        encoder, given.tokens, given.candidates,
        store=state.embeddings_file(r),
        made_from=given.identity | {
            "model_sha256": folder_sha256(state.model_folder(r - 1)), "tokens_sha256": given.tokens.sha256(),
        },
        first=given.positions(pool),
        max_tokens_per_batch=config.max_tokens_per_batch,
    )  # fmt: skip
    if embedded.figures:
        state.record_metrics(r, embed=embedded.figures | changes)
    log.info("round %d: selecting %d rows against %d", r, config.n_query, len(pool))
    result = embedded.select(config.n_query)
    state.record_metrics(r, select={
        "seconds": result.seconds, "passes": result.passes, "backend": result.backend,
        "radius": float(result.sqdist[-1]) ** 0.5,
    })  # fmt: skip
    state.record_selected(r, given.candidates[result.indices].tolist(), result.sqdist.tolist())


def train_round(r: int, pool: list[int], given: preparation.Given, config: Config, state: RunState):
    """Fine-tune a fresh copy of the base model on the pool and record it; returns the model."""
    log.info("round %d: training on %d rows", r, len(pool))
    preparation.record_manifest(state, r, given, config)

    def build(folder: Path):
        model, trained = train(given.base, given.tokens, pool, given.tokenizer, config, folder)
        if len(given.held_out):
            began = time.perf_counter()
            loss = held_out_loss(model, given.tokens, given.held_out)
            trained |= {"held_out_loss": loss, "held_out_seconds": time.perf_counter() - began}
        state.record_metrics(r, pool=len(pool), train=trained)
        return model

    return build_folder_together(state.model_folder(r), build)


def _load(folder: Path, given: preparation.Given, config: Config):
    return load_causal_lm(
        folder, dtype=config.dtype, attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code, base=given.base,
    )  # fmt: skip
