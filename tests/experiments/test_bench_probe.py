"""The benchmark of probes runs, its contestants agree, and its last line is what programs read."""

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from experiments.bench import probe
from experiments.bench.__main__ import main


def test_probes_are_benchmarked_against_peers_that_predict_the_same(capsys):
    small = "--n 60 --width 70 --alphas 3 --folds 3 --targets 2 --permutations 2 --looped 2 --rounds 2"
    sweep = "--sweep-tasks 40 --sweep-layers 2 --sweep-positions 2 --sweep-width 20 --threads 1"
    assert main(["probe", *small.split(), *sweep.split()]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["bench"] == "probe" and found["speedup"].keys() == found["spread"].keys()
    assert found["work"]["sweep"]["float32"]["seconds"] > 0 and found["machine"].endswith("1 threads")
    assert any("6 columns, timed on 2 of them" in line for line in table)
    every = [name for name in found["speedup"] if name.startswith("one target, every alpha")]
    assert len(every) == 2


def test_a_loop_over_some_columns_is_scaled_to_all_of_them():
    work = probe.Work.simulated(40, 10, 2, 4, alphas=2, folds=2, seed=0)
    assert probe._many(work, work.cut(2, "float64"), None).times[probe._LOOP] == 10 / 2


@pytest.mark.parametrize(("n", "d"), [(40, 60), (60, 40)])
def test_a_contestant_that_predicts_something_else_is_found_out(n, d):
    work = probe.Work.simulated(n, d, 2, 1, alphas=2, folds=3, seed=0)
    with threadpool_limits(1):
        path = probe._loop(work)
        np.testing.assert_allclose(path[0, work.folds == 1].std(), path[0].std(), rtol=0.9)
        with pytest.raises(ValueError, match=r"chosen alphas in float64: predictions differ .*'theirs': 0\.01"):
            probe._check("chosen alphas", {"penchant": path, "theirs": path + 0.01}, work)
