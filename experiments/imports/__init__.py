"""Other people's runs: comparisons, utilities, activations and directions from elsewhere, in penchant's own files."""

from experiments.imports.activations import import_activations
from experiments.imports.comparisons import ImportedComparisons, import_comparisons
from experiments.imports.directions import import_directions
from experiments.imports.labels import import_labels
from experiments.imports.record import has_imported_labels, read_record
from experiments.imports.tables import ForeignFileError, read_foreign_table
from experiments.imports.tasks import origins_of

__all__ = [
    "ForeignFileError",
    "ImportedComparisons",
    "has_imported_labels",
    "import_activations",
    "import_comparisons",
    "import_directions",
    "import_labels",
    "origins_of",
    "read_foreign_table",
    "read_record",
]
