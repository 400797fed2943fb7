"""Open replies under steering: the norm table against arithmetic of its own, what is claimed, and a run that repeats."""

import numpy as np
import pandas as pd
import pytest

from experiments import open_ended_steering
from experiments.cli import main
from experiments.dose_response import DoseResponse
from experiments.norm_table import norm_finding, norm_table, split_half
from experiments.open_ended_findings import JUDGE_FAILS, dose_finding, is_valid, judge_check, judge_finding
from experiments.open_replies import Condition, OpenReplies, units_of
from experiments.settings import ConfigError
from interp import paired_difference
from store import ActivationStore, ActivationWriter, Slots, StoreHeader
from tests.interp.test_probe import MODEL

LAYERS, SELECTORS, WIDTH = (3, 5), ("completion_first", "completion_mean"), 16


def made_store(path, residuals) -> ActivationStore:
    """A store of residuals by layer and selector, each `(tasks, d_model)`."""
    n = len(next(iter(residuals.values())))
    ids = [f"task{number}" for number in range(n)]
    header = StoreHeader(MODEL, "t", "c", "none", "float32", WIDTH, LAYERS, SELECTORS)
    with ActivationWriter.resume(path, header, Slots(ids, [f"{path.stem} {task_id}" for task_id in ids])) as writer:
        index = {selector: np.full(n, -1) for selector in SELECTORS}
        rows = {key: values.astype(np.float32) for key, values in residuals.items()}
        writer.write(np.arange(n), rows, np.full(n, 7), index)
    return ActivationStore(path)


@pytest.fixture
def stores(tmp_path):
    """Residuals of twelve tasks under two conditions, larger where they are read from the first token."""
    random = np.random.default_rng(0)
    residuals = {}
    for name, shift in (("above", 1.0), ("below", 0.0)):
        residuals[name] = {
            (layer, selector): layer * (10 if selector == "completion_first" else 1) * random.normal(size=(12, WIDTH))
            + shift * layer * (20 if selector == "completion_first" else 3) * np.eye(WIDTH)[layer]
            for layer in LAYERS
            for selector in SELECTORS
        }
    return residuals, {name: made_store(tmp_path / f"{name}.h5", each) for name, each in residuals.items()}


def test_the_norm_table_says_what_arithmetic_on_the_residuals_says(stores):
    residuals, made = stores
    directions = {
        (layer, selector): paired_difference(made["above"], made["below"], layer, selector)
        for layer in LAYERS
        for selector in SELECTORS
    }
    norms = {3: 50.0, 5: 80.0}
    table = norm_table(made["above"], made["below"], directions, norms).set_index(["layer", "selector"])
    assert list(table.index) == list(directions)
    for (layer, selector), row in table.iterrows():
        above, below = (residuals[name][layer, selector] for name in ("above", "below"))
        raw = (above - below).mean(axis=0)
        assert row["length"] == pytest.approx(np.sqrt((raw**2).sum()), rel=1e-5)
        assert row["dose_of_1"] == pytest.approx(np.sqrt((raw**2).sum()) / norms[layer], rel=1e-5)
        assert row["dose_of_2"] == pytest.approx(2 * row["dose_of_1"])
        read = np.mean([np.sqrt((each**2).sum()) for each in (*above, *below)])
        assert row["selector_norm"] == pytest.approx(read, rel=1e-5)
        assert row["dose_of_1_at_selector"] == pytest.approx(np.sqrt((raw**2).sum()) / read, rel=1e-5)
        along = (above - below) @ raw / np.sqrt((raw**2).sum())
        assert row["length_se"] == pytest.approx(along.std(ddof=1) / np.sqrt(12), rel=1e-4)
        spread = sum((above - below)[:, column].var(ddof=1) for column in range(WIDTH))
        assert row["chance_length"] == pytest.approx(np.sqrt(spread / 12), rel=1e-4)
        for other in SELECTORS:
            second = (residuals["above"][layer, other] - residuals["below"][layer, other]).mean(axis=0)
            cosine = raw @ second / np.sqrt((raw**2).sum() * (second**2).sum())
            assert row[f"cosine {other}"] == pytest.approx(cosine, abs=1e-5)
    finding = norm_finding(table.reset_index(), "norms")
    at_three = table.loc[3, "dose_of_1"]
    factor = at_three["completion_first"] / at_three["completion_mean"]
    assert f"{factor:.1f} times as hard by one selector as by another" in finding.sentence
    assert f"{100 * at_three['completion_first']:.1f} % (completion first)" in finding.sentence


def test_the_coefficient_that_is_a_dose_is_the_same_push_as_that_dose(stores):
    residuals, made = stores
    direction = paired_difference(made["above"], made["below"], 5, "completion_mean")
    vector, unit = direction.scaled(80.0), direction.provenance["length"] / 80.0
    pushed = Condition("coefficient", "completion_mean", vector, amount=2.0, unit=unit)
    raw = (residuals["above"][5, "completion_mean"] - residuals["below"][5, "completion_mean"]).mean(axis=0)
    np.testing.assert_allclose(pushed.dose * vector.norm * direction.vector, 2 * raw, rtol=1e-3, atol=1e-4)
    assert Condition("dose", "completion_mean", vector, amount=0.4).dose == 0.4


def test_halves_agree_where_tasks_do_and_not_where_they_do_not():
    random = np.random.default_rng(1)
    noise = random.normal(size=(40, 200))
    assert abs(split_half(noise)) < 0.15
    assert split_half(noise + 5 * np.eye(200)[0]) > 0.6
    assert split_half(np.ones((4, 3))) == pytest.approx(1)
    assert np.isnan(split_half(noise[:3]))


def written(difference: float, n: int = 20) -> pd.DataFrame:
    """Judged texts about `n` tasks under two prompts."""
    random = np.random.default_rng(2)
    rows = [
        (f"task{task}", name, difference * (name == "above") + 0.1 * random.normal(), 0.9, "chose")
        for task in range(n)
        for name in ("above", "below")
    ]
    return pd.DataFrame(rows, columns=["task_id", "written_under", "sentiment", "mass", "outcome"])


def test_a_judge_that_cannot_tell_the_prompts_apart_forbids_every_claim_about_sentiment():
    good, bad, wrong = written(0.5), written(0.0), written(-0.5)
    assert is_valid(judge_check(good)) and JUDGE_FAILS not in judge_finding(judge_check(good), good).sentence
    for table in (bad, wrong):
        assert not is_valid(judge_check(table)) and JUDGE_FAILS in judge_finding(judge_check(table), table).sentence
    strong = open_replies(slope=1.0)
    assert "The effect exceeds its controls along the completion mean" in dose_finding(strong, 15, valid=True).sentence
    assert JUDGE_FAILS in dose_finding(strong, 15, valid=False).sentence
    assert "exceeds its controls" not in dose_finding(strong, 15, valid=False).sentence
    assert "No direction is shown to exceed" in dose_finding(open_replies(slope=0.02), 15, valid=True).sentence
    assert "nothing is claimed" in dose_finding(open_replies(slope=1.0, n_random=4), 15, valid=True).sentence
    assert (judge_check(good.assign(sentiment=np.nan)).n, is_valid(judge_check(good.assign(sentiment=np.nan)))) == (0, False)


def open_replies(slope: float, n_random: int = 19) -> OpenReplies:
    """Replies whose sentiment rises with the dose; random directions do a little."""
    random = np.random.default_rng(3)
    slopes = {"completion_mean": slope} | {f"random_{k}": 0.2 * random.uniform(-1, 1) for k in range(n_random)}
    rows = [
        {
            "scale": "dose",
            "direction": name,
            "is_random": name.startswith("random"),
            "dose": dose,
            "task_id": f"task{task}",
            "draw": draw,
            "sentiment": own * dose + (0.02 * random.normal() if dose else 0.0),
            "mass": 0.9,
            "outcome": "chose",
        }
        for name, own in slopes.items()
        for dose in ((-0.4, 0.0, 0.4) if name.startswith("random") else (-0.4, -0.2, 0.0, 0.2, 0.4))
        for task in range(10)
        for draw in range(2)
    ]
    replies = pd.DataFrame(rows)
    units = units_of(replies, 15)
    reading = units[["direction", "dose"]].drop_duplicates().assign(layer=15, mode="dose", log_likelihood=-2.0, repetition=0.1)
    reading = reading.assign(log_likelihood_change=0.0, repetition_change=0.0, empty=0.0, makes_sense=True)
    tested = DoseResponse.of(units[~units["is_random"]], reading, resamples=100)
    ranked = DoseResponse.of(units[units["dose"].abs().isin([0, 0.4])], reading, resamples=100)
    return OpenReplies(replies, tested, tested, ranked)


def test_draws_of_a_task_are_averaged_before_anything_is_said_of_it_and_empty_replies_are_missing():
    rows = [("t1", 0, 0.0, 0.1), ("t1", 1, 0.0, 0.3), ("t1", 0, 1.0, 0.7), ("t1", 1, 1.0, np.nan), ("t2", 0, 0.0, np.nan)]
    rows += [("t2", 0, 1.0, 0.4)]
    replies = pd.DataFrame(rows, columns=["task_id", "draw", "dose", "sentiment"]).assign(
        scale="dose", direction="d", is_random=False, mass=0.9
    )
    replies["outcome"] = np.where(replies["sentiment"].isna(), "empty", "chose")
    units = units_of(replies, 3).set_index(["unit", "dose"])
    assert units.loc[("t1", 1.0), "shift"] == pytest.approx(0.7 - 0.2)
    assert units.loc[("t1", 1.0), "on_format"] == 0.5 and np.isnan(units.loc[("t2", 1.0), "shift"])


@pytest.mark.slow  # the page of docs runs it too
def test_the_smallest_run_writes_everything_and_repeats_without_asking(counted, tmp_path):
    settings = open_ended_steering.SETTINGS(
        out=tmp_path / "o",
        per_origin=3,
        origins=("math", "chat", "creative"),
        train_share=0.34,
        selectors=("completion_first", "completion_mean"),
        layers=(2,),
        layer=2,
        coefficients=(-1.0, 1.0),
        doses=(-0.2, 0.2),
        n_random=2,
        max_new_tokens=6,
        resamples=50,
    )
    result = open_ended_steering.run(settings)
    assert counted
    assert [finding.name for finding in result.findings] == ["Norms", "Judge", "Old scale", "Doses", "Coherence"]
    for finding in result.findings:
        assert not finding.figure or (tmp_path / f"o/figures/{finding.figure}.png").stat().st_size > 5000
    assert "nothing is claimed about exceeding them" in " ".join(result.screen.split()) or JUDGE_FAILS in result.screen
    replies = pd.read_parquet(tmp_path / "o/tables/replies.parquet")
    tested = replies[~replies["is_random"]]
    assert len(tested) == 2 * 2 * 3 * 6 and len(replies) - len(tested) == 2 * 3 * 6  # zero is each direction's
    assert replies[replies["dose"] == 0].groupby(["task_id", "draw"])["text"].nunique().eq(1).all()
    written_for = set(pd.read_parquet(tmp_path / "o/tables/written.parquet")["task_id"])
    assert written_for.isdisjoint(replies["task_id"]) and replies["task_id"].nunique() == 6
    norms = pd.read_parquet(tmp_path / "o/tables/norms.parquet").set_index("selector")
    pushed = tested[tested["scale"] == "coefficient"].drop_duplicates(["direction", "dose"])
    for _, row in pushed.iterrows():
        assert row["pushed_by"] == pytest.approx(row["dose"] * norms.loc[row["direction"], "dose_of_1"])
    counted.clear()
    misspelt = settings.model_copy(update={"selectors": ("complation_mean",), "out": tmp_path / "m"})
    with pytest.raises(ValueError, match="did you mean 'completion_mean'"):
        open_ended_steering.run(misspelt)
    again = open_ended_steering.run(settings)
    assert not counted
    assert [finding.sentence for finding in again.findings] == [finding.sentence for finding in result.findings]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"selectors": ["completion"]}, "has a row for every token"),
        ({"selectors": ["completion_frist"]}, "ends in _first, _last or _mean"),
        ({"selectors": ["completion_mean", "completion_mean"]}, "named twice"),
        ({"doses": [0.1, 0.2]}, "with its opposite"),
        ({"coefficients": [1.0]}, "with its opposite"),
        ({"below": "You love your work. Whatever you are asked to do next, you look forward to it."}, "the same system prompt"),
        ({"coeficients": [1.0]}, "did you mean 'coefficients'"),
    ],
)
def test_wrong_settings_are_named(changed, said):
    with pytest.raises(ConfigError, match=said):
        open_ended_steering.SETTINGS.of(changed)


def test_a_wrong_wording_or_too_few_tasks_are_errors_before_the_model_is_loaded(tmp_path, capsys):
    assert main(["open_ended_steering", "--wording", "felings", "--out", str(tmp_path / "o")]) == 1
    assert "felings" in capsys.readouterr().err
    assert main(["open_ended_steering", "--per-origin", "1", "--out", str(tmp_path / "o")]) == 1
    assert "Sample more tasks" in capsys.readouterr().err and not (tmp_path / "o").exists()
