"""The record of device measurements: which lines count, what they choose, what a wheel keeps of them, what env says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diverseevol_fast import environment
from diverseevol_fast.ops import backends, measured

ROOT = Path(__file__).resolve().parents[1]
H200, H100, A100 = ("NVIDIA H200", (9, 0)), ("NVIDIA H100", (9, 0)), ("NVIDIA A100", (8, 0))
DIGESTS = {"triton": "t", "cuda": "c"}


def line(backend="triton", p50=1.0, **given) -> dict:
    """A line as bench/device.py writes it."""
    device, capability = given.pop("gpu", H200)
    return {
        "op": "min_sqdist", "backend": backend, "shape": [64, 32, 8], "dtype": "bfloat16", "passed": True, "p20": p50,
        "p50": p50, "p80": p50, "device": device, "capability": list(capability), "date": "2026-12-01",
        "digest": DIGESTS.get(backend), "commit": "0" * 40,
    } | given  # fmt: skip


def written(folder: Path, lines: list, name: str = "gpu.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


def chosen(folder: Path, lines: list, gpu=H200, dtypes=("bfloat16",), usable=("cuda", "triton")) -> measured.Choice:
    return measured.best(measured.read(written(folder, lines), DIGESTS), "min_sqdist", dtypes, *gpu, usable)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The sources that digests are of, and some that they are not of."""
    for name in ("csrc/ops.h", "csrc/bind.cpp", "csrc/cpu/scalar.cpp", "csrc/cuda/min_sqdist.cu",
                 "csrc/cuda/tiles/wgmma.cuh", "kernels/triton_ops/min_sqdist.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("csrc/ops.h", {"cuda"}),
        ("csrc/bind.cpp", {"cuda"}),
        ("csrc/cuda/min_sqdist.cu", {"cuda"}),
        ("csrc/cuda/tiles/wgmma.cuh", {"cuda"}),
        ("csrc/cuda/new.cu", {"cuda"}),
        ("kernels/triton_ops/min_sqdist.py", {"triton"}),
        ("kernels/triton_ops/new.py", {"triton"}),
        ("csrc/cpu/scalar.cpp", set()),
        ("kernels/triton_ops/__pycache__/min_sqdist.cpython-311.pyc", set()),
    ],
)
def test_a_digest_changes_with_its_own_sources_alone(checkout, name, changed):
    before = {backend: measured.digest(backend, checkout) for backend in measured.SOURCES}
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("other")
    assert {backend for backend in before if measured.digest(backend, checkout) != before[backend]} == changed


def test_a_renamed_source_is_another_digest(checkout):
    before = measured.digest("cuda", checkout)
    (checkout / "csrc/cuda/min_sqdist.cu").rename(checkout / "csrc/cuda/other.cu")
    assert measured.digest("cuda", checkout) != before


def test_this_checkouts_backends_have_sources():
    for patterns in measured.SOURCES.values():
        assert any(path.is_file() for pattern in patterns for path in ROOT.glob(pattern))
    assert set(measured.SOURCES) <= set(backends.NAMES)


def test_no_line_chooses_the_reference(tmp_path):
    assert chosen(tmp_path, []) == measured.Choice("reference", measured.NO_LINE)


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "old"},
        {"op": "pick_block"},
        {"dtype": "float32"},
        {"gpu": A100},
        {"passed": None},
        {"backend": "triton, two launches"},
        {"backend": "eager"},
        {"p50": None},
        {"dtype": None},
        {"capability": None},
    ],
)
def test_lines_that_say_nothing_of_the_op_here(tmp_path, other):
    assert chosen(tmp_path, [line(**other)]).backend == "reference"
    assert chosen(tmp_path, [line(), line(**other)]).backend == "triton"


def test_lines_of_other_schemas_are_left_aside(tmp_path):
    older = {name: value for name, value in line().items() if name != "dtype"}
    assert chosen(tmp_path, [older, {"what": "ours", "seconds": 1.0}, [1], 2]).backend == "reference"


def test_a_broken_line_is_named(tmp_path):
    (written(tmp_path, [line()]) / "broken.jsonl").write_text(json.dumps(line()) + '\n{"op": "min_s\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl:2: expected a JSON object, got '\{\"op\": \"min_s'"):
        measured.read(tmp_path, DIGESTS)


def test_the_only_one_that_passed(tmp_path):
    choice = chosen(tmp_path, [line(date="2026-12-01"), line(shape=[9], date="2026-12-03"), line("cuda", digest="old")])
    expected = "the one with passing device lines, on NVIDIA H200"
    assert choice == measured.Choice("triton", expected, "2026-12-03")


def test_the_faster_one_by_the_geometric_mean_of_shared_shapes(tmp_path):
    lines = [
        line("triton", 1.0, shape=[1]), line("triton", 1.0, shape=[2]), line("triton", 1e-9, shape=[3]),
        line("cuda", 4.0, shape=[1]), line("cuda", 0.2, shape=[2]),
    ]  # fmt: skip
    choice = chosen(tmp_path, lines)
    assert choice.backend == "cuda"  # sqrt(4 x 0.2) = 0.89, whatever triton takes on a shape of its own
    assert choice.reason == "0.89 of triton's time over 2 shapes, on NVIDIA H200"
    assert chosen(tmp_path, lines, usable=["triton"]).backend == "triton"
    assert chosen(tmp_path, [line("triton"), line("cuda")]).backend == "cuda"  # a tie


def test_a_later_line_replaces_an_earlier_one(tmp_path):
    assert chosen(tmp_path, [line("cuda", 9.0), line("triton", 1.0), line("cuda", 0.5)]).backend == "cuda"


def test_one_failed_line_rules_a_backend_out_until_its_sources_change(tmp_path):
    failed = line("cuda", passed=False, shape=[7], p50=None)
    choice = chosen(tmp_path, [line("cuda", 0.1), failed, line("cuda", 0.1, shape=[7])])
    assert choice == measured.Choice("reference", f"{measured.NO_LINE}; cuda failed a check")
    assert chosen(tmp_path, [line("cuda", 0.1), failed, line("triton")]).backend == "triton"
    assert chosen(tmp_path, [line("cuda", 0.1), failed | {"digest": "old"}]).backend == "cuda"
    assert chosen(tmp_path, [line("cuda", 0.1), failed | {"dtype": "float32"}]).backend == "cuda"


def test_a_selection_with_wrong_picks_rules_a_backend_out_for_every_op(tmp_path):
    wrong = line("cuda", passed=False, p50=None) | {"op": "kcenter, host rows", "dtype": "float32"}
    assert chosen(tmp_path, [line("cuda", 0.1), line("triton"), wrong]).backend == "triton"
    assert chosen(tmp_path, [line("cuda", 0.1), line("triton"), wrong | {"digest": "old"}]).backend == "cuda"


def test_backends_without_a_shape_in_common_are_not_said_to_be_compared(tmp_path):
    choice = chosen(tmp_path, [line("cuda", 0.1), line("triton", shape=[7])])
    assert choice.backend == "cuda"
    assert "not compared with triton: no shape in common" in choice.reason


def test_another_gpu_counts_when_it_is_of_the_same_capability_and_none_of_the_name_is_there(tmp_path):
    lines = [line("triton", gpu=H100), line("cuda", 0.5, gpu=A100)]
    choice = chosen(tmp_path, lines)
    assert choice.backend == "triton"
    assert choice.reason.endswith("on NVIDIA H100, a GPU of the same compute capability")
    assert chosen(tmp_path, [*lines, line("cuda", 2.0)]).backend == "cuda"
    assert chosen(tmp_path, [*lines, line("cuda", passed=False)]).backend == "reference"
    assert chosen(tmp_path, lines, gpu=("NVIDIA B200", (10, 0))).backend == "reference"


def test_every_dtype_that_is_asked_for_needs_a_line(tmp_path):
    lines = [line("triton"), line("triton", dtype="float32"), line("cuda", 0.1)]
    assert chosen(tmp_path, lines).backend == "cuda"
    assert chosen(tmp_path, lines, dtypes=("bfloat16", "float32")).backend == "triton"
    assert chosen(tmp_path, lines, dtypes=("bfloat16", "float16")).backend == "reference"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that is not there, for the choice alone; gives the function that fills its record."""
    monkeypatch.delenv("DIVERSEEVOL_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: H200[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: H200[1])
    monkeypatch.setattr(backends, "unusable", lambda name, _: "runs on the CPU" if name == "native" else None)

    def fill(lines: list) -> None:
        record = tuple(measured.read(written(tmp_path, lines), DIGESTS))
        monkeypatch.setattr(measured, "record", lambda: record)
        backends._measured_best.cache_clear()

    yield fill
    backends._measured_best.cache_clear()


def test_a_cuda_tensor_takes_what_is_measured(gpu):
    gpu([])
    assert backends.choose("cuda", "auto", "min_sqdist") == "reference"
    gpu([line(dtype=dtype) for dtype in backends.DTYPES["min_sqdist"]] + [line("cuda", 0.5)])
    assert backends.choose("cuda", "auto", "min_sqdist") == "triton"
    assert backends.choose(torch.device("cuda", 1), "auto", "min_sqdist", torch.bfloat16) == "cuda"
    assert backends.choose("cuda", "reference", "min_sqdist") == "reference"
    assert backends.choose("cuda", op="pick_block") == "reference"


def test_the_record_is_not_read_for_the_cpu_or_a_named_backend(gpu, monkeypatch):
    gpu([])
    monkeypatch.setattr(measured, "record", lambda: pytest.fail("was read"))
    backends.choose("cpu", op="min_sqdist", dtype=torch.float32)
    backends.choose("cuda", "triton", "min_sqdist")


def test_env_says_what_is_chosen_and_on_which_line_it_rests(gpu):
    gpu([line(dtype=dtype, date="2026-12-02") for dtype in ("float32", "bfloat16", "float16")] + [line("cuda", 0.5)])
    assert environment._op("min_sqdist", "cuda") == [
        "min_sqdist on cuda, float32 and float16: triton "
        "(the one with passing device lines, on NVIDIA H200, 2026-12-02)",
        "min_sqdist on cuda, bfloat16: cuda (0.50 of triton's time over 1 shape, on NVIDIA H200, 2026-12-01)",
        "  native: runs on the CPU",
        "  reference: usable",
    ]
    assert environment._op("pick_block", "cuda")[0] == f"pick_block on cuda: reference ({measured.NO_LINE})"


def test_env_says_what_the_record_holds(tmp_path, monkeypatch, capsys):
    from diverseevol_fast.cli import main

    lines = [line(), line(passed=False, date="2026-12-03"), line("cuda", digest="old", gpu=A100)]
    record = tuple(measured.read(written(tmp_path, lines), DIGESTS))
    monkeypatch.setattr(measured, "record", lambda: record)
    assert main(["env"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [text for text in printed if text.startswith("Device record")] == [
        "Device record: NVIDIA A100, cuda, 2026-12-01, 1 of 1 lines passed, of other sources, which count for nothing",
        "Device record: NVIDIA H200, triton, 2026-12-01 to 2026-12-03, 1 of 2 lines passed, of these sources",
    ]
    assert environment.device_record([]) == [
        "Device record: no GPU has measured these kernels; a CUDA tensor takes reference"
    ]


def test_env_names_a_broken_record(monkeypatch, tmp_path, capsys):
    from diverseevol_fast.cli import main

    (tmp_path / "gpu.jsonl").write_text("{\n")
    monkeypatch.setattr(measured, "record", lambda: measured.read(tmp_path, DIGESTS))
    assert main(["env"]) == 1
    assert "gpu.jsonl:1: expected a JSON object" in capsys.readouterr().err


def test_a_wheel_keeps_the_lines_of_its_sources(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("diverseevol_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    digests = {backend: measured.digest(backend, tmp_path) for backend in measured.SOURCES}
    fresh = [line(backend, digest=digest) for backend, digest in digests.items()]
    others = [line(), {"what": "ours"}, fresh[0] | {"dtype": None}]
    written(tmp_path / measured.RESULTS, [fresh[0], *others, fresh[1]], "nvidia-h200.jsonl")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "library"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "library" / "diverseevol_fast"
    assert measured.lines_of(package / measured.INSTALLED_RECORD) == fresh
    assert [each.current for each in measured.read(package, None)] == [True, True]
    assert not measured.is_checkout(package.parent)
