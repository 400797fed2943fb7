"""Persona x context x dose: from ratings in every cell to slopes, what the system prompts do, and where controls stand.

A cell is the prompt a task was done under (persona) and the one its doing is rated under (context). Ratings come from
`experiments.concept_steering`; what follows from the numbers here is said in `experiments.concept_findings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from elicit import rating
from experiments.crossed import Crossed
from experiments.dose_response import DoseResponse
from store import Estimate

FACTORS = ("done_under", "rated_under")
CONCEPT = "concept"
MODE = "rating"
_UNIT = ["direction", "control", "dose", "task_id", *FACTORS]

PerCell = Float[np.ndarray, "tasks done rated"]


@dataclass(frozen=True)
class Controls:
    """Slopes of one kind of control at the largest dose and its opposite, beside that of the concept in the same cells.

    Attributes
    ----------
    kind
        `random` or `flipped`.
    slopes
        One a control, averaged over tasks.
    tested
        The concept's, of the same tasks, cells and doses.
    """

    kind: str
    slopes: Float[np.ndarray, " controls"]
    tested: float

    @property
    def p_value(self) -> float:
        """Rank of the size of the concept's slope among those of the controls; NaN where there is no slope."""
        if not np.isfinite(self.tested):
            return np.nan
        return float((1 + (np.abs(self.slopes) >= abs(self.tested)).sum()) / (1 + len(self.slopes)))


@dataclass(frozen=True)
class ConceptGrid:
    """What system prompts and a push along their difference do to ratings of the same doing.

    Attributes
    ----------
    units
        One row per direction x dose x task x cell: `share` (of the scale's length, missing off format), `mass`, `on_format`.
        `control` is the kind of control, empty for the concept. Of tasks that are on format in every cell at dose 0.
    crossed
        The ratings at dose 0.
    response
        Dose and response of the concept, averaged over cells: means, format, texts, and which doses are coherent.
    concept
        The two prompts whose difference is the concept.
    """

    units: pd.DataFrame
    crossed: Crossed
    response: DoseResponse
    concept: tuple[str, str]

    @classmethod
    def of(
        cls,
        ratings: pd.DataFrame,
        prompts: Sequence[str],
        concept: tuple[str, str],
        layer: int,
        coherence: pd.DataFrame | None = None,
    ) -> "ConceptGrid":
        """Analyse `rating.ratings` with the columns `direction, control, dose, done_under, rated_under`.

        Parameters
        ----------
        ratings
            The concept's at every dose, zero included, in all cells; controls' at some doses in some cells.
        coherence
            How texts read (`experiments.coherence.coherence_table`).

        Raises
        ------
        ValueError
            Too few tasks are on format in every cell at dose 0.
        """
        untouched = ratings[(ratings["direction"] == CONCEPT) & (ratings["dose"] == 0)]
        crossed = Crossed.of(untouched, FACTORS, list(prompts))
        units = _units(ratings[ratings["scale"].isin(crossed.scales or crossed.dropped)])
        zero = units[(units["direction"] == CONCEPT) & (units["dose"] == 0)]
        complete = zero.groupby("task_id")["share"].apply(lambda shares: shares.notna().all())
        units = units[units["task_id"].map(complete)].reset_index(drop=True)
        if coherence is not None:
            coherence = coherence.assign(layer=layer, mode=MODE)
        return cls(units, crossed, DoseResponse.of(_by_task(units, layer), coherence), concept)

    @property
    def prompts(self) -> Sequence[str]:
        """The reference first."""
        return self.crossed.names

    @property
    def doses(self) -> list[float]:
        """Doses other than zero at which the model stays coherent under the concept."""
        curve = self.response.curve
        return sorted(curve.loc[curve["coherent"] & (curve["dose"] != 0), "dose"])

    @property
    def largest_dose(self) -> float:
        """Of those asked."""
        return float(self.units["dose"].max())

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        """Which prompt is compared with which: those of the concept, and the others with the reference."""
        reference, *others = self.prompts
        return [self.concept, *((name, reference) for name in others if {name, reference} != set(self.concept))]

    def shares(self, direction: str, dose: float) -> PerCell:
        """Ratings in every cell; missing where they are off format or were not asked for."""
        part = self.units[(self.units["direction"] == direction) & (self.units["dose"] == dose)]
        everything = pd.MultiIndex.from_product([sorted(self.units["task_id"].unique()), self.prompts, self.prompts])
        found = part.set_index(["task_id", *FACTORS])["share"].reindex(everything)
        return found.to_numpy(dtype=float).reshape(-1, len(self.prompts), len(self.prompts))

    def shifts(self, dose: float) -> PerCell:
        """By how much the concept moves ratings from dose 0."""
        return self.shares(CONCEPT, dose) - self.shares(CONCEPT, 0.0)

    def slopes(self) -> PerCell:
        """Shift per dose of every task and cell: least squares through the origin over the coherent doses."""
        if not self.doses:
            return np.full_like(self.crossed.values, np.nan)
        shifts, doses = np.stack([self.shifts(dose) for dose in self.doses]), np.array(self.doses)[:, None, None, None]
        square = np.where(np.isnan(shifts), 0.0, doses**2).sum(axis=0)
        return _ratio(np.nansum(shifts * doses, axis=0), square)

    def slope(self) -> Estimate:
        """The slope averaged over all cells, over tasks that have one in each."""
        return mean_of_known(self.slopes().mean(axis=(1, 2)))

    def effects(self) -> dict[str, Estimate]:
        """Effects within tasks: of prompts on the rating, averaged over doings or contexts, and on the slope."""
        found = {}
        for kind, values in (("rating", self.crossed.values), ("slope", self.slopes())):
            for one, other in self.contrasts:
                for role, axis in (("rated under", 1), ("done under", 2)):
                    means = values.mean(axis=axis)
                    difference = means[:, self.prompts.index(one)] - means[:, self.prompts.index(other)]
                    found[f"{kind}, {role} {one} less {other}"] = mean_of_known(difference)
        return found

    def worth(self, resamples: int, seed: int) -> Estimate | None:
        """How many doses rating under one prompt of the concept instead of the other is worth; bootstrap over tasks.

        None where the slope's interval contains zero: the ratio then has no bounds.
        """
        if not self.slope().differs_from(0):
            return None
        one, other = (self.prompts.index(name) for name in self.concept)
        rated = self.crossed.values.mean(axis=1)
        pairs = np.stack([rated[:, one] - rated[:, other], self.slopes().mean(axis=(1, 2))], axis=1)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        drawn = pairs[np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))].mean(axis=1)
        ratio = pairs[:, 0].mean() / pairs[:, 1].mean()
        return Estimate.from_draws(ratio, _ratio(drawn[:, 0], drawn[:, 1]), len(pairs))

    def controls(self, kind: str) -> Controls:
        """Where the concept stands among controls, at the doses and in the cells that those were asked at.

        Without a coherent largest dose, its slope there is missing.
        """
        names = self.units.loc[self.units["control"] == kind, "direction"].unique()
        least, most = -self.largest_dose, self.largest_dose
        asked = self.units[(self.units["control"] == kind)].drop_duplicates(["task_id", *FACTORS])
        everything = pd.MultiIndex.from_product([sorted(self.units["task_id"].unique()), self.prompts, self.prompts])
        where = everything.isin(pd.MultiIndex.from_frame(asked[["task_id", *FACTORS]])).reshape(self.crossed.values.shape)

        def slope(direction: str) -> float:
            contrast = (self.shares(direction, most) - self.shares(direction, least)) / (most - least)
            return mean_of_known(_mean(np.where(where, contrast, np.nan).reshape(len(contrast), -1))).value

        slopes = np.array([slope(name) for name in names])
        coherent = least in self.doses and most in self.doses
        return Controls(kind, slopes[np.isfinite(slopes)], slope(CONCEPT) if coherent and len(names) else np.nan)

    def control_shifts(self, kind: str, dose: float) -> Float[np.ndarray, "controls rated"]:
        """By how much each control moves the ratings under each context, averaged over tasks in the cells it was asked in."""
        names = self.units.loc[self.units["control"] == kind, "direction"].unique()
        zero = self.shares(CONCEPT, 0.0)
        shifts = [(self.shares(name, dose) - zero).reshape(-1, len(self.prompts)).T for name in names]
        return np.array([_mean(each) for each in shifts]).reshape(-1, len(self.prompts))

    def cell_slopes(self) -> pd.DataFrame:
        """Slope of every cell, with Student's interval over tasks."""
        slopes = self.slopes()
        rows = [
            dict(zip(FACTORS, (done, rated), strict=True)) | mean_of_known(slopes[:, i, j]).to_dict()
            for i, done in enumerate(self.prompts)
            for j, rated in enumerate(self.prompts)
        ]
        return pd.DataFrame(rows).rename(columns={"value": "slope"})


def _units(ratings: pd.DataFrame) -> pd.DataFrame:
    """Averages over scales; a share is missing where it is on any of them."""
    shared = ratings.assign(share=rating.shares(ratings), on_format=(ratings["outcome"] == "chose").astype(float))
    grouped = shared.groupby(_UNIT, sort=False)
    units = grouped[["share", "mass", "on_format"]].mean()
    return units.assign(share=units["share"].where(grouped["share"].count() == grouped.size())).reset_index()


def _by_task(units: pd.DataFrame, layer: int) -> pd.DataFrame:
    """Shifts of the concept, averaged over cells, as `DoseResponse` takes them."""
    own = units[units["direction"] == CONCEPT]
    zero = own[own["dose"] == 0].set_index(["task_id", *FACTORS])["share"]
    cells = pd.MultiIndex.from_frame(own[["task_id", *FACTORS]])
    shifted = own.assign(shift=own["share"].to_numpy() - zero.reindex(cells).to_numpy())
    table = shifted.groupby(["dose", "task_id"], sort=False)[["shift", "mass", "on_format"]].mean().reset_index()
    facts = {"direction": CONCEPT, "is_random": False, "layer": layer, "mode": MODE, "probability": np.nan}
    return table.rename(columns={"task_id": "unit"}).assign(**facts)


def mean_of_known(values: Float[np.ndarray, " tasks"]) -> Estimate:
    """Mean with Student's interval over the tasks that have a value."""
    known = values[np.isfinite(values)]
    return Estimate.of_mean(known) if len(known) else Estimate.unknown(0)


def _mean(values: Float[np.ndarray, "rows cells"]) -> Float[np.ndarray, " rows"]:
    """Mean of what is known in each row; missing where nothing is."""
    return _ratio(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1).astype(float))


def _ratio(above: Float[np.ndarray, "..."], below: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
