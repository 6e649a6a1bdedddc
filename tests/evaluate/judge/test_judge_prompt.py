"""Which replies hold two scores."""

import pytest

from diverseevol_fast.evaluate.judge.prompt import parse_scores


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 9", (8, 9)),
        ("8 9\nbecause 3 4", (8, 9)),
        ("\n \n8.5 9.0", (8.5, 9)),
        ("8, 9", (8, 9)),
        ("8,9", (8, 9)),
        ("8; 9", (8, 9)),
        ("8 | 9", (8, 9)),
        ("8\t9\r\nx", (8, 9)),
        ("8/10 9/10", (8, 9)),
        ("8/10, 9.5 / 10", (8, 9.5)),
        ("**8 9**", (8, 9)),
        ("**8** **9**", (8, 9)),
        ("`8 9`", (8, 9)),
        ("[8, 9]", (8, 9)),
        ("(8 9)", (8, 9)),
        ('"8 9"', (8, 9)),
        ("8 9.", (8, 9)),
        ("0 11", (0, 11)),
        ("10 1", (10, 1)),
        ("85 90", (85, 90)),
        ("Assistant 1: 8 Assistant 2: 9", (8, 9)),
        ("**Assistant 1:** 8, **Assistant 2:** 9", (8, 9)),
        ("assistant 1: 8/10; assistant 2: 9/10.", (8, 9)),
        ("Assistant 1 = 8.5, Assistant 2 = 9", (8.5, 9)),
    ],
)
def test_scores_that_are_read(reply, scores):
    assert parse_scores(reply) == scores


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "\n",
        "8",
        "8.9",
        "89",
        "8 9 10",
        "8 9 because",
        "I give 8 9",
        "8-9",
        "8 - 9",
        "8/9",
        "8/5 9/5",
        "-1 5",
        "8,5 9",
        "8*9",
        "8 * 9",
        "8_9",
        ".5 9",
        "8. 9.",
        "eight nine",
        "8 of 10 9 of 10",
        "because\n8 9",
        "٨ ٩",
        "8 9 / 9",
        "1e3 5",
        "nan nan",
        "Assistant 1: 8",
        "Assistant 2: 8 Assistant 1: 9",
        "Answer: 8 9",
        "8 10/10 9",
        "<think>8 9",
        "8  ,, 9",
    ],
)
def test_scores_that_are_not_guessed(reply):
    assert parse_scores(reply) is None
