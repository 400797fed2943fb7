"""Reading sampled text: doubt is never turned into a choice."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elicit import Context, Task, rating, template
from elicit.judged import read_by_judge
from elicit.parsing import read_text
from elicit.templates import surface_forms
from store import Answer, MeasurementLog, Message, Option, Outcome, Question, Sampling

LETTERS = tuple(Option(label, surface_forms(label)) for label in "AB")
ONE_TWO = tuple(Option(label, surface_forms(label)) for label in "12")
FIVE = template("rating", "likert_5").options()
TEN = template("rating", "stated_10").options()
YES = template("rating", "yes_somewhat_no").options()
CHOSE, OFF, REFUSED = Outcome.CHOSE, Outcome.OFF_FORMAT, Outcome.REFUSED


@pytest.mark.parametrize(
    ("options", "text", "outcome", "label"),
    [
        (LETTERS, "A", CHOSE, "A"),
        (LETTERS, " B.", CHOSE, "B"),
        (LETTERS, "**A**", CHOSE, "A"),
        (LETTERS, "(B)", CHOSE, "B"),
        (LETTERS, "b", CHOSE, "B"),
        (LETTERS, "B, because I like to sing.", CHOSE, "B"),
        (LETTERS, "A because it is shorter", CHOSE, "A"),
        (LETTERS, "I would pick task B.", CHOSE, "B"),
        (LETTERS, "My choice is: A", CHOSE, "A"),
        (LETTERS, 'I choose "B" here.', CHOSE, "B"),
        (LETTERS, "Option A. Option A is fun.", CHOSE, "A"),
        (LETTERS, "A poem would be nice.", OFF, None),
        (LETTERS, "A or B", OFF, None),
        (LETTERS, "Task A is fine, but I prefer task B.", CHOSE, "B"),
        (LETTERS, "Both sound lovely!", OFF, None),
        (LETTERS, "C", OFF, None),
        (LETTERS, "AB", OFF, None),
        (LETTERS, "", OFF, None),
        (LETTERS, "I'm sorry, I cannot choose between these.", REFUSED, None),
        (LETTERS, "As an AI, I have no preferences. A", REFUSED, None),
        (LETTERS, "I would rather not do either.", REFUSED, None),
        (ONE_TWO, "2", CHOSE, "2"),
        (ONE_TWO, "12", OFF, None),
        (ONE_TWO, "Task 1.", CHOSE, "1"),
        (FIVE, "4", CHOSE, "4"),
        (FIVE, "4.", CHOSE, "4"),
        (FIVE, "4/5", CHOSE, "4"),
        (FIVE, "4 out of 5", CHOSE, "4"),
        (FIVE, "On a scale of 1 to 5 I would say 4", CHOSE, "4"),
        (FIVE, "on a scale from 1 to 5, 2.", CHOSE, "2"),
        (FIVE, "very much", CHOSE, "5"),
        (FIVE, "3.5", OFF, None),
        (FIVE, "6", OFF, None),
        (FIVE, "-3", OFF, None),
        (FIVE, "2 or 3", OFF, None),
        (FIVE, "I'd give 850 points", OFF, None),
        (FIVE, "cinq", CHOSE, "5"),
        (FIVE, "My rating is 3, since it is average.", CHOSE, "3"),
        (TEN, "10", CHOSE, "10"),
        (TEN, "1", CHOSE, "1"),
        (TEN, "100", OFF, None),
        (TEN, "850", OFF, None),
        (TEN, "7/10", CHOSE, "7"),
        (TEN, "Rating: 8", CHOSE, "8"),
        (YES, "Yes.", CHOSE, "yes"),
        (YES, "no", CHOSE, "no"),
        (YES, "Somewhat, it depends.", CHOSE, "somewhat"),
        (YES, "Yes and no", OFF, None),
        (YES, "Nothing would please me more", OFF, None),
    ],
)
def test_replies_are_read_as_a_careful_person_would(options, text, outcome, label):
    assert read_text(text, options, truncated=False) == (outcome, label)


REPLIES = [json.loads(line) for line in (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
BAIL = (Option("🔄", ("🔄",)), Option("🟢", ("🟢",)))
CHOICES = {"choice_AB": "would_rather", "choice_12": "would_rather,labels=12", "choice_ordinal": "would_rather,labels=ordinal"}
CHOICES |= {"choice_xml": "would_rather,format=xml", "choice_tool": "would_rather,format=tool"}


def options_of(format: str) -> tuple[Option, ...]:
    if format == "bail_tag":
        return BAIL
    if format in CHOICES:
        return template("choice", CHOICES[format]).options()
    return template("rating", "bipolar_5" if format == "bipolar" else format).options()


@pytest.mark.parametrize("format", sorted({row["format"] for row in REPLIES}))
def test_hand_written_replies_are_never_misread_and_seldom_left_open(format):
    rows = [row for row in REPLIES if row["format"] == format]
    left_open = 0
    for row in rows:
        outcome, label = read_text(row["reply"], options_of(format), truncated=row["truncated"])
        if (outcome.value, label) == (row["outcome"], row["choice"]):
            continue
        assert label is None, f"{row['reply']!r} was read as {label}; expected {row['outcome']} {row['choice']}"
        assert row["outcome"] == "chose", f"{row['reply']!r} was read as {outcome}; expected {row['outcome']}"
        left_open += 1
    assert left_open <= 0.1 * len(rows)


def test_an_unreadable_text_that_was_cut_off_is_truncated():
    assert read_text("Well, thinking about", LETTERS, truncated=True) == (Outcome.TRUNCATED, None)
    assert read_text("B. I would", LETTERS, truncated=True) == (CHOSE, "B")
    assert read_text("Once upon a time", (), truncated=True) == (Outcome.TRUNCATED, None)
    assert read_text("The end.", (), truncated=False) == (CHOSE, None)


@given(st.text(max_size=40), st.sampled_from([LETTERS, ONE_TWO, FIVE, TEN, YES]), st.booleans())
def test_any_text_gets_an_outcome_and_a_label_only_with_a_choice(text, options, truncated):
    outcome, label = read_text(text, options, truncated=truncated)
    assert (label is not None) == (outcome is CHOSE)
    assert label is None or label in {option.label for option in options}


@given(st.sampled_from("AB"), st.sampled_from(["{}", " {}", "{}.", "**{}**", "({})", '"{}"', "Task {}", "{}\n"]))
def test_a_bare_label_is_read_in_any_dress(label, dress):
    assert read_text(dress.format(label), LETTERS, truncated=False) == (CHOSE, label)


def test_a_number_that_stops_short_could_become_another():
    assert read_text("My rating is 1", TEN, truncated=True) == (Outcome.TRUNCATED, None)
    assert read_text("My rating is 1", TEN, truncated=False) == (CHOSE, "1")
    assert read_text("My rating is 10", TEN, truncated=True) == (CHOSE, "10")
    assert read_text("1", FIVE, truncated=True) == (CHOSE, "1")


# ---- the judge, after the rules


class Judge:
    """Answers with fixed probabilities, and keeps what it was asked."""

    fingerprint = "judge"

    def __init__(self, **chances: float):
        self.chances, self.asked = chances, []

    def prompt_digest(self, question):
        return question.messages[0].content

    def score(self, questions, on_answer=None):
        for number, question in enumerate(questions):
            self.asked.append(question)
            given = {o.label: math.log(self.chances.get(o.label.replace(" ", "_"), 1e-6)) for o in question.options}
            on_answer(number, Answer.exact(question, given))

    generate = score


QUESTION = Question(
    (Message("user", "Which would you rather do? {reply} Task A or Task B"),),
    options=(Option("A", (" A", "A")), Option("B", (" B", "B"))),
    sampling=Sampling(),
    prefill="I would rather do Task",
)


@pytest.mark.parametrize(
    ("chances", "outcome", "choice"),
    [
        ({"A": 0.9, "B": 0.05}, Outcome.CHOSE, "A"),
        ({"A": 0.5, "B": 0.4}, Outcome.OFF_FORMAT, None),
        ({"none_of_them": 0.95}, Outcome.OFF_FORMAT, None),
        ({"A": 0.1}, Outcome.OFF_FORMAT, None),
    ],
)
def test_the_judge_reads_what_rules_leave_only_where_it_is_sure(chances, outcome, choice):
    unread = Answer(Outcome.OFF_FORMAT, text=" hmm, the musical {question} one")
    (answer,) = read_by_judge([QUESTION], [unread], judge := Judge(**chances))
    assert (answer.outcome, answer.choice, answer.text) == (outcome, choice, unread.text)
    (asked,) = judge.asked
    shown = {span.name: asked.messages[0].content[span.start : span.end] for span in asked.spans}
    assert shown == {
        "question": QUESTION.messages[0].content,
        "reply": "I would rather do Task hmm, the musical {question} one",
    }


def test_refusals_truncations_and_answers_are_not_judged():
    given = [
        Answer(Outcome.REFUSED, text="I cannot."),
        Answer(Outcome.TRUNCATED, text="well", truncated=True),
        Answer(Outcome.CHOSE, choice="B", text=" B"),
        Answer(Outcome.OFF_FORMAT, text="  "),
        Answer(Outcome.ERROR, error="too long"),
    ]
    judge = Judge(A=0.99)
    assert read_by_judge([QUESTION] * len(given), given, judge) == given and not judge.asked
    with pytest.raises(ValueError, match=r"certainty is 0.3; expected a probability above 0.5"):
        read_by_judge([], [], judge, certainty=0.3)


@pytest.mark.parametrize("scale", ["stated_10", "yes_somewhat_no"])
def test_the_real_model_judges_by_its_exact_probabilities_on_any_scale(embedded, scale):
    (question,) = rating.questions([Task("t", "Sing.")], scale=scale, context=Context(sampling=Sampling()))
    unread = Answer(Outcome.OFF_FORMAT, text=" what I have always said of it")
    log = MeasurementLog()
    (answer,) = read_by_judge([question], [unread], embedded, log, certainty=0.51)
    entry = log.to_frame().iloc[0]
    chances = {label: math.exp(value) for label, value in entry["log_probs"].items()}
    labels = {option.label for option in question.options}
    assert set(chances) == {*labels, "none of them"} and entry["mass"] == pytest.approx(sum(chances.values()))
    best = max(chances, key=chances.__getitem__)
    believed = best in labels and entry["mass"] >= 0.25 and chances[best] >= 0.51 * entry["mass"]
    assert (answer.outcome, answer.choice) == ((CHOSE, best) if believed else (OFF, None))
