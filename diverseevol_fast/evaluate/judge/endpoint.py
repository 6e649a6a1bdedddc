"""An OpenAI-compatible endpoint as the judge: one call, what it may not be asked, and its failures without the key."""

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies

from ..._common.errors import InputError
from ..._common.messages import shown
from .redaction import SECRET_LENGTH, proxy_secrets, spellings
from .replies import Reply, is_count

log = logging.getLogger("diverseevol_fast")

CONNECT_SECONDS = 10.0  # at most, whatever a reply may take
PERMANENT = {  # HTTP status: what it means for every further call
    401: "the key in {key_env} was not accepted",
    402: "the account of the key in {key_env} has to be paid for",
    405: "this address takes no chat completions; the base URL often ends in /v1",
}
LIKELY = {  # HTTP status: what it mostly means; a single question may be turned down so, too
    403: "perhaps the key in {key_env} may not do this",
    404: "perhaps there is no such address or model: {model}; the base URL often ends in /v1",
}
PASSING = (408, 409, 429)  # HTTP status below 500 that says "later", not "not this"
MESSAGE = 160  # characters of what an endpoint says, in a message
REFUSED_PARAMETER = re.compile(
    r"unsupported|not supported|n't support|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed",
    re.IGNORECASE,
)


class CallError(Exception):
    """A call failed, after all its retries. The text holds no key.

    `kind`: "permanent" when every further call would fail alike; "refused" when the endpoint turned this call down;
    "busy" when it took none for now (no connection, too many requests, an error of its own); "silent" when nothing of
    use came back (no reply in time, not a chat completion).
    """

    def __init__(self, sentence: str, kind: Literal["permanent", "refused", "busy", "silent"]):
        super().__init__(sentence)
        self.kind = kind


def check_url(base_url: str) -> None:
    """A base URL can be used, and shown to people and in files: it holds no secret.

    Raises:
        InputError: it is no http(s) URL, holds a user name, a password or a query, or ends in /chat/completions. Does
            not repeat it.
    """
    parts = _parts_of(base_url)
    if parts is None:
        raise InputError("--base-url: not a URL; expected such as https://api.openai.com/v1")
    if "@" in parts.netloc:
        raise InputError(
            "--base-url: expected no user name and password in it; name the variable with the key by --api-key-env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("--base-url: expected an http or https URL such as https://api.openai.com/v1")
    if "?" in base_url or "#" in base_url:
        raise InputError("--base-url: expected no query or fragment (?... or #...) in it")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InputError("--base-url: expected the URL without /chat/completions, which is added")


def _parts_of(url: str) -> SplitResult | None:
    """None where it is no URL: the library's error says a part of it, which may be of a password."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port  # both are parsed only when asked for
        host.encode("idna")
    except ValueError:
        return None
    return parts if re.fullmatch(r"[!-~]*", url) else None


def key_in(variable: str) -> str:
    """The key that an environment variable holds; white space at its ends is taken off.

    Raises:
        InputError: it is not set, is empty, holds what no key can, or has no name. Never repeats the value, nor a name
            that nothing goes by: it may be the key itself.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise InputError("--api-key-env: expected the NAME of an environment variable (letters, digits, _), not a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            "--api-key-env: the variable that it names is not set; give the NAME of the environment variable that "
            "holds the endpoint's key"
        )
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
            timeout: seconds without a byte of the reply after which a try has failed.
            retries: of one request; the pause doubles from half a second to 8, or is what the endpoint asks for (up to
                2 minutes; a call that is to wait longer has failed).
            max_tokens: of a reply.

        Raises:
            InputError: the openai package is missing, or the key is; the key is in the URL, which is shown and stored;
                the environment's proxies cannot be used.
        """
        try:
            import openai
        except ImportError as error:
            raise InputError("judge: needs the openai package; pip install 'openai>=3'") from error
        key = key_in(key_env)
        self.url, self.model, self.key_env = base_url, model, key_env
        self._openai, self._key, self._is_secret = openai, spellings(key), len(key) >= SECRET_LENGTH
        self._proxies = [spellings(secret) for secret in proxy_secrets(getproxies().values())]
        if self._is_secret and self._key.search(base_url):
            raise InputError(f"--base-url: expected no key in it, but it holds that of {key_env}; it is sent by itself")
        self._limits: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}  # replaced whole, never changed
        self._lock = threading.Lock()
        self._retries = retries
        limits = openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        self._client = _client(openai, api_key=key, base_url=base_url, timeout=limits, max_retries=retries)

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
            return self._reply(body, limits.get("temperature"))

    def ask_first(self, prompt: str) -> Reply:
        """As ask, of an endpoint that may never answer: a try that hangs is the last one. Not beside other calls."""
        try:
            return self.ask_once(prompt)
        except CallError as error:
            if error.kind != "busy" or not self._retries:
                raise
        return self._with_retries(self._retries - 1, prompt)

    def ask_once(self, prompt: str) -> Reply:
        """As ask, in a single try. Not beside other calls."""
        return self._with_retries(0, prompt)

    def _with_retries(self, retries: int, prompt: str) -> Reply:
        self._client.max_retries = retries
        try:
            return self.ask(prompt)
        finally:
            self._client.max_retries = self._retries

    def _without_refused(self, limits: dict[str, Any], error: Any) -> bool:
        """Send the parameter that the judge does not take no more. False: that was not the matter."""
        if error.status_code not in (400, 422):
            return False
        name = next((name for place, told in _complaints(error.body) if (name := _refused(limits, place, told))), None)
        if name is None:
            return False
        with self._lock:
            if self._limits is limits:
                self._limits = {other: value for other, value in limits.items() if other != name}
                if name == "max_tokens":
                    self._limits["max_completion_tokens"] = limits[name]
                log.warning("judge: %s takes no %s; %s", shown(self.model), name, {
                    "temperature": "its own temperature holds, and replies may differ from one time to the next",
                    "max_tokens": "max_completion_tokens is sent instead",
                    "max_completion_tokens": "its replies have no limit",
                }[name])  # fmt: skip
        return True

    def _failure_of_status(self, error: Any) -> CallError:
        status = error.status_code
        if 300 <= status < 400:
            return CallError(f"{shown(self.url, 100)}: {self._redirection(status, error.response)}", "permanent")
        message = self._message(error.body, error.response.text)
        meaning = PERMANENT.get(status) or LIKELY.get(status) or ""
        if error.code == "insufficient_quota":
            meaning = "nothing is left of the quota"
        told = f", {meaning.format(key_env=self.key_env, model=shown(self.model))}" if meaning else ""
        sentence = f"{shown(self.url, 100)}: HTTP {status}{told}: {message}"
        if status in PERMANENT or error.code == "insufficient_quota":
            return CallError(sentence, "permanent")
        return CallError(sentence, "busy" if status in PASSING or status >= 500 else "refused")

    def _redirection(self, status: int, response: Any) -> str:
        """Where a reply points to that is not followed: questions and answers would go to whom the user did not name.

        Neither the target's user name nor its query is told.
        """
        try:
            parts = _parts_of(urljoin(str(response.url), response.headers.get("location", "")))
        except ValueError:
            parts = None
        if parts is None:
            target = "somewhere else"
        else:
            path = parts.path.removesuffix("/chat/completions")
            target = self._redacted(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}", 120)
        return (
            f"HTTP {status}, a redirection to {target}; redirections are not followed, nothing was sent there; if that "
            "is where the judge is, give it as --base-url"
        )

    def _failure_of_connection(self, error: Exception) -> CallError:
        if isinstance(error, self._openai.APITimeoutError):
            told = f"no reply in time (--timeout: seconds without a byte; to connect, {CONNECT_SECONDS:g} at most)"
            return CallError(f"{shown(self.url, 100)}: {told}", "silent")
        if isinstance(error, self._openai.APIConnectionError):
            told = self._redacted(str(error.__cause__ or error))
            return CallError(f"{shown(self.url, 100)}: no connection: {told}", "busy")
        return CallError(f"{shown(self.url, 100)}: {self._redacted(f'{type(error).__name__}: {error}')}", "silent")

    def _reply(self, body: str, temperature: float | None) -> Reply:
        """The parts of a chat completion that was asked for at this temperature."""
        try:
            completion = json.loads(body)
            choice = completion["choices"][0]
            text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise CallError(
                f"{shown(self.url, 100)}: answered with something else than a chat completion (the base URL often ends "
                f"in /v1): {self._message(None, body)}",
                "silent",
            )
        return Reply(
            text=self._kept(text),
            endpoint=self.url,
            served_by=self._name(completion.get("model")),
            finish_reason=self._name(choice.get("finish_reason")),
            tokens=_tokens(completion.get("usage")),
            temperature=temperature,
        )

    def _name(self, value: Any) -> str | None:
        """A name that the endpoint gives, cut; None where it gives none."""
        return shown(self._kept(value), MESSAGE) if isinstance(value, str) and value else None

    def _message(self, body: Any, text: str) -> str:
        """What an error's body says, in at most MESSAGE characters."""
        told = body.get("message") if isinstance(body, dict) else None
        return self._redacted(told if isinstance(told, str) else text)

    def _kept(self, text: str) -> str:
        """Text of a reply without the key; half a surrogate pair, which no file can hold, is a question mark."""
        text = text.encode(errors="replace").decode()
        return self._without_secrets(text) if self._is_secret else text

    def _redacted(self, text: str, limit: int = MESSAGE) -> str:
        """One printable line of at most `limit` characters without the key."""
        return shown(" ".join(self._without_secrets(text).split()), limit)

    def _without_secrets(self, text: str) -> str:
        for proxy in self._proxies:
            text = proxy.sub("[proxy]", text)
        return self._key.sub("[key]", text)


def _client(openai: Any, **options: Any) -> Any:
    """The library's client, which sends the key it is given and nothing else of ours.

    Raises:
        InputError: the environment's proxies or certificates cannot be used. Does not repeat them.
    """
    try:
        with _without_openai_variables():
            # The library's own client follows redirections.
            return openai.OpenAI(http_client=openai.DefaultHttpxClient(follow_redirects=False), **options)
    except ImportError:
        reason = "a SOCKS proxy needs the socksio package"
    except Exception as error:  # noqa: BLE001 (of several libraries; its text may hold a part of a proxy's password)
        reason = type(error).__name__
    raise InputError(
        "the settings of the environment (the proxies in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, the certificates in "
        f"SSL_CERT_FILE) cannot be used: {reason}; correct them, or unset them"
    )


@contextmanager
def _without_openai_variables() -> Iterator[None]:
    """What they hold (headers, an organization, another key) the library would send to any endpoint."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("OPENAI_")}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _complaints(body: Any) -> Iterator[tuple[str | None, str]]:
    """What an error's body says against parameters: of which, where it names one apart, and the message.

    Nothing else is read: an error may repeat the whole request, whose answers may speak of parameters.
    """
    if not isinstance(body, dict):
        return
    if isinstance(body.get("message"), str):
        yield body["param"] if isinstance(body.get("param"), str) else None, body["message"]
    for detail in body["detail"] if isinstance(body.get("detail"), list) else []:  # pydantic's
        if isinstance(detail, dict) and isinstance(detail.get("loc"), list) and isinstance(detail.get("msg"), str):
            yield next((part for part in detail["loc"][-1:] if isinstance(part, str)), ""), detail["msg"]


def _refused(limits: dict[str, Any], place: str | None, told: str) -> str | None:
    """The parameter that a complaint is about; None where it is about something else."""
    if not REFUSED_PARAMETER.search(told):
        return None
    return next((name for name in limits if re.search(rf"\b{name}\b", told if place is None else place)), None)


def _tokens(usage: Any) -> tuple[int, int] | None:
    """Of the prompt and of the reply, where the endpoint counts them."""
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return counts if all(map(is_count, counts)) else None
