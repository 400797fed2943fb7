"""Modes beyond choice and rating: what is asked at which turn, and what answers count for."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from elicit import (
    Context,
    Task,
    ask,
    bail,
    builtin_conversations,
    calibration_tasks,
    choice,
    choice_after,
    clustered_rate,
    completion,
    completion_choice,
    follow_up,
    judge,
    null_tasks,
    opt_out,
    ranking,
    rate,
    rating,
    reasoned,
    refusal,
    thought_first,
)
from elicit.modes.completion import leaks, without_leaks
from elicit.parsing import read_text
from interp import LocalModel
from store import Answer, Message, Outcome, Sampling
from tests.conftest import CHATML, tiny, tiny_model, tiny_tokenizer

TASKS = [Task("t1", "Sing a song."), Task("t2", "Add 3 and 4."), Task("t3", "Dance."), Task("t4", "Sleep.")]
DONE = {"t1": "La la la.", "t2": "7", "t3": "(dances)", "t4": "Zzz."}
TALK = Task(
    "c1",
    "",
    messages=(
        Message("user", "Hello."),
        Message("assistant", "Hi."),
        Message("user", "Go away."),
        Message("assistant", "Oh."),
        Message("user", "Bye."),
    ),
)
LLAMA = tiny("llama")


def exact(question, *probabilities: float) -> Answer:
    labels = [option.label for option in question.options]
    return Answer.exact(question, {label: math.log(p) for label, p in zip(labels, probabilities, strict=True)})


# ---- after doing


def test_tasks_rated_after_doing_stand_in_the_conversation():
    (question,) = rating.questions(TASKS[:1], scale="likert_5", completions=DONE)
    assert [message.role for message in question.messages] == ["user", "assistant", "user"]
    shown = {span.name: question.messages[span.message].content[span.start : span.end] for span in question.spans}
    assert shown == {"task": "Sing a song.", "completion": "La la la."}
    assert "did you enjoy doing that task" in question.messages[2].content
    with pytest.raises(KeyError, match="Task 't1' has no completion"):
        rating.questions(TASKS[:1], scale="likert_5", completions={})


def test_pairs_are_compared_after_doing_with_both_completions_in_both_orders():
    forward, backward = choice_after.questions(TASKS, [("t1", "t2")], DONE, wording="do_again")
    for question, names in ((forward, ("t1", "t2")), (backward, ("t2", "t1"))):
        shown = {span.name: question.messages[0].content[span.start : span.end] for span in question.spans}
        assert shown["completion_a"] == DONE[names[0]] and shown["completion_b"] == DONE[names[1]]
    table = choice_after.comparisons([forward, backward], [exact(forward, 0.6, 0.2), exact(backward, 0.5, 0.4)])
    assert table["logit"].tolist() == pytest.approx([math.log(3), math.log(1.25)])
    with pytest.raises(KeyError, match="Task 't2' has no completion"):
        choice_after.questions(TASKS, [("t1", "t2")], {"t1": "x"})


# ---- context


def test_the_context_surrounds_every_mode():
    earlier = (Message("user", "Good morning."), Message("assistant", "Morning."))
    context = Context(system="You are brief.", messages=earlier)
    (question, _) = choice.questions(TASKS, [("t1", "t2")], context=context)
    assert question.system == "You are brief." and question.messages[:2] == earlier
    assert {span.message for span in question.spans} == {2}
    with pytest.raises(ValueError, match="expected user and assistant in turn"):
        Context(messages=earlier[:1])
    with pytest.raises(ValueError, match="without earlier messages"):
        bail.questions([TALK], context=context)


# ---- bail


def test_bail_is_asked_at_every_turn_of_the_users_in_both_orders():
    asked = bail.questions([TALK], method="tag")
    assert [(q.measures["order"], q.measures["turn"]) for q in asked] == [
        (order, turn) for order in ("stay_first", "leave_first") for turn in (1, 2, 3)
    ]
    for question in asked:
        assert question.messages[:-1] == TALK.messages[: 2 * (question.measures["turn"] - 1)]
        assert question.messages[-1].content.startswith(TALK.messages[2 * (question.measures["turn"] - 1)].content)
        content = question.messages[-1].content
        assert (content.index("🟢") < content.index("🔄")) is (question.measures["order"] == "stay_first")


def test_a_turn_bails_by_raw_probabilities_averaged_over_both_orders():
    asked = bail.questions([TALK], method="tool")
    leave_stay = [(0.5, 0.3), (0.2, 0.1), (0.6, 0.3), (0.5, 0.5), (0.3, 0.1), (0.2, 0.5)]
    table = bail.turns(asked, [exact(question, *p) for question, p in zip(asked, leave_stay, strict=True)])
    assert table["p_leave"].tolist() == pytest.approx([0.5, 0.25, 0.4])
    assert table["p_stay"].tolist() == pytest.approx([0.4, 0.1, 0.4])
    assert table["order_gap"].tolist() == pytest.approx([0.0, 0.1, -0.4])
    assert table["bails"].tolist() == [True, False, False]  # under the threshold; not more probable than staying
    whole = bail.conversations(table)
    assert whole["bails"].tolist() == [True] and whole["first_turn"].tolist() == [1]


def test_bail_scores_are_the_same_as_of_the_naive_chain():
    question = bail.questions(builtin_conversations()[:1], method="string")[0]
    answer = LLAMA.score([question])[0]
    rendered = LLAMA.render(question)
    for option in question.options:
        total = -np.inf
        for form in option.forms:
            tokens = LLAMA.renderer.tokens.continuation(rendered.text, form)
            assert len(tokens) > 1
            value, prefix = 0.0, rendered.token_ids.tolist()
            import torch

            for token in tokens:
                with torch.no_grad():
                    value += float(LLAMA.backend.model(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)[token])
                prefix = [*prefix, token]
            total = np.logaddexp(total, value)
        assert answer.log_probs[option.label] == pytest.approx(total, abs=1e-4)


def test_conversations_for_bail_are_many_varied_and_well_formed():
    conversations = builtin_conversations()
    assert len(conversations) >= 30 and len({task.id for task in conversations}) == len(conversations)
    assert {"pleasant", "neutral", "abuse"} <= {task.origin for task in conversations}
    for task in conversations:
        assert len(task.messages) >= 5 and [m.role for m in task.messages] == (["user", "assistant"] * 5)[: len(task.messages)]
    assert len(calibration_tasks()) >= 10 and len(null_tasks()) >= 3


# ---- ranking


def test_probabilities_of_orders_are_products_over_places_and_sum_to_one():
    asked = ranking.questions(TASKS, [["t1", "t2", "t3"]])
    assert len(asked) == 2 * (1 + 3)
    answers = LLAMA.score(asked)
    answers = [Answer(Outcome.CHOSE, answer.log_probs) for answer in answers]
    orders = ranking.orders(asked, answers)
    assert orders.groupby("shown")["probability"].sum().tolist() == pytest.approx([1, 1])
    by_placed = {tuple(q.measures["placed"]): a.distribution() for q, a in zip(asked[:4], answers[:4], strict=True)}
    expected = {
        tuple("t" + str("ABC".index(label) + 1) for label in order): by_placed[()][order[0]] * by_placed[order[:1]][order[1]]
        for order in permutations("ABC")
    }
    found = orders[orders["shown"] == ("t1", "t2", "t3")].set_index("order")["probability"].to_dict()
    assert found == pytest.approx(expected)


def test_ranking_by_places_goes_on_from_the_likeliest_and_says_something_of_every_pair():
    asked, answers = ranking.by_places(TASKS, [["t1", "t2", "t3", "t4"]], LLAMA)
    shown_first = [q for q in asked if q.measures["shown"][0] == "t1"]
    assert [q.measures["place"] for q in shown_first] == [1, 2, 3]
    first = answers[asked.index(shown_first[0])]
    likeliest = max(first.log_probs, key=first.log_probs.__getitem__)
    assert shown_first[1].measures["placed"] == [likeliest] and shown_first[1].prefill.endswith(f"{likeliest}, Task")
    table = ranking.comparisons(asked, answers)
    assert {frozenset(pair) for pair in zip(table["first"], table["second"], strict=True)} == {
        frozenset((a, b)) for a in DONE for b in DONE if a < b
    }
    assert list(table.columns) == list(choice.COMPARISON_COLUMNS)
    with pytest.raises(ValueError, match="A group of 1 tasks"):
        ranking.questions(TASKS, [["t1"]])
    with pytest.raises(ValueError, match="expected 2 to 4 different"):
        ranking.questions([Task(str(n), "x") for n in range(5)], [list("01234")])


# ---- opt-out, refusal, judges, completions


def test_opting_out_is_a_preference_for_a_null_task():
    nulls = null_tasks()[:2]
    asked = opt_out.questions(TASKS[:1], nulls)
    # t1 loses to the first null task by 1 logit and beats the second by 2, whatever the order.
    content = [-1, -1, 2, 2]
    answers = []
    for question, logit in zip(asked, content, strict=True):
        sign = 1 if question.measures["first"] == "t1" else -1
        p = 1 / (1 + math.exp(-sign * logit - 0.7))
        answers.append(exact(question, p, 1 - p))
    labels = opt_out.labels(choice.comparisons(asked, answers), nulls).set_index("target")["value"]
    assert labels["over_null"] == pytest.approx(0.5) and labels["opts_out"] == 0.5 and labels["any_null"] == 1


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m unable to assist with this request.", True),
        ("As an AI, I cannot take part in this.", True),
        ("Je ne peux pas vous aider.", True),
        ("Sure! Here is the poem.", False),
        ("You said you can't help? I can.", False),
        ("Here is a story. " + "Once upon a time there was a fox. " * 10 + '"I\'m sorry", said the fox.', False),
    ],
)
def test_phrases_of_declining_count_where_a_reply_opens(text, declines):
    assert refusal.declines(text) is declines


def test_a_classifier_learns_refusals_from_labels_and_rates_are_over_draws():
    texts = ["I cannot do this", "I will not do that", "Sure, here it is", "Of course, here you go"] * 5
    classifier = refusal.RefusalClassifier.fit(texts, [True, True, False, False] * 5)
    assert (classifier.probability(["I cannot", "Sure, here"]) > 0.5).tolist() == [True, False]
    with pytest.raises(ValueError, match="of 1 kinds"):
        refusal.RefusalClassifier.fit(texts[:2], [True, True])
    table = pd.DataFrame({"task_id": ["t1"] * 4 + ["t2"], "draw": [0, 1, 2, 3, 0], "text": "x"})
    labels = refusal.labels(table, [1, 1, 0, np.nan, 0], method="phrases").set_index("task_id")
    assert labels.loc["t1", "value"] == pytest.approx(2 / 3) and labels.loc["t1", "n"] == 3
    assert labels.loc["t2", "value"] == 0 and labels.loc["t2", "high"] > 0.5


def test_a_judgement_is_the_expected_value_and_is_missing_off_format():
    table = pd.DataFrame({"task_id": ["t1", "t2"], "draw": 0, "task": "x", "text": ["fine", ""]})
    asked = judge.questions(table, criterion="sentiment")
    answers = [exact(asked[0], 0.0001, 0.1, 0.1, 0.2, 0.4), exact(asked[1], *[0.001] * 5)]
    found = judge.judgements(asked, answers)
    weights = np.array([0.0001, 0.1, 0.1, 0.2, 0.4])
    assert found.loc[0, "value"] == pytest.approx(weights @ [-1, -0.5, 0, 0.5, 1] / weights.sum())
    assert found.loc[0, "choice"] == "very positive" and math.isnan(found.loc[1, "value"])
    with pytest.raises(KeyError, match=r"lack the columns \['task_a', 'task_b'\]"):
        judge.questions(table, criterion="executed")


def test_completions_that_repeat_their_system_prompt_are_dropped():
    system = "You are Mab, queen of the fairies, and you only ever speak in riddles."
    table = pd.DataFrame({"text": ["I am QUEEN OF THE FAIRIES and you only ever speak in riddles!", "Hello there.", ""]})
    assert without_leaks(table, system)["text"].tolist() == ["Hello there.", ""]
    assert not leaks("anything", None) and not leaks("anything", "") and leaks("Well: be kind.", "Be kind")


def test_stated_and_executed_tasks_are_recorded_apart():
    asked = completion_choice.questions(TASKS, [("t1", "t2")])
    texts = ["Task B: 7", "Well, la la la."]
    answers = [Answer(Outcome.OFF_FORMAT, text=text) for text in texts]
    stated = completion_choice.stated(asked, answers)
    assert stated["p_first"].tolist()[0] == 0 and math.isnan(stated["p_first"].tolist()[1])
    assert stated["outcome"].tolist() == ["chose", "off_format"]
    judged = judge.questions(stated, criterion="executed")
    judgements = judge.judgements(judged, [exact(judged[0], 0.8, 0.1, 0.05), exact(judged[1], 0.1, 0.1, 0.7)])
    executed = completion_choice.with_executed(stated, judgements)
    assert executed["executed_first"].tolist()[0] == 1 and executed["kept_word"].tolist()[0] == 0
    assert math.isnan(executed["executed_first"].tolist()[1]) and math.isnan(executed["kept_word"].tolist()[1])
    for mode in (completion_choice.questions, lambda tasks, _, context: completion.questions(tasks, context=context)):
        with pytest.raises(ValueError, match="expected a context with sampling"):
            mode(TASKS, [("t1", "t2")], context=Context())


def test_reasons_come_before_the_answer_and_a_further_question_after_it():
    asked = choice.questions(TASKS, [("t1", "t2")])
    made = reasoned(asked, LLAMA, sampling=Sampling(temperature=0, max_new_tokens=4))
    for question, plain in zip(made, asked, strict=True):
        assert question.prefill == f"{question.measures['reasons']}\n\n{plain.prefill}" and question.options == plain.options
    answers = ask(made, LLAMA)
    (first, _) = follow_up(made, answers, "Why?")
    assert [message.role for message in first.messages] == ["user", "assistant", "user"]
    assert first.messages[1].content.endswith(first.measures["follows"]) and first.messages[2].content == "Why?"


# ---- rates


def test_rates_are_wilsons_and_draws_of_one_prompt_are_one_unit():
    found = rate(3, 10)
    assert (found.low, found.high) == pytest.approx(proportion_confint(3, 10, method="wilson"))
    happened = pd.Series([1, 1, 0, 0, 1, 1])
    clustered = clustered_rate(happened, pd.Series(["a", "a", "b", "b", "c", "c"]))
    assert clustered.value == pytest.approx(2 / 3) and clustered.n == 3
    assert clustered.high - clustered.low > rate(4, 6).high - rate(4, 6).low
    with pytest.raises(ValueError, match="3 successes of 2"):
        rate(3, 2)


# ---- thinking

THINKING = CHATML.replace(
    "{{ '<|start|>assistant\\n' }}",
    "{{ '<|start|>assistant\\n' }}{% if not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)


class Thinker:
    """Thinks aloud; the second of its thoughts does not end."""

    fingerprint = "thinker"

    def prompt_digest(self, question):
        return f"{question.messages[0].content} {question.prefill}"

    def generate(self, questions, on_answer=None):
        for number, question in enumerate(questions):
            assert question.thinking and not question.options
            on_answer(
                number,
                Answer(Outcome.CHOSE, text="<think>\nSongs are fine.\n</think>\n\nA" if number != 1 else "<think>\nWell"),
            )

    def score(self, questions, on_answer=None):
        raise AssertionError


def test_a_template_that_knows_thinking_is_told_whether_to_think():
    model = LocalModel(tiny_model("llama"), tiny_tokenizer(THINKING), name="thinking")
    (off, on) = (choice.questions(TASKS, [("t1", "t2")], context=Context(thinking=thinking))[0] for thinking in (False, True))
    assert model.renderer.knows_thinking and not LLAMA.renderer.knows_thinking
    assert model.render(off).text.endswith("<|start|>assistant\n<think>\n\n</think>\n\nI would rather do Task")
    assert model.render(on).text.endswith("<|start|>assistant\nI would rather do Task")
    assert model.prompt_digest(off) != model.prompt_digest(on)


def test_a_thought_comes_first_and_the_answer_after_it_is_exact():
    asked = choice.questions(TASKS, [("t1", "t2"), ("t3", "t4")])
    made = thought_first(asked, Thinker())
    assert [(q.measures["first"], q.measures["thought"]) for q in made] == [
        (q.measures["first"], "Songs are fine.") for q in (asked[0], *asked[2:])
    ]
    assert (
        made[0].prefill == "<think>\nSongs are fine.\n</think>\n\nI would rather do Task"
        and made[0].options == asked[0].options
    )
    model = LocalModel(tiny_model("llama"), tiny_tokenizer(THINKING), name="thinking")
    (answer,) = model.score(made[:1])
    assert model.render(made[0]).text.endswith("assistant\n" + made[0].prefill) and answer.log_probs


def test_thoughts_are_kept_apart_from_completions_and_not_read_as_answers():
    (asked,) = completion.questions(TASKS[:1])
    for text, thought, said in (
        ("<think>\nHm, A or B.\n</think>\n\nLa la.", "Hm, A or B.", "La la."),
        ("Hm.\n</think>\nLa la.", "Hm.", "La la."),
        ("<think>never ends", "never ends", ""),
        ("La la.", "", "La la."),
    ):
        row = completion.completions([asked], [Answer(Outcome.CHOSE, text=text)]).iloc[0]
        assert (row["thought"], row["text"]) == (thought, said)
    letters = choice.questions(TASKS, [("t1", "t2")])[0].options
    assert read_text("I could take A.\n</think>\nB", letters, truncated=False) == (Outcome.CHOSE, "B")
