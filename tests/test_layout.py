"""The repository's own rules: light import, who may import whom, and the kernels/ folder that must not shadow."""

import ast
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diverseevol_fast"
pytestmark = pytest.mark.skipif(not PACKAGE.is_dir(), reason="needs the checkout")


def imports(path: Path) -> set[str]:
    """Top-level names of absolute imports, and relative ones as ".name", outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for child in branch.body
        for node in ast.walk(child)
    }
    names = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or node.names[0].name).split(".")[0])
    return names


def test_import_is_light_and_fast():
    code = (
        "import sys, time; t = time.perf_counter(); import diverseevol_fast; s = time.perf_counter() - t;"
        "assert s < 0.5, s; heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve():
    import diverseevol_fast

    assert set(diverseevol_fast.__all__) == {*diverseevol_fast._HOME, "__version__"}
    for name in diverseevol_fast.__all__:
        assert getattr(diverseevol_fast, name) is not None
    assert set(diverseevol_fast.__all__) <= set(dir(diverseevol_fast))
    with pytest.raises(AttributeError, match="no attribute 'kcentre'"):
        _ = diverseevol_fast.kcentre


def test_reference_imports_torch_alone():
    assert imports(PACKAGE / "ops" / "reference.py") == {"torch"}


def test_csrc_knows_no_torch_and_one_file_knows_python():
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8"))
        assert not [name for name in included if name.startswith(("torch/", "ATen/", "c10/"))], path
        assert (path.name == "bind.cpp") or not [name for name in included if "pybind" in name or "Python" in name], (
            path
        )


def test_a_compiler_means_compiled_kernels():
    from diverseevol_fast.ops import backends

    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    assert backends.native_unavailable() is None


def test_loop_can_be_read_in_one_sitting():
    assert len((PACKAGE / "loop.py").read_text(encoding="utf-8").splitlines()) <= 110


def environment_without(package: str, tmp_path: Path) -> dict[str, str]:
    """An environment whose site-packages lack `package`: everything else is linked into a folder."""
    farm = tmp_path / "site"
    farm.mkdir()
    for folder in {*site.getsitepackages(), sysconfig.get_paths()["purelib"]}:
        for entry in Path(folder).iterdir():
            if not re.match(rf"{package}(-.*)?$", entry.name) and not (farm / entry.name).exists():
                (farm / entry.name).symlink_to(entry)
    return os.environ | {"PYTHONPATH": str(farm)}


@pytest.mark.slow
@pytest.mark.parametrize("hub_kernels", ["installed", "absent"])
def test_kernels_folder_does_not_disturb_transformers(hub_kernels, tmp_path):
    """With the repository root as the working directory, and so first on sys.path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = (
        "import sys; sys.path.insert(0, '');"
        "import transformers; from transformers import LlamaConfig, LlamaForCausalLM, Trainer;"
        "from transformers.utils import is_kernels_available as available;"
        "import transformers.integrations.hub_kernels;"
        "LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,"
        "num_attention_heads=1, num_key_value_heads=1));"
        "import importlib.util; spec = importlib.util.find_spec('kernels');"
        "print(available(), spec.origin if spec else None)"
    )
    if hub_kernels == "installed":
        pytest.importorskip("kernels.layer", reason="the Hugging Face kernels package is not installed")
        command, environment = [sys.executable, "-c", code], dict(os.environ)
    else:
        command, environment = [sys.executable, "-S", "-c", code], environment_without("kernels", tmp_path)
    here, elsewhere = (
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        for folder in (ROOT, tmp_path)
    )
    assert here.returncode == elsewhere.returncode == 0, here.stderr
    assert here.stdout == elsewhere.stdout
    if hub_kernels == "absent":
        assert here.stdout.split() == ["False", "None"]
    else:
        assert here.stdout.split()[1].endswith(os.path.join("kernels", "__init__.py"))


@pytest.mark.parametrize(("target", "name"), [("demo", "quickstart"), ("demo-pretrained", "pretrained")])
def test_a_demo_compares_k_center_with_random_sampling(target, name):
    """With one seed, the config's, and the report's verdict as the last lines."""
    shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line.removeprefix(".venv/bin/diverseevol ") for line in shown.splitlines() if "/diverseevol " in line]
    assert commands == [
        f"run examples/{name}.yml",
        f"run examples/{name}.yml --evol_schedule_name RandomSampling --result_dir_name {name}-random",
        f"report evol_res/{name} evol_res/{name}-random",
    ]
