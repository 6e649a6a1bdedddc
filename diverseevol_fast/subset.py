"""One-shot commands: embed a data set, select a diverse subset of it."""

import argparse
import contextlib
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._common import distributed
from ._common.errors import InputError
from ._common.files import file_sha256, locked, write_json
from ._common.provenance import check_same_data, differences, of_embeddings, of_file, of_picks, output_of_picks
from .cli.result import Result
from .data.dataset import Data, check_row_file, load_data, write_rows
from .data.export import check_trainer, describe, rows_for
from .data.input_files import columns_of, load_embeddings, load_row_numbers
from .data.summary import log_lengths, log_sample
from .data.templates import tokenize
from .embedding.embed import Embeddings, embed_tokens
from .embedding.encoder import encoder_of, template_for
from .embedding.precision import in_dtype
from .embedding.store import read_whole_npy, remove_embeddings
from .models.load import (
    folder_sha256,
    is_sentence_folder,
    load_encoder,
    load_sentence_transformer,
    load_tokenizer,
    resolve_model,
    usable_length,
)
from .runs.config import check_tokens_per_batch
from .runs.inputs import versions
from .selection.distributed import kcenter_distributed
from .selection.traversal import KCenterResult

log = logging.getLogger("diverseevol_fast")


def embed_data(args: argparse.Namespace) -> Result:
    """`diverseevol embed`: writes args.output.

    Raises:
        InputError, RunError: as embedding does.
    """
    _require(args, "data", "model")
    if args.output.suffix != ".npy":
        raise InputError(f"--output {args.output}: expected a name ending in .npy")
    data, empty = _load_data(args)
    if empty:
        log.warning("%d rows have an empty %s, the first is row %d", len(empty), _needed(args), empty[0])
    embedded = _embed(args, data, np.arange(len(data.rows)), _provenance_of_data(args, data), args.output, [])
    rows, dimension = embedded.values.shape
    return Result(
        f"{args.output}: {rows} x {dimension} {args.store_dtype}",
        {"output": str(args.output), "rows": rows, "dimension": dimension, "dtype": args.store_dtype}
        | {"metrics": embedded.metrics},
    )


def select_subset(args: argparse.Namespace) -> Result:
    """`diverseevol select`: writes the subset and the record of picks.

    Everything that can be checked before the embedding is.

    Raises:
        InputError, RunError: as loading, embedding and kcenter do.
    """
    if args.embeddings is not None and args.model is not None:
        raise InputError("select: expected --model or --embeddings, got both")
    if args.embeddings is None and args.model is None:
        raise InputError("select: --model is missing, which embeds the data; or give their --embeddings")
    if args.embeddings is None or args.output is not None or args.trainer is not None:
        _require(args, "data")
    files = _files(args)
    _check_nothing_read_is_replaced(args, files)
    if files.output:
        check_row_file(files.output)
        check_trainer(args.trainer, files.output)
    if args.trainer and args.text_column:
        raise InputError(f"--for {args.trainer}: trains on responses, which rows of --text-column do not have")
    with contextlib.ExitStack() as stack:
        for path in (files.picks, files.output):
            if path is not None and distributed.is_first():
                stack.enter_context(locked(path))
        return _select(args, files)


@dataclass(frozen=True)
class Files:
    """What `diverseevol select` writes."""

    picks: Path  # the record
    output: Path | None  # the picked rows; None: the record alone
    embeddings: Path | None  # None: they are given


def _files(args: argparse.Namespace) -> Files:
    output = args.output or (Path("subset.jsonl") if args.data else None)
    folder = output.parent if output else Path()
    stem = Path((output or args.embeddings).name.removesuffix(".gz")).stem
    embeddings = None if args.embeddings else folder / f"{stem}.embeddings.npy"
    return Files(args.picks or folder / f"{stem}.picks.json", output, embeddings)


def _select(args: argparse.Namespace, files: Files) -> Result:
    data, empty = _load_data(args) if args.data else (None, [])
    if empty and not args.skip_empty:
        raise InputError(
            f"{args.data}: {len(empty)} rows have an empty {_needed(args)}, the first is row {empty[0]}; "
            "remove them, or leave them out with --skip-empty"
        )
    x = load_embeddings(args.embeddings) if args.embeddings else None
    n = len(data.rows) if data else len(x)
    if x is not None and n != len(x):
        raise InputError(f"{args.embeddings}: {len(x)} rows, but {args.data} has {n}")
    candidates = np.setdiff1d(np.arange(n), np.array(empty, dtype=np.int64))
    provenance = _provenance(args, data, x)
    centers = _centers(args, candidates, n)
    if not args.overwrite:
        _check_outputs(files, provenance)
    keep = args.keep_embeddings or (files.embeddings is not None and files.embeddings.exists())
    if x is not None:
        result = _kcenter(x[candidates] if empty else x, args, centers)
    elif (kept := _kept(args, candidates, provenance, files.embeddings)) is not None:
        log.info("embeddings: those in %s", files.embeddings)
        result = _kcenter(kept, args, centers)
    else:
        embedded = _embed(args, data, candidates, provenance, files.embeddings, centers or [])
        result = embedded.select(args.n, seed=args.seed)
    rows = candidates[result.indices]
    distributed.barrier()  # the others read the embeddings until here
    told = []
    record = _record(rows, result, args) | {"provenance": provenance, "output": _name(files.output)}
    if distributed.is_first():
        write_json(files.picks, record)  # first, since it says what the output is made from
        if files.output:
            write_rows(files.output, rows_for(args.trainer, data, rows))
            told = [f"{files.output}: {len(rows)} rows", *describe(args.trainer, data, rows, files.output)]
        if x is None:
            told += _keep(files.embeddings, keep)
    written = {"output": str(files.output) if files.output else None, "picks": str(files.picks)}
    told.append(f"{files.picks}: {len(rows)} picks in {result.seconds:.2f} s")
    return Result("\n".join(told), record | written)


def _load_data(args: argparse.Namespace) -> tuple[Data, list[int]]:
    columns = columns_of(args.columns)
    return load_data(args.data, columns, text_column=args.text_column, skip_broken=args.skip_broken)


def _needed(args: argparse.Namespace) -> str:
    """What no row may lack."""
    return f"'{args.text_column}'" if args.text_column else "instruction or output"


def _check_nothing_read_is_replaced(args: argparse.Namespace, files: Files) -> None:
    """No file that is read, or that is written too, is written over."""
    given = [("--data", args.data), ("--embeddings", args.embeddings)]
    given += [("--selected", path) for path in args.selected or []]
    used = {os.path.realpath(path): f"{name} {path}" for name, path in given if path is not None}
    for name, path in (("--output", files.output), ("--picks", files.picks), ("--output", files.embeddings)):
        if path is None:
            continue
        if os.path.realpath(path) in used:
            raise InputError(f"{used[os.path.realpath(path)]}: would be replaced; give another {name}")
        used[os.path.realpath(path)] = f"{name} {path}"


def _provenance(args: argparse.Namespace, data: Data | None, x: np.ndarray | None) -> dict[str, Any]:
    """Of the picks. Raises InputError where what is given is of several data sets, as far as it is known."""
    of = {}
    if data and args.model:
        of[f"--data {args.data}"] = _provenance_of_data(args, data)
    elif data:
        of[f"--data {args.data}"] = {"data_sha256": data.sha256(), "data_rows": len(data.rows)}
    if x is not None:
        of[f"--embeddings {args.embeddings}"] = of_embeddings(args.embeddings, len(x))
    known = {key: value for one in reversed(of.values()) for key, value in one.items()}
    for path in args.selected or []:
        of[f"--selected {path}"] = of_picks(path)
    if not args.allow_other_data:
        check_same_data(of, "--allow-other-data")
    provenance = {key: known.get(key) for key in ("data_sha256", "data_rows", "model_sha256")}
    if provenance["model_sha256"] is None:  # the file's name stands for what is not known
        provenance["embeddings"] = str(args.embeddings.resolve())
    return provenance


def _check_outputs(files: Files, provenance: dict[str, Any]) -> None:
    """Raises InputError where an output stands that is not known to be of the same input, or is another's record."""
    standing = next((path for path in (files.picks, files.output) if path is not None and path.is_file()), None)
    if standing is None:
        return
    before = of_picks(files.picks)
    if not before and files.embeddings is not None:  # another record was asked for, and the embeddings beside it know
        kept = of_file(files.embeddings.with_name(files.embeddings.name + ".json"))
        before = {key: value for key, value in kept.items() if key in provenance}
    differing = differences(before, provenance, "it") if before else ["nothing says what of"]
    other = output_of_picks(files.picks)
    if other not in (None, _name(files.output)):
        differing = [f"it is the record of {other}"]
    if differing:
        raise InputError(f"{standing}: exists ({'; '.join(differing)}); give another name, or replace it: --overwrite")


def _name(path: Path | None) -> str | None:
    return path and path.name


def _kept(args: argparse.Namespace, rows: np.ndarray, provenance: dict[str, Any], path: Path) -> np.ndarray | None:
    """The embeddings of `rows` that an earlier command kept, where it asked for the same; no model is loaded."""
    if args.overwrite or not path.exists():
        return None
    made = of_file(path.with_name(path.name + ".json"))
    if made.get("asked_sha256") != _asked_sha256(args, rows, provenance):
        return None
    x = read_whole_npy(path)
    return x if x is not None and x.shape == (made.get("rows"), made.get("dim")) else None


def _asked_sha256(args: argparse.Namespace, rows: np.ndarray, provenance: dict[str, Any]) -> str:
    """Digest of all that decides the embeddings of `rows` and is known before the model is loaded."""
    names = ("template", "text_column", "columns", "model_max_length", "dtype", "store_dtype", "pooling",
             "attn_implementation")  # fmt: skip
    asked = provenance | versions() | {name: getattr(args, name) for name in names}
    if args.template and Path(args.template).is_file():
        asked["template"] = file_sha256(Path(args.template))
    asked["rows_sha256"] = hashlib.sha256(rows.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, keep: bool) -> list[str]:
    """Says that the embeddings are kept, or removes them."""
    if not keep:
        remove_embeddings(path)
        return []
    size = path.stat().st_size / 1e6
    shape = " x ".join(map(str, read_whole_npy(path).shape))
    return [f"{path}: {shape} embeddings, {size:,.1f} MB, kept for another -n (--no-keep-embeddings)"]


def _centers(args: argparse.Namespace, candidates: np.ndarray, n: int) -> list[int] | None:
    """The rows already selected, as positions among the candidates."""
    if args.selected is None:
        selected = []
    else:
        selected = [(path, row) for path in args.selected for row in load_row_numbers(path, n)]
        if not selected:
            raise InputError(f"{args.selected[0]}: holds no row; leave --selected out when nothing is selected yet")
    positions = np.searchsorted(candidates, [row for _, row in selected])
    seen = {}
    for (path, row), position in zip(selected, positions, strict=True):
        if not 0 <= row < n:
            raise InputError(f"{path}: expected rows from 0 to {n - 1}, got {row}")
        if not (position < len(candidates) and candidates[position] == row):
            raise InputError(f"{path}: row {row} is left out, because its instruction or output is empty")
        if row in seen:
            raise InputError(f"{path}: row {row} is given more than once, before in {seen[row]}")
        seen[row] = path
    if not 0 <= args.n <= len(candidates) - len(selected):
        raise InputError(
            f"-n: expected 0 to {len(candidates) - len(selected)}, the rows that can be picked, got {args.n}"
        )
    return None if args.selected is None else positions.tolist()


def _model_folder(args: argparse.Namespace) -> Path:
    return resolve_model(args.model, trust_remote_code=args.trust_remote_code)


def _provenance_of_data(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """The provenance of what is made from a data set with --model."""
    model = folder_sha256(_model_folder(args))
    return {"data_sha256": data.sha256(), "data_rows": len(data.rows), "model_sha256": model}


def _embed(
    args: argparse.Namespace, data: Data, rows: np.ndarray, provenance: dict[str, Any], path: Path, first: list[int]
) -> Embeddings:
    """Embed `rows` of the data into a file, those at the positions `first` before the others."""
    folder = _model_folder(args)
    encoder, tokenizer, longest = _encoder(args, folder)
    template = template_for(encoder, args.template, data, tokenizer)
    provenance = provenance | template.provenance(data) | {"asked_sha256": _asked_sha256(args, rows, provenance)}
    length = usable_length(longest, encoder.body.config, tokenizer, encoder.reserved_positions)
    check_tokens_per_batch("--max-tokens-per-batch", args.max_tokens_per_batch, length)
    log_sample(template, data, int(rows[0]), tokenizer)
    left_out = np.setdiff1d(np.arange(len(data.rows)), rows)
    tokens = tokenize(data, tokenizer, length, left_out.tolist(), template)
    log_lengths(tokens, length)
    provenance = provenance | {
        "tokens_sha256": tokens.sha256(), "dtype": args.dtype, "attention": args.attn_implementation,
        "pooling": args.pooling,
    }  # fmt: skip
    if encoder.device.type == "cpu" and args.dtype == "bfloat16":
        encoder, _ = in_dtype(encoder, args.dtype, tokens, rows, compared=True)
    return embed_tokens(
        encoder, tokens, rows, store=path, provenance=provenance, dtype=args.store_dtype, first=first,
        max_tokens_per_batch=args.max_tokens_per_batch, replace=args.overwrite,
    )  # fmt: skip


def _encoder(args: argparse.Namespace, folder: Path):
    """The encoder in --model's folder, its tokenizer, and how many tokens a row may have."""
    on_cpu = not torch.cuda.is_available()
    dtype = "float32" if on_cpu and args.dtype == "bfloat16" else args.dtype  # what that changes is found out
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    if is_sentence_folder(folder):
        model = load_sentence_transformer(folder, dtype=dtype, trust_remote_code=args.trust_remote_code, **options)
        return encoder_of(model, args.pooling), model.tokenizer, min(args.model_max_length, model.max_seq_length)
    model = load_encoder(folder, dtype=dtype, trust_remote_code=args.trust_remote_code, **options)
    tokenizer = load_tokenizer(folder, args.trust_remote_code)
    return encoder_of(model, args.pooling), tokenizer, args.model_max_length


def _kcenter(x: np.ndarray, args: argparse.Namespace, centers: list[int] | None) -> KCenterResult:
    try:
        return kcenter_distributed(x, args.n, centers, args.seed)
    except (TypeError, ValueError) as error:
        text = str(error)
        if args.embeddings and text.startswith("x:"):
            text = f"{args.embeddings}{text.removeprefix('x')}"
        raise InputError(text) from error


def _record(rows: np.ndarray, result: KCenterResult, args: argparse.Namespace) -> dict[str, Any]:
    """What stands in the picks' file; sqdist is None where the result has infinity, which JSON does not know."""
    return {
        "indices": rows.tolist(),
        "sqdist": [value if np.isfinite(value) else None for value in result.sqdist.tolist()],
        "passes": result.passes,
        "seconds": result.seconds,
        "backend": result.backend,
        "data": args.data,
        "model": args.model,
        "embeddings": str(args.embeddings) if args.embeddings else None,
        "template": args.template,
        "text_column": args.text_column,
        "selected": [str(path) for path in args.selected or []],
        "seed": args.seed,
        "versions": versions(),
    }


def _require(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) is None:
            raise InputError(f"{args.command}: --{name} is missing")
