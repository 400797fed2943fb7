"""Tasks: the built-in set, files with problems named by line, and samples that are fair and repeatable."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from elicit import Task, TaskError, builtin_tasks, load_tasks, read_ids, sample_tasks, select_tasks

SHARED = Path(__file__).parents[3] / "shared" / "tasks"

ROWS = [{"id": "t1", "text": "Sing, {please}.", "origin": "own", "topic": "music"}, {"id": "t2", "text": 'Say "hi"\nto her.'}]


def test_the_builtin_set_has_forty_tasks_or_more_of_each_origin_all_different():
    tasks = builtin_tasks()
    counts = Counter(task.origin for task in tasks)
    assert set(counts) == {"math", "instruction", "chat", "creative", "harmful", "dilemma"}
    assert min(counts.values()) >= 40
    assert len({task.id for task in tasks}) == len({task.text for task in tasks}) == len(tasks)
    assert all(task.topic for task in tasks)
    assert all(len({task.topic for task in tasks if task.origin == origin}) >= 6 for origin in counts)


def test_length_does_not_give_the_origin_of_builtin_tasks_away():
    words = pd.DataFrame([(task.origin, len(task.text.split())) for task in builtin_tasks()], columns=["origin", "words"])
    medians = words.groupby("origin")["words"].median()
    assert medians.max() - medians.min() <= words["words"].std()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tasks_are_read_from_every_kind_of_file(tmp_path, kind):
    path = tmp_path / f"tasks.{kind}"
    match kind:
        case "jsonl":
            path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
        case "csv":
            pd.DataFrame(ROWS).to_csv(path, index=False)
        case "parquet":
            pd.DataFrame(ROWS).to_parquet(path)
    first, second = load_tasks(path)
    assert (first.id, first.text, first.topic) == ("t1", "Sing, {please}.", "music")
    assert (second.id, second.text, second.origin) == ("t2", 'Say "hi"\nto her.', "own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no tasks"),
        ("\n\n", "has no tasks"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "line 2: id 'a' was used on line 1 already"),
        ('{"id": "a", "text": "x"}\n\n{"id": "b", "text": "  "}', "line 3: text is empty"),
        ('{"id": "a", "text": 7}', "line 1: text is 7; expected a string"),
        ('{"text": "x"}', "line 1: there is no 'id'; it has 'text'"),
        ('{"id": null, "text": "x"}', "line 1: id is None; expected a string"),
        ('{"id": "a", "prompt": "x"}', "line 1: there is no 'text'; it has 'id', 'prompt'"),
        ('{"id": "a"', "line 1: not JSON"),
        ("[1]", r"line 1: expected an object, got \[1\]"),
    ],
)
def test_problems_in_a_task_file_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(TaskError, match=message):
        load_tasks(path)


def test_line_numbers_in_csv_count_lines_and_not_rows(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text('id,text\na,"two\nlines"\nb,\n')
    with pytest.raises(TaskError, match="line 4: text is empty"):
        load_tasks(path)


def test_a_text_with_commas_outside_quotes_in_csv_is_an_error_rather_than_half_a_text(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text("id,text,origin\na,Add one, two and three.,sums\nb,Sing.,songs\n")
    with pytest.raises(TaskError, match="line 2: 4 fields in 3 columns; quote texts with commas"):
        load_tasks(path)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(TaskError, match=r"no task file .*absent\.jsonl"):
        load_tasks(tmp_path / "absent.jsonl")
    (tmp_path / "tasks.txt").write_text("x")
    with pytest.raises(TaskError, match=r"\.txt file; expected \.jsonl, \.csv or \.parquet"):
        load_tasks(tmp_path / "tasks.txt")


def test_samples_are_stratified_repeatable_and_nested():
    tasks = builtin_tasks()
    small, large = sample_tasks(tasks, 3, seed=1), sample_tasks(tasks, 9, seed=1)
    assert Counter(task.origin for task in small) == dict.fromkeys({task.origin for task in tasks}, 3)
    assert small == sample_tasks(tasks[::-1], 3, seed=1)
    assert {task.id for task in small} < {task.id for task in large}
    assert small != sample_tasks(tasks, 3, seed=2)
    assert {task.origin for task in sample_tasks(tasks, 2, origins=["math", "chat"])} == {"math", "chat"}


def test_samples_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="43 tasks of origin 'chat' were asked for; there are 42"):
        sample_tasks(builtin_tasks(), 43)
    with pytest.raises(ValueError, match="no tasks of origin 'sport'; expected one of"):
        sample_tasks(builtin_tasks(), 1, origins=["sport"])


def test_tasks_are_chosen_and_left_out_by_files_of_ids(tmp_path):
    tasks = [Task(name, name) for name in ("t1", "t2", "t3")]
    (tmp_path / "ids.txt").write_text("t1  # the first\n\nt3\n")
    ids = read_ids(tmp_path / "ids.txt")
    assert ids == ["t1", "t3"]
    assert [task.id for task in select_tasks(tasks, include=ids)] == ["t1", "t3"]
    assert [task.id for task in select_tasks(tasks, include=ids, exclude=["t3", "t9"])] == ["t1"]
    with pytest.raises(
        TaskError, match=r"1 of \d ids to include are not among the 3 tasks, for instance 't9'; tasks are called like '"
    ):
        select_tasks(tasks, include=["t1", "t9"])
    with pytest.raises(TaskError, match="None of the 1 ids to exclude"):
        select_tasks(tasks, exclude=["t9"])
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(TaskError, match="has no task ids"):
        read_ids(tmp_path / "none.txt")


@pytest.mark.skipif(not SHARED.exists(), reason="the real task texts are not beside this project")
def test_real_task_files_are_read_whole():
    tasks = {name: load_tasks(SHARED / f"{name}.jsonl") for name in ("wildchat", "bailbench", "stress_test")}
    assert {name: len(part) for name, part in tasks.items()} == {"wildchat": 2011, "bailbench": 1630, "stress_test": 500}
    everything = [task for part in tasks.values() for task in part]
    sample = sample_tasks(everything, 20, seed=1)
    assert len(sample) == 60 and {task.origin for task in sample} == set(tasks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('id,text\na,"Write a haiku about moss.\nb,Write another.\n', r"line 2: .* perhaps a quote that is never closed"),
        ('id,text\na,One.\n"b"c,Two.\n', r"line 3: .* is not CSV"),
    ],
)
def test_a_quote_that_does_not_close_swallows_no_tasks(tmp_path, text, message):
    path = tmp_path / "tasks.csv"
    path.write_text(text)
    with pytest.raises(TaskError, match=message):
        load_tasks(path)


def test_a_file_that_is_not_utf8_is_named_with_the_way_out(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_bytes("id,text\na,Order a café.\n".encode("latin-1"))
    for read in (load_tasks, read_ids):
        with pytest.raises(TaskError, match=r"tasks.csv is not UTF-8 .it has the byte 0xe9.; save it as UTF-8"):
            read(path)
