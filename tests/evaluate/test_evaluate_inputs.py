"""Malformed questions, answers, judgements and unfinished files: the error is a sentence that names the line."""

import json

import pytest
from support.chat_server import Answer, ChatServer, says
from support.judge_fixtures import rows_of

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.evaluate.answer_file import AnswerFile
from diverseevol_fast.evaluate.judge.answer_pairs import read_answers
from diverseevol_fast.evaluate.judge.prompt import parse_scores
from diverseevol_fast.evaluate.judge.replies import stored_replies
from diverseevol_fast.evaluate.judge.score import scores_of, scores_table
from diverseevol_fast.evaluate.questions import read_questions
from diverseevol_fast.evaluate.resumable_lines import check_provenance

PROVENANCE = {"model": "judge"}
MEGABYTE = "x\x1b[31m" * 200_000


def judgement(question_id=1, **more):
    row = {"question_id": question_id, "question_text": "Why?", **more}
    for order, names in enumerate((("m", "r"), ("r", "m"))):
        row |= {f"assistant1_QUERY{order}": names[0], f"assistant2_QUERY{order}": names[1]}
        row |= {f"eval_QUERY{order}": [8, 9], f"response_QUERY{order}": "8 9"} | more
    return row


GOOD = {
    "questions": {"question": "Why?", "id": 1},
    "answers": {"question": "Why?", "id": 1, "answer": "So."},
    "judgements": judgement(),
    "replies": {
        "question_id": "1",
        "order": 0,
        "reply": {
            "text": "8 9",
            "endpoint": "u",
            "served_by": None,
            "finish_reason": "stop",
            "tokens": [1, 2],
            "temperature": 0,
        },
    },
    "generated": {"answers": {"0": ["So.", 2, True]}, "seconds": 1.5},
}


def read(kind, path):
    if kind == "generated":
        with AnswerFile(path.with_name("x.jsonl"), PROVENANCE).held():
            return
    {
        "questions": read_questions,
        "answers": read_answers,
        "judgements": scores_of,
        "replies": lambda path: stored_replies(path, PROVENANCE),
    }[kind](path)


def file_of(kind, folder, *lines):
    """A file of that kind with one good line, then these lines."""
    header = [json.dumps({"provenance": PROVENANCE})] if kind in ("replies", "generated") else []
    path = folder / ("x.jsonl.partial" if header else "x.jsonl")
    whole = [*header, json.dumps(GOOD[kind]), *lines, ""]
    path.write_text("\n".join(whole), encoding="utf-8")
    return path, len(whole) - 1


def refused(kind, path):
    with pytest.raises(InputError) as error:
        read(kind, path)
    message = str(error.value).replace(str(path.parent), "")
    assert len(message) < 300
    assert message.isprintable()
    return message


BROKEN = {
    "levels": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "levels that Python reads": '{"a": ' + "[" * 300 + "]" * 300 + "}",
    "digits": '{"a": ' + "9" * 5000 + "}",
    "surrogate": '{"a": "\\ud800"}',
    "surrogate in a key": '{"\\ud800": 1}',
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": -Infinity}',
    "1e400": '{"a": 1e400}',
    "no JSON": '{"a": \x1b[31m' + MEGABYTE,
    "no object": json.dumps(MEGABYTE),
    "none of the keys": json.dumps({MEGABYTE: 1, **{str(i): i for i in range(1000)}}),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_named_in_a_short_sentence(kind, broken, tmp_path):
    path, number = file_of(kind, tmp_path, BROKEN[broken])
    assert f"line {number}" in refused(kind, path)


@pytest.mark.parametrize("kind", GOOD)
def test_the_good_line_is_read(kind, tmp_path):
    read(kind, file_of(kind, tmp_path)[0])


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("questions", {"question": "Why?", "id": 1}),
        ("questions", {"question": [MEGABYTE]}),
        ("questions", {"question": "Why?", "id": [MEGABYTE]}),
        ("answers", {"question": "Why?", "id": MEGABYTE}),
        ("answers", {"question": "Why?", "answer": {MEGABYTE: 1}}),
        ("judgements", judgement(2, eval_QUERY0=[10**400, 1])),
        ("judgements", judgement(2, eval_QUERY0=[1e308, 1])),
        ("judgements", judgement(2, eval_QUERY1=[8, 1e-300])),
        ("judgements", judgement(2, eval_QUERY0=MEGABYTE)),
        ("judgements", judgement(2, assistant1_QUERY0=MEGABYTE)),
        ("judgements", judgement(MEGABYTE, answer_length=1)),
        (
            "judgements",
            judgement(
                2, answer_length={side: {"characters": 1e308, "words": 10**400} for side in ("model", "reference")}
            ),
        ),
        ("judgements", judgement(2, provenance=MEGABYTE)),
        ("judgements", judgement(MEGABYTE, eval_QUERY0="")),
        ("replies", GOOD["replies"] | {"reply": GOOD["replies"]["reply"] | {"tokens": [10**400, 1]}}),
        ("replies", GOOD["replies"] | {"reply": GOOD["replies"]["reply"] | {"served_by": [MEGABYTE]}}),
        ("replies", GOOD["replies"] | {"reply": GOOD["replies"]["reply"] | {"temperature": MEGABYTE}}),
        ("replies", GOOD["replies"] | {"order": 10**400}),
        ("generated", {"answers": {"1": ["So.", MEGABYTE, True]}, "seconds": 1.5}),
        ("generated", {"answers": {"1": [None, 2, True]}, "seconds": 1.5}),
        ("generated", {"answers": {"1": ["So.", 2, True]}, "seconds": 10**400}),
        ("generated", {"answers": {"1": ["So.", 2, True]}, "seconds": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_wrong_kinds_are_not_repeated(kind, row, tmp_path):
    refused(kind, file_of(kind, tmp_path, json.dumps(row))[0])


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("kind", ["questions", "answers", "judgements"])
def test_empty_files(kind, content, tmp_path):
    (tmp_path / "x.jsonl").write_text(content, encoding="utf-8")
    assert "the file is empty" in refused(kind, tmp_path / "x.jsonl")


@pytest.mark.parametrize("kind", ["questions", "answers", "judgements"])
def test_a_byte_order_mark(kind, tmp_path):
    path, _ = file_of(kind, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    read(kind, path)


@pytest.mark.parametrize("questions", ['"x"', "[1]", "9" * 5000, "-1", "1e9", "[" * 100_000])
def test_unfinished_judgements_that_are_damaged(questions, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"provenance": {{"questions": {questions}}}}}\n')
    assert "a damaged file of unfinished judgements" in refused("judgements", path)


def test_what_differs_is_cut(tmp_path):
    before = {MEGABYTE: MEGABYTE, **{f"key {i}": MEGABYTE for i in range(1000)}}
    with pytest.raises(InputError) as error:
        check_provenance(tmp_path, before, PROVENANCE)
    assert len(str(error.value).replace(str(tmp_path), "")) < 400
    assert str(error.value).isprintable()


def test_escape_sequences_of_a_judgement_file_are_not_printed(tmp_path):
    rows = [judgement(f"\x1b[31m{i}\x9b", eval_QUERY1=None) for i in range(2)] + [judgement("ok\x1b")]
    for row in rows:
        for order in (0, 1):
            row |= {f"assistant{1 + order}_QUERY{order}": "m\x1b]0;x\x07", f"assistant{2 - order}_QUERY{order}": "r"}
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = scores_table([scores_of(path)])
    assert "m\\x1b]0;x\\x07 against r" in table
    assert "\\x1b[31m0\\x9b" in table
    assert table.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "reply", ["9" * 400 + " 8", "1234567 8", "8 " + "9" * 5000, "assistant 1:" + "*" * 10**6 + "8"]
)
def test_replies_whose_scores_are_out_of_all_bounds(reply):
    assert parse_scores(reply) is None


@pytest.mark.usefixtures("judge_environment")
@pytest.mark.parametrize("levels", [300, 100_000])
def test_replies_of_many_levels(levels, files, capsys):
    nested = "[" * levels + "]" * levels
    answer = Answer(200, f'{{"choices": [{{"message": {{"content": {nested}}}}}], "model": {nested}}}')
    with ChatServer(lambda call: answer) as server:
        assert files.judge(server, "--retries", "0") == 1
    assert "answered with something else than a chat completion" in capsys.readouterr().err


@pytest.mark.usefixtures("judge_environment")
def test_what_an_endpoint_says_is_printed_in_one_printable_line(files, capsys):
    with ChatServer(lambda call: Answer(400, f"\x1b]0;title\x07{MEGABYTE}")) as server:
        assert files.judge(server) == 1
        error = capsys.readouterr().err
        assert error.replace("\n", "").isprintable()
        assert all(len(line.replace(str(files.folder), "")) < 400 for line in error.splitlines())

        def odd(call):
            answer = says("8 9", tokens=(10**400, -1))
            return Answer(200, answer.body | {"model": f"\x1b[31m{MEGABYTE}"})

        server.behave = odd
        assert files.judge(server) == 0
    call = rows_of(files.output)[0]["call_QUERY0"]
    assert call["tokens"] is None
    assert call["served_by"].startswith("\\x1b[31m")
    assert len(call["served_by"]) <= 160
