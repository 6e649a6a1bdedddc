"""Answers of a run's models to questions, batch by batch; an answer that is saved is not generated again."""

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
from .answer_file import AnswerFile
from .generator import Generator, NextToken
from .questions import Question, benchmark_name, read_questions
from .resumable_lines import check_folder

log = logging.getLogger("diverseevol_fast")

MOST_SHOWN = 2000  # characters of the prompt in the log

Benchmarks = dict[str, list[Question]]  # the questions of each file, by the name of the folder for their answers


@dataclass(frozen=True)
class Task:
    """One question file for one round's model."""

    r: int
    name: str  # of the folder for the answers: "vicuna_test"
    questions: list[Question]
    file: AnswerFile


@dataclass(frozen=True)
class Decoding:
    """The settings of generation."""

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
    metrics: dict[str, Any]  # questions, tokens, seconds, tokens_per_second; the ids of empty and of cut answers
    finished_before: bool  # whether the file was complete before this call

    def __repr__(self) -> str:
        return f"Answers(round {self.round}, {self.metrics['questions']} in {str(self.file)!r})"

    @property
    def summary(self) -> str:
        """The numbers of all answers, of empty ones, and of those cut for length, in words."""
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
    """Let a run's models answer questions, into `<output>/<questions>_test/<run>/rd_<r>.jsonl`.

    The prompt is the run's training text before the response. At temperature 0 the likeliest token is taken, of equals
    the lowest. Otherwise tokens are drawn with random numbers that follow from the seed, the round, the question file's
    name and the question's id alone. So an answer depends neither on the other questions in its batch nor on
    interruptions (but the shape of a batch can change the last bits of the logits).

    Args:
        run: a run's folder.
        questions: the name of a JSON lines file, or a list of names.
        rounds: the rounds whose models answer; None: all.
        output: the folder of the answers. Answers that it holds already are not generated again.
        max_new_tokens: maximum length of an answer.
        max_tokens_per_batch: maximum of a batch's prompts and answers together, padding included.
        temperature: 0 takes the likeliest token.
        top_p: with a temperature, the share of the probability from which tokens are drawn.
        seed: of the random numbers, with a temperature.
        dtype: of the weights; None: the run's.
        upstream_prompt: use the prompt of the public implementation: the training prompt after a space.
        trust_remote_code: whether code that comes with the model runs.

    Returns:
        One Answers for each round and question file; first those that were complete before the call.

    Raises:
        InputError: an argument, the run, a question file or an earlier output does not fit; nothing was generated.
        RunError: a model's logits are not finite; earlier answers are saved.
    """
    finished = read_run(Path(run))
    dtype = dtype or finished.config.dtype
    decoding = Decoding(max_new_tokens, max_tokens_per_batch, temperature, top_p, seed, dtype, trust_remote_code)
    decoding.check()
    check_folder(Path(output))
    wanted = _rounds(rounds, finished)
    benchmarks = _benchmarks(as_paths(questions))
    template, recorded = _template(finished)
    kind = _kind_of_prompt(template, upstream_prompt)
    answers, todo = [], {}
    for r in wanted:  # all files are checked before the first answer is generated
        for task in _tasks(r, finished, benchmarks, {"prompt": kind} | recorded, Path(output), decoding):
            if task.file.is_finished():
                answers.append(_answers(task, finished_before=True))
            else:
                todo.setdefault(r, []).append(task)
    for r, tasks in todo.items():
        model = _load(r, finished, template, decoding)
        answers += _answer_round(tasks, model, kind, decoding, log_prompt=r == min(todo))
        del model
        gc.collect()  # adapters refer to the model in a cycle, and the next model needs its memory
    return answers


def _answers(task: Task, finished_before: bool) -> Answers:
    return Answers(task.file.path, task.r, task.file.metrics(), finished_before)


def _rounds(wanted: Sequence[int] | None, run: FinishedRun) -> list[int]:
    for r in wanted or []:
        if not 0 <= r < run.rounds:
            raise InputError(f"rounds: {run.state.folder} has models of rounds 0 to {run.rounds - 1}, got {r}")
    return sorted(set(wanted)) if wanted else list(range(run.rounds))


def _benchmarks(paths: list[Path]) -> Benchmarks:
    benchmarks: Benchmarks = {}
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
    """The template of the run's training, and its entry in a provenance."""
    pool, _ = load_data(str(run.state.data_file(0, "labeled")), run.config.columns)
    name = run.config.template or pool.schema.template
    template = Template(name, pieces=() if name in TEMPLATES else read_template(Path(name)))
    recorded = template.provenance(pool)
    if recorded.get("template") != run.state.manifest(0)["provenance"].get("template"):
        raise InputError(f"template {name}: is not what {run.state.folder} was trained with any more; restore the file")
    return template, recorded


def _kind_of_prompt(template: Template, upstream: bool) -> str:
    """The kind of prompt: "training", "upstream" or "chat"."""
    if upstream and template.name != "alpaca":
        raise InputError(f"upstream_prompt: is Alpaca's; this run was trained with the template {template.name}")
    return "upstream" if upstream else "chat" if template.name == "chat" else "training"


def _tasks(
    r: int, run: FinishedRun, benchmarks: Benchmarks, prompt: dict[str, str], output: Path, decoding: Decoding
) -> list[Task]:
    folder = run.state.model_folder(r)
    provenance: dict[str, Any] = prompt | {"model_sha256": folder_sha256(folder), "dtype": decoding.dtype}
    provenance |= {"max_new_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}
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
        tasks.append(Task(r, name, questions, AnswerFile(path, provenance | {"questions_sha256": digest})))
    return tasks


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _load(r: int, run: FinishedRun, template: Template, decoding: Decoding) -> Generator:
    folder = run.state.model_folder(r)
    base = run.base_model() if _is_adapter(folder) else None
    options = {"dtype": decoding.dtype, "attn_implementation": run.config.attn_implementation, "base": base}
    return Generator(folder, template, trust_remote_code=decoding.trust_remote_code, **options)


def _answer_round(
    tasks: list[Task], model: Generator, kind: str, decoding: Decoding, log_prompt: bool
) -> list[Answers]:
    """Generate the missing answers, file by file. log_prompt: whether one prompt is logged."""
    if log_prompt:
        first = tasks[0].questions[0]
        prompt = printable(model.prompt(first, kind)[:MOST_SHOWN])
        log.info("question %s of %s, as the model sees it:\n%s", shown(first.id), tasks[0].name, prompt)
    prompts = [model.token_ids(task.questions, kind) for task in tasks]
    limits = [_limits(task, of_task, model.positions, decoding) for task, of_task in zip(tasks, prompts, strict=True)]
    budget, answers = TokenBudget(decoding.max_tokens_per_batch), []
    for task, of_task, most in zip(tasks, prompts, limits, strict=True):
        with task.file.held():
            if task.file.is_finished():  # by another process, while the model was loaded
                answers.append(_answers(task, finished_before=True))
                continue
            _answer(task, of_task, most, model, budget, decoding)
            metrics = task.file.finish(task.questions)
        answers.append(_answers(task, finished_before=False))
        speed = metrics["tokens"], metrics["seconds"], metrics["tokens_per_second"]
        summary = f"{task.name}: {answers[-1].summary}"
        log.info("round %d: %s; %d tokens in %.1f s, %.0f tokens/s", task.r, summary, *speed)
    return answers


def _limits(task: Task, prompts: list[list[int]], positions: int, decoding: Decoding) -> np.ndarray:
    """Maximum tokens of each answer, int64 [Q]: max_new_tokens, or fewer where the model has fewer positions.

    Raises:
        InputError: a prompt leaves no position for an answer.
    """
    room = positions - np.array([len(prompt) for prompt in prompts])
    for question, prompt, remaining in zip(task.questions, prompts, room, strict=True):
        if remaining < 1:
            raise InputError(
                f"{task.name}, question {shown(question.id)}: its prompt has {len(prompt)} tokens, and the model takes "
                f"{positions} with the answer; leave the question out"
            )
    short = np.flatnonzero(room < decoding.max_new_tokens)
    if len(short):
        tightest = short[room[short].argmin()]
        log.warning(
            "%s: %d questions leave less than %d tokens for the answer, question %s leaves %d; they are answered apart",
            *(task.name, len(short), decoding.max_new_tokens, shown(task.questions[tightest].id), room[tightest]),
        )
    return np.minimum(room, decoding.max_new_tokens)


def _batches(tokens: np.ndarray, most: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """The indices [0, Q) of questions in deterministic batches of similar length, prompt and answer together.

    All answers of a batch have the same limit: an ended answer is padded until the others end, and the model must have
    positions for that. tokens, most: int64 [Q].
    """
    groups = [np.flatnonzero(most == limit) for limit in np.unique(most)[::-1]]
    return [group[batch] for group in groups for batch in token_budget_batches(tokens[group], max_tokens)]


def _answer(
    task: Task, prompts: list[list[int]], most: np.ndarray, model: Generator, budget: TokenBudget, decoding: Decoding
) -> None:
    """Generate the answers that the task's file lacks. most: the maximum tokens of each, int64 [Q]."""
    tokens, saved = most + np.array([len(prompt) for prompt in prompts]), len(task.file.answers)
    if saved:
        log.info("round %d: %s: %d answers are there already", task.r, task.name, saved)
    with Progress(f"round {task.r}: {task.name}", len(prompts) - saved, "answer") as bar:

        def work(indices: np.ndarray) -> None:
            speed = _answer_batch(task, indices.tolist(), prompts, most, model, decoding)
            bar.update(len(indices), **{"tokens/s": speed})

        for batch in _batches(tokens, most, decoding.max_tokens_per_batch):
            remaining = np.array([index for index in batch.tolist() if index not in task.file.answers], dtype=np.int64)
            if len(remaining):
                budget.run(remaining, tokens[remaining], work)


def _answer_batch(
    task: Task, indices: list[int], prompts: list[list[int]], most: np.ndarray, model: Generator, decoding: Decoding
) -> float:
    """Generate and save the answers to the questions with these indices; returns tokens/s."""
    began = time.perf_counter()
    count = int(most[indices].max())
    uniform = None
    if decoding.temperature:
        uniform = torch.from_numpy(np.stack([_uniform(task, index, decoding.seed, count) for index in indices]))
    choose = NextToken(uniform, decoding.temperature, decoding.top_p)
    answers = model.answers([prompts[index] for index in indices], count, choose)
    if not choose.finite.all():
        question = task.questions[indices[int(choose.finite.int().argmin())]]
        raise RunError(
            f"round {task.r}: the model's logits are not finite for question {shown(question.id)} of {task.name}: "
            "its training diverged, or its numbers are too large for this dtype"
        )
    seconds = time.perf_counter() - began
    task.file.append(dict(zip(indices, answers, strict=True)), seconds)
    return sum(answer.tokens for answer in answers) / seconds


def _uniform(task: Task, index: int, seed: int, count: int) -> np.ndarray:
    """The random numbers in [0, 1) that draw a question's tokens: float64 [count]."""
    key = f"{seed} {task.r} {task.name} {task.questions[index].id}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest())).random(count)
