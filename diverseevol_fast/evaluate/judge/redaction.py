"""Secrets are taken out of texts that an endpoint writes, in whatever spelling it repeats them."""

import base64
import html.entities
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from ..._common.messages import shown

BREAK = r"(?:\s|\\{1,8}[rn]){0,4}"  # base64 is often written in lines
SIX_BITS = 6  # of a base64 character
BASE64_FROM = 4  # characters of a secret; the base64 of shorter ones occurs in any text
SECRET_LENGTH = 8  # characters; shorter keys ("none", "EMPTY") are a local server's, and a reply may hold such words
MESSAGE = 160  # characters of an endpoint's message or name


class Redactor:
    """Texts of an endpoint without the key and the passwords of proxies."""

    def __init__(self, key: str, proxies: Iterable[str]):
        """`proxies`: their URLs."""
        self._key, self._is_secret = spellings(key), len(key) >= SECRET_LENGTH
        self._proxies = [spellings(secret) for secret in _proxy_secrets(proxies)]

    def finds_key(self, text: str) -> bool:
        """Whether `text` holds the key, unless that is a short word."""
        return self._is_secret and self._key.search(text) is not None

    def message(self, text: str, limit: int = MESSAGE) -> str:
        """`text` as one printable line of at most `limit` characters."""
        return shown(" ".join(self._replaced(text).split()), limit)

    def text(self, text: str) -> str:
        """`text` of a reply; a short key in it is a word. Half a surrogate pair, not valid in UTF-8, becomes "?"."""
        text = text.encode(errors="replace").decode()
        return self._replaced(text) if self._is_secret else text

    def name(self, value: Any) -> str | None:
        """A name as one printable line; None if `value` is not a name."""
        return shown(self.text(value), MESSAGE) if isinstance(value, str) and value else None

    def _replaced(self, text: str) -> str:
        for proxy in self._proxies:
            text = proxy.sub("[proxy]", text)
        return self._key.sub("[key]", text)


def spellings(secret: str) -> re.Pattern[str]:
    """A secret as it is, and as JSON, a URL or HTML may write it (\\u002b, %2b, &#43;), or base64 of a text around it.

    Repetitions are bounded: a long line of backslashes takes no longer than any other.
    """
    plain = "".join(map(_written, secret))
    parts = _base64_parts(secret.encode()) if len(secret) >= BASE64_FROM else []
    encoded = (BREAK.join(map(_written_base64, part)) for part in parts)
    return re.compile("|".join([plain, *encoded]))


def _proxy_secrets(proxies: Iterable[str]) -> list[str]:
    """User names with passwords, and passwords that are no short words, as the URLs spell them and as they are sent."""
    secrets = []
    for url in proxies:
        try:
            userinfo, at, _ = urlsplit(url).netloc.rpartition("@")
        except ValueError:
            continue
        for sent in {userinfo, unquote(userinfo)} if at else ():
            password = sent.partition(":")[2]
            secrets += [sent] if password and len(sent) >= BASE64_FROM else []
            secrets += [password] if len(password) >= SECRET_LENGTH else []
    return secrets


def _written(character: str) -> str:
    """A pattern of the spellings of one character."""
    code = ord(character)
    names = [name.removesuffix(";") for name, value in html.entities.html5.items() if value == character]
    reference = "|".join([f"#0{{0,6}}{code}", f"#[xX]0{{0,6}}(?i:{code:x})", *sorted(set(names))])
    return (
        rf"(?:\\{{0,8}}{re.escape(character)}|(?i:\\{{1,8}}(?:u00|x){code:02x}|%(?:25){{0,3}}{code:02x})"
        rf"|&(?:amp;){{0,3}}(?:{reference});?)"
    )


def _written_base64(character: str) -> str:
    """The same of a base64 character; the last two have other names in URLs."""
    return {"+": f"(?:-|{_written('+')})", "/": f"(?:_|{_written('/')})"}.get(character, character)


def _base64_parts(secret: bytes) -> list[str]:
    """The base64 characters that depend on the secret alone, for each offset at which it can begin in three bytes."""
    parts = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode()
        parts.append(encoded[-(-8 * before // SIX_BITS) : 8 * (before + len(secret)) // SIX_BITS])
    return parts
