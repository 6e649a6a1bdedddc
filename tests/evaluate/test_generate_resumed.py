"""Saved answers after SIGKILL, torn lines and other settings, and with two processes at once."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.generating import QUESTIONS, answers, make_run, metrics, read_lines, talkative, write_lines

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate import generate
from diverseevol_fast.evaluate.answer_file import AnswerFile, GeneratedAnswer
from diverseevol_fast.evaluate.generator import Generator
from diverseevol_fast.evaluate.resumable_lines import ResumableLines

# The command line with every batch slowed down, so that a kill lands between two.
SLOWED = """
import sys, time
from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.generator import Generator

answers = Generator.answers

def slowly(*args):
    time.sleep(0.2)
    return answers(*args)

Generator.answers = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, rows):
    """A finished run of round 0."""
    folder = tmp_path_factory.mktemp("made")
    return make_run(folder, rows, talkative(folder / "base", tiny_model), n_round=0)


@pytest.fixture
def command(made, tmp_path):
    """The command, with one question in a batch; answers go to `out`."""
    file = write_lines(tmp_path / "mine.jsonl", QUESTIONS)
    return [
        "generate",
        str(made),
        "--questions",
        str(file),
        "--output",
        str(tmp_path / "out"),
        "--max-new-tokens",
        "12",
        "--max-tokens-per-batch",
        "1",
    ]


@pytest.fixture
def folder(made, tmp_path):
    return tmp_path / "out" / "mine_test" / made.name


@pytest.fixture
def asked(monkeypatch):
    """The number of prompts in each batch that the model gets."""
    counts, answer = [], Generator.answers

    def counted(self, prompts, *args):
        counts.append(len(prompts))
        return answer(self, prompts, *args)

    monkeypatch.setattr(Generator, "answers", counted)
    return counts


@pytest.fixture
def begun(command, folder, tmp_path):
    """The state after a crash with three answers saved. Returns the partial file, and all answers."""
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole" / folder.relative_to(tmp_path / "out")
    expected, partial = answers(whole), folder / "rd_0.jsonl.partial"
    answer, stopped = Generator.answers, []

    def stop(self, prompts, *args):
        if len(stopped) == 3:
            raise KeyboardInterrupt
        stopped.append(prompts)
        return answer(self, prompts, *args)

    Generator.answers = stop
    try:
        assert main(command) == 130
    finally:
        Generator.answers = answer
    return partial, expected


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--temperature", "1"]])
def test_sigkill(command, folder, tmp_path, asked, options, capsys):
    partial = folder / "rd_0.jsonl.partial"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, *command, *options],
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 3):  # the header and two batches
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    saved = partial.read_bytes().count(b"\n") - 1
    assert 2 <= saved < 5
    assert not (folder / "rd_0.jsonl").exists()
    assert main([*command, *options]) == 0
    assert asked == [1] * (5 - saved)
    assert f"mine_test: {saved} answers are there already" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["rd_0.jsonl", "rd_0.jsonl.json"]
    assert main([*command, *options, "--output", str(tmp_path / "alone")]) == 0
    alone = tmp_path / "alone" / folder.relative_to(tmp_path / "out")
    assert (folder / "rd_0.jsonl").read_bytes() == (alone / "rd_0.jsonl").read_bytes()
    assert metrics(folder)["tokens"] == metrics(alone)["tokens"]


def test_a_finished_file_is_left_as_it_is(command, folder, asked, capsys):
    assert main(command) == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    (folder / "rd_0.jsonl.partial").write_text("left by a crash after the last rename")
    capsys.readouterr()
    assert main([*command, "--max-tokens-per-batch", "9999", "--seed", "3"]) == 0  # these options change no answer
    assert capsys.readouterr().out == f"{folder}/rd_0.jsonl: was finished before\n"
    assert len(asked) == 5
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-new-tokens", "11"], "max_new_tokens: the file has 12, now 11"),
        (["--upstream-prompt"], "prompt: the file has 'training', now 'upstream'"),
        (["--dtype", "bfloat16"], "dtype: the file has 'float32', now 'bfloat16'"),
        (
            ["--temperature", "1"],
            "seed: the file has None, now 0; temperature: the file has 0.0, now 1.0; top_p: the file has None, now 1.0",
        ),
    ],
)
def test_other_settings_are_refused(begun, command, asked, finished, options, words, capsys):
    partial, expected = begun
    if finished:
        assert main(command) == 0
    before, count = {path: path.read_bytes() for path in partial.parent.iterdir()}, len(asked)
    capsys.readouterr()
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    path = partial.with_suffix("") if finished else partial
    assert f"{path}: was made from something else; name another output or remove it. {words}" in error
    assert {path: path.read_bytes() for path in partial.parent.iterdir()} == before
    assert len(asked) == count
    assert main(command) == 0
    assert answers(partial.parent) == expected


def test_other_questions_and_another_model_are_refused(begun, command, made, tmp_path, capsys):
    partial, _ = begun
    write_lines(tmp_path / "mine.jsonl", [*QUESTIONS[:-1], QUESTIONS[-1] | {"note": "new"}])
    assert main(command) == 2
    assert "questions: other content" in capsys.readouterr().err
    write_lines(tmp_path / "mine.jsonl", QUESTIONS)
    other = tmp_path / "other" / made.name
    shutil.copytree(made, other)
    (other / "output/rd_0/generation_config.json").write_text("{}")
    assert main([command[0], str(other), *command[2:]]) == 2
    assert "model: other content" in capsys.readouterr().err
    assert partial.exists()


def test_all_rounds_are_looked_at_before_the_first_is_begun(made, command, tmp_path, asked, capsys):
    run = tmp_path / "two"
    shutil.copytree(made, run)
    shutil.copytree(run / "output/rd_0", run / "output/rd_1")
    command[1] = str(run)
    (tmp_path / "out/mine_test/two").mkdir(parents=True)
    (tmp_path / "out/mine_test/two/rd_1.jsonl").write_text('{"question": "of somebody else"}\n')
    assert main(command) == 2
    assert "rd_1.jsonl: exists, and not from here; name another output or remove it" in capsys.readouterr().err
    assert asked == []
    assert main([*command, "--rounds", "0", "0"]) == 0
    assert asked == [1] * 5


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_last_line_is_answered_again(begun, command, asked, cut):
    partial, expected = begun
    os.truncate(partial, partial.stat().st_size - cut)
    assert main(command) == 0
    assert asked == [1] * 3
    assert answers(partial.parent) == expected


def test_a_torn_first_line_begins_again(begun, command, asked):
    partial, expected = begun
    os.truncate(partial, 20)
    assert main(command) == 0
    assert asked == [1] * 5
    assert answers(partial.parent) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\0\0\0", "line 3: not JSON: "),
        (b"[]", "line 3: expected an object, got list; remove the line"),
        (b"{}", "line 3: not a batch of answers; remove the file to begin again"),
        (b'{"answers": {"0": ["a"]}, "seconds": 1.0}', "line 3: not a batch of answers"),
        (b'{"answers": {"zero": ["a", 1, true]}, "seconds": 1.0}', "line 3: not a batch of answers"),
        (b'{"\xff": 1}', "damaged, not UTF-8 text (invalid start byte); remove it to begin again"),
    ],
)
def test_a_damaged_line_is_named(begun, command, line, words, capsys):
    partial, _ = begun
    lines = partial.read_bytes().split(b"\n")
    partial.write_bytes(b"\n".join([lines[0], lines[1], line, *lines[3:]]))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert str(partial) in error
    assert words in error


@pytest.mark.parametrize("header", [b"\0", b"[]", b"{}", b'{"provenance": 1}'])
def test_a_damaged_first_line_is_refused(begun, command, header, capsys):
    partial, _ = begun
    partial.write_bytes(b"\n".join([header, *partial.read_bytes().split(b"\n")[1:]]))
    assert main(command) == 2
    assert f"{partial}: does not say what it was made from" in capsys.readouterr().err


def test_a_finished_file_with_a_damaged_record(command, folder, capsys):
    assert main(command) == 0
    (folder / "rd_0.jsonl.json").write_text("[")
    assert main(command) == 2
    assert f"{folder}/rd_0.jsonl: does not say what it was made from" in capsys.readouterr().err


def test_killed_before_the_last_rename(begun, command, asked, tmp_path):
    """All answers are in the partial file, and the finished file is missing."""
    partial, expected = begun
    finished = tmp_path / "finished"
    assert main(command) == 0
    record = json.loads(partial.with_suffix(".json").read_text())
    whole = tmp_path / "whole.partial"
    shutil.copy(partial.with_suffix(""), finished)
    batch = {str(index): [text, 12, False] for index, text in enumerate(expected)}
    lines = [{"provenance": record["provenance"]}, {"answers": batch, "seconds": 2.0}]
    write_lines(whole, lines)
    partial.with_suffix("").unlink()
    shutil.copy(whole, partial)
    asked.clear()
    assert main(command) == 0
    assert asked == []
    assert partial.with_suffix("").read_bytes() == finished.read_bytes()
    assert metrics(partial.parent)["tokens_per_second"] == 60 / 2.0


def test_two_processes_cannot_write_one_file(begun, command, asked, capsys):
    partial, expected = begun
    with open(partial, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(command) == 2
        assert "rd_0.jsonl.partial: another process is writing it" in capsys.readouterr().err
    assert asked == []
    assert main(command) == 0
    assert answers(partial.parent) == expected


def test_another_process_that_finishes_while_the_model_is_loaded(command, folder, asked, capsys, monkeypatch):
    load, others = generate._load, []

    def finish_elsewhere(*args):
        if not others:
            others.append(args)
            assert main(command) == 0
        return load(*args)

    monkeypatch.setattr(generate, "_load", finish_elsewhere)
    assert main(command) == 0
    assert f"{folder}/rd_0.jsonl: was finished before" in capsys.readouterr().out
    assert asked == [1] * 5
    assert sorted(path.name for path in folder.iterdir()) == ["rd_0.jsonl", "rd_0.jsonl.json"]


def test_a_file_that_was_begun_from_something_else_meanwhile(tmp_path):
    file, other = (AnswerFile(tmp_path / "a.jsonl", {"seed": seed}) for seed in (1, 2))
    assert not file.is_finished()
    with other.held():
        other.append({0: GeneratedAnswer("an answer", 3, True)}, 1.0)
    with pytest.raises(InputError, match=r"was made from something else; .* seed: the file has 2, now 1"), file.held():
        pytest.fail("held")


def test_a_file_that_is_removed_before_it_is_locked(tmp_path, monkeypatch):
    """A partial file that another process finished and removed is still open here: nothing may be written to it."""
    path, lock, removed = tmp_path / "a.jsonl.partial", fcntl.flock, []

    def lock_late(*args):
        if not removed:
            removed.append(path.unlink())
        lock(*args)

    path.write_bytes(b'{"provenance": {"a": 1}}\n{"old": 1}\n')
    monkeypatch.setattr(fcntl, "flock", lock_late)
    with ResumableLines(path, {"a": 1}) as file:
        assert file.lines == []
        file.append({"new": 2})
    assert read_lines(path) == [{"provenance": {"a": 1}}, {"new": 2}]
    file.remove()
    file.remove()
    assert not path.exists()


def test_records_in_the_partial_file(begun):
    partial, expected = begun
    header, *batches = read_lines(partial)
    assert list(header) == ["provenance"]
    assert [list(batch["answers"]) for batch in batches] == [["1"], ["0"], ["4"]]  # the longest prompt first
    for batch in batches:
        ((index, (text, tokens, ended)),) = batch["answers"].items()
        assert text == expected[int(index)]
        assert 1 <= tokens <= 12
        assert ended is (tokens < 12)
        assert batch["seconds"] > 0
