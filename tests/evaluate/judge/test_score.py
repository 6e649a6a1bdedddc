"""Scores of judgement files: the paper's figures, known small cases, and files that are not what they should be."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.judge.score import score, scores_of

PAPER = {
    "vicuna_kc_dolly_initRAND100_rd_6_vs_chat.jsonl": 79.6919,
    "vicuna_baseline_dolly_rd_0_vs_chat.jsonl": 73.8403,
}


def line(question_id, eval0, eval1, **more):
    return {
        "question_id": question_id,
        "question_text": f"question {question_id}?",
        "assistant1_QUERY0": "m/rd_1",
        "assistant2_QUERY0": "gpt",
        "eval_QUERY0": eval0,
        "response_QUERY0": "a",
        "assistant1_QUERY1": "gpt",
        "assistant2_QUERY1": "m/rd_1",
        "eval_QUERY1": eval1,
        "response_QUERY1": "b",
        **more,
    }


def without(row, *keys):
    return {key: value for key, value in row.items() if key not in keys}


def write(tmp_path, rows, name="j.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(tmp_path, rows):
    with pytest.raises(InputError) as error:
        scores_of(write(tmp_path, rows))
    return str(error.value)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_headline(name, shared_data):
    scores = scores_of(shared_data / "judgements" / name)
    assert round(scores.relative_score, 4) == PAPER[name]
    assert scores.low < scores.relative_score < scores.high
    assert 2 < scores.high - scores.low < 14
    assert scores.questions == 80
    assert (scores.unparsed, scores.answer_length, scores.judge) == ({"count": 0, "question_ids": []}, None, None)


def test_the_command_prints_both_without_torch(shared_data):
    files = [str(shared_data / "judgements" / name) for name in PAPER]
    code = (
        "import sys; from diverseevol_fast.cli.main import main; status = main(['score', *sys.argv[1:]]);"
        "assert not {'torch', 'transformers', 'openai'} & set(sys.modules); sys.exit(status)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert lines[0].split() == [
        "judgements",
        "questions",
        "Relative",
        "Score",
        "95%",
        "interval",
        "win",
        "tie",
        "lose",
        "position",
        "unparsed",
        "out",
        "of",
        "range",
    ]
    assert lines[1].split()[:3] == [files[0], "80", "79.69"]
    assert lines[2].split()[:3] == [files[1], "80", "73.84"]
    assert "Relative Score = 100 x (sum of the model's scores) / (sum of the reference's scores)" in ended.stdout


def test_every_figure_of_a_small_file(tmp_path):
    rows = [
        line(1, [8, 9], [7.5, 9]),  # lose
        line("b", [9, 8], [8, 9]),  # tie
        line(3, [10, 5], [9, 5]),  # win
        line(4, [0, 11], [3, 12]),  # lose; 0, 11 and 12 are out of range
        line(5, None, [9, 1]),  # unparsed: both its orders are left out
        line(6, [9, 1], [-1, -1]),  # the public scripts' way
    ]
    scores = scores_of(write(tmp_path, rows))
    model, reference = 8 + 7.5 + 9 + 8 + 10 + 9 + 0 + 3, 9 + 9 + 8 + 9 + 5 + 5 + 11 + 12
    assert scores.relative_score == 100 * model / reference
    assert (scores.questions, scores.win, scores.tie, scores.lose) == (4, 0.25, 0.25, 0.5)
    first = (8 - 9 + 9 - 8 + 10 - 5 + 0 - 11) / 4
    second = (9 - 7.5 + 9 - 8 + 5 - 9 + 12 - 3) / 4
    assert scores.position_effect == {"model_first": first, "reference_first": second, "both": (first + second) / 2}
    assert scores.unparsed == {"count": 2, "question_ids": [5, 6]}
    assert scores.out_of_range == {"count": 3, "question_ids": [4]}


def test_equal_sums_tie_however_they_round(tmp_path):
    assert 6.0 + 6.1 != 5.7 + 6.4
    scores = scores_of(write(tmp_path, [line(1, [6.0, 6.4], [6.1, 5.7]), line(2, [6.0, 6.1], [6.1, 6.1])]))
    assert (scores.win, scores.tie, scores.lose) == (0.0, 0.5, 0.5)


def test_replies_without_temperature_0_are_counted(tmp_path, capsys):
    calls = [{"temperature": 0}, {"temperature": None}, {"temperature": 0.7}, {"endpoint": "x"}]
    rows = [line(i, [8, 9], [8, 9], call_QUERY0=call, call_QUERY1={"temperature": 0}) for i, call in enumerate(calls)]
    path = write(tmp_path, [*rows, line(9, [8, 9], [8, 9])])
    assert scores_of(path).unfixed == {"count": 2, "question_ids": [1, 2]}
    assert main(["score", str(path)]) == 0
    message = "without temperature 0: 2 replies, which may differ from one time to the next: questions 1, 2"
    assert message in capsys.readouterr().out


def test_the_interval_is_the_bootstrap_over_questions(tmp_path):
    draw = random.Random(5)
    rows = [line(i, [draw.randint(1, 10), draw.randint(1, 10)], [draw.randint(1, 10), 7]) for i in range(40)]
    path = write(tmp_path, rows)
    sums = np.array([np.add(row["eval_QUERY0"], row["eval_QUERY1"]) for row in rows], dtype=float)
    ratios = []
    for _ in range(4000):
        picked = sums[[draw.randrange(40) for _ in range(40)]].sum(axis=0)
        ratios.append(100 * picked[0] / picked[1])
    scores = scores_of(path, resamples=4000)
    spread = scores.high - scores.low
    assert abs(scores.low - np.percentile(ratios, 2.5)) < 0.06 * spread
    assert abs(scores.high - np.percentile(ratios, 97.5)) < 0.06 * spread
    assert scores_of(path, resamples=4000) == scores
    assert scores_of(path, resamples=4000, seed=1) != scores


def test_no_interval_where_there_is_none(tmp_path):
    one = scores_of(write(tmp_path, [line(1, [8, 10], [8, 10])]))
    assert (one.relative_score, one.low, one.high) == (80.0, None, None)
    zeros = scores_of(write(tmp_path, [line(1, [8, 10], [8, 10]), line(2, [5, 0], [5, 0])]))
    assert (zeros.relative_score, zeros.low, zeros.high) == (130.0, None, None)


def test_json_holds_everything(tmp_path, capsys):
    path = write(tmp_path, [line(1, [8, 10], [8, 10]), line(2, [6, 9], None)])
    assert main(["score", str(path), str(path), "--json", "--seed", "3", "--resamples", "50"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed) == 2
    assert printed[0] == printed[1]
    assert printed[0]["formula"].startswith("100 x (sum of the model's scores)")
    assert (printed[0]["relative_score"], printed[0]["questions"], printed[0]["seed"]) == (80.0, 1, 3)
    assert printed[0]["unparsed"] == {"count": 1, "question_ids": [2]}
    assert (printed[0]["low"], printed[0]["resamples"], printed[0]["model"]) == (None, 50, "m/rd_1")


def test_answer_lengths_come_from_the_files(tmp_path, capsys):
    path = write(tmp_path, [line(1, [8, 10], [8, 10]), line(2, [6, 9], [7, 9])])
    answers = [{"question_id": i, "text": f"question {i}?", "answer": "two words" * i} for i in (2, 1)]
    reference = [{"question_id": str(i), "text": f"question {i}? ", "answer": "ä b c"} for i in (1, 2)]
    a, b = write(tmp_path, answers, "a.jsonl"), write(tmp_path, reference, "b.jsonl")
    assert scores_of(path, answers=a, reference=b).answer_length == {
        "model": {"characters": 13.5, "words": 2.5},
        "reference": {"characters": 5.0, "words": 3.0},
    }
    assert scores_of(path, answers=a).answer_length == {"model": {"characters": 13.5, "words": 2.5}}
    files = [str(path), str(path), "--answers", str(a), str(a), "--reference", str(b)]
    assert main(["score", *files]) == 0
    message = "mean answer length: model 14 characters, 2.5 words; reference 5 characters, 3.0 words"
    assert capsys.readouterr().out.count(message) == 2
    assert main(["score", *files[:4]]) == 2
    assert "answers: expected one file for each of the 2 judgement files, got 1" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"b\.jsonl: 1 of the 2 questions of .*j\.jsonl are missing, their ids: 1$"):
        scores_of(path, reference=write(tmp_path, reference[1:], "b.jsonl"))
    with pytest.raises(InputError, match=r"a\.jsonl, question 1: expected 'question 1\?' as in .*, got 'other'"):
        scores_of(path, answers=write(tmp_path, [answers[0], answers[1] | {"text": "other"}], "a.jsonl"))


def test_a_file_cut_in_the_middle(tmp_path, capsys):
    path = write(tmp_path, [line(i, [8, 9], [7, 9]) for i in range(5)])
    content = path.read_bytes()
    cut = content.index(b"\n", content.index(b"\n") + 1) + 40
    path.write_bytes(content[:cut])
    assert main(["score", str(path)]) == 2
    assert "j.jsonl, line 3: cut off, so the file is not whole" in capsys.readouterr().err
    assert path.read_bytes() == content[:cut]
    path.write_bytes(content[:-1])  # the last line is whole, only its end is missing
    assert scores_of(path).questions == 5


@pytest.mark.parametrize("order", [0, 1])
def test_both_orders_are_needed(order, tmp_path):
    rows = [line(1, [8, 9], [7, 9]), without(line(2, [8, 9], [7, 9]), f"eval_QUERY{order}")]
    assert f"line 2 (question 2): order {order} is missing" in refused(tmp_path, rows)


def test_orders_that_are_not_swapped(tmp_path):
    row = line(1, [8, 9], [7, 9], assistant1_QUERY1="m/rd_1", assistant2_QUERY1="gpt")
    assert "line 1 (question 1): expected the assistants of QUERY0, m/rd_1 and gpt, swapped" in refused(tmp_path, [row])


@pytest.mark.parametrize(
    "pair", [[8], [8, 9, 10], "8 9", [8, "9"], [True, 9], {}, 8, [None, 9], [10**400, 9], [1e308, 9], [8, 1e-300], []]
)
def test_scores_that_are_not_two_numbers(pair, tmp_path):
    text = json.dumps(line(1, [8, 9], [0.123, 9])).replace("[0.123, 9]", json.dumps(pair))
    path = tmp_path / "j.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=r"line 1 \(question 1\): eval_QUERY1: expected two numbers"):
        scores_of(path)


def test_lines_that_do_not_belong(tmp_path):
    good = line(1, [8, 9], [7, 9])
    assert "question '1' comes twice" in refused(tmp_path, [good, line("1", [8, 9], [7, 9])])
    other = line(2, [8, 9], [7, 9], assistant1_QUERY0="n", assistant2_QUERY1="n")
    assert "question 2: n against gpt, but the first line m/rd_1 against gpt" in refused(tmp_path, [good, other])
    assert "line 2: expected an object, got list" in refused(tmp_path, [good, [1]])
    assert "line 1: 'question_id': expected a text, got float" in refused(tmp_path, [good | {"question_id": 1.5}])
    assert "line 1: 'question_id': expected a text, got bool" in refused(tmp_path, [good | {"question_id": True}])
    assert "expected the key 'question_id'" in refused(tmp_path, [without(good, "question_id")])
    assert "'response_QUERY0': expected a text, got NoneType" in refused(tmp_path, [good | {"response_QUERY0": None}])
    assert "provenance: expected an object with model" in refused(tmp_path, [good | {"provenance": {"model": "x"}}])
    assert "answer_length: expected characters" in refused(tmp_path, [good | {"answer_length": {"model": 3}}])


def test_nothing_to_score(tmp_path):
    assert "the file is empty" in refused(tmp_path, [])
    assert "the reference's scores sum to 0" in refused(tmp_path, [line(1, [8, 0], [7, 0]), line(2, [1, 0], [1, 0])])
    assert "no question has scores in both orders" in refused(tmp_path, [line(1, None, [7, 9]), line(2, [1, 2], None)])
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        scores_of(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="got a folder"):
        scores_of(tmp_path)
    (tmp_path / "j.jsonl").write_text(json.dumps(line(1, [8, 9], [7, 9])).replace("7", "NaN") + "\n")
    with pytest.raises(InputError, match="line 1: not JSON: NaN is no"):
        scores_of(tmp_path / "j.jsonl")
    (tmp_path / "j.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(InputError, match="not readable as UTF-8"):
        scores_of(tmp_path / "j.jsonl")


def test_the_function_takes_one_file_or_several(tmp_path):
    path = write(tmp_path, [line(1, [8, 10], [8, 10]), line(2, [6, 9], [7, 9])])
    answers = write(tmp_path, [{"id": i, "question": f"question {i}?", "answer": "a b"} for i in (1, 2)], "a.jsonl")
    assert score(str(path), resamples=50, seed=3) == [scores_of(path, 50, 3)]
    both = score([path, str(path)], answers=[answers, answers], reference=str(answers))
    assert both == [scores_of(path, answers=answers, reference=answers)] * 2
    assert repr(both[0]) == f"Scores({path}: {both[0].relative_score:.2f} (72.22 to 80.00), 2 questions)"
    assert json.loads(json.dumps(both[0].to_dict())) == both[0].to_dict()
    with pytest.raises(InputError, match=r"^resamples: expected 1 or more, got 0$"):
        score(path, resamples=0)
    with pytest.raises(InputError, match=r"^reference: expected one file for each of the 1 judgement files, got 2$"):
        score(path, reference=[answers, answers])


@pytest.mark.parametrize("option", [["--resamples", "0"], ["--seed", "-1"]])
def test_options_out_of_range(option, tmp_path, capsys):
    path = write(tmp_path, [line(1, [8, 9], [7, 9])])
    assert main(["score", str(path), *option]) == 2
    assert f"{option[0][2:]}: expected" in capsys.readouterr().err
