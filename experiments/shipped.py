"""Where the organisms that come with penchant are, and what their names stand for."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "adapters"
PREFIX = "organism:"
DESCRIPTION = "organism.yaml"


def shipped() -> list[str]:
    """Names of the organisms that come with penchant."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{DESCRIPTION}"))


def organism_folder(name: str) -> Path:
    """Folder of an organism that comes with penchant (`topics`, `organism:topics`), or of one's own.

    Raises
    ------
    ValueError
        There is none; the message names those that there are.
    """
    for folder in (SHIPPED / name.removeprefix(PREFIX), Path(name)):
        if (folder / DESCRIPTION).exists():
            return folder
    raise ValueError(f"There is no organism {name!r}; expected one of {', '.join(shipped())}, or a folder with {DESCRIPTION}.")


def model_source(name: str) -> str | Path:
    """What `LocalModel.load` is to be given for the name of a model in settings."""
    return organism_folder(name) if name.startswith(PREFIX) else name
