"""The command line in a process of its own; a small run, its picks, and programs that are stopped in it."""

import json
import sys
from pathlib import Path

from support.config import write_config

from diverseevol_fast.cli.main import main

DIVERSEEVOL = [sys.executable, "-m", "diverseevol_fast"]


def run(tmp_path, settings, *extra) -> int:
    return main(["run", str(write_config(tmp_path, settings)), "--quiet", *extra])


def selected(out, r):
    return json.loads((Path(out) / "state" / f"rd_{r}" / "selected.json").read_text(encoding="utf-8"))


def picks(out, rounds=3):
    return [selected(out, r) for r in range(rounds)]


PUBLIC = """
full_data_path: rows.json  # a comment
model_name_or_path: a-model
cache_dir: ~
model_max_length: 512
val_set_size: 0
evol_schedule_name: KCenterSampling
result_dir_name: debug
train_args:
  optim: adamw_torch
  num_train_epochs: 1
  per_device_train_batch_size: 1
  per_device_eval_batch_size: 1
  gradient_accumulation_steps: 1
  evaluation_strategy: "no"
  save_strategy: "steps"
  save_steps: 2000
  save_total_limit: 1
  learning_rate: 2.0e-5
  weight_decay: 0.
  warmup_ratio: 0.03
  lr_scheduler_type: cosine
  logging_steps: 1
  fsdp: "full_shard auto_wrap"
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  bf16: TRUE
  tf32: TRUE
init_label_num: 2
n_round: 2
n_query: 2
"""


# The command line with its stages slowed down, so that a kill lands inside the one it is meant for, and with every
# finished batch recorded at once.
SLOWED = """
import sys, time
import diverseevol_fast.embedding.embed as embedding, diverseevol_fast.selection.stream as stream
import diverseevol_fast.embedding.store as store, diverseevol_fast.runs.training as training
from diverseevol_fast.cli.main import main

def slowly(function, seconds):
    def call(*args, **kwargs):
        time.sleep(seconds)
        return function(*args, **kwargs)
    return call

store.SECONDS_BETWEEN_FLUSHES = 0.0
stream.KCenterStream.bound = slowly(stream.KCenterStream.bound, 0.03)
embedding.Embeddings.select = slowly(embedding.Embeddings.select, 1.5)
training.Collator.__call__ = slowly(training.Collator.__call__, 0.6)
sys.exit(main(sys.argv[1:]))
"""


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
