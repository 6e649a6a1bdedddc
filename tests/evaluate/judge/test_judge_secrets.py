"""The key goes to the endpoint and nowhere else, and nothing else of the environment goes there."""

import base64
import os
import re
import subprocess
import time

import pytest
from support.chat_server import Answer, ChatServer, says
from support.judge_fixtures import KEY, assert_nowhere, eight_nine, rows_of
from support.runs import DIVERSEEVOL

from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.judge.redaction import spellings

pytestmark = pytest.mark.usefixtures("judge_environment")

NOBODY = "http://127.0.0.1:9/v1"


def in_debug(files, *more):
    """What the command writes to stderr with --debug, tracebacks and all."""
    command = [*DIVERSEEVOL, *files.arguments(NOBODY, "--debug", *more)]
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
    assert "base_url: not a URL" in error
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
        r"sk-abc/def+ghi",
        r"sk-abc\/def\u002bghi",
        r"sk-abc\/def\u002Bghi",
        r"sk-abc\\/def\\u002bghi",
        r"\u0073k-abc/def+ghi",
        r"sk-abc%2Fdef%2bghi",
        "sk-abc%252Fdef%25252bghi",
        r"sk-abc\x2fdef+ghi",
        "sk&#45;abc&#x2F;def&plus;ghi",
        "sk-abc&sol;def&amp;#43;ghi",
        "sk-abc&#047def&#x00002Bghi",
        "c2stYWJjL2RlZitnaGk=",
        "c2stYWJjL2Rl\\nZitnaGk=",
        *(
            base64.b64encode(text.encode()).decode()
            for text in ("Bearer sk-abc/def+ghi", "u:sk-abc/def+ghi", "me:sk-abc/def+ghi and more")
        ),
    ],
)
def test_a_key_that_is_echoed_in_another_spelling(written, files, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-abc/def+ghi")
    with ChatServer(lambda call: Answer(401, f'{{"oh": "no {written} here"}}')) as server:
        assert files.judge(server) == 2
        printed = capsys.readouterr()
        assert re.search(r'"no \S{0,24}\[key\]\S{0,24} here"', printed.err)
        assert "ghi" not in printed.err
        server.behave = lambda call: says(f"8 9\nyour key is {written}")
        assert files.judge(server) == 0
    saved = rows_of(files.output)[0]["response_QUERY0"]
    assert re.fullmatch(r"8 9\nyour key is \S{0,24}\[key\]\S{0,24}", saved)
    assert "ghi" not in saved


@pytest.mark.parametrize("written", ["me:pass/word+9", "me:pass%2Fword%2B9", "pass/word+9", "bWU6cGFzcy93b3JkKzk="])
def test_a_proxys_authorisation_that_is_echoed(written, files, capsys, monkeypatch):
    with ChatServer(lambda call: Answer(401, f'{{"oh": "Proxy-Authorization: Basic {written}"}}')) as server:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HTTPS_PROXY", "http://me:pass%2Fword%2B9@127.0.0.1:9")
        assert files.judge(server) == 2
        printed = capsys.readouterr()
        assert "Basic [proxy]" in printed.err
        server.behave = lambda call: says(f"8 9\nBasic {written}")
        assert files.judge(server) == 0
    assert rows_of(files.output)[0]["response_QUERY0"].startswith("8 9\nBasic [proxy]")
    assert_nowhere(written, files.folder, printed)


def test_a_key_in_a_long_line_of_backslashes_is_found_at_once():
    text = "\\" * 300_000 + "%25" * 100_000 + "&amp;" * 100_000
    began = time.perf_counter()
    assert spellings("sk-abc/def+ghi").sub("[key]", text + "sk-abc/def+ghi") == text + "[key]"
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirections_are_not_followed(status, files, capsys):
    with ChatServer(eight_nine) as other:
        target = f"{other.url}/chat/completions".replace("http://", "http://user:secret@") + f"?key={KEY}"
        with ChatServer(lambda call: Answer(status, "gone", {"location": target})) as server:
            assert files.judge(server) == 2
    assert (len(server.calls), len(other.calls)) == (1, 0)
    printed = capsys.readouterr()
    assert f"{server.url}: HTTP {status}, a redirection to {other.url}; redirections are not followed" in printed.err
    assert "give it as base_url" in printed.err
    assert "secret" not in printed.err
    assert_nowhere(KEY, files.folder, printed)
    assert not files.output.exists()


@pytest.mark.parametrize("location", [None, "//[", "http://\x1b[31m/", "/v2/chat/completions"])
def test_redirections_to_nowhere(location, files, capsys):
    headers = {} if location is None else {"location": location}
    with ChatServer(lambda call: Answer(307, "gone", headers)) as server:
        assert files.judge(server, "--retries", "0") in (1, 2)
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "location" in error or "a redirection to " in error


def test_nothing_else_of_the_environment_is_sent(files, monkeypatch):
    others = {
        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer other-secret\nX-Team: other-secret",
        "OPENAI_ORG_ID": "other-secret",
        "OPENAI_PROJECT_ID": "other-secret",
        "OPENAI_API_KEY": "other-secret",
        "OPENAI_ADMIN_KEY": "other-secret",
        "OPENAI_BASE_URL": NOBODY,
    }
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
