"""Templates: the text that a model sees of a row, with the response marked."""

import hashlib
import itertools
import json
import logging
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._common.errors import InputError
from .conversations import conversation_segments
from .dataset import Data
from .schemas import FIELDS, TEXT, Alpaca, Parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

# The prompt texts of Alpaca, as DiverseEvol uses them.
PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)

TEMPLATES = ("alpaca", "plain", "chat")

Segments = Parts  # pieces of the row's text, in order


@dataclass(frozen=True)
class Template:
    """How the text that a model sees is made of a row."""

    name: str  # one of TEMPLATES, or a file's name
    ends: bool = True  # whether the tokenizer's end token follows a response, as in training
    before: str = ""  # the beginning of every text: a sentence-transformers model's prompt
    pieces: tuple[tuple[str, str | None], ...] = ()  # of a template file: (text, the placeholder after it)

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer adds its special tokens; a chat template has written them for training already."""
        return self.name != "chat" or not self.ends

    def segments(self, data: Data, index: int, tokenizer: "PreTrainedTokenizerBase") -> Segments:
        """A row's text, cut where the response begins and ends; every assistant turn of a conversation is a response.

        Raises:
            InputError: the chat template refuses or reorders the conversation.
        """
        end = str(tokenizer.eos_token or "") if self.ends else ""
        if self.pieces:
            segments = self._filled(data, index, end)
        elif self.name == "chat":
            segments = conversation_segments(data.turns(index), tokenizer, f"{data.source}, row {index}")
        elif self.name == "alpaca":
            fields = data.fields(index)
            segments = [(prompt_of(fields["instruction"], fields["input"]), False), (fields["output"] + end, True)]
        elif data.schema is TEXT:
            segments = data.parts(index)
        else:
            segments = _plain(data.parts(index), end)
        return [(self.before, False), *segments] if self.before else segments

    def _filled(self, data: Data, index: int, end: str) -> Segments:
        segments, fields = [], data.fields(index)
        for text, name in self.pieces:
            segments += [(text, False)] if text else []
            segments += [(fields[name], name == "output")] if name else []
        last, is_response = segments.pop()
        return [*segments, (last + end, is_response)]

    def prompt(self, instruction: str, further: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        """The text before the response, for all templates but "chat". further: the row's `input`, possibly empty."""
        row = {"instruction": instruction, "input": further, "output": "."}
        segments = self.segments(Data([row], Alpaca(), {name: name for name in FIELDS}, "prompt"), 0, tokenizer)
        return "".join(text for text, _ in itertools.takewhile(lambda segment: not segment[1], segments))

    def provenance(self, data: Data) -> dict[str, str]:
        """The template's entry in a provenance; none for the schema's default, as in records of earlier versions."""
        if self.name == data.schema.template:
            return {}
        text = json.dumps(self.pieces)
        return {"template": hashlib.sha256(text.encode()).hexdigest() if self.pieces else self.name}

    def check_trainable(self) -> None:
        """Raises InputError unless the text ends with the response, which is the part that a model is trained on."""
        names = [name for _, name in self.pieces if name]
        if self.pieces and (names.count("output") != 1 or self.pieces[-1][1] != "output"):
            raise InputError(
                f"template {self.name}: expected {{output}} once, as its end, to train on what stands there"
            )


def choose_template(
    name: str | None, data: Data, tokenizer: "PreTrainedTokenizerBase", *, encoder: bool = False, before: str = ""
) -> Template:
    """The template for embedding and training: the named one, or the default. The choice is logged.

    Args:
        name: "alpaca" (DiverseEvol's prompts), "plain" (the row's texts that are not empty, joined by line breaks),
            "chat" (the tokenizer's chat template), a file with {instruction}, {input} and {output}, or None: "plain"
            for encoders and texts, else "alpaca" for instructions and "chat" for conversations.
        encoder: whether the model is an encoder, which reads texts without prompt and end token.
        before: the beginning of every text.

    Raises:
        InputError: there is no such template, or it does not fit the rows or the tokenizer.
    """
    default = "plain" if encoder else data.schema.template
    chosen = default if name is None else name
    pieces = () if chosen in TEMPLATES else read_template(Path(chosen))
    schema = data.schema
    if schema is TEXT and chosen != "plain":
        raise InputError(
            f"template '{chosen}': the rows are texts, which are taken as they are; expected none, or plain"
        )
    if schema.is_conversation and (pieces or chosen == "alpaca"):
        raise InputError(f"template '{chosen}': the rows are conversations; expected chat or plain")
    if chosen == "chat" and not tokenizer.chat_template:
        if not schema.is_conversation:
            raise InputError("template 'chat': the model's tokenizer has no chat template; expected alpaca or plain")
        raise InputError(
            f"{data.source}: conversations need a chat template, and the model's tokenizer has none; "
            "use a model with one, or the template 'plain'"
        )
    why = "as given" if name else "the default for encoders" if encoder else f"the default for {schema.name} rows"
    log.info("template: %s, %s", chosen, why)
    return Template(chosen, not encoder, before, pieces)


def read_template(path: Path) -> tuple[tuple[str, str | None], ...]:
    """A template file's pieces: (text, the placeholder after it). A line break at the end of the file is dropped."""
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"template '{path}': expected {', '.join(TEMPLATES)} or a text file: {reason}") from error
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"template {path}: {error}; a brace of the text is written twice: {{{{ or }}}}") from error
    for _, name, form, conversion in parsed:
        if name is not None and (name not in FIELDS or form or conversion):
            written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise InputError(
                f"template {path}: unknown placeholder {{{written}}}; expected {{instruction}}, {{input}}, {{output}}; "
                "a brace of the text is written twice: {{ or }}"
            )
    pieces = tuple((literal, name) for literal, name, _, _ in parsed)
    if not any(name for _, name in pieces):
        raise InputError(f"template {path}: has no placeholder; expected {{instruction}}, {{input}} or {{output}}")
    return pieces


def _plain(parts: Parts, end: str) -> Segments:
    """The row's texts that are not empty, joined by line breaks."""
    segments: Segments = []
    for text, is_response in parts:
        if text.strip():
            segments += [("\n", False)] if segments else []
            segments.append((text + end if is_response else text, is_response))
    return segments


def prompt_of(instruction: str, further: str = "") -> str:
    """The training text before the response. further: the row's `input`, possibly empty."""
    return (PROMPT_WITH_INPUT if further else PROMPT).format(instruction=instruction, input=further)


def render(data: Data, index: int, tokenizer: "PreTrainedTokenizerBase", template: Template | None = None) -> Segments:
    """A row's segments by a template; None: the schema's default, on which a causal model is trained.

    Raises:
        InputError: the chat template refuses or reorders the conversation.
    """
    return (template or Template(data.schema.template)).segments(data, index, tokenizer)
