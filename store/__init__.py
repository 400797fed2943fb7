"""What lasts: questions and answers, labels, activations, directions, and where each came from."""

from store.activations import EMBED, ActivationStore, ActivationWriter, StoreHeader, layer_name
from store.directions import Direction, Probe, SteeringVector
from store.estimates import Estimate
from store.labels import read_labels, write_labels
from store.measurements import MeasurementLog
from store.records import END_OF_TURN, Answer, Message, Option, Outcome, Question, Sampling, Span

__all__ = [
    "EMBED",
    "END_OF_TURN",
    "ActivationStore",
    "ActivationWriter",
    "Answer",
    "Direction",
    "Estimate",
    "MeasurementLog",
    "Message",
    "Option",
    "Outcome",
    "Probe",
    "Question",
    "Sampling",
    "Span",
    "SteeringVector",
    "StoreHeader",
    "layer_name",
    "read_labels",
    "write_labels",
]
