"""Beginning, help, suggestions, completion, JSON and interruption of the command line."""

import json
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from support.config import write_config
from support.runs import DIVERSEEVOL

from diverseevol_fast import __version__
from diverseevol_fast.cli import main as cli
from diverseevol_fast.cli.main import main
from diverseevol_fast.cli.parser import build_parser
from diverseevol_fast.runs.config import Config, load_config
from diverseevol_fast.runs.settings import DEFAULTS, MEANINGS, TRAIN_ARGS


def refusal(capsys, *argv) -> str:
    """What argparse says last of arguments that it refuses."""
    with pytest.raises(SystemExit, match="2"):
        main(list(argv))
    return capsys.readouterr().err.splitlines()[-1]


def printed_json(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_of_settings_has_every_key_and_its_default():
    assert sorted(MEANINGS) == sorted(f.name for f in fields(Config))
    required = {"full_data_path": "d", "model_name_or_path": "m"}
    assert {key for key, default in DEFAULTS.items() if default is MISSING} == set(required)
    assert Config(**required) == Config(**DEFAULTS | required)


def test_the_training_settings_are_those_of_transformers():
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir="unused", use_cpu=True)
    assert {name: getattr(arguments, name) for name in TRAIN_ARGS} == TRAIN_ARGS


def test_init_writes_a_config_that_loads_with_the_defaults(tmp_path, capsys):
    path = tmp_path / "mine.yml"
    assert main(["init", str(path), "--data", "my: #data.json", "--model", "/models/ll ama"]) == 0
    assert capsys.readouterr().out == f"{path}: diverseevol run {path}\n"
    given = {"full_data_path": "my: #data.json", "model_name_or_path": "/models/ll ama", "result_dir_name": "mine"}
    assert load_config(path) == Config(**given, train_args=TRAIN_ARGS)
    lines = path.read_text().splitlines()
    assert max(map(len, lines)) <= 100
    for key in MEANINGS:
        assert [line.split(":")[0].lstrip("#") for line in lines].count(key) == 1
    # Every key that is switched off, switched on: still a config with the defaults.
    switched_on = [line[1:] if line.startswith("#") and line[1:2].isalpha() else line for line in lines]
    values = yaml.safe_load("\n".join(switched_on))
    assert sorted(values) == sorted(MEANINGS)
    assert Config(**values) == Config(**DEFAULTS | given | {"train_args": TRAIN_ARGS})


def test_init_says_what_is_to_be_filled_in_and_replaces_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    told = "config.yml: fill in full_data_path and model_name_or_path, then: diverseevol run config.yml\n"
    assert capsys.readouterr().out == told
    assert main(["run", "config.yml"]) == 2
    assert capsys.readouterr().err == "diverseevol: config: key 'full_data_path' is missing\n"
    assert (
        load_config(Path("config.yml"), {"full_data_path": "d", "model_name_or_path": "m"}).result_dir_name == "config"
    )
    before = (tmp_path / "config.yml").read_bytes()
    assert main(["init", "--data", "other.json"]) == 2
    assert "config.yml: is there already and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "config.yml").read_bytes() == before
    (tmp_path / "link.yml").symlink_to("nowhere")
    assert main(["init", "link.yml"]) == 2
    assert main(["init", "config.yml/x.yml"]) == 2
    assert "config.yml/x.yml: cannot be written: " in capsys.readouterr().err
    assert sorted(os.listdir()) == ["config.yml", "link.yml"]


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"diverseevol_fast {__version__}\n"


def test_help_of_run_lists_every_key_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    for key, meaning in MEANINGS.items():
        default = {MISSING: "required", None: "not set", False: "false"}.get(DEFAULTS[key] or None, DEFAULTS[key])
        if DEFAULTS[key] in (False, 0, {}):
            default = json.dumps(DEFAULTS[key])
        assert f" {key} ({default}): {meaning}" in words
    assert "builtin:quickstart" in words


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        (["selct", "-n", "3"], "; did you mean 'select'?"),
        (["--versoin"], "required: COMMAND; --versoin: unknown; did you mean '--version'?"),
        (["select", "--outptu", "x", "-n", "3"], "unrecognized arguments: --outptu; did you mean '--output'?"),
        (["embed", "--outptu=x"], "are required: --output; --outptu: unknown; did you mean '--output'?"),
        (["embed", "--outp", "x.npy", "--zzz"], "unrecognized arguments: --zzz"),
        (["judge", "--api-key", "sk-1"], "--api-key-env; --api-key: unknown; did you mean '--api-key-env'?"),
        (["score", "x", "--sed=sk-1"], "unrecognized arguments: --sed; did you mean '--seed'?"),
        (["env", "stray"], "unrecognized arguments: stray"),
    ],
)
def test_what_is_misspelt_is_named_with_what_was_meant(argv, end, capsys):
    error = refusal(capsys, *argv)
    assert error.endswith(end)
    assert "sk-1" not in error


def test_no_module_outside_the_command_line_spells_an_option():
    commands = build_parser().commands.choices.values()
    options = {name for command in commands for action in command._actions for name in action.option_strings}
    options = {name for name in options if name.startswith("--")} | {f"--{field.name}" for field in fields(Config)}
    assert "--model-max-length" in options
    package = Path(cli.__file__).parents[1]
    for path in sorted(set(package.rglob("*.py")) - set(package.glob("cli/*.py"))):
        text = path.read_text(encoding="utf-8")
        assert options & set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) == set(), path


def test_completion_knows_commands_options_and_keys(tmp_path):
    pytest.importorskip("shtab")
    made = subprocess.run(
        [*DIVERSEEVOL, "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    ask = """
source /dev/stdin
words() { COMP_WORDS=(diverseevol "$@"); COMP_CWORD=$#; COMPREPLY=(); _shtab_diverseevol; echo ${COMPREPLY[@]}; }
words sel; words run --n_; words embed --out
"""
    asked = subprocess.run(["bash", "-c", ask], input=made.stdout, capture_output=True, text=True, check=True)
    assert asked.stdout.splitlines() == ["select", "--n_round --n_query", "--output"]


def test_completion_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert refusal(capsys, "--print-completion", "zsh").endswith("needs shtab; pip install shtab")
    assert "invalid choice: 'fish'" in refusal(capsys, "--print-completion", "fish")


def test_every_command_prints_json(tmp_path, settings, data_file, tiny_model, capsys, judge_environment, files):
    from support.chat_server import ChatServer
    from support.judge_fixtures import eight_nine

    config, out = write_config(tmp_path, settings | {"n_round": 1, "val_set_size": 0}), tmp_path / "out"
    seen = {"init": printed_json(capsys, "init", tmp_path / "new.yml")}
    assert seen["init"] == {"config": str(tmp_path / "new.yml"), "fill_in": ["full_data_path", "model_name_or_path"]}

    seen["run"] = run = printed_json(capsys, "run", config)
    assert run["folder"] == str(out)
    assert [(each["round"], each["pool"]) for each in run["rounds"]] == [(0, 6), (1, 11)]
    assert run["rounds"][1]["embed"] == json.loads((out / "state/rd_1/metrics.json").read_text())["embed"]

    data = ["--data", data_file, "--model", tiny_model, "--model-max-length", 128]
    seen["embed"] = embed = printed_json(capsys, "embed", *data, "--output", tmp_path / "x.npy")
    assert {name: embed[name] for name in ("output", "rows", "dimension", "dtype")} == {
        "output": str(tmp_path / "x.npy"),
        "rows": 90,
        "dimension": 32,
        "dtype": "float32",
    }
    assert embed["metrics"]["tokens"] > 90

    picks = tmp_path / "p.json"
    seen["select"] = select = printed_json(
        capsys, "select", "--embeddings", tmp_path / "x.npy", "-n", 3, "--picks", picks
    )
    assert select == {"output": None, "picks": str(picks)} | json.loads(picks.read_text())

    arguments = [data_file, "--picks", picks, "--embeddings", tmp_path / "x.npy", "--random", 1]
    seen["diversity"] = printed_json(capsys, "diversity", *arguments)
    assert [entry["size"] for entry in seen["diversity"][0]["subsets"]] == [3]

    questions, answers = tmp_path / "q.jsonl", tmp_path / "answers"
    questions.write_text("".join(json.dumps({"question_id": n, "text": "Say it."}) + "\n" for n in (1, 2)))
    generate = ["generate", out, "--questions", questions, "--rounds", 1, "--max-new-tokens", 4, "--output", answers]
    seen["generate"] = first = printed_json(capsys, *generate)
    assert [(file["file"], file["round"]) for file in first["files"]] == [(str(answers / "q_test/out/rd_1.jsonl"), 1)]
    assert first["files"][0]["metrics"]["questions"] == 2
    assert printed_json(capsys, *generate) == first  # finished before

    with ChatServer(eight_nine) as server:
        judge = files.arguments(server.url)
        assert printed_json(capsys, *judge, "--dry-run")["calls_left"] == 6
        seen["judge"] = judged = printed_json(capsys, *judge)
    assert (judged["output"], judged["questions"], judged["unparsed"]) == (str(files.output), 3, [])
    seen["score"] = printed_json(capsys, "score", files.output)
    assert seen["score"][0]["relative_score"] == judged["scores"]["relative_score"] == pytest.approx(800 / 9)

    seen["report"] = report = printed_json(capsys, "report", out)
    assert report["runs"] == [{"name": "out", "rounds": 2}]
    assert len(os.listdir(report["charts_folder"])) == report["charts"]

    seen["env"] = env = printed_json(capsys, "env")
    assert {op["op"] for op in env["backends"]} >= {"pick_block", "masked_mean_pool"}
    assert set(seen) == set(build_parser().commands.choices)


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (cli.TerminatedError("stopped by SIGTERM"), 143, "stopped by SIGTERM"),
    ],
)
def test_an_interruption_says_that_it_was_one(raised, status, told, capsys, monkeypatch):
    def interrupted(args, rest):
        raise raised

    monkeypatch.setattr(cli, "_command", interrupted)
    assert main(["env"]) == status
    assert capsys.readouterr().err == (
        f"diverseevol: {told}; what is finished is kept, the same command goes on from there\n"
    )


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)]
)
def test_waiting_threads_leave_the_cores_to_others(given, spins):
    """It is set before torch, which reads it, is imported; what the user has set holds."""
    script = (
        "import os, sys\n"
        "from diverseevol_fast.cli import main as cli\n"
        "assert 'torch' not in sys.modules\n"
        "cli._command = lambda *_: cli.Result(str(os.environ.get('GOMP_SPINCOUNT')), {})\n"
        "cli.main(['env'])"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env | given)
    assert done.stdout == f"{spins}\n"
