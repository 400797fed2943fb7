"""Dose and response: from what every pair or task did at every dose to curves, slopes, and a verdict against controls."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from store import Estimate

CONTROLS_NEEDED = 19
"""With fewer random directions, not even the most extreme result is rarer than one in twenty."""
_COHERENT_SHARE = 0.9
_CURVE = ["direction", "is_random", "layer", "mode"]


@dataclass(frozen=True)
class DoseResponse:
    """What steering did.

    Attributes
    ----------
    units
        One row per direction x layer x mode x dose x pair (or task): `shift` from dose 0 in the direction of the push (logits
        towards the task pushed up; scale lengths for ratings), `probability` that the task pushed up is chosen, `mass`,
        `on_format` (share of the answers).
    curve
        Means of that over pairs or tasks, with intervals of the shift. A dose is `coherent` where it and every smaller dose
        on its side leave at least 90 % as many answers on format as dose 0.
    slopes
        One row per direction x layer x mode: mean `slope` (shift per dose) over the coherent doses with interval, and for
        directions under test the range of the random slopes and `p_value`, the share of them that are as large.
    """

    units: pd.DataFrame
    curve: pd.DataFrame
    slopes: pd.DataFrame

    @classmethod
    def of(cls, units: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> "DoseResponse":
        """Analyse `units`; intervals by bootstrap over pairs or tasks."""
        curve = _curve(units, resamples, seed)
        return cls(units, curve, _slopes(units, curve, resamples, seed))

    def tested(self) -> pd.DataFrame:
        """Slopes of the directions under test."""
        return self.slopes[~self.slopes["is_random"].astype(bool)]


def _curve(units: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    rows = []
    for keys, part in units.groupby([*_CURVE, "dose"], sort=False):
        shift = _mean_over_units(part["shift"], resamples, seed)
        means = part[["probability", "mass", "on_format"]].mean().to_dict()
        estimated = {"shift": shift.value, "shift_low": shift.low, "shift_high": shift.high, "n": shift.n}
        rows.append(dict(zip([*_CURVE, "dose"], keys, strict=True)) | estimated | means)
    curve = pd.DataFrame(rows)
    curve["coherent"] = False
    for _, part in curve.groupby(_CURVE, sort=False):
        enough = part["on_format"] >= _COHERENT_SHARE * part.loc[part["dose"] == 0, "on_format"].item()
        for sign in (-1, 1):
            outward = part[part["dose"] * sign >= 0].sort_values("dose", key=np.abs)
            curve.loc[outward.index, "coherent"] = enough[outward.index].cummin()
    return curve


def _slopes(units: pd.DataFrame, curve: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    merged = units.merge(curve[[*_CURVE, "dose", "coherent"]], on=[*_CURVE, "dose"])
    rows = []
    for keys, part in merged.groupby(_CURVE, sort=False):
        pushed = part[part["coherent"] & (part["dose"] != 0)].dropna(subset=["shift"])
        # Least squares through the origin, unit by unit: the shift at dose 0 is zero by definition.
        sums = pushed.assign(product=pushed["shift"] * pushed["dose"], square=pushed["dose"] ** 2).groupby("unit")
        slope = _mean_over_units(sums["product"].sum() / sums["square"].sum(), resamples, seed)
        estimated = {"slope": slope.value, "slope_low": slope.low, "slope_high": slope.high, "slope_se": slope.se, "n": slope.n}
        span = {"coherent_from": pushed["dose"].min(), "coherent_to": pushed["dose"].max()}
        rows.append(dict(zip(_CURVE, keys, strict=True)) | estimated | span)
    slopes = pd.DataFrame(rows)
    for (_, _), part in slopes.groupby(["layer", "mode"]):
        random = part.loc[part["is_random"], "slope"].dropna().to_numpy()
        for place, row in part[~part["is_random"]].iterrows():
            slopes.loc[place, ["random_low", "random_high", "random_sd"]] = random.min(), random.max(), random.std(ddof=1)
            slopes.loc[place, "n_random"] = len(random)
            slopes.loc[place, "p_value"] = (1 + (np.abs(random) >= abs(row["slope"])).sum()) / (1 + len(random))
    return slopes


def _mean_over_units(values: pd.Series, resamples: int, seed: int) -> Estimate:
    kept = values.dropna().to_numpy(dtype=float)
    if not len(kept):
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    rows = np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))
    return Estimate.from_draws(kept.mean(), kept[rows].mean(axis=1), len(kept))
