"""An OpenAI-compatible endpoint as the judge: one call, what it may not be asked, and its failures without the key."""

import json
import logging
import os
import re
import threading
from typing import Any, Literal
from urllib.parse import urlsplit

from ...errors import InputError
from .replies import Reply

log = logging.getLogger("diverseevol_fast")

CONNECT_SECONDS = 10.0  # at most, whatever a reply may take
PERMANENT = {  # HTTP status: what it means for every further call
    401: "the key in {key_env} was not accepted",
    402: "the account of the key in {key_env} has to be paid for",
    403: "the key in {key_env} may not do this",
    404: "there is no such address or model: {model}; the base URL often ends in /v1",
    405: "this address takes no chat completions; the base URL often ends in /v1",
}
SECRET_LENGTH = 8  # shorter keys ("none", "EMPTY") are a local server's; a reply may hold such words
REFUSED_PARAMETER = re.compile(
    r"unsupported|not supported|n't support|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed",
    re.IGNORECASE,
)


class CallError(Exception):
    """A call failed, after all its retries. The text holds no key.

    `kind`: "permanent" when every further call would fail alike, "silent" when nothing of use came back (no connection,
    no reply in time, not a chat completion), "refused" when this one call was turned down.
    """

    def __init__(self, sentence: str, kind: Literal["permanent", "silent", "refused"]):
        super().__init__(sentence)
        self.kind = kind


def check_url(base_url: str) -> None:
    """A base URL can be used, and shown to people and in files: it holds no secret.

    Raises:
        InputError: it is no http(s) URL, holds a user name, a password or a query, or ends in /chat/completions. Does
            not repeat it.
    """
    try:
        if not re.fullmatch(r"[!-~]*", base_url):
            raise ValueError("white space, or not ASCII")
        parts = urlsplit(base_url)
        host, _port = parts.hostname or "", parts.port  # both are parsed only when asked for
        host.encode("idna")
    except ValueError as error:
        raise InputError("--base-url: not a URL; expected such as https://api.openai.com/v1") from error
    if "@" in parts.netloc:
        raise InputError(
            "--base-url: expected no user name and password in it; name the variable with the key by --api-key-env"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("--base-url: expected an http or https URL such as https://api.openai.com/v1")
    if "?" in base_url or "#" in base_url:
        raise InputError("--base-url: expected no query or fragment (?... or #...) in it")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InputError("--base-url: expected the URL without /chat/completions, which is added")


def key_in(variable: str) -> str:
    """The key that an environment variable holds; white space at its ends is taken off.

    Raises:
        InputError: it is not set, is empty, holds what no key can, or has no name. Never repeats the value.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):  # perhaps the key itself: not repeated
        raise InputError("--api-key-env: expected the NAME of an environment variable (letters, digits, _), not a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"--api-key-env: the environment variable {variable} is not set; put the endpoint's key there")
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"--api-key-env: the value of {variable} is no key: expected printable ASCII without spaces")
    return key


class Endpoint:
    """The judge. `ask` may be called from several threads."""

    def __init__(self, base_url: str, model: str, key_env: str, timeout: float, retries: int, max_tokens: int):
        """
        Args:
            base_url: one that check_url lets pass.
            model: the judge's name there.
            key_env: the environment variable that holds the key.
            timeout: seconds for one request.
            retries: of one request; the pause doubles from half a second to 8, or is what the endpoint asks for (up to
                2 minutes; a call that is to wait longer has failed).
            max_tokens: of a reply.

        Raises:
            InputError: the openai package is missing, or the key is.
        """
        try:
            import openai
        except ImportError as error:
            raise InputError("judge: needs the openai package; pip install 'diverseevol_fast[evaluate]'") from error
        self.url, self.model, self.key_env = base_url, model, key_env
        self._openai, self._key = openai, key_in(key_env)
        self._limits: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}  # replaced whole, never changed
        self._lock = threading.Lock()
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=base_url,
            timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            max_retries=retries,
        )

    def ask(self, prompt: str) -> Reply:
        """The judge's reply.

        Raises:
            CallError: none came, after all retries.
        """
        while True:
            limits = self._limits
            failure = None
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], **limits
                )
                body = raw.http_response.text
            except self._openai.APIStatusError as error:
                if self._without_refused(limits, error):
                    continue
                failure = self._failure_of_status(error)
            except self._openai.OpenAIError as error:
                failure = self._failure_of_connection(error)
            if failure:  # raised here: a traceback must not show the library's error, which may hold the key
                raise failure
            return self._reply(body)

    def _without_refused(self, limits: dict[str, Any], error: Any) -> bool:
        """Send the parameter that the judge does not take no more. False: that was not the matter."""
        message = self._message(error.body, error.response.text)
        if error.status_code not in (400, 422) or not REFUSED_PARAMETER.search(message):
            return False
        name = next((name for name in limits if name == error.param), None)
        name = name or next((name for name in limits if re.search(rf"\b{name}\b", message)), None)
        if name is None:
            return False
        with self._lock:
            if self._limits is limits:
                self._limits = {other: value for other, value in limits.items() if other != name}
                if name == "max_tokens":
                    self._limits["max_completion_tokens"] = limits[name]
                log.warning("judge: %s takes no %s; %s", self.model, name, {
                    "temperature": "its own temperature holds, and replies may differ from one time to the next",
                    "max_tokens": "max_completion_tokens is sent instead",
                    "max_completion_tokens": "its replies have no limit",
                }[name])  # fmt: skip
        return True

    def _failure_of_status(self, error: Any) -> CallError:
        message = self._message(error.body, error.response.text)
        status = error.status_code
        if status in PERMANENT:
            meaning = PERMANENT[status].format(key_env=self.key_env, model=self.model)
            return CallError(f"{self.url}: HTTP {status}, {meaning}: {message}", "permanent")
        if error.code == "insufficient_quota":
            return CallError(f"{self.url}: HTTP {status}, nothing is left of the quota: {message}", "permanent")
        return CallError(f"{self.url}: HTTP {status}: {message}", "refused")

    def _failure_of_connection(self, error: Exception) -> CallError:
        if isinstance(error, self._openai.APITimeoutError):
            sentence = f"no reply in time (--timeout; to connect, {CONNECT_SECONDS:g} s at most)"
        elif isinstance(error, self._openai.APIConnectionError):
            sentence = f"no connection: {self._redacted(str(error.__cause__ or error))}"
        else:
            sentence = self._redacted(f"{type(error).__name__}: {error}")
        return CallError(f"{self.url}: {sentence}", "silent")

    def _reply(self, body: str) -> Reply:
        """The parts of a chat completion."""
        try:
            completion = json.loads(body)
            choice = completion["choices"][0]
            text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        except (ValueError, LookupError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise CallError(
                f"{self.url}: answered with something else than a chat completion (the base URL often ends in /v1): "
                f"{self._message(None, body)}",
                "silent",
            )
        return Reply(
            text=self._kept(text),
            endpoint=self.url,
            served_by=self._kept(str(completion.get("model") or "")) or None,
            finish_reason=self._kept(str(choice.get("finish_reason") or "")) or None,
            tokens=_tokens(completion.get("usage")),
        )

    def _message(self, body: Any, text: str) -> str:
        """What an error's body says, in at most 300 characters."""
        told = body.get("message") if isinstance(body, dict) else None
        return self._redacted(told if isinstance(told, str) else text)

    def _kept(self, text: str) -> str:
        """Text of a reply without the key; half a surrogate pair, which no file can hold, is a question mark."""
        text = text.encode(errors="replace").decode()
        return self._without_key(text) if len(self._key) >= SECRET_LENGTH else text

    def _redacted(self, text: str) -> str:
        """One line of at most 300 characters without the key."""
        return " ".join(self._without_key(text).split())[:300]

    def _without_key(self, text: str) -> str:
        """The key is taken out as it is, and as JSON writes it."""
        return text.replace(self._key, "[key]").replace(json.dumps(self._key)[1:-1], "[key]")


def _tokens(usage: Any) -> tuple[int, int] | None:
    """Of the prompt and of the reply, where the endpoint counts them."""
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return counts if all(type(count) is int for count in counts) else None
