"""`diverseevol run`: a config and --key value pairs that win over it."""

import argparse
from pathlib import Path

from .._common.errors import InputError
from .._common.messages import shown
from .._common.yaml_values import parse_yaml
from ..runs.settings import help_text
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options; any other --key is a key of the config."""
    run = commands.add_parser(
        "run",
        parents=[common],
        allow_abbrev=False,  # an abbreviated option could be a key
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="a whole DiverseEvol run; continues an unfinished one",
        usage="diverseevol run CONFIG.yml [--restart] [--quiet] [--debug] [--json] [--key value ...]",
        description="Fine-tune, embed, select, repeat. Every key of the config may be given as --key value and wins\n"
        "over the file; --train_args.learning_rate 1e-4 reaches inside. `diverseevol init` writes a config.",
        epilog=help_text(),
    )
    run.takes_keys = True
    run.add_argument("--restart", action="store_true", help="begin anew; what was made before is kept aside")


def execute(args: argparse.Namespace) -> Result:
    """Run every unfinished round; the text is the table of rounds and where the files are."""
    path, overrides = config_and_overrides(args.keys)
    from ..runs.config import load_config

    config = load_config(path, overrides)  # before torch is imported, so that a mistake is reported at once
    from ..loop import run
    from ..runs.rounds_table import rounds_table

    finished = run(config, restart=args.restart)
    return Result(
        f"{rounds_table(finished.state, config.n_round)}\n"
        f"{finished.folder}: data/rd_<r>_labeled.json, output/rd_<r>/ (models), state/rd_<r>/ (picks, metrics)",
        finished.to_dict(),
    )


def config_and_overrides(rest: list[str]) -> tuple[Path, dict]:
    """The config file and the overrides out of --key value and --key=value; values are read as YAML."""
    overrides, words, files = {}, list(rest), []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            files.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise InputError(f"--{key}: expected a value after it")
            value = words.pop(0)
        overrides[key] = parse_yaml(value, f"--{shown(key)}")
    if len(files) != 1:
        raise InputError(f"run: expected one config file and --key value pairs, got {' '.join(files) or 'no file'}")
    return Path(files[0]), overrides
