"""What lasts: questions and answers, labels, activations, directions, and where each came from."""

from store.activations import ActivationStore
from store.arithmetic import Combination
from store.control_vectors import export_gguf, export_numpy, import_gguf
from store.directions import Direction, Probe, SteeringVector
from store.estimates import Estimate
from store.exchange import export, import_npz, merge
from store.labels import read_labels, write_labels
from store.layout import EMBED, Slots, StoreHeader, layer_name
from store.measurements import MeasurementLog
from store.records import END_OF_TURN, Answer, Message, Option, Outcome, Question, Sampling, Span
from store.writer import ActivationWriter

__all__ = [
    "EMBED",
    "END_OF_TURN",
    "ActivationStore",
    "ActivationWriter",
    "Answer",
    "Combination",
    "Direction",
    "Estimate",
    "MeasurementLog",
    "Message",
    "Option",
    "Outcome",
    "Probe",
    "Question",
    "Sampling",
    "Slots",
    "Span",
    "SteeringVector",
    "StoreHeader",
    "export",
    "export_gguf",
    "export_numpy",
    "import_gguf",
    "import_npz",
    "layer_name",
    "merge",
    "read_labels",
    "write_labels",
]
