"""The version of the package, written here alone: `pyproject.toml` reads it, and files record it."""

__version__ = "0.2.0"
