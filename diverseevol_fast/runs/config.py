"""A run's settings: the public implementation's YAML keys as they are, and ours, checked before any work."""

import copy
import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from .._common.checks import check_tokens_per_batch
from .._common.dtypes import DTYPES
from .._common.errors import InputError
from .._common.messages import shown
from .._common.reading import check_plain, read_text
from .._common.yaml_values import parse_yaml
from ..strategies import STRATEGIES

LARGEST_EXACT = 1 << 53  # JSON readers turn whole numbers into floats, which hold larger ones inexactly
LOWEST = {"model_max_length": 8, "val_set_size": 0, "init_label_num": 1, "n_round": 0, "n_query": 1, "seed": 0}
LOWEST |= {"lazy_probe": 1, "lazy_audit": 0}
HIGHEST = {"model_max_length": 1 << 30, "max_random_times": 100_000, "seed": (1 << 32) - 1}  # the seed is numpy's
LAZY_BOUNDS = ("residual", "drift")
EXPONENT_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 reads 2e-5 as a text


@dataclass(frozen=True)
class Config:
    """The settings of a run: the public implementation's keys first, then ours."""

    full_data_path: str
    model_name_or_path: str
    result_dir_name: str | None = None  # output goes to evol_res/<result_dir_name> unless output_dir says otherwise
    cache_dir: str | None = None
    model_max_length: int = 512
    val_set_size: int = 0  # validation rows: in no pool, for a loss per round
    evol_schedule_name: str = "KCenterSampling"
    init_label_num: int = 100
    n_round: int = 10
    n_query: int = 100
    whiten_n_components: int | bool = False  # K-Center: how many whitened directions; 0 or less: no whitening
    max_random_times: int = -1  # VendiSampling: how many random batches
    vendi_argmax_rank: int = 0  # VendiSampling: the rank of the batch taken; 0 is the most diverse, -1 the least
    train_args: dict[str, Any] = field(default_factory=dict)  # keywords of transformers.TrainingArguments

    output_dir: str | None = None
    held_out_groups: dict[str, Any] | None = None  # {key: [values]}: these rows are in no pool, and have a loss
    seed: int = 0
    dtype: str = "float32"  # the weights' dtype
    attn_implementation: str | None = None
    max_tokens_per_batch: int | str = "auto"  # how many an embedding batch has, padding included
    embed_dtype: str | None = None  # the weights' dtype while candidates are embedded; None: as trained
    peft: dict[str, Any] | None = None  # keywords of peft.LoraConfig
    report_to: str | list[str] = "none"
    template: str | None = None  # "alpaca", "plain", "chat" or a file; None: alpaca, or chat for conversations
    columns: dict[str, str] | None = None
    skip_broken: bool = False  # leave out broken lines and malformed rows; indices count the remaining rows
    skip_empty: bool = False  # leave out rows with an empty instruction or output instead of refusing them
    keep_embeddings: bool = False
    lazy_rounds: bool = False  # from round 2 on, embed only the rows that can be picked
    lazy_bound: str = "residual"  # what rows are bounded by, or "drift"
    lazy_probe: int = 256  # rows that say how far the others may be from where they were
    lazy_audit: int = 256  # rows that are embedded to see whether they would have been picked
    trust_remote_code: bool = False

    @property
    def output_path(self) -> Path:
        """The run's folder."""
        return Path(self.output_dir or Path("evol_res") / str(self.result_dir_name))


OLDER_KEYS = {"unseen": "held_out_groups"}  # keys of version 0.1, which are still read
# FREE_KEYS may change when a run is continued. The first ones do not decide the picks (batches change the last bits of
# an embedding at most); of the others the content is compared: rows, weights and the template's text.
FREE_KEYS = {"output_dir", "result_dir_name", "report_to", "keep_embeddings", "cache_dir", "max_tokens_per_batch"}
FREE_KEYS |= {"full_data_path", "model_name_or_path", "template", "skip_broken"}


def load_config(
    config: str | os.PathLike | Mapping[str, Any] | Config, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Read a config, apply the overrides ("a.b" is the key b of the mapping a) and check everything.

    config: the name of a YAML file, a mapping of its keys, or a Config.

    Raises:
        InputError: no such file, not YAML (with the line), an unknown key (with the nearest known name), a bad value.
    """
    if isinstance(config, Config):
        values = asdict(config)
    elif isinstance(config, Mapping):
        values = copy.deepcopy(dict(config))
    else:
        values = _read(Path(config))
    for key, value in (overrides or {}).items():
        _apply(values, key, value)
    return make_config(values)


def _read(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise InputError(f"{shown(path, 200)}: no such config file")
    values = parse_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
    return values


def make_config(values: dict[str, Any]) -> Config:
    """A checked Config out of plain values.

    Raises:
        InputError: an unknown key, a missing one, a bad value.
    """
    known = {f.name: f for f in fields(Config)}
    for older, name in OLDER_KEYS.items():
        if older in values and name in values:
            raise InputError(f"config: {older} is the older name of {name}; expected one of the two, got both")
    values = {OLDER_KEYS.get(key, key): value for key, value in values.items()}
    for key in values:
        if key not in known:
            raise InputError(f"config: unknown key '{shown(key)}'{nearest(key, known)}")
    for name, value in values.items():
        check_plain(_numbers(value), f"config: {name}")
        _check_plain(name, value)
    for name, f in known.items():
        required = f.default is MISSING and f.default_factory is MISSING
        if required and values.get(name) in (None, ""):
            raise InputError(f"config: key '{name}' is missing")
    values = {key: value for key, value in values.items() if value is not None}
    for name, value in values.items():
        _check_type(name, value, known[name].type)
    config = Config(**{name: _numbers(value) if isinstance(value, dict) else value for name, value in values.items()})
    _check_values(config)
    return config


def _check_plain(name: str, value: Any) -> None:
    """Raises InputError unless JSON can hold the value exactly, since the run's records keep it."""
    if isinstance(value, list):
        for item in value:
            _check_plain(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"config: {name}: expected names as keys, got {shown(repr(key))}")
            _check_plain(f"{name}.{shown(key)}", item)
    elif isinstance(value, str):
        if "\0" in value:
            raise InputError(f"config: {name}: expected text without NUL, got {shown(repr(value))}")
    elif isinstance(value, int):
        if abs(value) >= LARGEST_EXACT:
            raise InputError(f"config: {name}: expected a number below 2^53, got one of {value.bit_length()} bits")
    elif not isinstance(value, float | None):
        raise InputError(f"config: {name}: expected text or a number, got a {type(value).__name__}; quote it as text")


def nearest(name: str, known) -> str:
    """ "; did you mean 'x'?" when a known name is close, else the empty string."""
    close = difflib.get_close_matches(shown(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _apply(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"--{key}: '{parent}' is not a mapping")
    values[last] = value


def _numbers(value: Any) -> Any:
    """`value` with texts like 2e-5 turned into numbers, at any depth."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str) and EXPONENT_NUMBER.fullmatch(value):
        return float(value)
    return value


def _check_type(name: str, value: Any, annotation: Any) -> None:
    choices = (annotation,) if get_origin(annotation) is dict else get_args(annotation) or (annotation,)
    kinds = [get_origin(choice) or choice for choice in choices]
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise InputError(f"config: {name}: expected {names}, got {shown(repr(value))}")


def _check_values(config: Config) -> None:
    for name, low in LOWEST.items():
        if getattr(config, name) < low:
            raise InputError(f"config: {name}: expected at least {low}, got {getattr(config, name)}")
    for name, high in HIGHEST.items():
        if getattr(config, name) > high:
            raise InputError(f"config: {name}: expected at most {high}, got {getattr(config, name)}")
    if not (config.output_dir or config.result_dir_name):
        raise InputError("config: key 'result_dir_name' (or 'output_dir') is missing: where does the run go?")
    if config.evol_schedule_name not in STRATEGIES:
        raise InputError(
            f"config: evol_schedule_name: expected {' or '.join(STRATEGIES)}, got '{shown(config.evol_schedule_name)}'"
        )
    strategy = STRATEGIES[config.evol_schedule_name]
    strategy.check_settings(config)
    if config.lazy_rounds and not strategy.has_lazy_rounds:
        raise InputError(f"config: lazy_rounds: {strategy.name} has none; expected false, or KCenterSampling")
    for key, kinds in (config.held_out_groups or {}).items():
        location = f"config: held_out_groups.{shown(key)}"
        if not isinstance(kinds, list) or not kinds:
            raise InputError(f"{location}: expected a list of values, got {shown(repr(kinds))}")
        if not all(isinstance(kind, str | int | float | None) for kind in kinds):
            raise InputError(f"{location}: expected texts or numbers, got {shown(repr(kinds))}")
    if config.dtype not in (*DTYPES, "auto"):
        raise InputError(f"config: dtype: expected one of {', '.join(DTYPES)}, auto, got '{shown(config.dtype)}'")
    if config.lazy_bound not in LAZY_BOUNDS:
        raise InputError(f"config: lazy_bound: expected {' or '.join(LAZY_BOUNDS)}, got '{shown(config.lazy_bound)}'")
    if config.embed_dtype not in (None, *DTYPES):
        raise InputError(f"config: embed_dtype: expected {', '.join(DTYPES)}, got '{shown(config.embed_dtype)}'")
    check_tokens_per_batch("config: max_tokens_per_batch", config.max_tokens_per_batch, config.model_max_length)
