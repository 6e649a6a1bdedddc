"""The commands and their options, as argparse has them."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..runs.config import nearest
from ..runs.settings import help_text
from .completion import PrintCompletion


class Parser(argparse.ArgumentParser):
    """argparse's, but what it does not know is an error at once, which names what was probably meant."""

    takes_keys = False  # --key value pairs that are no options of its own are handed back
    words: Sequence[str] = ()
    commands: argparse._SubParsersAction | None = None

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, which calls this for each command with the words after its name."""
        self.words = sys.argv[1:] if args is None else args
        found, rest = super().parse_known_args(args, namespace)
        if rest and not self.takes_keys:
            unknown = [word.partition("=")[0] for word in rest if word.startswith("-")] or rest
            self.error(f"unrecognized arguments: {' '.join(unknown)}")  # without values: one may be a key
        return found, rest

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
    _add_init(commands, common)
    run = commands.add_parser(
        "run",
        parents=[common],
        allow_abbrev=False,  # what is no option is a key
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="a whole DiverseEvol run; continues an unfinished one",
        usage="diverseevol run CONFIG.yml [--restart] [--quiet] [--debug] [--json] [--key value ...]",
        description="Fine-tune, embed, select, repeat. Every key of the config may be given as --key value and wins\n"
        "over the file; --train_args.learning_rate 1e-4 reaches inside. `diverseevol init` writes a config.",
        epilog=help_text(),
    )
    run.takes_keys = True
    run.add_argument("--restart", action="store_true", help="begin anew; what was made before is kept aside")
    model = _model_options()
    _add_select(commands, common, model)
    embed = commands.add_parser("embed", parents=[common, model], help="embeddings of a data set as .npy")
    embed.add_argument("--output", type=Path, required=True, metavar="X.npy")
    embed.add_argument("--overwrite", action="store_true", help="replace embeddings of another data set or model")
    _add_diversity(commands, common)
    _add_generate(commands, common)
    _add_judge(commands, common)
    _add_score(commands, common)
    _add_report(commands, common)
    env = commands.add_parser("env", parents=[common], help="versions, CPU, GPU, and which backends can be used")
    env.add_argument("--check", action="store_true", help="check every GPU kernel on every GPU here, and remember it")
    return parser


def _add_init(commands, common) -> None:
    init = commands.add_parser(
        "init", parents=[common], help="write a commented config for a run",
        description="Write a config with every key, its default and what it does. An existing file is never replaced.",
    )  # fmt: skip
    init.add_argument("file", type=Path, nargs="?", default=Path("config.yml"), metavar="FILE", help="(config.yml)")
    init.add_argument("--data", help="fills full_data_path in")
    init.add_argument("--model", help="fills model_name_or_path in")


def _model_options() -> argparse.ArgumentParser:
    """What embed and select say of data and model."""
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
    model.add_argument(
        "--template", metavar="alpaca|plain|chat|FILE",
        help="from a row to a text (encoders: plain; causal models: alpaca, chat for conversations)",
    )  # fmt: skip
    model.add_argument("--columns", metavar="MAP", help="other names: '{instruction: question}'")
    model.add_argument("--text-column", metavar="NAME", help="rows of any kind, of which this is the text")
    model.add_argument(
        "--skip-broken", action="store_true", help="leave broken lines and malformed rows aside, and count them"
    )
    model.add_argument("--trust-remote-code", action="store_true")
    return model


def _add_select(commands, common, model) -> None:
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
    select.add_argument(
        "--for",
        dest="trainer",
        choices=("trl", "llama-factory", "axolotl"),
        help="write the rows as this trainer reads them, and say what to tell it",
    )
    select.add_argument("--picks", type=Path, metavar="FILE", help="the record (<output>.picks.json beside the output)")
    select.add_argument("--overwrite", action="store_true", help="replace what was made from another input")
    select.add_argument(
        "--no-keep-embeddings", dest="keep_embeddings", action="store_false",
        help="do not keep <output>.embeddings.npy, with which another N is instant",
    )  # fmt: skip
    select.add_argument(
        "--allow-other-data", action="store_true",
        help="take --embeddings or --selected of another data set: their row numbers are right all the same",
    )  # fmt: skip
    select.add_argument("--skip-empty", action="store_true", help="leave rows with an empty instruction or output out")
    select.add_argument("--seed", type=int, default=0, help="draws the first row when nothing is selected yet (0)")


def _add_diversity(commands, common) -> None:
    diversity = commands.add_parser(
        "diversity", parents=[common], help="how diverse a run's pools, or subsets of a data set, are",
        description="Measures of diversity, round by round, with random subsets of the same size as the yardstick; "
        "in the embeddings of one fixed model. Without --model each run is measured by its own base model: runs of "
        "different ones do not compare.",
    )  # fmt: skip
    diversity.add_argument("source", nargs="+", metavar="RUN_OR_DATA", help="run folders, or one data set")
    diversity.add_argument("--picks", type=Path, nargs="+", metavar="FILE", help="subsets of the data set: picks.json")
    diversity.add_argument("--model", help="the fixed model (each run's base model)")
    diversity.add_argument("--embeddings", type=Path, metavar="X.npy", help="instead of a model: of every row")
    diversity.add_argument(
        "--allow-other-data", action="store_true", help="take --picks or --embeddings of another data set all the same"
    )
    diversity.add_argument("--random", type=int, default=5, metavar="R", help="random subsets as the yardstick (5)")
    diversity.add_argument("--seed", type=int, default=0, help="of the draws and of the k-means cells (0)")
    diversity.add_argument("--columns", metavar="MAP", help="the data set's other names: '{instruction: question}'")
    diversity.add_argument("--trust-remote-code", action="store_true")


def _add_generate(commands, common) -> None:
    generate = commands.add_parser(
        "generate", parents=[common], help="a run's models answer questions",
        description="Answers to evol_answer/<questions>_test/<run>/rd_<r>.jsonl; goes on where it was stopped.",
    )  # fmt: skip
    generate.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    generate.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE", help="JSON lines")
    generate.add_argument("--rounds", type=int, nargs="+", metavar="R", help="these rounds' models (all)")
    generate.add_argument("--output", type=Path, default=Path("evol_answer"), metavar="FOLDER", help="(evol_answer)")
    _add_number(generate, "--max-new-tokens", 512, "T", "of an answer")
    _add_number(generate, "--max-tokens-per-batch", 8192, "T", "prompts and answers with padding")
    _add_number(generate, "--temperature", 0.0, "X", "0 takes the likeliest token")
    _add_number(generate, "--top-p", 1.0, "P", "with a temperature")
    _add_number(generate, "--seed", 0, "S", "draws tokens when there is a temperature")
    generate.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (the run's)")
    generate.add_argument(
        "--upstream-prompt", action="store_true",
        help="as the public implementation generates: the training prompt after a leading space",
    )  # fmt: skip
    generate.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def _add_judge(commands, common) -> None:
    judge = commands.add_parser(
        "judge", parents=[common], allow_abbrev=False,  # no --api-key: its value would be a key, not a name
        help="a judge model rates answers against reference answers",
        description="Asks an OpenAI-compatible endpoint in both orders; each judgement is kept as it comes.",
    )  # fmt: skip
    judge.add_argument("--answers", type=Path, required=True, metavar="FILE", help="as generate writes them")
    judge.add_argument("--reference", type=Path, required=True, metavar="FILE", help="the other side's answers")
    judge.add_argument("--base-url", required=True, metavar="URL", help="such as https://api.openai.com/v1")
    judge.add_argument("--model", required=True, metavar="NAME", help="the judge")
    judge.add_argument("--api-key-env", required=True, metavar="VAR", help="the environment variable with the key")
    judge.add_argument("--output", type=Path, metavar="FILE.jsonl", help="(<answers>_vs_<reference>.jsonl beside A)")
    _add_number(judge, "--concurrency", 8, "N", "requests under way")
    _add_number(judge, "--timeout", 120.0, "SECONDS", "without a byte, after which a request is tried again")
    _add_number(judge, "--retries", 6, "N", "of one request, with back-off")
    _add_number(judge, "--max-tokens", 1024, "T", "of a reply")
    judge.add_argument("--dry-run", action="store_true", help="say how many calls and tokens it would take")


def _add_score(commands, common) -> None:
    score = commands.add_parser(
        "score", parents=[common], help="the Relative Score of judgements, offline",
        description="Relative Score = 100 x the model's summed scores / the reference's, both orders pooled.",
    )  # fmt: skip
    score.add_argument("judgements", type=Path, nargs="+", metavar="FILE", help="of judge, or public ones")
    score.add_argument("--answers", type=Path, nargs="+", metavar="FILE", help="for their length, one per file")
    score.add_argument("--reference", type=Path, nargs="+", metavar="FILE", help="the same; one may serve all files")
    _add_number(score, "--resamples", 10_000, "N", "of the bootstrap")
    _add_number(score, "--seed", 0, "S", "of the bootstrap")


def _add_report(commands, common) -> None:
    report = commands.add_parser(
        "report", parents=[common], help="one HTML page on one or more runs",
        description="A self-contained HTML file, and its charts as PNGs in a folder beside it.",
    )  # fmt: skip
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--judgements", type=Path, nargs="+", metavar="FILE", help="of judge: <...>/<run>/rd_<r>...")
    report.add_argument("--output", type=Path, metavar="FILE.html", help="(report.html in the first run's folder)")


def _add_number(command: argparse.ArgumentParser, option: str, default: float, metavar: str, meaning: str) -> None:
    """An option of the default's type, int or float."""
    command.add_argument(
        option, type=type(default), default=default, metavar=metavar, help=f"{meaning} ({default:g})"
    )  # fmt: skip


def _tokens(text: str) -> int | str:
    return text if text == "auto" else int(text)
