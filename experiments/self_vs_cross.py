"""self_vs_cross: several models (or steered views of one) do the same tasks and rate each other's work and their own."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field

from elicit import Context, Endpoint, LeastSquares, ask, choice, completion, rating, regular_pairs
from elicit.templates import template
from experiments.crossed import Crossed, effects_figure
from experiments.findings import Finding, null_note, plain
from experiments.loop import cache_activations
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import ConfigError, Settings
from experiments.setup import Setup
from experiments.steering import reference_norm_of
from interp import Intervention, LocalModel, preference_direction
from interp.layers import LayerSpec
from store import Estimate, Question, Sampling

_BASE = "base"
_RESAMPLES = 1000
_VIEWS = (
    "Steered views are pushed on all tokens along the difference of means between the tasks preferred most and least, doses "
    "in mean residual norms. "
)
_OWN_WORK = "own work above others', as a share of a scale's length"


class SelfVsCrossSettings(Settings):
    """Have every respondent do the tasks, and rate what every respondent did."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "out": Path("runs/self_vs_cross_quick")}

    out: Path = Field(
        default=Path("runs/self_vs_cross"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=8, ge=1, description="Tasks sampled from each origin.")
    others: tuple[str, ...] = Field(
        default=(),
        description="More models: embedded, folders with checkpoints, or hub ids; with --respondent, names on its server.",
    )
    doses: tuple[float, ...] = Field(
        default=(-0.1, 0.1),
        description="Views of the model steered along its preference direction; none (--doses with nothing after it) to leave "
        "them out, as for a server.",
    )
    layer: LayerSpec = Field(default=0.5, description="Layer that is steered.")
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no", "likert_agreement", "stated_10"),
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
    _check(settings)
    setup = Setup.of(settings, settings.load_tasks())
    first, *others = setup.with_others(settings.others)
    setup.check_can_rate(settings.scales, first, *others)
    views = _steered(setup, settings) if any(settings.doses) else {}
    own = _BASE if views else settings.respondent_name
    respondents = {own: first} | views | dict(zip(settings.others, others, strict=True))
    written = {name: _write(setup, model, settings) for name, model in respondents.items()}
    ratings = pd.concat(
        [_rate(setup, rater, model, each, settings) for rater, model in respondents.items() for each in written.items()],
        ignore_index=True,
    )
    names = list(respondents)
    crossed = Crossed.of(ratings, ("rated_by", "done_by"), names)
    cells, values = crossed.cells(), crossed.values
    effects = self_effects(values, names)
    setup.run.save_table("completions", pd.concat(written.values(), ignore_index=True))
    for name, table in (("ratings", ratings), ("cells", cells)):
        setup.run.save_table(name, table)
    spreads = _spreads(values, settings.seed)
    example = _rated(setup, written[own], settings.scales[0])[0]
    return publish(
        setup.run,
        Source.of(setup, example, [each.identity for each in others]),
        experiment="self_vs_cross",
        findings=[_self_finding(effects, names), _spread_finding(spreads, names, crossed)],
        figures={"self_vs_cross": crossed.figure(), "self_effects": effects_figure(effects, _OWN_WORK, "Self-preference")},
        tables=[
            Table("Ratings", "Mean rating, as a share of the scale's length, with Student's intervals over tasks.", cells),
            Table(
                "Own work",
                "By how much a respondent's rating of its own work exceeds the sum of how it rates and how it is rated.",
                pd.DataFrame([{"respondent": name} | each.to_dict() for name, each in effects.items()]),
            ),
        ],
        methods=(
            f"{len(names)} respondents ({', '.join(names)}) each did {len(setup.tasks)} tasks (up to {settings.max_new_tokens} "
            f"tokens, temperature {settings.temperature:g}) and rated everyone's completions after doing, as if they were "
            f"their own, on {', '.join(crossed.scales)}; ratings are shares of a scale's length, averaged over scales. "
            f"{_VIEWS if views else ''}The effect of own work is the interaction of rater and writer on the "
            "diagonal, within tasks; intervals are Student's, over tasks."
        ),
        summary={"cells": cells.to_dict("records"), "own_work": effects, "spreads": spreads},
        seconds=time.monotonic() - started,
    )


def _check(settings: SelfVsCrossSettings) -> None:
    server = settings.respondent.base_url
    way = "name other models of the server with --others." if server else "give --doses or --others."
    if server and any(settings.doses):
        raise ConfigError(
            f"doses is {settings.doses}: steered views of the model need its weights, and a server ({server}) can only be "
            f"asked. Leave them out: --doses with nothing after it.{'' if settings.others else f' And {way}'}"
        )
    if not any(settings.doses) and not settings.others:
        raise ConfigError(f"There is one respondent; expected two or more: {way}")


def _steered(setup: Setup, settings: SelfVsCrossSettings) -> dict[str, LocalModel]:
    """Views pushed on all tokens along the model's own preference direction."""
    (layer,) = setup.model.layers([settings.layer])
    pairs = regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)
    asked = choice.questions(setup.tasks, pairs, wording=settings.wording)
    utilities = LeastSquares(resamples=50, seed=settings.seed).fit(choice.comparisons(asked, setup.ask(asked, "choices")))
    store = cache_activations(setup.model, setup.tasks, [layer], ["task_mean"], setup.run)
    direction = preference_direction(store, utilities.labels(), layer=layer, position="task_mean")
    # One unit of dose is measured on prompts as they are when a task is done.
    doing = completion.questions(setup.tasks)
    vector = direction.scaled(**reference_norm_of(setup.model, layer, doing, ["all"], setup.run))
    setup.run.save_direction("preference", vector)
    return {f"dose {dose:+g}": setup.model.steered(Intervention.everywhere(vector, dose)) for dose in settings.doses if dose}


def _write(setup: Setup, model: LocalModel | Endpoint, settings: SelfVsCrossSettings) -> pd.DataFrame:
    sampling = Sampling(settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed)
    asked = completion.questions(setup.tasks, context=Context(sampling=sampling))
    answers = ask(asked, model, setup.run.log, description="completions")
    return completion.completions(asked, answers).assign(writer=model.identity.name)


def _rate(
    setup: Setup, rater: str, model: LocalModel | Endpoint, work: tuple[str, pd.DataFrame], settings: SelfVsCrossSettings
) -> pd.DataFrame:
    writer, written = work
    tables = []
    for scale in settings.scales:
        asked = _rated(setup, written, scale)
        table = rating.ratings(asked, ask(asked, model, setup.run.log, description=f"{rater} rates {writer}"))
        tables.append(table.assign(rated_by=rater, done_by=writer))
    return pd.concat(tables, ignore_index=True)


def _rated(setup: Setup, written: pd.DataFrame, scale: str) -> list[Question]:
    """One question for every completion that is not empty."""
    texts = {task: text for task, text in completion.texts(written).items() if text.strip()}
    return rating.questions([task for task in setup.tasks if task.id in texts], scale=scale, completions=texts)


@dataclass(frozen=True)
class Spreads:
    """How much raters and writers differ: standard deviations of their means, in shares of a scale's length."""

    raters: Estimate
    writers: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return {"raters": self.raters.to_dict(), "writers": self.writers.to_dict()}


def self_effects(values: Float[np.ndarray, "tasks raters writers"], names: Sequence[str]) -> dict[str, Estimate]:
    """Interaction of rater and writer for every respondent's own work, and their mean (`all`).

    What a rater gives on average and what a writer gets on average are taken out, so that a generous rater or a good writer
    does not count as self-preference.
    """
    by_rater, by_writer = values.mean(axis=2, keepdims=True), values.mean(axis=1, keepdims=True)
    interaction = values - by_rater - by_writer + values.mean(axis=(1, 2), keepdims=True)
    kept = 1 - 1 / len(names)  # of an excess on the diagonal; the means take the rest with them
    own = np.diagonal(interaction, axis1=1, axis2=2) / kept
    effects = {name: Estimate.of_mean(own[:, place]) for place, name in enumerate(names)}
    return effects | {"all": Estimate.of_mean(own.mean(axis=1))}


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


def _self_finding(effects: Mapping[str, Estimate], names: Sequence[str]) -> Finding:
    whole = effects["all"]
    said = "; ".join(f"{name} {plain(effects[name], 3)}" for name in names)
    return Finding(
        "Own work",
        f"A respondent rates its own work higher than another's by {plain(whole, 3)} of a scale's length, beyond how it "
        "rates and "
        f"how it is rated (on the diagonal: {said}; {whole.n} tasks)." + null_note(whole, "self-preference", digits=3),
        "self_effects",
    )


def _spread_finding(spreads: Spreads, names: Sequence[str], crossed: Crossed) -> Finding:
    raters, writers = (plain(each, 3).replace("+", "") for each in (spreads.raters, spreads.writers))
    return Finding(
        "Raters, writers",
        f"The mean ratings of {len(names)} respondents differ by who rates with a standard deviation of {raters} of a scale's "
        f"length, and by who wrote with one of {writers}.{crossed.dropped_note}",
        "self_vs_cross",
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["self_vs_cross", *sys.argv[1:]]))
