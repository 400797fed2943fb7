"""Modes under steering: which way a shift goes, in which orders it was asked, and directions that made it."""

import numpy as np
import pytest

from elicit import builtin_tasks, sample_tasks
from experiments.steer_directions import made_directions, shuffled_controls
from experiments.steer_modes import MOVED, UNITS, questions_of, units_of
from store import Answer
from tests.interp.test_directions import AT, make_labels, make_store, pairs

TASKS = sample_tasks(builtin_tasks(), 1)
PAIRS = [(TASKS[0].id, TASKS[1].id), (TASKS[2].id, TASKS[3].id)]
DOSES = (-0.2, 0.0, 0.2)


def units(mode, log_odds):
    """Units of a respondent whose log-odds for the first of two options are given, by question and dose."""
    asked = questions_of(mode, TASKS, PAIRS, "would_rather", "yes_somewhat_no")
    answers = {}
    for dose in DOSES:
        own = []
        for question in asked:
            first = 1 / (1 + np.exp(-log_odds(question, dose)))
            chances = dict(zip([option.label for option in question.options], (first, 1 - first), strict=True))
            own.append(Answer.exact(question, {label: float(np.log(0.99 * chance)) for label, chance in chances.items()}))
        answers["v", dose] = own
    return units_of(mode, asked, answers, "yes_somewhat_no").set_index(["dose", "unit"])["shift"].unstack("unit")


def test_what_a_push_does_to_a_task_is_told_from_what_it_does_to_position():
    # The push acts on the task shown first by +dose, and makes position worth more by any push.
    found = units("choice", lambda question, dose: 3 * dose + 10 * abs(dose) + 1.0)
    np.testing.assert_allclose(found.loc[[-0.2, 0.2]].to_numpy(), [[-0.6] * 2, [0.6] * 2], atol=1e-6)


def test_a_push_on_every_token_that_moves_position_alone_moves_no_choice():
    assert np.abs(units("choice_both_alike", lambda question, dose: 5 * dose).to_numpy()).max() < 1e-6


def test_opting_out_is_the_task_against_the_null_task_in_both_orders():
    ids = {task.id for task in TASKS}
    found = units("opt_out", lambda question, dose: (1 if question.measures["first"] in ids else -1) * 4 * dose + 0.5)
    assert found.shape[1] == len(TASKS)
    np.testing.assert_allclose(found.loc[0.2], 0.8, atol=1e-6)


def test_a_shift_of_bail_is_upwards_where_leaving_becomes_less_probable():
    found = units("bail", lambda question, dose: -5 * dose)  # leaving is the first option
    assert found.shape[1] == len(TASKS) and (found.loc[0.2] > 0.1).all() and (found.loc[-0.2] < -0.1).all()
    assert set(MOVED) == set(UNITS)


@pytest.mark.parametrize(
    "method",
    ["difference_of_means", "ridge_probe", "logistic_probe", "mass_mean_probe", "bradley_terry_probe", "principal_component"],
)
def test_every_method_points_to_what_is_preferred_and_its_shuffled_controls_need_not(tmp_path, method):
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 6)) * [1, 1, 4, 1, 1, 1]  # the preferred varies most, for the principal component
    labels = make_labels(-features[:, 2])
    store = make_store(tmp_path / "a.h5", features)
    choices = pairs(labels["value"].to_numpy(), random)
    (found,) = made_directions(store, labels, *AT, (method,), choices).values()
    assert found.vector[2] < -0.8
    controls = shuffled_controls(store, labels, *AT, (method,), 4, 0, choices)
    if method == "principal_component":
        assert not controls
    else:
        assert np.mean([control.vector[2] for control in controls[method]]) > -0.6
