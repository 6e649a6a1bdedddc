"""Fine-tuning on the pool with transformers.Trainer; the loss counts response tokens alone."""

import logging
import time
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from .._common import distributed
from .._common.errors import InputError, RunError
from .._common.messages import reason, shown
from .._common.progress import Progress
from ..data.batches import pad
from ..data.tokens import Tokens
from ..models.load import load_causal_lm
from ..models.quiet import quiet_transformers
from .config import Config, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

log = logging.getLogger("diverseevol_fast")

REFUSALS = (TypeError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, OSError)  # for bad settings
IGNORED_LABEL = -100
# Smallest values of what TrainingArguments does not check, though training fails below them.
LOWEST = {"learning_rate": 0.0, "weight_decay": 0.0, "num_train_epochs": 0.0}
LOWEST |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
DROPPED = {  # arguments that a run does without -> why
    "logging_dir": "the reporting integrations choose their own folders",
    "overwrite_output_dir": "a run is continued, never overwritten",
    "save_safetensors": "models are always saved as safetensors",
} | dict.fromkeys(
    ("save_strategy", "save_steps", "save_total_limit"),
    "a round's finished model is saved; an unfinished round trains from the base model again",
)
SET_BY_RUN = ("output_dir", "seed", "data_seed", "report_to", "disable_tqdm", "remove_unused_columns")


def translate_train_args(train_args: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Keywords for transformers 4.28 or 5 as the installed transformers takes them, and a note on each change.

    Raises:
        InputError: an unknown name, or one that the run sets itself.
    """
    from transformers import TrainingArguments

    known = {f.name for f in fields(TrainingArguments) if f.init}
    args, notes = dict(train_args), []

    def rename(old: str, new: str, value: Any) -> None:
        args.pop(old)
        args[new] = value
        notes.append(f"train_args: {old} is now {new}: {shown(repr(value))}")

    if "evaluation_strategy" in args and "evaluation_strategy" not in known:
        value = args["evaluation_strategy"]
        rename("evaluation_strategy", "eval_strategy", "no" if value is False else value)
    if "warmup_ratio" in args and "warmup_ratio" not in known:
        if args.get("warmup_steps"):
            args.pop("warmup_ratio")
            notes.append("train_args: warmup_ratio is dropped: warmup_steps is given")
        else:
            ratio = args["warmup_ratio"]
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
                raise InputError(f"config: train_args.warmup_ratio: expected 0 to 1, got {shown(repr(ratio))}")
            rename("warmup_ratio", "warmup_steps", float(ratio))
    if args.get("group_by_length") is not None and "group_by_length" not in known:
        rename("group_by_length", "train_sampling_strategy", "group_by_length" if args["group_by_length"] else "random")
    if "fsdp_transformer_layer_cls_to_wrap" in args and "fsdp_transformer_layer_cls_to_wrap" not in known:
        if not isinstance(args.get("fsdp_config") or {}, dict):
            raise InputError("config: train_args.fsdp_config: expected a mapping beside the layer to wrap")
        layer = {"transformer_layer_cls_to_wrap": [args["fsdp_transformer_layer_cls_to_wrap"]]}
        rename("fsdp_transformer_layer_cls_to_wrap", "fsdp_config", {**(args.get("fsdp_config") or {}), **layer})
    for name in [name for name in args if name in DROPPED]:
        args.pop(name)
        notes.append(f"train_args: {name} is dropped: {DROPPED[name]}")
    for name in args:
        if name in SET_BY_RUN:
            raise InputError(f"config: train_args.{name}: the run sets it; use the run's own keys")
        if name not in known:
            raise InputError(f"config: train_args: unknown key '{shown(name)}'{nearest(name, known)}")
    if args.get("eval_strategy", "no") != "no":
        raise InputError("config: train_args.eval_strategy: expected 'no'; for a validation loss set val_set_size")
    if args.get("tf32") and not torch.cuda.is_available():
        args.pop("tf32")
        notes.append("train_args: tf32 is dropped: no CUDA device here")
    if args.get("fsdp") and (distributed.world() == 1 or not torch.cuda.is_available()):
        args.pop("fsdp")
        args.pop("fsdp_config", None)
        why = "the run is one process" if torch.cuda.is_available() else "no CUDA device here"
        notes.append(f"train_args: fsdp is dropped: {why}")
    return args, notes


def training_arguments(config: Config, folder: Path) -> "TrainingArguments":
    """The TrainingArguments of a round whose model goes to `folder`.

    Raises:
        InputError: a value that transformers refuses, now or when training begins.
    """
    from transformers import TrainingArguments
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    args, _ = translate_train_args(config.train_args)
    for name, lowest in LOWEST.items():
        value = args.get(name, lowest)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value < float("inf"):
            expected = f"expected a number of at least {lowest}"
            raise InputError(f"config: train_args.{name}: {expected}, got {shown(repr(value))}")
    _check_types(TrainingArguments, args, "config: train_args")
    args.setdefault("logging_steps", 10)
    args.setdefault("logging_nan_inf_filter", False)  # the log shows a loss that is not finite
    try:
        get_reporting_integration_callbacks(config.report_to)
    except (ValueError, TypeError) as error:
        raise InputError(f"config: report_to: {reason(error)}") from error
    try:
        return TrainingArguments(
            output_dir=str(folder),
            save_strategy="no",
            seed=config.seed,
            data_seed=config.seed,
            report_to=config.report_to,
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            **args,
        )
    except REFUSALS as error:
        raise InputError(f"config: train_args: {reason(error)}") from error


def _check_types(settings_class: type, values: dict[str, Any], location: str) -> None:
    """
    Raises:
        InputError: a value of another type than its field of the dataclass has.
    """
    hints = get_type_hints(settings_class)
    for name, value in values.items():
        types = _types_of(hints[name]) if name in hints else {type(value)}
        if type(value) not in types:
            names = " or ".join(sorted(kind.__name__ for kind in types if kind is not type(None)))
            raise InputError(f"{location}.{shown(name)}: expected {names}, got {shown(repr(value))}")


def _types_of(hint: Any) -> set[type]:
    """The types that a YAML value of this hint may have: a float may be a whole number."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return set().union(*map(_types_of, get_args(hint)))
    if origin is Literal:
        return {type(value) for value in get_args(hint)}
    return {float, int} if hint is float else {origin or hint}


class Collator:
    """Makes one padded batch of a pool's rows, with labels on response tokens alone."""

    def __init__(self, tokens: Tokens, pad_id: int):
        self.tokens, self.pad_id = tokens, pad_id

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask, is_response = pad(self.tokens, np.array([item["row"] for item in items]))
        return {
            "input_ids": ids.masked_fill(~mask, self.pad_id),
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~is_response, IGNORED_LABEL),
        }


def train(
    base: Path,
    tokens: Tokens,
    pool: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    config: Config,
    folder: Path,
) -> tuple[Any, dict[str, float]]:
    """Fine-tune a fresh copy of `base` on the rows at the indices `pool`; save it with its tokenizer in `folder`.

    Returns the model, in memory, and its metrics: seconds, steps, mean training loss, and how many rows were left out
    because truncation cut their whole response away.

    Raises:
        InputError: train_args that transformers refuses.
        RunError: the loss is not finite.
    """
    from transformers import PrinterCallback, Trainer, set_seed

    began = time.perf_counter()
    set_seed(config.seed)
    args = training_arguments(config, folder)
    model: Any = load_model(base.resolve(), config)
    if config.peft:
        model = with_lora(model, config.peft)
    if distributed.world() > 1:
        log.info("training on %d processes: a step takes %d times as many rows", *2 * [distributed.world()])
    indices = [index for index in pool if tokens.has_response(index)]
    # The Trainer takes a list as a data set, and reads input_ids to group rows by length.
    data: Any = [{"row": index, "input_ids": tokens.row(index)[0]} for index in indices]
    pad_id: Any = tokenizer.pad_token_id
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data,
        data_collator=Collator(tokens, pad_id),
        processing_class=tokenizer,
        callbacks=[_progress_callback()],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    if not np.isfinite(result.training_loss):
        raise RunError(
            f"the training loss is {result.training_loss}: training diverged; lower train_args.learning_rate"
        )
    with quiet_transformers():
        trainer.save_model(str(folder))
    if distributed.is_first():
        (folder / "training_args.bin").unlink()  # a pickle of settings that the manifest holds too
    if args.fsdp:  # a process holds a part of the weights, the folder all of them
        distributed.barrier()
        model = load_model(folder, config, base)
    return model, {
        "seconds": time.perf_counter() - began,
        "steps": result.global_step,
        "train_loss": result.training_loss,
        "rows_without_response": len(pool) - len(indices),
    }


def load_model(folder: Path, config: Config, base: Path | None = None) -> "PreTrainedModel":
    """load_causal_lm with the config's settings."""
    return load_causal_lm(
        folder,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        base=base,
    )


def lora_config(settings: dict[str, Any]):
    """peft's LoraConfig (needs the `peft` extra).

    Raises:
        InputError: peft is not installed, or refuses the settings.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("config: peft: the peft package is missing; pip install 'peft>=0.17'") from error
    _check_types(LoraConfig, settings, "config: peft")
    try:
        return LoraConfig(task_type="CAUSAL_LM", **settings)
    except REFUSALS as error:
        raise InputError(f"config: peft: {reason(error)}") from error


def with_lora(model: "PreTrainedModel", settings: dict[str, Any]) -> torch.nn.Module:
    """The model with LoRA adapters.

    Raises:
        InputError: as lora_config; settings that do not fit the model.
    """
    config = lora_config(settings)
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except REFUSALS as error:
        raise InputError(f"config: peft: {reason(error)}") from error


def _progress_callback():
    from transformers import TrainerCallback

    class ShowProgress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = Progress("train", state.max_steps, "step")

        def on_step_end(self, args, state, control, **kwargs):
            loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
            self.bar.update(1, **({} if loss is None else {"loss": float(loss)}))

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return ShowProgress()
