"""Data sets: formats, schemas, errors, and writing rows back."""

import gzip
import json

import pytest

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.data.dataset import load_data, write_rows
from diverseevol_fast.demo.rows import FAMILIES, generate_rows

ALPACA = [
    {"instruction": "Say hi.", "input": "", "output": "Hi.", "note": 1},
    {"instruction": "Add.", "input": "1, 2", "output": "3", "note": 2},
]
MESSAGES = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
SHAREGPT = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": "a"}]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz", "x.jsonl.gz", "x.parquet"])
@pytest.mark.parametrize(("rows", "schema"), [(ALPACA, "alpaca"), (MESSAGES, "messages"), (SHAREGPT, "sharegpt")])
def test_rows_come_back_in_every_format(tmp_path, name, rows, schema):
    if name.endswith("parquet"):
        pytest.importorskip("datasets")
    write_rows(tmp_path / name, rows)
    data, empty = load_data(str(tmp_path / name))
    assert data.rows == rows
    assert data.schema.name == schema
    assert empty == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_digest_does_not_depend_on_the_format(tmp_path):
    for name in ("a.json", "b.jsonl.gz"):
        write_rows(tmp_path / name, ALPACA)
    a, b = (load_data(str(tmp_path / name))[0] for name in ("a.json", "b.jsonl.gz"))
    assert a.sha256() == b.sha256()
    write_rows(tmp_path / "c.json", ALPACA[::-1])
    assert load_data(str(tmp_path / "c.json"))[0].sha256() != a.sha256()


def test_a_saved_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ALPACA).save_to_disk(tmp_path / "set")
    assert load_data(str(tmp_path / "set"))[0].rows == ALPACA
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ALPACA)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match=r"expected one split, got train; name one: .*/train"):
        load_data(str(tmp_path / "splits"))
    assert load_data(str(tmp_path / "splits" / "train"))[0].rows == ALPACA


def test_conversations_and_fields(tmp_path):
    for name, rows in (("m.json", MESSAGES), ("s.json", SHAREGPT)):
        write_rows(tmp_path / name, rows)
        assert load_data(str(tmp_path / name))[0].turns(0) == MESSAGES[0]["messages"]
    write_rows(tmp_path / "q.jsonl", [{"question": "Why?", "answer": "So."}])
    data, _ = load_data(str(tmp_path / "q.jsonl"), {"instruction": "question", "output": "answer"})
    assert [data.fields(0)[name] for name in ("instruction", "input", "output")] == ["Why?", "", "So."]


def test_empty_rows_are_listed(tmp_path):
    rows = [*ALPACA, {"instruction": " ", "output": "x"}, {"instruction": "x", "output": ""}]
    write_rows(tmp_path / "e.jsonl", rows)
    assert load_data(str(tmp_path / "e.jsonl"))[1] == [2, 3]
    write_rows(tmp_path / "m.json", [*MESSAGES, {"messages": [{"role": "user", "content": "Hi"}]}])
    assert load_data(str(tmp_path / "m.json"))[1] == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows; expected at least one"),
        ("[]", "no rows"),
        ('{"instruction": "a", "output": "b"}\n\n{"instruction": \n', "x.json, line 3: not JSON: .* .column"),
        ('[\n{"instruction": "a"},\n{]', "x.json, line 3: not JSON"),
        ("[1]", "row 0: expected an object, got int"),
        ('"x"\n', "line 1: expected an object, got str"),
        ('{"q": 1}', "line 1: expected 'instruction', 'messages' or 'conversations', got keys 'q'"),
        (
            '{"instruction": "a", "output": "b"}\n{"instruction": "a"}',
            "line 2: key 'output' is missing; got 'instruction'",
        ),
        ('{"instruction": 3, "output": "b"}', "line 1: 'instruction' expected text, got int"),
        ('{"instruction": "a", "output": "\\ud83d"}', "line 1: half a surrogate pair at character 0"),
        ('{"messages": [{"role": "user"}]}', "line 1: turn 0: expected text under 'content', got no such key"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "line 1: turn 0: expected text under 'content', got list"),
        (
            '{"conversations": [{"from": "martian", "value": "x"}]}',
            "line 1: turn 0: expected from: human or .*, got 'martian'",
        ),
    ],
)
def test_broken_files(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        load_data(str(tmp_path / "x.json"))


def test_the_first_twenty_broken_lines_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(['{"instruction": "a", "output": "b"}', *["{"] * 30]))
    with pytest.raises(InputError) as error:
        load_data(str(path))
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{path}: 30 broken lines, the first 20; mend them")
    assert [line.split(": ")[0] for line in lines] == [f"{path}, line {number}" for number in range(2, 22)]
    assert len(load_data(str(path), skip_broken=True)[0].rows) == 1
    path.write_text('{"instruction": "a", "output": "\\ud800"}\n{"instruction": "a", "output": "b"}')
    assert len(load_data(str(path), skip_broken=True)[0].rows) == 1
    path.write_text("{\n[]\n3")
    with pytest.raises(InputError, match="no rows are left; all 3 are broken"):
        load_data(str(path), skip_broken=True)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    text = "\ufeff" + (json.dumps(ALPACA) if ".json" in name else "\n".join(map(json.dumps, ALPACA)))
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert load_data(str(tmp_path / name))[0].rows == ALPACA


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"instruction": "a", "output": "b"}\n{"instruction": "NaN", "output": "b", "x": NaN}',
            "line 2: .* NaN is no num",
        ),
        ('[{"instruction": "a",\n"output": "NaN", "x": [\n-Infinity]}]', "line 3: .*-Infinity is no number"),
        ('{"instruction": "a", "output": "b", "x": 1e400}', "line 1: the number inf; expected a finite one"),
        (
            '[{"instruction": "a", "output": "b",\n"x": ' + "1" * 5000 + "}]",
            "line 2: a number of more than 4300",
        ),
        ('{"instruction": "a", "output": "b", "x": ' + "[" * 99999 + "]" * 99999 + "}", "line 1: more than 100 levels"),
        ('{"instruction": "a", "output": "b", "x": ' + "[" * 200 + "]" * 200 + "}", "line 1: more than 100 levels"),
        ('{"instruction": "a", "output": "b", "\\ud800": 1}', "line 1: half a surrogate pair"),
    ],
)
def test_what_json_in_utf8_cannot_hold(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        load_data(str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "y.json", [{"x": float("nan")}])


def test_columns_with_numbers_that_are_not_finite(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([*ALPACA, ALPACA[0] | {"note": float("nan")}]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="row 2: the number nan; expected a finite one, or null"):
        load_data(str(tmp_path / "x.parquet"))


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_data(str(tmp_path / "absent.json"))
    (tmp_path / "x.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(InputError, match="not readable as gzipped UTF-8"):
        load_data(str(tmp_path / "x.jsonl.gz"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(ALPACA).encode() * 50)[:-20])
    with pytest.raises(InputError, match="not readable as gzipped"):
        load_data(str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"instruction": "\xe9"}')
    with pytest.raises(InputError, match="not readable as UTF-8"):
        load_data(str(tmp_path / "latin.jsonl"))
    with pytest.raises(InputError, match="columns: expected names out of"):
        load_data("builtin:quickstart", {"instruktion": "x"})
    with pytest.raises(InputError, match="expected a name ending in"):
        write_rows(tmp_path / "x.txt", ALPACA)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_rows(path, ALPACA)
    with pytest.raises(ZeroDivisionError):
        write_rows(path, ({"instruction": 1 / (1 - i)} for i in range(3)))
    assert load_data(str(path))[0].rows == ALPACA
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_quickstart_rows_are_seeded_mixed_and_some_rare():
    rows = generate_rows()
    assert rows == generate_rows()
    assert rows != generate_rows(seed=1)
    assert len(rows) == 2000
    counts = dict.fromkeys(FAMILIES, 0)
    for row in rows:
        counts[row["family"]] += 1
        assert row["instruction"].strip()
        assert row["output"].strip()
    assert len(counts) >= 36
    assert 2 <= min(counts.values()) <= 6
    assert max(counts.values()) > 100


def test_real_data(shared_data):
    data, empty = load_data(str(shared_data / "instruct_15k.jsonl.gz"))
    assert (len(data.rows), data.schema.name, empty) == (15011, "alpaca", [])
    assert len(load_data(str(shared_data / "alpaca_debug_6.json"))[0].rows) == 6
