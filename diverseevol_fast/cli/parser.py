"""The parser of the command line."""

import argparse
import re
import sys
from collections.abc import Sequence

from .._common.version import __version__
from ..runs.config import nearest
from . import diversity, embed, env, generate, init, judge, report, run, score, select
from .completion import PrintCompletion

MODULES = (init, run, select, embed, diversity, generate, judge, score, report, env)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors that suggest the option or command that was probably meant."""

    takes_keys = False  # whether --key value pairs that are not options are returned instead of refused
    words: Sequence[str] = ()
    commands: "argparse._SubParsersAction[Parser] | None" = None

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, which calls this again for the command, with the words after its name."""
        self.words = sys.argv[1:] if args is None else args
        namespace, rest = super().parse_known_args(args, namespace)
        if rest and not self.takes_keys:
            unknown = [word.partition("=")[0] for word in rest if word.startswith("-")] or rest
            self.error(f"unrecognized arguments: {' '.join(unknown)}")  # without values: one may be a key
        return namespace, rest

    def command(self, name: str) -> "Parser":
        """The parser of a command's options."""
        return self.commands.choices[name] if self.commands else self

    def error(self, message: str):
        """Exit with status 2 and a suggestion for each --word that is not an option, or for a misspelt command."""
        known = {name for action in self._actions for name in action.option_strings}
        if self.commands:
            known |= set(self.commands.choices)
            words = self.words[:1]
        else:
            words = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        taken = {word for word in words for name in known if self.allow_abbrev and name.startswith(word)} | known
        named = re.split(r"[ ',]+", message)
        unknown = [word for word in words if word not in taken]
        hints = [("" if word in named else f"; {word}: unknown") + nearest(word, known) for word in unknown]
        super().error("".join([message, *hints]))


def build_parser() -> Parser:
    """The parser of the whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress, warnings and results only")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    common.add_argument("--json", action="store_true", help="print the result as JSON")

    parser = Parser(prog="diverseevol", description="Exact, fast diverse data selection.")
    parser.takes_keys = True  # it passes on what `run` returns; no other command returns any
    parser.add_argument("--version", action="version", version=f"diverseevol_fast {__version__}")
    parser.add_argument("--print-completion", action=PrintCompletion)
    parser.commands = commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS.values():
        module.add_parser(commands, common)
    return parser
