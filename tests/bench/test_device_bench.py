"""bench/device.sh and what it runs, as far as that goes without a GPU: failing lines, cut files, no git, the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.gpu import cuda_works

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="needs the checkout"), pytest.mark.slow]
sys.path.insert(0, str(ROOT / "bench" / "device"))

from diverseevol_fast.ops.kernels import kernel_named  # noqa: E402

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


@pytest.fixture
def device():
    pytest.importorskip("triton")
    import device

    return device


def read(folder: Path) -> list[dict]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@no_gpu
@pytest.mark.parametrize("piece", ["check", "measure", "embedding", "experiment"])
def test_without_a_gpu_one_sentence_and_status_2(piece, tmp_path):
    done = subprocess.run(["bash", ROOT / "bench" / "device.sh", piece, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"no NVIDIA GPU answers here: bench/device.sh {piece} needs one"]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_another_piece_is_refused():
    done = subprocess.run(["bash", ROOT / "bench" / "device.sh", "all"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: bash bench/device.sh check | measure")


@no_gpu
@pytest.mark.parametrize("what", ["check", "measure"])
def test_device_py_without_a_gpu(what, tmp_path):
    command = [sys.executable, ROOT / "bench" / "device" / "device.py", what, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "no GPU answers here: this measures one\n"


def test_a_planted_crash_hang_and_wrong_row_cost_their_own_kernel_alone(device, tmp_path, monkeypatch, capsys):
    """The kernels on an emulated GPU and in Triton's interpreter, in processes of their own."""
    with cuda_works():
        pass  # the emulated GPU is built before the clock runs
    faults = {
        "cuda update_argmax float32": "crash",
        "triton update_argmax bfloat16": "hang",
        "cuda min_sqdist float32": "wrong row",
    }
    names = [
        "cuda update_argmax float32",
        "cuda update_argmax bfloat16",
        "triton update_argmax bfloat16",
        "triton update_argmax float16",
        "cuda min_sqdist float32",
        "cuda min_sqdist float16",
        "cuda min_sqdist_hopper bfloat16",
    ]
    child = [sys.executable, str(ROOT / "tests" / "support" / "emulated_child.py"), json.dumps(faults)]
    monkeypatch.setattr(device, "UNIT_SECONDS", 25.0)
    monkeypatch.setattr(device, "WORKERS", 2)
    from device_lines import Lines

    passed = device.check(Lines(tmp_path), [kernel_named(name) for name in names], lambda left: [*child, *left])
    assert not passed
    lines = {line["kernel"]: line for line in read(tmp_path)}
    assert set(lines) == set(names)
    assert {name for name in names if lines[name]["passed"]} == set(names) - set(faults)
    assert lines["cuda update_argmax float32"]["reason"] == "the process ended with SIGSEGV"
    assert lines["triton update_argmax bfloat16"]["reason"] == "no answer within 25 s"
    assert "is below its squared distance" in lines["cuda min_sqdist float32"]["reason"]
    for line in lines.values():
        assert line["what"] == "check"
        assert line["op"] in ("update_argmax", "min_sqdist")
        assert len(line["digest"]) == 16
        assert line["device"]
    assert capsys.readouterr().out.count("FAILED") == 3


@no_gpu
def test_every_op_is_measured(tmp_path):
    """On tiny problems, in Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "DEF_COMMIT": "0123abc"}
    command = [sys.executable, ROOT / "bench" / "device" / "device.py", "measure", "--tiny", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    lines = read(tmp_path)
    assert {line["commit"] for line in lines} == {"0123abc"}
    assert all(line["passed"] for line in lines)
    ours = {line["kernel"].split(" ")[1] for line in lines if "kernel" in line}
    ops = {"masked_mean_pool", "min_sqdist", "pool_min_sqdist", "update_argmax", "pick_block", "logit_stats"}
    assert ours == ops
    assert {line["backend"] for line in lines if line["what"] == "kcenter"} >= {"triton", "matrix-vector loop"}


def test_git_is_not_needed(monkeypatch):
    from device_lines import commit

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("DEF_COMMIT", raising=False)
    assert commit() == ""
    monkeypatch.setenv("DEF_COMMIT", "0123abc")
    assert commit() == "0123abc"


def test_a_table_of_a_file_that_was_cut_short(device, tmp_path, capsys):
    import device_table

    about = {
        "device": "NVIDIA H100",
        "driver": "580",
        "torch": "2.11",
        "triton": "3.6",
        "cuda": "13.0",
        "commit": "abc",
        "date": "2026-12-01",
        "run": "1",
        "read_bytes_per_second": 3e12,
        "copy_bytes_per_second": 3e12,
        "bfloat16_flops": 8e14,
        "tf32_flops": 4e14,
    }
    line = about | {
        "what": "op",
        "op": "min_sqdist",
        "backend": "cuda min_sqdist bfloat16",
        "shape": [8, 4, 2],
        "passed": True,
        "dtype": "bfloat16",
        "bytes": 64,
        "flops": 128,
        "p50": 1e-3,
        "of_roofline": 0.5,
        "roofline": 5e-4,
    }
    crashed = about | {
        "what": "op",
        "op": "min_sqdist",
        "backend": "triton min_sqdist bfloat16",
        "passed": False,
        "reason": "the process ended with SIGSEGV",
    }
    path = tmp_path / "h100.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(crashed) + "\n" + json.dumps(line)[:70])
    table = device_table.table(device_table.last_run(path))
    assert "h100.jsonl:3: not a whole line, left aside" in capsys.readouterr().err
    assert "| min_sqdist 8 x 4 x 2 bfloat16 | cuda min_sqdist bfloat16 | 1 | 50% |" in table
    assert "the process ended with SIGSEGV" in table


# The order of preference.


def kernel_line(kernel: str, p50: float | None, **more) -> dict:
    return {
        "what": "op",
        "kernel": kernel,
        "op": "min_sqdist",
        "dtype": kernel.split(" ")[2],
        "shape": [8],
        "file": "a",
        "passed": p50 is not None,
        "p50": p50,
        "device": "NVIDIA H100",
        "capability": [9, 0],
        "digest": "d",
    } | more


def test_the_order_is_that_of_the_mean_times():
    from preference import order_of

    triton, cuda = "triton min_sqdist float32", "cuda min_sqdist float32"
    lines = [
        kernel_line(triton, 1.0),
        kernel_line(cuda, 4.0),
        kernel_line(triton, 1.0, shape=[9]),
        kernel_line(cuda, 0.2, shape=[9]),
        kernel_line(triton, 1e-9, shape=[10]),
    ]
    assert order_of(lines) == ["cuda", "triton"]  # sqrt(4 x 0.2) = 0.89, whatever triton takes on a shape of its own
    assert order_of(lines[:2]) == ["triton", "cuda"]
    assert order_of([lines[0], kernel_line(cuda, 0.1), kernel_line(cuda, None, what="check")]) == ["triton"]
    assert order_of([kernel_line(cuda, None)]) == []
    assert order_of([kernel_line(triton, 1.0), kernel_line(cuda, 1.0, shape=[7])]) == []  # nothing to compare


def test_hopper_s_kernel_counts_for_cuda_where_it_is_taken():
    from preference import order_of

    general, hopper = "cuda min_sqdist bfloat16", "cuda min_sqdist_hopper bfloat16"
    triton = "triton min_sqdist bfloat16"
    lines = [
        kernel_line(general, 1.0),
        kernel_line(triton, 2.0),
        kernel_line(general, 9.0, shape=[9]),
        kernel_line(triton, 3.0, shape=[9]),
        kernel_line(hopper, 1.0, shape=[9]),
    ]
    assert order_of(lines) == ["cuda", "triton", "cuda_general"]
    assert order_of(lines[:4]) == ["triton", "cuda"]  # another GPU, where "cuda" is the general kernel
    broken = kernel_line(hopper, None, what="check")
    assert order_of([*lines[:4], broken]) == ["triton", "cuda_general"]
    assert order_of([*lines, kernel_line(general, None, what="check")]) == ["triton"]


def test_the_table_is_rewritten_and_says_when_it_is_old(tmp_path, monkeypatch):
    import kernel_sources
    import preference

    table = tmp_path / "preference.json"
    table.write_text('{"default": ["cuda", "cuda_general", "triton"], "measured": {}}')
    monkeypatch.setattr(preference, "TABLE", table)
    assert preference.status() == ["Order of preference: no GPU has been measured; it is the default for all."]
    digests = {name: kernel_sources.digest(name, "min_sqdist") for name in ("cuda", "triton")}
    lines = [
        kernel_line(f"{name} min_sqdist float32", p50, digest=digests[name])
        for name, p50 in (("triton", 1.0), ("cuda", 2.0))
    ]
    monkeypatch.setattr(preference, "kernel_lines", lambda: lines)
    preference.write()
    written = json.loads(table.read_text())
    assert written["default"] == ["cuda", "cuda_general", "triton"]
    assert written["measured"]["min_sqdist float32"]["9.0"]["order"] == ["triton", "cuda"]
    assert preference.status() == ["Order of preference: 1 entries, from a."]
    lines[0]["digest"] = "older"
    preference.write()
    assert preference.status()[1] == "Measured before their sources changed: triton min_sqdist float32."


def test_the_committed_table_is_what_the_committed_lines_say():
    import preference

    committed = json.loads(preference.TABLE.read_text(encoding="utf-8"))
    assert committed["measured"] == preference.make_table(preference.kernel_lines())


def test_a_digest_is_of_a_kernel_s_own_sources(tmp_path, monkeypatch):
    import kernel_sources

    monkeypatch.setattr(kernel_sources, "ROOT", tmp_path)
    for name, text in {
        "csrc/ops.h": "// contract\nint a;\n",
        "csrc/cuda/shared.cuh": '#include "ops.h"\n',
        "csrc/cuda/one.cu": '#include "cuda/shared.cuh"\nint one;\n',
        "csrc/cuda/two.cu": '#include "ops.h"\nint two;\n',
        "kernels/triton_ops/one.py": "from .base import f\nx = 1\n",
        "kernels/triton_ops/base.py": "f = 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    kernels = [("cuda", "one"), ("cuda", "two"), ("triton", "one")]

    def changed(name: str, text: str) -> set:
        before = {kernel: kernel_sources.digest(*kernel) for kernel in kernels}
        (tmp_path / name).write_text(text)
        return {kernel for kernel in kernels if kernel_sources.digest(*kernel) != before[kernel]}

    assert changed("csrc/ops.h", "// another comment\nint a;\n\n") == set()
    assert changed("csrc/ops.h", "int b;\n") == {("cuda", "one"), ("cuda", "two")}
    assert changed("csrc/cuda/shared.cuh", '#include "ops.h"\nint more;\n') == {("cuda", "one")}
    assert changed("kernels/triton_ops/base.py", "f = 3  # three\n") == {("triton", "one")}
    assert changed("kernels/triton_ops/base.py", "f = 3\n") == set()


def test_this_checkout_s_kernels_have_sources():
    import kernel_sources

    from diverseevol_fast.ops import kernels

    for kernel in {(kernel.launcher, kernel.name) for kernel in kernels.all_kernels((9, 0))}:
        assert len(kernel_sources.digest(*kernel)) == 16


@no_gpu
def test_the_experiment_writes_a_line_for_each_round(tmp_path):
    """On a small Llama, for two rounds, of which the second can be lazy."""
    command = [sys.executable, ROOT / "bench" / "device" / "device_experiment.py", "--tiny", "--output", tmp_path]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line for line in read(tmp_path) if line["what"] == "experiment"]
    assert [(line["case"], line["round"]) for line in lines] == [
        (arm, r) for arm in ("kcenter", "lazy", "random") for r in (0, 1, 2)
    ]
    assert [line["case"] for line in lines if "groups" in line["metrics"].get("select", {})] == ["lazy"]
    assert all("validation_loss" in line["metrics"]["train"] for line in lines)


def test_a_model_is_joined_from_its_parts(tmp_path, monkeypatch):
    import hashlib

    import device_experiment

    monkeypatch.setattr(device_experiment, "SHA256", hashlib.sha256(b"one model").hexdigest())
    model = tmp_path / "model.gguf"
    (tmp_path / "model.gguf.part0").write_bytes(b"one ")
    with pytest.raises(SystemExit, match="nor whole in 1 parts"):
        device_experiment.join_parts(model)
    assert not model.exists()
    (tmp_path / "model.gguf.part1").write_bytes(b"model")
    device_experiment.join_parts(model)
    assert model.read_bytes() == b"one model"
