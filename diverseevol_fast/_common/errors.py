"""The two kinds of failure that the command line tells apart."""


class InputError(ValueError):
    """Something the user gave is wrong: a file, an option, a setting. Exit status 2."""


class RunError(RuntimeError):
    """A run failed on the way through no mistake in its input: numbers that are not finite, say. Exit status 1."""
