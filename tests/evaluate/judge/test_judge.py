"""`diverseevol judge` against a real HTTP server on the loopback: what it asks, writes and says."""

import logging
from dataclasses import replace

import pytest
from support.chat_server import Answer, ChatServer, says
from support.judge_fixtures import KEY, Files, assert_nowhere, eight_nine, rows_of, write

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.judge.answer_pairs import pair_answers
from diverseevol_fast.evaluate.judge.judge import Estimate, judge
from diverseevol_fast.evaluate.judge.prompt import prompt
from diverseevol_fast.evaluate.judge.score import scores_of

pytestmark = pytest.mark.usefixtures("judge_environment")


def test_both_orders_in_the_public_layout(files, capsys):
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert server.counts == files.everything()
    for call in server.calls:
        assert (call.body["model"], call.body["temperature"], call.body["max_tokens"]) == ("judge", 0, 1024)
        assert call.headers["authorization"] == f"Bearer {KEY}"
        assert f"question {call.question}: why?" in call.prompt
    rows = rows_of(files.output)
    assert [row["question_id"] for row in rows] == [1, 2, 3]
    assert list(rows[0])[:10] == [
        "question_id",
        "question_text",
        "assistant1_QUERY0",
        "assistant2_QUERY0",
        "eval_QUERY0",
        "response_QUERY0",
        "call_QUERY0",
        "assistant1_QUERY1",
        "assistant2_QUERY1",
        "eval_QUERY1",
    ]
    for row in rows:
        assert row["question_text"] == f"question {row['question_id']}: why?"
        assert [row["assistant1_QUERY0"], row["assistant2_QUERY0"]] == ["run/rd_2", "gpt/chat"]
        assert [row["assistant1_QUERY1"], row["assistant2_QUERY1"]] == ["gpt/chat", "run/rd_2"]
        assert (row["eval_QUERY0"], row["eval_QUERY1"]) == ([8, 9], [8, 9])
        assert (row["response_QUERY0"], row["response_QUERY1"]) == ("8 9\nbecause", "9 8\nbecause")
        assert row["call_QUERY1"] == {
            "endpoint": server.url,
            "served_by": "judge-0613",
            "finish_reason": "stop",
            "tokens": [100, 20],
            "temperature": 0,
        }
        assert row["provenance"]["model"] == "judge"
    assert rows[1]["answer_length"] == {
        "model": {"characters": 17, "words": 4},
        "reference": {"characters": 21, "words": 4},
    }
    assert sorted(path.name for path in files.answers.parent.iterdir()) == ["rd_2.jsonl", "rd_2_vs_chat.jsonl"]
    printed = capsys.readouterr()
    assert "6 judgements (3 questions, both orders)" in printed.out
    assert "600 of prompts, 120 of replies" in printed.out
    assert f"{files.output}: run/rd_2 against gpt/chat, judged by judge" in printed.out
    assert scores_of(files.output).relative_score == pytest.approx(100 * 8 / 9)
    assert_nowhere(KEY, files.folder, printed)


def test_requests_are_under_way_together(tmp_path):
    files = Files(tmp_path, 8)

    def behave(call):
        if (call.question, call.order) != ("1", 0):  # the first is asked alone
            server.wait_until_together(4)
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server, "--concurrency", "4") == 0
    assert server.most_at_once == 4
    assert server.counts == files.everything()
    assert [row["question_id"] for row in rows_of(files.output)] == list(files.ids)


def test_replies_without_scores_are_kept_and_counted(files, capsys):
    def behave(call):
        if call.question == "2" and call.order == 1:
            return says("I cannot say\ud800.", tokens=None)
        if call.question == "3":
            return Answer(200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]})
        return eight_nine(call)

    with ChatServer(behave) as server:
        assert files.judge(server) == 0
        printed = capsys.readouterr().out
        assert "3 replies hold no scores, 2 of them cut off (a larger --max-tokens helps)" in printed
        assert "question 2 order 1, question 3 order 0, question 3 order 1" in printed
        rows = rows_of(files.output)
        assert (rows[1]["eval_QUERY0"], rows[1]["eval_QUERY1"]) == ([8, 9], None)
        assert (rows[1]["response_QUERY1"], rows[1]["call_QUERY1"]["tokens"]) == ("I cannot say?.", None)
        assert (rows[2]["response_QUERY0"], rows[2]["call_QUERY0"]["served_by"]) == ("", None)
        scores = scores_of(files.output)
        assert (scores.questions, scores.unparsed) == (1, {"count": 3, "question_ids": [2, 3]})

        assert files.judge(server) == 0  # nothing is asked again by itself
        assert server.counts == files.everything()
        server.behave = eight_nine
        write(files.output, [rows[0], rows[2]])
        assert main(["score", str(files.output)]) == 2
        assert "2 of 3 questions; judge into it again" in capsys.readouterr().err
        assert files.judge(server) == 0
    assert server.counts == files.everything() | {("2", 0): 2, ("2", 1): 2}
    assert rows_of(files.output)[1]["eval_QUERY1"] == [8, 9]
    assert rows_of(files.output)[2] == rows[2]


def test_replies_that_all_lack_scores_are_still_written(files, capsys):
    with ChatServer(lambda call: says("no")) as server:
        assert files.judge(server) == 0
    message = capsys.readouterr().out
    assert f"{files.output}: 6 judgements (3 questions, both orders)" in message
    assert "6 replies hold no scores" in message
    assert f"\n\n{files.output}: no question has scores in both orders, so there is nothing to sum" in message
    assert [row["response_QUERY1"] for row in rows_of(files.output)] == ["no"] * 3


def test_dry_run_asks_and_writes_nothing(files, capsys, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with ChatServer(eight_nine) as server:
        assert files.judge(server, "--dry-run", "--max-tokens", "50") == 0
    assert not server.calls
    length = sum(
        len(prompt(answer.question, *texts))
        for answer, other in pair_answers(files.answers, files.reference)
        for texts in ((answer.text, other.text), (other.text, answer.text))
    )
    assert capsys.readouterr().out.startswith(
        f"6 calls left of 6 (3 questions, both orders); about {length / 4:,.0f} tokens of prompts (characters / 4, an "
        "estimate for English) and at most 300 of replies"
    )
    assert sorted(path.name for path in files.folder.rglob("*.*")) == ["chat.jsonl", "rd_2.jsonl"]


def test_the_function(files):
    def behave(call):
        return says("no", finish_reason="length") if (call.question, call.order) == ("2", 1) else eight_nine(call)

    with ChatServer(behave) as server:
        kwargs = {"base_url": server.url, "model": "judge", "api_key_env": "JUDGE_KEY"}
        estimate = judge(str(files.answers), str(files.reference), **kwargs, max_tokens=50, dry_run=True)
        assert estimate == Estimate(3, 6, estimate.prompt_tokens, 300)
        assert estimate.to_dict()["calls_left"] == 6
        result = judge(files.answers, files.reference, **kwargs)
        again = judge(files.answers, files.reference, **kwargs)
    assert server.counts == files.everything()
    assert (result.output, result.questions, result.tokens) == (files.output, 3, (600, 120))
    assert (result.unparsed, result.cut_off, result.scores) == ((("2", 1),), 1, scores_of(files.output))
    assert (result.complete_before, again) == (False, replace(result, complete_before=True))
    assert repr(result) == f"Judgements({files.output}: 3 questions, {result.scores})"
    assert result.to_dict()["unparsed"] == [{"question": "2", "order": 1}]
    with pytest.raises(InputError, match=r"^concurrency: expected 1 or more, got 0$"):
        judge(files.answers, files.reference, **kwargs, concurrency=0)


def test_real_answers(shared_data, tmp_path):
    """The release's answers of the headline model: each prompt shows both whole, in the order it says."""
    answers = shared_data / "judgements" / "vicuna_kc_dolly_initRAND100_rd_6_answers.jsonl"
    reference = shared_data / "benchmarks" / "vicuna_chatgpt_answers.jsonl"
    pairs = pair_answers(answers, reference)
    assert [pair[0].question_id for pair in pairs] == list(range(1, 81))
    for answer, other in pairs:
        text = prompt(answer.question, answer.text, other.text)
        assert text.index(answer.question) < text.index(answer.text) < text.rindex(other.text)
    arguments = [
        "judge",
        "--answers",
        str(answers),
        "--reference",
        str(reference),
        "--base-url",
        "http://127.0.0.1:9/v1",
    ]
    arguments += ["--model", "j", "--api-key-env", "JUDGE_KEY", "--output", str(tmp_path / "o.jsonl"), "--dry-run"]
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("name", "id_key", "ids", "third", "ends"),
    [
        ("koala", "id", [f"koala_{i}" for i in range(180)], "List the layers of the TCP/IP model", "(FTP)"),
        ("wizardlm", "idx", list(range(1, 219)), "If 1 + 4 = 5, 2 + 5 = 12 and 3 + 6 = 21,", "So, 8 + 11 = 88."),
    ],
)
def test_answers_to_the_benchmarks(name, id_key, ids, third, ends, shared_data, tmp_path):
    """Each is paired with the reference of its id, wherever that stands."""
    path = shared_data / "benchmarks" / f"{name}_chatgpt_answers.jsonl"
    write(tmp_path / "r.jsonl", [row | {"answer": f"of {row[id_key]}"} for row in rows_of(path)[::-1]])
    pairs = pair_answers(path, tmp_path / "r.jsonl")
    assert [answer.question_id for answer, _ in pairs] == ids
    assert [reference.text for _, reference in pairs] == [f"of {i}" for i in ids]
    assert pairs[2][0].question.startswith(third)
    assert pairs[2][0].text.endswith(ends)


def test_answers_that_do_not_fit(files, capsys):
    def refused(path, rows, words):
        before = rows_of(path)
        write(path, rows(before))
        with ChatServer(eight_nine) as server:
            assert files.judge(server) == 2
        assert words in capsys.readouterr().err
        assert not server.calls
        write(path, before)

    refused(files.answers, lambda rows: rows[1:], f"{files.answers}: 1 of the 3 questions of {files.reference}")
    refused(files.reference, lambda rows: rows[:-1], f"{files.reference}: 1 of the 3 questions of {files.answers}")
    refused(files.answers, lambda rows: [*rows, rows[0]], "its id 1 is that of line 1")
    refused(files.answers, lambda rows: [rows[0] | {"question_id": "1"}, *rows], "its id 1 is that of line 1")
    refused(
        files.reference, lambda rows: [row | {"question": "x"} for row in rows], "question 1: expected 'question 1: "
    )
    refused(files.answers, lambda rows: [rows[0] | {"answer": None}, *rows[1:]], "under 'answer', got NoneType")
    refused(files.answers, lambda rows: [{"question_id": 1, "text": "q"}], "expected a text under 'answer', got none")
    refused(files.answers, lambda rows: [], "expected at least one line")


def test_empty_answers_and_braces_are_judged(files):
    write(files.answers, [row | {"answer": "{model says} {0}"} for row in rows_of(files.answers)])
    write(files.reference, [row | {"answer": "reference says"} for row in rows_of(files.reference)])
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert all("{model says} {0}" in call.prompt for call in server.calls)


def test_an_input_is_part_of_the_question(files):
    rows = [row | {"input": "some context"} for row in rows_of(files.answers)]
    write(files.answers, rows)
    write(files.reference, [row | {"answer": "reference says"} for row in rows])
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert rows_of(files.output)[0]["question_text"] == "question 1: why?\n\nsome context"
    assert all("why?\n\nsome context\n" in call.prompt for call in server.calls)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--concurrency", "0"], "--concurrency: expected 1 or more, got 0"),
        (["--timeout", "0"], "--timeout: expected more than 0 seconds, got 0"),
        (["--timeout", "nan"], "--timeout: expected more than 0 seconds, got nan"),
        (["--retries", "-1"], "--retries: expected 0 or more, got -1"),
        (["--max-tokens", "0"], "--max-tokens: expected 1 or more, got 0"),
        (["--output", "x.json"], "output: expected a name that ends in .jsonl"),
        (["--base-url", "api.example.com/v1"], "--base-url: expected an http or https URL"),
        (["--base-url", "http://x y/v1"], "--base-url: not a URL"),
        (["--base-url", "http://[oh/v1"], "--base-url: not a URL"),
        (["--base-url", "http://x..y/v1"], "--base-url: not a URL"),
        (["--base-url", "http:///v1"], "--base-url: expected an http or https URL"),
        (["--base-url", "http://x:port/v1"], "--base-url: not a URL"),
        (["--base-url", "http://x/v1/chat/completions/"], "without /chat/completions"),
        (["--base-url", ""], "--base-url: expected a value, got ''"),
        (["--base-url", "http://x/v1?key=pass-word"], "--base-url: expected no query or fragment"),
        (["--base-url", "http://user:pass-word@x/v1"], "--base-url: expected no user name and password"),
    ],
)
def test_options_that_do_not_fit(option, words, files, capsys):
    assert main([*files.arguments("http://127.0.0.1:9/v1"), *option]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "pass-word" not in error


def test_an_output_beneath_a_file(files, capsys):
    for output in (files.answers / "x.jsonl", files.answers / "y" / "x.jsonl"):
        for dry in ([], ["--dry-run"]):
            assert main(files.arguments("http://127.0.0.1:9/v1", "--output", str(output), *dry)) == 2
            assert f"to be a folder, but {files.answers} is a file; name another" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_the_answers(files):
    for path in (files.answers, files.reference):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with ChatServer(eight_nine) as server:
        assert files.judge(server) == 0
    assert server.counts == files.everything()


def test_two_sides_of_one_name_are_told_apart(files, tmp_path, capsys):
    sides = [tmp_path / side / "vicuna_test" / "run" / "rd_0.jsonl" for side in ("short", "long")]
    for path, source in zip(sides, (files.answers, files.reference), strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes(source.read_bytes())
    more = ["--answers", str(sides[0]), "--reference", str(sides[1]), "--output", str(tmp_path / "o.jsonl")]
    with ChatServer(eight_nine) as server:
        assert files.judge(server, *more) == 0
    row = rows_of(tmp_path / "o.jsonl")[0]
    names = ["short/vicuna_test/run/rd_0", "long/vicuna_test/run/rd_0"]
    assert [row["assistant1_QUERY0"], row["assistant2_QUERY0"]] == names
    assert f"{names[0]} against {names[1]}" in capsys.readouterr().out


def test_an_output_that_would_replace_the_answers(files, capsys):
    before = files.reference.read_bytes()
    assert main(files.arguments("http://127.0.0.1:9/v1", "--output", str(files.reference))) == 2
    assert "is one of the files to judge" in capsys.readouterr().err
    assert files.reference.read_bytes() == before


def test_quiet_says_only_what_matters(files, capsys):
    with ChatServer(eight_nine) as server:
        assert files.judge(server, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert logging.getLogger("diverseevol_fast").level == logging.WARNING
