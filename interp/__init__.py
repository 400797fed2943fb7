"""The model and its inside: asking it exactly, reading its residual stream, and pushing on it."""

from interp.capture import capture
from interp.controls import anisotropic_directions, flipped_directions, random_directions, shuffled_directions
from interp.cross_probe import CrossProbe, View, cross_probe
from interp.directions import (
    difference_of_means,
    paired_difference,
    preference_direction,
    principal_directions,
    probe_direction,
)
from interp.embedded import MissingModel
from interp.fit import fit_probe
from interp.intervention_files import load_intervention, save_intervention
from interp.model import LocalModel, SteeredModel
from interp.positions import Positions
from interp.probe import ProbeSweep, probe_sweep
from interp.prompt_writer import PromptWriter
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
    "PromptWriter",
    "Push",
    "Rendered",
    "Split",
    "SteeredModel",
    "View",
    "anisotropic_directions",
    "capture",
    "cross_probe",
    "difference_of_means",
    "fit_probe",
    "flipped_directions",
    "load_intervention",
    "paired_difference",
    "preference_direction",
    "principal_directions",
    "probe_direction",
    "probe_sweep",
    "random_directions",
    "save_intervention",
    "shuffled_directions",
]
