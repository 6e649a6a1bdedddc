"""The key goes to the endpoint and nowhere else, and nothing else of the environment goes there."""

import os
import re
import subprocess
import sys

import pytest
from chat_server import Answer, ChatServer, says
from judged import KEY, assert_nowhere, eight_nine, rows_of

from diverseevol_fast.cli import main

pytestmark = pytest.mark.usefixtures("judge_environment")

NOBODY = "http://127.0.0.1:9/v1"


def in_debug(files, *more):
    """What the command writes to stderr with --debug, tracebacks and all."""
    command = [sys.executable, "-m", "diverseevol_fast", *files.arguments(NOBODY, "--debug", *more)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert "InputError" in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("name", ["sk-mistaken-0123456789", "hf_AbCdEf0123456789"])
def test_a_key_in_place_of_its_variable_is_not_repeated(name, files, capsys):
    assert main(files.arguments(NOBODY, "--api-key-env", name)) == 2
    error = capsys.readouterr().err
    assert "the NAME of an environment variable" in error or "the NAME of the environment variable" in error
    assert name not in error
    assert name not in in_debug(files, "--api-key-env", name)


def test_there_is_no_option_for_the_key(files, capsys):
    arguments = ["--api-key" if word == "--api-key-env" else word for word in files.arguments(NOBODY)]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "required: --api-key-env" in capsys.readouterr().err


def test_a_password_in_a_url_that_is_none_is_not_repeated(files):
    error = in_debug(files, "--base-url", "https://user:sec/ret@host/v1")
    assert "--base-url: not a URL" in error
    assert not re.search(r"'sec'|sec/ret", error)


@pytest.mark.parametrize("written", ["sk-abc/def+ghi", "sk-abc/def%2Bghi", "sk-abc%2fdef%2bghi"])
def test_the_key_in_the_url(written, files, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-abc/def+ghi")
    assert main(files.arguments(NOBODY, "--base-url", f"http://127.0.0.1:9/{written}/v1")) == 2
    printed = capsys.readouterr()
    assert "--base-url: expected no key in it, but it holds that of JUDGE_KEY" in printed.err
    assert_nowhere(written, files.folder, printed)


@pytest.mark.parametrize(
    "written",
    [
        r"sk-abc/def+ghi", r"sk-abc\/def\u002bghi", r"sk-abc\/def\u002Bghi", r"sk-abc\\/def\\u002bghi",
        r"\u0073k-abc/def+ghi", r"sk-abc%2Fdef%2bghi",
    ],
)  # fmt: skip
def test_a_key_that_is_echoed_in_another_spelling(written, files, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-abc/def+ghi")
    with ChatServer(lambda call: Answer(401, f'{{"oh": "no {written} here"}}')) as server:
        assert files.judge(server) == 2
        printed = capsys.readouterr()
        assert '"no [key] here"' in printed.err
        assert "ghi" not in printed.err
        server.behave = lambda call: says(f"8 9\nyour key is {written}")
        assert files.judge(server) == 0
    assert rows_of(files.output)[0]["response_QUERY0"] == "8 9\nyour key is [key]"


def test_nothing_else_of_the_environment_is_sent(files, monkeypatch):
    others = {
        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer other-secret\nX-Team: other-secret",
        "OPENAI_ORG_ID": "other-secret", "OPENAI_PROJECT_ID": "other-secret", "OPENAI_API_KEY": "other-secret",
        "OPENAI_ADMIN_KEY": "other-secret", "OPENAI_BASE_URL": NOBODY,
    }  # fmt: skip
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert server.counts == files.everything()
    for call in server.calls:
        assert call.headers["authorization"] == f"Bearer {KEY}"
        assert "other-secret" not in str(call.headers)
    assert {name: os.environ[name] for name in others} == others


def test_the_key_may_be_in_a_variable_of_the_library(files, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(eight_nine) as server:
        assert files.judge(server, "--api-key-env", "OPENAI_API_KEY") == 0
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "http://user:sec/ret@host:80", "cannot be used: InvalidURL"),
        ("HTTPS_PROXY", "ftp://user:sec@host", "cannot be used: ValueError"),
        ("ALL_PROXY", "socks5://user:sec@host:1", "cannot be used: a SOCKS proxy needs the socksio package"),
        ("SSL_CERT_FILE", "/nowhere/sec", "cannot be used: FileNotFoundError"),
    ],
)
def test_settings_of_the_environment_that_cannot_be_used(variable, value, words, files, capsys, monkeypatch):
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    assert main(files.arguments(NOBODY)) == 2
    assert words in capsys.readouterr().err
    error = in_debug(files)
    assert words in error
    assert not re.search(r"'sec'|sec/ret|:sec@|/nowhere/sec", error)
    assert not files.partial.exists()
