"""Ridge probes: every alpha, target and permutation from one decomposition a fold, against scikit-learn and himalaya."""

import importlib
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from experiments.bench.timing import interleaved, ratio, result
from interp import probe_sweep
from interp.ridge import Choice, cross_predict, cross_predict_path, grouped_folds
from interp.shifted import Precision
from store import ActivationStore, ActivationWriter, Slots, StoreHeader
from store.provenance import ModelIdentity

_OURS, _LOOP, _MATRIX = "penchant", "scikit-learn Ridge per fold x alpha", "scikit-learn Ridge per fold x alpha, all columns"
_INNER = "penchant, inner folds"
_PRECISIONS: tuple[Precision, Precision] = ("float64", "float32")
_AGREEMENT = {"float64": 1e-6, "float32": 1e-2}
"""Largest difference between predictions, in units of their target, at which two contestants did the same work."""


@dataclass(frozen=True)
class Work:
    """What is predicted: targets and, beside each, its permutations, from rows in folds.

    Attributes
    ----------
    features, columns
        In the precision that is computed with.
    """

    features: Float[np.ndarray, "n d"]
    columns: Float[np.ndarray, "n columns"]
    folds: Int[np.ndarray, " n"]
    alphas: tuple[float, ...]
    dtype: Precision

    @classmethod
    def simulated(cls, n: int, d: int, targets: int, permutations: int, *, alphas: int, folds: int, seed: int) -> "Work":
        """Correlated features of unequal scale, as in a residual stream, and targets that follow some of them."""
        random = np.random.default_rng([seed, n, d])
        features = random.normal(size=(n, d)) * np.exp(random.normal(size=d)) + random.normal(size=(n, 1)) * random.normal(
            size=d
        )
        values = features @ random.normal(size=(d, targets)) / np.linalg.norm(features) * np.sqrt(n)
        values += random.normal(size=(n, targets))
        columns = [random.permuted(values, axis=0) for _ in range(permutations)]
        levels = tuple(np.logspace(0, 5, alphas).tolist())
        return cls(
            features, np.concatenate([values, *columns], axis=1), grouped_folds(range(n), folds, seed), levels, "float64"
        )

    def cut(self, columns: int, dtype: Precision) -> "Work":
        """The first columns alone, in another precision."""
        return Work(self.features.astype(dtype), self.columns[:, :columns].astype(dtype), self.folds, self.alphas, dtype)

    def parts(self) -> "list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]":
        """For every fold: which rows it has, its standardised features, and those and the columns that are trained on."""
        found = []
        for fold in np.unique(self.folds):
            train, test = self.folds != fold, self.folds == fold
            scaler = StandardScaler().fit(self.features[train])
            held, seen = (np.asarray(scaler.transform(self.features[rows])) for rows in (test, train))
            found.append((test, held, seen, self.columns[train]))
        return found


@dataclass(frozen=True)
class Comparison:
    """Contestants at one work, how many times their work is the whole of it, and the speedup that is meant."""

    name: str
    contestants: Mapping[str, Callable[[], Any]]
    times: Mapping[str, float] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    import tyro

    def command(
        n: int = 2000,
        width: int = 2048,
        alphas: int = 11,
        folds: int = 5,
        targets: int = 20,
        permutations: int = 100,
        looped: int = 1,
        rounds: int = 5,
        sweep_tasks: int = 2000,
        sweep_layers: int = 30,
        sweep_positions: int = 3,
        sweep_width: int = 576,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        """Cross-validate ridge probes: one target, many columns at once, and all layers and positions of a model.

        Parameters
        ----------
        n, width
            Rows and features.
        alphas, folds
            Penalties tried, and folds predicted.
        targets, permutations
            Columns of the larger work: so many targets, each with so many permutations.
        looped
            Columns that the loop over columns is timed on; its seconds are scaled to all of them.
        rounds
            Contestants take turns in each. The work of many columns is done once in two.
        sweep_tasks, sweep_layers, sweep_positions, sweep_width
            Of a whole sweep of one target and its permutations, with the default penalties, five folds and baselines.
        threads
            Of linear algebra, for everyone. Default: as many as cores.
        seed
            Of the simulation.
        """
        with threadpool_limits(threads):
            work = Work.simulated(n, width, targets, permutations, alphas=alphas, folds=folds, seed=seed)
            sweep = Sweep(sweep_tasks, sweep_layers, sweep_positions, sweep_width, permutations, seed)
            run(work, sweep, looped=looped, rounds=rounds, threads=threads)

    tyro.cli(command, args=list(arguments), prog="python -m experiments.bench probe")


def run(work: Work, sweep: "Sweep", *, looped: int, rounds: int, threads: int | None = None) -> None:
    """Time every comparison, and the sweep, in both precisions."""
    himalaya = _himalaya()
    table, speedup, spread = [], {}, {}
    for dtype in _PRECISIONS:
        one, all_columns = work.cut(1, dtype), work.cut(work.columns.shape[1], dtype)
        comparisons = [_every_alpha(one), _chosen(one, himalaya), _many(all_columns, work.cut(looped, dtype), himalaya)]
        for comparison, repeats in zip(comparisons, (rounds, rounds, max(1, rounds // 2)), strict=True):
            seconds = interleaved(comparison.contestants, repeats)
            whole = {name: [each * comparison.times.get(name, 1) for each in found] for name, found in seconds.items()}
            for name in comparison.contestants:
                median, extremes = ratio(whole[name], whole[_OURS])
                key = f"{comparison.name}, {dtype}"
                scaled = " (scaled)" if name in comparison.times else ""
                row = {"work": key, "contestant": name + scaled, "seconds": np.median(whole[name])}
                row |= {"penchant is faster by": median, "from": extremes[0], "to": extremes[1]}
                table.append(row | {"target": comparison.targets.get(name, np.nan)})
                if name not in (_OURS, _INNER):
                    speedup[f"{key}: {name}"], spread[f"{key}: {name}"] = median, extremes
    n, d = work.features.shape
    print(f"{n:,} rows, {d:,} features, {len(work.alphas)} alphas, {len(np.unique(work.folds))} folds")
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    print(f"scaled: a loop over {work.columns.shape[1]:,} columns, timed on {looped} of them")
    sweeps = sweep.run()
    print(
        f"probe_sweep of {sweep.layers} layers x {sweep.positions} positions, {sweep.tasks:,} tasks x {sweep.width} features, "
        f"{sweep.permutations} permutations:"
    )
    for dtype, found in sweeps.items():
        print(f"  {dtype}: {found['seconds']:.1f} s; arrays while one table is probed, at most {found['peak_gb']:.2f} GB")
    print(
        result("probe", speedup, spread, {"sweep": sweeps}, f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads")
    )


def _every_alpha(work: Work) -> Comparison:
    """Predictions of every fold at every alpha."""

    def ours() -> np.ndarray:
        return cross_predict_path(work.features, work.columns, work.folds, work.alphas, dtype=work.dtype)

    contestants = {_OURS: ours, _LOOP: partial(_loop, work)}
    _check("every alpha", {name: contestant() for name, contestant in contestants.items()}, work)
    return Comparison("one target, every alpha", contestants, targets={_LOOP: 5.0})


def _chosen(work: Work, himalaya: Any) -> Comparison:
    """Predictions of every fold, alpha chosen inside its training part."""
    contestants = {_OURS: partial(_ours, work), _INNER: partial(_ours, work, choice="folds")}
    contestants["scikit-learn RidgeCV per fold"] = partial(_ridge_cv, work)
    if himalaya is not None:
        contestants["himalaya per fold, inner folds"] = partial(_by_himalaya, work, himalaya)
    leaving_one_out = [_OURS, "scikit-learn RidgeCV per fold"]
    _check("chosen alphas", {name: contestants[name]() for name in leaving_one_out}, work)
    for name in contestants.keys() - set(leaving_one_out):
        contestants[name]()  # to be warm
    return Comparison("one target, alpha chosen", contestants)


def _many(work: Work, some: Work, himalaya: Any) -> Comparison:
    """The same for many columns, of which a loop takes one after the other."""
    contestants = {_OURS: partial(_ours, work), _LOOP: partial(_loop, some), _MATRIX: partial(_loop, work)}
    contestants["scikit-learn RidgeCV per fold"] = partial(_ridge_cv, work)
    if himalaya is not None:
        contestants["himalaya per fold, inner folds"] = partial(_by_himalaya, work, himalaya)
    columns = work.columns.shape[1]
    times = {_LOOP: columns / some.columns.shape[1]}
    return Comparison(f"{columns:,} columns, alpha chosen", contestants, times, {_LOOP: 100.0})


def _ours(work: Work, choice: Choice = "leave_one_out") -> np.ndarray:
    return cross_predict(work.features, work.columns, work.folds, work.alphas, choice=choice, dtype=work.dtype)[0]


def _loop(work: Work) -> np.ndarray:
    """A fit for every fold and alpha; of several columns at once where there are several."""
    path = np.empty((len(work.alphas), *work.columns.shape))
    for test, held, seen, columns in work.parts():
        for number, alpha in enumerate(work.alphas):
            path[number, test] = Ridge(alpha).fit(seen, columns).predict(held).reshape(len(held), -1)
    return path


def _ridge_cv(work: Work) -> np.ndarray:
    predicted = np.empty(work.columns.shape)
    for test, held, seen, columns in work.parts():
        fitted = RidgeCV(work.alphas, alpha_per_target=True).fit(seen, columns)
        predicted[test] = fitted.predict(held).reshape(len(held), -1)
    return predicted


def _by_himalaya(work: Work, himalaya: Any) -> np.ndarray:
    """Every target with its own alpha, chosen by folds inside the training part; of the targets' means it is told."""
    predicted = np.empty(work.columns.shape)
    for test, held, seen, columns in work.parts():
        wide = seen.shape[0] <= seen.shape[1]
        model = (himalaya.KernelRidgeCV if wide else himalaya.RidgeCV)(work.alphas, cv=len(np.unique(work.folds)) - 1)
        mean = columns.mean(axis=0)
        predicted[test] = model.fit(seen, columns - mean).predict(held) + mean
    return predicted


def _himalaya() -> Any:
    """The library's classes, or None, with a word, where it is not installed."""
    try:
        kernel, plain = importlib.import_module("himalaya.kernel_ridge"), importlib.import_module("himalaya.ridge")
    except ImportError:
        print("himalaya is not installed, so it takes no part: pip install himalaya")
        return None
    return SimpleNamespace(KernelRidgeCV=kernel.KernelRidgeCV, RidgeCV=plain.RidgeCV)


def _check(name: str, found: Mapping[str, np.ndarray], work: Work) -> None:
    """See that contestants predict the same; this is also everybody's warm-up.

    Raises
    ------
    ValueError
        Somebody predicts something else.
    """
    limit = _AGREEMENT[work.dtype] * work.columns.std()
    differences = {peer: float(np.abs(each - found[_OURS]).max()) for peer, each in found.items()}
    if wrong := {peer: difference for peer, difference in differences.items() if not difference < limit}:
        raise ValueError(
            f"{name} in {work.dtype}: predictions differ from penchant's by {wrong}; expected less than {limit:.1e}."
        )


@dataclass(frozen=True)
class Sweep:
    """A whole `probe_sweep` of one target: every layer and position of a store, with baselines, permutations and intervals."""

    tasks: int
    layers: int
    positions: int
    width: int
    permutations: int
    seed: int

    def run(self) -> dict[str, dict[str, float]]:
        """Seconds in each precision, and the most memory that arrays take while one layer and position is probed."""
        with TemporaryDirectory() as folder:
            store, labels = self._store(Path(folder) / "activations.h5"), self._labels()
            return {dtype: self._timed(store, labels, dtype) for dtype in _PRECISIONS}

    def _timed(self, store: ActivationStore, labels: pd.DataFrame, dtype: Precision) -> dict[str, float]:
        started = time.perf_counter()
        probe_sweep(store, labels, permutations=self.permutations, dtype=dtype, seed=self.seed)
        seconds = time.perf_counter() - started
        tracemalloc.start()
        where = {"layers": store.header.layers[-1:], "positions": store.header.positions[:1]}
        probe_sweep(store, labels, **where, permutations=self.permutations, dtype=dtype, seed=self.seed)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {"seconds": seconds, "peak_gb": peak / 1e9}

    def _store(self, path: Path) -> ActivationStore:
        """Rows that are correlated over tasks, as those of a model are, in the format that it is cached in."""
        names = self._names
        positions = tuple(f"position {number}" for number in range(self.positions))
        model = ModelIdentity("made up", "none", "none")
        header = StoreHeader(model, "none", "none", "none", "bfloat16", self.width, tuple(range(self.layers)), positions)
        random = np.random.default_rng(self.seed)
        shared = random.normal(size=(self.tasks, self.width)) * np.exp(random.normal(size=self.width))
        with ActivationWriter.resume(path, header, Slots(names, names)) as writer:
            rows = {
                (layer, position): (shared + random.normal(size=shared.shape)).astype(np.float32)
                for layer in header.layers
                for position in positions
            }
            token_index = {position: np.full(self.tasks, -1) for position in positions}
            writer.write(np.arange(self.tasks), rows, random.integers(5, 50, self.tasks), token_index)
        return ActivationStore(path)

    def _labels(self) -> pd.DataFrame:
        values = np.random.default_rng([self.seed, 1]).normal(size=self.tasks)
        known = {"value": values, "se": 0.1, "low": values, "high": values, "n": 1, "method": "made up"}
        return pd.DataFrame({"task_id": self._names, "target": "utility"} | known)

    @property
    def _names(self) -> list[str]:
        return [f"task{number}" for number in range(self.tasks)]
