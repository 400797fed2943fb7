"""sysprompt_variation: how system prompts of six kinds move what is chosen over what."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from pydantic import Field

from elicit import Context, LeastSquares, Utilities, choice, regular_pairs
from elicit.consistency import contents, correlations, mean_agreement, over_pairs
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.system_prompts import DEFAULT, NONE, SystemPrompt, read_system_prompts
from store import Estimate
from store.estimates import POWER_FACTOR

_RESAMPLES = 300


class SyspromptVariationSettings(Settings):
    """Ask the same pairs under every system prompt, under none, and under the chat template's own."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "degree": 4, "out": Path("runs/sysprompt_variation_quick")}

    out: Path = Field(
        default=Path("runs/sysprompt_variation"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=8, ge=1, description="Tasks sampled from each origin.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")
    prompts: Path | None = Field(
        default=None, description="YAML file of system prompts by category; default: the shipped ones."
    )
    control: str = Field(default="plain", description="Category whose prompts say nothing of preferences.")


SETTINGS = SyspromptVariationSettings


def run(settings: SyspromptVariationSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    template("choice", settings.wording)  # a wrong name is an error before the model is loaded
    prompts = read_system_prompts(settings.prompts)
    if settings.control not in {prompt.category for prompt in prompts}:
        categories = sorted({prompt.category for prompt in prompts})
        raise ValueError(
            f"There are no system prompts of the control category {settings.control!r}; expected one of {categories}."
        )
    setup = Setup.of(settings, settings.load_tasks())
    pairs = regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)
    systems: dict[str, str | None] = {DEFAULT: None, NONE: ""} | {prompt.name: prompt.text for prompt in prompts}
    found = setup.ask_each(
        {
            name: choice.questions(setup.tasks, pairs, wording=settings.wording, context=Context(system=system))
            for name, system in systems.items()
        },
        "choices",
    )
    comparisons = {name: choice.comparisons(*each) for name, each in found.items()}
    preferences = contents(comparisons)
    if NONE not in preferences or preferences.shape[1] < 3 or len(preferences) < 4:
        raise ValueError(
            f"{len(preferences.columns)} of {len(systems)} system prompts are answered on format and not by order alone, over "
            f"{len(preferences)} pairs; expected {NONE!r} and two others, and four pairs. `penchant preflight "
            f"--templates choice:{settings.wording}` shows what this model answers."
        )
    utilities = {
        str(name): LeastSquares(resamples=_RESAMPLES, seed=settings.seed).fit(
            _of_pairs(comparisons[str(name)], preferences.index)
        )
        for name in preferences
    }
    table = _table(comparisons, preferences, prompts)
    shifts = origin_shifts(utilities, setup.origins)
    setup.run.save_table("prompts", table)
    setup.run.save_table("origin_shifts", shifts)
    kinship = _kinship(preferences, prompts)
    return publish(
        setup.run,
        Source.of(setup, found[prompts[0].name][0][0]),
        experiment="sysprompt_variation",
        findings=[
            _agreement_finding(table),
            _shift_finding(shifts, [prompt.name for prompt in prompts if prompt.category == settings.control]),
            _kinship_finding(kinship, prompts),
        ],
        figures={"sysprompt_shifts": shift_figure(shifts), "sysprompt_agreement": agreement_figure(table)},
        tables=[
            Table(
                "System prompts",
                "agreement: correlation over pairs with the choices under no system prompt; spread: standard deviation over "
                "pairs of what tasks are worth, in logits.",
                table,
            ),
            Table("Shifts", "Mean utility of an origin's tasks less that under no system prompt, in logits.", shifts),
        ],
        methods=(
            f"{len(pairs)} pairs of {len(setup.tasks)} tasks were asked in both orders (template {settings.wording}), under "
            f"{len(prompts)} system prompts of {len({prompt.category for prompt in prompts})} categories, under explicitly "
            "none, and under the chat template's own. Utilities minimise squared error on order-averaged log-odds; shifts "
            "are of their means over an origin's tasks, with a bootstrap over pairs, the same resamples for every prompt. "
            "Correlations are over pairs, about zero, with intervals that allow for pairs that share a task."
        ),
        summary={"prompts": table.to_dict("records"), "shifts": shifts.to_dict("records"), "kinship": kinship},
        seconds=time.monotonic() - started,
    )


def _of_pairs(comparisons: pd.DataFrame, pairs: pd.Index) -> pd.DataFrame:
    """Comparisons of the pairs that every prompt has, so that all are resampled alike."""
    shown = comparisons[["first", "second"]]
    ordered = pd.MultiIndex.from_arrays([shown.min(axis=1), shown.max(axis=1)])
    return comparisons[ordered.isin(pairs)]


def _table(comparisons: Mapping[str, pd.DataFrame], preferences: pd.DataFrame, prompts: Sequence[SystemPrompt]) -> pd.DataFrame:
    categories = {prompt.name: prompt.category for prompt in prompts}
    rows = []
    for name, part in comparisons.items():
        row: dict[str, Any] = {"prompt": name, "category": categories.get(name, ""), "mass": float(part["mass"].mean())}
        row["on_format"] = float((part["outcome"] == "chose").mean())
        if name in preferences:
            row["spread"] = float(np.sqrt((preferences[name] ** 2).mean()))
            if name != NONE:
                agreement = mean_agreement(preferences[[NONE, name]])
                row |= {"agreement": agreement.value, "low": agreement.low, "high": agreement.high}
        rows.append(row)
    return pd.DataFrame(rows)


def origin_shifts(utilities: Mapping[str, Utilities], origins: Mapping[str, str]) -> pd.DataFrame:
    """By how much each prompt moves each origin's mean utility, against no system prompt."""
    names = sorted(set(origins.values()))
    means: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, fit in utilities.items():
        member = np.array([[origins[task] == origin for task in fit.task_ids] for origin in names], dtype=float)
        member /= member.sum(axis=1, keepdims=True)
        means[name] = member @ fit.values, fit.draws @ member.T
    rows = []
    for name, (value, draws) in means.items():
        if name == NONE:
            continue
        for place, origin in enumerate(names):
            shift = Estimate.from_draws(
                float(value[place] - means[NONE][0][place]),
                draws[:, place] - means[NONE][1][:, place],
                utilities[name].report.pairs,
            )
            rows.append({"prompt": name, "origin": origin} | shift.to_dict())
    return pd.DataFrame(rows).rename(columns={"value": "shift"})


def _kinship(preferences: pd.DataFrame, prompts: Sequence[SystemPrompt]) -> Estimate | None:
    """By how much prompts of one category move preferences more alike than prompts of different ones."""
    known = [prompt for prompt in prompts if prompt.name in preferences]
    moves = preferences[[prompt.name for prompt in known]].sub(preferences[NONE], axis=0)
    category = np.array([prompt.category for prompt in known])
    same = (category[:, None] == category[None, :]) & ~np.eye(len(known), dtype=bool)
    different = category[:, None] != category[None, :]
    if not same.any() or not different.any():
        return None

    def gap(values: Float[np.ndarray, "pairs prompts"]) -> float:
        r = correlations(values)
        return float(r[same].mean() - r[different].mean())

    return over_pairs(moves, gap)


def _agreement_finding(table: pd.DataFrame) -> Finding:
    known = table.dropna(subset=["agreement"])
    texts = known[known["prompt"] != DEFAULT].sort_values("agreement")
    least, most = texts.iloc[0], texts.iloc[-1]
    own = known[known["prompt"] == DEFAULT]
    template_own = (
        f" Under the chat template's own, r = {own.iloc[0]['agreement']:+.2f} [{own.iloc[0]['low']:+.2f}, "
        f"{own.iloc[0]['high']:+.2f}]."
        if len(own)
        else ""
    )
    return Finding(
        "Agreement",
        f"With the choices under no system prompt, those under {len(texts)} system prompts correlate from "
        f"{least['agreement']:+.2f} [{least['low']:+.2f}, {least['high']:+.2f}] ({least['prompt']}) to "
        f"{most['agreement']:+.2f} [{most['low']:+.2f}, {most['high']:+.2f}] ({most['prompt']}).{template_own}",
        "sysprompt_agreement",
    )


def _shift_finding(shifts: pd.DataFrame, controls: Sequence[str]) -> Finding:
    texts = shifts[~shifts["prompt"].isin([DEFAULT, *controls])]
    plain_ones = shifts[shifts["prompt"].isin(controls)]
    away = texts[(texts["low"] > 0) | (texts["high"] < 0)]
    largest = texts.iloc[texts["shift"].abs().argmax()]
    mere = plain_ones.iloc[plain_ones["shift"].abs().argmax()]
    smallest = POWER_FACTOR * float(texts["se"].median())
    return Finding(
        "Shifts",
        f"{len(away)} of {len(texts)} shifts of an origin's mean utility have an interval that leaves out zero "
        f"({0.05 * len(texts):.0f} would by chance); the largest is {largest['shift']:+.2f} [{largest['low']:+.2f}, "
        f"{largest['high']:+.2f}] logits, of {largest['origin']} under {largest['prompt']}. Under "
        f"{' and '.join(controls)}, which say nothing of preferences, the largest is {mere['shift']:+.2f} [{mere['low']:+.2f}, "
        f"{mere['high']:+.2f}]: so much any system prompt may do. One of about {smallest:.2f} would "
        "typically have been found four times in five.",
        "sysprompt_shifts",
    )


def _kinship_finding(kinship: Estimate | None, prompts: Sequence[SystemPrompt]) -> Finding:
    if kinship is None:
        return Finding("Categories", "No category has two prompts on format beside another, so categories cannot be compared.")
    n_categories = len({prompt.category for prompt in prompts})
    return Finding(
        "Categories",
        f"Two prompts of one of {n_categories} categories move the preferences about a pair more alike than prompts of "
        f"different ones, by {plain(kinship)} in correlation." + null_note(kinship, "kinship of categories"),
    )


def shift_figure(shifts: pd.DataFrame) -> Figure:
    """Shift of every origin under every prompt."""
    wide = shifts.pivot(index="prompt", columns="origin", values="shift").loc[shifts["prompt"].drop_duplicates()]
    return plots.heatmap(
        wide.to_numpy(dtype=float),
        [str(name) for name in wide.index],
        [str(name) for name in wide.columns],
        "What a system prompt makes of an origin",
        "shift of mean utility against none (logits)",
    )


def agreement_figure(table: pd.DataFrame) -> Figure:
    """Agreement of every prompt with none."""
    known = table.dropna(subset=["agreement"]).iloc[::-1]
    names = [f"{row['prompt']} ({row['category']})" if row["category"] else row["prompt"] for _, row in known.iterrows()]
    return plots.forest(
        names,
        known[["agreement", "low", "high"]].to_numpy(dtype=float),
        "correlation over pairs with the choices under no system prompt",
        "What is left of preferences",
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["sysprompt_variation", *sys.argv[1:]]))
