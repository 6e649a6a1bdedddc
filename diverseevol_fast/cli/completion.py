"""`diverseevol --print-completion`: a completion script for a shell, which shtab writes from the parser."""

import argparse

from ..runs.settings import MEANINGS

SHELLS = ("bash", "zsh", "tcsh")  # that shtab supports


class PrintCompletion(argparse.Action):
    """Prints the script that completes commands, options and, for `run`, the config's keys, and exits."""

    def __init__(self, option_strings: list[str], dest: str):
        help_text = f"print a script that completes commands and options in SHELL ({', '.join(SHELLS)}); needs shtab"
        super().__init__(option_strings, argparse.SUPPRESS, choices=SHELLS, metavar="SHELL", help=help_text)

    def __call__(self, parser, namespace, shell, option_string=None):
        """Print the script for `shell`; exit with status 2 when shtab is not installed."""
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error(f"{option_string}: needs shtab; pip install shtab")
        run = parser.commands.choices["run"]
        for key, meaning in MEANINGS.items():  # `run` itself reads them as YAML, which argparse options could not
            run.add_argument(f"--{key}", help=meaning)
        print(shtab.complete(parser, shell))
        parser.exit()
