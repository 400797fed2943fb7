"""What a search for prompts found: arms at equal budget, fronts by held-out scores, and whether the refusal score holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from elicit import rate
from experiments.findings import Finding, null_note, plain
from experiments.prompt_scores import Goal
from store import Estimate
from store.estimates import POWER_FACTOR

SEARCH = "search"
NAMES: Mapping[str, str] = {
    "random": "random rewriting of the starting prompts",
    "walk": "random rewriting of any prompt so far",
}
GOALS: Mapping[Goal, str] = {
    "preferred_yet_refused": "both preferred and refused more than the average starting prompt",
    "dispreferred_yet_accepted": "both preferred and refused less than the average starting prompt",
}


@dataclass(frozen=True)
class Difference:
    """Search less a control, over replicates; `p` by flipping the signs of the differences, two-sided."""

    estimate: Estimate
    p: float
    search: float
    control: float


def differences(arms: pd.DataFrame, column: str) -> dict[str, Difference]:
    """The search less every control, paired over replicates."""
    wide = arms.pivot(index="replicate", columns="arm", values=column)
    found = {}
    for name in (each for each in NAMES if each in wide):
        apart = (wide[SEARCH] - wide[name]).to_numpy(dtype=float)
        found[name] = Difference(
            Estimate.of_mean(apart), sign_flip(apart), float(wide[SEARCH].mean()), float(wide[name].mean())
        )
    return found


def sign_flip(values: np.ndarray) -> float:
    """Two-sided p of a mean of zero, by flipping signs: all ways up to 13 values, 9,999 random ones beyond."""
    if not np.any(values):
        return 1.0
    test = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def search_finding(found: Mapping[str, Difference], budget: int, goal: Goal) -> Finding:
    """Whether the search beat random rewriting, in one sentence for each control."""
    said = []
    for name, each in found.items():
        value = (
            f"{each.search:.2f} against {each.control:.2f} in hypervolume, a difference of {plain(each.estimate)} over "
            f"{each.estimate.n} replicates (sign-flip p = {each.p:.3f})"
        )
        if each.estimate.differs_from() and each.p <= 0.05:
            verb = "beat" if each.estimate.value > 0 else "was beaten by"
            said.append(f"At an equal budget of {budget} scored prompts the search {verb} {NAMES[name]}: {value}.")
        else:
            said.append(
                f"At an equal budget of {budget} scored prompts it is not shown that the search beat {NAMES[name]}: {value}; "
                f"the smallest difference found about four times in five is {each.estimate.smallest_effect:.2f}."
            )
    what = f" Hypervolume is the area of prompts {GOALS[goal]}, in squared standard deviations of the latter."
    return Finding("Search", " ".join(said) + what, "prompt_search_budget")


def held_out_finding(found: Mapping[str, Difference], fronts: pd.DataFrame) -> Finding:
    """The same by scores that chose nothing."""
    said = "; ".join(
        f"against {NAMES[name]} {each.search:.2f} to {each.control:.2f}, a difference of {plain(each.estimate)} "
        f"(p = {each.p:.3f})"
        for name, each in found.items()
    )
    own = fronts[(fronts["arm"] == SEARCH) & (fronts["generation"] > 0)]
    hold = int(((own["held_out_x"] > 0) & (own["held_out_y"] > 0)).sum())
    kept = f"Of {len(own)} rewritings on the fronts of the search {hold} stay on the wanted side of the average start in both"
    first = next(iter(found.values()))
    return Finding(
        "Held out",
        f"{kept} when scored against other anchors, in another wording, and passed on by somebody else. Hypervolume of the "
        f"fronts by these scores: {said}." + null_note(first.estimate, "advantage by held-out scores"),
    )


def front_finding(front: pd.DataFrame, candidates: pd.DataFrame, goal: Goal) -> Finding:
    """What is on the front of all."""
    if front.empty:
        return Finding("Front", f"No prompt was found that is {GOALS[goal]}, so the front is empty.")
    scored = candidates[candidates["dropped"] == ""].drop_duplicates("text")
    starts = scored[scored["generation"] == 0]
    n_rewritten = int((front["generation"] > 0).sum())
    rows = tuple(
        f"{row['preference']:+.2f}  {row['refusal_p']:.2g}  {row['held_out_x']:+.1f} {row['held_out_y']:+.1f}  "
        f"{row['text'][:80]!r}"
        for _, row in front.sort_values("refusal").iterrows()
    )
    return Finding(
        "Front",
        f"{len(front)} of {len(scored)} scored prompts are {GOALS[goal]} and surpassed by none in both; {n_rewritten} are "
        f"rewritings. Preference goes from {front['preference'].min():+.2f} to {front['preference'].max():+.2f} logits, the "
        f"probability of declining from {front['refusal_p'].min():.2g} to {front['refusal_p'].max():.2g} (starting prompts: "
        f"{starts['preference'].min():+.2f} to {starts['preference'].max():+.2f}, {starts['refusal_p'].min():.2g} to "
        f"{starts['refusal_p'].max():.2g}); {int((front['refusal_p'] > 0.5).sum())} are more likely declined than not.",
        "prompt_search_front",
        ("preference  P(declines)  held out, in standard deviations  text", *rows),
    )


def check_finding(checked: pd.DataFrame, seed: int) -> Finding:
    """Whether the exact refusal score agrees with sampled completions, by phrase rules and by the judge."""
    expected, seen = checked["refusal_p"].mean(), rate(float(checked["phrases"].sum()), len(checked))
    said = [
        f"Over {len(checked)} prompts the openings have a mean probability of {expected:.3f}, and by phrase rules "
        f"{plain(seen, percent=True)} of the sampled completions decline"
    ]
    for name, words in (("phrases", "phrase rules"), ("judge", "the judge")):
        known = checked.dropna(subset=[name])
        if len(known) < 4 or known[name].nunique() < 2 or known["refusal"].nunique() < 2:
            said.append(f"by {words} all of them are alike, so no correlation can be given")
            continue
        found = rank_correlation(known["refusal"].to_numpy(dtype=float), known[name].to_numpy(dtype=float), seed)
        said.append(f"the rank correlation of the score with {words} is {plain(found)}{_beyond_chance(found)}")
    return Finding("Refusal score", "; ".join(said) + ".", "prompt_search_front")


def _beyond_chance(found: Estimate) -> str:
    if found.differs_from():
        return ""
    smallest = np.tanh(POWER_FACTOR / np.sqrt(max(1, found.n - 3)))
    return f" (not shown to differ from none; with {found.n} prompts about {smallest:.2f} would be found four times in five)"


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int, resamples: int = 1000) -> Estimate:
    """Spearman's correlation, with a bootstrap over prompts on Fisher's scale."""
    rows = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    draws = [_spearman(x[row], y[row]) for row in rows]
    return Estimate.of_correlation(_spearman(x, y), draws, len(x))


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    ranks = stats.rankdata(x), stats.rankdata(y)
    if min(np.ptp(ranks[0]), np.ptp(ranks[1])) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def kept_finding(fronts: pd.DataFrame) -> Finding:
    """How much the rewritings on the fronts keep of what they started from."""
    said = []
    for arm, part in fronts[fronts["generation"] > 0].groupby("arm"):
        low, middle, high = part["kept"].quantile([0.1, 0.5, 0.9])
        said.append(f"{middle:.2f} ({low:.2f} to {high:.2f}) in the arm {arm}, {part['generation'].mean():.1f} rewritings away")
    if not said:
        return Finding("Kept", "No rewriting is on a front.")
    return Finding(
        "Kept",
        "Rewritings on the fronts keep of their starting prompt, by cosine of weighed words (1: the same words, 0: none), a "
        f"median of {'; '.join(said)}; in brackets from the tenth to the ninetieth percentile. What keeps little asks for "
        "something else.",
    )


def dropped_finding(candidates: pd.DataFrame, reasons: pd.DataFrame) -> Finding:
    """How many rewritings were made, and why not all of them were scored."""
    made = candidates[candidates["generation"] > 0]
    why = reasons[reasons["reason"] != "scored"]
    said = ", ".join(f"{reason} {n}" for reason, n in zip(why["reason"], why["all"], strict=True)) or "none"
    mass = candidates.loc[candidates["dropped"] == "", "choice_mass"].mean()
    return Finding(
        "Dropped",
        f"Of {len(made)} rewritings {len(made) - int(why['all'].sum())} have scores; dropped were: {said} (no score: choices "
        f"off format). {100 * mass:.0f} % of the probability of a choice falls on its two answers.",
    )
