"""Training text, tokens and the response mark."""

import io
import json
import sys

import numpy as np
import pytest
import sentencepiece
from support.data import data_of
from support.runs import CHAT

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.data.dataset import load_data, write_rows
from diverseevol_fast.data.templates import choose_template, render
from diverseevol_fast.data.tokens import tokenize
from diverseevol_fast.models.load import load_tokenizer


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
        assert response_of(tokens, tokenizer, row) == data.fields(row)["output"] + "</s>"
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
    assert load_data(str(path))[0].fields(0)["instruction"] == "a\u2028b"


TALK = [("system", "Be kind."), ("user", "One?"), ("assistant", " 1.\n"), ("user", ""), ("assistant", "2.")]
PLAIN_TALK = [("Be kind.\nOne?\n", False), (" 1.\n</s>", True), ("\n", False), ("2.</s>", True)]


def talk(turns=TALK):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def joined(segments):
    """The segments, with neighbors of one kind joined."""
    together = []
    for text, is_response in segments:
        if together and together[-1][1] == is_response:
            together[-1] = (together[-1][0] + text, is_response)
        else:
            together.append((text, is_response))
    return together


def test_plain_texts_are_the_parts_that_are_not_empty(tmp_path, tokenizer):
    rows = [{"instruction": "A {b}", "input": "I", "output": "C"}, {"instruction": "A", "input": " ", "output": "C"}]
    data = loaded(tmp_path, rows)
    plain = choose_template("plain", data, tokenizer)
    assert joined(plain.segments(data, 0, tokenizer)) == [("A {b}\nI\n", False), ("C</s>", True)]
    assert joined(plain.segments(data, 1, tokenizer)) == [("A\n", False), ("C</s>", True)]
    encoders = choose_template(None, data, tokenizer, encoder=True)
    assert "".join(text for text, _ in encoders.segments(data, 0, tokenizer)) == "A {b}\nI\nC"
    assert response_of(tokenize(data, tokenizer, 4096, template=plain), tokenizer, 0) == "C</s>"
    data = loaded(tmp_path, [talk()])
    assert joined(choose_template("plain", data, tokenizer).segments(data, 0, tokenizer)) == PLAIN_TALK


def test_instructions_through_the_chat_template(tmp_path, tokenizer):
    data = loaded(tmp_path, [{"instruction": "A", "input": "I", "output": "C"}])
    with pytest.raises(InputError, match="template 'chat': the model's tokenizer has no chat template"):
        choose_template("chat", data, tokenizer)
    tokenizer.chat_template = CHAT
    chat = choose_template("chat", data, tokenizer)
    assert chat.segments(data, 0, tokenizer) == [("<user>A\n\nI<assistant>", False), ("C</s>", True)]
    assert not chat.special_tokens


def written(tmp_path, text):
    path = tmp_path / "my template.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_is_filled_as_it_stands(tmp_path, tokenizer):
    data = loaded(tmp_path, [{"instruction": "A {input}", "input": "{0}", "output": "C"}])
    path = written(tmp_path, "{{Ä}} {instruction}|{input}\n\n{output}\n")
    template = choose_template(path, data, tokenizer)
    template.check_trainable()
    assert joined(template.segments(data, 0, tokenizer)) == [("{Ä} A {input}|{0}\n\n", False), ("C</s>", True)]
    assert list(template.provenance(data)) == ["template"]
    other = choose_template(written(tmp_path, "{instruction}|{output} "), data, tokenizer)
    assert other.provenance(data) != template.provenance(data)
    assert joined(other.segments(data, 0, tokenizer))[1:] == [("C", True), (" </s>", False)]
    with pytest.raises(InputError, match=r"my template.txt: expected \{output\} once, as its end"):
        other.check_trainable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{instruction} {answer}", r"unknown placeholder \{answer\}"),
        ("{instruction.__class__}{output}", r"unknown placeholder \{instruction.__class__\}"),
        ("{instruction[0]}", r"unknown placeholder \{instruction\[0\]\}"),
        ("{instruction!r:>9}", r"unknown placeholder \{instruction!r:>9\}"),
        ("{}", r"unknown placeholder \{\}"),
        ("{instruction} }", "Single '}'"),
        ("{instruction", "expected '}'"),
        ("text alone", "has no placeholder"),
        ("", "has no placeholder"),
    ],
)
def test_a_file_with_anything_else_is_refused_by_name(tmp_path, tokenizer, text, words):
    data = loaded(tmp_path, [{"instruction": "A", "output": "C"}])
    with pytest.raises(InputError, match=f"my template.txt: {words}"):
        choose_template(written(tmp_path, text), data, tokenizer)


def test_templates_that_do_not_fit_the_rows_are_refused(tmp_path, tokenizer):
    conversations, path = loaded(tmp_path, [talk()]), written(tmp_path, "{instruction}{output}")
    for name in ("alpaca", path):
        with pytest.raises(InputError, match="the rows are conversations; expected chat or plain"):
            choose_template(name, conversations, tokenizer)
    with pytest.raises(InputError, match="the rows are texts"):
        choose_template("alpaca", data_of(["a"]), tokenizer)
    with pytest.raises(
        InputError, match="template 'absent': expected alpaca, plain, chat or a text file: No such file"
    ):
        choose_template("absent", data_of(["a"]), tokenizer)


def test_a_record_names_what_is_not_the_schemas_own(tmp_path, tokenizer):
    data = loaded(tmp_path, [{"instruction": "A", "output": "C"}])
    assert choose_template(None, data, tokenizer).provenance(data) == {}
    assert choose_template("alpaca", data, tokenizer).provenance(data) == {}
    assert choose_template(None, data, tokenizer, encoder=True).provenance(data) == {"template": "plain"}
    assert choose_template(None, data_of(["a"]), tokenizer, encoder=True).provenance(data_of(["a"])) == {}


def test_what_is_used_is_said(tmp_path, tokenizer, caplog):
    data = loaded(tmp_path, [{"instruction": "A", "output": "C"}])
    caplog.clear()
    with caplog.at_level("INFO", "diverseevol_fast"):
        choose_template("plain", data, tokenizer)
        choose_template(None, data, tokenizer, encoder=True)
        choose_template(None, data, tokenizer)
    assert caplog.messages == [
        "template: plain, as given",
        "template: plain, the default for encoders",
        "template: alpaca, the default for alpaca rows",
    ]


@pytest.fixture
def spm_folder(tmp_path, rows):
    """A LLaMA folder whose tokenizer is a SentencePiece tokenizer.model alone."""
    folder, model = tmp_path / "llama", io.BytesIO()
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{row['instruction']} {row['output']}" for row in rows),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return folder


def test_a_tokenizer_model_alone_is_read(spm_folder):
    tokenizer = load_tokenizer(spm_folder)
    own = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    assert tokenizer.is_fast
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", own.eos_id())
    for text in ("Write a poem", "Größe 😀", "a = b"):
        assert tokenizer(text, add_special_tokens=False).input_ids == own.encode(text)


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_what_a_tokenizer_model_needs_is_named(spm_folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", raises(ImportError("`tiktoken` is required")))
    with pytest.raises(InputError, match=r"llama: its tokenizer.model needs .*; pip install sentencepiece protobuf$"):
        load_tokenizer(spm_folder)


def raises(error):
    def failing(*args, **options):
        raise error

    return failing
