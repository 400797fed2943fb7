"""What a spread per task gains, how far it runs, and what the position term has to do with it, in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from experiments.findings import Finding, plain
from experiments.thurstone_fits import AS_SHOWN, DENSE, EXACT, LARGEST_SIGMA, SIGMAS, SPARSE
from store import Estimate

if TYPE_CHECKING:
    from experiments.thurstone_regularisation import ThurstoneRegularisationSettings


def gain_finding(gains: pd.DataFrame, kind: str, settings: "ThurstoneRegularisationSettings") -> Finding:
    """What sigmas save against Bradley-Terry on held-out pairs, condition by condition, where one kind of answers is fitted."""
    part = gains[gains["answers"] == kind]
    told = "the exact probabilities" if kind == EXACT else f"sampled answers ({settings.draws} a question)"
    with_position = [_verdict(row, settings.penalties) for _, row in part[part["position"]].iterrows()]
    heading = (
        f"{'design':8s}{'position':10s}{'scored':17s}{'lambda':>20s}   {'sigmas save':22s} Bradley-Terry saves against a coin"
    )
    rows = tuple(
        f"{row['design']:8s}{'on' if row['position'] else 'off':10s}{row['scored']:17s}{_lambda(row):>20s}   "
        f"{plain(_estimate(row, 'gain')):22s} {plain(_estimate(row, 'over_coin'))}"
        for _, row in part.iterrows()
    )
    return Finding(
        f"Fitted to {kind}",
        "What a spread per task saves on held-out pairs against Bradley-Terry, both with a position term and fitted to "
        f"{told}, in thousandths of a nat an answer: {'; '.join(with_position)}. At the largest lambda all spreads are alike, "
        "and what then differs from Bradley-Terry is the curve and the lack of a prior.",
        "thurstone_regularisation",
        (heading, *rows),
    )


def _lambda(row: pd.Series) -> str:
    return f"{row['best']:g} [{row['best_low']:g}, {row['best_high']:g}]"


def _verdict(row: pd.Series, penalties: Sequence[float]) -> str:
    """Whether sigmas predict better than Bradley-Terry under one condition."""
    gain = _estimate(row, "gain")
    edges = {max(penalties): ", the largest tried", min(penalties): ", the least tried"}
    if gain.differs_from(0):
        verdict = "better" if gain.value > 0 else "worse"
    else:
        verdict = f"not shown to be better or worse, though {gain.smallest_effect:.2f} would have been found four times in five"
    best = f"lambda = {_lambda(row)} is best{edges.get(row['best'], '')}"
    return f"{row['design']}, {row['scored']}, {plain(gain)} ({verdict}; {best})"


def sigma_finding(curve: pd.DataFrame, kind: str) -> Finding:
    """How the largest sigma falls with the penalty, and where some are on their bound."""
    part = curve[(curve["model"] == SIGMAS) & (curve["scored"] == AS_SHOWN) & curve["position"] & (curve["answers"] == kind)]
    told = []
    for design in (DENSE, SPARSE):
        rows = part[part["design"] == design].sort_values("penalty")
        least, most = rows.iloc[0], rows.iloc[-1]
        bound = rows[rows["sigma_high"] >= 0.999 * LARGEST_SIGMA]["penalty"]
        held = (
            f"some is on its bound ({LARGEST_SIGMA:.2f}) up to lambda = {bound.max():g}" if len(bound) else "none on its bound"
        )
        told.append(
            f"from {least['largest_sigma']:.2f} at lambda = {least['penalty']:g} to {most['largest_sigma']:.2f} at "
            f"{most['penalty']:g} in the {design} design ({held})"
        )
    failed = int(curve.drop_duplicates(["answers", "design", "position", "model", "penalty"])["unconverged"].sum())
    note = f" {failed} fits did not converge." if failed else ""
    sentence = (
        f"The largest sigma, fitted to {kind} answers, falls {'; '.join(told)}. Where all are 1, the model is Thurstone's case "
        "V, without a prior."
    )
    return Finding("Largest sigma", sentence + note, "thurstone_sigmas")


def position_finding(gains: pd.DataFrame) -> Finding:
    """What the position term saves, and what it could stand for in a model with sigmas."""
    part = gains[gains["position"] & (gains["scored"] == AS_SHOWN)]
    told = "; ".join(
        f"{plain(_estimate(row, 'position_gain'))} ({row['design']}, {row['answers']})" for _, row in part.iterrows()
    )
    effects = [_estimate(row, "position_gain") for _, row in part.iterrows()]
    unseen = [effect.smallest_effect for effect in effects if not effect.differs_from(0)]
    note = (
        f" Where the interval contains 0 nothing is claimed; {max(unseen):.1f} would have been found four times in five."
        if unseen
        else ""
    )
    return Finding(
        "Position term",
        f"The term saves Bradley-Terry {told} thousandths of a nat an answer as shown.{note} In the model with sigmas it "
        "counts for less where sigmas are large, so that they can stand for a bias that differs by task: what they save as "
        "shown, yet neither with orders averaged nor without the term, would be that, and no spread of what tasks are worth.",
        "thurstone_regularisation",
    )


def _estimate(row: pd.Series, name: str) -> Estimate:
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_se"], int(row["n"]))
