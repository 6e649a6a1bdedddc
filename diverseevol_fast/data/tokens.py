"""The token ids of texts, with the response marked."""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._common.errors import InputError
from .._common.files import atomic_path
from .._common.messages import shown
from .._common.progress import Progress
from .dataset import Data
from .schemas import Parts
from .templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("diverseevol_fast")

TOKENIZE_ROWS = 4096  # rows in one call of the tokenizer
SAMPLE_SHOWN = 600  # characters


@dataclass(frozen=True)
class Tokens:
    """The token ids of all rows in one array: row i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # [total] int32
    is_response: np.ndarray  # [total] bool
    offsets: np.ndarray  # [N + 1] int64
    truncated: int  # number of rows that were cut to the limit

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """The number of tokens of each row: int64 [N]."""
        return np.diff(self.offsets)

    def sha256(self) -> str:
        """Digest of all token ids and response marks."""
        digest = hashlib.sha256()
        for part in (self.ids, self.is_response, self.offsets):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write an .npz file atomically."""
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, ids=self.ids, is_response=self.is_response, offsets=self.offsets, truncated=self.truncated)

    @staticmethod
    def load(path: Path) -> "Tokens":
        """Read a file that save wrote."""
        with np.load(path, allow_pickle=False) as saved:
            return Tokens(saved["ids"], saved["is_response"], saved["offsets"], int(saved["truncated"]))

    def has_response(self, index: int) -> bool:
        """Whether the row has a token to train on: one of the response that is not the row's first token."""
        return bool(self.row(index)[1][1:].any())

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One row: ids [T] int32 and is_response [T] bool."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.is_response[part]


def tokenize(
    data: Data,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    left_out: Collection[int] = (),
    template: Template | None = None,
) -> Tokens:
    """The token ids of all rows' texts by the template, cut to max_length. The rows in left_out get no tokens.

    Raises:
        InputError: the tokenizer has no character offsets or makes no token of a row, or max_length leaves none.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__}: expected a fast tokenizer (with character offsets)")
    template = template or Template(data.schema.template)
    none = np.empty(0, dtype=np.int32)
    ids, marks, truncated = [none] * len(data.rows), [none.astype(bool)] * len(data.rows), 0
    wanted = np.setdiff1d(np.arange(len(data.rows)), np.array(sorted(left_out), dtype=np.int64)).tolist()
    bar = Progress("tokenize", len(wanted), "row")
    for start in range(0, len(wanted), TOKENIZE_ROWS):
        rows = wanted[start : start + TOKENIZE_ROWS]
        segments = [template.segments(data, index, tokenizer) for index in rows]
        encoded = tokenizer(
            ["".join(text for text, _ in parts) for parts in segments],
            add_special_tokens=template.special_tokens,
            truncation=True,
            max_length=max_length,
        )
        for index, parts, encoding in zip(rows, segments, encoded.encodings or [], strict=True):
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


def _mark_response(parts: Parts, spans: list[tuple[int, int]]) -> np.ndarray:
    """Whether each token, given by its character span, ends inside a response segment: bool [tokens]."""
    if not parts:  # an empty row has the tokenizer's special tokens alone
        return np.zeros(len(spans), dtype=bool)
    edges = np.cumsum([0] + [len(text) for text, _ in parts])
    inside = np.array([flag for _, flag in parts])
    ends = np.array([end for _, end in spans], dtype=np.int64)  # 0 for the special tokens that the tokenizer adds
    part = np.searchsorted(edges, ends, side="left") - 1  # index of the segment with the token's last character
    return (ends > 0) & inside[np.clip(part, 0, len(parts) - 1)]


def log_sample(template: Template, data: Data, row: int, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Log the text of one row, cut where it is long; line breaks are written \\n, so that all white space shows."""
    text = "".join(text for text, _ in template.segments(data, row, tokenizer))
    log.info("sample %d, as the model sees it: %s", row, shown(repr(text), SAMPLE_SHOWN))


def log_lengths(tokens: Tokens, limit: int) -> None:
    """Log the lengths in tokens of the rows that have any, and how many rows were cut to the limit."""
    lengths = tokens.lengths()
    lengths = lengths[lengths > 0]
    counts = lengths.sum(), len(lengths), np.median(lengths), lengths.max(), tokens.truncated, limit
    log.info("tokens: %d in %d rows, median %g, longest %d; %d rows cut to %d", *counts)
