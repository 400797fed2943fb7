"""Which layers: indices, fractions of the depth, `embed`, or `all`."""

from collections.abc import Sequence

from store.layout import EMBED, layer_name

LayerSpec = int | float | str


def resolve_layers(layers: LayerSpec | Sequence[LayerSpec], n_layers: int) -> tuple[int, ...]:
    """Block indices, without repeats and in ascending order.

    Parameters
    ----------
    layers
        `"all"`, or any of: a block index, a fraction f in [0, 1] meaning block
        `min(floor(f * n_layers), n_layers - 1)`, a range `"5:20:5"`, or `"embed"` for the stream before block 0.
    n_layers
        Number of blocks in the model.

    Raises
    ------
    ValueError
        A layer is outside the model or not in this grammar.
    """
    if isinstance(layers, int | float | str):
        layers = [layers]
    resolved: set[int] = set()
    for layer in layers:
        resolved.update(_resolve(layer, n_layers))
    if not resolved:
        raise ValueError("No layers given; expected indices, fractions, a range such as '5:20:5', 'embed' or 'all'.")
    return tuple(sorted(resolved))


def resolve_layer(layer: LayerSpec, n_layers: int) -> int:
    """Return the one block index that `layer` names."""
    found = resolve_layers(layer, n_layers)
    if len(found) != 1:
        raise ValueError(f"Layer {layer!r} names {len(found)} layers; expected one.")
    return found[0]


def _resolve(layer: LayerSpec, n_layers: int) -> list[int]:
    hint = f"expected 0 to {n_layers - 1}, a fraction in [0, 1], a range such as '5:20:5', 'embed' or 'all'"
    match layer:
        case "all":
            return list(range(n_layers))
        case "embed":
            return [EMBED]
        case str() if ":" in layer:
            try:
                bounds = [int(part) if part else None for part in layer.split(":")]
                return list(range(n_layers))[slice(*bounds)]
            except (ValueError, TypeError):
                raise ValueError(f"{layer!r} is not a range of layers; {hint}.") from None
        case str():
            try:
                return _resolve(float(layer) if "." in layer else int(layer.removeprefix("L")), n_layers)
            except ValueError:
                raise ValueError(f"{layer!r} is not a layer of this model; {hint}.") from None
        case float():
            if not 0 <= layer <= 1:
                raise ValueError(f"Layer fraction {layer} is outside [0, 1]; {hint}.")
            return [min(int(layer * n_layers), n_layers - 1)]
        case int():
            if not 0 <= layer < n_layers:
                raise ValueError(f"Layer {layer} is outside this model of {n_layers} blocks; {hint}.")
            return [layer]


__all__ = ["EMBED", "LayerSpec", "layer_name", "resolve_layer", "resolve_layers"]
