"""The result of a command."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """A result in two forms, one of which is printed."""

    text: str  # for people
    record: dict[str, Any] | list[dict[str, Any]]  # for programs, printed with --json; plain JSON values
