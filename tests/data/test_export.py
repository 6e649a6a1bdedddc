"""The selected rows for TRL, LLaMA-Factory and axolotl: the file, and its entry in their configs."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml

from diverseevol_fast.cli.main import main
from diverseevol_fast.data.templates import prompt_of

ALPACA = [{"instruction": f"do {i}", "input": "" if i % 2 else f"with {i}", "output": f"done {i}"} for i in range(20)]
MESSAGES = [
    {"id": i, "messages": [{"role": "user", "content": f"do {i}"}, {"role": "assistant", "content": "done"}]}
    for i in range(20)
]
SHAREGPT = [{"talk": [{"from": "human", "value": f"do {i}"}, {"from": "gpt", "value": "done"}]} for i in range(20)]
RENAMED = [{"question": f"do {i}", "answer": f"done {i}"} for i in range(20)]
COLUMNS = {"talk": "{conversations: talk}", "question": "{instruction: question, output: answer}"}


@pytest.fixture
def select(tmp_path, capsys):
    """Runs `diverseevol select --for`; returns the picks and what was printed."""

    def call(rows, trainer, output):
        (tmp_path / "data.json").write_text(json.dumps(rows))
        np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((20, 4), dtype=np.float32))
        columns = next((COLUMNS[key] for key in rows[0] if key in COLUMNS), "{}")
        status = main(
            [
                "select",
                "--data",
                str(tmp_path / "data.json"),
                "--embeddings",
                str(tmp_path / "x.npy"),
                "-n",
                "6",
                "--columns",
                columns,
                "--for",
                trainer,
                "--output",
                str(tmp_path / output),
                "--quiet",
            ]
        )
        printed = capsys.readouterr()
        assert status == 0, printed.err
        picks = (tmp_path / output).with_name("mine.picks.json")
        return json.loads(picks.read_text())["indices"], printed.out

    return call


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.json.gz", "mine.parquet"])
def test_trl_prompt_and_completion(name, select, tmp_path):
    picks, printed = select(ALPACA, "trl", name)
    kind = "parquet" if name.endswith("parquet") else "json"
    line = f'train_dataset=load_dataset("{kind}", data_files="{tmp_path / name}", split="train")'
    assert f"TRL: {line}" in printed
    loaded = datasets.load_dataset(kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "c"))
    assert loaded.to_list() == [
        {"prompt": prompt_of(ALPACA[row]["instruction"], ALPACA[row]["input"]), "completion": ALPACA[row]["output"]}
        for row in picks
    ]


def test_trl_conversations(select, tmp_path):
    picks, _ = select(SHAREGPT, "trl", "mine.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert lines == [{"messages": MESSAGES[row]["messages"]} for row in picks]


@pytest.mark.parametrize(
    ("rows", "entry"),
    [
        (
            ALPACA,
            {"formatting": "alpaca", "columns": {"prompt": "instruction", "query": "input", "response": "output"}},
        ),
        (RENAMED, {"formatting": "alpaca", "columns": {"prompt": "question", "response": "answer"}}),
        (SHAREGPT, {"formatting": "sharegpt", "columns": {"messages": "talk"}}),
        (
            MESSAGES,
            {
                "formatting": "sharegpt",
                "columns": {"messages": "messages"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                    "system_tag": "system",
                },
            },
        ),
    ],
)
def test_llama_factory(rows, entry, select, tmp_path):
    picks, printed = select(rows, "llama-factory", "mine.json")
    assert json.loads((tmp_path / "mine.json").read_text()) == [rows[row] for row in picks]
    info = tmp_path / "dataset_info.json"
    assert json.loads(info.read_text()) == {"mine": {"file_name": "mine.json"} | entry}
    assert f"{info}: LLaMA-Factory finds the rows by dataset: mine, dataset_dir: {tmp_path}" in printed


def test_llama_factorys_other_entries_stay(select, tmp_path):
    info = tmp_path / "dataset_info.json"
    info.write_text('{"other": {"file_name": "other.json"}, "mine": {"file_name": "old.json"}}')
    select(RENAMED, "llama-factory", "mine.jsonl")
    entries = json.loads(info.read_text())
    assert entries["other"] == {"file_name": "other.json"}
    assert entries["mine"]["file_name"] == "mine.jsonl"


@pytest.mark.parametrize(
    ("rows", "entry"),
    [
        (ALPACA, {"type": "alpaca"}),
        (RENAMED, {"type": "alpaca"}),
        (
            MESSAGES,
            {
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": {"role": "role", "content": "content"},
            },
        ),
        (
            SHAREGPT,
            {
                "type": "chat_template",
                "field_messages": "talk",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
        ),
    ],
)
def test_axolotl(rows, entry, select, tmp_path):
    picks, printed = select(rows, "axolotl", "mine.jsonl")
    stanza = printed[printed.index("datasets:") : printed.index(str(tmp_path / "mine.picks.json"))]
    path = str(tmp_path / "mine.jsonl")
    assert yaml.safe_load(stanza) == {"datasets": [{"path": path, "ds_type": "json"} | entry]}
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    if rows is RENAMED:
        assert lines == [{"instruction": f"do {row}", "input": "", "output": f"done {row}"} for row in picks]
    else:
        assert lines == [rows[row] for row in picks]


@pytest.mark.parametrize(
    ("output", "content", "message"),
    [
        ("mine.jsonl.gz", None, "LLaMA-Factory needs a .json, .jsonl or .parquet file that is not dataset_info.json"),
        ("dataset_info.json", None, "LLaMA-Factory needs a .json, .jsonl or .parquet file that is not dataset_info"),
        ("mine.json", "{", "dataset_info.json, line 1: not JSON"),
        ("mine.json", "[]", "dataset_info.json: expected an object of data sets, got list"),
    ],
)
def test_what_llama_factory_cannot_read_is_refused_before_any_work(output, content, message, tmp_path, capsys):
    if content:
        (tmp_path / "dataset_info.json").write_text(content)
    arguments = ["--data", "builtin:quickstart", "--model", "none", "-n", "2", "--output", str(tmp_path / output)]
    assert main(["select", *arguments, "--for", "llama-factory"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine.json").exists()


def test_it_needs_data(capsys):
    assert main(["select", "--embeddings", "x.npy", "-n", "2", "--for", "trl"]) == 2
    assert "--data: is missing" in capsys.readouterr().err


def yaml_in(section: str) -> str:
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "trainers.md").read_text(encoding="utf-8")
    return text.split(f"## {section}\n")[1].split("```yaml\n")[1].split("```")[0]


@pytest.mark.parametrize("row", ALPACA[:2])
def test_the_formats_for_axolotl_in_the_docs_give_the_embedded_text(row):
    """axolotl 0.18.0 fills in `format` for a row with an input, and `no_input_format` for a row without."""
    formats = yaml.safe_load(yaml_in("axolotl"))["datasets"][0]["type"]
    names = ("instruction", "input", "output")
    assert [formats[f"field_{name}"] for name in names] == list(names)
    form = formats["format" if row["input"] else "no_input_format"]
    text = form.format(instruction=row["instruction"], input=row["input"])
    assert text == formats["system_prompt"] + prompt_of(row["instruction"], row["input"])
