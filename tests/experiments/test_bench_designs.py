"""The study of designs: what it simulates is what it says, and its counts are shares."""

import json

import numpy as np

from elicit.adaptive import RandomMatching
from experiments.bench import designs
from experiments.bench.__main__ import main


def test_a_judge_has_the_utilities_that_intervals_are_held_against():
    learned, true = designs.simulate(20, "strong", RandomMatching(), seed=0)
    assert np.corrcoef(learned.utilities.labels()["value"], true)[0, 1] > 0.95 and abs(true.mean()) < 1e-12
    assert set(designs.simulate(12, "none", RandomMatching(), 0, sampled=True)[0].comparisons["p_first"]) == {0.0, 1.0}
    assert not designs.simulate(12, "none", RandomMatching(), 0)[1].any()


def test_every_judge_meets_every_design(capsys):
    assert main(["designs", "--n", "10", "--seeds", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["judge"], row["design"]) for row in found["rows"]] == [(a, b) for a in designs.JUDGES for b in designs.DESIGNS]
    assert all(0 <= row["coverage"] <= 1 and 10 <= row["pairs"] <= 45 for row in found["rows"])
