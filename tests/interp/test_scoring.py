"""Exact option scoring against the naive way: a whole log-softmax for every prefix, one prompt at a time."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from elicit import builtin_tasks, choice, rating
from interp.scoring import option_tree
from store import END_OF_TURN, Answer, Message, Option, Outcome, Question
from store.records import REFUSAL
from tests.conftest import pair_question, tiny


def naive_log_probs(model, question: Question) -> dict[str, float]:
    """P(option) by running the plain transformers model on every prefix and normalising over the vocabulary."""
    rendered = model.render(question)
    tree = option_tree(question, rendered, model.renderer)

    @cache
    def next_token(prefix: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            logits = model.backend.model(torch.tensor([[*rendered.token_ids.tolist(), *prefix]])).logits
        return logits[0].log_softmax(-1)[-1]

    def probability(path: tuple[int, ...]) -> float:
        return math.exp(sum(next_token(path[:depth])[token].item() for depth, token in enumerate(path)))

    return {label: math.log(sum(map(probability, paths))) for label, paths in tree.sequences.items()}


NUMBERS = tuple(Option(str(n), (str(n), f" {n}"), (END_OF_TURN, "\n", ".")) for n in (1, 2, 10, 100))


def test_exact_scores_equal_the_naive_full_log_softmax(tiny_lm, pair_questions):
    questions = [*pair_questions[:4], *(replace(question, options=NUMBERS) for question in pair_questions[:4])]
    for question, answer in zip(questions, tiny_lm.score(questions), strict=True):
        assert answer.log_probs == pytest.approx(naive_log_probs(tiny_lm, question), abs=1e-4)


def test_the_embedded_model_scores_choices_and_every_scale_exactly(embedded):
    tasks = sorted(builtin_tasks(), key=lambda task: len(task.text))[:2]
    questions = choice.questions(tasks, [(tasks[0].id, tasks[1].id)])
    questions += [rating.questions(tasks[:1], scale=scale)[0] for scale in ("yes_somewhat_no", "likert_5", "stated_10")]
    for question, answer in zip(questions, embedded.score(questions), strict=True):
        assert answer.raw_log_probs == pytest.approx(naive_log_probs(embedded, question), abs=1e-4)


def test_one_is_told_from_ten_and_from_a_hundred(embedded):
    question = Question((Message("user", "Say a number."),), options=NUMBERS, prefill="The number is")
    bare = replace(question, options=tuple(replace(option, terminators=()) for option in NUMBERS))
    with pytest.raises(ValueError, match="'1' begins option '10'"):
        embedded.score([bare])
    (answer,) = embedded.score([question])
    assert answer.mass <= 1
    rendered = embedded.render(question)
    sequences = option_tree(question, rendered, embedded.renderer).sequences
    one, ten = (embedded.renderer.tokens.continuation(rendered.text, form) for form in (" 1", " 10"))
    assert ten[: len(one)] == one  # this tokenizer splits digits, so the bare form of 1 does begin 10
    assert all(path[: len(one)] != one or len(path) > len(one) for path in sequences["1"])


def test_a_multi_token_option_is_the_chain_of_its_tokens(embedded):
    question = pair_question("Sing.", "Dance.", options=(Option("long", (" A, because it is fun",)), Option("B", (" B",))))
    (answer,) = embedded.score([question])
    assert len(option_tree(question, embedded.render(question), embedded.renderer).sequences["long"][0]) > 3
    assert answer.log_probs == pytest.approx(naive_log_probs(embedded, question), abs=1e-4)


def test_overlapping_forms_of_one_option_are_not_counted_twice(embedded):
    one, both = (
        pair_question("Sing.", "Dance.", options=(Option("A", forms), Option("B", (" B",))))
        for forms in ((" A",), (" A", " A", " A."))
    )
    first, second = embedded.score([one, both])
    assert second.log_probs["A"] == pytest.approx(first.log_probs["A"], abs=1e-5)


def test_raw_mass_is_kept_and_decides_whether_an_answer_is_on_format(embedded):
    question = pair_question("Sing.", "Dance.", options=(Option("x", (" zebra",)), Option("y", (" violin",))), minimum_mass=0.5)
    (answer,) = embedded.score([question])
    assert answer.outcome is Outcome.OFF_FORMAT
    assert 0 < answer.mass < 0.5
    assert sum(answer.distribution().values()) == pytest.approx(1)
    assert Answer.exact(replace(question, minimum_mass=0.0), answer.log_probs).outcome is Outcome.CHOSE


def test_a_prompt_longer_than_the_context_is_an_error_answer_not_a_crash():
    model = tiny("llama")
    long = pair_question("word " * 600, "Dance.")
    short = pair_question("Sing.", "Dance.")
    answers = model.score([long, short])
    assert answers[0].outcome is Outcome.ERROR
    assert "512" in answers[0].error
    assert answers[1].outcome is Outcome.CHOSE


def test_scoring_a_question_without_options_says_what_to_do():
    with pytest.raises(ValueError, match="generate"):
        tiny("llama").score([Question((Message("user", "Hello."),))])


def test_refusals_are_read_beside_the_options_and_cost_nothing(tiny_lm):
    """Those of one token, by the same forward pass as the options; longer ones are left out."""
    plain = pair_question("Sing.", "Dance.")
    asked = replace(plain, refusals=("C", " A", " none of the two"))
    rendered = tiny_lm.render(asked)
    trees = [option_tree(question, rendered, tiny_lm.renderer) for question in (plain, asked)]
    assert trees[0].prefixes == trees[1].prefixes and REFUSAL not in trees[0].sequences
    assert trees[1].sequences[REFUSAL] == (tiny_lm.renderer.tokens.continuation(rendered.text, "C"),)  # " A" is an option
    without, answer = tiny_lm.score([plain, asked])
    next_token = dict(tiny_lm.next_tokens(plain, 500))
    (token,) = trees[1].sequences[REFUSAL][0]
    assert answer.refusal_mass == pytest.approx(next_token[token], rel=1e-3)
    assert answer.log_probs == pytest.approx(without.log_probs, abs=1e-4) and without.refusal_mass is None


def test_a_likelier_refusal_is_no_vote():
    asked = pair_question("Sing.", "Dance.", refusals=(" no",), minimum_mass=0.3)
    for refusal, outcome in ((0.35, Outcome.CHOSE), (0.45, Outcome.REFUSED)):
        answer = Answer.exact(asked, {"A": np.log(0.2), "B": np.log(0.2), REFUSAL: np.log(refusal)})
        assert answer.outcome is outcome and answer.mass == pytest.approx(0.4)
        assert answer.refusal_mass == pytest.approx(refusal) and set(answer.distribution()) == {"A", "B"}
        assert Answer.exact(asked, answer.raw_log_probs) == answer
    assert Answer.exact(asked, {"A": np.log(0.1), "B": np.log(0.1), REFUSAL: -9.0}).outcome is Outcome.OFF_FORMAT
    with pytest.raises(ValueError, match="An option is called '<refusal>'"):
        pair_question("a", "b", options=(Option(REFUSAL, ("x",)),))
