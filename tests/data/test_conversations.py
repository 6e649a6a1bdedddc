"""Chat templates: a few renderings cut long conversations as rendering turn by turn does."""

import random
from itertools import pairwise

import pytest

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.data.conversations import conversation_segments
from diverseevol_fast.models.load import load_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<bos>{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
INST = (
    "<s>{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content.strip() }}</s>"
    "{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %}[INST] {{ m.content }} [/INST]{% endif %}"
    "{% endfor %}"
)
REGULAR = {"chatml": CHATML, "llama-3": LLAMA3, "dated": DATED, "no system": NO_SYSTEM, "inst": INST}
ODD = {
    "upper case": CHATML.replace("m.content", "m.content | upper"),
    "by content": CHATML.replace("<|im_end|>", "{{ '.' if 'a' in m.content }}<|im_end|>"),
    "numbered": CHATML.replace("<|im_end|>", "<|im_end|>{{ loop.index }}"),
    "twice": CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
    "ends when long": CHATML.replace("<|im_end|>", "{{ '!' if loop.index > 9 }}<|im_end|>"),
    "reorders": "{% for m in messages | reverse %}{{ m.role }}{{ m.content }}{% endfor %}",
    "reads the last turn": "{{ messages[-1].content }}" + CHATML,
    "another last turn": CHATML.replace("<|im_end|>", "{{ '<think></think>' if loop.last }}<|im_end|>"),
}
PARTS = ("", " ", "a", "user", "\n", "assistant", "<|im_end|>", "\ue0000\ue001", " spaced ", "[/INST]", "1")


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def turn_by_turn(turns, tokenizer):
    """The segments, with every turn rendered."""

    def text_of(count, prompt):
        return tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=prompt)

    whole, cuts = text_of(len(turns), False), [0]
    for number, turn in enumerate(turns):
        if number and turn["role"] == "assistant":
            cuts += [len(text_of(number, True)), len(text_of(number + 1, False))]
            if not all(whole.startswith(text_of(*part)) for part in ((number, True), (number + 1, False))):
                raise InputError(f"cannot find turn {number}")
    cuts.append(len(whole))
    return [(whole[a:b], i % 2 == 1) for i, (a, b) in enumerate(pairwise(cuts)) if b > a]


def conversation(draw, length, roles=None):
    """Turns with alternating roles, or with `roles`."""
    turns = [{"role": "system", "content": "Be kind."}] if draw.random() < 0.5 else []
    for number in range(length):
        role = draw.choice(roles) if roles else ("user", "assistant")[number % 2]
        turns.append({"role": role, "content": "".join(draw.choices(PARTS, k=draw.randrange(4)))})
    return turns


def outcome(function, *args):
    try:
        return function(*args)
    except InputError as error:
        return str(error).rpartition("cannot find")[2]


@pytest.mark.parametrize("name", [*REGULAR, *ODD])
def test_segments_are_those_turn_by_turn(tokenizer, name):
    tokenizer.chat_template = (REGULAR | ODD)[name]
    draw = random.Random(name)
    for roles in (None, ("user", "assistant"), ("user", "assistant", "tool")):
        for length in (1, 5, 24):
            for _ in range(4):
                turns = conversation(draw, length, roles)
                if name == "no system" and turns[0]["role"] == "system":
                    with pytest.raises(InputError, match="row 7: the tokenizer's chat template refuses it: System"):
                        conversation_segments(turns, tokenizer, "row 7")
                    continue
                expected = outcome(turn_by_turn, turns, tokenizer)
                assert outcome(conversation_segments, turns, tokenizer, "row 7") == expected


@pytest.mark.parametrize("name", REGULAR)
def test_a_long_conversation_takes_a_few_renderings(tokenizer, name, monkeypatch):
    tokenizer.chat_template = REGULAR[name]
    renderings, render = [], tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda turns, **kwargs: renderings.append(turns) or render(turns, **kwargs)
    )
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(3000)]
    segments = conversation_segments(turns, tokenizer, "row 0")
    assert len(renderings) <= 8
    assert sum(is_response for _, is_response in segments) == 1500
    assert all(f"turn {2 * n + 1}" in text for n, (text, _) in enumerate(segments[1::2]))
