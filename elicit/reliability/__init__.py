"""Can the measurement be trusted? Plain functions from tables to small results, each with a `table` and a `plot()`."""

from elicit.reliability.agreement import Agreement, agreement, scale_agreement
from elicit.reliability.dyads import dyadic_estimate
from elicit.reliability.held_out import HoldOut, hold_out_accuracy
from elicit.reliability.position import PositionBias, position_bias

__all__ = [
    "Agreement",
    "HoldOut",
    "PositionBias",
    "agreement",
    "dyadic_estimate",
    "hold_out_accuracy",
    "position_bias",
    "scale_agreement",
]
