"""penchant direction: what directions, probes and steering vectors are and how alike, and the way to other tools.

How one is made is in `direction_make`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from store import Direction, Probe, SteeringVector, export_gguf, export_numpy, import_gguf, layer_name
from store.directions import load

_SHOWN = 70
"""Characters of a fact of the provenance that are shown."""


def main(arguments: Sequence[str]) -> int:
    """Run `penchant direction`."""
    if arguments and arguments[0] == "make":
        from experiments.commands import direction_make

        return direction_make.main(arguments[1:])
    import tyro

    def command(
        action: tyro.conf.Positional[Literal["make", "show", "export"]],
        files: Annotated[tuple[Path, ...], tyro.conf.Positional],
        out: Path | None = None,
        model_hint: str | None = None,
    ) -> tuple[str, tuple[Path, ...], Path | None, str | None]:
        """Make directions, look at them and at steering vectors and probes, compare them, and write them for other tools.

        Parameters
        ----------
        action
            make: from activations, by task ids, labels or two conditions: penchant direction make --help.
            show FILE ...: layer, model, norm and provenance of each, and the cosines between several.
            export FILE ... --out OUT: one file of all, OUT.gguf for llama.cpp and repeng, or OUT.npz of plain arrays.
        files
            Files written by store.directions.save, or GGUF control vectors. Of a probe its direction is taken.
        out
            export: where to; the name ends in .gguf or .npz.
        model_hint
            export: what a GGUF file calls the architecture, if not by the model's family.
        """
        return action, files, out, model_hint

    action, files, out, model_hint = tyro.cli(command, args=list(arguments), prog="penchant direction")
    if action == "make":
        raise ValueError("make comes before its settings: penchant direction make --store acts.h5 ...")
    if not files:
        raise ValueError(f"penchant direction {action} takes at least one file; got none.")
    if action == "show" and (out or model_hint):
        raise ValueError("--out and --model-hint are for export; penchant direction show takes neither.")
    named = _read(files)
    if action == "show":
        print(describe(named))
    else:
        _export(list(named.values()), out, model_hint)
    return 0


def describe(named: Mapping[str, Direction | SteeringVector | Probe]) -> str:
    """What directions are, by name, and the cosines between those that can be compared, as a screen of text."""
    facts = {name: _facts(value) for name, value in named.items()}
    width = max(len(key) for each in facts.values() for key in each) + 2
    screens = [
        "\n".join([name, *(f"  {key.ljust(width)}{value}" for key, value in each.items())]) for name, each in facts.items()
    ]
    if len(named) > 1:
        screens.append(f"cosines\n{_cosines(named)}")
    return "\n\n".join(screens)


def _read(files: Sequence[Path]) -> dict[str, Direction | SteeringVector | Probe]:
    """What files hold, by their names, and by layer too where one holds several."""
    found: dict[str, Direction | SteeringVector | Probe] = {}
    for file in files:
        if file.suffix != ".gguf":
            found[str(file)] = load(file)
            continue
        several = import_gguf(file)
        for each in several:
            found[f"{file} {layer_name(_direction(each).layer)}" if len(several) > 1 else str(file)] = each
    return found


def _direction(value: Direction | SteeringVector | Probe) -> Direction:
    match value:
        case Direction():
            return value
        case SteeringVector():
            return value.direction
        case Probe():
            return value.direction()


def _facts(value: Direction | SteeringVector | Probe) -> dict[str, str]:
    direction = _direction(value)
    model, known = direction.model, dict(direction.provenance)
    facts = {
        "what": {Direction: "direction, a unit vector", SteeringVector: "steering vector", Probe: "probe"}[type(value)],
        "layer": layer_name(direction.layer),
        "model": f"{model.name} ({model.family}), fingerprint {model.fingerprint[:12]}, {len(direction.vector):,} wide",
        "fingerprint": direction.fingerprint[:12],
        "method": str(known.pop("method", "unknown")),
    }
    if isinstance(value, SteeringVector):
        facts["norm"] = f"{value.norm:g}, what a dose of 1.0 adds"
        facts |= {f"norm: {key}": _short(each) for key, each in value.calibration.items()}
    if isinstance(value, Probe):
        facts["intercept"] = f"{value.intercept:g}"
    if isinstance(terms := known.get("terms"), list):
        del known["terms"]
        facts |= {f"term {number + 1}": _short(term) for number, term in enumerate(terms)}
    return facts | {key: _short(each) for key, each in known.items()}


def _short(value: Any) -> str:
    """A fact of the provenance on one line; of long lists, how long they are."""
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    if len(text) <= _SHOWN:
        return text.replace("\n", " ")
    counted = f" ({len(value):,} in all)" if isinstance(value, list) else ""
    return f"{text[: _SHOWN - 3]}...{counted}".replace("\n", " ")


def _cosines(named: Mapping[str, Direction | SteeringVector | Probe]) -> str:
    """Cosines between all, numbered in their order; empty where layers or models differ."""
    directions = [_direction(value) for value in named.values()]
    table = [["", *(str(number + 1) for number in range(len(directions)))]]
    for number, (name, first) in enumerate(zip(named, directions, strict=True)):
        cells = [f"{first.cosine(second):+.3f}" if _comparable(first, second) else "" for second in directions]
        table.append([f"{number + 1} {name}", *cells])
    widths = np.array([[len(cell) for cell in row] for row in table]).max(axis=0)
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def _comparable(first: Direction, second: Direction) -> bool:
    kinds = [(each.layer, each.model.fingerprint, each.vector.shape) for each in (first, second)]
    return kinds[0] == kinds[1]


def _export(values: Sequence[Direction | SteeringVector | Probe], out: Path | None, model_hint: str | None) -> None:
    if out is None or out.suffix not in (".gguf", ".npz"):
        raise ValueError(
            f"penchant direction export writes to {str(out) if out else 'nothing'}; expected --out and a name that ends in "
            ".gguf or .npz."
        )
    if model_hint and out.suffix != ".gguf":
        raise ValueError(f"--model-hint is for GGUF files; {out} is none.")
    vectors = [value.direction() if isinstance(value, Probe) else value for value in values]
    written = export_gguf(out, vectors, model_hint=model_hint) if out.suffix == ".gguf" else export_numpy(out, vectors)
    print(f"{len(vectors)} {'vector' if len(vectors) == 1 else 'vectors'} written to {written}")
