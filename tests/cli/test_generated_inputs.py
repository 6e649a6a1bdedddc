"""Generated inputs: seeded mutations of valid files of every kind, through the command line in this process.

A mutation may leave a file valid, so that the command succeeds; otherwise it is the user's mistake: exit status 2 and a
short sentence without the name of an exception, and nothing is written. 2,000 of them take at most a minute.
"""

import functools
import gzip
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.config import write_config
from support.damage import damage_array, damage_bytes, damage_json, damage_lines, places_in

from diverseevol_fast.cli import main as cli
from diverseevol_fast.cli.result import Result

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Say {word}.", "input": "", "output": word, "note": 1.5} for word in ("a", "b", "c", "d")]
CHATS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": word}]} for word in "abcd"]
SHARED = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": word}]} for word in "abcd"]

BOMB = (
    "[&a [x, x, x, x, x, x, x, x], "
    + ", ".join(f"&{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefg", "bcdefgh", strict=True))
    + "]"
)
YAML_VALUES = [
    "x",
    ".nan",
    ".inf",
    "1e400",
    "1" + "0" * 30,
    "9" * 5000,
    "[" * 2000,
    "[" * 300 + "]" * 300,
    "&a [*a]",
    "&a {b: *a}",
    "2001-99-99",
    "2001-01-01",
    "!!int x",
    "!!float x",
    "!!binary x",
    "!!timestamp x",
    "!!bool x",
    "!!set {a}",
    "!!python/object/apply:os.system [true]",
    "{? [a] : b}",
    "{1: 2}",
    "~",
    "true",
    "-1",
    "0",
    "4294967296",
    "1.5",
    "[]",
    "{}",
    "[1, a]",
    '"\\ud800"',
    '"a\\0b"',
    '"\\e[31m"',
    '"' + "x" * 50_000 + '"',
    "foo",
    "''",
    "{a: [1]}",
    "*b",
    "'",
    "%",
    "1e30",
    BOMB,
]
EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning|Interrupt)\b|Traceback|<class|object at 0x")


class Attempts:
    """Commands on damaged files in one folder, each checked."""

    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys = folder, capsys
        self.refused = 0

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def __call__(self, argv: list[str], what: str) -> None:
        before = self.files()
        self.capsys.readouterr()
        try:
            status = cli.main([*argv, "--quiet"])
        except SystemExit as error:
            status = error.code
        printed = self.capsys.readouterr()
        message = "\n".join(line for line in printed.err.splitlines() if line.startswith("diverseevol"))
        told = f"{what}: status {status}\n{printed.err[-2000:]}"
        assert status in (0, 2), told
        assert not EXCEPTION.search(printed.err), told
        after = self.files()
        if status == 2:
            self.refused += 1
            assert message, told
            assert all(len(line) < 300 for line in printed.err.splitlines()), told
            assert printed.err.replace("\n", "").isprintable(), told
            assert after == before, f"{what}: {set(after) ^ set(before)}"
        for path in set(after) - set(before):
            Path(path).unlink()


parser = functools.cache(cli.build_parser)


@pytest.fixture
def attempts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "build_parser", parser)
    monkeypatch.chdir(tmp_path)  # where files of no given name go
    monkeypatch.setattr("transformers.utils.logging._default_handler", logging.NullHandler())  # not to a closed capture
    return Attempts(tmp_path, capsys)


def draws(seed: str, count: int):
    """A generator for each attempt, so that one can be repeated alone."""
    return ((number, random.Random(f"{seed} {number}")) for number in range(count))


@pytest.fixture
def embeddings(tmp_path) -> Path:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32))
    return tmp_path / "x.npy"


def select(tmp_path: Path, *words: object) -> list[str]:
    return ["select", *map(str, words), "-n", "1", "--picks", str(tmp_path / "p.json")]


TEXT_DATA: dict[str, Callable[[list, random.Random], bytes]] = {
    "d.json": damage_json,
    "d.jsonl": damage_lines,
    "d.jsonl.gz": lambda rows, draw: gzip.compress(damage_lines(rows, draw)),
    "e.json.gz": lambda rows, draw: damage_bytes(gzip.compress(json.dumps(rows).encode()), draw),
}


@pytest.mark.parametrize("name", TEXT_DATA)
@pytest.mark.parametrize("rows", [ROWS, CHATS, SHARED], ids=["alpaca", "messages", "sharegpt"])
def test_data_as_text(name, rows, tmp_path, embeddings, attempts):
    for number, draw in draws(name, 60):
        (tmp_path / name).write_bytes(TEXT_DATA[name](rows, draw))
        words = ["--skip-broken"] if draw.random() < 0.2 else []
        attempts(select(tmp_path, "--data", tmp_path / name, "--embeddings", embeddings, *words), f"{name} {number}")
    assert attempts.refused > 10


@pytest.mark.parametrize("name", ["d.parquet", "folder/state.json", "folder/dataset_info.json", "folder/data.arrow"])
def test_data_in_columns(name, tmp_path, embeddings, attempts):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "d.parquet")
    table.save_to_disk(tmp_path / "folder")
    next((tmp_path / "folder").glob("*.arrow")).rename(tmp_path / "folder" / "data.arrow")
    state = json.loads((tmp_path / "folder" / "state.json").read_text())
    (tmp_path / "folder" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "data.arrow"}]}))
    path = tmp_path / name
    whole = path.read_bytes()
    data = path if name == "d.parquet" else path.parent
    for number, draw in draws(name, 50):
        path.write_bytes(damage_json(json.loads(whole), draw) if path.suffix == ".json" else damage_bytes(whole, draw))
        attempts(select(tmp_path, "--data", data, "--embeddings", embeddings), f"{name} {number}")
    assert attempts.refused > 10


def test_embeddings(tmp_path, embeddings, attempts):
    array = np.load(embeddings)
    for number, draw in draws("embeddings", 220):
        embeddings.write_bytes(damage_array(array, draw))
        attempts(select(tmp_path, "--embeddings", embeddings), f"embeddings {number}")
    assert attempts.refused > 50


@pytest.mark.parametrize("kind", ["list", "record", "numbers.npy", "mask.npy"])
def test_row_numbers(kind, tmp_path, embeddings, attempts):
    values = {"list": [0, 2], "record": {"indices": [0, 2], "sqdist": [None, 0.5]}}
    arrays = {"numbers.npy": np.array([0, 2]), "mask.npy": np.array([True, False, True, False])}
    path = tmp_path / (kind if kind in arrays else "s.json")
    for number, draw in draws(kind, 90):
        path.write_bytes(damage_array(arrays[kind], draw) if kind in arrays else damage_json(values[kind], draw))
        attempts(select(tmp_path, "--embeddings", embeddings, "--selected", path), f"{kind} {number}")
    assert attempts.refused > 20


def test_columns(tmp_path, embeddings, attempts):
    (tmp_path / "d.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    for number, draw in draws("columns", 120):
        value = draw.choice(YAML_VALUES).replace("\0", "")
        text = draw.choice((value, f"{{instruction: {value}}}", f"{{output: {value}}}", f"{{{value}: note}}"))
        words = ["--data", tmp_path / "d.jsonl", "--embeddings", embeddings, "--columns", text]
        attempts(select(tmp_path, *words), f"columns {number} {text[:80]}")
    assert attempts.refused > 50


@pytest.fixture
def config(tmp_path) -> dict:
    """A run that reads everything, and is then refused: there is no such model."""
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row | {"family": row["output"]}) + "\n" for row in ROWS * 4))
    return {
        "full_data_path": str(tmp_path / "d.jsonl"),
        "model_name_or_path": str(tmp_path / "no model"),
        "output_dir": str(tmp_path / "out"),
        "val_set_size": 1,
        "init_label_num": 2,
        "n_round": 1,
        "n_query": 1,
        "seed": 0,
        "model_max_length": 64,
        "max_tokens_per_batch": 128,
        "evol_schedule_name": "VendiSampling",
        "max_random_times": 3,
        "vendi_argmax_rank": 0,
        "whiten_n_components": 0,
        "dtype": "float32",
        "embed_dtype": "float32",
        "report_to": "none",
        "cache_dir": "x",
        "skip_empty": False,
        "skip_broken": False,
        "attn_implementation": "eager",
        "keep_embeddings": False,
        "trust_remote_code": False,
        "columns": {"instruction": "instruction", "output": "output"},
        "held_out_groups": {"family": ["a"]},
        "peft": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"], "bias": "none"},
        "train_args": {
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.03,
            "save_steps": 200,
            "evaluation_strategy": "no",
            "lr_scheduler_type": "cosine",
            "optim": "adamw_torch",
            "bf16": False,
            "logging_steps": 1,
            "weight_decay": 0.0,
            "per_device_train_batch_size": 1,
            "max_grad_norm": 1.0,
            "fsdp": "full_shard",
            "fsdp_transformer_layer_cls_to_wrap": "Layer",
            "group_by_length": False,
            "lr_scheduler_kwargs": {},
            "label_names": ["labels"],
            "adam_beta1": 0.9,
            "tf32": False,
        },
    }


def test_config_files(tmp_path, config, attempts):
    whole = yaml.safe_dump(config).encode()
    path = tmp_path / "config.yml"
    for number, draw in draws("config", 80):
        path.write_bytes(damage_bytes(whole, draw))
        attempts(["run", str(path)], f"config {number}")
    assert attempts.refused == 80


def test_config_values(tmp_path, config, attempts):
    path = tmp_path / "config.yml"
    places = [place for place in places_in(config) if place and not isinstance(place[-1], int)]
    for number, draw in draws("config values", 240):
        place, value = places[number % len(places)], draw.choice(YAML_VALUES)
        part = damaged = json.loads(json.dumps(config))
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = "HERE"
        path.write_text(yaml.safe_dump(damaged).replace("HERE", value), encoding="utf-8")
        attempts(["run", str(path)], f"config values {number} {'.'.join(place)}: {value[:80]}")
    assert attempts.refused == 240


def test_config_options(tmp_path, config, attempts):
    path = write_config(tmp_path, config)
    places = [".".join(place) for place in places_in(config) if place and not isinstance(place[-1], int)]
    for number, draw in draws("config options", 80):
        key, value = draw.choice([*places, "", ".", "a.b", "seed.x", "train_args.x.y"]), draw.choice(YAML_VALUES)
        attempts(["run", str(path), f"--{key}={value[:100_000]}"], f"config options {number} {key}={value[:80]}")
    assert attempts.refused == 80


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_models(name, tmp_path, tiny_model, attempts, monkeypatch):
    """Up to where the model is loaded: what a damaged one computes is no matter of reading."""
    from diverseevol_fast.models.load import load_encoder, load_tokenizer, resolve_model

    folder = shutil.copytree(tiny_model, tmp_path / "model")

    def load(_args, _rest):
        resolved = resolve_model(str(folder))
        load_tokenizer(resolved)
        load_encoder(resolved)
        return Result("loaded", {})

    monkeypatch.setattr(cli, "_command", load)
    whole = (folder / name).read_bytes()
    for number, draw in draws(name, 25):
        damaged = damage_bytes(whole, draw)
        if name != "model.safetensors" and draw.random() < 0.8:
            damaged = damage_json(json.loads(whole), draw)
        (folder / name).write_bytes(damaged)
        attempts(["env"], f"{name} {number}")
    assert attempts.refused > 5


def test_what_is_no_file(tmp_path, embeddings, config, attempts):
    """Named as data, embeddings, row numbers or a config; a pipe or a device would be read for ever."""
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder.npy").mkdir()
    names = ["pipe.json", "pipe.npy", "loop", "folder.npy", "absent", "x" * 300, "x.npy/inside", "\udcff", "\x1b[31m"]
    for name in [*(str(tmp_path / name) for name in names), "/dev/zero", "/dev/null", "", ".", "/", "~"]:
        attempts(select(tmp_path, "--data", name, "--embeddings", embeddings), f"data {name}")
        attempts(select(tmp_path, "--embeddings", name), f"embeddings {name}")
        attempts(select(tmp_path, "--embeddings", embeddings, "--selected", name), f"selected {name}")
        attempts(["run", name], f"config {name}")
        for key in ("full_data_path", "model_name_or_path", "output_dir"):
            if key != "output_dir" or name.startswith(str(tmp_path)):
                attempts(["run", str(write_config(tmp_path, config | {key: name}))], f"{key} {name}")
    assert attempts.refused > 90


# Below: readers of diverseevol_fast/evaluate.

ANSWERS = [{"id": number, "instruction": f"Why {number}?", "input": "x", "answer": "So."} for number in range(3)]
JUDGED = [
    {
        "question_id": number,
        "question_text": "Why?",
        "assistant1_QUERY0": "m",
        "assistant2_QUERY0": "gpt",
        "assistant1_QUERY1": "gpt",
        "assistant2_QUERY1": "m",
        "eval_QUERY0": [7, 8.5],
        "eval_QUERY1": [9, 3],
        "response_QUERY0": "7 8.5",
        "response_QUERY1": "3 9",
        "answer_length": {side: {"characters": 3, "words": 1} for side in ("model", "reference")},
    }
    for number in range(3)
]


def test_answers(tmp_path, attempts):
    whole = "".join(json.dumps(row) + "\n" for row in ANSWERS)
    (tmp_path / "b.jsonl").write_text(whole)
    path = tmp_path / "a.jsonl"
    words = ["--reference", tmp_path / "b.jsonl", "--base-url", "http://127.0.0.1:1/v1", "--model", "m"]
    judge = ["judge", "--dry-run", "--answers", path, *words, "--api-key-env", "NO_KEY"]
    for number, draw in draws("answers", 150):
        path.write_bytes(damage_lines(ANSWERS, draw))
        attempts([*map(str, judge)], f"answers {number}")
    assert attempts.refused > 50


def test_judgements(tmp_path, attempts):
    path = tmp_path / "j.jsonl"
    for number, draw in draws("judgements", 150):
        path.write_bytes(damage_lines(JUDGED, draw))
        attempts(["score", str(path), "--resamples", "10"], f"judgements {number}")
    assert attempts.refused > 50
