"""When calls fail: a question that is turned down stops no other, a judge of no use is given up after few calls."""

import threading
import time

import pytest
from support.chat_server import HANG, SOON, ChatServer, fails
from support.judge_fixtures import Files, eight_nine

from diverseevol_fast.evaluate.judge.replies import ReplyFile

pytestmark = pytest.mark.usefixtures("judge_environment")

TURNED_DOWN = [fails(status, "not this one") for status in (400, 403, 404, 413, 422)]
HURRIED = ["--timeout", "0.2", "--retries", "1", "--concurrency", "1"]


@pytest.mark.parametrize("bad", [["1"], ["1", "2"], ["3", "4"], ["6"]], ids="-".join)
@pytest.mark.parametrize("answer", TURNED_DOWN, ids=lambda answer: str(answer.status))
def test_questions_that_are_turned_down_do_not_keep_the_others_from_being_asked(answer, bad, tmp_path, capsys):
    files = Files(tmp_path, 6)
    with ChatServer(lambda call: answer if call.question in bad else eight_nine(call)) as server:
        assert files.judge(server, "--concurrency", "1") == 1
        message = f"{2 * len(bad)} of 12 calls failed; {12 - 2 * len(bad)} replies are kept in {files.partial}"
        assert message in capsys.readouterr().err
        assert server.counts == files.everything()
        assert files.judge(server, "--concurrency", "1") == 1  # again: what is left is turned down again
        assert f"HTTP {answer.status}" in (error := capsys.readouterr().err)
        assert f"{12 - 2 * len(bad)} replies are kept in {files.partial}" in error
        assert {key for key, count in server.counts.items() if count > 1} <= {
            (q, order) for q in bad for order in (0, 1)
        }
        server.behave = eight_nine
        assert files.judge(server) == 0


def test_a_command_that_is_resumed_before_questions_that_are_turned_down(tmp_path):
    files = Files(tmp_path, 6)
    expired = [True]

    def behave(call):
        if expired and call.number > 1:
            return fails(401, "expired")
        return fails(400, "too long") if call.question in ("1", "2") else eight_nine(call)

    with ChatServer(lambda call: eight_nine(call) if call.number == 1 else behave(call)) as server:
        assert files.judge(server, "--concurrency", "1") == 2
        expired.clear()
        assert files.judge(server, "--concurrency", "1") == 1
    assert {question for question, _ in files.stored()} == {"1", "3", "4", "5", "6"}
    assert len(files.stored()) == 9


@pytest.mark.parametrize("answer", [HANG, fails(500, "it crashes on this", SOON)], ids=["hangs", "500"])
def test_a_first_question_that_is_never_answered(answer, tmp_path, capsys):
    files = Files(tmp_path, 4)
    with ChatServer(lambda call: answer if call.question == "1" else eight_nine(call)) as server:
        assert files.judge(server, *HURRIED) == 1
        assert "2 of 8 calls failed; 6 replies are kept" in capsys.readouterr().err
        first = 1 if answer == HANG else 2  # one that hangs is not tried again until there has been a reply
        assert server.counts == files.everything() | {("1", 0): first, ("1", 1): 2}
        assert files.judge(server, *HURRIED) == 1
        assert "6 replies are kept" in capsys.readouterr().err
        server.behave = eight_nine
        assert files.judge(server) == 0


@pytest.mark.parametrize(
    ("answer", "calls", "words"),
    [
        (HANG, 3, "no reply in time"),  # of 120 s each by default, and not of 7 tries each
        (fails(503, "no such host", SOON), 6, "HTTP 503: no such host"),  # the first with its 3 retries
        (fails(403, "no"), 3, "HTTP 403, perhaps the key in JUDGE_KEY may not do this: no"),
        (fails(404, "no"), 3, "HTTP 404, perhaps there is no such address or model: judge"),
        (fails(400, "no"), 3, "HTTP 400: no"),
        (fails(401, "no"), 1, "HTTP 401, the key in JUDGE_KEY was not accepted: no"),
        (fails(402, "no"), 1, "HTTP 402, the account of the key in JUDGE_KEY has to be paid for: no"),
        (fails(405, "no"), 1, "HTTP 405, this address takes no chat completions"),
        (fails(429, "no", SOON, code="insufficient_quota"), 1, "HTTP 429, nothing is left of the quota: no"),
    ],
    ids=["hangs", "503", "403", "404", "400", "401", "402", "405", "quota"],
)
@pytest.mark.parametrize("concurrency", ["1", "8"])
def test_a_judge_of_no_use_is_given_up_after_few_calls(answer, calls, words, concurrency, tmp_path, capsys):
    files = Files(tmp_path, 20)
    with ChatServer(lambda call: answer) as server:
        status = files.judge(server, "--timeout", "0.2", "--retries", "3", "--concurrency", concurrency)
    assert status == (2 if calls == 1 else 1)  # 2: what was given, the key or the address, is wrong for every call
    assert len(server.calls) == calls
    error = capsys.readouterr().err
    assert words in error
    assert f"0 replies are kept in {files.partial}" in error


def test_nothing_is_tried_again_once_the_judge_is_given_up(files):
    def behave(call):
        if call.number == 1:
            return eight_nine(call)
        server.wait_until_together(2)
        return fails(401, "expired") if (call.question, call.order) == ("1", 1) else fails(500, "later", soon)

    soon = {"retry-after-ms": "300"}
    with ChatServer(behave) as server:
        assert files.judge(server, "--concurrency", "2") == 2
        calls = len(server.calls)
        time.sleep(0.6)
        assert len(server.calls) == calls


def test_replies_that_came_are_kept_when_the_judge_is_given_up(files, capsys, monkeypatch):
    """Behind the failure that ends the command, a reply has come and waits to be written."""
    refused = threading.Event()

    def behave(call):
        if call.number == 1:
            return eight_nine(call)
        server.wait_until_together(3)
        if (call.question, call.order) == ("2", 0):
            return eight_nine(call)
        time.sleep(0.2)
        if (call.question, call.order) == ("1", 1):
            refused.set()
            return fails(401, "expired")
        refused.wait()
        time.sleep(0.2)
        return eight_nine(call)

    add = ReplyFile.add

    def add_slowly(self, key, reply):
        if key == ("2", 0):
            time.sleep(1.5)
        add(self, key, reply)

    monkeypatch.setattr(ReplyFile, "add", add_slowly)
    with ChatServer(behave) as server:
        assert files.judge(server, "--concurrency", "3") == 2
    assert files.stored() == [("1", 0), ("2", 0), ("2", 1)]
    assert "was not accepted: expired; 3 replies are kept" in capsys.readouterr().err
