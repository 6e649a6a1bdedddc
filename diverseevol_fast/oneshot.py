"""One-shot commands: embed a data set, select a diverse subset of it."""

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import torch

from . import distributed
from .config import check_tokens_per_batch
from .data import Data, check_row_file, load_data, write_rows
from .embedding import Embeddings, embed_tokens
from .encoders import encoder_of, is_sentence_transformer, sentence_texts
from .errors import InputError
from .files import write_json
from .input_files import columns_of, load_embeddings, load_row_numbers
from .models import (
    folder_sha256,
    is_sentence_folder,
    load_encoder,
    load_sentence_transformer,
    load_tokenizer,
    resolve_model,
    usable_length,
)
from .precision import in_dtype
from .preparation import versions
from .selection.shared import kcenter_shared
from .selection.traversal import KCenterResult
from .store import remove_embeddings
from .templates import check_template, render, tokenize
from .trainers import check_trainer, describe, rows_for

log = logging.getLogger("diverseevol_fast")


def embed_data(args: argparse.Namespace) -> str:
    """`diverseevol embed`: writes args.output; returns what to tell the user.

    Raises:
        InputError, RunError: as embedding does.
    """
    _require(args, "data", "model")
    if args.output.suffix != ".npy":
        raise InputError(f"--output {args.output}: expected a name ending in .npy")
    data, empty = load_data(args.data, columns_of(args.columns), args.skip_broken)
    if empty:
        log.warning("%d rows have an empty instruction or output, the first is row %d", len(empty), empty[0])
    embedded = _embed(args, data, np.arange(len(data.rows)), args.output, [])
    return f"{args.output}: {' x '.join(map(str, embedded.values.shape))} {args.store_dtype}"


def select_subset(args: argparse.Namespace) -> str:
    """`diverseevol select`: writes the subset and the record of picks; returns what to tell the user.

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
    output = args.output or (Path("subset.jsonl") if args.data else None)
    picks = args.picks or (output.parent if output else Path()) / "picks.json"
    _check_nothing_is_replaced(args, output, picks)
    if output:
        check_row_file(output)
        check_trainer(args.trainer, output)
    data, empty = load_data(args.data, columns_of(args.columns), args.skip_broken) if args.data else (None, [])
    if empty and not args.skip_empty:
        raise InputError(
            f"{args.data}: {len(empty)} rows have an empty instruction or output, the first is row {empty[0]}; "
            "remove them, or leave them out with --skip-empty"
        )
    x = load_embeddings(args.embeddings) if args.embeddings else None
    n = len(data.rows) if data else len(x)
    if x is not None and n != len(x):
        raise InputError(f"{args.embeddings}: {len(x)} rows, but {args.data} has {n}")
    candidates = np.setdiff1d(np.arange(n), np.array(empty, dtype=np.int64))
    centers = _centers(args, candidates, n)
    if x is None:
        temporary = output.with_name(output.name + ".embeddings.npy")
        embedded = _embed(args, data, candidates, temporary, centers or [])
        result = embedded.select(args.n, seed=args.seed)
    else:
        result = _kcenter(x[candidates] if empty else x, args, centers)
    rows = candidates[result.indices]
    distributed.barrier()  # the others read the embeddings until here
    told = []
    if distributed.is_first():
        if output:
            write_rows(output, rows_for(args.trainer, data, rows))
            told = [f"{output}: {len(rows)} rows", *describe(args.trainer, data, rows, output)]
        write_json(picks, _record(rows, result, args))
        if x is None:
            remove_embeddings(temporary)
    return "\n".join([*told, f"{picks}: {len(rows)} picks in {result.seconds:.2f} s, {result.passes:.2f} passes"])


def _check_nothing_is_replaced(args: argparse.Namespace, output: Path | None, picks: Path) -> None:
    """No file that is read, or that was just written, is written over."""
    if output is not None and os.path.realpath(output) == os.path.realpath(picks):
        raise InputError(f"--picks {picks}: is --output too; name another file")
    given = [("--data", args.data), ("--embeddings", args.embeddings)]
    given += [("--selected", path) for path in args.selected or []]
    inputs = {os.path.realpath(path): f"{name} {path}" for name, path in given if path is not None}
    for name, path in (("--output", output), ("--picks", picks)):
        if path is not None and os.path.realpath(path) in inputs:
            raise InputError(f"{inputs[os.path.realpath(path)]}: would be replaced; give another {name}")


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


def _embed(args: argparse.Namespace, data: Data, rows: np.ndarray, path: Path, first: list[int]) -> Embeddings:
    """Embed `rows` of the data into a file, those at the positions `first` before the others."""
    folder = resolve_model(args.model, trust_remote_code=args.trust_remote_code)
    encoder, tokenizer, longest = _encoder(args, folder)
    check_template(data, tokenizer)
    made_from = {"data_sha256": data.sha256(), "model_sha256": folder_sha256(folder)}
    if is_sentence_transformer(encoder.model):
        data = sentence_texts(encoder.model, data)
    length = usable_length(longest, encoder.body.config, tokenizer, encoder.reserved_positions)
    check_tokens_per_batch("--max-tokens-per-batch", args.max_tokens_per_batch, length)
    sample = render(data, int(rows[0]), tokenizer)
    log.info("sample %d, as the model sees it:\n%s", rows[0], "".join(text for text, _ in sample))
    left_out = np.setdiff1d(np.arange(len(data.rows)), rows)
    tokens = tokenize(data, tokenizer, length, left_out.tolist())
    log.info("tokens: %d in %d rows, %d rows cut to %d", len(tokens.ids), len(rows), tokens.truncated, length)
    made_from |= {
        "tokens_sha256": tokens.sha256(), "dtype": args.dtype, "attention": args.attn_implementation,
        "pooling": args.pooling,
    }  # fmt: skip
    if encoder.device.type == "cpu" and args.dtype == "bfloat16":
        encoder, _ = in_dtype(encoder, args.dtype, tokens, rows, compared=True)
    return embed_tokens(
        encoder, tokens, rows, store=path, made_from=made_from, dtype=args.store_dtype, first=first,
        max_tokens_per_batch=args.max_tokens_per_batch,
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
        return kcenter_shared(x, args.n, centers, args.seed)
    except (TypeError, ValueError) as error:
        text = str(error)
        if args.embeddings and text.startswith("x:"):
            text = f"{args.embeddings}{text.removeprefix('x')}"
        raise InputError(text) from error


def _record(rows: np.ndarray, result: KCenterResult, args: argparse.Namespace) -> dict:
    return {
        "indices": rows.tolist(),
        "sqdist": [value if np.isfinite(value) else None for value in result.sqdist.tolist()],
        "passes": result.passes,
        "seconds": result.seconds,
        "backend": result.backend,
        "data": args.data,
        "model": args.model,
        "embeddings": str(args.embeddings) if args.embeddings else None,
        "selected": [str(path) for path in args.selected or []],
        "seed": args.seed,
        "versions": versions(),
    }


def _require(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) is None:
            raise InputError(f"{args.command}: --{name} is missing")
