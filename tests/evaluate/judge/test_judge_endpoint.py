"""Endpoints that fail, refuse or echo the key, over a real socket."""

import os
import re
import subprocess
import sys

import pytest
from support.chat_server import DROP, HANG, SOON, Answer, ChatServer, fails, says
from support.judge_fixtures import KEY, Files, assert_nowhere, eight_nine, rows_of
from support.runs import DIVERSEEVOL

from diverseevol_fast.evaluate.judge.score import scores_of

pytestmark = pytest.mark.usefixtures("judge_environment")


@pytest.mark.parametrize(
    "bad",
    [fails(429, "slow down", SOON), fails(500, "oh", SOON), fails(503, "busy", SOON), DROP, HANG],
    ids=["429", "500", "503", "dropped", "silent"],
)
def test_a_call_that_fails_once_is_tried_again(bad, tmp_path):
    files = Files(tmp_path, 1)
    with ChatServer(lambda call: bad if call.attempt == 1 and call.order == 1 else eight_nine(call)) as server:
        assert files.judge(server, "--timeout", "0.5") == 0
    assert server.counts == {("1", 0): 1, ("1", 1): 2}
    assert scores_of(files.output).questions == 1


def test_a_call_that_keeps_failing_is_counted_and_the_others_go_on(files, capsys):
    broken = [True]

    def behave(call):
        if broken and (call.question, call.order) == ("2", 0):
            return fails(500, f"out of luck with {KEY}", SOON)
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server, "--retries", "2") == 1
        printed = capsys.readouterr()
        assert "judge: question 2, order 0" in printed.err
        assert "HTTP 500: out of luck with [key]" in printed.err
        assert f"1 of 6 calls failed; 5 replies are kept in {files.partial}" in printed.err
        assert server.counts == files.everything() | {("2", 0): 3}
        assert not files.output.exists()
        assert len(files.stored()) == 5
        broken.clear()
        assert files.judge(server) == 0
    assert server.counts == files.everything() | {("2", 0): 4}
    assert_nowhere(KEY, files.folder, printed)


def test_an_endpoint_that_goes_away(tmp_path, capsys):
    files = Files(tmp_path, 10)
    with ChatServer(lambda call: HANG if call.number > 5 else eight_nine(call)) as server:
        assert files.judge(server, "--timeout", "0.2", "--retries", "0", "--concurrency", "1") == 1
        assert "without a byte; to connect, 10 at most); 5 replies are kept" in capsys.readouterr().err
        assert len(server.calls) == 8  # 3 failures in a row
    with ChatServer(eight_nine) as other:
        assert files.judge(other) == 0
    assert len(other.calls) == 15


def test_nobody_listens(files, capsys):
    with ChatServer(eight_nine) as server:
        pass
    assert files.judge(server, "--retries", "0") == 1
    assert re.search(r"/v1: no connection: .*refused", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("status", "calls", "ends"),
    [(401, 1, 2), (403, 3, 1)],
)
def test_a_key_that_is_not_taken_and_echoed(status, calls, ends, files, capsys):
    with ChatServer(lambda call: fails(status, f"Incorrect API key provided: {KEY}\nnext line")) as server:
        assert files.judge(server) == ends
        assert len(server.calls) == calls
        printed = capsys.readouterr()
        assert f"{server.url}: HTTP {status}, " in printed.err
        assert "Incorrect API key provided: [key] next line" in printed.err
    assert_nowhere(KEY, files.folder, printed)


def test_a_key_that_expires_keeps_what_is_there(files, capsys):
    expired = [True]

    def behave(call):
        return fails(401, "expired") if expired and call.number > 3 else eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server, "--concurrency", "1") == 2
        assert "3 replies are kept" in capsys.readouterr().err
        expired.clear()
        assert files.judge(server) == 0
        assert server.counts == files.everything() | {("2", 1): 2}


@pytest.mark.parametrize("parameter", ["max_tokens", "temperature", "both"])
def test_parameters_that_the_judge_does_not_take(parameter, files, capsys):
    def behave(call):
        if parameter != "temperature" and "max_tokens" in call.body:
            message = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            )
            return fails(400, message, param="max_tokens", code="unsupported_parameter")
        if parameter != "max_tokens" and "temperature" in call.body:
            return fails(400, "'temperature' does not support 0 with this model. Only the default (1) is supported.")
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server) == 0
    extra = 2 if parameter == "both" else 1
    assert server.counts == files.everything() | {("1", 0): 1 + extra}
    printed = capsys.readouterr().err
    last = server.calls[-1].body
    if parameter != "temperature":
        assert ("max_tokens" in last, last["max_completion_tokens"]) == (False, 1024)
        assert printed.count("judge takes no max_tokens; max_completion_tokens is sent instead") == 1
    if parameter != "max_tokens":
        assert "temperature" not in last
        assert printed.count("judge takes no temperature; its own temperature holds") == 1
    temperature = 0 if parameter == "max_tokens" else None
    assert {row[f"call_QUERY{order}"]["temperature"] for row in rows_of(files.output) for order in (0, 1)} == {
        temperature
    }
    assert scores_of(files.output).unfixed["count"] == (6 if temperature is None else 0)


@pytest.mark.parametrize("name", ["temperature", "max_tokens"])
def test_a_parameter_that_is_refused_as_pydantic_does(name, files):
    def behave(call):
        if name in call.body:
            detail = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
            return Answer(422, {"detail": [detail]})
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server) == 0
    assert server.counts == files.everything() | {("1", 0): 2}


ECHO = "question 1: is temperature supported? Unknown, not supported, says max_tokens"


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [{"loc": ["body", "messages"], "msg": "Input is not permitted", "input": ECHO}]},
        {"detail": [{"loc": ["body", "messages", 0, "content"], "msg": f"Value not supported: {ECHO}"}]},
        {"error": {"message": f"Content is not supported: {ECHO}", "param": "messages"}},
        {"error": {"message": "cannot be answered", "request": ECHO}},
        {"error": ECHO},
        ECHO,
        {"message": None, "echo": ECHO},
        [ECHO],
    ],
    ids=range(8),
)
def test_an_error_that_repeats_the_question_says_nothing_of_parameters(body, files, capsys):
    with ChatServer(lambda call: Answer(400, body) if call.question == "1" else eight_nine(call)) as server:
        assert files.judge(server) == 1
    assert server.counts == files.everything()
    assert all((call.body["temperature"], call.body["max_tokens"]) == (0, 1024) for call in server.calls)
    assert "takes no" not in capsys.readouterr().err


def test_a_question_that_is_too_long_changes_nothing_for_the_others(files, capsys):
    def behave(call):
        if call.question == "1":
            return fails(400, "'max_tokens' is too large: 1024. The maximum context length is 2048 tokens.")
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server, "--concurrency", "1") == 1
    assert server.counts == files.everything()
    assert all(call.body["max_tokens"] == 1024 for call in server.calls)
    assert "2 of 6 calls failed; 4 replies are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        "<html>a page</html>",
        {"choices": []},
        {"error": {"message": "none"}},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 3}}]},
        [1],
        {"choices": 5},
        "",
    ],
    ids=str,
)
def test_something_else_than_a_chat_completion(body, files, capsys):
    with ChatServer(lambda call: Answer(200, body)) as server:
        assert files.judge(server) == 1
    assert len(server.calls) == 3
    assert "answered with something else than a chat completion" in capsys.readouterr().err


def test_the_traceback_of_debug_holds_no_key(files):
    with ChatServer(lambda call: fails(401, f"Incorrect API key provided: {KEY}")) as server:
        command = [*DIVERSEEVOL, *files.arguments(server.url, "--debug")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in ended.stderr
    assert "Incorrect API key provided: [key]" in ended.stderr
    assert KEY not in ended.stderr
    assert repr(KEY)[1:-1] not in ended.stderr


def test_a_key_that_is_echoed_in_replies(files, capsys):
    with ChatServer(lambda call: says(f"8 9\nyour key is {KEY}")) as server:
        assert files.judge(server) == 0
    assert rows_of(files.output)[0]["response_QUERY0"] == "8 9\nyour key is [key]"
    assert_nowhere(KEY, files.folder, capsys.readouterr())


def test_a_short_key_is_a_word(files, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "EMPTY")
    with ChatServer(lambda call: says("8 9\nEMPTY words")) as server:
        assert files.judge(server) == 0
    assert rows_of(files.output)[0]["response_QUERY0"] == "8 9\nEMPTY words"


@pytest.mark.parametrize(
    "body", [{"detail": [KEY]}, f"<p>{KEY}</p>", {"error": {"message": {"is": KEY}}}, {"error": KEY}]
)
def test_a_key_that_is_echoed_in_an_unusual_error(body, files, capsys):
    with ChatServer(lambda call: Answer(401, body)) as server:
        assert files.judge(server) == 2
    printed = capsys.readouterr()
    assert "[key]" in printed.err
    assert_nowhere(KEY, files.folder, printed)


@pytest.mark.parametrize("value", [None, "", "  ", "sk-two words", "sk-ключ", "sk-line\nbreak"])
def test_a_key_that_is_none(value, files, capsys, monkeypatch):
    if value is None:
        monkeypatch.delenv("JUDGE_KEY")
    else:
        monkeypatch.setenv("JUDGE_KEY", value)
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 2
    assert not server.calls
    error = capsys.readouterr().err
    assert ("JUDGE_KEY" in error) == bool((value or "").strip())
    assert "--api-key-env: the va" in error
    assert not (value or "").strip() or value not in error
    assert not files.partial.exists()


def test_without_the_openai_package(files, tmp_path):
    code = (
        "import sys; sys.modules['openai'] = None; from diverseevol_fast.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *files.arguments("http://127.0.0.1:9/v1")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 2
    assert "needs the openai package; pip install 'openai>=3'" in ended.stderr
    assert subprocess.run([*command, "--dry-run"], capture_output=True, check=False).returncode == 0
