"""The command line: diverseevol run | select | embed | env. Parses, calls, turns failures into one sentence."""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from .errors import InputError, RunError

log = logging.getLogger("diverseevol_fast")

FIRST = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started; it tells the user what is going on


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress, warnings and results only")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")

    parser = argparse.ArgumentParser(prog="diverseevol", description="Exact, fast diverse data selection.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser(
        "run",
        parents=[common],
        help="a whole DiverseEvol run; continues an unfinished one",
        usage="diverseevol run CONFIG.yml [--quiet] [--debug] [--key value ...]",
        description="Fine-tune, embed, select, repeat. Every key of the config may be given as --key value and wins "
        "over the file; --train_args.learning_rate 1e-4 reaches inside.",
    )

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--data", help="data set: JSON list, JSON lines, .gz, parquet, a datasets folder, builtin:quickstart"
    )
    model.add_argument("--model", help="a local Hugging Face causal or encoder model, or a hub name")
    model.add_argument("--model-max-length", type=int, default=512, metavar="T", help="cut rows to T tokens (512)")
    model.add_argument(
        "--max-tokens-per-batch", type=_tokens, default="auto", metavar="T",
        help="padding included; 'auto' (default): by a probe on a GPU, 2048 on a CPU",
    )  # fmt: skip
    model.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"),
        help="of the weights; bfloat16 on a CPU says what it changes (float32)",
    )  # fmt: skip
    model.add_argument("--store-dtype", default="float32", choices=("float32", "float16"), help="of the embeddings")
    model.add_argument("--pooling", choices=("mean", "cls", "last"), help="of the last hidden states (mean)")
    model.add_argument("--attn-implementation", metavar="NAME")
    model.add_argument("--columns", metavar="MAP", help="other names: '{instruction: question}'")
    model.add_argument("--trust-remote-code", action="store_true")

    select = commands.add_parser(
        "select", parents=[common, model], help="a diverse subset of a data set",
        description="Pick the N rows that K-Center greedy picks, and write them in the input's own schema.",
    )  # fmt: skip
    select.add_argument(
        "--embeddings", type=Path, metavar="X.npy", help="instead of --model: [N, D] float32 or float16"
    )
    select.add_argument("-n", type=int, required=True, metavar="N", help="how many rows to pick")
    select.add_argument(
        "--selected",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="rows already selected, all of them: JSON lists, picks.json, .npy",
    )
    select.add_argument("--output", type=Path, metavar="FILE", help="the picked rows (subset.jsonl); needs --data")
    select.add_argument("--picks", type=Path, metavar="FILE", help="the record (picks.json beside the output)")
    select.add_argument("--skip-empty", action="store_true", help="leave rows with an empty instruction or output out")
    select.add_argument("--seed", type=int, default=0, help="draws the first row when nothing is selected yet (0)")

    embed = commands.add_parser("embed", parents=[common, model], help="embeddings of a data set as .npy")
    embed.add_argument("--output", type=Path, required=True, metavar="X.npy")

    commands.add_parser("env", parents=[common], help="versions, CPU, GPU, and which backends can be used")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a mistake in what was given, 1 for a failure on the way."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    _set_up_logging(args.quiet)
    if rest and args.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with _noticing_termination():
            told = _command(args, rest)
        if FIRST:
            print(told)
        return 0
    except (KeyboardInterrupt, TerminatedError) as error:
        _complain(f"{error or 'stopped'}; what is finished is kept, the same command goes on from there")
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    except Exception as error:
        if args.debug:
            raise
        _complain(_sentence(error))
        return 2 if isinstance(error, InputError) else 1


def _command(args: argparse.Namespace, rest: list[str]) -> str:
    """What to tell the user."""
    if args.command == "env":
        from .environment import describe

        return describe()
    from . import distributed

    with distributed.job():
        if args.command == "run":
            return _run(*_config_and_overrides(rest))
        from .oneshot import embed_data, select_subset

        return {"select": select_subset, "embed": embed_data}[args.command](args)


def _run(path: Path, overrides: dict) -> str:
    from .config import load_config

    config = load_config(path, overrides)
    from .loop import run
    from .table import rounds_table

    state = run(config)
    return (
        f"{rounds_table(state, config.n_round)}\n"
        f"{state.folder}: data/rd_<r>_labeled.json, output/rd_<r>/ (models), state/rd_<r>/ (picks, figures)"
    )


class TerminatedError(BaseException):
    """SIGTERM came."""


@contextmanager
def _noticing_termination() -> Iterator[None]:
    """SIGTERM is an exception inside, so that finished batches are recorded; torchrun sends it to the others."""

    def stop(_signal, _frame) -> None:
        others = ", as when another process of the job has ended" if "WORLD_SIZE" in os.environ else ""
        raise TerminatedError(f"stopped by SIGTERM{others}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(sentence: str) -> None:
    rank = os.environ.get("RANK")
    print(f"diverseevol{f' (process {rank})' if rank else ''}: {sentence}", file=sys.stderr)


def _tokens(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _config_and_overrides(rest: list[str]) -> tuple[Path, dict]:
    """The config file, and --key value or --key=value pairs; values are read as YAML."""
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
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--{key}: not a YAML value: {value!r}") from error
    if len(files) != 1:
        raise InputError(f"run: expected one config file and --key value pairs, got {' '.join(files) or 'no file'}")
    return Path(files[0]), overrides


def _set_up_logging(quiet: bool) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.ERROR if not FIRST else logging.WARNING if quiet else logging.INFO)


def _sentence(error: BaseException) -> str:
    """One line that says what went wrong and what to do."""
    if isinstance(error, InputError | RunError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = f" while writing {error.filename}" if error.filename else ""
        return f"{error.strerror}{name}: what is finished is kept; make room and give the same command again"
    if "WORLD_SIZE" in os.environ and any(word in str(error) for word in ("gloo", "NCCL", "closed by peer")):
        return "another process of this job has ended; what is finished is kept, the same command goes on from there"
    detail = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {detail} (--debug shows where; finished stages are kept)"
