"""A run that is killed again and again ends like one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import write_config

STAGES = ["training", "embedding", "selecting", "training", "selecting", "embedding"]


def start(config, out):
    command = [sys.executable, "-m", "diverseevol_fast", "run", str(config), "--output_dir", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)


def kill_in(stage, config, out, delay):
    """Start the run, wait until it enters `stage`, wait `delay` seconds, SIGKILL. True when that hit it running."""
    process = start(config, out)
    for line in process.stderr:
        if f": {stage} " in line and line.startswith("round"):
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    return process.wait() == -signal.SIGKILL


def selections(out, rounds):
    return [json.loads((out / f"state/rd_{r}/selected.json").read_text(encoding="utf-8")) for r in range(rounds + 1)]


@pytest.mark.timeout(400)
def test_sigkill_in_every_stage(tmp_path, settings):
    settings |= {"n_round": 3, "max_tokens_per_batch": 128}  # many small batches: kills land between them
    config = write_config(tmp_path, settings)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start(config, alone)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()

    moments = random.Random(os.environ.get("DIVERSEEVOL_CRASH_SEED", "0"))
    hits = [
        kill_in(stage, config, killed, moments.uniform(0, 0.02 if stage == "selecting" else 0.5)) for stage in STAGES
    ]
    assert sum(hits) >= 4, f"too few kills hit the run at work: {hits}"
    process = start(config, killed)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    assert selections(killed, 3) == selections(alone, 3)


def test_two_processes_cannot_share_a_run(tmp_path, settings):
    from diverseevol_fast.errors import InputError
    from diverseevol_fast.state import open_run

    with (
        open_run(tmp_path / "out"),
        pytest.raises(InputError, match="another process is running it"),
        open_run(tmp_path / "out"),
    ):
        pass
