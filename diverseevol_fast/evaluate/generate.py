"""A run's models answer questions, batch by batch; nothing is generated twice."""

import gc
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common.errors import InputError, RunError
from .._common.files import as_paths
from .._common.messages import printable, shown
from .._common.progress import Progress
from ..data.batches import token_budget_batches
from ..data.dataset import load_data
from ..data.templates import TEMPLATES, Template, read_template
from ..models.load import folder_sha256
from ..models.token_budget import TokenBudget
from ..runs.finished import FinishedRun, read_run
from .answer_file import GeneratedFile
from .generator import Generator, NextToken
from .questions import Question, benchmark_name, read_questions
from .resumable_lines import check_folder

log = logging.getLogger("diverseevol_fast")

MOST_SHOWN = 2000  # characters of the prompt that is shown


@dataclass(frozen=True)
class Task:
    """One round's model is to answer one question file."""

    r: int
    name: str  # of the folder that the answers go to: "vicuna_test"
    questions: list[Question]
    file: GeneratedFile


@dataclass(frozen=True)
class Decoding:
    """How answers are generated."""

    max_new_tokens: int
    max_tokens_per_batch: int
    temperature: float
    top_p: float
    seed: int
    dtype: str  # of the weights
    trust_remote_code: bool

    def check(self) -> None:
        """Raises InputError for a number out of its range."""
        for name in ("max_new_tokens", "max_tokens_per_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: expected 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")
        if self.top_p < 1 and not self.temperature:
            raise InputError("top_p: no token is drawn at temperature 0; give a temperature, or leave it out")
        if self.seed < 0:
            raise InputError(f"seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Answers:
    """One round's answers to one question file."""

    file: Path
    round: int
    metrics: dict[str, Any]  # questions, tokens, seconds, tokens_per_second; ids of empty answers and of cut ones
    finished_before: bool

    def __repr__(self) -> str:
        return f"Answers(round {self.round}, {self.metrics['questions']} in {str(self.file)!r})"

    @property
    def summary(self) -> str:
        """How many answers there are, and how many are empty or cut for length."""
        counts = self.metrics["questions"], len(self.metrics["empty"]), len(self.metrics["cut"])
        return "{} answers, {} empty, {} cut for length".format(*counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"file": str(self.file), "round": self.round, "metrics": self.metrics}


def generate(
    run: str | Path,
    questions: Any,
    *,
    rounds: Sequence[int] | None = None,
    output: str | Path = "evol_answer",
    max_new_tokens: int = 512,
    max_tokens_per_batch: int = 8192,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
    upstream_prompt: bool = False,
    trust_remote_code: bool = False,
) -> list[Answers]:
    """A run's models answer questions: `<output>/<questions>_test/<run>/rd_<r>.jsonl`.

    The prompt is the one that the run trained on, up to where the response begins. Without a temperature the likeliest
    token is taken, the lowest of equals. With one, a token is drawn by a number that follows from the seed, the round,
    the question file's name and the question's id: whatever else is in its batch, and however often the work was
    stopped, a question's answer is the same (but for the last bits of the logits, in which a batch's shape is seen).

    Args:
        run: a run's folder.
        questions: the name of a JSON lines file, or a list of names.
        rounds: whose models answer; None: all.
        output: the folder of the answers. Answers that stand there are kept, and the work goes on from them.
        max_new_tokens: of an answer.
        max_tokens_per_batch: prompts and answers with padding.
        temperature: 0 takes the likeliest token.
        top_p: with a temperature, the share of the probability that tokens are drawn from.
        seed: draws tokens when there is a temperature.
        dtype: of the weights; None: the run's.
        upstream_prompt: as the public implementation generates: the training prompt after a leading space.
        trust_remote_code: whether code that comes with the model runs.

    Returns:
        One Answers for each round and question file, those that were finished before first.

    Raises:
        InputError: an argument, the run, a question file or an earlier output does not fit; nothing was generated.
        RunError: a model's logits are not finite; earlier answers are kept.
    """
    finished = read_run(Path(run))
    decoding = Decoding(
        max_new_tokens, max_tokens_per_batch, temperature, top_p, seed, dtype or finished.config.dtype,
        trust_remote_code,
    )  # fmt: skip
    decoding.check()
    check_folder(Path(output))
    wanted = _rounds(rounds, finished)
    benchmarks = _benchmarks(as_paths(questions))
    template, recorded = _template(finished)
    kind = _kind_of_prompt(template, upstream_prompt)
    answers, todo = [], {}
    for r in wanted:  # all of them, before the first is begun
        for task in _tasks(r, finished, benchmarks, {"prompt": kind} | recorded, Path(output), decoding):
            if task.file.is_finished():
                answers.append(_answers(task, finished_before=True))
            else:
                todo.setdefault(r, []).append(task)
    for r, tasks in todo.items():
        model = _load(r, finished, template, decoding)
        answers += _answer_round(tasks, model, kind, decoding, log_prompt=r == min(todo))
        del model
        gc.collect()  # adapters leave a cycle on it; its memory is needed for the next one
    return answers


def _answers(task: Task, finished_before: bool) -> Answers:
    return Answers(task.file.path, task.r, task.file.metrics(), finished_before)


def _rounds(wanted: Sequence[int] | None, run: FinishedRun) -> list[int]:
    for r in wanted or []:
        if not 0 <= r < run.rounds:
            raise InputError(f"rounds: {run.state.folder} has models of rounds 0 to {run.rounds - 1}, got {r}")
    return sorted(set(wanted)) if wanted else list(range(run.rounds))


def _benchmarks(paths: list[Path]) -> dict[str, list[Question]]:
    """The questions of each file, by the name of the folder that their answers go to."""
    benchmarks: dict[str, list[Question]] = {}
    read: dict[str, Path] = {}
    for path in paths:
        name = f"{benchmark_name(path)}_test"
        if name in benchmarks:
            raise InputError(f"questions: answers to {read[name]} and {path} would both go to {name}; rename one")
        benchmarks[name], read[name] = read_questions(path), path
        if any("answer" in question.record for question in benchmarks[name]):
            log.warning("%s: has answers; the model's stand in their place in what is written", path)
    return benchmarks


def _template(run: FinishedRun) -> tuple[Template, dict[str, str]]:
    """What the run trained on, and what a record says of it."""
    pool, _ = load_data(str(run.state.data_file(0, "labeled")), run.config.columns)
    name = run.config.template or pool.schema.template
    template = Template(name, pieces=() if name in TEMPLATES else read_template(Path(name)))
    recorded = template.provenance(pool)
    if recorded.get("template") != run.state.manifest(0)["provenance"].get("template"):
        raise InputError(f"template {name}: is not what {run.state.folder} was trained with any more; restore the file")
    return template, recorded


def _kind_of_prompt(template: Template, upstream: bool) -> str:
    """ "training", "upstream" or "chat"."""
    if upstream and template.name != "alpaca":
        raise InputError(f"upstream_prompt: is Alpaca's; this run was trained with the template {template.name}")
    return "upstream" if upstream else "chat" if template.name == "chat" else "training"


def _tasks(
    r: int, run: FinishedRun, benchmarks: dict[str, list[Question]], prompt: dict[str, str], output: Path,
    decoding: Decoding,
) -> list[Task]:  # fmt: skip
    folder = run.state.model_folder(r)
    provenance: dict[str, Any] = prompt | {
        "model_sha256": folder_sha256(folder), "dtype": decoding.dtype,
        "max_new_tokens": decoding.max_new_tokens, "temperature": decoding.temperature,
    }  # fmt: skip
    if _is_adapter(folder):
        provenance["base_model_sha256"] = folder_sha256(run.base_model())
    if prompt["prompt"] == "upstream":
        provenance["upstream_text"] = "stripped"  # earlier versions had a line break after "### Response:"
    if decoding.temperature:
        provenance |= {"top_p": decoding.top_p, "seed": decoding.seed}
    tasks = []
    for name, questions in benchmarks.items():
        records = json.dumps([(question.id, question.record) for question in questions], sort_keys=True)
        digest = hashlib.sha256(records.encode()).hexdigest()
        path = output / name / run.name / f"rd_{r}.jsonl"
        tasks.append(Task(r, name, questions, GeneratedFile(path, provenance | {"questions_sha256": digest})))
    return tasks


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _load(r: int, run: FinishedRun, template: Template, decoding: Decoding) -> Generator:
    folder = run.state.model_folder(r)
    return Generator(
        folder, template, dtype=decoding.dtype, attn_implementation=run.config.attn_implementation,
        trust_remote_code=decoding.trust_remote_code, base=run.base_model() if _is_adapter(folder) else None,
    )  # fmt: skip


def _answer_round(
    tasks: list[Task], model: Generator, kind: str, decoding: Decoding, log_prompt: bool
) -> list[Answers]:
    """Answer what is not answered yet, file by file. log_prompt: one prompt is logged."""
    if log_prompt:
        first = tasks[0].questions[0]
        prompt = printable(model.prompt(first, kind)[:MOST_SHOWN])
        log.info("question %s of %s, as the model sees it:\n%s", shown(first.id), tasks[0].name, prompt)
    prompts = [model.token_ids(task.questions, kind) for task in tasks]
    room = [_room(task, of_task, model.positions, decoding) for task, of_task in zip(tasks, prompts, strict=True)]
    budget, answers = TokenBudget(decoding.max_tokens_per_batch), []
    for task, of_task, most in zip(tasks, prompts, room, strict=True):
        with task.file.held():
            if task.file.is_finished():  # by another process, while the model was loaded
                answers.append(_answers(task, finished_before=True))
                continue
            _answer(task, of_task, most, model, budget, decoding)
            metrics = task.file.finish(task.questions)
        answers.append(_answers(task, finished_before=False))
        log.info("round %d: %s: %s; %d tokens in %.1f s, %.0f tokens/s", task.r, task.name, answers[-1].summary,
                 metrics["tokens"], metrics["seconds"], metrics["tokens_per_second"])  # fmt: skip
    return answers


def _room(task: Task, prompts: list[list[int]], positions: int, decoding: Decoding) -> np.ndarray:
    """How many tokens each answer may have, int64 [Q]: max_new_tokens, or as many as the model has positions for.

    Raises:
        InputError: a prompt that leaves no position.
    """
    room = positions - np.array([len(prompt) for prompt in prompts])
    for question, prompt, left in zip(task.questions, prompts, room, strict=True):
        if left < 1:
            raise InputError(
                f"{task.name}, question {shown(question.id)}: its prompt has {len(prompt)} tokens, and the model takes "
                f"{positions} with the answer; leave the question out"
            )
    short = np.flatnonzero(room < decoding.max_new_tokens)
    if len(short):
        tightest = short[room[short].argmin()]
        log.warning(
            "%s: %d questions leave less than %d tokens for the answer, question %s leaves %d; they are answered apart",
            task.name, len(short), decoding.max_new_tokens, shown(task.questions[tightest].id), room[tightest],
        )  # fmt: skip
    return np.minimum(room, decoding.max_new_tokens)


def _batches(tokens: np.ndarray, most: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Positions [0, Q) in batches of like length by prompt and answer tokens [Q], the same every time.

    The rows of a batch may have equally many tokens: one that has ended runs on until the others have, and there must
    be positions for that.
    """
    groups = [np.flatnonzero(most == number) for number in np.unique(most)[::-1]]
    return [group[batch] for group in groups for batch in token_budget_batches(tokens[group], max_tokens)]


def _answer(
    task: Task,
    prompts: list[list[int]],
    most: np.ndarray,
    model: Generator,
    budget: TokenBudget,
    decoding: Decoding,
) -> None:
    """Answer the questions that the task's file does not have yet, with at most `most` tokens each, int64 [Q]."""
    tokens, kept = most + np.array([len(prompt) for prompt in prompts]), len(task.file.answers)
    if kept:
        log.info("round %d: %s: %d answers are there already", task.r, task.name, kept)
    with Progress(f"round {task.r}: {task.name}", len(prompts) - kept, "answer") as bar:

        def work(places: np.ndarray) -> None:
            speed = _answer_batch(task, places.tolist(), prompts, most, model, decoding)
            bar.update(len(places), **{"tokens/s": speed})

        for batch in _batches(tokens, most, decoding.max_tokens_per_batch):
            left = np.array([place for place in batch.tolist() if place not in task.file.answers], dtype=np.int64)
            if len(left):
                budget.run(left, tokens[left], work)


def _answer_batch(
    task: Task, places: list[int], prompts: list[list[int]], most: np.ndarray, model: Generator,
    decoding: Decoding,
) -> float:  # fmt: skip
    """Answer the questions at these places and keep the answers; returns tokens/s."""
    began = time.perf_counter()
    count = int(most[places].max())
    numbers = None
    if decoding.temperature:
        numbers = torch.from_numpy(np.stack([_numbers(task, place, decoding.seed, count) for place in places]))
    choose = NextToken(numbers, decoding.temperature, decoding.top_p)
    answers = model.answers([prompts[place] for place in places], count, choose)
    if not choose.finite.all():
        question = task.questions[places[int(choose.finite.int().argmin())]]
        raise RunError(
            f"round {task.r}: the model's logits are not finite for question {shown(question.id)} of {task.name}: "
            "its training diverged, or its numbers are too large for this dtype"
        )
    seconds = time.perf_counter() - began
    task.file.append(dict(zip(places, answers, strict=True)), seconds)
    return sum(answer.tokens for answer in answers) / seconds


def _numbers(task: Task, place: int, seed: int, count: int) -> np.ndarray:
    """The uniform numbers that draw a question's tokens: float64 [count]."""
    key = f"{seed} {task.r} {task.name} {task.questions[place].id}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest())).random(count)
