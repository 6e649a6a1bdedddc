"""The report: what it says of a real run, and that it is well-formed and self-contained."""

import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from support.config import write_config, write_rows
from support.report_records import NASTY, ODD

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.cli.main import main
from diverseevol_fast.embedding.embed import embed
from diverseevol_fast.evaluate.report.contents import records_of
from diverseevol_fast.evaluate.report.report import report
from diverseevol_fast.models.load import load_encoder, load_tokenizer
from diverseevol_fast.runs.finished import read_run

VOID = {"meta", "link", "br", "img", "hr", "path", "use", "rect", "image"}


class Page(HTMLParser):
    """Elements that are open, what is fetched from elsewhere, and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.fetched, self.texts, self.ids, self.images = [], [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("svg", "img"):
            self.images += 1
            assert given.get("aria-label" if tag == "svg" else "alt"), "a picture that nothing describes"
        self.ids += [given["id"]] if "id" in given else []
        for name in ("src", "srcset", "data", "href", "xlink:href"):
            target = given.get(name) or ""
            if name in given and not (tag == "a" and name == "href") and not target.startswith(("data:", "#")):
                self.fetched.append((tag, target))
        if tag == "script" or any(name.startswith("on") for name in given):
            self.fetched.append((tag, "script"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parts(page):
    """The page's sections by their headings' ids, as elements."""
    text = page.read_text(encoding="utf-8")
    main = ElementTree.fromstring(text[text.index("<main>") : text.index("</main>") + len("</main>")])
    return {section.find("h2").get("id"): section for section in main.iter("section")}


def cells(section, caption):
    """Of the one table of a section whose caption begins so: by its rows' heads, the cells' texts."""
    (found,) = (each for each in section.iter("table") if "".join(each.find("caption").itertext()).startswith(caption))
    rows = [[" ".join(cell.itertext()) for cell in row] for row in found.find("tbody")]
    return {head: rest for head, *rest in rows}


def test_the_page_says_what_the_runs_are(made, page):
    facts = cells(parts(page)["runs"], "Settings of the runs.")
    assert facts["strategy"] == ["KCenterSampling", "RandomSampling"]
    assert facts["rows"] == ["90; 80 candidates, 10 held out"]  # the same of both
    assert facts["finished"] == ["3 of 3 rounds, counted from 0"]
    assert facts["seed"] == ["0"]


def test_the_page_says_how_good_the_models_are(made, page):
    found = {
        name: [json.loads((made / name / f"state/rd_{r}/metrics.json").read_text())["train"] for r in range(3)]
        for name in ("kc", "rnd")
    }
    told = {
        name: [
            "{:#.4g} ({:#.4g} to {:#.4g})".format(one["validation_loss"], *one["validation_interval"]) for one in rounds
        ]
        for name, rounds in found.items()
    }
    quality = parts(page)["quality"]
    assert cells(quality, "Validation loss, round by round.") == {
        str(r): [str(6 + 5 * r), told["kc"][r], told["rnd"][r]] for r in range(3)
    }
    lines = quality.find(".//table/tbody")
    for line, (name, rounds) in zip(lines, found.items(), strict=True):
        best = min(range(3), key=lambda r: rounds[r]["validation_loss"])
        assert [" ".join(cell.itertext()) for cell in line] == [
            "Validation loss",
            name,
            str(best),
            told[name][best],
            "2",
            told[name][2],
        ]


def test_the_page_says_how_diverse_the_pools_are(made, page):
    diversity = parts(page)["diversity"]
    for name in ("kc", "rnd"):
        (kept,) = (made / name / "diversity").glob("measures-*.json")  # of kc, and of rnd in kc's space
        measured = json.loads(kept.read_text())
        table = cells(diversity, f"{name}: each pool")
        assert len(table) == len(measured["measures"])
        for key, entry in measured["measures"].items():
            for r, cell in enumerate(table[entry["title"]]):
                one = measured["rounds"][r]
                random, value = one["random"][key], one["values"][key]
                told = [float(number.replace(",", "")) for number in re.findall(r"-?[\d.,]+(?:e[+-]\d+)?", cell)]
                wanted = [value, random["mean"], random["low"], random["high"]]
                assert told == pytest.approx(wanted, rel=1e-3)
                above, below = value > random["high"], value < random["low"]
                more, less = (above, below) if entry["higher_is_more_diverse"] else (below, above)
                assert ("▲" in cell, "▼" in cell) == (more, less)


def test_seeds_are_one_line_and_data_sets_are_apart(made, larger_page):
    text = "".join(Page(larger_page.read_text(encoding="utf-8")).texts)
    losses = [
        json.loads((made / name / "state/rd_2/metrics.json").read_text())["train"]["validation_loss"]
        for name in ("kc", "kc-1")
    ]
    mean, half = sum(losses) / 2, 12.706204736 * abs(losses[0] - losses[1]) / 2  # t of one degree of freedom
    assert f"{mean:#.4g}({mean - half:#.4g} to {mean + half:#.4g})" in text  # a cell: the figure, then its interval
    assert "KCenterSampling, 2 seeds" in text
    assert "Data set: rows.jsonl" in text
    assert "Data set: other.jsonl" in text
    assert "Figures of different data sets do not compare" in text
    assert ODD in text
    assert "run 4: " in larger_page.read_text(encoding="utf-8")  # what stands for it in charts, as they are described
    assert f"Relative Score: vicuna against {NASTY}, round by round." in text  # of a run that is one of two seeds
    assert "75.00" in text  # 100 x 15 / 20, without an interval: one question
    assert not re.search(r"\b(nan|inf|None)\b", text)


@pytest.mark.parametrize("which", ["page", "larger_page"])
def test_the_page_is_well_formed_and_fetches_nothing(which, request):
    page = request.getfixturevalue(which)
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.open == []
    assert parsed.fetched == []
    assert parsed.images >= 5
    assert "@import" not in text
    assert "url(http" not in text
    assert "<script" not in text
    assert NASTY[:30] in "".join(parsed.texts)  # shown, not run
    assert len(text) < 3_000_000
    pngs = list((page.parent / f"{page.stem}_files").glob("*.png"))
    assert len(pngs) >= 5
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pngs)


def test_the_same_runs_make_the_same_numbers_again(made, page):
    before = [word for word in "".join(Page(page.read_text(encoding="utf-8")).texts).split() if "." in word]
    again = made / "again.html"
    assert main(["report", str(made / "kc"), str(made / "rnd"), "--output", str(again), "--quiet"]) == 0
    assert [word for word in "".join(Page(again.read_text(encoding="utf-8")).texts).split() if "." in word] == before


def test_a_report_of_what_is_measured_loads_no_model(made, page, monkeypatch):
    monkeypatch.setattr("diverseevol_fast.evaluate.evaluation_encoder.load_for_embedding", None)
    assert main(["report", str(made / "kc"), "--output", str(made / "quick.html"), "--quiet"]) == 0


def test_runs_on_one_data_set_are_embedded_with_the_first_ones_settings(made, tmp_path):
    config = write_config(tmp_path, read_run(made / "kc").state.manifest(0)["config"])
    more = {"output_dir": tmp_path / "cut", "model_max_length": 200, "n_round": 0, "dtype": "bfloat16"}
    options = [word for key, value in more.items() for word in (f"--{key}", str(value))]
    assert main(["run", str(config), *options, "--quiet"]) == 0
    runs = [read_run(shutil.copytree(made / "kc", tmp_path / "kc")), read_run(tmp_path / "cut")]
    records_of(runs, ["kc", "cut"], [{}, {}], [None, None])
    (ours,), (theirs,) = ((tmp_path / name / "diversity").glob("embeddings*.npy") for name in ("kc", "cut"))
    assert ours.name == theirs.name
    np.testing.assert_array_equal(np.load(ours), np.load(theirs))


def test_the_measures_are_those_of_the_rows_own_words_less_their_mean(made, page, tiny_model):
    """One space for all runs: texts without the training template, by the first run's base model, centered."""
    run = read_run(made / "rnd")
    tokenizer, model = load_tokenizer(tiny_model), load_encoder(tiny_model)
    rows = [run.data.rows[row] for row in run.candidates]
    texts = [" " + "\n".join(filter(None, (row[key] for key in ("instruction", "input", "output")))) for row in rows]
    x = embed(texts, model, tokenizer, max_length=256).values
    (kept,) = (made / "rnd" / "diversity").glob("embeddings-*.npy")
    np.testing.assert_allclose(np.load(kept), x.numpy(), atol=1e-5)
    centered = x.double().numpy() - x.double().numpy().mean(axis=0)
    pool = centered[np.searchsorted(run.candidates, run.pool(2))]
    units = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    spectrum = np.linalg.eigvalsh(units @ units.T / len(units)).clip(1e-300)
    (measures,) = (made / "rnd" / "diversity").glob("measures-*.json")
    values = json.loads(measures.read_text())["rounds"][2]["values"]
    assert values["vendi"] == pytest.approx(np.exp(-(spectrum * np.log(spectrum)).sum()), rel=1e-4)
    farthest = max(np.linalg.norm(row - pool, axis=1).min() for row in centered)
    assert values["covering_radius"] == pytest.approx(farthest, rel=1e-4)


def test_the_verdict_is_on_top_and_on_the_terminal(made, tmp_path, capsys):
    output = tmp_path / "r.html"
    assert main(["report", str(made / "kc"), str(made / "rnd"), "--output", str(output), "--quiet"]) == 0
    where, *told = capsys.readouterr().out.splitlines()
    assert (
        where
        == f"{output}: kc (3 rounds), rnd (3 rounds); {len(list(tmp_path.glob('r_files/*.png')))} charts in "
        + str(tmp_path / "r_files")
    )
    assert told[0] == "Compared at 16 rows in the pool, the last round of each: K-Center (kc), random (rnd)."
    assert told[1].startswith("Covering radius, ")
    assert sum(one.startswith("Validation loss: ") for one in told) == 1
    text = output.read_text(encoding="utf-8")
    main_part = ElementTree.fromstring(text[text.index("<main>") : text.index("</main>") + len("</main>")])
    heading, verdict, *_ = main_part
    assert (heading.tag, verdict.get("class")) == ("h1", "verdict")
    assert [item.text for item in verdict.iter("li")] == told


def test_the_function_returns_what_the_command_prints(made, tmp_path, capsys):
    output = tmp_path / "r.html"
    assert main(["report", str(made / "kc"), "--output", str(output), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = report(str(made / "kc"), output=str(output))
    assert found.to_dict() == printed
    assert (found.output, found.charts_folder) == (output, tmp_path / "r_files")
    assert found.runs == [("kc", 3)]
    assert repr(found) == f"Report({str(output)!r}, runs: kc; {found.charts} charts)"
    with pytest.raises(InputError, match=r"^runs: expected the folder of at least one run$"):
        report([])
    with pytest.raises(InputError, match=r"^output: expected a name that ends in .html, got "):
        report(made / "kc", output=tmp_path / "x.pdf")


def test_tables_scroll_in_their_own_box(larger_page):
    text = larger_page.read_text(encoding="utf-8")
    main_part = ElementTree.fromstring(text[text.index("<main>") : text.index("</main>") + len("</main>")])
    around = {child: parent for parent in main_part.iter() for child in parent}
    tables = list(main_part.iter("table"))
    assert len(tables) > 10
    assert {(around[one].tag, around[one].get("class"), around[one].get("tabindex")) for one in tables} == {
        ("div", "wide", "0")
    }
    assert re.search(r"\.wide \{ overflow-x: auto; max-width: 100%;", text)


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_that_may_only_be_read(made, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(made / "kc", tmp_path / "kc")
    shutil.rmtree(folder / "diversity", ignore_errors=True)
    (folder / "report.html").unlink(missing_ok=True)
    before = files_of(folder)
    allowed = os.access
    monkeypatch.setattr(  # root may write everywhere but on a file system that is mounted read-only
        os, "access", lambda path, mode: folder not in (Path(path), *Path(path).parents) and allowed(path, mode)
    )
    assert main(["report", str(folder), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert f"output: {folder} is not writable; name a file in another folder" in told
    assert main(["report", str(folder), "--output", str(folder / "new" / "r.html"), "--quiet"]) == 2
    assert f"output: {folder / 'new'} is not writable; name a file in another folder" in capsys.readouterr().err
    output = tmp_path / "elsewhere" / "r.html"
    assert main(["report", str(folder), "--output", str(output), "--quiet"]) == 0
    assert files_of(folder) == before
    assert len(cells(parts(output)["diversity"], "kc: each pool")["Covering radius"]) == 3
    kept = {path.name.partition("-")[0] for path in (tmp_path / "elsewhere/r_files/diversity/kc").iterdir()}
    assert kept == {"embeddings", "measures"}


def test_answers_stand_below_their_questions(made, tmp_path):
    questions = [{"question_id": number, "text": f"{NASTY} question {number}"} for number in range(12)]
    files = []
    for name in ("kc", "rnd"):
        path = tmp_path / "vicuna_test" / name / "rd_2.jsonl"
        path.parent.mkdir(parents=True)
        write_rows(path, [row | {"answer": f"{name} {NASTY}\n" + "long " * 400} for row in questions])
        files.append(str(path))
    output = tmp_path / "page.html"
    runs = [str(made / "kc"), str(made / "rnd")]
    assert main(["report", *runs, "--answers", *files, "--output", str(output), "--quiet"]) == 0
    shown = "".join(parts(output)["answers"].itertext())
    assert "vicuna_test: the first 10 questions" in shown
    assert f"{NASTY} question 9" in shown
    assert "question 10" not in shown
    assert shown.count(f"kc {NASTY}\nlong") == shown.count(f"rnd {NASTY}\nlong") == 10
    assert shown.count("…") == 20


def test_answers_that_fit_no_run_are_refused(made, tmp_path, capsys):
    path = tmp_path / "vicuna_test" / "kc" / "rd_9.jsonl"
    path.parent.mkdir(parents=True)
    write_rows(path, [{"question_id": 1, "text": "?", "answer": "!"}])
    output = tmp_path / "page.html"
    assert main(["report", str(made / "kc"), "--answers", str(path), "--output", str(output), "--quiet"]) == 2
    assert "kc has no round 9" in capsys.readouterr().err
    assert not output.exists()


def test_judgements_join_their_rounds(made, tmp_path, shared_data):
    judged = made / "judged" / "kc"
    judged.mkdir(parents=True, exist_ok=True)
    source = shared_data / "judgements" / "vicuna_kc_dolly_initRAND100_rd_6_vs_chat.jsonl"
    shutil.copy(source, judged / "rd_1_vs_chat.jsonl")
    output = tmp_path / "r.html"
    arguments = [
        "report",
        str(made / "kc"),
        "--judgements",
        str(judged / "rd_1_vs_chat.jsonl"),
        "--output",
        str(output),
    ]
    assert main([*arguments, "--quiet"]) == 0
    scores = cells(parts(output)["quality"], "Relative Score: judged against")
    assert [found for _, found in scores.values()] == ["-", "79.69 (74.81 to 84.37)", "-"]


def test_a_run_whose_figures_are_gone_still_has_its_picks_and_diversity(made, tmp_path):
    folder = shutil.copytree(made / "rnd", tmp_path / "rnd")
    for path in folder.glob("state/rd_*/metrics.json"):
        path.unlink()
    assert main(["report", str(folder), "--quiet"]) == 0
    text = "".join(Page((folder / "report.html").read_text(encoding="utf-8")).texts)
    assert "Nothing says how good the models are" in text
    assert "no records of their time" in text
    assert len(cells(parts(folder / "report.html")["diversity"], "rnd: each pool")["Partition entropy"]) == 3
    assert len(parts(folder / "report.html")["picked"].findall(".//details//table")) == 3


def test_mistakes(made, tmp_path, capsys, monkeypatch):
    kc, twin = str(made / "kc"), shutil.copytree(made / "kc", tmp_path / "twin" / "kc")
    scores = made / "vicuna" / "kc" / "rd_1.jsonl"
    scores.parent.mkdir(parents=True, exist_ok=True)
    scores.write_text("{}")
    late = scores.with_name("rd_10_vs_chat.jsonl")
    shutil.copy(scores, late)
    folder = tmp_path / "twin" / "a.html"
    folder.mkdir()
    for arguments, words in (
        ([str(tmp_path)], "expected the folder of a run"),
        ([kc, "--output", str(tmp_path / "x.pdf")], "output: expected a name that ends in .html"),
        ([kc, "--output", str(folder)], "a.html is a folder"),
        ([kc, kc], f"{kc}: is given twice"),
        ([kc, "--judgements", str(tmp_path / "other" / "rd_1.jsonl")], "rd_1.jsonl: expected <test>/<run>/rd_<round>"),
        ([kc, "--judgements", str(late)], "kc has no round 10; its rounds are 0 to 2"),
        ([kc, "--judgements", str(scores)], "rd_1.jsonl, line 1: expected the key"),
        ([kc, str(twin), "--judgements", str(scores)], "both have that name"),
    ):
        assert main(["report", *arguments, "--quiet"]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    assert main(["report", kc, "--output", str(tmp_path / "x.html")]) == 2
    assert "pip install 'matplotlib>=3.9'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_a_second_judgement_of_the_same_is_refused(made, tmp_path, shared_data, capsys):
    files = [tmp_path / "v" / "kc" / name for name in ("rd_1_vs_chat.jsonl", "rd_1_again.jsonl")]
    files[0].parent.mkdir(parents=True)
    for path in files:
        shutil.copy(shared_data / "judgements" / "vicuna_baseline_dolly_rd_0_vs_chat.jsonl", path)
    assert main(["report", str(made / "kc"), "--judgements", *map(str, files), "--quiet"]) == 2
    assert f"{files[1]}: round 1 of kc has scores of v against gpt/gpt35_0624 from" in capsys.readouterr().err
