"""Equal-KL dosing: for every direction, the dose that changes what the model says next by as much.

A norm is the same length in every direction, but a model is more sensitive along some than along others. Directions are
compared here at doses that disturb it equally: by the same divergence from the untouched model, along its own texts.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.run_directory import RunDirectory
from interp import LocalModel
from store import Question
from store.provenance import digest

_STEPS = 7
_CLOSE = 0.03
"""Search ends where every divergence is this close to its target, on the log scale."""
_LEAST, _MOST = 1e-3, 5.0
_FARTHEST = 4.0
"""A step changes a dose by this factor at most."""


def equal_kl_doses(
    model: LocalModel,
    steered: Mapping[str, Callable[[float], LocalModel]],
    asked: Sequence[Question],
    texts: Sequence[str],
    target: float,
    start: float,
    run: RunDirectory,
) -> pd.DataFrame:
    """Search the dose of every direction, all of them at once.

    The divergence is KL(untouched || steered) of the next token in nats, its mean over the tokens of texts, over prompts, and
    over both signs of the dose. It grows about as the square of a small dose, so steps go by the root of what is missing.

    Parameters
    ----------
    steered
        By direction, the view at a dose.
    texts
        What the untouched model wrote in answer to `asked`.
    start
        The dose at which the search begins, in mean residual norms.

    Returns
    -------
    Columns `direction, dose, kl`: the dose, and the divergence that it has. Where that is not the target, the dose has come to
    .001 or 5.
    """
    if not any(texts):
        raise ValueError(
            f"The untouched model wrote nothing in answer to {len(texts)} prompts, so no divergence can be measured."
        )
    names = list(steered)
    doses, best = np.full(len(names), float(start)), pd.DataFrame()
    for _ in range(_STEPS):
        kl = _divergences(model, [steered[name] for name in names], doses, asked, texts, run)
        best = pd.DataFrame({"direction": names, "dose": doses, "kl": kl})
        with np.errstate(divide="ignore"):
            missing = np.log(target) - np.log(kl)
        if (np.abs(missing) < _CLOSE).all():
            break
        factor = np.exp(np.clip(missing / 2, -np.log(_FARTHEST), np.log(_FARTHEST)))
        doses = np.clip(doses * factor, _LEAST, _MOST)
    return best


def _divergences(
    model: LocalModel,
    steered: Sequence[Callable[[float], LocalModel]],
    doses: np.ndarray,
    asked: Sequence[Question],
    texts: Sequence[str],
    run: RunDirectory,
) -> np.ndarray:
    views = [at(sign * dose) for at, dose in zip(steered, doses, strict=True) for sign in (1, -1)]
    key = digest(
        model.fingerprint, [model.prompt_digest(each) for each in asked], list(texts), [each.fingerprint for each in views]
    )
    known = run.remembered("divergences", key, lambda: {"values": model.divergences(views, asked, texts).tolist()})
    values = np.array(known["values"], dtype=float)
    return np.nanmean(values.reshape(len(doses), -1), axis=1)
