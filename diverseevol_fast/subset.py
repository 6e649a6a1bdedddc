"""select: a diverse subset of a data set, from its rows or from their embeddings."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._common import distributed
from ._common.errors import InputError
from ._common.files import locked, write_json
from ._common.provenance import (
    check_same_data,
    differences,
    of_embeddings,
    of_file,
    of_picks,
    output_of_picks,
    sidecar_of,
    versions,
)
from .data.dataset import Data, check_row_file, load_data, refuse_empty, write_rows
from .data.export import check_responses, check_trainer, describe, rows_for
from .data.input_files import load_embeddings, load_row_numbers
from .embedding.from_folder import EmbedSettings, embed_by_folder, finished_embeddings, provenance_in
from .embedding.store import remove_embeddings
from .models.load import resolve_model
from .selection.arguments import as_indices, as_rows
from .selection.distributed import kcenter_distributed
from .selection.traversal import KCenterResult

log = logging.getLogger("diverseevol_fast")

ROWS_AT_ONCE = 65_536  # are hashed at a time

Selected = list[tuple[str, int]]  # (the origin of an index in messages, the index)


@dataclass(frozen=True)
class Selection:
    """What select returns."""

    indices: list[int]  # of the rows, in pick order
    sqdist: list[float | None]  # each pick's squared distance to its nearest center when picked; None: it had no center
    rows: list[Mapping[str, Any]] | None  # the picked rows of the data; None without data
    record: dict[str, Any]  # indices, sqdist, passes, seconds, backend, settings, provenance, versions
    output: Path | None  # the file of the picked rows
    picks: Path | None  # the file that holds the record
    embeddings: Path | None  # the file of embeddings, where it is kept
    trainer_notes: list[str]  # settings that the trainer needs to read the output

    def __repr__(self) -> str:
        return f"Selection({len(self.indices)} rows, {self.record['seconds']:.2f} s, output={str(self.output)!r})"

    def to_dict(self) -> dict[str, Any]:
        """The record, as picks.json holds it, and the files' names."""
        files = {"output": self.output, "picks": self.picks}
        return self.record | {name: None if path is None else str(path) for name, path in files.items()}


@dataclass(frozen=True)
class Files:
    """The files that select writes; None: it writes no such file."""

    output: Path | None
    picks: Path | None
    embeddings: Path | None


@dataclass(frozen=True)
class Source:
    """The rows that select picks from."""

    data: Data | None
    x: Any  # the user's embeddings [N, D], or None
    x_name: str  # the name of x in messages
    n: int  # rows of the data or of x
    candidates: np.ndarray  # the indices of rows that may be picked, ascending int64
    folder: Path | None  # the model's folder, or None
    provenance: dict[str, Any]


def select(
    data: Any = None,
    n: int | None = None,
    *,
    model: str | Path | None = None,
    embeddings: Any = None,
    selected: Any = None,
    seed: int = 0,
    output: str | Path | None = None,
    picks: str | Path | None = None,
    trainer: str | None = None,
    keep_embeddings: bool = True,
    overwrite: bool = False,
    allow_other_data: bool = False,
    skip_empty: bool = False,
    skip_broken: bool = False,
    columns: Mapping[str, str] | None = None,
    text_column: str | None = None,
    template: str | Path | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    max_tokens_per_batch: int | str = "auto",
    dtype: str = "float32",
    store_dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Selection:
    """Pick the n rows that K-Center greedy picks: each is farthest from all rows picked or selected before it.

    Arguments and files are checked before anything is embedded. Without `output` and `picks` nothing is written.

    Args:
        data: as for embed; None where `embeddings` are enough.
        n: how many rows to pick; it has to be given, and stands after `data`, which may be left out.
        model: a local folder, a hub name or a .gguf file, which embeds the data.
        embeddings: instead of a model: an array [N, D] of real numbers (rounded to float32 unless they are float16 or
            bfloat16), or the name of a .npy file.
        selected: all rows selected before, as indices or a mask; or the name of a file (a JSON list, a record of picks,
            .npy), or a list of such names. The picks are farthest from these.
        seed: draws the first row when nothing is selected yet.
        output: where the picked rows go; the name decides: .json, .jsonl, .gz, .parquet. The record goes beside it, and
            the embeddings too, so that another n loads no model.
        picks: where the record goes instead (None: <output>.picks.json).
        trainer: write the rows as "trl", "llama-factory" or "axolotl" reads them.
        keep_embeddings: whether the embeddings stay beside the output.
        overwrite: replace files that were made from another input.
        allow_other_data: accept embeddings and selected of another data set whose indices are the same.
        skip_empty: leave rows with an empty instruction or output out instead of refusing them.
        skip_broken: leave broken lines and malformed rows out; indices count the rows that are left.
        columns: other names for a row's parts, {"instruction": "question", ...}.
        text_column: the key of a row's text, for rows of any kind.
        template: from a row to a text, as for embed.
        pooling: "mean" (None), "cls" or "last", as for embed.
        max_length: tokens of a row; longer rows are cut, and counted. None: the limit of the model and its tokenizer.
        max_tokens_per_batch: tokens of a batch, padding included, or "auto".
        dtype: of the model's weights: "float32", "bfloat16", "float16" or "auto".
        store_dtype: of the embeddings: "float32" or "float16".
        attn_implementation: the attention that transformers uses.
        trust_remote_code: whether code that comes with the model runs.

    Returns:
        Selection: the picks of K-Center greedy in float64; ties go to the lowest index.

    Raises:
        InputError: arguments, files or rows that do not fit; an output that exists and was made from another input.
        RunError: an embedding that is not finite.
    """
    if n is None:
        raise InputError("n: is missing, how many rows to pick")
    _check_arguments(data, model, embeddings, output, trainer)
    files = _files(output, picks, model)
    read = {"data": data if isinstance(data, str | Path) else None, "embeddings": embeddings, "selected": selected}
    _check_nothing_read_is_replaced(files, read)
    if files.output:
        check_row_file(files.output)
        check_trainer(trainer, files.output)
    settings = EmbedSettings(
        template=None if template is None else str(template),
        pooling=pooling,
        max_length=max_length,
        max_tokens_per_batch=max_tokens_per_batch,
        dtype=dtype,
        store_dtype=store_dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    with contextlib.ExitStack() as stack:
        for path in (files.picks, files.output):
            if path is not None and distributed.is_first():
                stack.enter_context(locked(path))
        names = {"columns": columns, "text_column": text_column}
        loaded, empty = _load(data, trainer, skip_empty, skip_broken=skip_broken, **names)
        folder = None if model is None else resolve_model(str(model), trust_remote_code=trust_remote_code)
        source = _source(loaded, empty, folder, embeddings, selected, allow_other_data)
        centers = _centers(source, _selected(selected, source.n), n)
        if not overwrite:
            _check_outputs(files, source.provenance)
        keep = keep_embeddings or (files.embeddings is not None and files.embeddings.exists())
        result = _pick(source, n, centers, seed, settings, files, overwrite)
        distributed.barrier()  # until here the other processes read the embeddings
        indices = source.candidates[result.indices]
        record = _record(indices, result) | {
            "data": source.data.source if source.data else None,
            "model": None if model is None else str(model),
            "embeddings": str(embeddings) if isinstance(embeddings, str | Path) else None,
            "template": settings.template,
            "text_column": text_column,
            "selected": [str(path) for path in _paths(selected)],
            "seed": seed,
            "versions": versions(),
            "provenance": source.provenance,
            "output": files.output and files.output.name,
        }
        notes = _write(files, record, trainer, source.data, keep) if distributed.is_first() else []
    rows = [source.data.rows[index] for index in indices] if source.data else None
    saved = files.embeddings if keep else None
    return Selection(indices.tolist(), record["sqdist"], rows, record, files.output, files.picks, saved, notes)


def _check_arguments(data: Any, model: Any, embeddings: Any, output: Any, trainer: Any) -> None:
    if embeddings is not None and model is not None:
        raise InputError("select: expected a model or embeddings, got both")
    if embeddings is None and model is None:
        raise InputError("model: is missing, which embeds the data; or give their embeddings")
    if data is None and (embeddings is None or output is not None or trainer is not None):
        raise InputError("data: is missing")
    if trainer and output is None:
        raise InputError(f"trainer {trainer}: expected an output, which is what the trainer reads")


def _files(output: Any, picks: Any, model: Any) -> Files:
    if output is None:
        return Files(None, None if picks is None else Path(picks), None)
    output = Path(output)
    beside = output.with_name(Path(output.name.removesuffix(".gz")).stem)
    embeddings = beside.with_name(f"{beside.name}.embeddings.npy") if model is not None else None
    return Files(output, Path(picks) if picks else beside.with_name(f"{beside.name}.picks.json"), embeddings)


def _check_nothing_read_is_replaced(files: Files, read: dict[str, Any]) -> None:
    """Raises InputError where a file would be written that is also read, or written twice."""
    used = {os.path.realpath(path): f"{name} {path}" for name, value in read.items() for path in _paths(value)}
    for name, path in (("output", files.output), ("picks", files.picks), ("output", files.embeddings)):
        if path is None:
            continue
        target = os.path.realpath(path)
        if target in used:
            raise InputError(f"{used[target]}: would be replaced; give another {name}")
        used[target] = f"{name} {path}"


def _paths(value: Any) -> list[str | Path]:
    """The file names in an argument, which may be a list of them, one, or no file name."""
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, str | Path)]


def _load(data: Any, trainer: str | None, skip_empty: bool, **kwargs: Any) -> tuple[Data | None, list[int]]:
    """The data, and the indices of its empty rows. kwargs: of load_data."""
    if data is None:
        return None, []
    loaded, empty = load_data(data, **kwargs)
    check_responses(trainer, loaded)
    if not skip_empty:
        refuse_empty(loaded, empty)
    return loaded, empty


def _source(
    data: Data | None, empty: list[int], folder: Path | None, embeddings: Any, selected: Any, allow_other_data: bool
) -> Source:
    x, name = _embeddings(embeddings)
    n = len(data.rows) if data else len(x)
    if data and x is not None and n != len(x):
        raise InputError(f"{name}: {len(x)} rows, but {data.source} has {n}")
    candidates = np.setdiff1d(np.arange(n), np.array(empty, dtype=np.int64))
    provenance = _provenance(data, folder, embeddings, x, selected, allow_other_data)
    return Source(data, x, name, n, candidates, folder, provenance)


def _embeddings(embeddings: Any) -> tuple[Any, str]:
    """The user's embeddings and their name in messages."""
    if embeddings is None:
        return None, ""
    if isinstance(embeddings, str | Path):
        return load_embeddings(Path(embeddings)), str(embeddings)
    try:
        return as_rows(embeddings, "embeddings"), "embeddings"
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error


def _provenance(
    data: Data | None, folder: Path | None, embeddings: Any, x: Any, selected: Any, allow_other_data: bool
) -> dict[str, Any]:
    """The provenance of the picks. Raises InputError where arguments are known to be of different data sets."""
    of = {}
    if data and folder:
        of[f"data {data.source}"] = provenance_in(data, folder)
    elif data:
        of[f"data {data.source}"] = {"data_sha256": data.sha256(), "data_rows": len(data.rows)}
    for path in _paths(embeddings):
        of[f"embeddings {path}"] = of_embeddings(Path(path), len(x))
    known = {key: value for each in reversed(of.values()) for key, value in each.items()}
    for path in _paths(selected):
        of[f"selected {path}"] = of_picks(Path(path))
    if not allow_other_data:
        check_same_data(of, "allow_other_data=True")
    provenance = {key: known.get(key) for key in ("data_sha256", "data_rows", "model_sha256")}
    if x is not None and provenance["model_sha256"] is None:  # the file's path stands for its unknown model
        paths = [str(Path(path).resolve()) for path in _paths(embeddings)]
        provenance["embeddings"] = paths[0] if paths else f"an array, SHA-256 {_sha256(x)}"
    return provenance


def _sha256(x: torch.Tensor) -> str:
    """Digest of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    for part in x.split(ROWS_AT_ONCE):
        digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _selected(selected: Any, n: int) -> Selected:
    if selected is None:
        return []
    paths = _paths(selected)
    if not paths:
        try:
            return [("selected", index) for index in as_indices(selected, n, "selected")]
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from error
    pairs = [(str(path), index) for path in paths for index in load_row_numbers(Path(path), n)]
    if not pairs:
        raise InputError(f"{paths[0]}: holds no row; leave selected out when nothing is selected yet")
    return pairs


def _centers(source: Source, selected: Selected, n: int) -> list[int] | None:
    """The positions among the candidates of the rows selected before; None when there are none."""
    candidates, total = source.candidates, source.n
    positions = np.searchsorted(candidates, [index for _, index in selected])
    origins: dict[int, str] = {}
    for (origin, index), position in zip(selected, positions, strict=True):
        if not 0 <= index < total:
            raise InputError(f"{origin}: expected rows from 0 to {total - 1}, got {index}")
        if not (position < len(candidates) and candidates[position] == index):
            raise InputError(f"{origin}: row {index} is left out, because its instruction or output is empty")
        if index in origins:
            raise InputError(f"{origin}: row {index} is given more than once, before in {origins[index]}")
        origins[index] = origin
    available = len(candidates) - len(selected)
    if isinstance(n, bool) or not isinstance(n, Integral) or not 0 <= n <= available:
        raise InputError(f"n: expected 0 to {available}, the rows that can be picked, got {n}")
    return positions.tolist() if selected else None


def _check_outputs(files: Files, provenance: dict[str, Any]) -> None:
    """Raises InputError where an output exists of another or an unknown input, or the record of another output."""
    existing = next((path for path in (files.picks, files.output) if path is not None and path.is_file()), None)
    if existing is None:
        return
    before = of_picks(files.picks) if files.picks else {}
    if not before and files.embeddings is not None:  # the record has another name now; the embeddings have the same
        sidecar = of_file(sidecar_of(files.embeddings))
        before = {key: value for key, value in sidecar.items() if key in provenance}
    differing = differences(before, provenance, "it") if before else ["nothing says what of"]
    other = output_of_picks(files.picks) if files.picks else None
    if other not in (None, files.output and files.output.name):
        differing = [f"it is the record of {other}"]
    if differing:
        reasons = "; ".join(differing)
        raise InputError(f"{existing}: exists ({reasons}); give another name, or replace it: overwrite=True")


def _pick(
    source: Source, n: int, centers: list[int] | None, seed: int, settings: EmbedSettings, files: Files, overwrite: bool
) -> KCenterResult:
    """The picks among the candidates, from the user's embeddings, from a saved file, or from new ones."""
    data, folder, candidates, store = source.data, source.folder, source.candidates, files.embeddings
    if data is None or folder is None:
        whole = len(candidates) == len(source.x)
        return _kcenter(source.x if whole else source.x[candidates], source.x_name, n, centers, seed)
    if store and not overwrite:
        saved = finished_embeddings(store, data, candidates, source.provenance, settings)
        if saved is not None:
            log.info("embeddings: those in %s", store)
            return _kcenter(saved, str(store), n, centers, seed)
    first = centers or []
    embedded = embed_by_folder(
        data, candidates, folder, source.provenance, settings, store=store or "host", first=first, overwrite=overwrite
    )
    return embedded.select(n, seed=seed)


def _kcenter(x: Any, name: str, n: int, centers: list[int] | None, seed: int) -> KCenterResult:
    try:
        return kcenter_distributed(x, n, centers, seed)
    except (TypeError, ValueError) as error:
        text = str(error)
        raise InputError(f"{name}{text.removeprefix('x')}" if text.startswith("x:") else text) from error


def _record(indices: np.ndarray, result: KCenterResult) -> dict[str, Any]:
    """The record's part on the picks; a sqdist of infinity, which JSON lacks, becomes None."""
    return {
        "indices": indices.tolist(),
        "sqdist": [value if np.isfinite(value) else None for value in result.sqdist.tolist()],
        "passes": result.passes,
        "seconds": result.seconds,
        "backend": result.backend,
    }


def _write(files: Files, record: dict[str, Any], trainer: str | None, data: Data | None, keep: bool) -> list[str]:
    """Write the record before the output, since it has the output's provenance; returns the notes for the trainer."""
    notes: Iterable[str] = ()
    if files.picks:
        write_json(files.picks, record)
    if files.output and data:
        write_rows(files.output, rows_for(trainer, data, record["indices"]))
        notes = describe(trainer, data, record["indices"], files.output)
    if files.embeddings and not keep:
        remove_embeddings(files.embeddings)
    return list(notes)
