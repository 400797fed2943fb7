"""Fitting: Bradley-Terry against choix and a plain PyTorch fit of a spread per task; and how cost grows with comparisons."""

import importlib
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from elicit import BradleyTerry, Thurstone, ThurstoneSigmas, Utilities, hold_out_accuracy
from elicit.reliability.drawing import BLUE, GREEN, new_axes
from experiments.bench.timing import interleaved, ratio, result

_SD, _POSITION = 3.0, 0.5
_EPOCHS, _LEARNING_RATE = 1000, 0.01
_ADAM = "PyTorch Adam, a sigma per task"
_GROWTH = (20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)

Scores = Float[np.ndarray, " tasks"]


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    import tyro

    def command(
        tasks: int = 1000,
        degree: int = 10,
        repeats: int = 5,
        scale_tasks: int = 10_000,
        scale_comparisons: int = 1_000_000,
        figure: Path | None = None,
        seed: int = 0,
    ) -> None:
        """Fit sampled comparisons of simulated tasks.

        Parameters
        ----------
        tasks
            Tasks of the comparison with peers.
        degree
            Comparisons of every task with others there, each in both orders.
        repeats
            Rounds; contestants take turns in each.
        scale_tasks, scale_comparisons
            Size of the large fit, and the most to which growth is followed.
        figure
            Where to draw how cost grows (PNG).
        seed
            Of the simulation.
        """
        run(tasks, degree, repeats, (scale_tasks, scale_comparisons), figure, seed)

    tyro.cli(command, args=list(arguments), prog="python -m experiments.bench fit")


def run(tasks: int, degree: int, repeats: int, scale: tuple[int, int], figure: Path | None, seed: int) -> None:
    """Compare with peers, then measure the large fits."""
    fitted, held = simulated(tasks, tasks * degree // 2, seed), simulated(tasks, 5000, seed, answers_seed=seed + 1)
    contestants = _contestants(tasks, fitted)
    losses = {name: _losses(name, contestant(), held, tasks) for name, contestant in contestants.items()}  # also the warm-up
    seconds = interleaved(contestants, repeats)
    rows, speedup, spread = [], {}, {}
    for name in contestants:
        median, extremes = ratio(seconds[name], seconds["penchant"])
        rows.append(
            {"contestant": name, "seconds": np.median(seconds[name]), "penchant is faster by": median}
            | {"from": extremes[0], "to": extremes[1]}
            | losses[name]
        )
        if name != "penchant":
            speedup[name], spread[name] = median, extremes
    print(
        f"{tasks:,} tasks, {len(fitted):,} answers; hold-out log loss on {len(held):,} others, with position term and without"
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    for name, estimator in (("Thurstone", Thurstone(errors="none")), ("Thurstone with sigmas", ThurstoneSigmas(errors="none"))):
        found = hold_out_accuracy(estimator.fit(fitted), held)
        print(f"penchant's {name}: hold-out log loss {found.log_loss.value:.4f}")
    work = {
        "tasks": tasks,
        "answers": len(fitted),
        "bootstrap_200_of_1000_tasks_20000_answers_s": _apart(_bootstrap_seconds, 1000, 10_000, seed)["seconds"],
        "large": _apart(_large, *scale, seed),
        "growth": _growth(scale, seed, figure),
        "hold_out": losses,
    }
    large = work["large"]
    print(
        f"200 bootstrap refits of 1,000 tasks and 20,000 answers: {work['bootstrap_200_of_1000_tasks_20000_answers_s']:.1f} s\n"
        f"{scale[0]:,} tasks, {scale[1]:,} answers: point fit {large['fit_s']:.2f} s, at most {large['peak_gb']:.2f} GB; "
        f"errors by 200 bootstrap refits {large['bootstrap_s']:.0f} s, from the Hessian {large['hessian_s']:.0f} s\n"
        f"seconds grow as answers to the power {work['growth']['exponent']:.2f} from {_GROWTH[0]:,} to {scale[1]:,} answers"
    )
    print(result("fit", speedup, spread, work, f"{platform.machine()}, {os.cpu_count()} cores"))


def simulated(tasks: int, pairs: int, seed: int, *, answers_seed: int | None = None) -> pd.DataFrame:
    """Choices between random pairs of tasks with normal utilities, each pair in both orders, with a position bias."""
    utilities = np.random.default_rng([seed, tasks]).normal(size=tasks) * _SD
    random = np.random.default_rng([seed if answers_seed is None else answers_seed, pairs, 1])
    one = random.integers(tasks, size=pairs)
    other = (one + random.integers(1, tasks, size=pairs)) % tasks
    first, second = np.concatenate([one, other]), np.concatenate([other, one])
    p = special.expit(utilities[first] - utilities[second] + _POSITION)
    names = np.array([f"task_{number:07d}" for number in range(tasks)])
    chosen = (random.random(2 * pairs) < p).astype(float)
    return pd.DataFrame({"first": names[first], "second": names[second], "p_first": chosen})


def _contestants(tasks: int, fitted: pd.DataFrame) -> dict[str, Callable[[], Any]]:
    first, second, won = _arrays(fitted)
    found: dict[str, Callable[[], Any]] = {
        "penchant": lambda: BradleyTerry(errors="none").fit(fitted),
        _ADAM: lambda: _adam(tasks, first, second, won),
    }
    try:
        choix = importlib.import_module("choix")
    except ImportError:
        print("choix is not installed, so it takes no part: pip install 'penchant[bench]'")
        return found
    data = [(one, other) if first_won else (other, one) for one, other, first_won in zip(first, second, won == 1, strict=True)]
    return found | {
        "choix ilsr": lambda: choix.ilsr_pairwise(tasks, data, alpha=0.01),
        "choix opt": lambda: choix.opt_pairwise(tasks, data, alpha=0.25),
        "choix mm": lambda: choix.mm_pairwise(tasks, data, alpha=0.01),
    }


def _adam(tasks: int, first: np.ndarray, second: np.ndarray, won: np.ndarray) -> tuple[Scores, Scores]:
    """Fit a mean and a spread per task by gradient descent, as the utility-engineering literature does."""
    import torch

    one, other = torch.tensor(first), torch.tensor(second)
    target = torch.tensor(won, dtype=torch.float32)
    means, log_sigmas = torch.zeros(tasks, requires_grad=True), torch.zeros(tasks, requires_grad=True)
    optimiser = torch.optim.Adam([means, log_sigmas], lr=_LEARNING_RATE)
    for _ in range(_EPOCHS):
        optimiser.zero_grad()
        sigmas = log_sigmas.exp()
        z = (means[one] - means[other]) / (sigmas[one] ** 2 + sigmas[other] ** 2).sqrt()
        p = torch.special.ndtr(z).clamp(1e-6, 1 - 1e-6)
        torch.nn.functional.binary_cross_entropy(p, target).backward()
        optimiser.step()
    return means.detach().numpy().astype(float), log_sigmas.detach().exp().numpy().astype(float)


def _losses(name: str, found: Any, held: pd.DataFrame, tasks: int) -> dict[str, float]:
    """Hold-out log loss with the position term, where there is one, and without."""
    if isinstance(found, Utilities):
        score = hold_out_accuracy(found, held)
        without = score.log_loss_without_position
        return {"log loss": score.log_loss.value, "without position": without.value if without else float("nan")}
    first, second, won = _arrays(held)
    if name == _ADAM:
        means, sigmas = found
        p = special.ndtr((means[first] - means[second]) / np.hypot(sigmas[first], sigmas[second])).clip(1e-6, 1 - 1e-6)
    else:
        p = special.expit(found[first] - found[second])
    return {"log loss": float("nan"), "without position": float(-np.mean(np.log(np.where(won == 1, p, 1 - p))))}


def _arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second = (table[end].str.slice(5).astype(int).to_numpy() for end in ("first", "second"))
    return first, second, table["p_first"].to_numpy(dtype=float)


def _apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _bootstrap_seconds(tasks: int, pairs: int, seed: int) -> dict[str, Any]:
    table = simulated(tasks, pairs, seed)
    BradleyTerry(resamples=2).fit(table)
    return {"seconds": _timed(lambda: BradleyTerry(resamples=200).fit(table))}


def _large(tasks: int, answers: int, seed: int) -> dict[str, Any]:
    table = simulated(tasks, answers // 2, seed)
    fit_s = _timed(lambda: BradleyTerry(errors="none").fit(table))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {
        "tasks": tasks,
        "answers": answers,
        "fit_s": fit_s,
        "peak_gb": peak / 1e9,
        "bootstrap_s": _timed(lambda: BradleyTerry(resamples=200).fit(table)),
        "hessian_s": _timed(lambda: BradleyTerry(errors="hessian", resamples=200).fit(table)),
    }


def _growth(scale: tuple[int, int], seed: int, figure: Path | None) -> Mapping[str, Any]:
    """Seconds of a point fit by number of answers, the least of three, with the exponent of their growth."""
    sizes = [answers for answers in _GROWTH if answers <= scale[1]]
    seconds = []
    for answers in sizes:
        table = simulated(scale[0], answers // 2, seed)
        seconds.append(min(_timed(lambda table=table: BradleyTerry(errors="none").fit(table)) for _ in range(3)))
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    if figure is not None:
        drawn, axes = new_axes(5.6, 3.8)
        axes.loglog(sizes, seconds, "-o", color=BLUE, label="point fit, from the table of answers")
        axes.loglog(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], "--", color=GREEN, label="linear")
        axes.set(xlabel=f"answers ({scale[0]:,} tasks)", ylabel="seconds", title=f"Growth: answers to the power {exponent:.2f}")
        axes.legend(fontsize=8, frameon=False)
        drawn.savefig(figure, dpi=160)
    return {"answers": sizes, "seconds": seconds, "exponent": exponent}
