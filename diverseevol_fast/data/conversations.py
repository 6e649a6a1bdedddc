"""The text of a conversation by the tokenizer's chat template, cut where each assistant turn begins and ends."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from .._common.errors import InputError
from .schemas import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # first character in the text, and the one after the last
Roles = tuple[str, str | None]  # of the turns before and after a turn; None: it is the last

MARK = re.compile("\ue000([0-9]+)\ue001")  # replaces the content of the turn with that index


def conversation_segments(turns: Turns, tokenizer: "PreTrainedTokenizerBase", where: str) -> list[tuple[str, bool]]:
    """The conversation's text in pieces, each with whether it is an assistant turn.

    An assistant turn begins where the text of the turns before it, generation prompt included, ends, and ends where
    the text up to it ends. A first turn of the assistant answers nothing, so it is not marked. `where` names the
    conversation in errors.

    Raises:
        InputError: the chat template refuses the conversation or reorders it.
    """
    from jinja2 import TemplateError

    chat = _Conversation(turns, tokenizer, where)
    try:
        spans = chat.spans()
    except TemplateError as error:
        raise InputError(f"{where}: the tokenizer's chat template refuses it: {error}") from error
    cuts = [0, *(cut for index in sorted(spans) for cut in spans[index]), len(chat.whole)]
    pieces = [(chat.whole[a:b], i % 2 == 1) for i, (a, b) in enumerate(pairwise(cuts))]
    return [piece for piece in pieces if piece[0]]


class _Conversation:
    """A conversation whose text, `whole`, `spans` renders."""

    def __init__(self, turns: Turns, tokenizer: "PreTrainedTokenizerBase", where: str):
        self.turns, self.tokenizer, self.where = turns, tokenizer, where
        self.whole = ""

    def render(self, turns: Turns, prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        return str(text)

    def spans(self) -> dict[int, Span]:
        """The span of every assistant turn, by the turn's index.

        A span takes two renderings of all turns up to it, so rendering for every turn is quadratic. Turns between the
        same roles are mostly framed alike: the first and the last of them are rendered, the others' spans inferred.
        """
        self.whole = self.render(self.turns, False)
        indices = [index for index, turn in enumerate(self.turns) if index and turn["role"] == "assistant"]
        between = {index: self._neighbors(index) for index in indices}
        first = {roles: index for index, roles in reversed(between.items())}
        last = {roles: index for index, roles in between.items()}
        examples = {*first.values(), *last.values()}
        if len(examples) < len(indices) and (spans := self._inferred_spans(examples, between)):
            return spans
        return self._rendered_spans(indices)

    def _neighbors(self, index: int) -> Roles:
        following = self.turns[index + 1]["role"] if index + 1 < len(self.turns) else None
        return self.turns[index - 1]["role"], following

    def _rendered_spans(self, indices: Iterable[int]) -> dict[int, Span]:
        """The spans of these turns, from the lengths of the texts before and up to each."""
        spans = {}
        for index in indices:
            begin, end = self.render(self.turns[:index], True), self.render(self.turns[: index + 1], False)
            if not (self.whole.startswith(begin) and self.whole.startswith(end)):
                raise InputError(
                    f"{self.where}: the chat template does not keep earlier turns; cannot find turn {index}"
                )
            spans[index] = len(begin), len(end)
        return spans

    def _inferred_spans(self, examples: set[int], between: dict[int, Roles]) -> dict[int, Span] | None:
        """The span of every assistant turn: its content with the frame that the examples between the same roles have.

        None: a content cannot be told from its frame, or the frames between the same roles differ.
        """
        contents = self._content_spans()
        if contents is None:
            return None
        try:
            rendered = self._rendered_spans(sorted(examples))
        except InputError:  # rendering all turns names the first one that the template does not keep
            return None
        frames: dict[Roles, tuple[str, str]] = {}
        for index, span in rendered.items():
            frame = self._frame(contents[index], span)
            if frame is None or frames.setdefault(between[index], frame) != frame:
                return None
        spans = {}
        for index, roles in between.items():
            (start, stop), (lead, tail) = contents[index], frames[roles]
            spans[index] = start - len(lead), stop + len(tail)
            if self._frame(contents[index], spans[index]) != (lead, tail):
                return None
        return spans

    def _frame(self, content: Span, turn: Span) -> tuple[str, str] | None:
        """The text of a turn before and after its content; None where the content is not within the turn."""
        (start, stop), (begin, end) = content, turn
        return (self.whole[begin:start], self.whole[stop:end]) if begin <= start and stop <= end else None

    def _content_spans(self) -> list[Span] | None:
        """The span of each turn's content, as given or stripped, from a rendering with marks instead of contents."""
        from jinja2 import TemplateError

        marked = [turn | {"content": f"\ue000{index}\ue001"} for index, turn in enumerate(self.turns)]
        try:
            pieces = MARK.split(self.render(marked, False))  # text, index, text, index, ..., text
        except TemplateError:
            return None
        if pieces[1::2] != [str(index) for index in range(len(self.turns))]:
            return None
        start, spans = len(pieces[0]), []
        for turn, following in zip(self.turns, pieces[2::2], strict=True):
            candidates = (turn["content"], turn["content"].strip())
            content = next((text for text in candidates if self.whole.startswith(text + following, start)), None)
            if content is None:
                return None
            spans.append((start, start + len(content)))
            start += len(content) + len(following)
        return spans if self.whole.startswith(pieces[0]) and start == len(self.whole) else None
