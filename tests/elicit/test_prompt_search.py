"""The search for prompts without any model: fronts against brute force, equal budgets, and a case where searching must win."""

import itertools
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from elicit.pareto import best_first, crowding, front, hypervolume, layers
from elicit.prompt_search import NO_POINT, NO_SCORE, REPEATED, Line, Rewriting, search, shared_budget
from elicit.rephrasing import Filters, Originals, check_operators, dropped, operators, question, read
from store import Answer, Sampling
from store.records import Outcome

POINTS = st.integers(0, 12).flatmap(lambda n: arrays(np.int64, (n, 2), elements=st.integers(-3, 6)))


# ---- fronts


@given(POINTS)
def test_the_front_is_what_no_point_dominates(points):
    expected = [
        not any(all(q >= p for p, q in zip(one, other, strict=True)) and (other != one).any() for other in points)
        for one in points
    ]
    assert front(points).tolist() == expected


@given(POINTS)
def test_layers_are_fronts_of_what_is_left_and_unknown_points_are_on_none(points):
    numbers = layers(np.concatenate([points, [[np.nan, 1]], [[5, np.inf]]]))
    assert numbers[-2:].tolist() == [-1, -1] and (numbers[:-2] >= 0).all()
    for number in range(int(numbers.max()) + 1):
        left = points[numbers[:-2] >= number]
        assert sorted(map(tuple, left[front(left)])) == sorted(map(tuple, points[numbers[:-2] == number]))


@given(POINTS, st.integers(-2, 2), st.integers(-2, 2))
def test_the_hypervolume_is_the_number_of_unit_squares_below_the_points(points, x, y):
    squares = itertools.product(range(x, 7), range(y, 7))
    expected = sum(any(px > left and py > low for px, py in points) for left, low in squares)
    assert hypervolume(points, (x, y)) == expected
    assert hypervolume(np.concatenate([points, [[np.nan, 9], [9, np.nan]]]), (x, y)) == expected


@given(POINTS, arrays(np.int64, (1, 2), elements=st.integers(-3, 6)))
def test_a_further_point_never_takes_ground_away_and_the_front_has_all_of_it(points, further):
    assert hypervolume(np.concatenate([points, further])) >= hypervolume(points)
    assert hypervolume(points[front(points)]) == hypervolume(points)


def test_crowding_is_the_gap_between_neighbours_as_shares_of_the_range():
    points = np.array([[0.0, 10.0], [1.0, 8.0], [4.0, 5.0], [10.0, 0.0]])
    assert crowding(points).tolist() == [np.inf, pytest.approx(4 / 10 + 5 / 10), pytest.approx(9 / 10 + 8 / 10), np.inf]
    assert crowding(points[::-1])[1] == pytest.approx(1.7) and len(crowding(np.empty((0, 2)))) == 0


def test_points_above_the_origin_come_first_then_lonely_ones_then_those_that_fall_short_least():
    points = np.array([[-0.1, 9.0], [1.0, 1.0], [2.0, 3.0], [2.9, 2.9], [3.0, 2.0], [-1.0, -1.0], [np.nan, 5.0]])
    order = best_first(points).tolist()
    assert set(order[:2]) == {2, 4} and order[2:] == [3, 1, 0, 5]


# ---- the search


def climbing(proposals):
    """A text is a path of ups and downs; the draw makes every one new."""
    return [Rewriting(f"{each.text} {each.operator}{each.draw}") for each in proposals]


def height(texts):
    """Both scores are how far the path leads up, which is inherited."""
    return [(float(text.count("up") - text.count("down")),) * 2 for text in texts]


def lines(budget=30, replicates=3, **changes):
    common = {"starts": ["here", "there"], "operators": ["up", "down"], "budget": budget, "batch": 4, "survivors": 2}
    rules = (("search", "front"), ("random", "starts"), ("walk", "any"))
    return [
        Line(name, replicate, rule, **{**common, "seed": (7, replicate, number), **changes})
        for replicate in range(replicates)
        for number, (name, rule) in enumerate(rules)
    ]


def test_where_scores_are_inherited_the_search_beats_both_controls_at_equal_budget():
    made = lines(budget=30, replicates=8)
    search(made, climbing, height)
    assert shared_budget(made) == 30
    reached = {name: np.array([line.growth[-1] for line in made if line.name == name]) for name in ("search", "random", "walk")}
    assert (reached["random"] == 1).all()  # one step up and no more
    assert (reached["search"] > reached["random"]).all() and (reached["search"] >= reached["walk"]).all()
    assert reached["search"].mean() > 2 * reached["walk"].mean()


def test_all_arms_spend_the_same_budget_and_every_candidate_is_kept():
    asked = []

    def rewrite(proposals):
        asked.extend(proposals)
        return [
            Rewriting(f"{each.text}{each.operator[0]}{each.draw}", "too short" if crc32(repr(each).encode()) % 3 == 0 else "")
            for each in proposals
        ]

    def score(texts):
        return [NO_POINT if text.endswith("d1") else (len(text) - 4.0, text.count("up") - 1.0) for text in texts]

    made = lines(budget=17)
    search(made, rewrite, score)
    assert {len(line.scored) for line in made} == {17} and {len(line.growth) for line in made} == {17}
    assert sum(len(line.candidates) - 2 for line in made) == len(asked)
    reasons = {each.dropped for line in made for each in line.candidates}
    assert reasons >= {"", "too short", NO_SCORE}
    for line in made:
        assert [each.number for each in line.candidates] == list(range(len(line.candidates)))
        for each in line.candidates[2:]:
            parent = line.candidates[each.parent]
            assert parent.dropped == "" and parent.start == each.start and parent.generation + 1 == each.generation
            assert line.rule != "starts" or each.parent < 2
        assert (np.diff(line.growth) >= 0).all()


def test_the_same_seed_gives_the_same_candidates_and_another_one_others():
    first, again, other = lines(), lines(), lines(seed=(8,))
    for made in (first, again, other):
        search(made, climbing, height)
    assert [line.candidates for line in first] == [line.candidates for line in again]
    assert [line.candidates for line in first] != [line.candidates for line in other]


def test_a_generation_of_all_lines_is_asked_at_once():
    calls = []

    def score(texts):
        calls.append(len(texts))
        return [(float(len(text)), 1.0) for text in texts]

    search(
        lines(budget=6),
        lambda proposals: [Rewriting(f"{p.text}/{p.draw}{p.operator}{n}") for n, p in enumerate(proposals)],
        score,
    )
    assert calls == [9 * 2, 9 * 4]


def test_a_rewriter_that_never_says_anything_new_ends_the_search():
    made = lines(budget=8, replicates=1)
    search(made, lambda proposals: [Rewriting("here") for _ in proposals], height)
    assert {len(line.scored) for line in made} == {2}
    assert {each.dropped for line in made for each in line.candidates[2:]} == {REPEATED}


def test_starting_prompts_without_scores_end_a_line_at_once():
    made = lines(budget=8, replicates=1)
    search(made, climbing, lambda texts: [NO_POINT for _ in texts])
    assert all(len(line.candidates) == 2 and not line.on_front.any() and line.growth[-1] == 0 for line in made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": []}, "no starting prompts"),
        ({"starts": ["here", "here"]}, "are the same text"),
        ({"budget": 1}, "The budget is 1 scored prompts; expected at least the 2 starting prompts"),
        ({"operators": []}, "no operators"),
    ],
)
def test_a_line_that_cannot_be_searched_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        lines(**changes)


# ---- rewriting


def said(text, truncated=False):
    return Answer(Outcome.CHOSE, text=text, truncated=truncated)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('Could you draw me a map?"', "Could you draw me a map?"),
        ('Could you draw me a map?"\n\nI made it a question.', "Could you draw me a map?"),
        ('Say "hello" to the map, please."', 'Say "hello" to the map, please.'),
        ("Sure, here it is:\n\nCould you draw me a map?", "Could you draw me a map?"),
        ("\u201cCould you draw me a map?\u201d", "Could you draw me a map?"),
        ("", ""),
    ],
)
def test_a_rewriting_is_what_stands_before_the_closing_quotation_mark(reply, expected):
    assert read(said(reply))[0] == expected


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (said('Could you draw me a map?"'), ""),
        (said('Could you draw me a map?"\nAnd then', truncated=True), ""),
        (said("Could you draw me a map", truncated=True), "cut off"),
        (said('""'), "empty"),
        (said('draw me a MAP"'), "same as its parent"),
        (said("I'm sorry, but I cannot help with maps."), "rewriter declined"),
        (said('Rewrite the request below as a question, which is a map."'), "copied instruction"),
        (said('A map!"'), "too short"),
        (said("map " * 130), "too long"),
        (Answer(Outcome.ERROR, error="too long"), "error"),
    ],
)
def test_a_rewriting_that_is_none_is_dropped_for_a_reason(answer, reason):
    assert dropped(answer, "Draw me a map.", "question", Filters()) == reason


def test_a_rewriting_keeps_from_all_to_nothing_of_its_original():
    originals = Originals(["Draw me a map of Peru.", "Draw me a bridge.", "Write a poem."])
    assert originals.kept("a map of Peru, draw me", "Draw me a map of Peru.") == pytest.approx(1)
    assert originals.kept("Nothing alike", "Draw me a map of Peru.") == 0
    rare, common = (originals.kept(f"{word} x y z", "Draw me a map of Peru.") for word in ("Peru", "a"))
    assert 0 < common < rare < 1


@settings(max_examples=40)
@given(st.text(min_size=1))
def test_a_text_is_put_into_the_question_verbatim(text):
    asked = question(text, "formal", Sampling())
    (span,) = asked.spans
    assert asked.messages[0].content[span.start : span.end] == text and operators()["formal"] in asked.messages[0].content


def test_an_unknown_operator_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no operator 'pirate' to rewrite by; expected some of rephrase, vivid"):
        check_operators(["formal", "pirate"])
    with pytest.raises(ValueError, match="No operator"):
        check_operators([])
