"""Capture as a stream: completions, long prompts, memory, the order of batches, and writing beside the forward pass."""

import importlib
import threading
import tracemalloc

import numpy as np
import pytest
import torch

from elicit import builtin_conversations, task_question
from interp import Intervention, Positions, capture, random_directions
from interp.budget import LARGEST, find_token_budget
from store import MeasurementLog, Message, Question, Sampling, Span
from store.writer import ActivationWriter
from tests.conftest import tiny
from tests.interp.test_capture import hooked_residuals

capturing = importlib.import_module("interp.capture")  # the package shows the function under this name


def prompts(n: int, words: int = 6) -> tuple[list[Question], list[str]]:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["sing", "add", "bake", "rust", "sea"], words)) + f" {number}" for number in range(n)]
    questions = [Question((Message("user", text),), spans=(Span("task", 0, 0, len(text)),)) for text in texts]
    return questions, [f"t{number}" for number in range(n)]


def test_given_completions_are_read_after_their_prompts(tiny_lm, tmp_path):
    questions, ids = prompts(5)
    answers = [f"Well, {number} it is." for number in range(5)]
    where = ["task_mean", "completion_mean", "completion_first", "completion"]
    store = capture(tiny_lm, questions, ids, tmp_path / "a.h5", layers=[0, 3], positions=where, completions=answers)
    for question, answer, task_id in zip(questions, answers, ids, strict=True):
        rendered = tiny_lm.render(question, answer)
        rows = hooked_residuals(tiny_lm, rendered)[3]
        for position in where:
            chosen = rows[Positions.parse(position).tokens(rendered)]
            expected = chosen if position == "completion" else chosen.mean(axis=0, keepdims=True)
            np.testing.assert_allclose(store.load(3, position, [task_id]), expected, atol=2e-5 * np.abs(expected).max())
    bare = capture(tiny_lm, questions, ids, tmp_path / "b.h5", layers=[3], positions=["task_mean"])
    np.testing.assert_allclose(store.load(3, "task_mean"), bare.load(3, "task_mean"), atol=1e-3)


def test_generated_completions_are_kept_in_the_log_and_linked_to_it(tmp_path, monkeypatch):
    model = tiny("llama")
    questions, ids = prompts(4)
    asked = [Question(q.messages, q.spans, sampling=Sampling(max_new_tokens=5, seed=3)) for q in questions]
    settings = {"layers": [2], "positions": ["completion_mean"]}
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        store = capture(model, asked, ids, tmp_path / "a.h5", completions=log, **settings)
        keys = store.frame()["answer_key"].tolist()
        texts = [log.get([key])[key].text for key in keys]
        monkeypatch.setattr(model, "generate", lambda questions, _: pytest.fail("asked again") if questions else None)
        again = capture(model, asked, ids, tmp_path / "b.h5", completions=log, **settings)
    np.testing.assert_array_equal(store.load(2, "completion_mean"), again.load(2, "completion_mean"))
    given = capture(model, asked, ids, tmp_path / "c.h5", completions=texts, **settings)
    np.testing.assert_array_equal(store.load(2, "completion_mean"), given.load(2, "completion_mean"))
    assert "answer_key" not in given.frame()


def test_a_completion_to_be_drawn_needs_sampling_and_a_given_one_its_question(tmp_path):
    questions, ids = prompts(2)
    where = {"layers": [1], "positions": ["completion_mean"]}
    with pytest.raises(ValueError, match="Question 0 has no sampling"):
        capture(tiny("llama"), questions, ids, tmp_path / "a.h5", completions=MeasurementLog(), **where)
    with pytest.raises(ValueError, match="1 completions for 2 questions"):
        capture(tiny("llama"), questions, ids, tmp_path / "a.h5", completions=["a"], **where)
    assert list(tmp_path.iterdir()) == []


def test_conversations_are_captured_turn_by_turn(embedded, tmp_path):
    tasks = builtin_conversations()[:3]
    questions = [task_question(task) for task in tasks]
    where = ["turn:0_mean", "turn:-1_last", "turn_boundary:-1..-2", "end_of_turn"]
    store = capture(embedded, questions, [task.id for task in tasks], tmp_path / "a.h5", layers=[4], positions=where)
    assert store.header.positions == ("turn:0_mean", "turn:-1_last", "turn_boundary:-1", "turn_boundary:-2", "end_of_turn")
    for question, task in zip(questions, tasks, strict=True):
        rendered = embedded.render(question)
        rows = hooked_residuals(embedded, question)[4]
        found = store.load(4, "turn:0_mean", [task.id])[0]
        expected = rows[slice(*rendered.turns[0])].mean(axis=0)
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_a_push_on_generation_moves_the_completion_and_leaves_the_prompt(tmp_path):
    model = tiny("llama")
    questions, ids = prompts(3)
    vector = random_directions(model.identity, model.d_model, 1, 1)[0].scaled(5.0, positions=["all"])
    view = model.steered(Intervention.everywhere(vector, 1.0, phase="generation"))
    settings = {"layers": [3], "positions": ["task_mean", "completion_mean"], "completions": ["One two."] * 3}
    plain, pushed = (
        capture(each, questions, ids, tmp_path / f"{name}.h5", **settings) for each, name in ((model, "a"), (view, "b"))
    )
    np.testing.assert_allclose(plain.load(3, "task_mean"), pushed.load(3, "task_mean"), atol=1e-4)
    moved = np.linalg.norm(plain.load(3, "completion_mean") - pushed.load(3, "completion_mean"), axis=1)
    assert (moved > 1).all()


def test_a_prompt_longer_than_the_context_is_named_and_skipped_only_on_request(tmp_path):
    model = tiny("llama")
    questions, ids = prompts(4)
    questions[2] = Question((Message("user", "word " * 900),))
    settings = {"layers": [1], "positions": ["prompt_mean"]}
    with pytest.raises(ValueError, match=r"room for 512 tokens; .*'t2' \(\d+ tokens\).*unfit='skip'"):
        capture(model, questions, ids, tmp_path / "a.h5", **settings)
    assert list(tmp_path.iterdir()) == []
    store = capture(model, questions, ids, tmp_path / "a.h5", unfit="skip", **settings)
    assert store.skipped == ["t2"] and "1 skipped" in repr(store)
    assert len(store.load(1, "prompt_mean")) == 3
    with pytest.raises(KeyError, match="skipped 't2'"):
        store.load(1, "prompt_mean", ["t2"])
    answers = ["Yes.", "", "No.", "Yes."]
    with pytest.raises(ValueError, match=r"'t1' \(empty completion\), 't2'"):
        capture(model, questions, ids, tmp_path / "b.h5", completions=answers, **settings)
    with pytest.raises(ValueError, match="Nothing is left to capture"):
        capture(model, questions[2:3], ids[2:3], tmp_path / "b.h5", unfit="skip", **settings)


def test_no_tasks_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="task list is empty"):
        capture(tiny("llama"), [], [], tmp_path / "a.h5", layers=[1], positions=["prompt_mean"])


def test_a_residual_that_is_not_finite_names_its_task_and_commits_nothing_of_its_batch(tmp_path):
    model = tiny("llama")
    questions, ids = prompts(6)
    token = model.render(Question((Message("user", "~"),))).token_ids
    culprit = int(next(each for each in token if each not in model.render(questions[0]).token_ids))
    with torch.no_grad():
        model.backend.model.get_input_embeddings().weight[culprit] = torch.nan
    questions[4] = Question((Message("user", "a ~ b"),))
    with pytest.raises(ValueError, match=r"residual of task 't4' at L1/prompt_mean is not finite"):
        capture(model, questions, ids, tmp_path / "a.h5", layers=[1], positions=["prompt_mean"])


def test_memory_does_not_grow_with_the_number_of_tasks(tmp_path, monkeypatch):
    for name, value in {"_PROMPTS_AT_A_TIME": 64, "_TASKS_PER_COMMIT": 16, "_SECONDS_PER_COMMIT": 1e9}.items():
        monkeypatch.setattr(capturing, name, value)
    model = tiny("llama")
    peaks = {}
    for n in (128, 128, 640):  # the first only fills caches
        questions, ids = prompts(n)
        tracemalloc.start()
        capture(model, questions, ids, tmp_path / f"{n}-{len(peaks)}.h5", layers="all", positions=["all"])
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (tmp_path / f"{n}-{len(peaks) - 1}.h5").unlink(missing_ok=True)
    # A task's own rows take 30 kB here; what is kept of each is its id, digest and length.
    assert peaks[640] - peaks[128] < 512 * 1500


def test_the_longest_prompts_run_first_and_rows_come_back_in_task_order(tmp_path, monkeypatch):
    model = tiny("llama", layout="left")
    questions, ids = prompts(30)
    questions = [Question((Message("user", "sing " * (1 + number % 7)),)) for number in range(30)]
    model.engine.token_budget = 120
    longest, run = [], model.backend.run
    monkeypatch.setattr(model.backend, "run", lambda batch, **kw: longest.append(max(map(len, batch.rows))) or run(batch, **kw))
    store = capture(model, questions, ids, tmp_path / "a.h5", layers=[2], positions=["prompt_mean"])
    assert len(longest) > 3 and longest == sorted(longest, reverse=True)
    for number in (0, 13, 29):
        expected = model.residuals([questions[number]], 2, "prompt_mean")[0][0, 0]
        np.testing.assert_allclose(store.load(2, "prompt_mean")[number], expected, atol=1e-4)


def test_the_next_batch_runs_while_rows_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(capturing, "_TASKS_PER_COMMIT", 4)
    model = tiny("llama")
    model.engine.token_budget = 60
    questions, ids = prompts(24)
    runs, writes, went_on = [0], [0], threading.Event()
    run, write = model.backend.run, ActivationWriter.write

    def counted_run(batch, **kwargs):
        runs[0] += 1
        if writes[0]:
            went_on.set()
        return run(batch, **kwargs)

    def held_write(self, *arguments):
        writes[0] += 1
        assert went_on.wait(timeout=20), "no batch ran while the first rows were being written"
        write(self, *arguments)

    monkeypatch.setattr(model.backend, "run", counted_run)
    monkeypatch.setattr(ActivationWriter, "write", held_write)
    assert capture(model, questions, ids, tmp_path / "a.h5", layers=[2], positions=["task_mean"]).done.all()


def test_the_token_budget_is_the_smallest_that_is_as_fast_as_any_and_fits():
    assert find_token_budget(lambda budget: min(budget, 1000), 128) == 1024
    assert find_token_budget(lambda budget: float(budget), 128) == LARGEST
    assert find_token_budget(lambda budget: None if budget > 600 else float(budget), 128) == 512
    assert find_token_budget(lambda budget: 100.0, 128) == 128


def test_the_budget_is_tried_on_the_device_only_where_the_work_is_worth_it(monkeypatch):
    model = tiny("llama", layout="left")
    engine, run = model.engine, model.backend.run
    before, sizes = engine.token_budget, []
    monkeypatch.setattr(model.backend, "run", lambda batch, **kw: sizes.append(batch.token_ids.size) or run(batch, **kw))
    engine.settle_token_budget(10 * before)
    assert not sizes and engine.token_budget == before
    engine.settle_token_budget(1000 * before)
    assert len(sizes) >= 4 and engine.token_budget in sizes
    tried = len(sizes)
    engine.settle_token_budget(1000 * before)
    assert len(sizes) == tried


def test_a_trial_that_runs_out_of_memory_settles_on_what_fits(monkeypatch):
    model = tiny("llama")
    run = model.backend.run

    def limited(batch, **kwargs):
        if batch.token_ids.size > 500:
            raise torch.OutOfMemoryError("not enough")
        return run(batch, **kwargs)

    monkeypatch.setattr(model.backend, "run", limited)
    model.engine.settle_token_budget(10**9)
    assert model.engine.token_budget <= 512
