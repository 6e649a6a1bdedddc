"""Embedding on a GPU: python bench/device/device_embedding.py [DATA] [--output FOLDER] [--tiny]

A Llama of 7B's shape with random weights in bfloat16 and real instruction rows: tokens/s and share of the measured
matrix rate, one row at a time, in padded batches, by sentence-transformers and by embed, also with 24 GB of GPU memory;
then one whole round (LoRA on 100 rows, embed all, select 100), its seconds by stage. Appends JSON lines to
FOLDER/<gpu>.jsonl as they come. --tiny: the same with a small model and few rows, without a GPU too.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from device_lines import ROOT, Lines

from diverseevol_fast import embed
from diverseevol_fast.data.dataset import Data, load_data
from diverseevol_fast.data.templates import render
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.demo.small_llama import train_tokenizer
from diverseevol_fast.embedding.encoder import encoder_of
from diverseevol_fast.loop import run
from diverseevol_fast.models import throughput
from diverseevol_fast.models.load import device, load_encoder, load_tokenizer
from diverseevol_fast.runs.config import make_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cpu"))  # embedding.py
from embedding import default_data

SHAPES = {  # hidden, intermediate, layers, heads; rows one by one, in padded batches, by embed; rows of the round
    "7B": ((4096, 11008, 32, 32), (100, 400, 2000), 15_011),
    "tiny": ((64, 128, 2, 4), (4, 8, 40), 200),
}
CAP = 24e9  # bytes
BATCH = 32
MAX_LENGTH = 512
TOLERANCE = 0.05  # relative, in bfloat16, against one row at a time


def build(data: Data, folder: Path, shape: tuple[int, int, int, int]) -> None:
    """Save a random model in bfloat16 and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads = shape
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with device():
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    texts = [f"{data.fields(row)['instruction']}\n{data.fields(row)['output']}" for row in range(len(data.rows))]
    train_tokenizer(texts, config.vocab_size).save_pretrained(folder)


def timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds, and embeddings."""
    _wait()
    began = time.perf_counter()
    values = work()
    _wait()
    return time.perf_counter() - began, values


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ways(model, tokenizer, folder: Path, data: Data, counts: tuple[int, int, int]) -> dict[str, tuple[int, Callable]]:
    """By name: how many of the rows, and what embeds them."""
    tokens = tokenize(data, tokenizer, MAX_LENGTH)
    ids = [torch.from_numpy(tokens.row(row)[0].astype(np.int64)).to(device()) for row in range(len(tokens))]

    @torch.inference_mode()
    def one_by_one() -> torch.Tensor:
        return torch.stack(
            [model(row[None], use_cache=False).last_hidden_state[0].float().mean(0) for row in ids[: counts[0]]]
        )

    @torch.inference_mode()
    def padded() -> torch.Tensor:
        means = []
        for start in range(0, counts[1], BATCH):
            batch = ids[start : min(start + BATCH, counts[1])]
            rows = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            limits = torch.tensor([len(row) for row in batch], device=rows.device)[:, None]
            mask = torch.arange(rows.shape[1], device=rows.device) < limits
            hidden = model(rows, attention_mask=mask.long(), use_cache=False).last_hidden_state.float()
            means.append((hidden * mask[:, :, None]).sum(1) / limits)
        return torch.cat(means)

    def sentences() -> torch.Tensor:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        if not hasattr(sentences, "model"):
            options = {"max_seq_length": MAX_LENGTH, "model_kwargs": {"dtype": torch.bfloat16}}
            transformer = Transformer(str(folder), **options)
            pooling = Pooling(transformer.get_embedding_dimension(), "mean")
            sentences.model = SentenceTransformer(modules=[transformer, pooling], device=str(device()))
        texts = ["".join(text for text, _ in render(data, row, tokenizer)) for row in range(counts[1])]
        return sentences.model.encode(texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False).float()

    def ours() -> torch.Tensor:
        rows = replace(data, rows=data.rows[: counts[2]])
        return embed(rows, model, tokenizer, max_length=MAX_LENGTH, progress=False).values

    found = {"one at a time": (counts[0], one_by_one), "padded batches of 32, unsorted": (counts[1], padded)}
    try:
        import sentence_transformers  # noqa: F401

        found["sentence-transformers encode"] = (counts[1], sentences)
    except ImportError:
        print("sentence-transformers encode: left out, it is not installed")
    return found | {"ours": (counts[2], ours)}


def measure(model, tokenizer, folder: Path, data: Data, counts: tuple[int, int, int], out: Lines) -> None:
    """A line for every way, ours once more under the cap."""
    rate, flops = throughput.matrix_rate(device(), torch.bfloat16), throughput.flops_per_token(encoder_of(model).body)
    lengths = tokenize(data, tokenizer, MAX_LENGTH).lengths()
    exact = None

    def add(name: str, count: int, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        throughput.reset_peak_memory(device())
        seconds, values = timed(work)
        number = int(lengths[:count].sum())
        error = (
            0.0
            if exact is None
            else float(((values[: len(exact)].cpu() - exact).norm(dim=1) / exact.norm(dim=1)).max())
        )
        line = {
            "what": "embedding",
            "case": name,
            "rows": count,
            "tokens": number,
            "seconds": seconds,
            "tokens_per_second": number / seconds,
            "of_matrix_rate": number * flops / seconds / rate,
            "matrix_rate": rate,
            "relative_error": error,
            "peak_memory": throughput.peak_memory(device()),
            "passed": error <= TOLERANCE,
        }
        out.add(line)
        print(json.dumps(line), flush=True)
        return values

    contenders = ways(model, tokenizer, folder, data, counts)
    for name, (count, work) in contenders.items():
        if name != "one at a time":
            work()  # loads, compiles, finds the budget
        values = add(name, count, work)
        exact = values.cpu() if exact is None else exact
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(CAP / total)
        add("ours, 24 GB of GPU memory", *contenders["ours"])
        torch.cuda.set_per_process_memory_fraction(1.0)


def whole_round(path: str, folder: Path, output: Path, out: Lines) -> None:
    """A line with the seconds of a round's stages."""
    values = {
        "full_data_path": path,
        "model_name_or_path": str(folder),
        "output_dir": str(output),
        "n_round": 1,
        "init_label_num": 100,
        "n_query": 100,
        "dtype": "bfloat16",
        "peft": {"r": 16, "target_modules": "all-linear"},
        "train_args": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-4,
            "bf16": torch.cuda.is_available(),
        },
    }
    state = run(make_config(values))
    metrics = {r: state.metrics(r) for r in (0, 1)}
    line = {
        "what": "embedding",
        "case": "one round",
        "train_seconds": metrics[0]["train"]["seconds"],
        "select_seconds": metrics[1]["select"]["seconds"],
        "embed": metrics[1]["embed"],
    }
    out.add(line)
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=default_data())
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    shape, counts, of_round = SHAPES["tiny" if args.tiny else "7B"]
    data = load_data(args.data)[0]
    chosen = np.random.default_rng(0).permutation(len(data.rows))
    some = replace(data, rows=[data.rows[row] for row in chosen[: max(counts)]])
    out = Lines(args.output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        build(data, folder, shape)
        model = load_encoder(folder, dtype="bfloat16")
        measure(model, load_tokenizer(folder), folder, some, counts, out)
        del model
        rows = Path(temporary) / "rows.jsonl"
        kept = (data.rows[row] for row in chosen[:of_round])
        rows.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        whole_round(str(rows), folder, Path(temporary) / "out", out)


if __name__ == "__main__":
    main()
