"""self_vs_cross: several models (or steered views of one) do the same tasks and rate each other's work and their own."""

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from pydantic import Field

from elicit import Context, ask, choice, completion, fit_least_squares, rating, regular_pairs
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.loop import cache_activations
from experiments.publish import Result, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from interp import Intervention, LocalModel, preference_direction
from interp.layers import LayerSpec
from store import Estimate, Sampling

_BASE = "base"
_RESAMPLES = 1000
_LEAST_TASKS = 6


class SelfVsCrossSettings(Settings):
    """Have every respondent do the tasks, and rate what every respondent did."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "out": Path("runs/self_vs_cross_quick")}

    out: Path = Field(
        default=Path("runs/self_vs_cross"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=8, ge=1, description="Tasks sampled from each origin.")
    others: tuple[str, ...] = Field(default=(), description="More models: embedded, folders with checkpoints, or hub ids.")
    doses: tuple[float, ...] = Field(
        default=(-0.2, 0.2), description="Views of the model steered along its preference direction; none to leave them out."
    )
    layer: LayerSpec = Field(default=0.5, description="Layer that is steered.")
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no", "good_bad", "stated_10"),
        min_length=1,
        description="Scales of mode rating, asked after doing.",
    )
    wording: str = Field(default="would_rather", description="Template of the choices that the direction is made from.")
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")
    max_new_tokens: int = Field(default=60, ge=1, description="Length of a completion.")
    temperature: float = Field(default=0.7, ge=0, description="Of the completions.")


SETTINGS = SelfVsCrossSettings


def run(settings: SelfVsCrossSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    for scale in settings.scales:
        template("rating", scale)  # a wrong name is an error before the model is loaded
    if len(settings.doses) + len(settings.others) < 1:
        raise ValueError("There is one respondent; expected two or more: give --doses or --others.")
    setup = Setup.of(settings, settings.load_tasks())
    respondents = _respondents(setup, settings)
    written = {name: _write(setup, model, settings) for name, model in respondents.items()}
    ratings = pd.concat(
        [_rate(setup, rater, model, each, settings) for rater, model in respondents.items() for each in written.items()],
        ignore_index=True,
    )
    values = matrix_of(ratings, list(respondents))
    if len(values) < _LEAST_TASKS:
        raise ValueError(
            f"{len(values)} tasks have a rating on format from every respondent of every respondent's work; expected "
            f"{_LEAST_TASKS}. Choose scales that all can answer after doing, or gentler doses."
        )
    names = list(respondents)
    cells = cells_table(values, names, settings.seed)
    effects = self_effects(values, names, settings.seed)
    setup.run.save_table("completions", pd.concat(written.values(), ignore_index=True))
    for name, table in (("ratings", ratings), ("cells", cells)):
        setup.run.save_table(name, table)
    spreads = _spreads(values, settings.seed)
    return publish(
        setup,
        experiment="self_vs_cross",
        question=rating.questions(setup.tasks[:1], scale=settings.scales[0], completions=completion.texts(written[_BASE]))[0],
        findings=[_self_finding(effects, names), _spread_finding(spreads, names)],
        figures={"self_vs_cross": matrix_figure(cells, names), "self_effects": effects_figure(effects)},
        tables=[
            Table("Ratings", "Mean rating, as a share of the scale's length, with intervals by bootstrap over tasks.", cells),
            Table(
                "Own work",
                "By how much a respondent's rating of its own work exceeds the sum of how it rates and how it is rated.",
                pd.DataFrame([{"respondent": name} | each.to_dict() for name, each in effects.items()]),
            ),
        ],
        methods=(
            f"{len(names)} respondents ({', '.join(names)}) each did {len(setup.tasks)} tasks (up to {settings.max_new_tokens} "
            f"tokens, temperature {settings.temperature:g}) and rated everyone's completions after doing, as if they were "
            f"their own, on {', '.join(settings.scales)}; ratings are shares of a scale's length, averaged over scales. "
            "Steered views are pushed on all tokens along the difference of means between the tasks preferred most and "
            "least, doses in mean residual norms. The effect of own work is the interaction of rater and writer on the "
            "diagonal, within tasks; intervals are a bootstrap over tasks."
        ),
        summary={"cells": cells.to_dict("records"), "own_work": effects, "spreads": spreads},
        seconds=time.monotonic() - started,
    )


def _respondents(setup: Setup, settings: SelfVsCrossSettings) -> dict[str, LocalModel]:
    found = {_BASE: setup.model}
    if any(settings.doses):
        found |= _steered(setup, settings)
    for name in settings.others:
        model = settings.model_copy(update={"model": name}).load_model()
        found[model.identity.name] = model
    return found


def _steered(setup: Setup, settings: SelfVsCrossSettings) -> dict[str, LocalModel]:
    """Views pushed on all tokens along the model's own preference direction."""
    (layer,) = setup.model.layers([settings.layer])
    pairs = regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)
    asked = choice.questions(setup.tasks, pairs, wording=settings.wording)
    utilities = fit_least_squares(choice.comparisons(asked, setup.ask(asked, "choices")), resamples=50, seed=settings.seed)
    store = cache_activations(setup.model, setup.tasks, [layer], ["task_mean"], setup.run)
    direction = preference_direction(store, utilities.labels(), layer=layer, position="task_mean")
    # One unit of dose is measured on prompts as they are when a task is done.
    doing = completion.questions(setup.tasks)
    vector = setup.model.calibrate(direction, doing, ["all"])
    setup.run.save_direction("preference", vector)
    return {f"dose {dose:+g}": setup.model.steered(Intervention.everywhere(vector, dose)) for dose in settings.doses if dose}


def _write(setup: Setup, model: LocalModel, settings: SelfVsCrossSettings) -> pd.DataFrame:
    sampling = Sampling(settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed)
    asked = completion.questions(setup.tasks, context=Context(sampling=sampling))
    answers = ask(asked, model, setup.run.log, description="completions")
    return completion.completions(asked, answers).assign(writer=model.identity.name)


def _rate(
    setup: Setup, rater: str, model: LocalModel, work: tuple[str, pd.DataFrame], settings: SelfVsCrossSettings
) -> pd.DataFrame:
    writer, written = work
    texts = {task: text for task, text in completion.texts(written).items() if text.strip()}
    tasks = [task for task in setup.tasks if task.id in texts]
    tables = []
    for scale in settings.scales:
        asked = rating.questions(tasks, scale=scale, completions=texts)
        table = rating.ratings(asked, ask(asked, model, setup.run.log, description=f"{rater} rates {writer}"))
        tables.append(table.assign(share=rating.shares(table), rater=rater, writer=writer))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Spreads:
    """How much raters and writers differ: standard deviations of their means, in shares of a scale's length."""

    raters: Estimate
    writers: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return {"raters": self.raters.to_dict(), "writers": self.writers.to_dict()}


def matrix_of(ratings: pd.DataFrame, names: Sequence[str]) -> Float[np.ndarray, "tasks raters writers"]:
    """Ratings averaged over scales, of the tasks with an answer on format everywhere."""
    wide = ratings.pivot_table(index="task_id", columns=["rater", "writer", "scale"], values="share", dropna=False).dropna()
    mean = wide.T.groupby(level=["rater", "writer"]).mean().T
    cells = [[mean[rater, writer].to_numpy() for writer in names] for rater in names]
    return np.moveaxis(np.array(cells, dtype=float), -1, 0)


def cells_table(values: Float[np.ndarray, "tasks raters writers"], names: Sequence[str], seed: int) -> pd.DataFrame:
    """Mean rating of every rater for every writer."""
    rows = []
    for (i, rater), (j, writer) in itertools.product(enumerate(names), enumerate(names)):
        rows.append({"rater": rater, "writer": writer} | _over_tasks(values, lambda v, i=i, j=j: v[..., i, j], seed).to_dict())
    return pd.DataFrame(rows).rename(columns={"value": "rating"})


def self_effects(values: Float[np.ndarray, "tasks raters writers"], names: Sequence[str], seed: int) -> dict[str, Estimate]:
    """Interaction of rater and writer for every respondent's own work, and their mean (`all`).

    What a rater gives on average and what a writer gets on average are taken out, so that a generous rater or a good writer
    does not count as self-preference.
    """

    def interaction(mean: Float[np.ndarray, "... raters writers"]) -> Float[np.ndarray, "... raters writers"]:
        by_rater, by_writer = mean.mean(axis=-1, keepdims=True), mean.mean(axis=-2, keepdims=True)
        return mean - by_rater - by_writer + mean.mean(axis=(-2, -1), keepdims=True)

    own = values.shape[1] / (values.shape[1] - 1)  # of an excess on the diagonal, the means take a part with them
    effects = {name: _over_tasks(values, lambda v, i=i: interaction(v)[..., i, i], seed) for i, name in enumerate(names)}
    mean = _over_tasks(values, lambda v: own * np.diagonal(interaction(v), axis1=-2, axis2=-1).mean(axis=-1), seed)
    return effects | {"all": mean}


def _spreads(values: Float[np.ndarray, "tasks raters writers"], seed: int) -> Spreads:
    means = values.mean(axis=0)
    rows = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    drawn = values[rows].mean(axis=1)
    raters, writers = (
        Estimate.from_draws(
            float(means.mean(axis=axis).std(ddof=1)), drawn.mean(axis=axis + 1).std(axis=-1, ddof=1), len(values)
        )
        for axis in (1, 0)
    )
    return Spreads(raters, writers)


def _over_tasks(values: Float[np.ndarray, "tasks raters writers"], statistic: Any, seed: int) -> Estimate:
    """A linear statistic of the mean over tasks, with a bootstrap over tasks."""
    each = statistic(values)
    rows = np.random.default_rng(seed).integers(len(each), size=(_RESAMPLES, len(each)))
    return Estimate.from_draws(float(each.mean()), each[rows].mean(axis=1), len(each))


def _self_finding(effects: Mapping[str, Estimate], names: Sequence[str]) -> Finding:
    whole = effects["all"]
    said = "; ".join(f"{name} {plain(effects[name], 3)}" for name in names)
    return Finding(
        "Own work",
        f"A respondent rates its own work higher than another's by {plain(whole, 3)} of a scale's length, beyond how it "
        "rates and "
        f"how it is rated (on the diagonal: {said}; {whole.n} tasks)." + null_note(whole, "self-preference"),
        "self_effects",
    )


def _spread_finding(spreads: Spreads, names: Sequence[str]) -> Finding:
    raters, writers = (plain(each, 3).replace("+", "") for each in (spreads.raters, spreads.writers))
    return Finding(
        "Raters, writers",
        f"The mean ratings of {len(names)} respondents differ by who rates with a standard deviation of {raters} of a scale's "
        f"length, and by who wrote with one of {writers}.",
        "self_vs_cross",
    )


def matrix_figure(cells: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Who rates whom how, less the mean of all."""
    wide = cells.pivot(index="rater", columns="writer", values="rating").loc[list(names), list(names)]
    values = wide.to_numpy(dtype=float)
    return plots.heatmap(
        values - values.mean(),
        [f"rated by {name}" for name in names],
        [f"done by {name}" for name in names],
        f"Rating, less the mean of all (n={int(cells['n'].iloc[0])} tasks)",
        "share of a scale's length",
        digits=3,
    )


def effects_figure(effects: Mapping[str, Estimate]) -> Figure:
    """Self-preference of every respondent."""
    rows = list(effects.items())[::-1]
    return plots.forest(
        [name for name, _ in rows],
        np.array([[each.value, each.low, each.high] for _, each in rows]),
        "own work above others', as a share of a scale's length",
        f"Self-preference (n={rows[0][1].n} tasks)",
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["self_vs_cross", *sys.argv[1:]]))
