"""Runs with markup in their data, and the report pages of them."""

import json

import pytest
from support.config import quick_settings, write_config, write_rows
from support.report_records import NASTY, ODD

from diverseevol_fast.cli.main import main


@pytest.fixture(scope="module")
def made(tmp_path_factory, rows, tiny_model):
    """Finished runs over data with markup in it: K-Center of two seeds and random; and one round on other data."""
    folder = tmp_path_factory.mktemp("report")
    changed = [row | {"instruction": f"{NASTY} {row['instruction']} \U0001f98a 漢字"} for row in rows]
    data, plain = write_rows(folder / "rows.jsonl", changed), write_rows(folder / "other.jsonl", rows)
    settings = quick_settings(data, tiny_model, model_max_length=256)
    other = {"full_data_path": str(plain), "n_round": 0, "val_set_size": 0}
    for name, more in (
        ("kc", {}),
        ("kc-1", {"seed": 1}),
        ("rnd", {"evol_schedule_name": "RandomSampling"}),
        (ODD, other),
    ):
        config = write_config(folder, settings | more | {"output_dir": str(folder / name)})
        assert main(["run", str(config), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    output = made / "page.html"
    assert main(["report", str(made / "kc"), str(made / "rnd"), "--output", str(output), "--quiet"]) == 0
    return output


@pytest.fixture(scope="module")
def larger_page(made):
    """Of all runs, one of them judged: two of one strategy, and one of another data set."""
    judged = made / "vicuna" / "kc-1" / "rd_2_vs_chat.jsonl"
    judged.parent.mkdir(parents=True)
    line = {"question_id": 1, "question_text": "?", "eval_QUERY0": [9, 10], "eval_QUERY1": [6, 10]}
    for order, (first, second) in enumerate([("ours", NASTY), (NASTY, "ours")]):
        line |= {
            f"assistant1_QUERY{order}": first,
            f"assistant2_QUERY{order}": second,
            f"response_QUERY{order}": "9 10",
        }
    judged.write_text(json.dumps(line) + "\n", encoding="utf-8")
    runs = [str(made / name) for name in ("kc", "kc-1", "rnd", ODD)]
    output = made / "all.html"
    assert main(["report", *runs, "--judgements", str(judged), "--output", str(output), "--quiet"]) == 0
    return output
