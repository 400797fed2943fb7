"""position_bias: on answers with a known bias it says what was put in, and on the real model it repeats for nothing."""

import numpy as np
import pandas as pd
import pytest

from elicit.templates import TemplateError
from experiments import position_bias
from experiments.position_bias import PositionBiasSettings, _biases, _order_finding, _table, _worth_of_orders
from store.estimates import Estimate


def simulated(spread: float, seed: int = 0) -> pd.DataFrame:
    """Two templates that share their utilities and have biases of their own over 300 pairs."""
    random = np.random.default_rng(seed)
    rows = []
    for pair, content in enumerate(random.normal(0, 0.3, 300)):
        for template in ("one", "two"):
            bias = 0.5 + spread * random.normal()
            for first, second, sign in ((f"a{pair}", f"b{pair}", 1), (f"b{pair}", f"a{pair}", -1)):
                rows.append((first, second, template, 0, "chose", 1.0, sign * content + bias, 0.5))
    return pd.DataFrame(rows, columns=["first", "second", "template", "draw", "outcome", "mass", "logit", "p_first"])


def test_bias_spread_and_content_are_told_apart_and_one_order_is_worth_what_the_spread_leaves():
    comparisons = simulated(spread=0.6)
    biases = _biases(comparisons, seed=0)
    table = _table(comparisons, biases).set_index("template")
    for name in ("one", "two"):
        assert table.loc[name, "mean_low"] < 0.5 < table.loc[name, "mean_high"]
        assert table.loc[name, "spread"] == pytest.approx(0.6, abs=0.08)
        assert table.loc[name, "content"] == pytest.approx(0.3, abs=0.04)
    one, two = _worth_of_orders(biases, seed=0)
    assert two.value == pytest.approx(1)
    # One order reads content + bias: its correlation about zero with content is sd / sqrt(sd^2 + spread^2 + mean^2).
    assert one.low < 0.3 / np.sqrt(0.3**2 + 0.6**2 + 0.5**2) < one.high


def test_without_bias_one_order_is_as_good_as_two():
    comparisons = simulated(spread=0.0)
    comparisons["logit"] -= 0.5
    one, two = _worth_of_orders(_biases(comparisons, seed=0), seed=0)
    assert one.value == pytest.approx(two.value)


def test_it_runs_on_the_real_model_and_repeats_for_nothing(counted, tmp_path):
    settings = PositionBiasSettings(
        out=tmp_path / "p", per_origin=2, degree=2, templates=("would_rather", "pick_one,labels=12", "would_rather,language=es")
    )
    result = position_bias.run(settings)
    assert "Being shown first is worth from" in result.screen and "One order" in result.screen
    table = pd.read_parquet(tmp_path / "p/tables/position_bias.parquet").set_index("template")
    assert table.loc["would_rather", "on_format"] == 1 and table.loc["would_rather", "pairs"] == 12
    assert (tmp_path / "p/report.html").exists() and (tmp_path / "p/figures/position_bias.png").stat().st_size > 5000
    counted.clear()
    assert position_bias.run(settings).summary == result.summary and not counted


def test_a_wrong_template_is_an_error_before_anything_is_loaded(tmp_path):
    with pytest.raises(TemplateError, match="no phrasing 'nope'"):
        position_bias.run(PositionBiasSettings(out=tmp_path / "p", templates=("would_rather", "nope")))
    assert not (tmp_path / "p").exists()


def test_too_few_pairs_for_any_agreement_are_said_to_be_too_few():
    one = Estimate(0.48, 0.09, 0.87, 0.2, 9)
    assert (
        "9 pairs are too few to find even perfect agreement"
        in _order_finding(one, Estimate(0.45, -0.67, 1.57, 0.57, 9)).sentence
    )
    assert "would be found about four times in five is 0.84" in _order_finding(one, Estimate(0.1, -0.49, 0.69, 0.3, 9)).sentence
