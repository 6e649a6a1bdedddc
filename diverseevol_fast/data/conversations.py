"""A conversation to text by the tokenizer's chat template, cut where each assistant turn begins and ends."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from .._common.errors import InputError
from .schemas import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = dict[int, tuple[int, int]]  # a turn's number -> where it begins and ends in the text

MARK = re.compile("\ue000([0-9]+)\ue001")  # stands for a turn's content


def conversation_segments(turns: Turns, tokenizer: "PreTrainedTokenizerBase", where: str) -> list[tuple[str, bool]]:
    """The conversation's text in pieces, each with whether it is an assistant turn.

    An assistant turn begins where the turns before it and the generation prompt end, and ends where the conversation
    up to it does; one that begins the conversation answers nothing, and does not count. where: names the conversation
    in an error.

    Raises:
        InputError: the chat template refuses the conversation or reorders it.
    """
    from jinja2 import TemplateError

    chat = _Conversation(turns, tokenizer, where)
    try:
        spans = chat.spans()
    except TemplateError as error:
        raise InputError(f"{where}: the tokenizer's chat template refuses it: {error}") from error
    cuts = [0, *(place for number in sorted(spans) for place in spans[number]), len(chat.whole)]
    pieces = [(chat.whole[a:b], position % 2 == 1) for position, (a, b) in enumerate(pairwise(cuts))]
    return [piece for piece in pieces if piece[0]]


class _Conversation:
    def __init__(self, turns: Turns, tokenizer: "PreTrainedTokenizerBase", where: str):
        self.turns, self.tokenizer, self.where = turns, tokenizer, where
        self.whole = ""

    def render(self, turns: Turns, prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        return str(text)

    def spans(self) -> Spans:
        """Where every assistant turn is. Each place takes a rendering of all turns before it: quadratic in all.

        So only some are looked up, where that is fewer: the first and the last turn of those between the same roles.
        """
        self.whole = self.render(self.turns, False)
        numbers = [number for number, turn in enumerate(self.turns) if number and turn["role"] == "assistant"]
        between = {number: self._neighbours(number) for number in numbers}
        first = {roles: number for number, roles in reversed(between.items())}
        last = {roles: number for number, roles in between.items()}
        examples = {*first.values(), *last.values()}
        if len(examples) < len(numbers) and (spans := self._like(examples, between)):
            return spans
        return self._looked_up(numbers)

    def _neighbours(self, number: int) -> tuple[str, str | None]:
        following = self.turns[number + 1]["role"] if number + 1 < len(self.turns) else None
        return self.turns[number - 1]["role"], following

    def _looked_up(self, numbers: Iterable[int]) -> Spans:
        """Where these turns are, by rendering what comes before them."""
        spans = {}
        for number in numbers:
            begin, end = self.render(self.turns[:number], True), self.render(self.turns[: number + 1], False)
            if not (self.whole.startswith(begin) and self.whole.startswith(end)):
                raise InputError(
                    f"{self.where}: the chat template does not keep earlier turns; cannot find turn {number}"
                )
            spans[number] = len(begin), len(end)
        return spans

    def _like(self, examples: set[int], between: dict[int, tuple[str, str | None]]) -> Spans | None:
        """Every assistant turn's place, in relation to its content as the examples' are to theirs.

        None: contents cannot be told from what is written around them, or turns between the same roles differ in that.
        """
        contents = self._contents()
        if contents is None:
            return None
        try:
            found = self._looked_up(sorted(examples))
        except InputError:  # the first turn that cannot be found is to be named
            return None
        around: dict[tuple[str, str | None], tuple[str, str]] = {}
        for number, span in found.items():
            text = self._around(contents[number], span)
            if text is None or around.setdefault(between[number], text) != text:
                return None
        spans = {}
        for number, roles in between.items():
            (start, stop), (lead, tail) = contents[number], around[roles]
            spans[number] = start - len(lead), stop + len(tail)
            if self._around(contents[number], spans[number]) != (lead, tail):
                return None
        return spans

    def _around(self, content: tuple[int, int], span: tuple[int, int]) -> tuple[str, str] | None:
        """What a turn has before and after its content; None where the content is not within the turn."""
        (start, stop), (begin, end) = content, span
        return (self.whole[begin:start], self.whole[stop:end]) if begin <= start and stop <= end else None

    def _contents(self) -> list[tuple[int, int]] | None:
        """Where each turn's content is, as it came or stripped, between what is written around marks in its place."""
        from jinja2 import TemplateError

        marked = [turn | {"content": f"\ue000{number}\ue001"} for number, turn in enumerate(self.turns)]
        try:
            pieces = MARK.split(self.render(marked, False))  # text, number, text, number, ..., text
        except TemplateError:
            return None
        if pieces[1::2] != [str(number) for number in range(len(self.turns))]:
            return None
        place, contents = len(pieces[0]), []
        for turn, following in zip(self.turns, pieces[2::2], strict=True):
            written = (turn["content"], turn["content"].strip())
            content = next((text for text in written if self.whole.startswith(text + following, place)), None)
            if content is None:
                return None
            contents.append((place, place + len(content)))
            place += len(content) + len(following)
        return contents if self.whole.startswith(pieces[0]) and place == len(self.whole) else None
