"""The YAML, its checks, and train_args of older transformers."""

import pytest
import torch
import yaml
from support.config import write_config
from support.runs import PUBLIC

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.runs.config import load_config
from diverseevol_fast.runs.training import training_arguments, translate_train_args


def load(tmp_path, values=None, text=None, **overrides):
    if text is not None:
        (tmp_path / "config.yml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "config.yml", overrides)
    return load_config(write_config(tmp_path, values), overrides)


def test_the_public_config_is_read_as_it_is(tmp_path):
    config = load(tmp_path, text=PUBLIC)
    assert (config.init_label_num, config.n_round, config.n_query, config.cache_dir) == (2, 2, 2, None)
    assert str(config.output_path) == "evol_res/debug"
    args, notes = translate_train_args(config.train_args)
    assert args["eval_strategy"] == "no"
    assert args["warmup_steps"] == 0.03
    changed = {"evaluation_strategy", "warmup_ratio", "fsdp_transformer_layer_cls_to_wrap", "fsdp"}
    changed |= {"save_strategy", "save_steps", "save_total_limit"}
    if not torch.cuda.is_available():
        changed.add("tf32")
        assert "tf32" not in args
    assert {note.split()[1] for note in notes} == changed
    built = training_arguments(config, tmp_path / "out")
    assert (built.learning_rate, built.bf16, built.optim) == (2e-5, True, "adamw_torch")
    assert built.save_strategy == "no"


def test_command_line_wins_and_reaches_inside(tmp_path, settings):
    config = load(tmp_path, settings, n_query=7, **{"train_args.learning_rate": "2e-5", "train_args.weight_decay": 0.1})
    assert config.n_query == 7
    assert config.train_args == settings["train_args"] | {"learning_rate": 2e-5, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_querry": 3}, "unknown key 'n_querry'; did you mean 'n_query'?"),
        ({"train_args": {"learning_rat": 1}}, "train_args: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"train_args": {"output_dir": "x"}}, "train_args.output_dir: the run sets it"),
        ({"full_data_path": None}, "key 'full_data_path' is missing"),
        ({"n_query": "many"}, "n_query: expected int, got 'many'"),
        ({"n_query": True}, "n_query: expected int, got True"),
        ({"n_query": 0}, "n_query: expected at least 1, got 0"),
        ({"init_label_num": 0}, "init_label_num: expected at least 1, got 0"),
        ({"n_round": -1}, "n_round: expected at least 0"),
        ({"output_dir": None}, "'result_dir_name' .or 'output_dir'. is missing"),
        ({"evol_schedule_name": "KCenter"}, "evol_schedule_name: expected KCenterSampling or .*, got 'KCenter'"),
        ({"whiten_n_components": True}, "whiten_n_components: expected the number of components, got True"),
        ({"whiten_n_components": 8, "evol_schedule_name": "RandomSampling"}, "RandomSampling takes no embeddings"),
        ({"held_out_groups": {"family": "poem"}}, "held_out_groups.family: expected a list of values, got 'poem'"),
        ({"evol_schedule_name": "VendiSampling"}, "max_random_times: VendiSampling expects at least 1, got -1"),
        (
            {"evol_schedule_name": "VendiSampling", "max_random_times": 5, "vendi_argmax_rank": 5},
            "vendi_argmax_rank: expected -5 to 4 of 5 batches, got 5",
        ),
        ({"dtype": "int8"}, "dtype: expected one of"),
        ({"seed": 2**32}, "seed: expected at most 4294967295, got 4294967296"),
        ({"max_random_times": 10**30}, "max_random_times: expected a number below 2.53, got one of 100 bits"),
        ({"report_to": "foo"}, "report_to: foo is not supported"),
        ({"train_args": {"warmup_ratio": "x"}}, "train_args.warmup_ratio: expected 0 to 1, got 'x'"),
        ({"train_args": {"save_steps": float("nan")}}, "the number nan; expected a finite one"),
        ({"train_args": {"max_grad_norm": "x"}}, "train_args.max_grad_norm: expected float or int, got 'x'"),
        ({"output_dir": "a\0b"}, "output_dir: expected text without NUL"),
        (
            {"max_tokens_per_batch": 10},
            "max_tokens_per_batch: expected 'auto' or at least model_max_length = 128, got 10",
        ),
        ({"max_tokens_per_batch": "many"}, "max_tokens_per_batch: expected 'auto' or at least"),
        ({"embed_dtype": "int8"}, "embed_dtype: expected float32, bfloat16, float16, got 'int8'"),
        (
            {"train_args": {"learning_rate": "abc"}},
            "train_args.learning_rate: expected a number of at least 0.0, got 'abc'",
        ),
        ({"train_args": {"num_train_epochs": -3}}, "train_args.num_train_epochs: expected a number of at least 0.0"),
        (
            {"train_args": {"per_device_train_batch_size": 0}},
            "per_device_train_batch_size: expected a number of at least 1",
        ),
        (
            {"train_args": {"learning_rate": 1e-3, "lr_scheduler_type": "wavy"}},
            "train_args: wavy is not a valid SchedulerType",
        ),
    ],
)
def test_mistakes(tmp_path, settings, change, words):
    with pytest.raises(InputError, match=words):
        training_arguments(load(tmp_path, settings | change), tmp_path / "x")


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(InputError, match="no such config file"):
        load_config(tmp_path / "absent.yml")
    with pytest.raises(InputError, match=r"not YAML: .* line 2"):
        load(tmp_path, text="a: 1\nb: [1\n")
    with pytest.raises(InputError, match="expected a mapping"):
        load(tmp_path, text="- a\n")
    with pytest.raises(InputError, match="not YAML"):
        load(tmp_path, text="a: !!python/object/apply:os.system ['true']\n")


def test_examples_are_valid(pytestconfig):
    examples = sorted((pytestconfig.rootpath / "examples").glob("*.yml"))
    assert examples
    for path in examples:
        config = load_config(path)
        translate_train_args(config.train_args)
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
