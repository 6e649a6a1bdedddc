"""Checks of settings that several stages take."""

from .errors import InputError
from .messages import shown


def check_tokens_per_batch(name: str, value: int | str, longest: int) -> None:
    """Raises InputError, which calls the value `name`, unless it is "auto" or holds the longest row."""
    if value != "auto" and (isinstance(value, str) or value < longest):
        raise InputError(f"{name}: expected 'auto' or at least model_max_length = {longest}, got {shown(repr(value))}")
