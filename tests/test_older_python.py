"""The adapters in the environments of what they are put under: Python 3.10, and none of the packages of the commands.

With the real Python 3.10 and torch 2.0: tests/pinned.sh.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import diverseevol_fast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(diverseevol_fast.__file__).parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the checkout")

SCHEDULES = """
import torch

class KCenterSampling:
    whiten_n_components = -1

    def __init__(self, x, labelled):
        self.x, self.n_pool = x, len(x)
        self.labeled_idx = torch.zeros(len(x), dtype=bool)
        self.labeled_idx[labelled] = True

    def get_embeddings_all_data(self, rd, use_model_path):
        return list(self.x)

    def query(self, rd, n, use_model_path):
        raise AssertionError("not replaced")
"""

PROGRAM = """
import json, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # its import fails
import torch
from diverseevol_fast.compat import anomalib, deepal, google, upstream
from diverseevol_fast.ops import reference

import evol_schedules
upstream.patch()
x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
schedule = evol_schedules.KCenterSampling(x, [3, 5])
picks = schedule.query(rd=0, n=20, use_model_path="m").tolist()
assert picks == sorted(reference.kcenter(x, 20, [3, 5])[0])
schedule.whiten_n_components = 4
assert schedule.query(rd=0, n=20, use_model_path="m").tolist() != picks
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "diverseevol_fast" and m.__file__]))
"""


def test_the_adapters_load_nothing_but_what_is_held_to_python_3_10(tmp_path):
    """They need numpy, torch, tqdm and filelock; ruff refuses what Python 3.10 cannot parse in the files they load."""
    (tmp_path / "evol_schedules.py").write_text(SCHEDULES)
    absent = ["accelerate", "safetensors", "tokenizers", "transformers", "yaml"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *absent], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["per-file-target-version"]
    assert set(settings.values()) == {"py310"}
    held = {file.resolve() for pattern in settings for file in ROOT.glob(pattern)}
    loaded = {Path(file).resolve() for file in json.loads(done.stdout) if file.endswith(".py")}
    assert PACKAGE / "compat" / "upstream.py" in loaded
    assert loaded - held == set()


def test_the_extension_is_built_for_python_3_10_too():
    (floor,) = re.findall(r"find_package\(Python (\S+) REQUIRED", (ROOT / "CMakeLists.txt").read_text())
    assert floor == "3.10"
