"""The measurement log: what was asked is never asked again, and whatever could change an answer changes its key."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from elicit import rating
from elicit.tasks import Task
from store import Answer, MeasurementLog, Outcome, Question, Sampling
from store.measurements import Entry, answer_key
from tests.conftest import pair_question, tiny

QUESTION = pair_question("Sing.", "Dance.", measures={"mode": "choice", "first": "a", "second": "b"})
EXACT = Answer(Outcome.CHOSE, {"A": -0.5, "B": -1.2}, refusal_log_prob=-6.0)


def test_an_answer_comes_back_as_it_was_given(tmp_path):
    sampled = Answer(Outcome.OFF_FORMAT, text="Ünsure 🙂", truncated=True)
    failed = Answer(Outcome.ERROR, error="too long")
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        log.put([Entry("k1", "m", QUESTION, EXACT), Entry("k2", "m", QUESTION, sampled), Entry("k3", "m", QUESTION, failed)])
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        assert log.get(["k1", "k2", "k3", "k4"]) == {"k1": EXACT, "k2": sampled}
        assert log.questions(["k1"])["k1"] == QUESTION
        assert len(log) == 3
        log.put([Entry("k3", "m", QUESTION, EXACT)])
        assert log.get(["k3"]) == {"k3": EXACT}


def test_the_log_is_a_table_and_a_parquet_file(tmp_path):
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        log.put([Entry("k1", "m", QUESTION, EXACT)])
        frame = log.to_frame()
        assert frame.loc[0, ["mode", "first", "second", "outcome"]].tolist() == ["choice", "a", "b", "chose"]
        assert frame.loc[0, "log_probs"] == {"A": -0.5, "B": -1.2, "<refusal>": -6.0}
        assert frame.loc[0, "mass"] == pytest.approx(EXACT.mass)
        log.export(tmp_path / "log.parquet")
    assert pd.read_parquet(tmp_path / "log.parquet").loc[0, "key"] == "k1"


def test_everything_that_could_change_an_answer_changes_its_key():
    model = tiny("llama")
    sampled = replace(QUESTION, sampling=Sampling())
    questions = {
        "base": QUESTION,
        "text": pair_question("Sing!", "Dance."),
        "prefill": replace(QUESTION, prefill="Tasks"),
        "system": replace(QUESTION, system=""),
        "system text": replace(QUESTION, system="Be."),
        "options": replace(QUESTION, options=QUESTION.options[:1]),
        "forms": replace(QUESTION, options=(replace(QUESTION.options[0], forms=("A",)), QUESTION.options[1])),
        "terminators": replace(QUESTION, options=(replace(QUESTION.options[0], terminators=(".",)), QUESTION.options[1])),
        "spans": replace(QUESTION, spans=QUESTION.spans[:1]),
        "sampled": sampled,
        "temperature": replace(QUESTION, sampling=Sampling(temperature=0.5)),
        "top_p": replace(QUESTION, sampling=Sampling(top_p=0.5)),
        "length": replace(QUESTION, sampling=Sampling(max_new_tokens=5)),
        "seed": replace(QUESTION, sampling=Sampling(seed=1)),
        "draw": replace(sampled, draw=1),
        "refusals": replace(QUESTION, refusals=("C",)),
    }
    keys = {name: answer_key(model.fingerprint, model.prompt_digest(each), each) for name, each in questions.items()}
    keys["respondent"] = answer_key("another", model.prompt_digest(QUESTION), QUESTION)
    assert len(set(keys.values())) == len(keys)
    same = [replace(QUESTION, measures={"other": "name"}), replace(QUESTION, minimum_mass=0.3)]
    assert {answer_key(model.fingerprint, model.prompt_digest(each), each) for each in same} == {keys["base"]}


def test_a_question_survives_json():
    question = replace(rating.questions([Task("t", "Sing.")], scale="stated_10")[0], sampling=Sampling(seed=3), draw=2)
    assert Question.from_dict(question.to_dict()) == question


def test_a_file_that_is_no_log_is_named(tmp_path):
    (tmp_path / "log.sqlite").write_text("something else entirely, and long enough to be looked at" * 40)
    with pytest.raises(ValueError, match=r"cannot be used as a measurement log.*SQLite file written by penchant"):
        MeasurementLog(tmp_path / "log.sqlite")


def test_a_log_of_a_later_version_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "log.sqlite")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ValueError, match="version 99; this penchant reads version 2"):
        MeasurementLog(tmp_path / "log.sqlite")


def test_a_log_of_the_first_version_is_brought_up_to_date_and_merged(tmp_path):
    """Version 1 had neither bounds nor spread."""
    old = tmp_path / "old.sqlite"
    with MeasurementLog(old) as log:
        log.put([Entry("k1", "m", QUESTION, EXACT)])
    connection = sqlite3.connect(old)
    for column in ("bounds", "spread"):
        connection.execute(f"ALTER TABLE answers DROP COLUMN {column}")
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    bounded = replace(EXACT, bounds={"B": -1.2}, spread={"A": 0.01, "B": 0.02})
    with MeasurementLog(tmp_path / "new.sqlite") as log:
        log.put([Entry("k2", "m", QUESTION, bounded)])
        assert log.merge(old) == 1
        assert log.get(["k1", "k2"]) == {"k1": EXACT, "k2": bounded}
        assert log.find("k2").answer == bounded and bounded.unlisted == ("B",)
        assert log.to_frame()["bounds"].tolist() == [{"B": -1.2}, None]
        log.export(tmp_path / "log.parquet")


def test_others_can_read_while_one_writes(tmp_path):
    with MeasurementLog(tmp_path / "log.sqlite") as writer, MeasurementLog(tmp_path / "log.sqlite") as reader:
        writer.put([Entry("k1", "m", QUESTION, EXACT)])
        assert reader.get(["k1"]) == {"k1": EXACT}


def test_a_log_that_another_process_keeps_locked_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("store.measurements._PATIENCE", 0.1)
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        other = sqlite3.connect(tmp_path / "log.sqlite")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match=r"log\.sqlite cannot be written \(database is locked\).*penchant log merge"):
            log.put([Entry("k1", "m", QUESTION, EXACT)])
        other.rollback()
        log.put([Entry("k1", "m", QUESTION, EXACT)])
        other.close()


def test_many_processes_read_while_one_writes(tmp_path):
    """Readers in processes of their own see whole transactions only, and never block the writer."""
    path = tmp_path / "log.sqlite"
    code = (
        "import sys; from store import MeasurementLog\n"
        "counts = set()\n"
        "while not counts or max(counts) < 400:\n"
        "    with MeasurementLog(sys.argv[1]) as log: counts.add(len(log.get([f'k{n}' for n in range(400)])))\n"
        "assert all(count % 40 == 0 for count in counts), counts"
    )
    MeasurementLog(path).close()
    readers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    with MeasurementLog(path) as writer:
        for start in range(0, 400, 40):
            writer.put([Entry(f"k{n}", "m", QUESTION, EXACT) for n in range(start, start + 40)])
    assert [reader.wait(timeout=60) for reader in readers] == [0, 0, 0]


def test_mass_and_distribution_come_from_raw_log_probabilities():
    assert EXACT.mass == pytest.approx(0.60653 + 0.30119, abs=1e-4)
    assert EXACT.distribution()["A"] == pytest.approx(0.66819, abs=1e-4)
    with pytest.raises(ValueError, match="no option probabilities"):
        Answer(Outcome.CHOSE, text="A").distribution()
