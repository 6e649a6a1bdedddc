"""Seeded damage to valid files: bytes, JSON values, JSON lines and arrays."""

import io
import json
import random
import re

import numpy as np

RAW = {  # JSON texts that json.dumps does not write
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "digits": "9" * 5000,
    "exponent": "1e400",
    "surrogate": '"\\ud800"',
    "deep": "[" * 5000 + "]" * 5000,
    "deep objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "nul": '"\\u0000"',
    "levels": "[" * 150 + "]" * 150,
}

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**32,
    2**63,
    10**30,
    1.5,
    -0.5,
    1e308,
    1e30,
    "",
    "x",
    "foo",
    " ",
    "\x1b[31m",
    "é" * 50,
    "x" * 1_000_000,
    "a\0b",
    "../..",
    "/dev/zero",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"a": {"b": [1]}},
    [1, "a"],
    *(f"RAW:{name}" for name in RAW),
]

TOKENS = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[",
    b"{",
    b"}",
    b'"',
    b"\\ud800",
    b"NaN",
    b"\n",
    b",",
    b"\x1b[2J",
    b"1e400",
    b"9" * 5000,
    b"[" * 5000,
    b"\xf0\x9f",
    b":",
    b"&a *a",
    b"!!python/object:os.system x",
    b"\r",
]


def damage_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bits turned, a part cut away, doubled or blanked, or something odd put in."""
    place = draw.randrange(len(content) + 1)
    end = min(len(content), place + draw.choice((1, 8, 64, len(content))))
    kind = draw.randrange(7)
    if kind == 0 and place < len(content):
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[end:]
    if kind == 3:
        return content[:place] + bytes(end - place) + content[end:]
    if kind == 4:
        return content[:end] + content[place:]
    if kind == 5:
        return content[:place] + draw.choice(TOKENS) + content[place:]
    return draw.choice((b"", b"\xff" * 50, b"\n" * 9, bytes(200), content.decode("latin-1").encode("utf-16")))


def places_in(value, path=()):
    """Where anything stands in a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_in(part, (*path, key))


def damage_value(value, draw: random.Random):
    """Another value, or none, in one place of a JSON value."""
    value = json.loads(json.dumps(value))
    *parents, last = draw.choice([path for path in places_in(value) if path])
    part = value
    for key in parents:
        part = part[key]
    if draw.random() < 0.15:
        del part[last]
    elif draw.random() < 0.1 and isinstance(part, dict):
        part[draw.choice(("", "x", "\ud800", "\x1b[31m", "k" * 1000))] = part.pop(last)
    else:
        part[last] = draw.choice(VALUES)
    return value


def json_text(value) -> str:
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"RAW:{name}"', raw)
    return text


def damage_json(value, draw: random.Random) -> bytes:
    """One JSON value, damaged as a value or as text."""
    if draw.random() < 0.6:
        return json_text(damage_value(value, draw)).encode()
    return damage_bytes(json.dumps(value).encode(), draw)


def damage_lines(rows: list, draw: random.Random) -> bytes:
    """JSON lines, damaged in a value or as text."""
    if draw.random() < 0.6:
        damaged = damage_value(rows, draw)
        return "".join(json_text(row) + "\n" for row in damaged).encode()
    return damage_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), draw)


def damage_array(array: np.ndarray, draw: random.Random) -> bytes:
    """A .npy file of another shape, type or header, or with damaged bytes."""
    kind = draw.randrange(4)
    if kind == 0:
        others = [
            np.array(True),
            np.array(3),
            array[None],
            array[:0],
            array.astype(object),
            array.astype("U3"),
            array > 0,
            array.astype(np.complex64),
            np.full_like(array, -1),
            array.astype(np.uint8),
            np.zeros(3, "M8[s]"),
            np.zeros(3, "V4"),
            array.astype(np.float64) * np.nan,
        ]
        content = io.BytesIO()
        np.save(content, draw.choice(others))
        return content.getvalue()
    if kind == 1:
        content = io.BytesIO()
        np.savez(content, x=array)
        return content.getvalue()
    content = io.BytesIO()
    np.save(content, array)
    if kind == 2:
        return damage_bytes(content.getvalue(), draw)
    header = content.getvalue()[10:128].decode()
    shape = draw.choice(
        (
            "(-1, 4)",
            "(True, 4)",
            "(10**9, 10**9)",
            "(1000000000000, 4)",
            "()",
            "(4,)",
            "None",
            "'x'",
            "(4.0, 4)",
            "(0, 4)",
            "(4, 0)",
            "(" * 90 + ")" * 90,
            "__import__('os')",
            "(99999999999999999999999, 4)",
        )
    )
    header = re.sub(r"\([^)]*\)", lambda _: shape, header).rstrip()[:117].ljust(117) + "\n"
    return content.getvalue()[:10] + header.encode() + content.getvalue()[128:]
