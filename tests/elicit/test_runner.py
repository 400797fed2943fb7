"""The runner: asks only what the log does not know, keeps what it has when it is stopped, and reads texts anew."""

from dataclasses import replace

import pytest

from elicit import Context, ask, ask_views, builtin_tasks, choice
from interp import Intervention, random_directions
from store import Answer, MeasurementLog, Outcome, Sampling
from tests.conftest import tiny


class Scripted:
    """A respondent that is no LocalModel: the protocol is structural."""

    fingerprint = "scripted"

    def __init__(self, texts=("A",), stop_after=None):
        self.texts, self.stop_after, self.asked = texts, stop_after, 0

    def prompt_digest(self, question):
        return question.messages[0].content

    def score(self, questions, on_answer=None):
        answers = [Answer.exact(question, {"A": -0.1, "B": -3.0}) for question in questions]
        return [self._answer(number, answer, on_answer) for number, answer in enumerate(answers)]

    def generate(self, questions, on_answer=None):
        return [
            self._answer(number, Answer(Outcome.CHOSE, text=self.texts[number % len(self.texts)]), on_answer)
            for number, _ in enumerate(questions)
        ]

    def _answer(self, number, answer, on_answer):
        if self.stop_after is not None and self.asked == self.stop_after:
            raise KeyboardInterrupt
        self.asked += 1
        on_answer(number, answer)
        return answer


def test_asking_again_asks_the_model_nothing(pair_questions, tmp_path, monkeypatch):
    model = tiny("llama")
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        first = ask(pair_questions, model, log)
    monkeypatch.setattr(model.backend, "run", lambda *_, **__: pytest.fail("the model was asked"))
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        assert ask(pair_questions, model, log) == first
        assert ask(pair_questions[::-1], model, log) == first[::-1]


def test_the_same_question_twice_is_asked_once(pair_questions):
    respondent = Scripted()
    answers = ask([*pair_questions[:3], *pair_questions[:3]], respondent)
    assert respondent.asked == 3 and len(answers) == 6


def test_being_stopped_keeps_every_answer_and_going_on_asks_the_rest(pair_questions):
    log, respondent = MeasurementLog(), Scripted(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        ask(pair_questions, respondent, log)
    assert len(log) == 5
    respondent.stop_after = None
    assert len(ask(pair_questions, respondent, log)) == len(pair_questions)
    assert respondent.asked == len(pair_questions)


def test_a_failed_question_is_recorded_and_asked_again(pair_questions):
    class Failing(Scripted):
        def score(self, questions, on_answer=None):
            self.asked += len(questions)
            for number, _ in enumerate(questions):
                on_answer(number, Answer(Outcome.ERROR, error="no room"))

    log, respondent = MeasurementLog(), Failing()
    for _ in range(2):
        assert [answer.outcome for answer in ask(pair_questions[:2], respondent, log)] == [Outcome.ERROR] * 2
    assert respondent.asked == 4
    assert log.to_frame()["error"].tolist() == ["no room"] * 2


def test_sampled_texts_are_read_and_kept_as_they_were_said(pair_questions):
    log = MeasurementLog()
    questions = [replace(question, sampling=Sampling()) for question in pair_questions[:4]]
    answers = ask(questions, Scripted(texts=("B.", "A poem, perhaps", "I'm sorry, I can't.", "Task A")), log)
    assert [answer.outcome.value for answer in answers] == ["chose", "off_format", "refused", "chose"]
    assert [answer.choice for answer in answers] == ["B", None, None, "A"]
    assert log.to_frame()["text"].tolist() == ["B.", "A poem, perhaps", "I'm sorry, I can't.", "Task A"]


def test_the_minimum_mass_is_applied_when_an_answer_is_read(pair_questions):
    log = MeasurementLog()
    (lenient,) = ask(pair_questions[:1], Scripted(), log)
    (strict,) = ask([replace(pair_questions[0], minimum_mass=0.99)], Scripted(), log)
    assert (lenient.outcome, strict.outcome) == (Outcome.CHOSE, Outcome.OFF_FORMAT)
    assert lenient.log_probs == strict.log_probs and len(log) == 1


def test_views_asked_together_are_logged_apart_and_answered_as_if_alone(pair_questions):
    model, log = tiny("llama"), MeasurementLog()
    steer = random_directions(model.identity, model.d_model, 1, 1)[0].scaled(3.0)
    views = [model.steered(Intervention.apart(steer, dose)) for dose in (-0.5, 0.0, 0.5)]
    answers = ask_views(pair_questions[:3], views, log)
    assert len(log) == 9
    assert ask(pair_questions[:3], model, log) == answers[1]
    assert len(log) == 9
    for view, row in zip(views, answers, strict=True):
        for a, b in zip(ask(pair_questions[:3], view), row, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=5e-5)


def test_sampled_choices_of_the_embedded_model_follow_its_exact_probabilities(embedded):
    tasks = builtin_tasks()[:2]
    pair = [(tasks[0].id, tasks[1].id)]
    exact = choice.questions(tasks, pair)[:1]
    (probability,) = choice.comparisons(exact, ask(exact, embedded))["p_first"]
    sampled = choice.questions(tasks, pair, context=Context(sampling=Sampling(max_new_tokens=2, seed=1), n_draws=60))[:60]
    table = choice.comparisons(sampled, ask(sampled, embedded))
    chosen = table.loc[table["outcome"] == "chose", "p_first"]
    assert len(chosen) >= 50
    assert chosen.mean() == pytest.approx(probability, abs=0.2)
