"""Cost tables: counts are those of a dry run, and hours, memory and money follow from them by arithmetic."""

import json

import pytest

from elicit import builtin_tasks, load_tasks, sample_tasks, task_question
from experiments import probe_sweep
from experiments.bench import costs
from experiments.bench.__main__ import main
from experiments.bench.costs import MODELS, Assumptions, Shape
from experiments.dry_run import dry_run
from experiments.measuring import ElicitSettings
from experiments.probe_sweep import ProbeSweepSettings
from interp import LocalModel, capture
from interp.rehearsal import Count
from tests.conftest import tiny


@pytest.mark.slow
def test_counts_are_those_of_a_dry_run(embedded, monkeypatch, tmp_path):
    monkeypatch.setattr(LocalModel, "load", classmethod(lambda cls, *_, **__: embedded))
    asked = ElicitSettings(degree=6, scales=("yes_somewhat_no",), resamples=50)
    settings = ProbeSweepSettings(out=tmp_path, per_origin=4, elicit=asked, layers=(0.5,), permutations=19, wandb="disabled")
    planned = dry_run(probe_sweep, settings).table.set_index("kind")
    counted = costs.counts(embedded, settings.load_tasks())
    of_run = {"choices, degree 6": "choice", "self-report, 1 scale": "rating", "capture": "activations"}
    for work, kind in of_run.items():
        assert counted[work].tokens == planned.loc[kind, "tokens"] > 0, work
        assert counted[work].questions == planned.loc[kind, "to_ask"], work


def test_each_kind_of_work_asks_as_many_questions_as_its_design_says():
    tasks = sample_tasks(builtin_tasks(), per_origin=4)
    found = costs.counts(tiny("llama"), tasks)
    n = len(tasks)
    assert [found[name].questions / n for name in list(found)[:-1]] == [6, 20, 9, 18, 1, 8, 8, 1]
    assert found["refusal, 4 completions and a judge"].new_tokens == n * 4 * 48
    assert found["steering, 12 pairs"].questions == 12 * 2 * (1 + 21 * 4)


def test_hours_are_two_operations_a_weight_and_token_and_written_tokens_wait_for_the_weights():
    shape, assumed = MODELS["8B"], Assumptions()
    assert assumed.read_per_second(shape) == pytest.approx(20_000, rel=0.01)  # as the table in docs/experiments.md has it
    assert assumed.written_per_second(shape, 400) == pytest.approx(2_000, rel=0.02)
    reading = Count(1, 1, tokens=int(assumed.read_per_second(shape) * 3600))
    assert assumed.hours(reading, shape) == pytest.approx(1)
    written = Count(10, 10, tokens=4_000, new_tokens=480)
    context = 424
    expected = 4_000 / assumed.read_per_second(shape) + 480 / assumed.written_per_second(shape, context)
    assert assumed.hours(written, shape) == pytest.approx(expected / 3600)


def test_a_dose_grid_does_not_grow_with_the_tasks_and_everything_else_does():
    found = {"choices, degree 6": Count(60, 60, 6_000), "steering, 5 pairs": Count(850, 850, 9_000)}
    table = costs.hours_table(found, 10, Assumptions()).set_index("work")
    assert table["questions"].tolist() == [600, 850] and table["tokens"].tolist() == [60_000, 9_000]


def test_money_counts_a_written_token_for_every_exact_answer_and_every_sampled_one():
    found = {"choices": Count(100, 100, 20_000), "refusal": Count(8, 8, 1_000, 4 * 48), "capture": Count(1, 1, 50)}
    table = costs.money_table(found, 1).set_index("work")
    assert table.index.tolist() == ["choices", "refusal"]
    assert table["written"].tolist() == pytest.approx([100 / 1e6, (4 * 48 + 4) / 1e6])


def test_bytes_on_disk_are_those_of_a_store_and_weights_those_of_a_model(tmp_path):
    tasks, model = builtin_tasks()[:40], tiny("llama")
    path = tmp_path / "a.h5"
    capture(
        model, [task_question(task) for task in tasks], [t.id for t in tasks], path, layers=["all"], positions=["task_mean"]
    )
    rows = 40 * model.n_layers * model.d_model * 4
    assert rows <= path.stat().st_size < rows + 60_000  # ids, checksums and the header come on top
    shape = Shape(8e9, 32, 4096, 14336, 1024)
    assert shape.kv_bytes == 131_072
    memory = costs.memory_table().set_index("model")
    assert memory.loc["8B", "weights bf16"] == pytest.approx(16.06)


def test_the_command_prints_tables_and_one_object(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalModel, "load", classmethod(lambda cls, *_, **__: tiny("llama")))
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"id": task.id, "text": task.text}) + "\n" for task in builtin_tasks()[:30]))
    assert len(load_tasks(path)) == 30
    assert main(["costs", "--tasks", str(path), "--n", "24", "--sizes", "240", "--tflops", "312"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["bench"] == "costs" and found["work"]["tasks"] == 24 and found["machine"]["tflops"] == 312
    assert any("GPU-hours, 240 tasks" in line for line in table)
