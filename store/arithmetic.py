"""Arithmetic of directions: sums, multiples and components, which keep their coefficients until they are made unit vectors.

Everything here is exact in what it is made of: a Combination is a list of directions and numbers, worked out when read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Float

from store.layout import layer_name
from store.provenance import ModelIdentity

if TYPE_CHECKING:
    from store.directions import Direction

_ROUNDING = 1e-6
"""Relative length below which what is left of float32 unit vectors is their rounding."""

_CANCELLED = 1e-14
"""Share of the coefficients of one direction below which their sum is taken for zero."""


class Linear(ABC):
    """What can be added, scaled and compared: a Direction, or a Combination of several at one layer of one model.

    Sums, differences and multiples are Combinations: `(happy - 0.5 * sad).direction()` is a unit vector again.
    """

    __array_ufunc__: ClassVar[None] = None  # so that a numpy number on the left leaves the product to this class

    @property
    @abstractmethod
    def _terms(self) -> "tuple[tuple[float, Direction], ...]":
        """Coefficients and directions whose sum this is."""

    def __add__(self, other: "Linear") -> "Combination":
        if not isinstance(other, Linear):
            return NotImplemented
        return Combination(self._terms + other._terms)

    def __radd__(self, other: int) -> "Combination":
        return Combination(self._terms) if isinstance(other, int) and other == 0 else NotImplemented  # what `sum` begins with

    def __sub__(self, other: "Linear") -> "Combination":
        return self + -1 * other if isinstance(other, Linear) else NotImplemented

    def __neg__(self) -> "Combination":
        return -1 * self

    def __mul__(self, factor: Real | float) -> "Combination":
        if not isinstance(factor, Real):
            return NotImplemented
        return Combination(tuple((float(factor) * coefficient, direction) for coefficient, direction in self._terms))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Real | float) -> "Combination":
        return self * (1 / float(divisor)) if isinstance(divisor, Real) else NotImplemented

    def cosine(self, other: "Linear") -> float:
        """Cosine of the angle to another direction or combination.

        Raises
        ------
        ValueError
            They are of different layers or models, or one has length zero.
        """
        first, second = Combination(self._terms), Combination(other._terms)
        check_together(first.terms[0][1], second.terms[0][1])
        return float(np.clip(first._unit @ second._unit, -1, 1))

    def orthogonal_to(self, *others: "Linear") -> "Combination":
        """Component at right angles to all of the others: this, less its projection on their span.

        Raises
        ------
        ValueError
            They are of different layers or models, one of the others has length zero, or nothing is left.
        """
        whole = left = Combination(self._terms)
        if not others:
            return whole
        spanning = [Combination(other._terms) for other in others]
        for each in spanning:
            check_together(left.terms[0][1], each.terms[0][1])
        # Directions that depend on one another up to rounding span no dimension of their own.
        span = np.stack([each._unit for each in spanning], axis=1)
        shares = np.linalg.lstsq(span, left.vector, rcond=_ROUNDING)[0]
        for share, each in zip(shares.tolist(), spanning, strict=True):
            left = left - share / each.length * each
        if left.length <= _ROUNDING * whole.length:
            raise ValueError(
                f"{whole!r} lies in the span of the {len(others)} others, up to rounding; it has no component at right angles."
            )
        return left


@dataclass(frozen=True, eq=False)
class Combination(Linear):
    """A linear combination of directions at one layer of one model; unlike a Direction it has a length, which may be zero.

    Attributes
    ----------
    terms
        Coefficients and directions; a direction that is given twice becomes one term.

    Raises
    ------
    ValueError
        There is no direction, a coefficient is not finite, or layers or models differ.
    """

    terms: "tuple[tuple[float, Direction], ...]"

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("There are no directions to combine; expected at least one.")
        merged: dict[str, tuple[float, float, Direction]] = {}
        for coefficient, direction in self.terms:
            check_together(self.terms[0][1], direction)
            if not math.isfinite(coefficient):
                raise ValueError(f"The coefficient of a direction is {coefficient}; expected a finite number.")
            total, size, kept = merged.get(direction.fingerprint, (0.0, 0.0, direction))
            merged[direction.fingerprint] = (total + float(coefficient), size + abs(coefficient), kept)
        # What 0.1 + 0.2 - 0.3 leaves of a direction is rounding, and would pass for a direction once scaled to length 1.
        terms = [(total if abs(total) > _CANCELLED * size else 0.0, kept) for total, size, kept in merged.values()]
        object.__setattr__(self, "terms", tuple(terms))

    @classmethod
    def mean(cls, directions: Sequence[Linear]) -> Self:
        """Mean of several directions or combinations."""
        return cls(tuple((share / len(directions), each) for one in directions for share, each in one._terms))

    @property
    def _terms(self) -> "tuple[tuple[float, Direction], ...]":
        return self.terms

    @property
    def layer(self) -> int:
        """Block index of all the directions."""
        return self.terms[0][1].layer

    @property
    def model(self) -> ModelIdentity:
        """The model of all the directions."""
        return self.terms[0][1].model

    @property
    def vector(self) -> Float[np.ndarray, " d_model"]:
        """The sum, in float64."""
        coefficients, directions = zip(*self.terms, strict=True)
        return np.array(coefficients) @ np.stack([direction.vector for direction in directions]).astype(np.float64)

    @property
    def length(self) -> float:
        """Euclidean length of the sum: how strongly its directions agree, after their coefficients."""
        return float(np.linalg.norm(self.vector))

    @property
    def _unit(self) -> Float[np.ndarray, " d_model"]:
        vector, most = self.vector, sum(abs(coefficient) for coefficient, _ in self.terms)
        length = np.linalg.norm(vector)
        if length <= _ROUNDING * most:
            raise ValueError(
                f"{self!r} has length zero, so it points nowhere: its terms cancel, or all have the coefficient 0. Change a "
                "coefficient, or leave it out."
            )
        return vector / length

    def direction(self, **provenance: Any) -> "Direction":
        """Make it a unit vector; the provenance keeps its length, and coefficient, fingerprint and method of every term.

        Raises
        ------
        ValueError
            Its length is zero.
        """
        first = self.terms[0][1]
        parts = [
            {"coefficient": coefficient, "method": direction.provenance.get("method"), "fingerprint": direction.fingerprint}
            for coefficient, direction in self.terms
        ]
        known: dict[str, Any] = {"length": self.length, "method": "combination", "terms": parts}
        positions = [direction.provenance.get("position") for _, direction in self.terms]
        if positions[0] is not None and all(position == positions[0] for position in positions):
            known["position"] = positions[0]
        return type(first)(self._unit.astype(np.float32), first.layer, first.model, known | provenance)

    def __repr__(self) -> str:
        parts = [f"{coefficient:+g} {direction.provenance.get('method', 'direction')}" for coefficient, direction in self.terms]
        return f"Combination({' '.join(parts)} at {layer_name(self.layer)})"


def check_together(first: "Direction", second: "Direction") -> None:
    """Refuse two directions that are not vectors of one space.

    Raises
    ------
    ValueError
        They are of different layers, models or widths.
    """
    if first.layer != second.layer:
        raise ValueError(
            f"One direction is at {layer_name(first.layer)} and the other at {layer_name(second.layer)} of {first.model.name}; "
            "only directions at one layer can be combined or compared."
        )
    if first.model.fingerprint != second.model.fingerprint or first.vector.shape != second.vector.shape:
        raise ValueError(
            f"One direction is of {_described(first)} and the other of {_described(second)}; only directions in one residual "
            "stream can be combined or compared. If two models share theirs (another dtype, a steered view), say so with "
            "dataclasses.replace(direction, model=other.model)."
        )


def _described(direction: "Direction") -> str:
    model = direction.model
    return f"{model.name} ({model.family}, fingerprint {model.fingerprint[:12]}, width {direction.vector.shape[-1]})"
