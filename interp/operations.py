"""Operations: what an intervention does to the residual stream of one token at one layer.

Every operation is one map, `r -> r - share * P r + shift`, with P the projector on the span of some directions. What the
numbers are is worked out here, in float64; `interp.treatments` applies them to the tokens of a batch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

Operation = Literal["add", "ablate", "project_out", "clamp"]
"""`add`: push along. `ablate`: take the component out. `project_out`: take a share of it out. `clamp`: give it a value."""

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
NEED_A_NORM: tuple[Operation, ...] = ("add", "clamp")
"""Operations whose dose counts residual norms."""

_DEPENDENT = 1e-5
"""A singular value below this share of the largest counts as zero."""


@dataclass(frozen=True, eq=False)
class Change:
    """The map `r -> r - share * P r + shift`.

    Attributes
    ----------
    basis
        Orthonormal vectors of the span that P projects on; none if nothing is taken out.
    share
        How much of the part in that span is taken out.
    shift
        What is added then.
    """

    basis: Float[np.ndarray, "rank d_model"]
    share: float
    shift: Float[np.ndarray, " d_model"]


def added(directions: Float[np.ndarray, "k d_model"], amounts: Float[np.ndarray, " k"]) -> Change:
    """Add so much of every direction."""
    return Change(directions[:0], 0.0, amounts @ directions)


def projected_out(directions: Float[np.ndarray, "k d_model"], share: float) -> Change:
    """Take a share of the part in the span of the directions out; their order does not matter.

    A share of 1 is directional ablation.

    References
    ----------
    Arditi et al. 2024, "Refusal in language models is mediated by a single direction", arXiv:2406.11717, equation 4.
    """
    return Change(orthonormal(directions), share, np.zeros(directions.shape[1]))


def clamped(directions: Float[np.ndarray, "k d_model"], amounts: Float[np.ndarray, " k"]) -> Change:
    """Set the component along every direction to its amount, `r + B (B'B)^-1 (amounts - B'r)`, B having them as columns.

    What is orthogonal to all of them stays.

    Raises
    ------
    ValueError
        The directions are linearly dependent, so their components cannot be chosen apart.
    """
    basis = orthonormal(directions)
    if len(basis) < len(directions):
        raise ValueError(
            f"{len(directions)} directions are clamped at the same tokens of one layer, but span only {len(basis)} "
            "dimensions: the component along one of them is settled by the others. Leave out what depends on the rest."
        )
    return Change(basis, 1.0, np.linalg.pinv(directions) @ amounts)


def orthonormal(directions: Float[np.ndarray, "k d_model"]) -> Float[np.ndarray, "rank d_model"]:
    """Orthonormal basis of the span of some directions."""
    _, singular, basis = np.linalg.svd(directions, full_matrices=False)
    return basis[singular > _DEPENDENT * singular[0]]
