"""The embedding table: seconds, tokens/s, share of the matrix rate, memory and error, ours and others', in one run.

    python bench/cpu/embedding.py [DATA] [--model MODEL] [--rows 400] [--output bench/results/NAME.jsonl]

Real instruction rows, drawn with a seed, go through a causal model: --model's, else an 8-layer Llama with random
weights, built in bench/cache. The machine's speed may drift: the list of cases is run `--repeats` times over, and
each case's fastest time counts; the matrix rate is measured before and after, and the higher one counts. Only
sentence-transformers' time includes making tokens of the texts (bench/cpu/embedding_peers.py).

The relative error is the largest one of the first 64 rows, against float64; where it is too large nothing is
reported. Picks that differ: of K-Center picks from the same first row, those that `ours` does not make; in bfloat16,
as precision.compare counts them. Of a model that is given, its weights as Q8_0 and Q4_0 would hold them are measured,
too: what quantizing them (once more, where the model comes from a quantized file) changes. The peak memory is that of
the process, its libraries and the model included. The share of the matrix rate counts products with the weights, for
every token that is run, without padding and the head.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import embedding_peers as peers
import numpy as np
import torch
from embedding_peers import Outcome, Run, Task, build_model, task_of
from selection import CACHE, ROOT, machine
from transformers.utils import logging as transformers_logging

from diverseevol_fast import kcenter
from diverseevol_fast.data.dataset import QUICKSTART, load_data
from diverseevol_fast.embedding import precision
from diverseevol_fast.embedding.embed_tokens import Embeddings, embed_tokens
from diverseevol_fast.embedding.encoder import Encoder, encoder_of
from diverseevol_fast.embedding.engine import Engine
from diverseevol_fast.embedding.store import MemoryStore
from diverseevol_fast.models import throughput
from diverseevol_fast.models.load import device, load_encoder, resolve_model
from diverseevol_fast.models.token_budget import CPU_TOKENS

MODEL = CACHE / "embedding-model"
CHECKED = 64  # rows with a float64 embedding
WARM_UP = 4  # rows
QUANTIZATIONS = ("Q8_0", "Q4_0")
CENTERS = PICKS = 100
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "quantized": 1.0}  # relative error
PRODUCTS_IN = {"float32": "float32", "bfloat16": "bfloat16", "quantized": "float32"}  # the dtype of the arithmetic


def default_data() -> str:
    """Real rows in bench/cache, else those that the tests use where they are there, else generated ones."""
    folders = CACHE, Path(os.environ.get("DIVERSEEVOL_DATA", ROOT.parent / "shared" / "data"))
    paths = [folder / "instruct_15k.jsonl.gz" for folder in folders]
    return next((str(path) for path in paths if path.exists()), QUICKSTART)


def ours(task: Task, dtype: str = "float32", centers: int = 0, into_file: bool = False, **options) -> Run:
    """The package's embed, with what picks are made from it when some rows are centers."""
    encoder = encoder_in(task, dtype)

    def run(rows: np.ndarray) -> Outcome:
        first = np.arange(min(centers, len(rows) // 4))
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            store = Path(folder) / "embeddings.npy" if into_file else "host"
            found = embed_tokens(
                encoder, task.tokens, rows, store=store, provenance={}, first=first, progress=False, **options
            )
            values = found.values.clone()
        metrics = found.metrics
        afterwards = partial(select, found, min(PICKS, len(rows) - len(first))) if centers else dict
        return Outcome(values, metrics["padding"], metrics["prefix_share"], dtype, afterwards)

    return run


def select(found: Embeddings, k: int) -> dict:
    """Picks among what was bounded while it came."""
    result = found.select(k)
    return {"picks": k, "select_seconds": result.seconds, "select_passes": result.passes}


def without_shared_prefixes(task: Task) -> Run:
    """The package's engine as embed sets it up on a CPU, every row run whole."""
    encoder = encoder_in(task, "float32")

    def run(rows: np.ndarray) -> Outcome:
        budget = max(CPU_TOKENS, int(task.tokens.lengths()[rows].max()))
        store = MemoryStore(len(rows), encoder.dim, torch.float32, "cpu", budget)
        engine = Engine(encoder, task.tokens, rows, store, budget, share_prefixes=False)
        metrics = engine.run(np.empty(0, dtype=np.int64), progress=False)
        return Outcome(store.values, metrics["padding"], metrics["prefix_share"])

    return run


def quantized(task: Task, kind: str) -> Run:
    """The package's embed by the model whose matrices are rounded to what GGUF's quantization `kind` can hold."""
    import gguf

    quantization = gguf.GGMLQuantizationType[kind]
    encoder = encoder_in(task, "float32")
    for weight in encoder.body.parameters():
        if weight.ndim == 2:
            rounded = gguf.dequantize(gguf.quantize(weight.detach().numpy(), quantization), quantization)
            weight.data = torch.from_numpy(rounded.astype(np.float32))

    def run(rows: np.ndarray) -> Outcome:
        found = embed_tokens(encoder, task.tokens, rows, store="host", provenance={}, progress=False)
        return Outcome(found.values, found.metrics["padding"], found.metrics["prefix_share"], "quantized")

    return run


def encoder_in(task: Task, dtype: str) -> Encoder:
    return precision.lowered(encoder_of(load_encoder(task.folder)), getattr(torch, dtype))


def cases(task: Task, given: bool) -> dict[str, Callable[[], Run]]:
    """By name, what loads a case's model and returns what runs it. given: the model is not the one built here."""
    count = min(CENTERS, len(task.tokens) // 4)
    found = {
        "one at a time, as the reference does": partial(peers.reference_way, task),
        "one at a time, base model": partial(peers.base_model, task),
        "padded batches of 32, unsorted": partial(peers.padded_batches, task, by_length=False),
        "padded batches of 32, sorted by length": partial(peers.padded_batches, task, by_length=True),
    }
    if importlib.util.find_spec("sentence_transformers"):
        import sentence_transformers  # noqa: F401 - now, so that every case's memory has it

        found["sentence-transformers encode"] = partial(peers.sentence_transformers, task)
    else:
        print("sentence-transformers encode: left out; pip install '.[bench]' brings it")
    if given:
        found |= {f"ours, weights as {kind}": partial(quantized, task, kind) for kind in QUANTIZATIONS}
    return found | {
        "ours": partial(ours, task),
        "ours, prefixes not shared": partial(without_shared_prefixes, task),
        "ours, budget 8,192": partial(ours, task, max_tokens_per_batch=8192),
        f"ours, with bounds against {count} centers": partial(ours, task, centers=count),
        "ours, into a file": partial(ours, task, into_file=True),
        "ours, bfloat16": partial(ours, task, dtype="bfloat16"),
    }


def measure(name: str, prepare: Callable[[], Run], task: Task, exact: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """One case: its line, and its embeddings."""
    run, rows = prepare(), np.arange(len(task.tokens))
    run(rows[:WARM_UP])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what earlier cases freed counts as this one's
    throughput.reset_peak_memory(device())
    began = time.perf_counter()
    outcome = run(rows)
    seconds = time.perf_counter() - began
    line = {
        "case": name,
        "dtype": outcome.dtype,
        "rows": len(rows),
        "tokens": len(task.tokens.ids),
        "seconds": seconds,
        "tokens_per_second": len(task.tokens.ids) / seconds,
        "peak_memory": throughput.peak_memory(device()),
        "padding": outcome.padding,
        "prefix_share": outcome.prefix_share,
        "relative_error": largest_error(outcome.values, exact),
    } | outcome.afterwards()
    print(
        f"{name}: {seconds:.3g} s, {line['tokens_per_second']:,.0f} tokens/s, "
        f"{line['peak_memory'] / 1e6:,.0f} MB, relative error {line['relative_error']:.1e}",
        flush=True,
    )
    if not line["relative_error"] < TOLERANCE[outcome.dtype]:
        raise SystemExit(f"{name}: expected embeddings within {TOLERANCE[outcome.dtype]}; nothing is reported")
    return line, outcome.values


def largest_error(values: torch.Tensor, exact: torch.Tensor) -> float:
    """The length of the difference by the length of the embedding, largest over the rows of `exact`."""
    return float(((values[: len(exact)].double() - exact).norm(dim=1) / exact.norm(dim=1)).max())


def matrix_rates() -> dict[str, float]:
    """FLOP/s of large products, by dtype, measured now."""
    throughput.matrix_rate.cache_clear()
    return {name: throughput.matrix_rate(device(), getattr(torch, name)) for name in set(PRODUCTS_IN.values())}


def measure_all(task: Task, repeats: int, given: bool) -> list[dict]:
    """Every case's fastest line, with what follows from all of them together."""
    before, exact = matrix_rates(), peers.exact(task, np.arange(min(CHECKED, len(task.tokens))))
    flops, found, times = throughput.flops_per_token(load_encoder(task.folder)), {}, {}
    contenders = cases(task, given)
    for _ in range(repeats):
        for name, prepare in contenders.items():
            line, values = measure(name, prepare, task, exact)
            times.setdefault(name, []).append(line["seconds"])
            if line["seconds"] == min(times[name]):
                found[name] = line, values
    after = matrix_rates()
    ours_line, ours_values = found["ours"]
    for name, (line, values) in found.items():
        dtype = PRODUCTS_IN[line["dtype"]]
        rate = max(before[dtype], after[dtype])
        run = line["tokens"] * (1 - line["prefix_share"])
        line |= {
            "all_seconds": times[name],
            "times_ours": line["seconds"] / ours_line["seconds"],
            "matrix_rate": rate,
            "matrix_rate_before": before[dtype],
            "matrix_rate_after": after[dtype],
            "of_matrix_rate": run * flops / line["seconds"] / rate,
            "picks_that_differ": differing_picks(values, ours_values),
        }
    found["ours, bfloat16"][0].update(compared(task))
    return [line for line, _ in found.values()]


def differing_picks(values: torch.Tensor, others: torch.Tensor) -> int:
    """Of as many picks as precision.compare makes, those that the others do not share."""
    picks = min(precision.COMPARED_PICKS, max(1, len(values) // 4))
    first, second = (kcenter(each, picks, seed=0).indices for each in (values, others))
    return picks - len(np.intersect1d(first, second))


def compared(task: Task) -> dict:
    """What bfloat16 changes, as the package says."""
    encoders = (encoder_in(task, dtype) for dtype in ("float32", "bfloat16"))
    found = precision.compare(*encoders, task.tokens, np.arange(len(task.tokens)))
    return {"picks_that_differ": found["picks_that_differ"], "compared": found}


def table(lines: list[dict]) -> str:
    """The lines as Markdown."""
    rows = [
        "| case | seconds | times ours | tokens/s | of the matrix rate | padding | prefix share | peak memory "
        "| relative error | picks that differ |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [
            line["case"],
            f"{line['seconds']:.4g}",
            f"{line['times_ours']:.2f}x",
            f"{line['tokens_per_second']:,.0f}",
            f"{line['of_matrix_rate']:.0%}",
            f"{line['padding']:.1%}",
            f"{line['prefix_share']:.1%}",
            f"{line['peak_memory'] / 1e6:,.0f} MB",
            f"{line['relative_error']:.1e}",
            str(line["picks_that_differ"]),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    selected = [
        f"{line['case']}: {line['picks']} picks in {line['select_seconds']:.3g} s, {line['select_passes']:.2f} passes"
        for line in lines
        if "picks" in line
    ]
    return "\n".join([*rows, "", *selected, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=default_data(), help="rows with instruction and output")
    parser.add_argument("--model", help="a causal model: a folder, a hub name or a .gguf file")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "embedding-cpu.jsonl")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    data = load_data(args.data)[0]
    if data.schema.name != "alpaca":
        parser.error(f"{args.data}: expected rows with instruction and output, got {data.schema.name}")
    if not args.model:
        build_model(data, MODEL)
    task = task_of(data, args.rows, resolve_model(args.model) if args.model else MODEL)
    told = machine() | {"data": Path(args.data).name, "model": Path(args.model or MODEL).name}
    names = [name for name in ("transformers", "sentence_transformers") if importlib.util.find_spec(name)]
    told |= {name: importlib.metadata.version(name) for name in names}
    print(told, flush=True)
    lines = measure_all(task, args.repeats, given=bool(args.model))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output, "a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line | told) + "\n")
    print(f"\n{table(lines)}\n{args.output}: {len(lines)} lines")


if __name__ == "__main__":
    main()
