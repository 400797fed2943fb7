"""The commands beside the experiments, on real files and the real model."""

import pandas as pd
import pytest

from elicit import Task, ask, choice
from experiments.cli import main
from experiments.commands.inspect import inspect
from store import MeasurementLog

TASKS = [Task("t1", "Sing a song."), Task("t2", "Add 3 and 4."), Task("t3", "Dance.")]


@pytest.fixture
def log(tmp_path, embedded):
    with MeasurementLog(tmp_path / "log.sqlite") as opened:
        ask(choice.questions(TASKS, [("t1", "t2")]), embedded, opened)
        yield opened


def test_templates_are_listed_shown_and_checked(capsys):
    assert main(["templates", "list", "choice"]) == 0
    assert "language     en, fr, es" in capsys.readouterr().out
    assert main(["templates", "show", "choice:would_rather,labels=12,format=xml"]) == 0
    shown = capsys.readouterr().out
    assert "Task 1: {task_a}" in shown and "1 = 1: ' 1', '1', ended by '</choice>'" in shown
    assert main(["templates", "check"]) == 0
    assert "rating: 4,896 templates are well formed" in capsys.readouterr().out
    assert main(["templates", "show", "choice:nope"]) == 1
    assert "no phrasing 'nope'" in capsys.readouterr().err
    assert main(["templates", "check", "absent.yaml"]) == 1
    assert "There is no file of wordings absent.yaml" in capsys.readouterr().err


def test_a_log_is_summarised_exported_and_merged(log, tmp_path, capsys):
    assert main(["log", "summary", log.path]) == 0
    out = capsys.readouterr().out
    assert "would_rather" in out and out.splitlines()[-1].startswith("2 answers, 20")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert main(["log", "export", log.path, str(tmp_path / "out.parquet")]) == 0
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 2
    assert main(["log", "merge", log.path, str(tmp_path / "all.sqlite")]) == 0
    assert "2 new answers" in capsys.readouterr().out
    assert main(["log", "merge", log.path, str(tmp_path / "all.sqlite")]) == 0
    assert "0 new answers" in capsys.readouterr().out
    assert main(["log", "summary", str(tmp_path / "absent.sqlite")]) == 1
    assert "There is no measurement log" in capsys.readouterr().err
    assert not (tmp_path / "absent.sqlite").exists()


def test_an_answer_is_shown_token_by_token(log, embedded):
    key = log.to_frame()["key"][0]
    entry = log.find(key[:12])
    shown = inspect(entry, embedded)
    rendered = embedded.render(entry.question)
    assert f"  {rendered.decision:4d}  " in shown and shown.count("task_a") >= 3 and "decision" in shown
    (_, probability), *_ = embedded.next_tokens(entry.question, 20)
    assert f"{probability:.6f}" in shown and f"mass        {entry.answer.mass:.4f}" in shown
    # One-token options without terminators: the likeliest of them is among the next tokens with its own probability.
    likeliest = max(entry.answer.log_probs.values())
    assert any(abs(p - 2.718281828459045**likeliest) < 0.02 for _, p in embedded.next_tokens(entry.question, 20))
    with pytest.raises(KeyError, match=r"No key in .* begins with 'zz'; expected one"):
        log.find("zz")
    with pytest.raises(KeyError, match="Several keys"):
        log.find("")
