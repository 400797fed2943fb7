"""Dose and response: from what every pair or task did at every dose to curves, slopes, and a verdict against controls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from store import Estimate

CONTROLS_NEEDED = 19
"""With fewer controls, not even the most extreme result is rarer than one in twenty."""
_COHERENT_SHARE = 0.9
_CONDITION = ["layer", "mode"]
_CURVE = ["direction", "is_random", "shuffled", *_CONDITION]


@dataclass(frozen=True)
class DoseResponse:
    """What steering did.

    Attributes
    ----------
    units
        One row per direction x layer x mode x dose x pair (or task): `shift` from dose 0 in the direction of the push,
        `probability` that what is pushed up is chosen, `mass`, `on_format` (share of the answers). `is_random` marks random
        directions; `shuffled` is the method of those made of shuffled labels, empty for others.
    curve
        Means of that over pairs or tasks, with intervals of the shift, and how free texts read where some were written. A
        dose is `coherent` where it and every smaller dose on its side leave at least 90 % as many answers on format as dose 0,
        and texts that make sense.
    slopes
        One row per direction x layer x mode: mean `slope` (shift per dose) over the coherent doses with interval. For
        directions under test, of their controls at the same doses: the range of random slopes and `p_value`, the share of them
        that are as large, and the same of `shuffled` labels (`p_shuffled`).
    """

    units: pd.DataFrame
    curve: pd.DataFrame
    slopes: pd.DataFrame

    @classmethod
    def of(
        cls, units: pd.DataFrame, coherence: pd.DataFrame | None = None, *, resamples: int = 1000, seed: int = 0
    ) -> "DoseResponse":
        """Analyse `units`; intervals by bootstrap over pairs or tasks.

        Parameters
        ----------
        coherence
            How texts read (`experiments.coherence.coherence_table`, with `layer` and `mode`), of all directions or some.
        """
        units = units if "shuffled" in units else units.assign(shuffled="")
        curve = _curve(units, coherence, resamples, seed)
        return cls(units, curve, _slopes(units, curve, resamples, seed))

    def tested(self) -> pd.DataFrame:
        """Slopes of the directions under test."""
        return self.slopes[is_tested(self.slopes)]


def is_tested(table: pd.DataFrame) -> pd.Series:
    """Which rows are of directions under test, rather than of controls."""
    return ~table["is_random"].astype(bool) & (table["shuffled"] == "")


def _curve(units: pd.DataFrame, coherence: pd.DataFrame | None, resamples: int, seed: int) -> pd.DataFrame:
    rows = []
    for keys, part in units.groupby([*_CURVE, "dose"], sort=False):
        shift = _mean_over_units(part["shift"], resamples, seed)
        means = part[["probability", "mass", "on_format"]].mean().to_dict()
        estimated = {"shift": shift.value, "shift_low": shift.low, "shift_high": shift.high, "n": shift.n}
        rows.append(dict(zip([*_CURVE, "dose"], keys, strict=True)) | estimated | means)
    curve = pd.DataFrame(rows)
    makes_sense = pd.Series(True, index=curve.index)
    if coherence is not None:
        curve = curve.merge(coherence, on=["direction", *_CONDITION, "dose"], how="left", sort=False)
        makes_sense = curve.pop("makes_sense").map({True: True, False: False}).fillna(True).astype(bool)
    curve["coherent"] = False
    for _, part in curve.groupby(_CURVE, sort=False):
        enough = part["on_format"] >= _COHERENT_SHARE * part.loc[part["dose"] == 0, "on_format"].item()
        for sign in (-1, 1):
            outward = part[part["dose"] * sign >= 0].sort_values("dose", key=np.abs)
            curve.loc[outward.index, "coherent"] = (enough & makes_sense[part.index])[outward.index].cummin()
    return curve


def _slopes(units: pd.DataFrame, curve: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    rows = []
    for condition, part in units.groupby(_CONDITION, sort=False):
        own = curve[(curve[_CONDITION] == list(condition)).all(axis=1)]
        wide = part.pivot(index="direction", columns=["dose", "unit"], values="shift")
        shifts = {dose: wide[dose] for dose in sorted(part["dose"].unique()) if dose}  # dose 0 is zero by definition
        facts = part.drop_duplicates("direction").set_index("direction")
        for name in facts.index:
            kept = own[(own["direction"] == name) & own["coherent"] & (own["dose"] != 0)]["dose"].tolist()
            tested = not facts.at[name, "is_random"] and facts.at[name, "shuffled"] == ""
            slopes = _unit_slopes(shifts, kept)
            slope = _mean_over_units(slopes.loc[name], resamples, seed)
            row = {
                "direction": name,
                **facts.loc[name, ["is_random", "shuffled"]],
                **dict(zip(_CONDITION, condition, strict=True)),
            }
            row |= {"slope": slope.value, "slope_low": slope.low, "slope_high": slope.high, "slope_se": slope.se, "n": slope.n}
            row |= {"coherent_from": min(0.0, *kept), "coherent_to": max(0.0, *kept)} if kept else {}
            rows.append(row | (_against_controls(slopes.mean(axis=1), name, facts) if tested else {}))
    return pd.DataFrame(rows).astype({"is_random": bool})


def _unit_slopes(shifts: dict[float, pd.DataFrame], doses: Sequence[float]) -> pd.DataFrame:
    """Slope of every direction and unit, least squares through the origin over some doses; without any, nothing."""
    directions = next(iter(shifts.values()))
    if not doses:
        return directions * np.nan
    stacked: Float[np.ndarray, "doses directions units"] = np.stack([shifts[dose].to_numpy(dtype=float) for dose in doses])
    weights = np.array(doses)[:, None, None]
    square = np.where(np.isnan(stacked), 0.0, weights**2).sum(axis=0)
    product = np.nansum(stacked * weights, axis=0)
    slopes = np.divide(product, square, out=np.full_like(product, np.nan), where=square > 0)
    return pd.DataFrame(slopes, index=directions.index, columns=directions.columns)


def _against_controls(slopes: pd.Series, name: str, facts: pd.DataFrame) -> dict[str, float]:
    """Where the slope of a direction stands among its controls, random ones and those of its method's shuffled labels."""
    found = {}
    for kind, p_name, members in (
        ("random", "p_value", facts["is_random"].astype(bool)),
        ("shuffled", "p_shuffled", facts["shuffled"] == name),
    ):
        controls = slopes[members[slopes.index]].dropna().to_numpy()
        found[f"n_{kind}"] = len(controls)
        if len(controls):
            found |= {f"{kind}_low": controls.min(), f"{kind}_high": controls.max()}
            found[f"{kind}_sd"] = controls.std(ddof=1) if len(controls) > 1 else np.nan
            found[p_name] = (1 + (np.abs(controls) >= abs(slopes[name])).sum()) / (1 + len(controls))
    return found


def _mean_over_units(values: pd.Series, resamples: int, seed: int) -> Estimate:
    kept = values.dropna().to_numpy(dtype=float)
    if not len(kept):
        return Estimate.unknown(0)
    rows = np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))
    return Estimate.from_draws(kept.mean(), kept[rows].mean(axis=1), len(kept))
