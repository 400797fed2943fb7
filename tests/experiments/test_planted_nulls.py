"""False positives of probes and of the whole loop, and organisms whose utilities are made of features; no model is asked."""

from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from elicit import LeastSquares, Task, builtin_tasks, disjoint_pairs, sample_tasks
from experiments.frozen import FrozenTable
from experiments.organisms import Organism, Rule, balanced
from experiments.planted_findings import false_positive_finding
from experiments.planted_nulls import BEATS, CONJUNCTIONS, KNOWN, USED, chance_of_use, dealt_labels, probe_claims, rate_row
from experiments.planted_preference import PlantedPreferenceSettings
from experiments.planted_readable import PLANTED, feature_labels, features_finding, readable_table
from experiments.planted_tasks import Fresh, differing_pairs, measured_tasks
from interp import Split, probe_sweep
from store import Estimate
from tests.experiments.test_organisms import answers
from tests.interp.test_directions import make_store

XOR = Rule(name="xor")
SETTINGS = PlantedPreferenceSettings()


def organism(rule: Rule) -> Organism:
    """As if trained on the tasks that the shipped organism was trained on."""
    known = Organism.read("topics")
    return Organism(Path(rule.name), rule, known.seen, known.unseen, known.wordings)


@pytest.fixture
def known(tmp_path):
    """Twenty-four tasks whose utilities can be read from a store, a frozen table of choices by them, and their probes."""
    random = np.random.default_rng(0)
    features = random.normal(size=(24, 5))
    ids = [f"task{number}" for number in range(24)]
    utilities = pd.Series(2 * features[:, 3] + 0.3 * random.normal(size=24), index=ids)
    table = FrozenTable(answers(utilities), dict.fromkeys(ids, "a"), {"name": "m", "fingerprint": "f", "dtype": "d"})
    probes = partial(
        probe_sweep,
        make_store(tmp_path / "a.h5", features, ids),
        split=lambda task_ids: Split.held_out(task_ids, [f"task{number}" for number in range(0, 24, 2)]),
        permutations=39,
        resamples=200,
    )
    return table, probes


def test_of_utilities_dealt_to_other_tasks_probes_claim_to_know_one_in_twenty(known):
    table, probes = known
    rates = probe_claims(dealt_labels(table, 4, 160, 0), probes).set_index("claim")
    assert list(rates.columns) == ["rate", "rate_low", "rate_high"]
    assert rates.loc[KNOWN, "rate_low"] <= 0.05 <= rates.loc[KNOWN, "rate_high"] < 0.1
    assert rates.loc[BEATS, "rate"] <= rates.loc[KNOWN, "rate"]


def test_of_utilities_that_are_not_dealt_the_same_probes_claim_both(known):
    table, probes = known
    rates = probe_claims(LeastSquares(errors="none").fit(table.comparisons).labels(), probes)
    assert (rates["rate"] == 1).all()


def test_dealt_utilities_are_those_of_a_design_on_other_tasks(known):
    table, _ = known
    truth = LeastSquares(errors="none").fit(table.comparisons).labels().set_index("task_id")["value"]
    dealt = dealt_labels(table, 4, 30, 0).pivot(index="task_id", columns="target", values="value")
    assert dealt.shape == (24, 30)
    np.testing.assert_allclose(
        np.sort(dealt, axis=0), np.sort(truth)[:, None] * np.ones(30), atol=1e-6
    )  # answers agree exactly
    assert abs(dealt.corrwith(truth).mean()) < 0.15 and dealt.corrwith(truth).std() < 0.35


def slopes(values: np.ndarray, se: float) -> pd.DataFrame:
    table = pd.DataFrame({"direction": [f"random_{number}" for number in range(len(values))], "slope": values})
    return table.assign(is_random=True, layer=3, mode="choice", slope_se=se, n=8)


@pytest.mark.parametrize(("most", "se", "claims"), [(9.0, 0.1, 1), (-9.0, 0.1, 0), (9.0, 20.0, 0)])
def test_a_random_direction_is_used_if_it_alone_stands_out_upwards_and_surely(most, se, claims):
    values = np.append(np.linspace(-0.5, 0.5, 23), most)
    found = chance_of_use(slopes(values, se), slopes(np.zeros(24), se), controls=23)
    assert found.n == 24 and found.value == pytest.approx(claims / 24)


def finding(known: float, beats: float) -> str:
    rates = [(KNOWN, known), (BEATS, beats), (USED, 0.04)]
    rows = [rate_row(name, Estimate(rate, rate - 0.02, rate + 0.02, 0.01, 200)) for name, rate in rates]
    return false_positive_finding(pd.DataFrame(rows), Estimate(0.04, 0.01, 0.2, 0.05, 24)).sentence


def test_less_than_five_percent_is_a_fault_of_single_claims_only():
    assert "Every interval contains 5 %." in finding(0.05, 0.05)
    assert f"Every other interval contains 5 %. Below 5 %, as it needs both: {BEATS}." in finding(0.05, 0.01)
    assert f"Not 5 %: {KNOWN}. Below" in finding(0.01, 0.01)
    assert finding(0.05, 0.2).endswith(f"Not 5 %: {BEATS}.") and set(CONJUNCTIONS) == {BEATS, USED}


def test_tasks_of_an_exclusive_or_are_balanced_so_that_neither_feature_nor_their_sum_says_anything_of_it():
    measured = measured_tasks(SETTINGS, organism(XOR))
    cells = np.array([XOR.cell(task) for task in measured], dtype=float)
    utilities = np.array([XOR.utility(task) for task in measured])
    assert Counter(map(tuple, cells.astype(bool).tolist())) == dict.fromkeys([(a, b) for a in (0, 1) for b in (0, 1)], 12)
    unseen = np.isin([task.id for task in measured], organism(XOR).unseen)
    for part in (unseen, ~unseen):  # what probes are tested on, and what they are trained on
        design = np.column_stack([np.ones(part.sum()), cells[part]])
        np.testing.assert_allclose(np.linalg.lstsq(design, utilities[part])[0], 0, atol=1e-12)
    assert unseen.sum() == 16 and len({task.id for task in measured}) == 48
    origins = Counter((task.origin, XOR.cell(task)) for task in measured)
    assert max(origins.values()) - min(origins.values()) <= 6 and len({origin for origin, _ in origins}) == 6


def test_fewer_tasks_are_taken_where_a_cell_has_fewer_and_too_few_are_an_error():
    tasks = [
        Task(f"{origin}{mark}{number}", f"Do it{mark}", origin=origin)
        for origin in ("math", "chat")
        for mark in ("?", ".")
        for number in range(4 if origin + mark == "math?" else 20)
    ]
    unseen = [f"{origin}{mark}{number}" for origin in ("math", "chat") for mark in ("?", ".") for number in (0, 5)]
    assert set(Counter(map(XOR.cell, balanced(tasks, XOR, unseen, 10, 0))).values()) == {4}
    assert set(Counter(map(XOR.cell, balanced(tasks, XOR, unseen, 2, 0))).values()) == {2}
    for least in ("math?1", "math?0"), ("math?0",):  # too few, and none of an unseen topic
        kept = [task for task in tasks if task.id not in least]
        said = (
            f"not technical, not question: 18 [+] 2; .*; technical, question: {2 if len(least) > 1 else 3} [+] 0; expected some"
        )
        with pytest.raises(ValueError, match=said):
            balanced(kept, XOR, unseen, 10, 0)
    with pytest.raises(ValueError, match=r"technical, question: 1 \+ 1; .* three or more in each"):
        balanced([task for task in tasks if task.id not in ("math?1", "math?2")], XOR, unseen, 10, 0)


def test_steered_pairs_of_an_exclusive_or_are_of_other_tasks_and_differ_in_what_was_planted():
    known = organism(XOR)
    measured = measured_tasks(SETTINGS, known)
    fresh = Fresh.of(SETTINGS, known, measured, 20)
    by_id = {task.id: task for task in fresh.tasks}
    assert len(fresh.pairs) == 20 and len(by_id) == 40 and not set(by_id) & {task.id for task in measured}
    assert {task_id for pair in fresh.pairs for task_id in pair} == set(by_id)
    gaps = [XOR.utility(by_id[one]) - XOR.utility(by_id[other]) for one, other in fresh.pairs]
    assert set(gaps) == {3.0, -3.0} and set(Counter(map(XOR.cell, fresh.tasks)).values()) == {10}
    with pytest.raises(ValueError, match=r"tasks are left .* in equal numbers from every cell .*, for 60 pairs"):
        Fresh.of(SETTINGS, known, measured, 60)


@pytest.mark.parametrize("rule", [Rule(), Rule(name="position")])
def test_the_other_rules_are_measured_and_steered_on_samples_by_origin(rule):
    measured = measured_tasks(SETTINGS, organism(rule))
    assert measured == SETTINGS.load_tasks()
    fresh = Fresh.of(SETTINGS, organism(rule), measured, 20)
    sampled = sample_tasks([task for task in builtin_tasks() if task not in measured], 7, 1)[:40]
    assert fresh == Fresh(sampled, disjoint_pairs([task.id for task in sampled], 0))
    with pytest.raises(ValueError, match="204 tasks are left to steer choices between, for 110 pairs"):
        Fresh.of(SETTINGS, organism(rule), measured, 110)


def test_pairs_differ_whatever_the_two_utilities_are_and_each_side_is_first_in_half_of_them():
    utilities = pd.Series([0.0, 4.0] * 20, index=[f"t{number}" for number in range(40)])
    pairs = differing_pairs(utilities, 0)
    ends = [task_id for pair in pairs for task_id in pair]
    assert len(set(ends)) == 40 and {abs(utilities[one] - utilities[other]) for one, other in pairs} == {4.0}
    assert sum(utilities[one] == 4 for one, _ in pairs) == 10


def test_features_are_read_in_both_models_and_their_exclusive_or_where_it_is_present(tmp_path):
    random = np.random.default_rng(0)
    known = organism(XOR)
    tasks = measured_tasks(SETTINGS, known)
    ids = [task.id for task in tasks]
    cells = np.array([XOR.cell(task) for task in tasks], dtype=float)
    noise = 0.2 * random.normal(size=(2, len(tasks), 6))
    xor = np.array([XOR.utility(task) for task in tasks])
    untouched = make_store(tmp_path / "u.h5", np.column_stack([cells, noise[0]]), ids)
    trained = make_store(tmp_path / "o.h5", np.column_stack([cells, noise[1], xor]), ids)
    sweep = probe_sweep(
        trained,
        pd.concat(feature_labels(known, tasks)),
        split=lambda task_ids: Split.held_out(task_ids, known.unseen),
        others={"untouched": untouched},
        permutations=19,
        resamples=200,
    )
    table = readable_table(sweep, known, "untouched")
    scores = table.pivot(index="target", columns="model", values="r2")
    assert (scores.loc[["technical", "question"]] > 0.9).all(axis=None)
    assert scores.loc[PLANTED, "xor"] > 0.9 and scores.loc[PLANTED, "untouched"] < 0.2
    said = features_finding(table).sentence
    assert "it is read in xor, going" in said and "of 16 tasks of unseen topics" in said
    assert feature_labels(organism(Rule()), tasks) == []


def test_every_pair_of_cells_that_differ_in_the_exclusive_or_is_steered():
    fresh = Fresh.of(SETTINGS, organism(XOR), measured_tasks(SETTINGS, organism(XOR)), 20)
    by_id = {task.id: XOR.cell(task) for task in fresh.tasks}
    met = {frozenset((by_id[one], by_id[other])) for one, other in fresh.pairs}
    cells = [(False, False), (False, True), (True, False), (True, True)]
    assert met == {frozenset(pair) for pair in combinations(cells, 2) if sum(map(sum, pair)) % 2}
