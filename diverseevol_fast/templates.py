"""A row to training text, and training text to token ids with the response marked."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .data import Data
from .errors import InputError
from .files import atomic_path
from .progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

TOKENIZE_ROWS = 4096  # rows handed to the tokenizer at once

Segments = list[tuple[str, bool]]  # (text, whether it is response), joined they are the training text


@dataclass(frozen=True)
class Tokens:
    """Rows as token ids, flat: row i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # [total] int32
    is_response: np.ndarray  # [total] bool
    offsets: np.ndarray  # [N + 1] int64
    truncated: int  # rows longer than the limit, cut to it

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.diff(self.offsets)

    def sha256(self) -> str:
        """Digest of all token ids and response marks."""
        digest = hashlib.sha256()
        for part in (self.ids, self.is_response, self.offsets):
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write them as .npz, whole or not at all."""
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, ids=self.ids, is_response=self.is_response, offsets=self.offsets, truncated=self.truncated)

    @staticmethod
    def load(path: Path) -> "Tokens":
        """Read what save wrote."""
        with np.load(path, allow_pickle=False) as saved:
            return Tokens(saved["ids"], saved["is_response"], saved["offsets"], int(saved["truncated"]))

    def has_response(self, index: int) -> bool:
        """Whether a token of the row can be trained on: response, and not the first."""
        return bool(self.row(index)[1][1:].any())

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and is_response of one row."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.is_response[part]


def prompt_of(instruction: str, further: str = "") -> str:
    """The training text up to where the response begins; further: the row's `input`, which may be empty."""
    return (PROMPT_WITH_INPUT if further else PROMPT).format(instruction=instruction, input=further)


def render(data: Data, index: int, tokenizer: "PreTrainedTokenizerBase") -> Segments:
    """The training text of a row: prompt, response and end token, cut where the response begins and ends.

    A plain text is taken as it is. Conversations go through the tokenizer's chat template; every assistant turn is
    response.

    Raises:
        InputError: a conversation that the chat template refuses or reorders.
    """
    if data.schema == "text":
        return [(data.field(index, "text"), False)]
    if data.schema == "alpaca":
        prompt = prompt_of(data.field(index, "instruction"), data.field(index, "input"))
        return [(prompt, False), (data.field(index, "output") + (tokenizer.eos_token or ""), True)]
    return _render_conversation(data, index, tokenizer)


def _render_conversation(data: Data, index: int, tokenizer: "PreTrainedTokenizerBase") -> Segments:
    from jinja2 import TemplateError

    turns = data.conversation(index)
    where = f"{data.source}, row {index}"

    def text_of(count: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=prompt)

    try:
        whole = text_of(len(turns), False)
        cuts = [0]
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                begin, end = text_of(number, True), text_of(number + 1, False)
                if not (whole.startswith(begin) and whole.startswith(end)):
                    raise InputError(
                        f"{where}: the chat template does not keep earlier turns; cannot find turn {number}"
                    )
                cuts += [len(begin), len(end)]
    except TemplateError as error:
        raise InputError(f"{where}: the tokenizer's chat template refuses it: {error}") from error
    cuts.append(len(whole))
    segments = [(whole[a:b], position % 2 == 1) for position, (a, b) in enumerate(pairwise(cuts))]
    return [segment for segment in segments if segment[0]]


def check_template(data: Data, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises InputError when the rows are conversations and the tokenizer has no chat template."""
    if data.schema not in ("alpaca", "text") and not tokenizer.chat_template:
        raise InputError(
            f"{data.source}: conversations need a chat template, and the model's tokenizer has none; "
            "use a model with one, or convert the rows to instruction / input / output"
        )


def tokenize(
    data: Data, tokenizer: "PreTrainedTokenizerBase", max_length: int, left_out: Collection[int] = ()
) -> Tokens:
    """All rows' training texts as token ids, cut to max_length; the rows left out have none.

    Raises:
        InputError: a tokenizer without character offsets, a row of which no token is left.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__}: expected a fast tokenizer (with character offsets)")
    none = np.empty(0, dtype=np.int32)
    ids, marks, truncated = [none] * len(data.rows), [none.astype(bool)] * len(data.rows), 0
    wanted = np.setdiff1d(np.arange(len(data.rows)), np.array(sorted(left_out), dtype=np.int64)).tolist()
    bar = Progress("tokenize", len(wanted), "row")
    for start in range(0, len(wanted), TOKENIZE_ROWS):
        rows = wanted[start : start + TOKENIZE_ROWS]
        segments = [render(data, index, tokenizer) for index in rows]
        encoded = tokenizer(
            ["".join(text for text, _ in parts) for parts in segments],
            add_special_tokens=data.schema in ("alpaca", "text"),  # a chat template writes its own
            truncation=True,
            max_length=max_length,
        )
        for index, parts, encoding in zip(rows, segments, encoded.encodings, strict=True):
            if len(encoding.ids) > max_length:
                raise InputError(
                    f"max_length: expected more than the tokens that the tokenizer adds to every row, got {max_length}"
                )
            if not encoding.ids:
                raise InputError(f"{data.source}, row {index}: the tokenizer makes no token of it")
            ids[index] = np.array(encoding.ids, dtype=np.int32)
            marks[index] = _mark_response(parts, encoding.offsets)
            truncated += bool(encoding.overflowing)
        bar.update(len(rows))
    bar.close()
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    return Tokens(np.concatenate(ids), np.concatenate(marks), offsets, truncated)


def _mark_response(parts: Segments, spans: list[tuple[int, int]]) -> np.ndarray:
    """For each token's character span, whether the token ends inside a response segment: bool [tokens]."""
    edges = np.cumsum([0] + [len(text) for text, _ in parts])
    inside = np.array([flag for _, flag in parts])
    ends = np.array([end for _, end in spans], dtype=np.int64)  # 0 for tokens that the tokenizer added
    part = np.searchsorted(edges, ends, side="left") - 1  # the segment that holds the token's last character
    return (ends > 0) & inside[np.clip(part, 0, len(parts) - 1)]
