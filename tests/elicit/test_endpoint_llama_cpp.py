"""Endpoint against llama-cpp-python's server with the embedded model's own file: its answers beside those of LocalModel."""

import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest

from elicit import Endpoint, ask
from elicit.endpoint_server import EndpointError
from interp.embedded import _find_gguf
from store import MeasurementLog, Outcome, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs pip install 'penchant[llama-cpp]'"),
]
MODEL = "smollm2"


def start(port: int) -> subprocess.Popen:
    """The server, once it answers."""
    # All logits are kept, since log-probabilities need them.
    flags = [
        "--model",
        str(_find_gguf()),
        "--model_alias",
        MODEL,
        "--port",
        str(port),
        "--logits_all",
        "true",
        "--n_ctx",
        "2048",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1)
            return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    process.kill()
    pytest.fail("llama_cpp.server did not start within two minutes")


@pytest.fixture(scope="module")
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def served(port):
    process = start(port)
    yield process
    process.kill()
    process.wait()


def test_its_answers_are_those_of_the_local_model(served, port, embedded, pair_questions):
    """The file is quantised; LocalModel runs what it de-quantises to, so they differ by rounding alone."""
    respondent = Endpoint(f"http://127.0.0.1:{port}/v1", MODEL, concurrency=1, timeout=300)
    questions = [replace(question, prefill="", system="") for question in pair_questions]
    theirs, ours = ask(questions, respondent), ask(questions, embedded)
    pairs = [(a, b) for a, b in zip(theirs, ours, strict=True) if not a.unlisted and a.outcome is Outcome.CHOSE]
    assert len(pairs) >= len(questions) // 2
    gaps = [a.log_probs[label] - b.log_probs[label] for a, b in pairs for label in a.log_probs]
    assert (
        np.abs(gaps).max() < 0.3
        and np.corrcoef(*np.array([[each.log_probs["A"] - each.log_probs["B"] for each in pair] for pair in pairs]).T)[0, 1]
        > 0.95
    )
    for answer, own in zip(theirs, ours, strict=True):  # what is not listed is bounded from above
        assert all(own.log_probs[label] <= bound + 0.3 for label, bound in answer.bounds.items())
    (said,) = ask([replace(questions[0], sampling=Sampling(temperature=0, max_new_tokens=8))], respondent)
    assert said.text and math.isfinite(len(said.text))


def test_killed_in_mid_run_nothing_is_lost_and_the_rerun_completes(served, port, pair_questions, tmp_path):
    questions = [replace(question, prefill="", system="") for question in pair_questions]
    respondent = Endpoint(f"http://127.0.0.1:{port}/v1", MODEL, concurrency=1, retries=0, timeout=300)
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        ask(questions[:5], respondent, log)
        os.kill(served.pid, signal.SIGKILL)
        served.wait()
        with pytest.raises(EndpointError):
            ask(questions, respondent, log)
        assert len(log) == 5
        again = start(port)
        try:
            answers = ask(questions, Endpoint(f"http://127.0.0.1:{port}/v1", MODEL, concurrency=1, timeout=300), log)
        finally:
            again.kill()
            again.wait()
        assert len(log) == len(answers) == len(questions)
        assert all(answer.outcome is not Outcome.ERROR for answer in answers)
