"""What was planted, and what every stage of the pipeline made of it, in words."""

import pandas as pd

from experiments.dose_response import CONTROLS_NEEDED
from experiments.findings import Finding, in_percent, plain, probe_finding, scored, spaced
from experiments.organisms import Organism
from experiments.planted import UNTOUCHED, Recovery, is_used
from experiments.planted_nulls import CONJUNCTIONS, USED
from interp import ProbeSweep
from store import Estimate, layer_name


def planting_finding(planting: pd.DataFrame, organism: Organism) -> Finding:
    """Whether the model took what was planted, on topics and wordings that it was not trained on."""
    said = []
    for _, row in planting.iterrows():
        wording = str(row["condition"]).rsplit(", ", 1)[1]
        new = "" if wording in organism.wordings or UNTOUCHED in row["condition"] else " (a wording not trained on)"
        words = f"{row['condition']}{new}, {row['topics']} topics: orders correlate at {scored(row, 'swapped')}"
        if pd.notna(row.get("pearson")):
            words += (
                f", {in_percent(row, 'right', digits=1)} of choices go as planted (r = {scored(row, 'pearson')}, "
                f"{scored(row, 'slope')} of what was planted)"
            )
        said.append(f"{words}, position is worth {scored(row, 'position')}.")
    return Finding("Planting", " ".join(said), "planting")


def recovery_finding(found: Recovery, coverage: pd.DataFrame, degree: int) -> Finding:
    """How well few comparisons recover the utilities."""
    row = coverage[coverage["way"].str.contains("default, exact")].iloc[0]
    sentence = (
        f"From {2 * degree} comparisons a task, utilities have a rank correlation of {plain(found.own)} with the fit "
        f"to all pairs (mean and range of {found.own.n} designs; the target of .9 is "
        f"{'met' if found.own.value >= 0.9 else 'missed'}). "
    )
    if found.planted is not None and found.whole is not None:
        sentence += (
            f"With the planted utilities it is {plain(found.planted)}, and {plain(found.whole)} from all pairs; ties among the "
            f"planted allow {found.ceiling:.2f} at most. "
        )
    sentence += f"Intervals of 95 % contain the fit to all pairs in {in_percent(row, 'coverage', digits=1)} of cases."
    return Finding("Recovery", sentence)


def false_positive_finding(rates: pd.DataFrame, chance: Estimate) -> Finding:
    """How often claims are made where there is nothing to claim."""
    said = {row["claim"]: in_percent(row, "rate", digits=1) for _, row in rates.iterrows()}
    used = said.pop(USED)
    below = rates["claim"].isin(CONJUNCTIONS) & (rates["rate_high"] < 0.05)
    wrong = ((rates["rate_low"] > 0.05) | (rates["rate_high"] < 0.05)) & ~below
    verdict = f"Every {'other ' if below.any() else ''}interval contains 5 %."
    if wrong.any():
        verdict = f"Not 5 %: {'; '.join(rates.loc[wrong, 'claim'])}."
    if below.any():
        verdict += f" Below 5 %, as it needs both: {'; '.join(rates.loc[below, 'claim'])}."
    return Finding(
        "False positives",
        "Of this model's answers with their labels shuffled, or dealt to other tasks, a claim is made this often: "
        f"{'; '.join(f'{claim} {rate}' for claim, rate in said.items())}. Of {chance.n} random directions, each tested against "
        f"the others, {plain(chance, percent=True)} exceed them, and {used} are said to be used. {verdict}",
    )


def readable_finding(sweep: ProbeSweep) -> Finding:
    """How well utilities can be read, and what that does not say."""
    found = probe_finding(sweep, "utility")
    return Finding(
        "Readable",
        f"{found.sentence} Probes were trained on the topics that the model was trained on, and tested on the others. What the "
        "untouched model's activations give as well is content that was there all along: readable, which is not to say used.",
        found.figure,
    )


def used_finding(gaps: pd.DataFrame, organism: Organism) -> Finding:
    """Slopes of the organism beside those of the untouched model."""
    said = []
    for _, row in gaps[~gaps["is_random"]].iterrows():
        enough = row["n_random"] >= CONTROLS_NEEDED
        verdict = "so what was planted is used there" if is_used(row) else "so use is not shown"
        said.append(
            f"{spaced(row['direction'])} at {layer_name(row['layer'])}: {row['organism']:+.2f} logits per dose in "
            f"{organism.folder.name}, {row['untouched']:+.2f} in the untouched model, a difference of {scored(row, 'gap')}; "
            f"the same {row['n_random']:.0f} random directions differ by {row['random_low']:+.2f} to {row['random_high']:+.2f} "
            + (f"(p = {row['p_value']:.2f}), {verdict}." if enough else "and are too few for a claim.")
        )
    return Finding(
        "Used", "Pushing along a direction says whether a model uses what can be read along it. " + " ".join(said), "gaps"
    )
