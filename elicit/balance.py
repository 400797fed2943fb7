"""Balanced samples of templates: every level of every axis equally often, and pairs of levels as evenly as can be."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from elicit.templates import TemplateError, templates

_ROUNDS = 40


def sample_templates(
    mode: str,
    n: int,
    axes: Sequence[str],
    *,
    fixed: Mapping[str, str] | None = None,
    without: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
) -> list[str]:
    """Names of `n` templates that vary on the given axes.

    Every level of an axis occurs equally often (to within one, where `n` is no multiple of their number). Levels are then
    exchanged between templates, which keeps that, until no exchange makes the pairs of levels more even.

    Parameters
    ----------
    fixed
        Levels of other axes; the rest stay at their defaults.
    without
        Levels that are left out, by axis.

    Raises
    ------
    TemplateError
        An axis is unknown, or none is given, or no level of one is left.
    """
    wordings = templates(mode)
    if unknown := [axis for axis in [*axes, *(fixed or {})] if axis not in wordings.axes]:
        raise TemplateError(f"Mode {mode!r} has no axes {unknown}; expected some of {list(wordings.axes)}.")
    if not axes or n < 1:
        raise TemplateError(f"{n} templates that vary on {list(axes)}; expected at least one of each.")
    levels = {axis: [level for level in wordings.axes[axis] if level not in (without or {}).get(axis, ())] for axis in axes}
    if empty := [axis for axis in axes if not levels[axis]]:
        raise TemplateError(f"No level is left of the axes {empty} of mode {mode!r}; expected at least one of each.")
    sizes = [len(levels[axis]) for axis in axes]
    design = balanced_design(sizes, n, seed)
    start = wordings.defaults | dict(fixed or {})
    return [
        wordings.name(start | {axis: levels[axis][level] for axis, level in zip(axes, row, strict=True)})
        for row in design.tolist()
    ]


def balanced_design(sizes: Sequence[int], n: int, seed: int = 0) -> Int[np.ndarray, "n axes"]:
    """Rows of levels, `sizes[k]` of them for axis k, each level equally often and pairs of levels as evenly as can be."""
    random = np.random.default_rng(seed)
    design = np.stack([random.permutation(np.arange(n) % size) for size in sizes], axis=1)
    for _ in range(_ROUNDS):
        improved = False
        for axis in range(len(sizes)):
            for first in range(n):
                gains = [_gain(design, sizes, axis, first, second) for second in range(n)]
                best = int(np.argmax(gains))
                if gains[best] > 1e-9:
                    design[[first, best], axis] = design[[best, first], axis]
                    improved = True
        if not improved:
            break
    return design


def _gain(design: Int[np.ndarray, "n axes"], sizes: Sequence[int], axis: int, first: int, second: int) -> float:
    """How much more even the pairs become if two rows exchange their levels of one axis."""
    if design[first, axis] == design[second, axis]:
        return 0.0
    gain = 0.0
    for other in range(len(sizes)):
        if other == axis or design[first, other] == design[second, other]:
            continue
        # Sum of squared pair counts: moving a unit from a cell of a to one of b changes it by 2 (b - a) + 2.
        a, b = (
            int(np.sum((design[:, axis] == design[r, axis]) & (design[:, other] == design[r, other]))) for r in (first, second)
        )
        c, d = (
            int(np.sum((design[:, axis] == design[r, axis]) & (design[:, other] == design[s, other])))
            for r, s in ((first, second), (second, first))
        )
        gain += (2 * (a + b - c - d) - 4) / (len(design) / (sizes[axis] * sizes[other]))
    return gain
