"""What is known of a data set before anything is embedded or trained: said in two lines."""

import json
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from .._common.messages import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .dataset import Data
    from .templates import Template, Tokens

log = logging.getLogger("diverseevol_fast")

SAMPLE_SHOWN = 600  # characters


def log_rows(data: "Data", kind: str, empty: Collection[int]) -> None:
    """Rows, exact duplicates, and rows with an empty instruction or output, or text. kind: of the file, for people."""
    log.info("data: %s, %s, %s schema, %d rows: %d repeat an earlier one, %d have an empty %s",
             data.source, kind, data.schema.name, len(data.rows), duplicates(data), len(empty),
             data.schema.required)  # fmt: skip


def log_sample(template: "Template", data: "Data", row: int, tokenizer: "PreTrainedTokenizerBase") -> None:
    """The text of one row, with its line breaks as \\n, so that every blank can be seen; cut where it is long."""
    text = "".join(text for text, _ in template.segments(data, row, tokenizer))
    log.info("sample %d, as the model sees it: %s", row, shown(repr(text), SAMPLE_SHOWN))


def log_lengths(tokens: "Tokens", limit: int) -> None:
    """Median and longest length in tokens of the rows that are not left out, and how many were cut to the limit."""
    lengths = tokens.lengths()
    lengths = lengths[lengths > 0]
    log.info("tokens: %d in %d rows, median %g, longest %d; %d rows cut to %d",
             lengths.sum(), len(lengths), np.median(lengths), lengths.max(), tokens.truncated, limit)  # fmt: skip


def duplicates(data: "Data") -> int:
    """How many rows have the same texts as an earlier row; other keys, such as an id, do not count."""
    schema, columns = data.schema, data.columns
    read = schema.turns if schema.is_conversation else schema.parts
    return len(data.rows) - len({json.dumps(read(row, columns)) for row in data.rows})
