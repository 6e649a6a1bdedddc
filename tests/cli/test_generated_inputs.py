"""Generated inputs: seeded mutations of valid files of every kind, through the command line in this process.

A mutation may leave a file valid, so that the command succeeds; otherwise it is the user's mistake: exit status 2 and a
short sentence without the name of an exception, and nothing is written. 2,000 of them take at most a minute.
"""

import functools
import gzip
import io
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

from diverseevol_fast.cli import main as cli
from diverseevol_fast.cli.result import Result

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Say {word}.", "input": "", "output": word, "note": 1.5} for word in ("a", "b", "c", "d")]
CHATS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": word}]} for word in "abcd"]
SHARED = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": word}]} for word in "abcd"]

RAW = {  # JSON texts that json.dumps does not write
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "digits": "9" * 5000,
    "exponent": "1e400",
    "surrogate": '"\\ud800"',
    "deep": "[" * 5000 + "]" * 5000,
    "deep objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "nul": '"\\u0000"',
    "levels": "[" * 150 + "]" * 150,
}
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**32,
    2**63,
    10**30,
    1.5,
    -0.5,
    1e308,
    1e30,
    "",
    "x",
    "foo",
    " ",
    "\x1b[31m",
    "é" * 50,
    "x" * 1_000_000,
    "a\0b",
    "../..",
    "/dev/zero",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"a": {"b": [1]}},
    [1, "a"],
    *(f"RAW:{name}" for name in RAW),
]
TOKENS = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[",
    b"{",
    b"}",
    b'"',
    b"\\ud800",
    b"NaN",
    b"\n",
    b",",
    b"\x1b[2J",
    b"1e400",
    b"9" * 5000,
    b"[" * 5000,
    b"\xf0\x9f",
    b":",
    b"&a *a",
    b"!!python/object:os.system x",
    b"\r",
]
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


def damage_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bits turned, a part cut away, doubled or blanked, or something odd put in."""
    place = draw.randrange(len(content) + 1)
    end = min(len(content), place + draw.choice((1, 8, 64, len(content))))
    kind = draw.randrange(7)
    if kind == 0 and place < len(content):
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[end:]
    if kind == 3:
        return content[:place] + bytes(end - place) + content[end:]
    if kind == 4:
        return content[:end] + content[place:]
    if kind == 5:
        return content[:place] + draw.choice(TOKENS) + content[place:]
    return draw.choice((b"", b"\xff" * 50, b"\n" * 9, bytes(200), content.decode("latin-1").encode("utf-16")))


def places_in(value, path=()):
    """Where anything stands in a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_in(part, (*path, key))


def damage_value(value, draw: random.Random):
    """Another value, or none, in one place of a JSON value."""
    value = json.loads(json.dumps(value))
    *parents, last = draw.choice([path for path in places_in(value) if path])
    part = value
    for key in parents:
        part = part[key]
    if draw.random() < 0.15:
        del part[last]
    elif draw.random() < 0.1 and isinstance(part, dict):
        part[draw.choice(("", "x", "\ud800", "\x1b[31m", "k" * 1000))] = part.pop(last)
    else:
        part[last] = draw.choice(VALUES)
    return value


def json_text(value) -> str:
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"RAW:{name}"', raw)
    return text


def damage_json(value, draw: random.Random) -> bytes:
    """One JSON value, damaged as a value or as text."""
    if draw.random() < 0.6:
        return json_text(damage_value(value, draw)).encode()
    return damage_bytes(json.dumps(value).encode(), draw)


def damage_lines(rows: list, draw: random.Random) -> bytes:
    """JSON lines, damaged in a value or as text."""
    if draw.random() < 0.6:
        damaged = damage_value(rows, draw)
        return "".join(json_text(row) + "\n" for row in damaged).encode()
    return damage_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), draw)


def damage_array(array: np.ndarray, draw: random.Random) -> bytes:
    """A .npy file of another shape, type or header, or with damaged bytes."""
    kind = draw.randrange(4)
    if kind == 0:
        others = [
            np.array(True),
            np.array(3),
            array[None],
            array[:0],
            array.astype(object),
            array.astype("U3"),
            array > 0,
            array.astype(np.complex64),
            np.full_like(array, -1),
            array.astype(np.uint8),
            np.zeros(3, "M8[s]"),
            np.zeros(3, "V4"),
            array.astype(np.float64) * np.nan,
        ]
        content = io.BytesIO()
        np.save(content, draw.choice(others))
        return content.getvalue()
    if kind == 1:
        content = io.BytesIO()
        np.savez(content, x=array)
        return content.getvalue()
    content = io.BytesIO()
    np.save(content, array)
    if kind == 2:
        return damage_bytes(content.getvalue(), draw)
    header = content.getvalue()[10:128].decode()
    shape = draw.choice(
        (
            "(-1, 4)",
            "(True, 4)",
            "(10**9, 10**9)",
            "(1000000000000, 4)",
            "()",
            "(4,)",
            "None",
            "'x'",
            "(4.0, 4)",
            "(0, 4)",
            "(4, 0)",
            "(" * 90 + ")" * 90,
            "__import__('os')",
            "(99999999999999999999999, 4)",
        )
    )
    header = re.sub(r"\([^)]*\)", lambda _: shape, header).rstrip()[:117].ljust(117) + "\n"
    return content.getvalue()[:10] + header.encode() + content.getvalue()[128:]


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
