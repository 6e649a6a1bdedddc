"""Secrets taken out of text that others wrote, in whatever spelling it repeats them."""

import base64
import html.entities
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

BREAK = r"(?:\s|\\{1,8}[rn]){0,4}"  # base64 is often written in lines
SIX_BITS = 6  # of a base64 character
BASE64_FROM = 4  # characters of a secret: what is shorter would be found in any text
SECRET_LENGTH = 8  # shorter keys ("none", "EMPTY") are a local server's; a reply may hold such words


def spellings(secret: str) -> re.Pattern[str]:
    """A secret as it is, and as JSON, a URL or HTML may write it (\\u002b, %2b, &#43;), or base64 of a text around it.

    Repetitions are bounded: a long line of backslashes takes no longer than any other.
    """
    plain = "".join(map(_written, secret))
    parts = _base64_parts(secret.encode()) if len(secret) >= BASE64_FROM else []
    encoded = (BREAK.join(map(_written_base64, part)) for part in parts)
    return re.compile("|".join([plain, *encoded]))


def proxy_secrets(proxies: Iterable[str]) -> list[str]:
    """Of proxies' URLs: user name with password, and a password that is no short word, as sent and as written there."""
    found = []
    for url in proxies:
        try:
            userinfo, at, _ = urlsplit(url).netloc.rpartition("@")
        except ValueError:
            continue
        for sent in {userinfo, unquote(userinfo)} if at else ():
            password = sent.partition(":")[2]
            found += [sent] if password and len(sent) >= BASE64_FROM else []
            found += [password] if len(password) >= SECRET_LENGTH else []
    return found


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
    """The same in base64, whose last two characters have other names in URLs."""
    return {"+": f"(?:-|{_written('+')})", "/": f"(?:_|{_written('/')})"}.get(character, character)


def _base64_parts(secret: bytes) -> list[str]:
    """The base64 characters that the secret alone decides, for each place at which it can begin in three bytes."""
    parts = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode()
        parts.append(encoded[-(-8 * before // SIX_BITS) : 8 * (before + len(secret)) // SIX_BITS])
    return parts
