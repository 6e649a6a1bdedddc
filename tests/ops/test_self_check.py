"""The self-check of GPU kernels: the chosen backends, the saved verdicts and when they hold, on a stand-in for a GPU.

The stand-in is a script in the place of the child process, which answers as a plan says.
"""

import json
import logging
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diverseevol_fast.cli import environment
from diverseevol_fast.cli.main import main
from diverseevol_fast.ops import backends, check_child, check_problems, isolated, kernels, self_check
from diverseevol_fast.ops.kernels import Kernel
from diverseevol_fast.ops.self_check import Gpu

H100 = Gpu("NVIDIA H100", (9, 0), 132, "580.1", "2.11.0", "3.6.0", "0123")
A100 = Gpu("NVIDIA A100", (8, 0), 108, "580.1", "2.11.0", "3.6.0", "0123")
CHILD = """
import json, os, signal, sys, time
sys.path.insert(0, FOLDER)
from isolated import serve

plan, names = json.loads(sys.argv[1]), sys.argv[2:]
with open(sys.argv[0] + ".calls", "a") as calls:
    calls.write(json.dumps(names) + "\\n")

def work(name):
    answer = next((plan[key] for key in plan if name.startswith(key)), "pass")
    if answer == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if answer == "hang":
        time.sleep(60)
    if answer == "nonsense":
        yield 17
    elif answer == "memory":
        yield {"passed": None, "reason": "CUDA out of memory"}
    elif answer == "pass":
        yield {"passed": True, "reason": ""}
    else:
        yield {"passed": False, "reason": answer}

serve(names, work)
"""


class StandIn:
    """A stand-in for a GPU: `plan` maps the beginnings of kernels' names to the results of their checks."""

    def __init__(self, script: Path):
        self.plan: dict[str, str] = {}
        self.gpus = [H100]
        self.script = script
        script.write_text(CHILD.replace("FOLDER", repr(str(Path(isolated.__file__).parent))))

    def command(self, names, index) -> list[str]:
        return [sys.executable, str(self.script), json.dumps(self.plan), *names]

    @property
    def children(self) -> list[list[str]]:
        """The kernels that each child was to check."""
        calls = self.script.with_name(self.script.name + ".calls")
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def new_process(self) -> None:
        """As in a new process: verdicts are known from the cache folder alone."""
        self_check.verdicts.cache_clear()
        backends._first_that_passed.cache_clear()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    stand_in = StandIn(tmp_path / "child.py")
    monkeypatch.delenv("DIVERSEEVOL_BACKEND", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(stand_in.gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: stand_in.gpus[index].name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: stand_in.gpus[index].capability)
    monkeypatch.setattr(backends, "unusable", lambda name, _: "runs on the CPU" if name == "native" else None)
    monkeypatch.setattr(kernels, "cuda_architectures", lambda: ("80", "90a"))
    monkeypatch.setattr(self_check, "describe", lambda index: stand_in.gpus[index])
    monkeypatch.setattr(self_check, "child_command", stand_in.command)
    monkeypatch.setattr(self_check, "KERNEL_SECONDS", 2.0)
    stand_in.new_process()
    yield stand_in
    stand_in.new_process()


def chosen(op="min_sqdist", dtype=torch.bfloat16, index=0) -> str:
    return backends.choose(torch.device("cuda", index), "auto", op, dtype)


def why(op="min_sqdist", dtype=torch.bfloat16) -> str:
    return backends.explain("cuda", "auto", op, dtype).reason


def test_where_all_pass_the_first_of_the_order_is_chosen(gpu):
    assert {chosen(op) for op in ("min_sqdist", "masked_mean_pool", "update_argmax", "logit_stats")} == {"cuda"}
    assert chosen("pick_block", torch.float32) == "cuda"
    assert why() == "passed its self-check on this GPU"
    checked = sorted(name for names in gpu.children for name in names)
    assert checked == sorted(str(kernel) for kernel in kernels.all_kernels((9, 0)))  # all together, once
    assert "cuda min_sqdist_hopper bfloat16" in checked
    assert "cuda min_sqdist_hopper float32" not in checked


def test_the_table_says_which_is_tried_first(gpu, monkeypatch):
    table = {
        "default": ["cuda", "cuda_general", "triton"],
        "measured": {"min_sqdist bfloat16": {"9.0": {"order": ["triton"]}}},
    }
    monkeypatch.setattr(kernels, "_table", lambda: table)
    assert chosen() == "triton"
    assert chosen(dtype=torch.float16) == "cuda"
    gpu.plan = {"triton min_sqdist bfloat16": "a bound is wrong"}
    gpu.gpus = [replace(H100, driver="590")]
    gpu.new_process()
    assert chosen() == "cuda"  # backends without a measurement come last
    gpu.gpus = [A100]
    gpu.new_process()
    assert chosen() == "cuda"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("bound 1.0 of row 5 is below", "bound 1.0 of row 5 is below"),
        ("crash", "the process ended with SIGSEGV"),
        ("hang", "no answer within 2 s"),
        ("nonsense", "answered 17 where a verdict was expected"),
    ],
)
def test_a_kernel_that_fails_is_not_chosen_and_the_next_one_is(gpu, caplog, answer, reason):
    gpu.plan = {"cuda update_argmax float32": answer}
    assert chosen("update_argmax", torch.float32) == "triton"
    assert f"cuda: update_argmax float32: {reason}" in why("update_argmax", torch.float32)
    assert chosen("update_argmax", torch.float16) == "cuda"  # the remaining kernels, after its process died
    assert backends.choose("cuda", op="update_argmax") == "triton"  # for every dtype
    assert f"cuda update_argmax float32 failed its self-check: {reason}" in caplog.text


def test_without_hopper_s_kernel_cuda_goes_on(gpu):
    gpu.plan = {"cuda min_sqdist_hopper": "wrong"}
    assert chosen() == "cuda_general"
    assert why() == "passed its self-check on this GPU; cuda: min_sqdist_hopper bfloat16: wrong"
    assert chosen(dtype=torch.float32) == "cuda"
    gpu.plan = {"cuda min_sqdist_hopper": "wrong", "cuda min_sqdist ": "wrong, too"}
    gpu.gpus = [replace(H100, driver="590")]
    gpu.new_process()
    assert chosen() == "triton"


def test_where_all_fail_the_reference_serves(gpu):
    gpu.plan = {"cuda": "wrong", "triton": "crash"}
    assert chosen() == "reference"
    assert "cuda: min_sqdist bfloat16: wrong" in why()
    assert "triton: min_sqdist bfloat16: the process ended with SIGSEGV" in why()


def test_a_verdict_is_remembered_and_a_named_backend_is_not_checked(gpu, caplog):
    assert backends.choose("cuda", "triton", "min_sqdist") == "triton"
    assert gpu.children == []
    gpu.plan = {"cuda update_argmax": "wrong"}
    with caplog.at_level(logging.WARNING):
        chosen()
    assert caplog.text.count("checking") == 1
    children = len(gpu.children)
    caplog.clear()
    for _ in range(2):
        gpu.new_process()
        assert chosen("update_argmax", torch.float32) == "triton"
        assert chosen() == "cuda"
    assert len(gpu.children) == children
    assert caplog.text == ""


@pytest.mark.parametrize("changed", ["name", "multiprocessors", "driver", "torch", "triton", "kernels"])
def test_anything_that_a_verdict_depends_on_checks_anew(gpu, changed):
    chosen()
    children = len(gpu.children)
    gpu.gpus = [replace(H100, **{changed: 66 if changed == "multiprocessors" else "other"})]
    gpu.plan = {"cuda": "wrong"}
    gpu.new_process()
    assert chosen() == "triton"
    assert len(gpu.children) > children
    gpu.gpus = [H100]
    gpu.new_process()
    assert chosen() == "cuda"  # its saved verdict still holds


def test_two_unlike_gpus_are_checked_apart(gpu):
    gpu.gpus = [H100, A100]
    gpu.plan = {"cuda min_sqdist bf": "wrong"}
    assert chosen() == "triton"
    gpu.plan = {}
    assert chosen(index=1) == "cuda"
    assert chosen() == "triton"


def test_out_of_memory_is_no_verdict(gpu, caplog):
    gpu.plan = {"cuda": "memory"}
    assert chosen() == "triton"
    assert "cuda min_sqdist bfloat16 could not be checked: CUDA out of memory" in caplog.text
    gpu.plan = {}
    gpu.new_process()
    assert chosen() == "cuda"
    assert all(name.startswith("cuda") for name in gpu.children[-1])  # kernels that passed are not checked again


def test_a_child_that_cannot_use_the_gpu_leaves_the_reference(gpu, monkeypatch, caplog):
    said = "raise SystemExit('CUDA-capable device(s) is/are busy or unavailable')"
    monkeypatch.setattr(self_check, "child_command", lambda *_: [sys.executable, "-c", said])
    assert chosen() == "reference"
    assert "busy or unavailable" in why()
    monkeypatch.setattr(self_check, "child_command", gpu.command)
    gpu.new_process()
    assert chosen() == "cuda"


def test_a_cache_folder_that_cannot_be_written(gpu, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert chosen() == "cuda"
    assert "cannot be written" in caplog.text
    assert "each process checks the GPU kernels anew" in caplog.text
    gpu.new_process()
    children = len(gpu.children)
    assert chosen() == "cuda"
    assert len(gpu.children) == 2 * children


def test_a_full_disk(gpu, monkeypatch, caplog):
    def write(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(self_check, "write_json", write)
    assert chosen() == "cuda"
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"gpu": {}}', '{"gpu": null, "verdicts": 3}'])
def test_a_file_of_verdicts_that_is_broken(gpu, content):
    chosen()
    (path,) = self_check.cache_folder().glob("*.json")
    path.write_text(content)
    gpu.plan = {"cuda": "wrong"}
    gpu.new_process()
    assert chosen() == "triton"
    assert json.loads(path.read_text())["gpu"]["name"] == H100.name


def test_another_gpu_s_file_is_not_believed(gpu):
    """Two descriptions whose digests agreed, or a file that was copied."""
    chosen()
    (path,) = self_check.cache_folder().glob("*.json")
    saved = json.loads(path.read_text())
    saved["gpu"]["driver"] = "1"
    path.write_text(json.dumps(saved))
    gpu.plan = {"cuda": "wrong"}
    gpu.new_process()
    assert chosen() == "triton"


def test_two_that_check_at_once(gpu):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(self_check.verdicts.__wrapped__(0, ("cuda", "triton"))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(gpu.children) == 2  # one for each launcher, not four


def test_a_gpu_that_is_too_old(gpu):
    gpu.gpus = [replace(A100, name="NVIDIA T4", capability=(7, 5))]
    assert chosen() == "reference"
    assert why() == "this GPU has compute capability 7.5; the kernels need 8.0 or later"
    assert gpu.children == []


def test_a_backend_that_is_not_built_is_not_checked(gpu, monkeypatch):
    missing = {"cuda": "not built", "cuda_general": "not built", "native": "no"}
    monkeypatch.setattr(backends, "unusable", lambda name, _: missing.get(name))
    assert chosen() == "triton"
    assert why() == "passed its self-check on this GPU; cuda: not built; cuda_general: not built"
    assert all(name.startswith("triton") for names in gpu.children for name in names)


def test_env_says_what_is_chosen_and_why(gpu):
    gpu.plan = {"cuda min_sqdist float16": "a bound is wrong"}
    assert environment._op_lines(environment._op("min_sqdist", "cuda")) == [
        "min_sqdist on cuda, float32 and bfloat16: cuda (passed its self-check on this GPU)",
        "min_sqdist on cuda, float16: triton (passed its self-check on this GPU; cuda: min_sqdist float16: a bound is "
        "wrong; cuda_general: min_sqdist float16: a bound is wrong)",
        "  usable too: cuda_general, reference",
    ]
    unusable = environment._unusable(["cpu", "cuda"])
    assert environment._unusable_lines(unusable) == ["not usable here:", "  native: runs on the CPU"]


def test_env_check_checks_all_anew_and_shows_a_table(gpu, capsys):
    chosen()
    gpu.plan = {"triton pick_block": "crash"}
    gpu.gpus = [H100, A100]
    assert main(["env", "--check"]) == 1
    said = capsys.readouterr().err
    assert "GPU 0: NVIDIA H100" in said
    assert "GPU 1: NVIDIA A100" in said
    assert said.count("triton pick_block float32                FAILED       the process ended with SIGSEGV") == 2
    assert "2 kernels did not pass" in said
    assert said.count(" passed") == 2 * len(kernels.all_kernels((8, 0))) + 2 - 2  # the H100 has Hopper's two more
    gpu.new_process()
    assert chosen("pick_block", torch.float32) == "cuda"
    gpu.plan = {}
    assert main(["env", "--check"]) == 0


def test_env_check_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["env", "--check"]) == 2
    assert "env --check: no GPU to check: torch is built for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cuda", "error", "said"),
    [
        (None, None, "built for the CPU"),
        ("13.0", "Found no NVIDIA driver on your system. Please\nmore", "built for CUDA 13.0; Found no NVIDIA"),
        (
            "13.0",
            "The NVIDIA driver on your system is too old (found version 12020)",
            "built for CUDA 13.0; The NVIDIA driver",
        ),
    ],
)
def test_env_says_why_there_is_no_gpu(monkeypatch, capsys, cuda, error, said):
    def init():
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert main(["env"]) == 0
    assert f"GPU: none (torch is {said}" in capsys.readouterr().out
    assert main(["env", "--check"]) == 2


def test_the_real_child_refuses_another_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA A100")
    with pytest.raises(RuntimeError, match="GPU 0 is NVIDIA A100 here, not NVIDIA H100"):
        check_child.main(0, "NVIDIA H100", ["cuda min_sqdist float32"])


def test_the_real_child_runs_as_far_as_it_can(monkeypatch):
    """On a machine without a GPU: the package is found, the kernels are named, and CUDA is not there."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    kernel = Kernel("triton", "update_argmax", "float32")
    verdict = self_check.run_checks([kernel], 0)[kernel]
    assert verdict.passed is None
    assert "the process ended with exit status 1: " in verdict.reason
    assert "CUDA" in verdict.reason


def test_a_gpu_on_which_all_hangs_is_not_waited_for_without_end(gpu, monkeypatch):
    monkeypatch.setattr(self_check, "KERNEL_SECONDS", 1.0)
    monkeypatch.setattr(self_check, "CHECK_SECONDS", 1.5)
    gpu.plan = {"cuda": "hang", "triton": "hang"}
    assert chosen("masked_mean_pool", torch.float32) == "reference"
    found = self_check.verdicts(0, ("cuda", "triton"))
    assert {verdict.reason for verdict in found.values() if verdict.passed is None} == {
        "left out, the checks took more than 2 s"
    }
    assert {verdict.reason for verdict in found.values() if verdict.passed is False} == {"no answer within 1 s"}


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            "CUDA out of memory. Tried to allo",
        ),
        (RuntimeError("launch: cudaErrorMemoryAllocation: out of memory"), "launch: cudaErrorMemoryAllocation: out of"),
    ],
)
def test_whatever_says_out_of_memory_is_no_verdict(monkeypatch, error, verdict):
    def check(*given):
        raise error

    monkeypatch.setattr(check_problems, "check", check)
    found = check_child.checked("cuda min_sqdist float32", torch.device("cpu"), "small")
    assert found.passed is None
    assert found.reason.startswith(verdict)
    monkeypatch.setattr(check_problems, "check", lambda *given: (_ for _ in ()).throw(RuntimeError("illegal access")))
    with pytest.raises(RuntimeError, match="illegal access"):  # it ends the child
        check_child.checked("cuda min_sqdist float32", torch.device("cpu"), "small")


def test_the_digest_is_of_what_runs():
    assert self_check.kernels_digest() == self_check.kernels_digest()
    assert len(self_check.kernels_digest()) == 16
