"""`diverseevol judge` stopped, killed and damaged in the middle: nothing is asked twice, nothing is lost."""

import signal
import subprocess
import time

import pytest
from support.chat_server import HANG, ChatServer
from support.judge_fixtures import Files, eight_nine, interrupted, rows_of, write
from support.runs import DIVERSEEVOL

from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.judge import judge
from diverseevol_fast.evaluate.judge.score import scores_of

pytestmark = pytest.mark.usefixtures("judge_environment")


def test_a_finished_file_is_left_alone(files, capsys, monkeypatch):
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
        before = (files.output.read_bytes(), files.output.stat().st_mtime_ns)
        monkeypatch.delenv("JUDGE_KEY")
        capsys.readouterr()
        assert files.judge(server) == 0
    assert len(server.calls) == 6
    assert (files.output.read_bytes(), files.output.stat().st_mtime_ns) == before
    assert "complete before, nothing was asked" in capsys.readouterr().out
    assert not files.partial.exists()


def test_a_kill_between_the_output_and_its_clearing_up(files):
    interrupted(files, 5)
    content = files.partial.read_bytes()
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
        files.partial.write_bytes(content)
        assert files.judge(server) == 0
    assert len(server.calls) == 1
    assert not files.partial.exists()


def test_all_replies_are_there_but_not_the_output(files, monkeypatch):
    with ChatServer(eight_nine) as server:
        monkeypatch.setattr("diverseevol_fast.evaluate.judge.judge.write_rows", lambda *_: 1 / 0)  # a full disk, say
        assert files.judge(server) == 1
        monkeypatch.undo()
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        assert files.judge(server) == 0  # no call, so no key
    assert server.counts == files.everything()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_nothing_is_asked_twice(end, tmp_path):
    files = Files(tmp_path, 10)
    released = []

    def behave(call):
        return eight_nine(call) if released or call.number <= 7 else HANG

    with ChatServer(behave) as server:
        command = [*DIVERSEEVOL, *files.arguments(server.url, "--concurrency", "3")]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A shell lets what it runs in the background ignore SIGINT, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        server.wait_for_calls(10)  # 7 were answered, and 3 are waiting
        deadline = time.monotonic() + 30
        while len(files.partial.read_bytes().splitlines()) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(end)
        _, errors = process.communicate(timeout=30)
        stored = files.stored()
        assert len(stored) == 7
        if end == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + end
            assert "what is finished is kept, the same command goes on from there" in errors
        assert not files.output.exists()
        asked_before = dict(server.counts)
        released.append(True)
        assert files.judge(server) == 0
    for call, before in asked_before.items():
        assert before == 1
        assert server.counts[call] == (1 if call in stored else 2)
    assert set(server.counts) == set(files.everything())
    assert scores_of(files.output).questions == 10
    assert not files.partial.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_torn_last_line_is_asked_again(whole, files, capsys):
    interrupted(files, 4)
    content = files.partial.read_bytes()
    files.partial.write_bytes(content if whole else content[:-20])
    assert main(files.arguments("http://127.0.0.1:9/v1", "--dry-run")) == 0
    assert f"{2 if whole else 3} calls left of 6" in capsys.readouterr().out
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert len(server.calls) == (2 if whole else 3)
    assert all(row["eval_QUERY1"] == [8, 9] for row in rows_of(files.output))


def test_a_torn_header_is_a_beginning(files):
    interrupted(files, 1)
    files.partial.write_bytes(files.partial.read_bytes()[:30])
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert server.counts == files.everything()


def test_a_damaged_line_in_the_middle(files, capsys):
    interrupted(files, 4)
    lines = files.partial.read_bytes().splitlines(keepends=True)
    for bad, words in (
        (b"{oh\n", "line 3: not JSON"),
        (b'{"a": 1}\n', "line 3: expected a question_id and an order"),
        (b'{"question_id": "1", "order": 0, "reply": {}}\n', "line 3: expected a reply with endpoint, finish_reason"),
        (lines[2].replace(b"[100, 20]", b"[100]"), "line 3: tokens: expected two whole numbers or null, got [100]"),
    ):
        damaged = b"".join([*lines[:2], bad, *lines[3:]])
        files.partial.write_bytes(damaged)
        assert main(files.arguments("http://127.0.0.1:9/v1")) == 2
        assert words in capsys.readouterr().err
        assert files.partial.read_bytes() == damaged


def test_score_of_unfinished_judgements(files, capsys):
    interrupted(files, 3)
    for path in (files.partial, files.output):
        assert main(["score", str(path)]) == 2
        message = "unfinished judgements, 3 of 6 replies: of 2 questions an order is missing; judge into it again"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("change", ["answers", "reference", "model"])
@pytest.mark.parametrize("finished", [True, False])
def test_judgements_of_something_else_are_left_alone(change, finished, files, capsys):
    if finished:
        with ChatServer(eight_nine) as server:
            assert files.judge(server) == 0
    else:
        interrupted(files, 3)
    saved = files.output if finished else files.partial
    before = saved.read_bytes()
    more = ["--model", "another"] if change == "model" else []
    if change != "model":
        path = getattr(files, change)
        write(path, [row | {"answer": row["answer"] + "!"} for row in rows_of(path)])
    words = {
        "answers": "remove it. answers: other content",
        "reference": "remove it. reference: other content",
        "model": "remove it. model: the file has 'judge', now 'another'",
    }[change]
    for dry in ([], ["--dry-run"]):
        assert main(files.arguments("http://127.0.0.1:9/v1", *more, *dry)) == 2
        assert words in capsys.readouterr().err
    assert saved.read_bytes() == before


def test_the_same_content_in_another_layout_goes_on(files):
    interrupted(files, 3)
    write(files.reference, rows_of(files.reference)[::-1])
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert len(server.calls) == 3


def test_a_public_judgement_file_is_not_overwritten(files, shared_data, capsys):
    public = shared_data / "judgements" / "vicuna_baseline_dolly_rd_0_vs_chat.jsonl"
    files.output.write_bytes(public.read_bytes())
    assert main(files.arguments("http://127.0.0.1:9/v1")) == 2
    assert "does not say what it was made from; name another output" in capsys.readouterr().err
    assert files.output.read_bytes() == public.read_bytes()


def test_a_command_that_another_one_has_overtaken(files, capsys, monkeypatch):
    """The other finishes between this one's look at the files and its hold of them."""
    take, overtaken = judge.held_replies, []

    def overtake(*args):
        if not overtaken:
            overtaken.append(args)
            assert files.judge(server) == 0
        return take(*args)

    monkeypatch.setattr(judge, "held_replies", overtake)
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert server.counts == files.everything()
    assert not files.partial.exists()


def test_two_commands_for_one_file(files):
    others = []

    def behave(call):
        if not others:
            command = [*DIVERSEEVOL, *files.arguments(server.url)]
            others.append(subprocess.run(command, capture_output=True, text=True, check=False))
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server) == 0
    assert others[0].returncode == 2
    assert f"{files.partial}: another process is writing it" in others[0].stderr
    assert server.counts == files.everything()
