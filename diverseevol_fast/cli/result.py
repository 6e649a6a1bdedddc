"""What a command hands back to the command line."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """A command's outcome in two forms, of which the user sees one."""

    text: str  # for people
    record: dict[str, Any] | list[dict[str, Any]]  # for programs, printed by --json; plain JSON values
