"""Training text, tokens and the response mark."""

import json

import numpy as np
import pytest

from diverseevol_fast.data import load_data, write_rows
from diverseevol_fast.errors import InputError
from diverseevol_fast.models import load_tokenizer
from diverseevol_fast.templates import Template, choose_template, render, tokenize

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def loaded(tmp_path, rows):
    write_rows(tmp_path / "rows.json", rows)
    return load_data(str(tmp_path / "rows.json"))[0]


def response_of(tokens, tokenizer, row):
    ids, is_response = tokens.row(row)
    return tokenizer.decode(ids[is_response])


def test_alpaca_texts(tmp_path, tokenizer):
    data = loaded(
        tmp_path, [{"instruction": "A {b}", "output": "C"}, {"instruction": "A", "input": "I", "output": "C"}]
    )
    without, with_input = ("".join(text for text, _ in render(data, row, tokenizer)) for row in (0, 1))
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nA {b}\n\n### Response:C</s>"
    )
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nA\n\n### Input:\nI\n\n### Response:C</s>"
    )


def test_only_the_response_and_the_end_token_are_marked(tmp_path, tokenizer, rows):
    odd = [{"instruction": "Naïve café? 😀", "output": "Größe 😀 and ### Response: again"}]
    data = loaded(tmp_path, odd + rows)
    tokens = tokenize(data, tokenizer, 4096)
    for row in range(len(tokens)):
        assert response_of(tokens, tokenizer, row) == data.field(row, "output") + "</s>"
        assert tokens.row(row)[0][-1] == tokenizer.eos_token_id
    assert tokens.truncated == 0
    assert tokens.lengths().sum() == len(tokens.ids)


def test_long_rows_are_cut_and_counted(tmp_path, tokenizer, rows):
    data = loaded(tmp_path, rows)
    whole, cut = tokenize(data, tokenizer, 4096), tokenize(data, tokenizer, 90)
    assert cut.truncated == int((whole.lengths() > 90).sum()) > 0
    assert cut.lengths().max() == 90
    for row in range(len(rows)):
        np.testing.assert_array_equal(cut.row(row)[0], whole.row(row)[0][:90])
        np.testing.assert_array_equal(cut.row(row)[1], whole.row(row)[1][:90])


def test_every_assistant_turn_of_a_conversation_is_response(tmp_path, tokenizer):
    turns = [("system", "Be kind."), ("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2.")]
    data = loaded(tmp_path, [{"messages": [{"role": role, "content": text} for role, text in turns]}])
    with pytest.raises(InputError, match="conversations need a chat template"):
        choose_template(None, data, tokenizer)
    tokenizer.chat_template = CHAT
    choose_template(None, data, tokenizer)
    segments = render(data, 0, tokenizer)
    assert "".join(text for text, _ in segments) == (
        "<system>Be kind.<user>One?<assistant>1.</s><user>Two?<assistant>2.</s>"
    )
    assert [text for text, is_response in segments if is_response] == ["1.</s>", "2.</s>"]
    assert response_of(tokenize(data, tokenizer, 4096), tokenizer, 0) == "1.</s>2.</s>"


def test_chat_templates_that_refuse_or_reorder(tmp_path, tokenizer):
    data = loaded(
        tmp_path, [{"messages": [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]}]
    )
    tokenizer.chat_template = "{{ raise_exception('no tools here') }}"
    with pytest.raises(InputError, match=r"row 0: the tokenizer's chat template refuses it: no tools here"):
        render(data, 0, tokenizer)
    tokenizer.chat_template = "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="does not keep earlier turns"):
        render(data, 0, tokenizer)


def test_sharegpt_is_the_same_as_messages(tmp_path, tokenizer):
    tokenizer.chat_template = CHAT
    pair = [("human", "user", "Hi"), ("gpt", "assistant", "Hello")]
    a = loaded(tmp_path, [{"conversations": [{"from": f, "value": v} for f, _, v in pair]}])
    b = loaded(tmp_path, [{"messages": [{"role": r, "content": v} for _, r, v in pair]}])
    assert render(a, 0, tokenizer) == render(b, 0, tokenizer)


def test_json_rows_survive(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"instruction": "a\u2028b", "output": "c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_data(str(path))[0].field(0, "instruction") == "a\u2028b"
