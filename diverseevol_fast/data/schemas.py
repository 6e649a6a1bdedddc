"""Schemas: how the rows of each kind are recognized, checked, taken apart, and read by other trainers.

A new schema is a class here and an object of it in SCHEMAS.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .._common.errors import InputError
from .._common.messages import shown

Row = Mapping[str, Any]
Columns = Mapping[str, str]  # our name of a part of a row -> the row's key
Parts = list[tuple[str, bool]]  # texts, and whether each is a response
Turns = list[dict[str, str]]  # {"role": ..., "content": ...}

FIELDS = ("instruction", "input", "output")


class RowError(InputError):
    """A flaw in a row. The caller adds the row's index to the message."""


class Schema(ABC):
    """What every schema has. `check` is called first; the other methods expect a row that it accepted."""

    name = ""
    columns: tuple[str, ...] = ()  # our names for a row's parts; the key of the first one marks the schema
    required = "instruction or output"  # the parts that an empty row lacks, in messages
    template = ""  # the default template for a causal model
    is_conversation = False

    @abstractmethod
    def check(self, row: Row, columns: Columns) -> bool:
        """Whether the row is empty: a part that training needs is blank. Raises RowError for a malformed row."""

    @abstractmethod
    def parts(self, row: Row, columns: Columns) -> Parts:
        """The row's own texts in their order, empty ones included."""


class ResponseSchema(Schema):
    """A schema whose rows have responses, which a model can be trained on."""

    @abstractmethod
    def turns(self, row: Row, columns: Columns) -> Turns:
        """The row as a conversation."""

    def trl_row(self, row: Row, columns: Columns) -> dict[str, Any]:
        """The row as TRL's SFTTrainer reads it."""
        return {"messages": self.turns(row, columns)}

    def axolotl_row(self, row: Row, columns: Columns) -> Row:
        """The row as axolotl reads it with axolotl_entry."""
        return row

    @abstractmethod
    def llama_factory_entry(self, rows: Iterable[Row], columns: Columns) -> dict[str, Any]:
        """The entry of such rows in dataset_info.json, without the file's name."""

    @abstractmethod
    def axolotl_entry(self, columns: Columns) -> dict[str, Any]:
        """The entry of such rows in an axolotl config, without the file's name and format."""


class Alpaca(ResponseSchema):
    """`instruction`, `input`, `output`."""

    name = template = "alpaca"
    columns = FIELDS

    def check(self, row: Row, columns: Columns) -> bool:
        for name in FIELDS:
            _check_text(row, columns[name], required=name != "input")
        fields = self.fields(row, columns)
        return not (fields["instruction"].strip() and fields["output"].strip())

    def parts(self, row: Row, columns: Columns) -> Parts:
        return [(text, name == "output") for name, text in self.fields(row, columns).items()]

    def fields(self, row: Row, columns: Columns) -> dict[str, str]:
        """`instruction`, `input`, which may be empty, and `output`."""
        return {name: row.get(columns[name]) or "" for name in FIELDS}

    def turns(self, row: Row, columns: Columns) -> Turns:
        fields = self.fields(row, columns)
        question = "\n\n".join(text for text in (fields["instruction"], fields["input"]) if text)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": fields["output"]}]

    def axolotl_row(self, row: Row, columns: Columns) -> Row:
        return self.fields(row, columns)

    def llama_factory_entry(self, rows: Iterable[Row], columns: Columns) -> dict[str, Any]:
        names = {"prompt": columns["instruction"], "response": columns["output"]}
        if any(columns["input"] in row for row in rows):  # LLaMA-Factory fails on a column that is missing
            names["query"] = columns["input"]
        return {"formatting": "alpaca", "columns": names}

    def axolotl_entry(self, columns: Columns) -> dict[str, Any]:
        return {"type": "alpaca"}


class Conversation(ResponseSchema):
    """A list of turns under one key; each turn has a key for its role and one for its content."""

    template = "chat"
    is_conversation = True
    role, content = "role", "content"  # a turn's keys
    roles: Mapping[str, str] | None = None  # the schema's name for a role -> ours; None: any role is taken as it is
    llama_factory_tags: Mapping[str, str] | None = None  # None: LLaMA-Factory's defaults, which are ShareGPT's

    def check(self, row: Row, columns: Columns) -> bool:
        turns = row.get(self._key(columns))
        if not isinstance(turns, list):
            raise RowError(f"'{shown(self._key(columns))}' expected a list of turns, got {type(turns).__name__}")
        for index, turn in enumerate(turns):
            self._check_turn(index, turn)
        said = {"user": "", "assistant": ""}
        for turn in self.turns(row, columns):
            if turn["role"] in said:
                said[turn["role"]] += turn["content"].strip()
        return not all(said.values())

    def _check_turn(self, index: int, turn: Any) -> None:
        if not isinstance(turn, dict):
            raise RowError(f"turn {index}: expected an object, got {type(turn).__name__}")
        for name in (self.role, self.content):
            if not isinstance(turn.get(name), str):
                got = type(turn[name]).__name__ if name in turn else "no such key"
                raise RowError(f"turn {index}: expected text under '{name}', got {got}")
        if self.roles is not None and turn[self.role] not in self.roles:
            expected = " or ".join(self.roles)
            raise RowError(f"turn {index}: expected {self.role}: {expected}, got '{shown(turn[self.role])}'")

    def parts(self, row: Row, columns: Columns) -> Parts:
        return [(turn["content"], turn["role"] == "assistant") for turn in self.turns(row, columns)]

    def turns(self, row: Row, columns: Columns) -> Turns:
        turns = row[self._key(columns)]
        if self.roles is None:
            return [{"role": turn[self.role], "content": turn[self.content]} for turn in turns]
        return [{"role": self.roles[turn[self.role]], "content": turn[self.content]} for turn in turns]

    def llama_factory_entry(self, rows: Iterable[Row], columns: Columns) -> dict[str, Any]:
        entry: dict[str, Any] = {"formatting": "sharegpt", "columns": {"messages": self._key(columns)}}
        return entry | ({"tags": dict(self.llama_factory_tags)} if self.llama_factory_tags else {})

    def axolotl_entry(self, columns: Columns) -> dict[str, Any]:
        return {
            "type": "chat_template",
            "field_messages": self._key(columns),
            "message_property_mappings": {"role": self.role, "content": self.content},
        }

    def _key(self, columns: Columns) -> str:
        return columns[self.columns[0]]


class Messages(Conversation):
    """`messages`, as OpenAI and the Hugging Face libraries write them."""

    name = "messages"
    columns = ("messages",)
    llama_factory_tags = MappingProxyType(
        {f"{name}_tag": name for name in ("role", "content", "user", "assistant", "system")}
    )


class ShareGPT(Conversation):
    """`conversations`, as ShareGPT has them."""

    name = "sharegpt"
    columns = ("conversations",)
    role, content = "from", "value"
    roles = MappingProxyType(
        dict(human="user", user="user", gpt="assistant", assistant="assistant", system="system", tool="tool")
    )


class Text(Schema):
    """Rows with a text under one key; their other keys may be anything."""

    name = "text"
    columns = ("text",)
    required = "text"
    template = "plain"

    def check(self, row: Row, columns: Columns) -> bool:
        _check_text(row, columns["text"], required=True)
        return not (row[columns["text"]] or "").strip()

    def parts(self, row: Row, columns: Columns) -> Parts:
        return [(row[columns["text"]] or "", False)]


TEXT = Text()
SCHEMAS: tuple[Schema, ...] = (Messages(), ShareGPT(), Alpaca())  # the first one that fits is a row's schema
COLUMNS = tuple(name for schema in (SCHEMAS[-1], *SCHEMAS[:-1]) for name in schema.columns)


def schema_of(row: Row, columns: Columns) -> Schema:
    """The schema of a row. Raises RowError where it has none."""
    for schema in SCHEMAS:
        if columns[schema.columns[0]] in row:
            return schema
    first = [f"'{shown(columns[schema.columns[0]])}'" for schema in (SCHEMAS[-1], *SCHEMAS[:-1])]
    raise RowError(
        f"expected {', '.join(first[:-1])} or {first[-1]}, got keys {keys_of(row)}; other names: "
        "columns: {instruction: NAME, output: NAME}"
    )


def keys_of(row: Row) -> str:
    """The keys of a row, for a message."""
    return shown(", ".join(map(repr, row)), 50)


def _check_text(row: Row, key: str, *, required: bool) -> None:
    if required and key not in row:
        raise RowError(f"key '{shown(key)}' is missing; got {keys_of(row)}")
    if not isinstance(row.get(key) or "", str):
        raise RowError(f"'{shown(key)}' expected text, got {type(row[key]).__name__}")
