"""A server on loopback that speaks chat completions from a table of next-token probabilities, and misbehaves on request."""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Table = Callable[[str, str], dict[str, float]]

ENDS = "<|im_end|>"
KEY_NAME, KEY = "PENCHANT_TEST_KEY", "sk-secret-5f2e9a"
HTML = "<html><head><title>Bad gateway</title></head><body>nginx</body></html>"


def alone(token: str) -> dict[str, float]:
    """Nearly all on one token."""
    return {token: 0.9, "zzz": 0.06, "yyy": 0.04}


def probing(last: str, said: str) -> dict[str, float] | None:
    """What a model would say to the probes of an endpoint."""
    if last.startswith("Repeat these words"):
        return alone(" delta") if said.endswith("alpha bravo charlie") else alone("alpha") | {"Q": 1e-4}
    if last.startswith("Count from 1 to 6"):
        return alone({"1 2 3 ": "4", "1 2 3": " "}.get(said, "1"))
    return None


class ChatServer:
    """Use as a context manager.

    Parameters
    ----------
    table
        Next-token probabilities, from the last user turn and what the assistant is made to say; one by name for a server of
        several models.
    says
        The text of longer answers, or one by name of the model.
    prefill
        Whether a last assistant turn is continued: `fields` (as vLLM, when told to), `always` (as llama.cpp) or `never`.
    takes_tokens, counts
        Whether completions of prompts may be given as tokens; how many tokens the server says that a prompt has.
    """

    def __init__(
        self,
        table: Table | Mapping[str, Table],
        *,
        prefill: str = "fields",
        trims: bool = False,
        log_probs: bool = True,
        most_listed: int = 20,
        tokens: tuple[str, ...] = (),
        model: str = "tabled",
        key: str | None = None,
        says: str | Mapping[str, str] = "A.",
        delay: Callable[[int], float] = lambda number: 0.0,
        takes_tokens: bool = True,
        counts: Callable[[Any], int] = len,
    ) -> None:
        self.tables: Mapping[str, Table] = table if isinstance(table, Mapping) else {model: table}
        self.prefill, self.trims, self.log_probs, self.most_listed = prefill, trims, log_probs, most_listed
        self.tokens, self.key, self.delay = list(tokens), key, delay
        self.says = says if isinstance(says, Mapping) else dict.fromkeys(self.tables, says)
        self.takes_tokens, self.counts = takes_tokens, counts
        self.requests: list[dict] = []
        self.authorizations: list[str | None] = []
        self.faults: list[tuple[int, str, dict[str, str]]] = []
        """Replies (status, body, headers) given instead of the next ones."""
        self.fault: Callable[[dict], tuple[int, str, dict[str, str]] | None] = lambda body: None
        self.headers: dict[str, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "ChatServer":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, text, headers = outer.answer(self.path, body, self.headers.get("authorization"))
                content = text.encode()
                self.send_response(status)
                for name, value in ({"content-type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def asked(self) -> list[dict]:
        """Requests other than those of the probes."""
        return [body for body in self.requests if probing(_last_user(body), _said(body)) is None]

    def answer(self, path: str, body: dict, authorization: str | None) -> tuple[int, str, dict[str, str]]:
        if path == "/tokenize" and self.tokens:
            ids = [self.tokens.index(body["prompt"])] if body["prompt"] in self.tokens else [0, 0]
            return 200, json.dumps({"tokens": ids}), {}
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return 404, json.dumps({"error": {"message": "no such path"}}), {}
        with self._lock:
            self.requests.append(body)
            self.authorizations.append(authorization)
            number = len(self.requests)
            fault = self.faults.pop(0) if self.faults else self.fault(body)
        time.sleep(self.delay(number))
        if fault:
            return fault
        if self.key and authorization != f"Bearer {self.key}":
            return 401, json.dumps({"error": {"message": f"Incorrect API key provided: {authorization}"}}), {}
        if body["model"] not in self.tables:
            return 404, json.dumps({"error": {"message": f"The model `{body['model']}` does not exist."}}), {}
        if path == "/v1/completions":
            if isinstance(body["prompt"], list) and not self.takes_tokens:
                return 422, json.dumps({"error": {"message": "prompt: Input should be a valid string"}}), {}
            return 200, json.dumps(self._raw_completion(body)), self.headers
        if body.get("logprobs") and body["top_logprobs"] > self.most_listed:
            return 400, json.dumps({"error": {"message": f"top_logprobs must be at most {self.most_listed}"}}), {}
        return 200, json.dumps(self._completion(body)), self.headers

    def _raw_completion(self, body: dict) -> dict:
        """The older form, where a list of tokens is by text; `table` is given the prompt as it came."""
        chances = self.tables[body["model"]](body["prompt"], "")
        ranked = sorted(chances.items(), key=lambda item: -item[1])
        chosen: dict = {"index": 0, "text": ranked[0][0], "finish_reason": "length"}
        if body["max_tokens"] > 1:
            chosen |= {"text": self.says[body["model"]], "finish_reason": "stop"}
        elif body.get("logprobs"):
            tops = {token: math.log(chance) for token, chance in ranked[: body["logprobs"]]}
            chosen["logprobs"] = {"tokens": [ranked[0][0]], "token_logprobs": [tops[ranked[0][0]]], "top_logprobs": [tops]}
        return {"choices": [chosen], "usage": {"prompt_tokens": self.counts(body["prompt"]), "completion_tokens": 1}}

    def _completion(self, body: dict) -> dict:
        said = _said(body)
        continued = self.prefill == "always" or (self.prefill == "fields" and body.get("continue_final_message"))
        said = (said.strip() if self.trims else said) if continued else ""
        last = _last_user(body)
        chances = probing(last, said) or self.tables[body["model"]](last, said)
        ranked = sorted(chances.items(), key=lambda item: -item[1])
        token = ranked[0][0]
        if bias := body.get("logit_bias"):
            token = self.tokens[int(next(iter(bias)))]
        chosen: dict = {"index": 0, "message": {"role": "assistant", "content": token}, "finish_reason": "length"}
        if body["max_tokens"] > 1:
            words = self.says[body["model"]].split()
            text = " ".join(words[: body["max_tokens"]])
            chosen |= {"message": {"role": "assistant", "content": text}}
            chosen |= {"finish_reason": "length" if len(words) > body["max_tokens"] else "stop"}
        if self.log_probs and body.get("logprobs"):
            listed = [{"token": each, "logprob": math.log(chance)} for each, chance in ranked[: body["top_logprobs"]]]
            chosen["logprobs"] = {
                "content": [{"token": token, "logprob": math.log(chances.get(token, 1e-6)), "top_logprobs": listed}]
            }
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [chosen], "usage": usage}


def _last_user(body: dict) -> str:
    if "prompt" in body:
        return ""
    return next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")


def _said(body: dict) -> str:
    if "prompt" in body:
        return ""
    last = body["messages"][-1]
    return last["content"] if last["role"] == "assistant" else ""
