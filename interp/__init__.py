"""The model and its inside: asking it exactly, reading its residual stream, and pushing on it."""

from interp.capture import capture
from interp.directions import difference_of_means, preference_direction, probe_direction, random_directions
from interp.embedded import MissingModel
from interp.model import LocalModel, SteeredModel
from interp.positions import Positions
from interp.probe import ProbeSweep, fit_probe, probe_sweep
from interp.rendering import Rendered
from interp.splits import Split
from interp.steering import Intervention, Push

__all__ = [
    "Intervention",
    "LocalModel",
    "MissingModel",
    "Positions",
    "ProbeSweep",
    "Push",
    "Rendered",
    "Split",
    "SteeredModel",
    "capture",
    "difference_of_means",
    "fit_probe",
    "preference_direction",
    "probe_direction",
    "probe_sweep",
    "random_directions",
]
