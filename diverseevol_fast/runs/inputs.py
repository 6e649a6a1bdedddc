"""Before round 0: data, tokens, base model, the initial pool, and the run's provenance."""

import hashlib
import logging
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._common import distributed
from .._common.errors import InputError
from .._common.files import build_folder, file_sha256
from .._common.messages import reason
from .._common.provenance import versions
from ..data import templates
from ..data.dataset import Data, load_data, refuse_empty, write_rows
from ..data.templates import Template, choose_template
from ..data.tokens import Tokens, log_lengths, log_sample, tokenize
from ..embedding.encoder import check_head
from ..embedding.store import remove_embeddings
from ..models.load import (
    SMALL_LLAMA,
    build_base_model,
    folder_sha256,
    load_causal_lm,
    load_tokenizer,
    resolve_model,
    usable_length,
)
from ..ops import backends
from ..strategies import STRATEGIES, Strategy
from .config import FREE_KEYS, Config
from .state import LAZY_KEYS, RunState, check_provenance, record_provenance
from .training import lora_config, training_arguments, translate_train_args

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")


@dataclass(frozen=True)
class RunInputs:
    """What every round works on."""

    data: Data
    tokens: Tokens
    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    base: Path  # the base model's folder
    candidates: np.ndarray  # indices of the rows that may be picked, ascending int64
    validation: np.ndarray  # indices of the validation rows, ascending int64
    held_out_groups: np.ndarray  # indices of the rows that config.held_out_groups keeps out of the pools
    initial_pool: list[int]  # indices in the order drawn
    provenance: dict[str, Any]

    def positions(self, indices: list[int]) -> np.ndarray:
        """The positions among the candidates of the rows at these indices."""
        return np.searchsorted(self.candidates, np.array(indices, dtype=np.int64))


def prepare(config: Config, state: RunState) -> RunInputs:
    """Load and check everything that a run needs; only the run's folder is written.

    Raises:
        InputError: data, model, settings or an earlier output do not fit.
    """
    for note in translate_train_args(config.train_args)[1]:
        log.warning(note)
    training_arguments(config, state.folder / "state")
    if config.peft:
        lora_config(config.peft)
    strategy = STRATEGIES[config.evol_schedule_name]
    _check_backend(strategy)
    data, empty = load_data(config.full_data_path, config.columns, skip_broken=config.skip_broken)
    if not config.skip_empty:
        refuse_empty(data, empty)
    held_out_groups = held_out_group_rows(data, empty, config)
    candidates, validation, initial_pool = split(len(data.rows), [*empty, *held_out_groups], config)
    base = _base_model(config, data, state)
    tokenizer = load_tokenizer(base, config.trust_remote_code)
    _set_pad_token(tokenizer, config.model_name_or_path)
    template = choose_template(config.template, data, tokenizer)
    template.check_trainable()
    length = usable_length(config.model_max_length, _model_config(base, config), tokenizer)
    provenance = _provenance(config, data, base) | template.provenance(data)
    before = check_provenance(state, provenance)
    resumed = before is not None
    if resumed:
        _check_finished(state, config.n_round + 1)
    log_sample(template, data, int(candidates[0]), tokenizer)
    tokens = Tokens.load(state.tokens_file) if resumed else tokenize(data, tokenizer, length, empty, template)
    log_lengths(tokens, length)
    longest = int(tokens.lengths().max())
    groups = {"the initial pool": initial_pool, "val_set_size": validation, "held_out_groups": held_out_groups}
    for name, indices in groups.items():
        if len(indices) and not any(map(tokens.has_response, indices)):
            raise InputError(
                f"model_max_length {length} cuts the response of every row of {name} away (the longest row has "
                f"{longest} tokens or more); raise it"
            )
    if before != provenance:
        _check_model(strategy, config, base, len(candidates))
        remove_embeddings(state.base_embeddings_file)  # other settings made them
        if not resumed:
            tokens.save(state.tokens_file)  # written once, since a chat template may contain the date
            state.record_manifest(0, {"tokens_sha256": file_sha256(state.tokens_file)})
        record_provenance(state, provenance)
    return RunInputs(
        data, tokens, tokenizer, template, base, candidates, validation, held_out_groups, initial_pool, provenance
    )


def _check_finished(state: RunState, rounds: int) -> None:
    """Compare the finished files with their records; warn if the number of processes has changed."""
    if distributed.is_first():
        state.check_files(rounds)
    log.info("%s: this run was begun before; what is finished stands", state.folder)
    before, now = state.manifest(0).get("processes", distributed.world()), distributed.world()
    if before != now:
        log.warning("begun with %d processes, now %d: training takes other steps, later rounds differ", before, now)


def _check_backend(strategy: Strategy) -> None:
    """Raises InputError when DIVERSEEVOL_BACKEND names a backend that lacks one of the strategy's ops here."""
    try:
        for op in strategy.ops:
            backends.choose("cpu", op=op)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_model(strategy: Strategy, config: Config, base: Path, candidates: int) -> None:
    """Raises InputError where the model does not fit the strategy, before a round is trained."""
    strategy.check_size(config, candidates, _model_config(base, config).get_text_config().hidden_size)
    if strategy.needs_logits:
        check_head(load_causal_lm(base, dtype=config.dtype, trust_remote_code=config.trust_remote_code, base=base))


def held_out_group_rows(data: Data, empty: list[int], config: Config) -> np.ndarray:
    """The indices, ascending int64, of the rows with one of config.held_out_groups' values; empty rows are left out.

    Raises:
        InputError: a value that no row has.
    """
    indices: list[int] = []
    for key, values in (config.held_out_groups or {}).items():
        for value in values:
            members = [index for index, row in enumerate(data.rows) if row.get(key) == value]
            if not members:
                raise InputError(f"config: held_out_groups: no row of {data.source} has {value!r} under '{key}'")
            indices += members
    return np.setdiff1d(indices, empty).astype(np.int64)


def split(n: int, left_out: list[int], config: Config) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Indices of the candidates and the validation rows (both ascending), and of the initial pool, in the order drawn.

    The draws are seeded, and without replacement.

    Raises:
        InputError: the data has too few rows for the validation rows and all rounds.
    """
    usable = np.setdiff1d(np.arange(n), np.array(left_out, dtype=np.int64))
    needed = config.init_label_num + config.n_round * config.n_query + config.val_set_size
    if needed > len(usable):
        raise InputError(
            f"{config.full_data_path}: {len(usable)} usable rows; init_label_num + n_round x n_query + val_set_size = "
            f"{config.init_label_num} + {config.n_round} x {config.n_query} + {config.val_set_size} = "
            f"{needed} needs more"
        )
    shuffled = np.random.default_rng(config.seed).permutation(usable)
    validation = np.sort(shuffled[: config.val_set_size])
    initial_pool = shuffled[config.val_set_size :][: config.init_label_num]
    return np.setdiff1d(usable, validation), validation, initial_pool.tolist()


def write_pool_files(state: RunState, r: int, inputs: RunInputs, pool: list[int]) -> None:
    """data/rd_<r>_labeled.json, in pick order, and rd_<r>_unlabeled.json, in the data's order."""
    remaining = np.setdiff1d(inputs.candidates, np.array(pool, dtype=np.int64))
    for part, indices in (("labeled", pool), ("unlabeled", remaining)):
        path = state.data_file(r, part)
        if not path.exists():
            write_rows(path, [inputs.data.rows[index] for index in indices])


def record_manifest(state: RunState, r: int, inputs: RunInputs, config: Config) -> None:
    """Write state/rd_<r>/manifest.json: the round's config, provenance, versions and random states."""
    import torch
    from transformers import set_seed

    set_seed(config.seed)  # as `train` does, so that the states are those that training starts from
    states = {
        "python": repr(random.getstate()).encode(),
        "numpy": repr(np.random.get_state()).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    digests = {name: hashlib.sha256(value).hexdigest() for name, value in states.items()}
    entries = {"round": r, "seed": config.seed, "random_state_sha256": digests, "config": asdict(config)}
    entries |= {"template": inputs.template.name, "provenance": inputs.provenance, "versions": versions()}
    state.record_manifest(r, entries | {"processes": distributed.world()})


def _base_model(config: Config, data: Data, state: RunState) -> Path:
    if config.model_name_or_path != SMALL_LLAMA:
        return resolve_model(config.model_name_or_path, config.cache_dir, config.trust_remote_code)
    folder = state.folder / "base"
    if distributed.is_first() and not state.is_anything_trained():  # an earlier start may have had other data
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        build_folder(folder, lambda partial: build_base_model(data, partial, config.seed))
    return folder


def _model_config(base: Path, config: Config):
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # transformers raises errors of any type for damaged settings
        raise InputError(f"{base}: not a model that transformers knows: {reason(error)}") from error


def _set_pad_token(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Pad with the end token where the tokenizer has no other, which is safe because padding is masked.

    Raises:
        InputError: the tokenizer has no end token, which training needs.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"model '{name}': its tokenizer has no eos token; set one and save the tokenizer")
    if tokenizer.pad_token_id is None:
        log.warning("the tokenizer has no pad token; padding with its eos token (padding is masked)")
        tokenizer.pad_token = tokenizer.eos_token


def _provenance(config: Config, data: Data, base: Path) -> dict[str, Any]:
    template = templates.PROMPT + templates.PROMPT_WITH_INPUT
    # Without lazy rounds their settings are left out, as in the records of runs that did not know them.
    left_out = FREE_KEYS if config.lazy_rounds else FREE_KEYS.union(LAZY_KEYS)
    settings = {f"config.{key}": value for key, value in asdict(config).items() if key not in left_out}
    return settings | {
        "data_sha256": data.sha256(),
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "base_model_sha256": folder_sha256(base),
    }
