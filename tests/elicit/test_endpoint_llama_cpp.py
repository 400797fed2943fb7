"""Endpoint against llama-cpp-python's server with the embedded model's own weights, and what is left when either is killed."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elicit import Endpoint, ask, builtin_tasks, choice, disjoint_pairs, rating, sample_tasks
from interp import PromptWriter
from interp.embedded import _find_gguf
from store import MeasurementLog, Option, Outcome, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs pip install 'penchant[llama-cpp]'"),
]
MODEL = "smollm2"


def full_precision(source: Path, target: Path) -> Path:
    """The same model with every weight as a float, since llama.cpp rounds activations where weights are quantised."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind is GGUFValueType.ARRAY else None)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


class LlamaServer:
    """Started on entering, and again by `start`; killed on leaving."""

    def __init__(self, weights: Path) -> None:
        self.weights = weights
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        # All logits are kept, since log-probabilities need them.
        flags = ["--model", str(self.weights), "--model_alias", MODEL, "--port", str(self.port)]
        flags += ["--logits_all", "true", "--n_ctx", "2048", "--n_threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=1)
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.5)
        self.kill()
        pytest.fail("llama_cpp.server did not start within two minutes")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "LlamaServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    quantised = _find_gguf()
    assert quantised is not None
    return full_precision(quantised, tmp_path_factory.mktemp("gguf") / "float32.gguf")


@pytest.fixture
def server(weights):
    with LlamaServer(weights) as started:
        yield started


@pytest.fixture(scope="module")
def write():
    return PromptWriter.load("smollm2-135m")


def gaps(theirs, ours):
    """Differences of log-probability of the options that the server lists."""
    return [
        answer.log_probs[label] - own.log_probs[label]
        for answer, own in zip(theirs, ours, strict=True)
        for label in answer.log_probs
        if label not in answer.unlisted
    ]


def within_bounds(theirs, ours):
    return all(
        own.log_probs[label] <= bound + 0.02
        for answer, own in zip(theirs, ours, strict=True)
        for label, bound in answer.bounds.items()
    )


def test_choices_through_prompts_written_here_are_those_of_the_local_model(server, embedded, write):
    tasks = sample_tasks(builtin_tasks(), 2)
    questions = choice.questions(tasks, disjoint_pairs([task.id for task in tasks], seed=0))
    respondent = Endpoint(server.url, MODEL, concurrency=1, timeout=300, write=write)
    theirs, ours = ask(questions, respondent), ask(questions, embedded)
    assert all(answer.outcome is Outcome.CHOSE for answer in theirs)
    assert np.abs(gaps(theirs, ours)).max() < 0.02
    assert within_bounds(theirs, ours)


def test_chained_options_agree_and_what_is_not_listed_lies_within_its_bounds(server, embedded, write):
    tasks = sample_tasks(builtin_tasks(), 1)
    respondent = Endpoint(server.url, MODEL, concurrency=1, timeout=300, write=write, top_logprobs=300)
    questions = rating.questions(tasks, scale="adjectives")  # of several tokens each
    theirs, ours = ask(questions, respondent), ask(questions, embedded)
    assert np.abs(gaps(theirs, ours)).max() < 0.03
    assert within_bounds(theirs, ours)
    questions = rating.questions(tasks[:2], scale="likert_5")  # a number must be followed by what ends it
    theirs, ours = ask(questions, respondent), ask(questions, embedded)
    assert within_bounds(theirs, ours)
    assert all(answer.outcome is Outcome.OFF_FORMAT and "not listed" in (answer.error or "") for answer in theirs)


def test_the_servers_own_chat_template_is_ours_and_a_sampled_text_is_the_same(server, embedded, pair_questions):
    respondent = Endpoint(server.url, MODEL, concurrency=1, timeout=300)
    plain = [
        replace(question, prefill="", system="Answer.", options=(Option("Task", ("Task",)), Option("I", ("I",))))
        for question in pair_questions[:4]
    ]
    theirs, ours = ask(plain, respondent), ask(plain, embedded)
    assert np.abs(gaps(theirs, ours)).max() < 0.05
    greedy = [replace(plain[0], options=(), sampling=Sampling(temperature=0, max_new_tokens=12))]
    (said,), (own,) = ask(greedy, respondent), ask(greedy, embedded)
    assert said.text and said.text.split()[:4] == (own.text or "").split()[:4]


RUN = [
    *("position_bias", "--per-origin", "3", "--degree", "4", "--templates", "would_rather", "pick_one"),
    *("--respondent.model", MODEL, "--respondent.tokenizer", "smollm2-135m", "--respondent.concurrency", "2"),
]


def run(server: LlamaServer, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.cli", *RUN, "--respondent.base-url", server.url, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def answered(out: Path) -> dict[str, tuple]:
    """What the log of a run holds, by key; nothing while there is none."""
    path = out / "measurements.sqlite"
    if not path.exists():
        return {}
    with MeasurementLog(path) as log:
        table = log.to_frame()
    return {str(row["key"]): tuple(map(str, row)) for _, row in table.iterrows()} if len(table) else {}


def wait_for_answers(out: Path, process: subprocess.Popen, n: int) -> None:
    path = out / "measurements.sqlite"
    for _ in range(2400):
        if path.exists():
            with MeasurementLog(path) as log:
                if len(log) >= n:
                    return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    pytest.fail("the run did not go on within two minutes")


def test_whoever_is_killed_in_mid_run_nothing_is_lost_and_the_rerun_completes(server, tmp_path):
    out = tmp_path / "run"
    process = run(server, out)
    wait_for_answers(out, process, 4)
    server.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err
    assert "cannot be reached" in err and "Is the server running" in err
    first = answered(out)

    server.start()
    process = run(server, out)
    wait_for_answers(out, process, len(first) + 4)
    os.kill(process.pid, signal.SIGKILL)  # now the one that asks
    process.communicate()
    second = answered(out)

    process = run(server, out)
    said, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "Being shown first is worth" in said
    everything = answered(out)
    assert len(everything) > len(second) > len(first) >= 4
    assert {key: everything[key] for key in second} == second and {key: second[key] for key in first} == first
