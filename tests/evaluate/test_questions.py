"""Question files: the formats, and what is refused with file and line."""

import json
from pathlib import Path

import pytest

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.evaluate.questions import benchmark_name, read_questions


def read(tmp_path, *lines):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return [(question.id, question.text, question.input) for question in read_questions(path)]


def test_formats(tmp_path):
    assert read(tmp_path, {"question_id": 1, "text": "A?", "category": "c"}) == [(1, "A?", "")]
    assert read(tmp_path, {"id": "koala_0", "prompt": "A?"}) == [("koala_0", "A?", "")]
    assert read(tmp_path, {"idx": 3, "Skill": "Math", "Instruction": "A?"}) == [(3, "A?", "")]
    assert read(tmp_path, {"question": "A?", "answer": "gold"}) == [(1, "A?", "")]
    alpaca = {"instruction": "Do.", "input": "this", "output": "Done.", "text": "Below is ..."}
    assert read(tmp_path, alpaca, {"instruction": "Do.", "input": ""}, {"instruction": "Do.", "input": None}) == [
        (1, "Do.", "this"),
        (2, "Do.", ""),
        (3, "Do.", ""),
    ]


def test_a_question_without_id_has_its_lines_number(tmp_path):
    assert read(tmp_path, b"", {"question": "A?"}, b"  ", {"question": "B?", "id": 0}, {"question": "A?"}, b"") == [
        (2, "A?", ""),
        (0, "B?", ""),
        (5, "A?", ""),
    ]


def test_records_come_as_they_are(tmp_path):
    record = {"z": [1.5, None, {"x": "\u2028"}], "question": " Größe 😀 \u0000? ", "id": "1"}
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    (question,) = read_questions(path)
    assert question.record == record
    assert list(question.record) == list(record)
    assert question.text == record["question"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "q.jsonl: the file is empty"),
        ([b"", b"  "], "q.jsonl: the file is empty"),
        ([b"{", {"question": "A?"}], "q.jsonl, line 1: not JSON"),
        ([{"question": "A?"}, b'{"question": "B'], "q.jsonl, line 2: "),
        ([[{"question": "A?"}]], "q.jsonl, line 1: expected an object, got list"),
        (
            [{"Question": "A?", "x": 1}],
            "line 1: expected the question under one of instruction, text, prompt, "
            "Instruction, question; got keys 'Question', 'x'",
        ),
        (
            [{}],
            "line 1: expected the question under one of instruction, text, prompt, Instruction, question; "
            "got keys none",
        ),
        ([{"question": "A?"}, {"question": " \n"}], "line 2: the question is empty ('question')"),
        ([{"text": 5}], "line 1: 'text': expected a text, got int"),
        ([{"text": None}], "line 1: 'text': expected a text, got NoneType"),
        ([{"instruction": "A", "input": ["b"]}], "line 1: 'input': expected a text, got list"),
        ([{"text": "A?", "id": 1}, b"", {"text": "B?", "id": 1}], "line 3: its id 1 is that of line 1, too"),
        ([{"text": "A?", "id": 1}, {"text": "B?", "id": "1"}], "line 2: its id '1' is that of line 1, too"),
        ([{"text": "A?", "id": 2}, {"text": "B?"}], "line 2: its id 2 is that of line 1, too"),
        ([{"text": "A?", "id": True}], "line 1: 'id': expected a text, got bool"),
        ([{"text": "A?", "id": None}], "line 1: 'id': expected a text, got NoneType"),
        ([{"text": "A?", "id": 1.5}], "line 1: 'id': expected a text, got float"),
        ([b'{"text": "A?", "x": NaN}', {"text": "B?"}], "line 1: not JSON: NaN"),
        ([b'{"text": "\\ud800"}'], "line 1: half a surrogate pair"),
        ([b'{"text": "A?", "note": ["\\ud800"]}'], "line 1: half a surrogate pair"),
        ([b'{"text": "\xff"}'], "q.jsonl: not readable as UTF-8 text"),
    ],
)
def test_refused(tmp_path, lines, words):
    with pytest.raises(InputError) as refused:
        read(tmp_path, *lines)
    assert words in str(refused.value)


def test_a_byte_order_mark(tmp_path):
    assert read(tmp_path, b'\xef\xbb\xbf{"question": "A?"}', {"question": "\ufeffB?"}) == [
        (1, "A?", ""),
        (2, "\ufeffB?", ""),
    ]


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="expected a file"):
        read_questions(tmp_path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/vicuna_test_set.jsonl", "vicuna"),
        ("my.jsonl", "my"),
        ("my_questions.jsonl", "my"),
        ("my_test.json", "my"),
        ("my.v2.jsonl", "my.v2"),
        ("_questions.jsonl", "_questions"),
        ("questions", "questions"),
    ],
)
def test_benchmark_names(file, name):
    assert benchmark_name(Path(file)) == name


@pytest.mark.parametrize(
    ("name", "count", "first", "text"),
    [
        ("vicuna", 80, 1, "How can I improve my time management skills?"),
        ("koala", 180, "koala_0", "Can you list the top 20 films"),
        ("wizardlm", 218, 1, "If a car travels 120 miles in 2 hours"),
    ],
)
def test_the_three_benchmarks(shared_data, name, count, first, text):
    questions = read_questions(shared_data / "benchmarks" / f"{name}_test_set.jsonl")
    assert len(questions) == count
    assert questions[0].id == first
    assert questions[0].text.startswith(text)
    assert {question.input for question in questions} == {""}
