"""DiverseEvol (arXiv 2311.08182): train on the pool, embed every candidate with the model, add the farthest."""

import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._common import distributed
from .runs.candidates import Candidates
from .runs.config import Config, load_config
from .runs.evaluation_loss import evaluate_loss
from .runs.finished import FinishedRun
from .runs.inputs import RunInputs, prepare, record_manifest, write_pool_files
from .runs.state import RunState, build_folder_together, open_run
from .runs.training import train
from .strategies import STRATEGIES

log = logging.getLogger("diverseevol_fast")


def run(config: str | Path | Mapping[str, Any] | Config, *, restart: bool = False, **overrides: Any) -> FinishedRun:
    """Run DiverseEvol: every round that is not finished yet.

    Args:
        config: the name of a YAML file, a mapping of the same keys, or a Config.
        restart: rename what was made before to <folder>.before-<n>, and run every round.
        overrides: keys of the config, which win over it.

    Returns:
        FinishedRun: its pools, metrics and models.

    Raises:
        InputError: something the user gave is wrong; nothing was changed.
        RunError: numbers that are not finite on the way; every finished stage is kept.
    """
    config = load_config(config, overrides)
    with open_run(config.output_path, restart) as state:
        with distributed.first_then_others():
            inputs = prepare(config, state)
        model, pool = None, []
        for r in range(config.n_round + 1):
            if state.selected(r) is None:
                if r == 0:
                    state.record_selected(0, inputs.initial_pool, None)
                else:
                    candidates, model = Candidates(r, pool, model, inputs, config, state), None
                    select_round(r, candidates, config, state)
                    candidates = None
            pool += state.selected(r) or []
            if distributed.is_first():
                if not config.keep_embeddings:
                    state.remove_embeddings(r, config.n_round, config.lazy_rounds)
                write_pool_files(state, r, inputs, pool)
            model = None
            gc.collect()  # mixed precision leaves a reference cycle on the model; the next one needs its memory
            if not state.is_trained(r):
                model = train_round(r, pool, inputs, config, state)
        return FinishedRun(state, config, config.n_round + 1)


def select_round(r: int, candidates: Candidates, config: Config, state: RunState) -> None:
    """Let the strategy choose the n_query rows that join the pool; one-shot K-Center chooses those of all rounds."""
    strategy = STRATEGIES[config.evol_schedule_name]
    rounds = config.n_round - r + 1 if strategy.picks_all_rounds_at_once else 1
    picks = strategy.pick(candidates, rounds * config.n_query)
    log.info("round %d: %s chose %d rows", r, strategy.name, len(picks.positions))
    indices = candidates.inputs.candidates[picks.positions].tolist()
    for later in reversed(range(rounds)):  # round r is recorded last: until then a restart chooses all of them again
        part = slice(later * config.n_query, (later + 1) * config.n_query)
        sqdist = picks.sqdist and picks.sqdist[part]
        radius = {"radius": sqdist[-1] ** 0.5} if sqdist else {}
        state.record_metrics(r + later, select=radius | (picks.metrics if later == 0 else {}))
        state.record_selected(r + later, indices[part], sqdist)


def train_round(r: int, pool: list[int], inputs: RunInputs, config: Config, state: RunState):
    """Fine-tune a fresh copy of the base model on the pool and record it; returns the model."""
    log.info("round %d: training on %d rows", r, len(pool))
    record_manifest(state, r, inputs, config)

    def build(folder: Path):
        model, trained = train(inputs.base, inputs.tokens, pool, inputs.tokenizer, config, folder)
        for name, indices in (("validation", inputs.validation), ("held_out_groups", inputs.held_out_groups)):
            trained |= evaluate_loss(model, inputs.tokens, indices, name)
        state.record_metrics(r, pool=len(pool), train=trained)
        state.record_model(r, folder)
        return model

    return build_folder_together(state.model_folder(r), build)
