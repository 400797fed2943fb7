"""The model and its inside: asking it exactly, reading its residual stream, and pushing on it."""

from interp.capture import capture
from interp.cross_probe import CrossProbe, View, cross_probe
from interp.directions import difference_of_means, preference_direction, probe_direction, random_directions
from interp.embedded import MissingModel
from interp.fit import fit_probe
from interp.model import LocalModel, SteeredModel
from interp.positions import Positions
from interp.probe import ProbeSweep, probe_sweep
from interp.rendering import Rendered
from interp.splits import Split
from interp.steering import Intervention, Push

__all__ = [
    "CrossProbe",
    "Intervention",
    "LocalModel",
    "MissingModel",
    "Positions",
    "ProbeSweep",
    "Push",
    "Rendered",
    "Split",
    "SteeredModel",
    "View",
    "capture",
    "cross_probe",
    "difference_of_means",
    "fit_probe",
    "preference_direction",
    "probe_direction",
    "probe_sweep",
    "random_directions",
]
