"""The commands and their options, as argparse has them."""

import argparse
import re
import sys
from collections.abc import Sequence

from .. import __version__
from ..runs.config import nearest
from . import diversity, embed, env, generate, init, judge, report, run, score, select
from .completion import PrintCompletion

COMMANDS = {
    "init": init, "run": run, "select": select, "embed": embed, "diversity": diversity, "generate": generate,
    "judge": judge, "score": score, "report": report, "env": env,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse's, but what it does not know is an error at once, which names what was probably meant."""

    takes_keys = False  # --key value pairs that are no options of its own are handed back
    words: Sequence[str] = ()
    commands: "argparse._SubParsersAction[Parser] | None" = None

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, which calls this for each command with the words after its name."""
        self.words = sys.argv[1:] if args is None else args
        found, rest = super().parse_known_args(args, namespace)
        if rest and not self.takes_keys:
            unknown = [word.partition("=")[0] for word in rest if word.startswith("-")] or rest
            self.error(f"unrecognized arguments: {' '.join(unknown)}")  # without values: one may be a key
        return found, rest

    def command(self, name: str) -> "Parser":
        """The parser of a command's options."""
        return self.commands.choices[name] if self.commands else self

    def error(self, message: str):
        """Exit with status 2; a --word that is no option, or the command, may be misspelt."""
        known = {name for action in self._actions for name in action.option_strings}
        if self.commands:
            known |= set(self.commands.choices)
            words = self.words[:1]
        else:
            words = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        taken = {word for word in words for name in known if self.allow_abbrev and name.startswith(word)} | known
        named = re.split(r"[ ',]+", message)
        hints = [
            ("" if word in named else f"; {word}: unknown") + nearest(word, known)
            for word in words if word not in taken
        ]  # fmt: skip
        super().error("".join([message, *hints]))


def build_parser() -> Parser:
    """The whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress, warnings and results only")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    common.add_argument("--json", action="store_true", help="print the result as JSON")

    parser = Parser(prog="diverseevol", description="Exact, fast diverse data selection.")
    parser.takes_keys = True  # of run, which is the only command that hands any back
    parser.add_argument("--version", action="version", version=f"diverseevol_fast {__version__}")
    parser.add_argument("--print-completion", action=PrintCompletion)
    parser.commands = commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS.values():
        module.add_parser(commands, common)
    return parser
