"""Modes and templates: both orders, spans, labels and scales; refusals and off-format answers are not votes."""

import math

import pytest

from elicit import Context, Task, choice, rating, template, templates
from elicit.templates import TemplateError, check_templates, modes
from store import END_OF_TURN, Answer, Outcome, Sampling

TASKS = [Task("t1", "Sing a song."), Task("t2", "Add 3 and 4."), Task("t3", "Dance.")]


@pytest.mark.parametrize("wording", ["would_rather", "enjoy_more", "pick_one"])
@pytest.mark.parametrize(("labels", "names"), [("AB", ("A", "B")), ("12", ("1", "2"))])
def test_a_pair_is_asked_in_both_orders_with_its_tasks_where_the_spans_say(wording, labels, names):
    forward, backward = choice.questions(TASKS, [("t1", "t2")], wording=f"{wording},labels={labels}")
    assert (forward.measures["first"], forward.measures["second"]) == ("t1", "t2")
    assert (backward.measures["first"], backward.measures["second"]) == ("t2", "t1")
    for question, texts in ((forward, ("Sing a song.", "Add 3 and 4.")), (backward, ("Add 3 and 4.", "Sing a song."))):
        content = question.messages[0].content
        assert [content[span.start : span.end] for span in question.spans] == list(texts)
        assert [span.name for span in question.spans] == ["task_a", "task_b"]
        assert [option.label for option in question.options] == list(names)
        assert f"Task {names[0]}" in content and f"Task {names[1]}" in content


def test_pairs_that_cannot_be_asked_are_refused():
    with pytest.raises(KeyError, match="names task 'tx'"):
        choice.questions(TASKS, [("t1", "tx")])
    with pytest.raises(ValueError, match="paired with itself"):
        choice.questions(TASKS, [("t1", "t1")])
    with pytest.raises(TemplateError, match=r"no labels 'XY' .*; expected one of \['AB', '12', 'ordinal'\]"):
        choice.questions(TASKS, [("t1", "t2")], wording="would_rather,labels=XY")
    with pytest.raises(TemplateError, match=r"no phrasing 'nope' .*; expected one of \['would_rather'"):
        choice.questions(TASKS, [("t1", "t2")], wording="nope")


def test_only_choices_are_votes():
    asked = choice.questions(TASKS, [("t1", "t2"), ("t2", "t3")])
    answers = [
        Answer(Outcome.CHOSE, {"A": math.log(0.6), "B": math.log(0.2)}),
        Answer(Outcome.OFF_FORMAT, {"A": math.log(0.02), "B": math.log(0.01)}),
        Answer(Outcome.REFUSED, text="I cannot choose."),
        Answer(Outcome.CHOSE, choice="B", text="B"),
    ]
    table = choice.comparisons(asked, answers)
    assert table["outcome"].tolist() == ["chose", "off_format", "refused", "chose"]
    assert table.loc[0, "logit"] == pytest.approx(math.log(3))
    assert table.loc[0, "p_first"] == pytest.approx(0.75)
    assert table.loc[[1, 2], ["logit", "p_first"]].isna().all(axis=None)
    assert table.loc[1, "mass"] == pytest.approx(0.03)
    assert math.isnan(table.loc[3, "logit"]) and table.loc[3, "p_first"] == 0


def test_sampled_questions_come_in_draws_and_exact_ones_once():
    assert len(choice.questions(TASKS, [("t1", "t2")], context=Context(n_draws=5))) == 2
    sampled = choice.questions(TASKS, [("t1", "t2")], context=Context(sampling=Sampling(), n_draws=5))
    assert [question.draw for question in sampled] == [0, 1, 2, 3, 4] * 2
    rated = rating.questions(TASKS[:1], scale="likert_5", context=Context(sampling=Sampling(), n_draws=2))
    assert [question.draw for question in rated] == [0, 1]


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        ("yes_somewhat_no", {"yes": 1, "somewhat": 0.5, "no": 0}),
        ("likert_5", {str(n): n for n in range(1, 6)}),
        ("stated_10", {str(n): n for n in range(1, 11)}),
    ],
)
def test_a_rating_is_the_mean_of_the_whole_distribution(scale, values):
    (question,) = rating.questions(TASKS[:1], scale=scale)
    assert {option.label: template("rating", scale).scale[option.label] for option in question.options} == values
    weights = {label: place + 1 for place, label in enumerate(values)}
    total = 2 * sum(weights.values())
    answer = Answer(Outcome.CHOSE, {label: math.log(weight / total) for label, weight in weights.items()})
    row = rating.ratings([question], [answer]).iloc[0]
    expected = sum(values[label] * weight for label, weight in weights.items()) / sum(weights.values())
    assert row["mean"] == pytest.approx(expected)
    assert row["mass"] == pytest.approx(0.5)
    spread = sum((values[label] - expected) ** 2 * weight for label, weight in weights.items()) / sum(weights.values())
    assert row["sd"] == pytest.approx(math.sqrt(spread))
    assert row["entropy"] == pytest.approx(-sum(2 * w / total * math.log(2 * w / total) for w in weights.values()))


def test_numbers_are_scored_with_what_ends_them_and_words_are_not():
    for scale, terminated in (("likert_5", True), ("stated_10", True), ("yes_somewhat_no", False)):
        for option in template("rating", scale).options():
            assert (END_OF_TURN in option.terminators) is terminated


def test_rating_labels_have_one_target_a_scale_and_their_standardised_mean():
    questions = [q for scale in ("yes_somewhat_no", "likert_5") for q in rating.questions(TASKS, scale=scale)]
    probabilities = iter([0.9, 0.5, 0.1, 0.8, 0.3, 0.2])
    answers = []
    for question in questions:
        p, (low, *_, high) = next(probabilities), [option.label for option in question.options]
        answers.append(Answer(Outcome.CHOSE, {low: math.log(p), high: math.log(1 - p)}))
    table = rating.labels(rating.ratings(questions, answers))
    wide = table.pivot(index="task_id", columns="target", values="value")
    standard = (wide - wide.mean()) / wide.std(ddof=0)
    assert wide["self_report"].tolist() == pytest.approx(((standard["likert_5"] + standard["yes_somewhat_no"]) / 2).tolist())
    assert table["se"].isna().all()


def test_every_template_is_well_formed_and_every_mode_has_three():
    for mode in modes():
        assert check_templates(templates(mode)) >= 3
    with pytest.raises(TemplateError, match="no mode 'nope'"):
        templates("nope")
