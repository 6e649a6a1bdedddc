"""Several processes: the picks of one, and what is left when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.config import write_config, write_rows
from support.runs import SLOWED

from diverseevol_fast.cli.main import main
from diverseevol_fast.demo.rows import generate_rows
from diverseevol_fast.strategies import STRATEGIES

pytestmark = pytest.mark.slow

JOB = Path(__file__).resolve().parents[1] / "support" / "distributed_job.py"


def launch(processes, program, *args):
    """Start a program under torchrun, each process with one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*command, str(program), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def commands(folder, config, data_file, tiny_model):
    """embed; select without and with an earlier choice, from the model and from the embeddings; a run."""
    folder.mkdir()
    data = ["--data", str(data_file), "--model", str(tiny_model), "--max-tokens-per-batch", "512"]
    x = ["--embeddings", str(folder / "x.npy")]
    files = {name: str(folder / f"{name}.json") for name in ("first", "second", "third", "fourth")}
    select = ["select", *data, "--output", str(folder / "subset.jsonl")]
    return [
        ["embed", *data, "--output", str(folder / "x.npy")],
        [*select, "-n", "12", "--picks", files["first"]],
        [*select, "-n", "9", "--selected", files["first"], "--picks", files["second"]],
        ["select", *x, "-n", "12", "--picks", files["third"]],
        ["select", *x, "-n", "9", "--selected", files["third"], "--picks", files["fourth"]],
        ["run", str(config), "--output_dir", str(folder / "out")],
    ]


def outcome(folder):
    """The embeddings, and every list of picks."""
    picks = [json.loads((folder / f"{name}.json").read_text())["indices"] for name in ("first", "second")]
    from_file = [json.loads((folder / f"{name}.json").read_text())["indices"] for name in ("third", "fourth")]
    rounds = [json.loads((folder / f"out/state/rd_{r}/selected.json").read_text())["indices"] for r in range(3)]
    return np.load(folder / "x.npy"), picks, from_file, rounds


@pytest.mark.timeout(600)
def test_the_picks_of_one_process(tmp_path, settings, data_file, tiny_model):
    settings["train_args"]["learning_rate"] = 0.0  # the same models, whatever the batches that they are trained on
    config = write_config(tmp_path, settings)
    found = {}
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        job = launch(processes, JOB, *map(json.dumps, commands(folder, config, data_file, tiny_model)))
        out, errors = job.communicate(timeout=100)
        assert job.returncode == 0, errors
        assert out.count("subset.jsonl: 12 rows") == 1  # one process speaks
        found[processes] = outcome(folder)
    x, picks, from_file, rounds = found[1]
    assert picks == from_file
    assert len(rounds[2]) == 5
    for processes in (2, 3):
        np.testing.assert_array_equal(found[processes][0], x)
        assert found[processes][1:] == (picks, from_file, rounds)


@pytest.mark.timeout(300)
def test_every_strategy_picks_what_one_process_does(tmp_path, settings):
    settings["train_args"]["learning_rate"] = 0.0
    config = write_config(tmp_path, settings | {"max_random_times": 4})
    found = {}
    for processes in (1, 2):
        folders = {schedule: tmp_path / f"{schedule}{processes}" for schedule in STRATEGIES}
        runs = [
            ["run", str(config), "--evol_schedule_name", schedule, "--output_dir", str(folder), "--quiet"]
            for schedule, folder in folders.items()
        ]
        job = launch(processes, JOB, *map(json.dumps, runs))
        _, errors = job.communicate(timeout=140)
        assert job.returncode == 0, errors
        found[processes] = {
            schedule: [json.loads((folder / f"state/rd_{r}/selected.json").read_text())["indices"] for r in range(3)]
            for schedule, folder in folders.items()
        }
    assert found[1] == found[2]


@pytest.mark.timeout(300)
def test_lazy_rounds_embed_and_pick_what_one_process_does(tmp_path, tiny_model):
    data = write_rows(tmp_path / "rows.jsonl", generate_rows(300, seed=3))
    found = {}
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        job = launch(processes, JOB.with_name("lazy_job.py"), str(folder), str(tiny_model), str(data))
        _, errors = job.communicate(timeout=90)
        assert job.returncode == 0, errors
        picks = [np.load(folder / f"picks-{rank}.npy").tolist() for rank in range(processes)]
        assert picks == [picks[0]] * processes
        found[processes] = picks[0], np.load(folder / "second.npy"), np.load(folder / "second.npy.rounds.npy")
    assert 0.1 < (found[1][2] == 2).mean() < 0.6
    for processes in (2, 3):
        for one, other in zip(found[1], found[processes], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_process_that_dies_ends_the_job_and_keeps_what_is_finished(tmp_path, data_file, tiny_model):
    program, output = tmp_path / "slowed.py", tmp_path / "x.npy"
    slow = SLOWED.replace(
        "stream.KCenterStream.bound = slowly(stream.KCenterStream.bound, 0.03)",
        "import diverseevol_fast.embedding.engine as engine\n"
        "engine.launch_masked_mean_pool = slowly(engine.launch_masked_mean_pool, 0.3)",
    )
    assert slow != SLOWED
    program.write_text(slow)
    command = [
        "embed",
        "--data",
        str(data_file),
        "--model",
        str(tiny_model),
        "--max-tokens-per-batch",
        "512",
        "--output",
        str(output),
    ]
    job = launch(2, program, *command)
    second = tmp_path / "x.npy.progress.1"

    def finished(path):
        return len(path.read_text().splitlines()) - 1 if path.exists() else 0

    while finished(second) < 2:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "what is finished is kept, the same command goes on from there" in errors
    kept = finished(second) + finished(tmp_path / "x.npy.progress")
    assert kept >= 3
    assert not output.exists()

    before = (tmp_path / "x.npy.part").read_bytes()
    assert main([*command, "--quiet"]) == 0
    x = np.load(output)
    assert main([*command[:-1], str(tmp_path / "y.npy"), "--quiet"]) == 0
    np.testing.assert_array_equal(x, np.load(tmp_path / "y.npy"))
    assert len(before) == output.stat().st_size
    assert sorted(path.name for path in tmp_path.glob("x.npy*")) == ["x.npy", "x.npy.json"]
