"""Whether intervals hold after active learning, by design: simulated judges with and without preferences."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from elicit import BradleyTerry
from elicit.active import Learned, Stop, learn
from elicit.adaptive import Design, DOptimal, InformationGain, RandomMatching
from elicit.designs import Pair

DESIGNS: dict[str, Design] = {"D-optimal": DOptimal(), "information gain": InformationGain(), "random": RandomMatching()}
JUDGES = {"none": (0.0, 1.0, 1.0), "weak": (0.19, 0.25, 0.55), "strong": (1.0, 0.25, 0.55)}
"""Standard deviations, in logits, of utilities, of what a pair owes to itself, and of its position bias."""


def simulate(n: int, judge: str, design: Design, seed: int, *, sampled: bool = False) -> tuple[Learned, np.ndarray]:
    """Learn the utilities of `n` made tasks; returns what was learned, and the true utilities in the order of its labels."""
    sd, own_sd, bias_sd = JUDGES[judge]
    random, tasks = np.random.default_rng(seed), [f"t{number:04d}" for number in range(n)]
    true = pd.Series(random.normal(size=n) * sd, tasks)
    true -= true.mean()

    def ask(pairs: Sequence[Pair]) -> pd.DataFrame:
        rows = []
        for one, other in pairs:
            bias, own = random.normal() * bias_sd, random.normal() * own_sd
            for first, second, sign in ((one, other, 1), (other, one, -1)):
                logit = true[first] - true[second] + sign * own + bias
                p = float(special.expit(logit))
                rows.append(
                    (first, second, "chose", np.nan if sampled else logit, float(random.random() < p) if sampled else p)
                )
        return pd.DataFrame(rows, columns=["first", "second", "outcome", "logit", "p_first"])

    estimator = BradleyTerry(resamples=100, seed=0) if sampled else None
    stop = Stop(None, pairs=8 * n) if sampled else Stop(0.99)
    learned = learn(ask, tasks, design=design, estimator=estimator, stop=stop, seed=seed)
    return learned, true[learned.utilities.labels()["task_id"]].to_numpy()


def coverage(n: int, judge: str, design: Design, seeds: int, *, sampled: bool = False) -> dict[str, float]:
    """Means over seeds: pairs asked, share of 95 % intervals that contain the truth, spread found, accuracy on random pairs."""
    rows = []
    for seed in range(seeds):
        learned, true = simulate(n, judge, design, seed, sampled=sampled)
        labels = learned.utilities.labels()
        last = learned.history.iloc[-1]
        inside = (labels["low"].to_numpy() <= true) & (true <= labels["high"].to_numpy())
        rows.append((last["pairs"], inside.mean(), labels["value"].std(), last["accuracy"]))
    names = ("pairs", "coverage", "spread", "accuracy")
    return {name: float(value) for name, value in zip(names, np.mean(rows, axis=0), strict=True)}


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    import tyro

    def command(n: int = 120, seeds: int = 4, sampled: bool = False) -> tuple[int, int, bool]:
        """Simulate active learning, and count how often its intervals contain the truth.

        Parameters
        ----------
        n
            Tasks.
        seeds
            Simulations of each judge and design.
        sampled
            One sampled choice in each order, up to eight pairs a task, instead of exact answers until the ranking is stable.
        """
        return n, seeds, sampled

    n, seeds, sampled = tyro.cli(command, args=list(arguments), prog="python -m experiments.bench designs")
    found = []
    print(f"{'preferences':12s} {'design':18s} {'pairs':>7s} {'coverage':>9s} {'spread':>7s} {'accuracy':>9s}")
    for judge in JUDGES:
        for name, design in DESIGNS.items():
            row = coverage(n, judge, design, seeds, sampled=sampled)
            found.append({"judge": judge, "design": name} | row)
            said = f"{row['pairs']:7,.0f} {row['coverage']:9.3f} {row['spread']:7.2f} {row['accuracy']:9.2f}"
            print(f"{judge:12s} {name:18s} {said}", flush=True)
    print(json.dumps({"tasks": n, "seeds": seeds, "sampled": sampled, "rows": found}))
