"""What open replies under steering showed, in sentences: each with its interval, its controls and what it could have seen."""

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.coherence import MAX_DROP, MAX_REPETITION
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse, is_tested
from experiments.findings import Finding, null_note, plain, scored, spaced
from experiments.open_replies import LEAST_TASKS, OpenReplies
from experiments.steer_findings import exceeds_controls
from store import Estimate, layer_name
from store.estimates import POWER_FACTOR

JUDGE_FAILS = "As the judge is not shown to tell the two apart, no claim about sentiment below is worth anything."


def judge_check(written: pd.DataFrame) -> Estimate:
    """The judge's sentiment of what was written under `above` less under `below`, over the tasks of which it can judge both."""
    wide = written.pivot_table(index="task_id", columns="written_under", values="sentiment", dropna=False)
    differences = (wide["above"] - wide["below"]).dropna().to_numpy()
    if not len(differences):
        return Estimate.unknown(0)
    return Estimate.of_mean(differences)


def is_valid(check: Estimate) -> bool:
    """Whether the judge finds what was written under `above` more positive than what was written under `below`."""
    return check.low > 0


def judge_finding(check: Estimate, written: pd.DataFrame) -> Finding:
    """Whether the judge can tell what it is asked about, on texts of which it is known."""
    on_format = (written["outcome"] == "chose").mean()
    verdict = ""
    if not is_valid(check):
        verdict = f"{null_note(check, 'difference')} {JUDGE_FAILS}"
    return Finding(
        "Judge",
        f"The untouched model finds the sentiment of what was written under the first system prompt {plain(check)} more "
        f"positive than under the second (scale from -1 to 1, n={check.n} tasks); {100 * on_format:.0f} % of {len(written)} "
        f"judgements are on format, with a mean mass of {written['mass'].mean():.2f} on the allowed answers.{verdict}",
    )


def coefficient_finding(replies: OpenReplies, units: Mapping[str, float], valid: bool) -> Finding:
    """What the ends of the old scale do, direction by direction.

    Parameters
    ----------
    units
        By direction, the dose that coefficient 1 is.
    """
    curve = replies.coefficients.curve
    said = []
    for name, part in curve.groupby("direction", sort=False):
        ends = part.sort_values("dose").iloc[[0, -1]]
        moved = " and ".join(f"{_scored(row, 'shift')} at {row['dose']:+g}" for _, row in ends.iterrows())
        reach = " to ".join(f"{row['dose'] * units[str(name)]:+.2f}" for _, row in ends.iterrows())
        read = " and ".join(f"{row['log_likelihood_change']:+.2f}" for _, row in ends.iterrows())
        said.append(
            f"Along the {spaced(name)} (doses of {reach}) sentiment moves by {moved}, "
            f"log-probability by {read} nats a token, and replies make sense {_reach(part)}."
        )
    low, high = curve["dose"].min(), curve["dose"].max()
    return Finding(
        "Old scale",
        f"Coefficients from {low:+g} to {high:+g} of the raw vectors are other doses for every selector. {' '.join(said)}"
        f"{'' if valid else f' {JUDGE_FAILS}'}",
        "open_ended_sentiment",
        _rows(curve, "coefficient"),
    )


def dose_finding(replies: OpenReplies, layer: int, valid: bool) -> Finding:
    """Slopes per dose beside random directions at the largest dose and its opposite."""
    slopes = replies.doses.tested()
    said = "; ".join(_slope(row) for _, row in slopes.iterrows())
    sentence = (
        f"At {layer_name(layer)}, sentiment moves per dose of one residual norm by {said}. {_ranks(replies.ranked, valid)}"
    )
    return Finding("Doses", sentence, "open_ended_sentiment", _rows(replies.doses.curve, "dose"))


def _slope(row: pd.Series) -> str:
    name = spaced(row["direction"])
    if row["slope"] != row["slope"]:
        return f"an unknown amount along the {name}, as at no dose replies make sense and can be judged"
    if row["n"] < LEAST_TASKS:
        return f"{_scored(row, 'slope')} along the {name}"
    smallest = POWER_FACTOR * row["slope_se"]
    found = row["slope_low"] > 0 or row["slope_high"] < 0
    note = "" if found else f", which includes 0; {smallest:.2f} would have been found four times in five"
    return f"{scored(row, 'slope')} along the {name} (n={int(row['n'])} tasks{note})"


def _ranks(ranked: DoseResponse, valid: bool) -> str:
    tested, curve = ranked.tested(), ranked.curve
    largest = curve["dose"].max()
    known = tested.dropna(subset=["slope"])
    if "p_value" not in known or known.dropna(subset=["p_value"]).empty:
        return f"At doses of {largest:g} either way no reply along them makes sense, so they are not compared with random ones."
    known = known.dropna(subset=["p_value"])
    n_random = int(known["n_random"].min())
    slopes = "; ".join(_scored(row, "slope") + f" ({spaced(row['direction'])})" for _, row in known.iterrows())
    said = (
        f"At doses of {largest:g} either way, as far as replies make sense, the slope is {slopes}, and that of {n_random} "
        f"random directions of the same norm {known['random_low'].min():+.2f} to {known['random_high'].max():+.2f}."
    )
    if n_random < CONTROLS_NEEDED:
        said += f" With fewer than {CONTROLS_NEEDED} random directions nothing is claimed about exceeding them."
        return said if valid else f"{said} {JUDGE_FAILS}"
    if not valid:
        return f"{said} {JUDGE_FAILS}"
    known = known[known["n"] >= LEAST_TASKS]
    if known.empty:
        return f"{said} Too few tasks are judged for anything to be claimed."
    p_values = ", ".join(f"p = {row['p_value']:.2f}" for _, row in known.iterrows())
    beyond = known[known.apply(exceeds_controls, axis=1)]
    if len(beyond):
        names = " and ".join(f"the {spaced(name)}" for name in beyond["direction"])
        return f"{said} The effect exceeds its controls along {names} ({p_values}; not corrected for {len(known)} selectors)."
    # To stand out, a slope has to pass the largest control, and to do so four times in five by .84 standard errors.
    needed = known[["random_low", "random_high"]].abs().max(axis=None) + (POWER_FACTOR - 1.96) * known["slope_se"].max()
    return (
        f"{said} No direction is shown to exceed its controls ({p_values}); the smallest slope that would have stood out four "
        f"times in five is {needed:.2f}."
    )


def coherence_finding(replies: OpenReplies, units: Mapping[str, float]) -> Finding:
    """How far replies make sense, in doses and in coefficients, along every direction."""
    said = []
    for name, part in replies.doses.curve.groupby("direction", sort=False):
        old = replies.coefficients.curve
        own = old[old["direction"] == name]
        unit = f"coefficients (each a dose of {units[str(name)]:.2f})"
        said.append(f"along the {spaced(name)} {_reach(part)} in doses and {_reach(own)} in {unit}")
    ends = replies.ranked.curve
    random = [part for _, part in ends[~is_tested(ends)].groupby("direction", sort=False)]
    lasting = sum(bool(part["coherent"].all()) for part in random)
    largest = ends["dose"].max()
    empty = (replies.replies["outcome"] == "empty").mean()
    return Finding(
        "Coherence",
        f"Replies make sense {'; '.join(said)}; at doses of {largest:g} either way they do along {lasting} of {len(random)} "
        f"random directions. They may be {MAX_DROP:g} nat a token less probable to the untouched model than its own, and "
        f"{MAX_REPETITION:g} more repetitive, and nine in ten of as many as without a push must not be empty. "
        f"{100 * empty:.0f} % of the replies are empty.",
        "open_ended_coherence",
    )


def _scored(row: pd.Series, name: str) -> str:
    """A column with its interval and number of tasks; of too few, without an interval."""
    if row["n"] < LEAST_TASKS:
        return f"{row[name]:+.2f} (n={int(row['n'])}, too few judged for an interval)"
    return f"{scored(row, name)} (n={int(row['n'])} tasks)"


def _reach(part: pd.DataFrame) -> str:
    kept = part.loc[part["coherent"], "dose"]
    if part["coherent"].all():
        return f"everywhere from {kept.min():+g} to {kept.max():+g}"
    return f"from {kept.min():+g} to {kept.max():+g}" if (kept != 0).any() else "without a push alone"


def _rows(curve: pd.DataFrame, scale: str) -> tuple[str, ...]:
    """Shift of sentiment, log-probability and repetition by amount, for the screen."""
    amounts = sorted(curve["dose"].unique())
    lines = {scale: [f"{amount:+.3g}" for amount in amounts]}
    for column, what, sign in (
        ("shift", "shift", "+"),
        ("log_likelihood", "nats per token", ""),
        ("repetition", "repetition", ""),
    ):
        wide = curve.pivot(index="direction", columns="dose", values=column)[amounts]
        for name in dict.fromkeys(curve["direction"]):
            lines[f"{what}, {spaced(name)}"] = [f"{value:{sign}.2f}" if value == value else "none" for value in wide.loc[name]]
    margin = max(map(len, lines))
    return tuple(name.ljust(margin) + "".join(cell.rjust(8) for cell in cells) for name, cells in lines.items())


def example_table(replies: pd.DataFrame, directions: Sequence[str], length: int = 160) -> pd.DataFrame:
    """Replies about one task, the first, at every amount of either scale, cut to some length."""
    tested = replies[~replies["is_random"]]
    part = tested[(tested["task_id"] == tested["task_id"].iloc[0]) & (tested["draw"] == 0)]
    rows = []
    for scale in ("coefficient", "dose"):
        for direction in directions:
            own = part[(part["scale"] == scale) & (part["direction"] == direction)].sort_values("dose")
            for _, row in own.iterrows():
                rows.append(
                    {
                        "selector": direction,
                        "scale": scale,
                        "amount": f"{row['dose']:+g}",
                        "dose": row["pushed_by"],
                        "sentiment": row["sentiment"],
                        "reply": _cut(row["text"], length),
                    }
                )
    return pd.DataFrame(rows)


def _cut(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
