"""A real HTTP server on the loopback that speaks the chat completions protocol, and misbehaves as `behave` says."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DROP, HANG = "drop the connection in the middle of the reply", "never answer"


@dataclass(frozen=True)
class Call:
    """A request as the server sees it."""

    question: str  # the n of "question n" in the prompt
    order: int  # 0: "model says" comes before "reference says"
    number: int  # 1 for the first request of all
    attempt: int  # 1 for the first request of this question and order
    body: dict
    headers: dict[str, str]
    prompt: str = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What the server sends: a status and a body (JSON, or text as it is)."""

    status: int = 200
    body: dict | str = ""
    headers: dict[str, str] = field(default_factory=dict)


def says(text: str, tokens: tuple[int, int] | None = (100, 20), finish_reason: str = "stop") -> Answer:
    """A chat completion."""
    usage = {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}} if tokens else {}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer(200, {"id": "x", "object": "chat.completion", "model": "judge-0613", "choices": [choice], **usage})


def fails(status: int, message: str, headers: dict[str, str] | None = None, **more: str) -> Answer:
    """An error as the protocol has it."""
    return Answer(status, {"error": {"message": message, **more}}, headers or {})


SOON = {"retry-after-ms": "1"}  # a pause that the client honours, so that tests need not wait


class ChatServer:
    """`with ChatServer(lambda call: says("8 9")) as server:` answers at server.url; calls are kept in order."""

    def __init__(self, behave: Callable[[Call], Answer | str]):
        self.behave = behave
        self.calls: list[Call] = []
        self.counts: Counter[tuple[str, int]] = Counter()
        self.most_at_once = 0
        self._at_once = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for_calls(self, count: int, seconds: float = 60.0) -> None:
        """Until so many requests have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, seconds), len(self.calls)

    def wait_until_together(self, count: int, seconds: float = 30.0) -> None:
        """Called from `behave`: until so many requests have been open at once."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.most_at_once >= count, seconds), self.most_at_once

    def _receive(self, body: dict, headers: dict[str, str]) -> Call:
        prompt = body["messages"][0]["content"]
        question = re.search(r"question (\w+)", prompt)[1]
        order = 0 if prompt.index("model says") < prompt.index("reference says") else 1
        with self._changed:
            self.counts[question, order] += 1
            call = Call(question, order, len(self.calls) + 1, self.counts[question, order], body, headers, prompt)
            self.calls.append(call)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._changed.notify_all()
        return call

    def _done(self) -> None:
        with self._changed:
            self._at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path != "/v1/chat/completions":
                    self._send(fails(404, "no such path"))
                    return
                answer = chat.behave(chat._receive(body, {k.lower(): v for k, v in self.headers.items()}))
                chat._done()
                if answer == HANG:
                    chat._closing.wait()
                    self.close_connection = True
                elif answer == DROP:
                    self._send(Answer(200, '{"choices": [{"mess'), promised=1000)
                    self.close_connection = True
                else:
                    self._send(answer)

            def _send(self, answer: Answer, promised: int | None = None) -> None:
                text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
                kind = "text/html" if isinstance(answer.body, str) and promised is None else "application/json"
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(promised or len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args) -> None:
                pass

        return Handler
