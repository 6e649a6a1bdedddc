"""What the tests of `diverseevol judge` share: answers of two sides, the command, and a judge."""

import json

from support.chat_server import ChatServer, fails, says

from diverseevol_fast.cli.main import main

KEY = 'sk-"secret\\0123456789'


class Files:
    """Answers of a model and of a reference to questions 1 to n, and the command that judges them."""

    def __init__(self, folder, n):
        self.folder, self.n = folder, n
        self.answers, self.reference = folder / "run" / "rd_2.jsonl", folder / "gpt" / "chat.jsonl"
        for path, who, key in ((self.answers, "model", "text"), (self.reference, "reference", "question")):
            path.parent.mkdir()
            rows = [
                {"question_id": i, key: f"question {i}: why?", "answer": f"{who} says {i * 'so '}"} for i in self.ids
            ]
            write(path, rows if who == "model" else rows[::-1])
        self.output = self.answers.with_name("rd_2_vs_chat.jsonl")
        self.partial = self.answers.with_name("rd_2_vs_chat.jsonl.partial")

    @property
    def ids(self):
        return range(1, self.n + 1)

    def arguments(self, url, *more):
        return [
            "judge",
            "--answers",
            str(self.answers),
            "--reference",
            str(self.reference),
            "--base-url",
            url,
            "--model",
            "judge",
            "--api-key-env",
            "JUDGE_KEY",
            *more,
        ]

    def judge(self, server, *more):
        """The exit status."""
        return main(self.arguments(server.url, *more))

    def stored(self):
        """Question and order of each reply in the partial file."""
        lines = [json.loads(line) for line in self.partial.read_text().splitlines()[1:]]
        return [(line["question_id"], line["order"]) for line in lines]

    def everything(self):
        """All (question, order)."""
        return {(str(i), order): 1 for i in self.ids for order in (0, 1)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def eight_nine(call):
    """The model's answer always gets 8, the reference's 9."""
    return says("8 9\nbecause" if call.order == 0 else "9 8\nbecause")


def assert_nowhere(secret, folder, printed):
    message = printed.out + printed.err
    assert secret not in message
    assert json.dumps(secret)[1:-1] not in message
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret.encode() not in content
            assert json.dumps(secret)[1:-1].encode() not in content


def interrupted(files, calls):
    """A partial file of the first replies, in order."""

    def behave(call):
        return eight_nine(call) if call.number <= calls else fails(401, "expired")

    with ChatServer(behave) as server:
        assert files.judge(server, "--concurrency", "1") == 2
    assert len(files.stored()) == calls
