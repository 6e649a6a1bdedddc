"""Texts to token ids with the response marked."""

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

TOKENIZE_ROWS = 4096  # rows handed to the tokenizer at once
SAMPLE_SHOWN = 600  # characters


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
            digest.update(np.ascontiguousarray(part).data)
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


def tokenize(
    data: Data,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    left_out: Collection[int] = (),
    template: Template | None = None,
) -> Tokens:
    """All rows' texts (render) as token ids, cut to max_length; the rows left out have none.

    Raises:
        InputError: a tokenizer without character offsets, a row of which no token is left.
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
    """For each token's character span, whether the token ends inside a response segment: bool [tokens]."""
    if not parts:  # an empty row, of which the tokenizer's own tokens are all there is
        return np.zeros(len(spans), dtype=bool)
    edges = np.cumsum([0] + [len(text) for text, _ in parts])
    inside = np.array([flag for _, flag in parts])
    ends = np.array([end for _, end in spans], dtype=np.int64)  # 0 for tokens that the tokenizer added
    part = np.searchsorted(edges, ends, side="left") - 1  # the segment that holds the token's last character
    return (ends > 0) & inside[np.clip(part, 0, len(parts) - 1)]


def log_sample(template: Template, data: Data, row: int, tokenizer: "PreTrainedTokenizerBase") -> None:
    """The text of one row, with its line breaks as \\n, so that every blank can be seen; cut where it is long."""
    text = "".join(text for text, _ in template.segments(data, row, tokenizer))
    log.info("sample %d, as the model sees it: %s", row, shown(repr(text), SAMPLE_SHOWN))


def log_lengths(tokens: Tokens, limit: int) -> None:
    """Median and longest length in tokens of the rows that are not left out, and how many were cut to the limit."""
    lengths = tokens.lengths()
    lengths = lengths[lengths > 0]
    log.info("tokens: %d in %d rows, median %g, longest %d; %d rows cut to %d",
             lengths.sum(), len(lengths), np.median(lengths), lengths.max(), tokens.truncated, limit)  # fmt: skip
