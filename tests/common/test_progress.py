"""What is said while something goes on: bars on a terminal, a few lines in a log, nothing with --quiet."""

import json
import logging
import os
import pty
import subprocess
import sys
import termios

import pytest
from support.config import write_config
from support.data import data_of
from support.runs import DIVERSEEVOL

from diverseevol_fast._common import progress
from diverseevol_fast.data.dataset import duplicates, load_data
from diverseevol_fast.data.tokens import log_lengths, tokenize
from diverseevol_fast.embedding.embed_tokens import describe


@pytest.fixture
def told(monkeypatch):
    """The lines that the package logs."""
    lines = []
    logger = logging.getLogger("diverseevol_fast")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    level = logger.level
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(level)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def in_log(clock, told, total, seconds_each):
    with progress.Progress("train", total, "step") as bar:
        for _ in range(total):
            clock[0] += seconds_each
            bar.update(1, loss=2.5)
    return told


def test_a_stage_is_at_most_two_lines_in_a_log(clock, told):
    assert in_log(clock, told, 1000, 0.5) == [
        "train: 334 of 1,000 steps, about 333 s left, loss 2.5",
        "train: 667 of 1,000 steps, about 166 s left, loss 2.5",
    ]


def test_a_short_stage_says_nothing_in_a_log(clock, told):
    assert in_log(clock, told, 1000, 0.009) == []


def test_lines_are_ten_seconds_apart(clock, told):
    assert in_log(clock, told, 100, 0.15) == ["train: 67 of 100 steps, about 5 s left, loss 2.5"]


def test_a_stage_of_hours_says_something_every_ten_minutes(clock, told):
    lines = in_log(clock, told, 100, 61.0)
    assert 9 <= len(lines) <= 13
    assert lines[0].startswith("train: 10 of 100 steps")


def test_a_terminal_keeps_one_line_of_each_stage():
    script = """
import logging, time
from diverseevol_fast.cli.main import _set_up_logging
from diverseevol_fast._common.progress import Progress
_set_up_logging(False)
for name in ("train", "embed"):
    with Progress(name, 6, "row") as bar:
        for number in range(6):
            time.sleep(0.25)
            bar.update(1)
            if number == 4:
                logging.getLogger("diverseevol_fast").info("a line of its own")
with Progress("short", 1, "row") as bar:
    bar.update(1)
"""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=child, stdout=child)
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert process.wait() == 0
    last = [line.split("\r")[-1] for line in shown.decode().replace("\r\n", "\n").split("\n")]
    assert [line.split(":")[0].strip() for line in last] == [
        "a line of its own",
        "train",
        "a line of its own",
        "embed",
        "",
    ]
    assert "100%" in last[1]
    assert "100%" in last[3]


QUIET = """
import logging, sys, warnings
from diverseevol_fast.cli import main as cli

def noisy(args, rest):
    warnings.warn("a warning of Python's")
    logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache")
    import datasets, transformers
    transformers.logging.get_logger("transformers.x").warning("a warning of transformers")
    datasets.logging.get_logger("datasets.x").warning("a warning of datasets")
    for tqdm in (transformers.utils.logging.tqdm, datasets.utils.tqdm):
        for _ in tqdm(range(3), desc="Loading weights"):
            pass
    return cli.Result("done", {})

cli._command = noisy
sys.exit(cli.main(["env", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("extra", [["--quiet"], []])
def test_other_packages_are_silent_with_quiet_and_show_no_bars(extra):
    env = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}  # of other tests
    done = subprocess.run([sys.executable, "-c", QUIET, *extra], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "done\n"
    assert "Loading weights" not in done.stderr
    if extra:
        assert done.stderr == ""
    else:  # the warnings are real ones
        for words in ("of Python's", "font cache", "of transformers", "of datasets"):
            assert words in done.stderr


def test_a_quiet_run_says_nothing(tmp_path, settings):
    config = write_config(tmp_path, settings | {"n_round": 1})
    command = [*DIVERSEEVOL, "run", str(config), "--quiet", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(json.loads(done.stdout)["rounds"]) == 2


def test_an_embedding_is_told_in_plain_words():
    metrics = {
        "tokens": 1234,
        "seconds": 2.0,
        "tokens_per_second": 617.0,
        "padding": 0.03,
        "prefix_share": 0.154,
        "flops_per_second": 112.0,
        "matrix_rate": 100.0,
        "peak_memory": 2.04e9,
    }
    assert describe(metrics) == (
        "1,234 tokens in 2.0 s (617 a second); 97% of the work was real tokens, the rest padding; shared "
        "prefixes saved 15% of the tokens; at most 2.0 GB of memory"
    )


def test_the_data_are_summed_up(tmp_path, told, tiny_model):
    from diverseevol_fast.models.load import load_tokenizer

    row = {"instruction": "Say it.", "output": "It."}
    rows = [row, row | {"id": 7}, row | {"input": ""}, row | {"output": "Not."}, row | {"output": " "}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    data, empty = load_data(str(path))
    assert told == [
        f"data: {path}, JSON lines, alpaca schema, 5 rows: 2 repeat an earlier one, 1 have an empty instruction "
        "or output"
    ]
    lengths = tokenize(data, load_tokenizer(tiny_model), 1000, empty).lengths()
    assert sorted(set(lengths.tolist()))[:1] == [0]
    longest = int(lengths.max())
    log_lengths(tokenize(data, load_tokenizer(tiny_model), longest - 1, empty), longest - 1)
    cut = int((lengths == longest).sum())
    total, median = lengths.clip(max=longest - 1).sum(), longest - 1 if cut > 2 else min(lengths[lengths > 0])
    assert told[1] == (
        f"tokens: {total} in 4 rows, median {median}, longest {longest - 1}; {cut} rows cut to {longest - 1}"
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert duplicates(data_of([{"messages": talk}, {"messages": talk[:1]}, {"messages": talk, "id": 3}])) == 1


def test_a_log_of_four_rounds_has_at_most_sixty_lines(tmp_path, settings):
    """As many rounds as the demo has, each stage as slow as it takes for all its lines."""
    config = write_config(tmp_path, settings | {"n_round": 3})
    script = (
        "import sys; from diverseevol_fast._common import progress; from diverseevol_fast.cli.main import main; "
        "progress.SHORTEST_WAIT = 0.0; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(config)], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert sum(line.startswith("train: ") for line in lines) >= 6
    assert sum(line.startswith("embed: ") for line in lines) >= 2
    assert len(lines) <= 60
    assert not any(word in done.stderr for word in ("padding 0", "matrix rate", "passes", "\r"))
