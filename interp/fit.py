"""One probe, fitted to all the labels there are: for use on new activations, and as a direction to push along."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.kinds import Fitting, Kind
from interp.probe import task_rows
from interp.probe_block import choices_between, upper_class, varying
from store.activations import ActivationStore
from store.directions import Probe
from store.labels import check_labels


def fit_probe(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    alphas: Sequence[float] = (),
    *,
    kind: Kind = "ridge",
    choices: pd.DataFrame | None = None,
) -> Probe:
    """Fit a probe to all the labels given; its penalty is chosen as the kind's estimator does.

    Parameters
    ----------
    alphas, kind, choices
        As in `probe_sweep`. A logistic or mass-mean probe reads the logit of the upper class.

    Returns
    -------
    The probe; with its penalty, in its provenance, are all those tried and their held-out errors.

    Raises
    ------
    ValueError
        Labels are of several targets, or constant; or there are no choices where they are needed.
    """
    labels = check_labels(labels)
    targets = labels["target"].unique()
    if len(targets) != 1:
        raise ValueError(f"Labels have the targets {sorted(targets)}; expected those of one target.")
    task_ids = labels["task_id"].tolist()
    fitted = _fitted(
        Fitting(kind, alphas), task_rows(store, layer, position, task_ids), varying(labels, targets[0]), choices, task_ids
    )
    provenance: dict[str, Any] = {"method": fitted.method, "target": str(targets[0]), "n_tasks": len(labels)}
    if hasattr(fitted, "errors_"):
        provenance |= {"alpha": float(fitted.alpha_), "alphas": fitted.errors_.alphas.tolist()}
        provenance["errors"] = fitted.errors_.mean[:, 0].tolist()
    return Probe(
        np.ravel(fitted.coef_).astype(np.float32),
        float(np.ravel(fitted.intercept_)[0]),
        layer,
        position,
        store.header.model,
        provenance,
    )


def _fitted(
    fitting: Fitting, rows: np.ndarray, values: np.ndarray, choices: pd.DataFrame | None, task_ids: Sequence[str]
) -> Any:
    from interp import estimators

    match fitting.kind:
        case "ridge":
            return estimators.RidgeProbe(fitting.alphas).fit(rows, values)
        case "logistic":
            return estimators.LogisticProbe(fitting.alphas).fit(rows, upper_class(values))
        case "mass_mean":
            return estimators.MassMeanProbe().fit(rows, upper_class(values))
        case "bradley_terry":
            asked = choices_between(choices, task_ids, np.arange(len(task_ids))[:, None])
            differences = estimators.differences(rows, asked.pairs)
            return estimators.BradleyTerryProbe(fitting.alphas).fit(differences, asked.share, sample_weight=asked.weight)
