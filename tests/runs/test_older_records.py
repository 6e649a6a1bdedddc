"""A run that version 0.1 began, with the names that its records had."""

import json

from support.config import write_config
from support.runs import picks

from diverseevol_fast import report, run
from diverseevol_fast.cli.main import main
from diverseevol_fast.runs.finished import read_run
from diverseevol_fast.runs.state import OLDER_NAMES


def as_before(value):
    """A record with the names of version 0.1, at any depth."""
    older = {name: before for before, name in OLDER_NAMES.items()}
    if not isinstance(value, dict):
        return value
    return {older.get(key, key): as_before(inner) for key, inner in value.items()}


def test_a_run_of_version_0_1_goes_on_and_is_reported(settings, tmp_path):
    run(settings, n_round=1)
    folder = tmp_path / "out"
    for path in [folder / "state" / "run.json", *folder.glob("state/rd_*/m*.json")]:
        record = as_before(json.loads(path.read_text()))
        if "config" in record:
            record["config"]["unseen"] = record["config"].pop("held_out_groups")
        path.write_text(json.dumps(record))
    assert "made_from" in json.loads((folder / "state/rd_0/manifest.json").read_text())
    assert "held_out_loss" in json.loads((folder / "state/rd_1/metrics.json").read_text())["train"]
    assert read_run(folder).metrics(1)["train"]["validation_loss"] > 0
    assert "validation loss" in " ".join(report(folder, output=tmp_path / "r.html").verdict).lower()
    before = picks(folder, 2)
    assert main(["run", str(write_config(tmp_path, settings)), "--quiet"]) == 0  # a round more
    assert picks(folder, 2) == before
    assert read_run(folder).rounds == 3
