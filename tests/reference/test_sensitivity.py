"""Template sensitivity of someone else's 48 runs over 500 tasks: the published regression comes out."""

import pandas as pd
import pytest

from elicit.reliability import template_sensitivity


@pytest.fixture(scope="module")
def found(reference):
    fields = pd.read_csv(reference / "sensitivity_tags.csv", index_col="run")
    values = pd.read_csv(reference / "sensitivity_utilities.csv", index_col="task")
    return template_sensitivity(values, fields)


def test_the_published_betas_and_r_squared_are_reproduced(found):
    assert (found.runs, found.pairs, found.r_squared.n) == (48, 1128, 1128)
    assert round(found.r_squared.value, 3) == 0.249
    betas = found.fields["value"].round(3)
    assert (betas["order"], betas["instruction_position"], betas["response_format"]) == (0.328, 0.093, 0.057)
    assert betas.nlargest(3).index.tolist() == ["order", "instruction_position", "response_format"]


def test_fields_that_never_vary_apart_in_the_published_design_are_named(found):
    assert found.aliased["language"] == ("phrasing",)
    assert found.aliased["typos"] == ("instruction_xml_tags", "punctuation", "task_label_names")
    assert "language = phrasing" in found.fields.index and len(found.fields) == 7 and found.constant == ()


def test_what_permuting_runs_leaves_of_the_published_effects(found):
    p = found.fields["p"]
    assert p["order"] == 1 / 1000 and p["instruction_position"] < 0.05 and p["response_format"] < 0.05
    assert (p.drop(["order", "instruction_position", "response_format"]) > 0.1).all()
