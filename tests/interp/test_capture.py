"""Capture against hooks of our own, into a store that survives being killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from elicit import builtin_tasks, task_question
from interp import Positions, Rendered, capture, difference_of_means
from interp.layers import resolve_layers
from store import EMBED, ActivationStore, Question, layer_name
from store.layout import StoreMismatch
from tests.conftest import tiny

TASKS = builtin_tasks()[::20]
QUESTIONS = [task_question(task) for task in TASKS]
IDS = [task.id for task in TASKS]


def hooked_residuals(model, prompt: Question | Rendered) -> dict[int, np.ndarray]:
    """Residual stream after every block (and before the first), from hooks written here on the plain model."""
    rendered = prompt if isinstance(prompt, Rendered) else model.render(prompt)
    seen, handles = {}, []
    for index, block in enumerate(model.backend.blocks):

        def keep(_, __, output, index=index):
            seen[index] = (output[0] if isinstance(output, tuple) else output)[0].float().numpy()

        handles.append(block.register_forward_hook(keep))

    def keep_input(_, args, kwargs):
        seen[EMBED] = (args[0] if args else kwargs["hidden_states"])[0].float().numpy()

    handles.append(model.backend.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    with torch.inference_mode():
        model.backend.model(torch.tensor([rendered.token_ids.tolist()]))
    for handle in handles:
        handle.remove()
    return seen


def reduce(position: str, rows: np.ndarray, rendered) -> np.ndarray:
    chosen = rows[Positions.parse(position).tokens(rendered)]
    return chosen.mean(axis=0)


POSITIONS = ["prompt_last", "prompt_mean", "task_last", "task_mean", "task_first", "decision", "token:-3", "token:1"]


def test_captured_rows_equal_hooks_of_our_own(tiny_lm, tmp_path):
    layers = ["embed", 0, 2, 3]
    store = capture(tiny_lm, QUESTIONS, IDS, tmp_path / "a.h5", layers=layers, positions=POSITIONS)
    for question, task_id in zip(QUESTIONS, IDS, strict=True):
        rows, rendered = hooked_residuals(tiny_lm, question), tiny_lm.render(question)
        for layer in store.header.layers:
            for position in POSITIONS:
                expected = reduce(position, rows[layer], rendered)
                found = store.load(layer, position, [task_id])[0]
                np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), err_msg=f"{layer} {position}")


def test_the_embedded_model_is_captured_to_1e_4_of_the_norm(embedded, tmp_path):
    where = {"layers": [3, 0.5, 29], "positions": ["task_mean", "prompt_last"]}
    store = capture(embedded, QUESTIONS[:4], IDS[:4], tmp_path / "a.h5", **where)
    assert store.header.layers == (3, 15, 29)
    for question, task_id in zip(QUESTIONS[:4], IDS[:4], strict=True):
        rows, rendered = hooked_residuals(embedded, question), embedded.render(question)
        for layer, position in store.header.keys:
            expected = reduce(position, rows[layer], rendered)
            found = store.load(layer, position, [task_id])[0]
            assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_capture_runs_neither_later_blocks_nor_the_unembedding(embedded, tmp_path):
    ran = set()
    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: ran.add(index))
        for index, block in enumerate(embedded.backend.blocks)
    ]
    handles.append(embedded.backend.model.lm_head.register_forward_pre_hook(lambda *_: ran.add("lm_head")))
    capture(embedded, QUESTIONS[:2], IDS[:2], tmp_path / "a.h5", layers=[4], positions=["task_mean"])
    for handle in handles:
        handle.remove()
    assert ran == set(range(5))


def test_a_finished_capture_is_opened_without_running_the_model(tmp_path, monkeypatch):
    model = tiny("llama")
    first = capture(model, QUESTIONS, IDS, tmp_path / "a.h5", layers="all", positions=["task_mean"])
    monkeypatch.setattr(model.backend, "run", lambda *_, **__: pytest.fail("the model was run"))
    again = capture(model, QUESTIONS, IDS, tmp_path / "a.h5", layers="all", positions=["task_mean"])
    np.testing.assert_array_equal(first.load(2, "task_mean"), again.load(2, "task_mean"))


def test_a_store_of_another_model_is_refused_by_name_of_the_field(tmp_path):
    capture(tiny("llama"), QUESTIONS, IDS, tmp_path / "a.h5", layers=[1], positions=["task_mean"])
    with pytest.raises(StoreMismatch, match=r"model: the store has .* Capture into another file"):
        capture(tiny("llama", seed=1), QUESTIONS, IDS, tmp_path / "a.h5", layers=[1], positions=["task_mean"])
    for change, field in (
        ({"layers": [2]}, "layers"),
        ({"positions": ["task_last"]}, "positions"),
        ({"dtype": "bfloat16"}, "dtype"),
    ):
        settings = {"layers": [1], "positions": ["task_mean"]} | change
        with pytest.raises(StoreMismatch, match=f"{field}: the store has"):
            capture(tiny("llama"), QUESTIONS, IDS, tmp_path / "a.h5", **settings)


def test_positions_without_a_reduction_keep_a_row_for_every_token(tiny_lm, tmp_path):
    store = capture(tiny_lm, QUESTIONS, IDS, tmp_path / "a.h5", layers=[1, 3], positions=["task", "task_mean", "all"])
    assert store.by_token == ("task", "all")
    counts = store.row_counts("all")
    parts = np.split(store.load(3, "all"), counts.cumsum()[:-1])
    for question, task_id, rows in zip(QUESTIONS, IDS, parts, strict=True):
        rendered = tiny_lm.render(question)
        tokens = Positions.parse("all").tokens(rendered)
        assert store.token_index("all", [task_id]).tolist() == tokens.tolist()
        expected = hooked_residuals(tiny_lm, question)[3][tokens]
        np.testing.assert_allclose(rows, expected, atol=2e-5 * np.abs(expected).max())
        own = store.load(3, "task", [task_id])
        np.testing.assert_allclose(own.mean(axis=0), store.load(3, "task_mean", [task_id])[0], atol=1e-5 * np.abs(own).max())


def test_probes_and_directions_refuse_a_position_with_a_row_for_every_token(tmp_path):
    store = capture(tiny("llama"), QUESTIONS, IDS, tmp_path / "a.h5", layers=[1], positions=["task", "task_mean"])
    with pytest.raises(ValueError, match=r"'task' has a row for every token.*task_mean"):
        difference_of_means(store, 1, "task", IDS[:2], IDS[2:4])
    assert difference_of_means(store, 1, "task_mean", IDS[:2], IDS[2:4]).layer == 1


def test_a_missing_span_names_the_spans_there_are():
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"no span 'task_a'; it has \['task'\]"):
        model.residuals(QUESTIONS[:1], 1, "task_a_mean")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ([0.5], (3,)),
        ([1.0, 0.0], (0, 5)),
        (["1:5:2", "embed"], (EMBED, 1, 3)),
        ([5, 2], (2, 5)),
        ("L4", (4,)),
    ],
)
def test_layers_are_named_by_index_fraction_range_and_word(spec, expected):
    assert resolve_layers(spec, 6) == expected


@pytest.mark.parametrize("spec", [6, -7, 1.5, "middle", "1:x", []])
def test_a_layer_outside_the_model_is_named_with_what_was_expected(spec):
    with pytest.raises(ValueError, match="expected"):
        resolve_layers(spec, 6)


def test_layer_fractions_follow_the_convention():
    assert resolve_layers(0.5, 30) == (15,)
    assert resolve_layers(0.5, 62) == (31,)
    assert layer_name(EMBED) == "embed"


CAPTURE_SCRIPT = """
import sys
from elicit import builtin_tasks, task_question
from interp import LocalModel, capture
sys.modules["interp.capture"]._TASKS_PER_COMMIT = 4
model = LocalModel.load(tokens_per_batch=256)
tasks = builtin_tasks()[:48]
capture(model, [task_question(t) for t in tasks], [t.id for t in tasks], sys.argv[1],
        layers=[5, 10, 20], positions=["task_mean", "prompt_last"])
print("finished")
"""


def test_killing_a_capture_loses_no_committed_row_and_a_rerun_completes_it(embedded, tmp_path):
    path = tmp_path / "killed.h5"
    process = subprocess.Popen([sys.executable, "-c", CAPTURE_SCRIPT, str(path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not path.exists() or ActivationStore(path).done.sum() < 8):
        assert process.poll() is None, "the capture ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = ActivationStore(path)
    committed = [task_id for task_id, done in zip(left.task_ids, left.done, strict=True) if done]
    assert 8 <= len(committed) < 48
    assert left.verify() == []
    before = left.load(10, "task_mean", committed)
    with pytest.raises(KeyError, match="unfinished"):
        left.load(10, "task_mean")
    tasks = builtin_tasks()[:48]
    questions, ids = [task_question(task) for task in tasks], [task.id for task in tasks]
    settings = {"layers": [5, 10, 20], "positions": ["task_mean", "prompt_last"]}
    completed = capture(embedded, questions, ids, path, **settings)
    assert completed.done.all()
    assert completed.verify() == []
    np.testing.assert_array_equal(completed.load(10, "task_mean", committed), before)
    fresh = capture(embedded, questions, ids, tmp_path / "fresh.h5", **settings)
    np.testing.assert_allclose(completed.load(10, "task_mean"), fresh.load(10, "task_mean"), atol=0.02)
