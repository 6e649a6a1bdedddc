"""The command line: results, errors of one sentence, exit statuses."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.config import write_config
from support.runs import DIVERSEEVOL

from diverseevol_fast import kcenter
from diverseevol_fast.cli import main as cli
from diverseevol_fast.cli.main import main
from diverseevol_fast.models.load import load_causal_lm, load_tokenizer
from diverseevol_fast.ops import backends


def fails(capsys, argv, words, status=2):
    assert main([*argv]) == status
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert len(error.splitlines()[-1]) > 0
    return error


def test_select_writes_rows_and_picks(tmp_path, data_file, rows, tiny_model, capsys):
    out = tmp_path / "subset.jsonl"
    assert main(["select", "--data", str(data_file), "--model", str(tiny_model), "-n", "12", "--output", str(out)]) == 0
    record = json.loads((tmp_path / "subset.picks.json").read_text())
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[i] for i in record["indices"]]
    assert record["sqdist"][0] is None
    assert all(a >= b for a, b in zip(record["sqdist"][1:], record["sqdist"][2:], strict=False))
    assert {"passes", "seconds", "versions", "backend"} <= set(record)
    assert (
        "Write a response that appropriately completes the request.\\n\\n### Instruction:\\n" in capsys.readouterr().err
    )
    assert (record["output"], record["provenance"]["data_rows"]) == ("subset.jsonl", 90)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "rows.jsonl",
        "subset.embeddings.npy",
        "subset.embeddings.npy.json",
        "subset.jsonl",
        "subset.picks.json",
    ]


def test_embed_then_select_from_the_file_is_the_same(tmp_path, data_file, tiny_model, capsys):
    x = tmp_path / "x.npy"
    assert main(["embed", "--data", str(data_file), "--model", str(tiny_model), "--output", str(x), "--quiet"]) == 0
    assert "90 x 32 float32" in capsys.readouterr().out
    (tmp_path / "selected.json").write_text("[3, 4]")
    arguments = [
        "select",
        "--data",
        str(data_file),
        "-n",
        "9",
        "--selected",
        str(tmp_path / "selected.json"),
        "--quiet",
    ]
    for name, source in (("a", ["--embeddings", str(x)]), ("b", ["--model", str(tiny_model)])):
        files = ["--output", str(tmp_path / f"{name}.json.gz"), "--picks", str(tmp_path / f"{name}.picks.json")]
        assert main([*arguments, *source, *files]) == 0
    a, b = (json.loads((tmp_path / f"{name}.picks.json").read_text()) for name in "ab")
    assert a["indices"] == b["indices"] == kcenter(np.load(x), 9, [3, 4]).indices.tolist()
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()) == gzip.decompress(
        (tmp_path / "b.json.gz").read_bytes()
    )
    chosen = ["a.picks.json"]
    for name in ("more.json", "most.json"):  # each choice adds to all before it
        earlier = [str(tmp_path / file) for file in chosen]
        again = ["select", "--embeddings", str(x), "-n", "20", "--selected", *earlier]
        assert main([*again, "--picks", str(tmp_path / name)]) == 0
        chosen.append(name)
    rows = [row for file in chosen for row in json.loads((tmp_path / file).read_text())["indices"]]
    assert len(rows) == len(set(rows)) == 49
    assert json.loads((tmp_path / "most.json").read_text())["selected"] == earlier


def test_select_with_an_encoder(tmp_path, data_file, tiny_model):
    """A model with bidirectional attention and a pooler: the pooler is not used."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "bert")
    arguments = ["--data", str(data_file), "--model", str(tmp_path / "bert"), "--quiet"]
    assert main(["select", *arguments, "-n", "7", "--output", str(tmp_path / "o.jsonl")]) == 0
    assert main(["embed", *arguments, "--output", str(tmp_path / "x.npy")]) == 0
    picks = json.loads((tmp_path / "o.picks.json").read_text())["indices"]
    assert picks == kcenter(np.load(tmp_path / "x.npy"), 7, seed=0).indices.tolist()


def test_env_names_every_backend(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "torch ",
        "CPU: ",
        "GPU",
        "CUDA C++ kernels: ",
        "masked_mean_pool on cpu: ",
        "triton",
        "pick_block on cpu: ",
        "logit_stats on cpu: torch (",
    ):
        assert word in printed


def test_env_says_once_what_is_not_there(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(backends, "cuda_unavailable", lambda: "not built at install time: no reason")
    backends.triton_unavailable.cache_clear()
    try:
        assert main(["env"]) == 0
    finally:
        backends.triton_unavailable.cache_clear()
    printed = capsys.readouterr().out.splitlines()
    assert "CUDA C++ kernels: none" in printed
    assert [line for line in printed if "pip install triton" in line] == [
        "  triton: triton is not installed: pip install triton"
    ]
    assert [line for line in printed if "no reason" in line] == [
        "  cuda, cuda_general: not built at install time: no reason"
    ]


def test_mistakes_of_select(tmp_path, data_file, tiny_model, capsys):
    x = tmp_path / "x.npy"
    np.save(x, np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32))
    base = ["select", "--embeddings", str(x), "--picks", str(tmp_path / "p.json")]
    fails(capsys, [*base, "-n", "91"], "-n: expected 0 to 90, the rows that can be picked, got 91")
    fails(capsys, [*base, "-n", "-1"], "-n: expected 0 to 90")
    fails(capsys, ["select", "-n", "1"], "--model: is missing")
    fails(capsys, [*base, "-n", "1", "--model", str(tiny_model)], "a model or embeddings, got both")
    fails(capsys, ["select", "-n", "1", "--model", str(tiny_model)], "--data: is missing")
    fails(capsys, [*base, "-n", "1", "--output", str(tmp_path / "o.json")], "--data: is missing")
    fails(capsys, [*base, "-n", "1", "--selected", str(tmp_path / "none.json")], "none.json: no such file")
    for text, words in (
        ("{}", "flat list of row numbers"),
        ("{", "expected a JSON list"),
        ("[]", "s.json: holds no row"),
        ("[3, 3]", "s.json: row 3 is given more than once"),
        ("[1.5]", "flat list of row numbers"),
        ("[99]", "s.json: expected rows from 0 to 89"),
    ):
        (tmp_path / "s.json").write_text(text)
        fails(capsys, [*base, "-n", "1", "--selected", str(tmp_path / "s.json")], words)
    (tmp_path / "s.json").write_text(json.dumps(list(range(95))))
    fails(capsys, [*base, "-n", "1", "--selected", str(tmp_path / "s.json")], "s.json: expected rows from 0 to 89")
    fails(capsys, [*base, "-n", "1", "--selected", str(tmp_path / "p.json")], "would be replaced; give another picks")
    fails(capsys, [*base, "-n", "1", "--data", str(data_file), "--columns", "{a"], "--columns: not YAML")
    fails(capsys, [*base, "-n", "1", "--data", str(data_file), "--output", "o.txt"], "expected a name ending in .json")
    before = x.read_bytes(), data_file.read_bytes()
    both = ["select", "--embeddings", str(x), "--data", str(data_file), "-n", "1"]
    for files, words in (
        (["--picks", str(x)], "x.npy: would be replaced; give another picks"),
        (["--output", str(data_file)], "rows.jsonl: would be replaced; give another output"),
        (
            ["--output", str(tmp_path / "o.json"), "--picks", str(tmp_path / "o.json")],
            "o.json: would be replaced; give another picks",
        ),
    ):
        fails(capsys, [*both, *files], words)
    assert before == (x.read_bytes(), data_file.read_bytes())
    (tmp_path / "text.npy").write_text("1 2 3")
    fails(
        capsys, ["select", "--embeddings", str(tmp_path / "text.npy"), "-n", "1"], "not a whole .npy array of numbers;"
    )
    np.save(x, np.zeros((3, 4)))
    fails(capsys, [*base, "-n", "1"], "expected one float32 or float16 array [N, D], got float64 (3, 4)")
    np.save(x, np.array([[1, 2], [3, np.nan]], dtype=np.float32))
    fails(capsys, [*base, "-n", "1"], "row 1 holds a value that is not finite")
    np.save(x, np.zeros((3, 4), dtype=np.float32))
    fails(capsys, [*base, "-n", "1", "--data", str(data_file)], "3 rows, but")
    x.write_bytes(x.read_bytes()[:-8])
    fails(capsys, [*base, "-n", "1"], "not a whole .npy array")
    np.save(x, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fails(capsys, [*base, "-n", "1"], "not a whole .npy array")
    fails(capsys, ["select", "--embeddings", str(tmp_path / "no.npy"), "-n", "1"], "no such file")
    assert not (tmp_path / "p.json").exists()


def test_models_that_do_not_fit(tmp_path, data_file, tiny_model, settings, capsys):
    arguments = ["select", "--data", str(data_file), "-n", "1", "--output", str(tmp_path / "o.json"), "--model"]
    fails(capsys, [*arguments, str(tmp_path / "absent")], "no such local folder")
    (tmp_path / "empty").mkdir()
    fails(capsys, [*arguments, str(tmp_path / "empty")], "the folder has no config.json")
    broken = tmp_path / "broken"
    load_tokenizer(tiny_model).save_pretrained(broken)
    load_causal_lm(tiny_model).config.save_pretrained(broken)
    fails(capsys, [*arguments, str(broken)], "not loadable as a model")
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    fails(capsys, [*arguments, str(broken)], "not loadable as a model")

    deeper = tmp_path / "deeper"
    load_causal_lm(tiny_model).save_pretrained(deeper)
    load_tokenizer(tiny_model).save_pretrained(deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    fails(capsys, [*arguments, str(deeper)], "its weights lack layers.2.input_layernorm.weight and 8 more")

    no_eos = tmp_path / "no-eos"
    load_causal_lm(tiny_model).save_pretrained(no_eos)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(no_eos)
    config = str(write_config(tmp_path, settings | {"model_name_or_path": str(no_eos)}))
    fails(capsys, ["run", config], "its tokenizer has no eos token")

    tokenizer = load_tokenizer(tiny_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(no_eos)
    assert main(["run", config, "--n_round", "0", "--output_dir", str(tmp_path / "padded")]) == 0
    assert "padding with its eos token" in capsys.readouterr().err


def test_mistakes_of_run(tmp_path, settings, capsys):
    config = str(write_config(tmp_path, settings))
    fails(capsys, ["run", str(tmp_path / "absent.yml")], "no such config file")
    fails(capsys, ["run", config, "--n_querry", "3"], "unknown key 'n_querry'; did you mean 'n_query'?")
    fails(capsys, ["run", config, "--n_query"], "--n_query: expected a value")
    fails(capsys, ["run", config, "stray"], "expected one config file and --key value pairs, got")
    fails(capsys, ["run"], "got no file")
    fails(capsys, ["run", "--n_query", "0", config], "n_query: expected at least 1, got 0")
    fails(capsys, ["run", config, "--train_args.evaluation_strategy", "epoch"], "eval_strategy: expected 'no'")
    fails(capsys, ["run", config, "--n_round", "15"], "6 + 15 x 5 + 10 = 91 needs more")
    fails(capsys, ["run", config, "--init_label_num", "0"], "init_label_num: expected at least 1")
    fails(capsys, ["run", config, "--train_args.num_train_epoch", "1"], "did you mean 'num_train_epochs'?")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    fails(capsys, ["run", config, "--output_dir", str(foreign)], "holds files that are not a run's")
    fails(capsys, ["run", config, "--output_dir", config], "expected a folder")
    bad = tmp_path / "empty.jsonl"
    bad.write_text('{"instruction": "a", "output": ""}\n' * 40)
    fails(
        capsys, ["run", config, "--full_data_path", str(bad)], "40 rows have an empty instruction or output, the first"
    )
    with pytest.raises(SystemExit, match="2"):
        main(["select"])


def test_empty_rows_can_be_left_aside(tmp_path, settings, rows):
    data = tmp_path / "some-empty.jsonl"
    data.write_text(
        "".join(json.dumps(row | ({"output": ""} if i % 9 == 0 else {})) + "\n" for i, row in enumerate(rows))
    )
    config = str(write_config(tmp_path, settings | {"full_data_path": str(data), "n_round": 1}))
    assert main(["run", config, "--skip_empty", "true", "--quiet"]) == 0
    for r in (0, 1):
        indices = json.loads((tmp_path / f"out/state/rd_{r}/selected.json").read_text())["indices"]
        assert all(index % 9 for index in indices)


def test_empty_rows_are_refused_or_never_selected(tmp_path, rows, tiny_model, capsys):
    data = tmp_path / "some-empty.jsonl"
    empty = [0, 9, 50, len(rows) - 1]
    data.write_text(
        "".join(json.dumps(row | ({"output": ""} if i in empty else {})) + "\n" for i, row in enumerate(rows))
    )
    arguments = ["select", "--data", str(data), "--model", str(tiny_model), "--output", str(tmp_path / "o.jsonl")]
    fails(capsys, [*arguments, "-n", "86"], "4 rows have an empty instruction or output, the first is row 0")
    fails(capsys, [*arguments, "-n", "87", "--skip-empty"], "-n: expected 0 to 86")
    assert main([*arguments, "-n", "86", "--skip-empty"]) == 0
    picked = json.loads((tmp_path / "o.picks.json").read_text())["indices"]
    assert sorted(picked + empty) == list(range(len(rows)))
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [rows[i] for i in picked]
    assert main(["embed", "--data", str(data), "--model", str(tiny_model), "--output", str(tmp_path / "x.npy")]) == 0
    assert "4 rows have an empty instruction or output" in capsys.readouterr().err
    x = ["select", "--data", str(data), "--embeddings", str(tmp_path / "x.npy"), "--output", str(tmp_path / "p.jsonl")]
    assert main([*x, "-n", "86", "--skip-empty", "--picks", str(tmp_path / "p.json")]) == 0
    assert sorted(json.loads((tmp_path / "p.json").read_text())["indices"]) == sorted(picked)


@pytest.mark.parametrize(("validation", "words"), [(10, "loss is nan: training diverged"), (0, "diverged")])
def test_training_that_diverges_ends_with_a_sentence(tmp_path, settings, capsys, validation, words):
    config = str(write_config(tmp_path, settings | {"val_set_size": validation}))
    wild = ["--train_args.learning_rate", "1e30", "--train_args.max_grad_norm", "0"]
    fails(capsys, ["run", config, *wild], words, status=1)
    assert (tmp_path / "out/state/rd_0/selected.json").exists()
    assert not (tmp_path / "out/state/rd_1/selected.json").exists()


@pytest.mark.slow
def test_a_full_disk_ends_with_a_sentence_and_keeps_what_is_done(tmp_path, data_file, tiny_model):
    """A limit on file size stands for a full disk: both fail the reservation of the file."""
    command = [
        *(*DIVERSEEVOL, "embed", "--data", str(data_file)),
        *("--model", str(tiny_model), "--output", str(tmp_path / "x.npy")),
    ]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "make room and give the same command again" in last
    assert str(tmp_path / "x.npy") in last
    assert "Traceback" not in done.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_in_a_finalizer_is_not_lost(number, status, monkeypatch, capsys):
    """Python drops what is raised in __del__: without care the command would go on for its ten seconds."""

    class Slow:
        def __del__(self):
            signal.raise_signal(getattr(signal, number))
            time.sleep(0.01)

    def work(_args, _rest):
        Slow()
        time.sleep(10)
        return "not stopped"

    monkeypatch.setattr(cli, "_command", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so do we then
    began = time.perf_counter()
    assert main(["env"]) == status
    assert time.perf_counter() - began < 5
    signal.signal(signal.SIGINT, before)
    assert "Exception ignored" not in capsys.readouterr().err


def test_what_data_says_reaches_the_terminal_as_text(tmp_path, rows, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"instruction": "a", "output": 1, "\x1b[2J" + "x" * 1_000_000: 1}), encoding="utf-8")
    error = fails(capsys, ["select", "--data", str(data), "--model", "none", "-n", "1"], "'output' expected text")
    assert len(error) < 300
    data.write_text(json.dumps({"\x1b[2J" + "x" * 1_000_000: 1}), encoding="utf-8")
    error = fails(capsys, ["select", "--data", str(data), "--model", "none", "-n", "1"], "got keys '\\x1b[2Jxxx")
    assert len(error) < 400
    main(["select", "--data", str(data), "--model", "a\x1b[2J", "-n", "1", "--skip-broken"])
    assert "\x1b" not in capsys.readouterr().err
    fails(capsys, ["select", "--data", "", "--model", "none", "-n", "1"], "--data: expected a value, got ''")


def test_broken_lines_are_left_aside_with_a_count(tmp_path, rows, tiny_model, settings, capsys):
    data = tmp_path / "broken.jsonl"
    lines = [json.dumps(row) for row in rows]
    data.write_text("\n".join(["{", *lines[:4], '{"instruction": "no output"}', "3", *lines[4:]]))
    command = [
        "select",
        "--data",
        str(data),
        "--model",
        str(tiny_model),
        "-n",
        "6",
        "--output",
        str(tmp_path / "o.json"),
    ]
    error = fails(capsys, command, "3 broken lines; mend them, or leave them out: --skip-broken")
    assert [line.rpartition(", line ")[2] for line in error.splitlines()[1:]] == [
        "1: not JSON: Expecting property name enclosed in double quotes (column 2)",
        "6: key 'output' is missing; got 'instruction'",
        "7: expected an object, got int",
    ]
    assert not (tmp_path / "o.json").exists()
    assert main([*command, "--skip-broken"]) == 0
    assert "3 broken lines are left aside, the first is line 1: not JSON" in capsys.readouterr().err
    picked = json.loads((tmp_path / "o.picks.json").read_text())["indices"]
    assert json.loads((tmp_path / "o.json").read_text()) == [rows[i] for i in picked]
    config = str(write_config(tmp_path, settings | {"full_data_path": str(data), "n_round": 0}))
    fails(capsys, ["run", config], "3 broken lines")
    assert main(["run", config, "--skip_broken", "true", "--quiet"]) == 0
    pool = json.loads((tmp_path / "out/state/rd_0/selected.json").read_text())["indices"]
    assert json.loads((tmp_path / "out/data/rd_0_labeled.json").read_text()) == [rows[i] for i in pool]


def test_debug_shows_the_traceback(tmp_path):
    from diverseevol_fast._common.errors import InputError

    with pytest.raises(InputError):
        main(["run", str(tmp_path / "absent.yml"), "--debug"])


def test_quiet_and_plain_lines(tmp_path, data_file, tiny_model):
    command = [*DIVERSEEVOL, "embed", "--data", str(data_file), "--model", str(tiny_model), "--model-max-length", "128"]
    for name, extra in (("a.npy", ["--quiet"]), ("b.npy", [])):
        done = subprocess.run(
            [*command, "--output", str(tmp_path / name), *extra], capture_output=True, text=True, check=True
        )
        assert "\r" not in done.stderr
        assert (done.stderr == "") == bool(extra)
        assert done.stdout == f"{tmp_path / name}: 90 x 32 float32\n"
    assert os.listdir(tmp_path).count("a.npy") == 1
