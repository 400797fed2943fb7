"""Coherence, equal divergence, and slopes beside controls: on made-up answers and on a tiny model."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from experiments.coherence import coherence_table, free_questions, repetition, texts_of
from experiments.dose_response import DoseResponse, is_tested
from experiments.equal_kl import equal_kl_doses
from experiments.run_directory import RunDirectory
from experiments.settings import RunSettings
from experiments.steer_findings import steering_findings
from interp import Intervention, random_directions
from tests.conftest import pair_question, tiny

DOSES = (-0.4, -0.2, 0.0, 0.2, 0.4)


@pytest.fixture
def run(tmp_path):
    return RunDirectory(RunSettings(out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four", 0.0),
        ("a b c a b c", 1 / 4),  # runs of three: abc bca cab abc
        ("no no no no no", 2 / 3),
        ("!!!!!!", 3 / 4),
        ("No. NO. no. no.", 4 / 6),
    ],
)
def test_repetition_is_the_share_of_runs_that_stood_before(text, expected):
    assert repetition(text) == pytest.approx(expected)


def test_a_text_too_short_to_repeat_has_none():
    assert np.isnan(repetition("two words")) and np.isnan(repetition(""))


def texts(changes: dict[float, tuple[float, float]]) -> pd.DataFrame:
    """Two prompts along one direction; by dose, the log-likelihood and repetition on top of those of the prompt."""
    return pd.DataFrame(
        [
            {"direction": "v", "dose": dose, "prompt": prompt, "text": "words" if likelihood > -50 else ""}
            | {"log_likelihood": likelihood - prompt if likelihood > -50 else np.nan, "repetition": repeated}
            for dose, (likelihood, repeated) in changes.items()
            for prompt in (0, 1)
        ]
    )


def test_text_makes_sense_unless_it_surprises_repeats_or_is_not_there():
    table = coherence_table(
        texts({-0.4: (-99, 0.1), -0.2: (-1.9, 0.1), 0.0: (-1.0, 0.1), 0.2: (-2.1, 0.1), 0.4: (-0.5, 0.4)})
    ).set_index("dose")
    assert table["makes_sense"].to_dict() == {-0.4: False, -0.2: True, 0.0: True, 0.2: False, 0.4: False}
    assert table.loc[0.2, "log_likelihood_change"] == pytest.approx(-1.1) and table.loc[-0.4, "empty"] == 1
    assert table.loc[0.0, "log_likelihood"] == pytest.approx(-1.5)  # the mean over prompts


def units(effect: float, *, bend: float = 0.0, n_random: int = 19, n_shuffled: int = 19) -> pd.DataFrame:
    """One direction under test, whose effect bends away at the largest dose, and controls that have none."""
    random = np.random.default_rng(0)
    named = [("ridge_probe", False, "")]
    named += [(f"random_{number}", True, "") for number in range(n_random)]
    named += [(f"shuffled_{number}", False, "ridge_probe") for number in range(n_shuffled)]
    rows = []
    for name, is_random, shuffled in named:
        slope = effect if name == "ridge_probe" else 0.1 * random.normal()
        for dose in DOSES:
            for unit in range(20):
                shift = dose * slope + 0.02 * random.normal() * (dose != 0) + bend * (abs(dose) == 0.4) * np.sign(dose)
                rows.append((name, is_random, shuffled, 3, "choice", dose, f"pair {unit}", shift, 0.5, 0.9, 1.0))
    names = ["direction", "is_random", "shuffled", "layer", "mode", "dose", "unit", "shift", "probability", "mass", "on_format"]
    return pd.DataFrame(rows, columns=names)


def coherence(*, lost_at: float = np.inf) -> pd.DataFrame:
    rows = [
        {"direction": "ridge_probe", "layer": 3, "mode": "choice", "dose": dose, "makes_sense": abs(dose) < lost_at}
        for dose in DOSES
    ]
    return pd.DataFrame(rows).assign(log_likelihood=-1.0, repetition=0.0, empty=0.0)


def test_doses_at_which_texts_make_no_sense_do_not_count_for_the_direction_nor_for_its_controls():
    data = units(1.0, bend=5.0)
    # What controls do at the largest dose must not count either.
    data.loc[(data["direction"] != "ridge_probe") & (data["dose"] == 0.4), "shift"] += 9
    whole, kept = (DoseResponse.of(data, table, resamples=100) for table in (None, coherence(lost_at=0.3)))
    (before,), (after,) = (each.tested().to_dict("records") for each in (whole, kept))
    assert before["slope"] > 5 and after["slope"] == pytest.approx(1.0, abs=0.1)
    assert (after["coherent_from"], after["coherent_to"]) == (-0.2, 0.2)
    assert after["random_high"] < 0.5 < before["random_high"] and after["shuffled_high"] < 0.5
    assert after["p_value"] == after["p_shuffled"] == pytest.approx(1 / 20)
    curve = kept.curve[is_tested(kept.curve)].set_index("dose")["coherent"]
    assert not curve[0.4] and not curve[-0.4] and curve[0.2]


def test_slopes_are_least_squares_through_the_origin_of_every_unit():
    data = units(1.0)
    found = DoseResponse.of(data, resamples=100)
    for name in ("ridge_probe", "random_4", "shuffled_7"):
        part = data[data["direction"] == name]
        by_unit = [(own["shift"] @ own["dose"]) / (own["dose"] @ own["dose"]) for _, own in part.groupby("unit")]
        row = found.slopes.set_index("direction").loc[name]
        assert row["slope"] == pytest.approx(np.mean(by_unit))
    assert set(found.tested()["direction"]) == {"ridge_probe"}


def test_what_exceeds_random_directions_but_not_shuffled_labels_is_no_finding():
    data = units(1.0)
    (claimed,) = steering_findings(DoseResponse.of(data, coherence(), resamples=100))
    assert "exceeds its controls for the ridge probe (p = 0.05 against random, 0.05 against shuffled)" in claimed.sentence
    assert "make sense at every dose along the ridge probe" in claimed.sentence
    made = data["shuffled"] != ""
    data.loc[made, "shift"] = data.loc[made, "dose"] * 2
    (denied,) = steering_findings(DoseResponse.of(data, resamples=100))
    assert "No direction is shown to exceed its controls (p = 0.05 against random, 1.00 against shuffled)" in denied.sentence
    (few,) = steering_findings(DoseResponse.of(units(1.0, n_shuffled=5), resamples=100))
    assert "nothing is claimed" in few.sentence


def test_a_direction_that_makes_no_sense_at_any_dose_has_no_slope_and_no_claim():
    (found,) = steering_findings(DoseResponse.of(units(1.0), coherence(lost_at=0.1), resamples=100))
    assert "unknown along the ridge probe" in found.sentence and "nothing is claimed" in found.sentence


def test_equal_doses_depart_equally_from_the_untouched_model(run):
    model = tiny("llama")
    asked = free_questions([pair_question("Sing a song.", "Dance."), pair_question("Add 2 and 3.", "Sleep.")], 2, 4, 0)
    written = ["I would sing and dance.", " B of course"]
    directions = {f"d{number}": each for number, each in enumerate(random_directions(model.identity, model.d_model, 1, 3))}

    def at(dose: float, name: str):
        return model.steered(Intervention.everywhere(directions[name].scaled(2.0), dose))

    steered = {name: partial(at, name=name) for name in directions}
    found = equal_kl_doses(model, steered, asked, written, 0.01, 0.2, run)
    np.testing.assert_allclose(found["kl"], 0.01, rtol=0.05)
    for row in found.to_dict("records"):
        views = [at(sign * row["dose"], row["direction"]) for sign in (1, -1)]
        assert model.divergences(views, asked, written).mean() == pytest.approx(row["kl"])
    assert found["dose"].nunique() == 3
    with pytest.raises(ValueError, match="wrote nothing"):
        equal_kl_doses(model, steered, asked, ["", ""], 0.01, 0.2, run)


def test_texts_are_those_of_the_views_and_read_by_the_untouched_model(run):
    model = tiny("llama")
    asked = free_questions([pair_question("Sing a song.", "Dance.")] * 3, 2, 5, 0)
    assert len(asked) == 2 and not asked[0].options and asked[0].prefill == "" and asked[0].measures["mode"] == "free text"
    view = model.steered(Intervention.everywhere(random_directions(model.identity, model.d_model, 1, 1)[0].scaled(9.0), 1.0))
    found = texts_of(model, asked, {("v", 0.0): model, ("v", 0.4): view}, run, "texts")
    assert found["text"].tolist() == [(each.text or "").strip() for own in (model, view) for each in own.generate(asked)]
    row = found.iloc[2]
    assert row["log_likelihood"] == pytest.approx(model.log_likelihoods([asked[0]], [row["text"]])[0].mean())
