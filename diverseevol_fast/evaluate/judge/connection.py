"""The connection to an endpoint: checks of the base URL and the key, and an openai client that sends nothing else."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..._common.errors import InputError

CONNECT_SECONDS = 10.0  # limit of the time to connect; `timeout` may be shorter


def check_url(base_url: str) -> None:
    """
    Raises:
        InputError: `base_url` is not an http(s) URL, ends in /chat/completions, or has a user name, a password or a
            query: it is shown and written to files. The message does not repeat it.
    """
    try:
        parts = urlsplit(base_url)
        host, _port = parts.hostname or "", parts.port  # urlsplit parses both on access
        host.encode("idna")
        is_url = re.fullmatch(r"[!-~]*", base_url)
    except ValueError:
        parts = is_url = None
    if parts is None or not is_url:  # outside of `except`: the library's error may repeat a part of a password
        raise InputError("base_url: not a URL; expected such as https://api.openai.com/v1")
    if "@" in parts.netloc:
        raise InputError(
            "base_url: expected no user name and password in it; name the variable with the key as api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("base_url: expected an http or https URL such as https://api.openai.com/v1")
    if "?" in base_url or "#" in base_url:
        raise InputError("base_url: expected no query or fragment (?... or #...) in it")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InputError("base_url: expected the URL without /chat/completions, which is added")


def key_in(variable: str) -> str:
    """The key in an environment variable, without white space at its ends.

    Raises:
        InputError: the variable is not set or is empty, or its value cannot be a key. The message does not repeat the
            value, nor the name of a variable that is not set: it may be the key itself.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise InputError("api_key_env: expected the NAME of an environment variable (letters, digits, _), not a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            "api_key_env: the variable that it names is not set; give the NAME of the environment variable that holds "
            "the endpoint's key"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"api_key_env: the value of {variable} is no key: expected printable ASCII without spaces")
    return key


def connect(openai: Any, key: str, base_url: str, timeout: float) -> Any:
    """An openai.OpenAI client that does not follow redirections and takes nothing from OPENAI_* variables.

    Raises:
        InputError: the proxies or certificates of the environment cannot be used. The message does not repeat them.
    """
    limits = openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
    try:
        with _without_openai_variables():
            http_client = openai.DefaultHttpxClient(follow_redirects=False)
            return openai.OpenAI(api_key=key, base_url=base_url, timeout=limits, http_client=http_client)
    except ImportError:
        reason = "a SOCKS proxy needs the socksio package"
    except Exception as error:  # noqa: BLE001 (libraries raise many kinds; the text may hold a part of a password)
        reason = type(error).__name__
    raise InputError(
        "the settings of the environment (the proxies in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, the certificates in "
        f"SSL_CERT_FILE) cannot be used: {reason}; correct them, or unset them"
    )


@contextmanager
def _without_openai_variables() -> Iterator[None]:
    """The library would send their values (headers, an organization, another key) to any endpoint."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("OPENAI_")}
    for name in variables:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(variables)
