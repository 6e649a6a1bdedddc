"""An OpenAI-compatible endpoint as the judge: a request, its reply, and failures without the key."""

import json
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any, Literal
from urllib.request import getproxies

from ..._common.errors import InputError
from ..._common.messages import shown
from .connection import CONNECT_SECONDS, connect, key_in
from .redaction import Redactor
from .replies import Reply, is_count

log = logging.getLogger("diverseevol_fast")

PERMANENT = {  # HTTP status: its meaning, which holds for every further request
    401: "the key in {key_env} was not accepted",
    402: "the account of the key in {key_env} has to be paid for",
    405: "this address takes no chat completions; the base URL often ends in /v1",
}
LIKELY = {  # HTTP status: its usual meaning; some endpoints also refuse a single question with it
    403: "perhaps the key in {key_env} may not do this",
    404: "perhaps there is no such address or model: {model}; the base URL often ends in /v1",
}
TEMPORARY = (408, 409, 429)  # HTTP status below 500 after which the openai client tries again
INSTEAD = {  # parameter: what happens if the judge does not accept it
    "temperature": "its own temperature holds, and replies may differ from one time to the next",
    "max_tokens": "max_completion_tokens is sent instead",
    "max_completion_tokens": "its replies have no limit",
}
REFUSED_PARAMETER = re.compile(
    r"unsupported|not supported|n't support|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed",
    re.IGNORECASE,
)

Kind = Literal["permanent", "refused", "busy", "silent"]


class CallError(Exception):
    """A request failed, after all its retries. The text does not hold the key.

    `kind`: "permanent" if every further request would fail in the same way; "refused" if the endpoint refused this one;
    "busy" if it accepted none for now (no connection, too many requests, an internal error); "silent" if no chat
    completion came in time.
    """

    def __init__(self, sentence: str, kind: Kind):
        super().__init__(sentence)
        self.kind = kind


class Endpoint:
    """The judge. Several threads may call `ask` at once."""

    def __init__(self, base_url: str, model: str, key_env: str, timeout: float, retries: int, max_tokens: int):
        """
        Args:
            base_url: a URL that passes check_url.
            model: the judge's name there.
            key_env: the environment variable that holds the key.
            timeout: seconds without a byte of the reply after which a try has failed.
            retries: of one request. The openai client waits between them: half a second, doubled up to 8, or as long
                as Retry-After says; a request that should wait more than 2 minutes has failed.
            max_tokens: of a reply.

        Raises:
            InputError: the openai package or the key is missing; the URL, which is shown and stored, holds the key; the
                proxies of the environment cannot be used.
        """
        try:
            import openai
        except ImportError as error:
            raise InputError("judge: needs the openai package; pip install 'openai>=3'") from error
        key = key_in(key_env)
        self._redactor = Redactor(key, getproxies().values())
        if self._redactor.finds_key(base_url):
            raise InputError(f"base_url: expected no key in it, but it holds that of {key_env}; it is sent by itself")
        self.url, self.model, self.key_env, self.timeout, self.retries = base_url, model, key_env, timeout, retries
        self._openai, self._client = openai, connect(openai, key, base_url, timeout)
        self._parameters: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}  # replaced, never changed
        self._lock = threading.Lock()

    def ask(self, prompt: str, retries: int | None = None) -> Reply:
        """The judge's reply; `retries` overrides those of the endpoint.

        Raises:
            CallError: no reply after all retries.
        """
        request = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        options = {"max_retries": self.retries if retries is None else retries}
        while True:
            parameters = self._parameters
            try:
                # Unlike chat.completions.create, post takes the number of retries and returns the text of the reply.
                body = self._client.post("/chat/completions", body=request | parameters, cast_to=str, options=options)
                return self._reply(body, parameters.get("temperature"))
            except self._openai.APIStatusError as error:
                if self._accepts_less(parameters, error):
                    continue
                failure = self._failure_of_status(error)
            except self._openai.OpenAIError as error:
                failure = self._failure_of_connection(error)
            raise failure  # outside of `except`: a traceback must not show the library's error, which may hold the key

    def ask_first(self, prompt: str) -> Reply:
        """As `ask`, but a try that hangs is not repeated: this endpoint may never answer."""
        try:
            return self.ask(prompt, retries=0)
        except CallError as error:
            if error.kind != "busy" or not self.retries:
                raise
        return self.ask(prompt, self.retries - 1)

    def close(self) -> None:
        """End the retries of requests in other threads."""
        self._client.close()

    def _accepts_less(self, parameters: dict[str, Any], error: Any) -> bool:
        """Whether the request failed because of a parameter; from now on that one is not sent."""
        names = (_refused(parameters, *complaint) for complaint in _complaints(error.body))
        name = next(filter(None, names), None) if error.status_code in (400, 422) else None
        if name is None:
            return False
        with self._lock:
            if self._parameters is parameters:
                self._parameters = {other: value for other, value in parameters.items() if other != name}
                if name == "max_tokens":
                    self._parameters["max_completion_tokens"] = parameters[name]
                log.warning("judge: %s takes no %s; %s", shown(self.model), name, INSTEAD[name])
        return True

    def _failure(self, sentence: str, kind: Kind) -> CallError:
        return CallError(f"{shown(self.url, 100)}: {sentence}", kind)

    def _failure_of_status(self, error: Any) -> CallError:
        status = error.status_code
        if 300 <= status < 400:
            return self._failure(f"HTTP {status}, a redirection to {self._redirection(error.response)}", "permanent")
        is_permanent = status in PERMANENT or error.code == "insufficient_quota"
        meaning = PERMANENT.get(status) or LIKELY.get(status) or ""
        if error.code == "insufficient_quota":
            meaning = "nothing is left of the quota"
        meaning = f", {meaning.format(key_env=self.key_env, model=shown(self.model))}" if meaning else ""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        message = self._redactor.message(message if isinstance(message, str) else error.response.text)
        kind = "permanent" if is_permanent else "busy" if status in TEMPORARY or status >= 500 else "refused"
        return self._failure(f"HTTP {status}{meaning}: {message}", kind)

    def _redirection(self, response: Any) -> str:
        """Following it would send questions and answers to a host that the user did not name.

        The target is shown without its user name and its query.
        """
        target = "somewhere else"
        if response.next_request is not None:
            url = response.next_request.url
            path = url.path.removesuffix("/chat/completions")
            target = self._redactor.message(f"{url.scheme}://{url.netloc.decode()}{path}", 120)
        return (
            f"{target}; redirections are not followed, nothing was sent there; if that is where the judge is, give it "
            "as base_url"
        )

    def _failure_of_connection(self, error: Exception) -> CallError:
        if isinstance(error, self._openai.APITimeoutError):
            limits = f"timeout: seconds without a byte; to connect, {CONNECT_SECONDS:g} at most"
            return self._failure(f"no reply in time ({limits})", "silent")
        if isinstance(error, self._openai.APIConnectionError):
            return self._failure(f"no connection: {self._redactor.message(str(error.__cause__ or error))}", "busy")
        return self._failure(self._redactor.message(f"{type(error).__name__}: {error}"), "silent")

    def _reply(self, body: str, temperature: float | None) -> Reply:
        """The reply in a chat completion; `temperature` is that of the request."""
        try:
            completion = json.loads(body)
            choice = completion["choices"][0]
            text = choice["message"].get("content") or choice["message"].get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError("the content is not a text")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            message = self._redactor.message(body)
            raise self._failure(
                "answered with something else than a chat completion (the base URL often ends in /v1): " + message,
                "silent",
            ) from None
        return Reply(
            text=self._redactor.text(text),
            endpoint=self.url,
            served_by=self._redactor.name(completion.get("model")),
            finish_reason=self._redactor.name(choice.get("finish_reason")),
            tokens=_tokens(completion.get("usage")),
            temperature=temperature,
        )


def _complaints(body: Any) -> Iterator[tuple[str | None, str]]:
    """The parameters that an error names, if it does, and its messages about them.

    Other parts of the body are not read: an error may repeat the whole request, whose answers may speak of parameters.
    """
    if not isinstance(body, dict):
        return
    if isinstance(body.get("message"), str):
        yield body["param"] if isinstance(body.get("param"), str) else None, body["message"]
    for detail in body["detail"] if isinstance(body.get("detail"), list) else []:  # pydantic's
        if isinstance(detail, dict) and isinstance(detail.get("loc"), list) and isinstance(detail.get("msg"), str):
            yield next((part for part in detail["loc"][-1:] if isinstance(part, str)), ""), detail["msg"]


def _refused(parameters: dict[str, Any], named: str | None, message: str) -> str | None:
    """The parameter that a message says is not accepted; None if the message is about something else."""
    if not REFUSED_PARAMETER.search(message):
        return None
    return next((name for name in parameters if re.search(rf"\b{name}\b", message if named is None else named)), None)


def _tokens(usage: Any) -> tuple[int, int] | None:
    """Of the prompt and of the reply, if the endpoint counts them."""
    if not isinstance(usage, dict):
        return None
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (prompt, reply) if is_count(prompt) and is_count(reply) else None
