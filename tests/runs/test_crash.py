"""A run that is killed again and again ends like one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from support.config import write_config, write_rows
from support.runs import SLOWED

from diverseevol_fast.demo.rows import generate_rows

pytestmark = pytest.mark.slow

STAGES = ["training", "embedding", "selecting", "embedding", "training", "selecting"]
# Lazy rounds pool without bounding, and select between batches.
SLOWED_LAZILY = SLOWED.replace(
    "stream.KCenterStream.bound = slowly(stream.KCenterStream.bound, 0.03)",
    "import diverseevol_fast.embedding.engine as engine, diverseevol_fast.selection.lazy as lazy\n"
    "engine.launch_masked_mean_pool = slowly(engine.launch_masked_mean_pool, 0.1)\n"
    "lazy.LazyTraversal._greedy = slowly(lazy.LazyTraversal._greedy, 0.2)\n"
    "store.FileStore.finish = slowly(store.FileStore.finish, 0.3)",
)


def start(config, out, slowed=None):
    program = ["-c", slowed] if slowed else ["-m", "diverseevol_fast"]
    command = [sys.executable, *program, "run", str(config), "--output_dir", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)


def kill_in(stage, config, out, wait, slowed=SLOWED):
    """Start the run, wait until it enters `stage`, call wait(round), SIGKILL. Returns the round it was in."""
    process = start(config, out, slowed)
    for line in process.stderr:
        if f": {stage} " in line and line.startswith("round"):
            wait(int(line.split()[1].rstrip(":")))
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    return int(line.split()[1].rstrip(":"))


def finish(config, out):
    process = start(config, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def selections(out, rounds):
    return [json.loads((out / f"state/rd_{r}/selected.json").read_text(encoding="utf-8")) for r in range(rounds + 1)]


@pytest.mark.timeout(400)
def test_sigkill_in_every_stage(tmp_path, settings):
    settings |= {"n_round": 3, "max_tokens_per_batch": 256}
    config = write_config(tmp_path, settings)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(config, alone)
    seed = os.environ.get("DIVERSEEVOL_CRASH_SEED", str(random.randrange(1000)))
    print("DIVERSEEVOL_CRASH_SEED", seed)  # pytest shows it when the test fails
    moments = random.Random(seed)
    for stage in STAGES:
        delay = moments.uniform(0.0, 0.4)
        r = kill_in(stage, config, killed, lambda _, delay=delay: time.sleep(delay))
        state = killed / "state" / f"rd_{r}"
        if stage == "training":
            assert not (killed / "output" / f"rd_{r}").exists()
        else:
            assert not (state / "selected.json").exists()
        if stage == "selecting":
            assert (state / "embeddings.npy").exists()
    finish(config, killed)
    assert selections(killed, 3) == selections(alone, 3)
    leftovers = [path.name for path in killed.rglob("*") if "embeddings" in path.name or ".partial" in path.name]
    assert leftovers == []


def test_batches_finished_before_a_sigkill_are_kept(tmp_path, settings):
    settings |= {"n_round": 1, "max_tokens_per_batch": 256}
    config, out = write_config(tmp_path, settings), tmp_path / "out"

    def batches_finished(r):
        progress = out / "state" / f"rd_{r}" / "embeddings.npy.progress"
        return len(progress.read_text(encoding="utf-8").split("\n")) - 2 if progress.exists() else 0

    def some_batches(r):
        while batches_finished(r) <= 3:
            time.sleep(0.02)

    r = kill_in("embedding", config, out, some_batches)
    finished = batches_finished(r)
    finish(config, out)
    metrics = json.loads((out / "state" / f"rd_{r}" / "metrics.json").read_text(encoding="utf-8"))["embed"]
    everything = subprocess.run(
        [
            sys.executable,
            "-c",
            "import numpy, sys; print(len(numpy.load(sys.argv[1])['ids']))",
            str(out / "state" / "tokens.npz"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert metrics["tokens"] < int(everything.stdout) - finished


@pytest.mark.timeout(200)
@pytest.mark.parametrize("schedule", ["EntropySampling", "StaticKCenterSampling"])
def test_sigkill_under_other_strategies(schedule, tmp_path, settings):
    settings |= {"max_tokens_per_batch": 256, "evol_schedule_name": schedule, "max_random_times": 4}
    config = write_config(tmp_path, settings)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(config, alone)
    for stage, delay in (("embedding", 0.1), ("selecting", 0.0), ("training", 0.3)):
        kill_in(stage, config, killed, lambda _, delay=delay: time.sleep(delay))
    finish(config, killed)
    assert selections(killed, 2) == selections(alone, 2)
    names = {path.name for path in killed.rglob("*") if path.suffix == ".npy" or ".partial" in path.name}
    assert names <= {"base_embeddings.npy"}


@pytest.mark.timeout(400)
def test_sigkill_in_lazy_rounds(tmp_path, settings):
    """The same picks, and the same rows embedded."""
    settings["full_data_path"] = str(write_rows(tmp_path / "many.jsonl", generate_rows(250, seed=3)))
    settings |= {"n_round": 3, "max_tokens_per_batch": 256, "keep_embeddings": True}
    settings |= {"lazy_rounds": True, "lazy_probe": 8, "lazy_audit": 8}
    settings["train_args"]["learning_rate"] = 2e-4
    config = write_config(tmp_path, settings)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(config, alone)
    seed = os.environ.get("DIVERSEEVOL_CRASH_SEED", str(random.randrange(1000)))
    print("DIVERSEEVOL_CRASH_SEED", seed)  # pytest shows it when the test fails
    moments, rounds = random.Random(seed), []
    assert SLOWED_LAZILY != SLOWED
    while len(rounds) < 8:
        stage, delay = moments.choice(["training", "embedding", "embedding"]), moments.uniform(0.0, 2.5)
        rounds.append(kill_in(stage, config, killed, lambda _, delay=delay: time.sleep(delay), SLOWED_LAZILY))
        if rounds[-1] == 3:
            break
    finish(config, killed)
    assert selections(killed, 3) == selections(alone, 3)
    for r in (2, 3):
        name = f"state/rd_{r}/embeddings.npy"
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
        assert (killed / f"{name}.rounds.npy").read_bytes() == (alone / f"{name}.rounds.npy").read_bytes()
    assert [path.name for path in killed.rglob("*") if ".part" in path.name or "progress" in path.name] == []


def test_two_processes_cannot_share_a_run(tmp_path, settings):
    from diverseevol_fast._common.errors import InputError
    from diverseevol_fast.runs.state import open_run

    with (
        open_run(tmp_path / "out"),
        pytest.raises(InputError, match="another process is running it"),
        open_run(tmp_path / "out"),
    ):
        pass
