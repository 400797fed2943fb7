"""Benchmarks run, their contestants agree, and their last line is what programs read."""

import json

from experiments.bench import ask
from experiments.bench.__main__ import main
from tests.conftest import tiny


def test_asking_is_benchmarked_against_peers_that_get_the_same_scores(capsys):
    ask.run(tiny("llama"), files=(), pairs=20, repeats=2, seed=0)
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["bench"] == "ask" and found["speedup"].keys() == found["spread"].keys()
    assert found["work"]["choices"]["questions"] == 20 and found["work"]["choices"]["bound"] > 1.1
    differences = [float(line.split()[-1]) for line in table if line.strip().startswith(("choices ", "ratings "))]
    assert len(differences) >= 8 and max(differences) < 1e-4


def test_unknown_benchmarks_are_named(capsys):
    assert main(["aks"]) == 1
    assert "There is no benchmark 'aks'" in capsys.readouterr().out
    assert main([]) == 0
