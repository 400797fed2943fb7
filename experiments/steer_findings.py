"""What steering did, in sentences: slopes beside those of controls, how far the model stays coherent, and what that allows."""

import pandas as pd

from experiments.coherence import MAX_DROP, MAX_REPETITION
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse, is_tested
from experiments.findings import Finding, scored, spaced
from experiments.steer_modes import UNITS
from store import layer_name
from store.estimates import POWER_FACTOR


def steering_findings(response: DoseResponse, equal_kl: float | None = None) -> list[Finding]:
    """One finding per layer and mode: slopes of the directions under test beside those of their controls.

    Parameters
    ----------
    equal_kl
        The divergence, in nats, that a dose of 1 has for every direction; None where doses are in residual norms.
    """
    unit, alike = ("", "norm") if equal_kl is None else (f" (a divergence of {equal_kl:g} nats)", "divergence")
    findings = []
    tested = response.tested()
    for layer, mode in dict.fromkeys(zip(tested["layer"], tested["mode"], strict=True)):
        part = tested[(tested["layer"] == layer) & (tested["mode"] == mode)]
        slopes = "; ".join(_slope_sentence(row, UNITS.get(mode, "logits")) for _, row in part.iterrows())
        curve = response.curve[(response.curve["layer"] == layer) & (response.curve["mode"] == mode)]
        sentence = (
            f"At {layer_name(layer)}, the shift per dose{unit} is {slopes}. {_controls(part, alike)} {_verdict(part)}"
            f"{_texts(curve)}"
        )
        findings.append(Finding(f"Steering: {spaced(mode)}", sentence, dose_figure_name(layer, mode), _dose_rows(curve)))
    return findings


def dose_figure_name(layer: int, mode: str) -> str:
    """Name of the figure of one layer and mode."""
    return f"dose_{layer_name(layer)}_{mode}"


def _dose_rows(curve: pd.DataFrame) -> tuple[str, ...]:
    """Shift at every dose, of tested directions and the range of the random ones, and what becomes of the answers."""
    tested, random = curve[is_tested(curve)], curve[curve["is_random"].astype(bool)].groupby("dose")["shift"]
    shifts = tested.pivot(index="direction", columns="dose", values="shift")
    lines = {"dose": [f"{dose:+.3g}" for dose in shifts.columns]}
    lines |= {f"shift, {spaced(name)}": [_signed(shift) for shift in row] for name, row in shifts.iterrows()}
    lines["least random"] = [_signed(shift) for shift in random.min()]
    lines["greatest random"] = [_signed(shift) for shift in random.max()]
    lines |= _by_dose(tested, "mass", "mass on format")
    if "log_likelihood" in tested:
        lines |= _by_dose(tested, "log_likelihood", "nats per token")
        lines |= _by_dose(tested, "repetition", "repetition")
    margin = max(map(len, lines))
    return tuple(name.ljust(margin) + "".join(cell.rjust(8) for cell in cells) for name, cells in lines.items())


def _by_dose(tested: pd.DataFrame, column: str, what: str) -> dict[str, list[str]]:
    wide = tested.pivot(index="direction", columns="dose", values=column)
    return {
        f"{what}, {spaced(name)}": [f"{value:.2f}" if value == value else "none" for value in row]
        for name, row in wide.iterrows()
    }


def _signed(value: float) -> str:
    return f"{value:+.2f}" if value == value else "none"  # no answer on format


def _slope_sentence(row: pd.Series, unit: str) -> str:
    if row["slope"] != row["slope"]:
        return f"unknown along the {spaced(row['direction'])}, as no dose leaves the model coherent"
    return (
        f"{scored(row, 'slope')} {unit} along the {spaced(row['direction'])} "
        f"(n={int(row['n'])}, coherent from {row['coherent_from']:+.3g} to {row['coherent_to']:+.3g})"
    )


def _controls(part: pd.DataFrame, alike: str) -> str:
    known = part.dropna(subset=["slope"])
    if known.empty:
        return ""
    first = known.iloc[0]
    said = (
        f"{int(first['n_random'])} random directions of the same {alike} give {first['random_low']:+.2f} to "
        f"{first['random_high']:+.2f}"
    )
    shuffled = known[known["n_shuffled"] > 0]
    if len(shuffled):
        ranges = " and ".join(
            f"{row['shuffled_low']:+.2f} to {row['shuffled_high']:+.2f} for the {spaced(row['direction'])}"
            for _, row in shuffled.iterrows()
        )
        said += f"; {int(shuffled['n_shuffled'].min())} directions of shuffled labels {ranges}"
    return f"{said}."


def exceeds_controls(row: pd.Series) -> bool:
    """Whether a slope is larger than that of every control there is, and above zero over pairs or tasks.

    Either alone happens by chance too often.
    """
    shuffled = row["p_shuffled"] <= 0.05 if row["n_shuffled"] else True
    return bool(row["p_value"] <= 0.05 and shuffled and row["slope_low"] > 0)


def _verdict(part: pd.DataFrame) -> str:
    known = part.dropna(subset=["slope"])
    if known.empty:
        return "So nothing is claimed."
    too_few = known["n_shuffled"].between(1, CONTROLS_NEEDED - 1).any()
    if known["n_random"].min() < CONTROLS_NEEDED or too_few:
        return f"With fewer than {CONTROLS_NEEDED} controls of a kind nothing is claimed about exceeding them."
    beyond = known[known.apply(exceeds_controls, axis=1)]
    if len(beyond):
        names = " and ".join(f"the {spaced(row['direction'])} ({_p_values(row)})" for _, row in beyond.iterrows())
        return (
            f"Of {len(known)} directions tested, the effect exceeds its controls for {names}; p-values are not corrected "
            "for the number of directions, layers and kinds of question."
        )
    # To stand out, a slope has to pass the largest control, and to do so four times in five by .84 standard errors.
    ranges = [name for name in ("random_low", "random_high", "shuffled_low", "shuffled_high") if name in known]
    needed = known[ranges].abs().max(axis=None) + (POWER_FACTOR - 1.96) * known["slope_se"].max()
    p_values = "; ".join(_p_values(row) for _, row in known.iterrows())
    return (
        f"No direction is shown to exceed its controls ({p_values}); the smallest slope that would have stood out four "
        f"times in five is {needed:.2f}."
    )


def _p_values(row: pd.Series) -> str:
    if not row["n_shuffled"]:
        return f"p = {row['p_value']:.2f}"
    return f"p = {row['p_value']:.2f} against random, {row['p_shuffled']:.2f} against shuffled"


def _texts(curve: pd.DataFrame) -> str:
    """How far texts still make sense, along the directions under test and along the random ones that wrote."""
    if "log_likelihood" not in curve:
        return ""
    written = curve.dropna(subset=["empty"])
    limits = [_limit(part, str(name)) for name, part in written[is_tested(written)].groupby("direction", sort=False)]
    said = f" Free answers to the same prompts make sense {' and '.join(limits)}"
    random = [part for _, part in written[written["is_random"].astype(bool)].groupby("direction", sort=False)]
    if random:
        lasting = sum(bool(part["coherent"].all()) for part in random)
        said += f"; for {lasting} of {len(random)} random directions at every dose"
    return (
        f"{said} (they may be {MAX_DROP:g} nat a token less probable to the untouched model than its own, and "
        f"repeat themselves {MAX_REPETITION:g} more)."
    )


def _limit(part: pd.DataFrame, name: str) -> str:
    kept = part.loc[part["coherent"], "dose"]
    reach = "at every dose" if part["coherent"].all() else f"from {kept.min():+.3g} to {kept.max():+.3g}"
    return f"{reach} along the {spaced(name)}"
