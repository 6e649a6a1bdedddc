"""Text of users, files and other programs, made printable and short for messages."""

import re

OBJECT = re.compile(r"<class '([\w.]+)'>|<[\w. ]+ object at 0x\w+>")
EXCEPTION = re.compile(r"\b\w+(?:Error|Exception): ?")


def shown(value: object, limit: int = 80) -> str:
    """`value` as one line of printable text: control characters escaped, cut with "..." after `limit` characters."""
    text = str(value)
    line = "".join(map(_escaped, text[: limit + 1]))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def reason(error: BaseException) -> str:
    """The first line of another library's error message, without names of Python objects."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
    return shown(EXCEPTION.sub("", OBJECT.sub(lambda match: match[1] or "a value", line)), 120)


def printable(text: str) -> str:
    """`text` with every control character escaped except line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(character if character in "\n\t" else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character.isprintable() or character == "\u3000":  # the space of Chinese and Japanese text
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
