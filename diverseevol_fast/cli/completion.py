"""`diverseevol --print-completion`: a script for the shell, made by shtab from the parser."""

import argparse

from ..runs.settings import MEANINGS

SHELLS = ("bash", "zsh", "tcsh")  # those that shtab writes for


class PrintCompletion(argparse.Action):
    """Prints the script that completes commands, options and, for `run`, the config's keys; ends the program."""

    def __init__(self, option_strings: list[str], dest: str):
        names = ", ".join(SHELLS)
        super().__init__(
            option_strings, argparse.SUPPRESS, choices=SHELLS, metavar="SHELL",
            help=f"print a script that completes commands and options in SHELL ({names}); needs shtab",
        )  # fmt: skip

    def __call__(self, parser, namespace, shell, option_string=None):
        """Print it for `shell`; status 2 when shtab is not installed."""
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error(f"{option_string}: needs shtab; pip install shtab")
        run = parser.commands.choices["run"]
        for key, meaning in MEANINGS.items():  # only here: as options, they would not take every YAML value
            run.add_argument(f"--{key}", help=meaning)
        print(shtab.complete(parser, shell))
        parser.exit()
