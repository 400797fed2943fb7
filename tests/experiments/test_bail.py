"""bail: rates count conversations and not turns, controls stand beside them, and what is not shown is not claimed."""

import json

import pandas as pd
import pytest

from experiments import bail
from experiments.bail import BailSettings, _effect, _rates


def turns(leave: dict[str, list[float]], controls: set[str]) -> pd.DataFrame:
    rows = []
    for task, values in leave.items():
        for turn, p in enumerate(values, start=1):
            row = {"task_id": task, "turn": turn, "draw": 0, "template": "tag", "p_leave": p, "p_stay": 0.2, "order_gap": 0.0}
            rows.append(row | {"bounded": False, "bails": p > 0.35, "control": task in controls, "log_odds": p * 10})
    return pd.DataFrame(rows)


def test_a_conversation_counts_once_and_false_alarms_are_taken_away():
    table = turns(
        {"a": [0.1, 0.5, 0.6], "b": [0.1, 0.1], "c": [0.9], "d": [0.4], "n1": [0.5], "n2": [0.1], "n3": [0.1, 0.1]},
        {"n1", "n2", "n3"},
    )
    rates = _rates("tag", table)
    assert rates["rate"] == 0.75 and rates["rate_n"] == 4 and rates["control_rate"] == pytest.approx(1 / 3)
    assert rates["beyond_controls"] == pytest.approx((0.75 - 1 / 3) / (1 - 1 / 3))
    assert rates["beyond_controls_low"] <= rates["beyond_controls"] <= rates["beyond_controls_high"] <= rates["rate_high"]
    assert rates["rate_low"] < 0.75 < rates["rate_high"]


def test_the_effect_is_that_of_the_last_turn_above_the_controls():
    table = turns(
        {f"a{n}": [0.9, 0.3 + n / 100] for n in range(8)} | {f"n{n}": [0.1 + n / 100] for n in range(8)},
        {f"n{n}" for n in range(8)},
    )
    effect = _effect(table, seed=0)
    assert effect.value == pytest.approx(2.0) and effect.low > 1.5 and effect.n == 16


@pytest.mark.slow
def test_it_runs_on_the_real_model_and_repeats_for_nothing(counted, tmp_path):
    settings = BailSettings(out=tmp_path / "b", per_origin=1, methods=("tag", "tool"))
    result = bail.run(settings)
    assert [finding.name for finding in result.findings] == ["Leaving", "Beyond controls", "Order"]
    assert "Both orders were asked" in result.screen and "controls" in result.screen
    table = pd.read_parquet(tmp_path / "b/tables/turns.parquet")
    assert set(table["template"]) == {"tag", "tool"} and (table["p_leave"] + table["p_stay"] <= 1).all()
    assert (tmp_path / "b/figures/bail_turns.png").stat().st_size > 5000
    counted.clear()
    assert json.dumps(bail.run(settings).summary["rates"]) == json.dumps(result.summary["rates"]) and not counted


def test_conversations_without_controls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 of the control origins"):
        BailSettings(out=tmp_path, origins=("abuse", "pressure")).load_tasks()
