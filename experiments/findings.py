"""Findings: each result in plain words with its interval, its null and, where it is null, what it could have seen.

The screen and the report print the same sentences, so neither can say more than the other.
"""

from dataclasses import dataclass

import pandas as pd

from elicit.reliability import Agreement, HoldOut, PositionBias
from interp.kinds import KINDS, Kind
from interp.probe import RESIDUAL, ProbeSweep
from store import Estimate, layer_name
from store.estimates import POWER_FACTOR


@dataclass(frozen=True)
class Finding:
    """One result.

    Attributes
    ----------
    name
        A few words for the left margin.
    sentence
        What was found, in words that stay true when the result is null.
    figure
        Name of the figure that shows it; empty if none does.
    rows
        Lines of a small table, for the screen alone (the report has the figure).
    """

    name: str
    sentence: str
    figure: str = ""
    rows: tuple[str, ...] = ()


def plain(estimate: Estimate, digits: int = 2, percent: bool = False) -> str:
    """An estimate with its interval: `+0.25 [+0.10, +0.41]`, `86 % [79, 93]`, or `n/a` where there is none."""
    if not estimate.known:
        return "n/a"
    if percent:
        return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    value, low, high = (f"{number:+.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def unsigned(estimate: Estimate, digits: int = 2) -> str:
    """An estimate that cannot be negative, with its interval."""
    return plain(estimate, digits).replace("+", "")


def null_note(estimate: Estimate, what: str, null: float = 0.0, digits: int = 2) -> str:
    """What to add where an interval contains the null: that it does, and the smallest effect it could have seen."""
    if not estimate.known:
        return f" There is nothing to compute it from, so no {what} is claimed."
    if estimate.differs_from(null):
        return ""
    return (
        f" The interval contains {null:g}, so no {what} is claimed; with n={estimate.n} the smallest that would be found "
        f"about four times in five is {estimate.smallest_effect:.{digits}f}."
    )


def position_finding(bias: PositionBias) -> Finding:
    """Position bias, its spread, and what is left for the tasks."""
    verdict = "more than" if bias.spread.value > bias.content.value else "no more than"
    return Finding(
        "Position bias",
        f"Being shown first is worth {plain(bias.mean)} logits on average, and that varies over pairs with a standard "
        f"deviation of {unsigned(bias.spread)}, {verdict} what the tasks themselves are worth "
        f"({unsigned(bias.content)}): the order decides the choice in {plain(bias.flips, percent=True)} of "
        f"{bias.flips.n} pairs. Every pair was asked in both orders." + null_note(bias.mean, "average bias"),
        "position",
    )


def hold_out_finding(held_out: HoldOut) -> Finding:
    """How well utilities predict unseen pairs."""
    ceiling, correlation = held_out.accuracy_ceiling, held_out.correlation
    why = "pairs differ in more than tasks" if correlation else "sampled answers are partly chance"
    known = f"; true utilities would get {100 * ceiling:.0f} %, as {why}" if ceiling == ceiling else ""
    also = f"; predicted and measured log-odds correlate at {plain(correlation)}" if correlation else ""
    return Finding(
        "Hold-out",
        f"Utilities fitted to the other pairs predict the preferred task in {plain(held_out.accuracy, percent=True)} of "
        f"{held_out.accuracy.n} held-out pairs (50 % by chance{known}){also}."
        + null_note(held_out.accuracy, "better prediction than chance", null=0.5),
        "hold_out",
    )


def agreement_finding(agreement: Agreement, scales_agree: Estimate | None) -> Finding:
    """Whether choices and self-reports measure the same thing."""
    beyond = f"; given text length and origin, at {plain(agreement.partial)}" if agreement.partial else ""
    among = f" The scales agree among themselves at a mean r of {plain(scales_agree)}." if scales_agree else ""
    return Finding(
        "Self-report",
        f"Choice utilities and self-reports correlate at r = {plain(agreement.pearson)} over {agreement.pearson.n} tasks "
        f"(rank correlation {plain(agreement.spearman)}){beyond}.{among}" + null_note(agreement.pearson, "agreement"),
        "agreement",
    )


def probe_finding(sweep: ProbeSweep, target: str, kind: Kind = "ridge") -> Finding:
    """The best probe beside its baselines."""
    best = sweep.best(target)
    table = sweep.table[sweep.table["target"] == target]
    baselines = table[(table["features"] != RESIDUAL) & table["layer"].isna()]
    against = ", ".join(f"{row['features']} {scored(row, 'r2')}" for _, row in baselines.iterrows())
    return Finding(
        f"Probe: {spaced(target)}",
        f"The best of {len(sweep.probes(target))} {KINDS[kind]} probes ({layer_name(int(best['layer']))}, {best['position']}) "
        f"reaches a held-out R² of {scored(best, 'r2')}; {_probe_verdict(best)}{_beside(table, best)} Baselines: {against}, "
        f"shuffled labels {best['shuffled_r2']:+.2f}.",
        f"probe_{target}",
    )


def beats_baselines(best: pd.Series) -> bool:
    """Whether the best probe is better than permuted labels allow anywhere, and than its strongest baseline."""
    return bool(best["p_best"] <= 0.05 and best["gain_low"] > 0)


def _beside(table: pd.DataFrame, best: pd.Series) -> str:
    """The same probe of other models' activations."""
    same = table["layer"].eq(best["layer"]) & table["position"].eq(best["position"]) & table["features"].ne(RESIDUAL)
    said = []
    for _, row in table[same].iterrows():
        name = f"gain over {row['features']}"
        verdict = "so more is known here" if best[f"{name}_low"] > 0 else "so no more is shown to be known here"
        said.append(f" Activations of {row['features']} there reach {scored(row, 'r2')} ({scored(best, name)}, {verdict}).")
    return "".join(said)


def _probe_verdict(best: pd.Series) -> str:
    if best["p_best"] > 0.05:
        return (
            f"the best of as many probes of permuted labels does as well (p = {best['p_best']:.2f}), so the activations are "
            f"not shown to know it (an R² of about {_smallest(best, 'r2'):.2f} would have been found four times in five)."
        )
    chance = f"permuted labels do not (p = {best['p_best']:.2f})"
    against = f"{scored(best, 'gain')} against {best['strongest_baseline']}"
    if best["gain_low"] > 0:
        return f"{chance}, and it beats every baseline ({against})."
    return (
        f"{chance}, but it is not shown to know more than the strongest baseline ({against}; a gain of about "
        f"{_smallest(best, 'gain'):.2f} would have been found four times in five)."
    )


def _smallest(row: pd.Series, name: str) -> float:
    return POWER_FACTOR * (row[f"{name}_high"] - row[f"{name}_low"]) / (2 * 1.96)


def scored(row: pd.Series, name: str) -> str:
    """A column of a table with its interval, `name_low` and `name_high`."""
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"


def in_percent(row: pd.Series, name: str, digits: int = 0) -> str:
    """A column of shares as per cent with its interval, `name_low` and `name_high`: `86 % [79, 93]`."""
    value, low, high = (f"{100 * row[each]:.{digits}f}" for each in (name, f"{name}_low", f"{name}_high"))
    return f"{value} % [{low}, {high}]"


def spaced(name: object) -> str:
    """A name as people read it."""
    return str(name).replace("_", " ")
