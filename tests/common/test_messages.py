"""What messages show of text that others wrote."""

from diverseevol_fast._common.messages import printable, reason, shown


def test_shown_is_one_printable_line_that_is_cut():
    assert shown("a\x1b[2J\nb\u202e\0\udcff") == "a\\x1b[2J\\x0ab\\u202e\\x00\\udcff"
    assert shown("é 漢\u3000字 😀") == "é 漢\u3000字 😀"
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 1_000_000) == "x" * 77 + "..."
    assert shown("\0" * 30, limit=20) == "\\x00\\x00\\x00\\x00\\..."
    assert shown(3) == "3"


def test_printable_keeps_lines():
    assert printable("a\n\tb\r\x07") == "a\n\tb\\x0d\\x07"


def test_reason_names_no_python_objects():
    assert reason(ValueError("\n  got <class 'int'>, <ast.BinOp object at 0x7f>\nmore")) == "got int, a value"
    assert reason(ValueError("KeyError: 'x'")) == "'x'"
    assert reason(ValueError()) == "no reason is given"
