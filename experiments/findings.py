"""Findings: each result in plain words with its interval, its null and, where it is null, what it could have seen.

The screen and the report print the same sentences, so neither can say more than the other.
"""

from dataclasses import dataclass

import pandas as pd

from elicit.reliability import Agreement, HoldOut, PositionBias
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse
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
    """An estimate with its interval: `+0.25 [+0.10, +0.41]`, or `86 % [79, 93]`."""
    if percent:
        return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    value, low, high = (f"{number:+.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def unsigned(estimate: Estimate, digits: int = 2) -> str:
    """An estimate that cannot be negative, with its interval."""
    return plain(estimate, digits).replace("+", "")


def null_note(estimate: Estimate, what: str, null: float = 0.0, digits: int = 2) -> str:
    """What to add where an interval contains the null: that it does, and the smallest effect it could have seen."""
    if estimate.differs_from(null):
        return ""
    return (
        f" The interval contains {null:g}, so no {what} is claimed; with n={estimate.n} the smallest that would be found "
        f"about four times in five is {estimate.smallest_effect:.{digits}f}."
    )


def position_finding(bias: PositionBias) -> Finding:
    """Position bias, its spread, and what is left for the tasks."""
    ratio = bias.spread.value / bias.content.value
    verdict = "more than" if ratio > 1 else "less than"
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
    known = (
        f"; true utilities would get {100 * ceiling:.0f} %, as pairs differ in more than tasks" if ceiling == ceiling else ""
    )
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
    against = ", ".join(f"{row['features']} {_scored(row, 'r2')}" for _, row in baselines.iterrows())
    return Finding(
        f"Probe: {_spaced(target)}",
        f"The best of {len(sweep.probes(target))} {KINDS[kind]} probes ({layer_name(int(best['layer']))}, {best['position']}) "
        f"reaches a held-out R² of {_scored(best, 'r2')}; {_probe_verdict(best)}{_beside(table, best)} Baselines: {against}, "
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
        said.append(f" Activations of {row['features']} there reach {_scored(row, 'r2')} ({_scored(best, name)}, {verdict}).")
    return "".join(said)


def _probe_verdict(best: pd.Series) -> str:
    if best["p_best"] > 0.05:
        return (
            f"the best of as many probes of permuted labels does as well (p = {best['p_best']:.2f}), so the activations are "
            f"not shown to know it (an R² of about {_smallest(best, 'r2'):.2f} would have been found four times in five)."
        )
    chance = f"permuted labels do not (p = {best['p_best']:.2f})"
    against = f"{_scored(best, 'gain')} against {best['strongest_baseline']}"
    if best["gain_low"] > 0:
        return f"{chance}, and it beats every baseline ({against})."
    return (
        f"{chance}, but it is not shown to know more than the strongest baseline ({against}; a gain of about "
        f"{_smallest(best, 'gain'):.2f} would have been found four times in five)."
    )


def _smallest(row: pd.Series, name: str) -> float:
    return POWER_FACTOR * (row[f"{name}_high"] - row[f"{name}_low"]) / (2 * 1.96)


def _scored(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"


def steering_findings(response: DoseResponse) -> list[Finding]:
    """One finding per layer and mode: slopes of the directions under test beside those of random directions."""
    findings = []
    tested = response.tested()
    for layer, mode in dict.fromkeys(zip(tested["layer"], tested["mode"], strict=True)):
        part = tested[(tested["layer"] == layer) & (tested["mode"] == mode)]
        unit = "scale lengths" if mode == "rating" else "logits"
        slopes = "; ".join(_slope_sentence(row, unit) for _, row in part.iterrows())
        first = part.iloc[0]
        control = (
            f"{int(first['n_random'])} random directions of the same norm give {first['random_low']:+.2f} to "
            f"{first['random_high']:+.2f}."
        )
        sentence = f"At {layer_name(layer)}, the shift per dose of one residual norm is {slopes}. {control} {_verdict(part)}"
        curve = response.curve[(response.curve["layer"] == layer) & (response.curve["mode"] == mode)]
        findings.append(Finding(f"Steering: {_spaced(mode)}", sentence, dose_figure_name(layer, mode), _dose_rows(curve)))
    return findings


def _dose_rows(curve: pd.DataFrame) -> tuple[str, ...]:
    """Shift at every dose: tested directions, and the range of the random ones."""
    tested, random = curve[~curve["is_random"]], curve[curve["is_random"]].groupby("dose")["shift"]
    shifts = tested.pivot(index="direction", columns="dose", values="shift")
    lines = {"dose": [f"{dose:+g}" for dose in shifts.columns]}
    lines |= {f"shift, {_spaced(name)}": [_shift(shift) for shift in row] for name, row in shifts.iterrows()}
    lines["least random"] = [_shift(shift) for shift in random.min()]
    lines["greatest random"] = [_shift(shift) for shift in random.max()]
    margin = max(map(len, lines))
    return tuple(name.ljust(margin) + "".join(cell.rjust(8) for cell in cells) for name, cells in lines.items())


def _shift(value: float) -> str:
    return f"{value:+.2f}" if value == value else "none"  # no answer on format


def dose_figure_name(layer: int, mode: str) -> str:
    """Name of the figure of one layer and mode."""
    return f"dose_{layer_name(layer)}_{mode}"


def _slope_sentence(row: pd.Series, unit: str) -> str:
    return (
        f"{_scored(row, 'slope')} {unit} along the {_spaced(row['direction'])} "
        f"(n={int(row['n'])}, on format from {row['coherent_from']:+g} to {row['coherent_to']:+g})"
    )


def _verdict(part: pd.DataFrame) -> str:
    n_random = int(part["n_random"].min())
    if n_random < CONTROLS_NEEDED:
        return f"With fewer than {CONTROLS_NEEDED} random directions nothing is claimed about exceeding them."
    # Larger than every control, and above zero over pairs or tasks: either alone happens by chance too often.
    beyond = part[(part["p_value"] <= 0.05) & (part["slope_low"] > 0)]
    if len(beyond):
        names = " and ".join(f"the {_spaced(row['direction'])} (p = {row['p_value']:.2f})" for _, row in beyond.iterrows())
        return (
            f"Of {len(part)} directions tested, the effect exceeds its controls for {names}; p-values are not corrected "
            "for the number of directions, layers and kinds of question."
        )
    # To stand out, a slope has to pass the largest random one, and to do so four times in five by .84 standard errors.
    needed = part[["random_low", "random_high"]].abs().max(axis=None) + (POWER_FACTOR - 1.96) * part["slope_se"].max()
    p_values = ", ".join(f"{p:.2f}" for p in part["p_value"])
    return (
        f"No direction is shown to exceed its controls (p = {p_values}); the smallest slope that would have stood out four "
        f"times in five is {needed:.2f}."
    )


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")
