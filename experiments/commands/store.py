"""penchant store: what an activation store holds, whether its bytes are whole, and the ways in and out of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from store import ActivationStore, export, import_npz, layer_name, merge
from store.layout import layer_number

_PATHS = {"info": (1, True), "verify": (1, True), "merge": (2, True), "export": (2, True), "import": (2, False)}
"""For each action, the fewest paths, and whether there may be more."""


def main(arguments: Sequence[str]) -> int:
    """Run `penchant store`; the exit status is 1 where `verify` finds damage."""
    import tyro

    def command(
        action: tyro.conf.Positional[Literal["info", "verify", "merge", "export", "import"]],
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional],
        layers: tuple[str, ...] | None = None,
        positions: tuple[str, ...] | None = None,
    ) -> tuple[str, tuple[Path, ...], tuple[str, ...] | None, tuple[str, ...] | None]:
        """Look at activation stores, check them, merge shards, and exchange rows with other tools.

        Parameters
        ----------
        action
            info STORE ...: what one store, or several shards read as one, hold.
            verify STORE ...: recompute every checksum; tasks whose bytes have changed are named.
            merge STORE ... OUT: copy the finished tasks of shards into one new file.
            export STORE ... OUT: write rows as float32 to OUT.npz or OUT.safetensors.
            import IN.npz OUT: make a store of arrays called like L15/task_mean, beside task_id.
        paths
            Files.
        layers
            export: only these layers, by number or name, such as embed 7 L15.
        positions
            export: only these positions.
        """
        return action, paths, layers, positions

    action, paths, layers, positions = tyro.cli(command, args=list(arguments), prog="penchant store")
    fewest, more = _PATHS[action]
    if len(paths) < fewest or (len(paths) > fewest and not more):
        needed = f"{'at least ' if more else ''}{fewest} path{'s' if fewest > 1 else ''}"
        raise ValueError(f"penchant store {action} takes {needed}; got {len(paths)}.")
    if (layers or positions) and action != "export":
        raise ValueError(f"--layers and --positions are for export; penchant store {action} takes neither.")
    match action:
        case "info":
            print(describe(ActivationStore(paths)))
        case "verify":
            return _verify(ActivationStore(paths))
        case "merge":
            print(merge(paths[:-1], paths[-1]))
        case "export":
            numbers = None if layers is None else [layer_number(layer) for layer in layers]
            out = export(ActivationStore(paths[:-1]), paths[-1], layers=numbers, positions=positions)
            print(f"{out.stat().st_size / 1e6:,.1f} MB written to {out}")
        case "import":
            print(import_npz(paths[0], paths[1]))
    return 0


def describe(store: ActivationStore) -> str:
    """What a store holds, as a screen of text."""
    header, frame = store.header, store.frame()
    tokens = frame.loc[frame["done"], "n_tokens"]
    bytes_on_disk = sum(file.path.stat().st_size for file in store.files)
    skipped = f", {len(store.skipped)} skipped as longer than the context or empty" if store.skipped else ""
    missing = len(store) - int(store.done.sum()) - len(store.skipped)
    facts = {
        "files": ", ".join(str(file.path) for file in store.files),
        "size": f"{bytes_on_disk / 1e6:,.1f} MB",
        "model": f"{header.model.name} ({header.model.family}), fingerprint {header.model.fingerprint[:12]}",
        "computed by": header.attention,
        "tasks": f"{int(store.done.sum()):,} committed{skipped}{f', {missing:,} still to come' if missing else ''}",
        "prompts": f"{tokens.min():,} to {tokens.max():,} tokens, median {tokens.median():,.0f}" if len(tokens) else "none",
        "layers": ", ".join(map(layer_name, header.layers)),
        "positions": ", ".join(f"{p} (by token)" if p in store.by_token else p for p in header.positions),
        "rows": f"{header.dtype}, {header.d_model:,} wide",
    }
    if "answer_key" in frame:
        facts["completions"] = f"{frame['answer_key'].notna().sum():,} from a measurement log"
    width = max(map(len, facts)) + 2
    norms = store.norms().drop(columns="layer").rename(columns={"layer_name": "layer"})
    return "\n".join(f"{name.ljust(width)}{value}" for name, value in facts.items()) + (
        f"\n\n{norms.to_string(index=False, float_format='{:,.1f}'.format)}" if len(tokens) else ""
    )


def _verify(store: ActivationStore) -> int:
    damaged = store.verify()
    print(f"{int(store.done.sum()) - len(damaged):,} of {int(store.done.sum()):,} committed tasks are as they were written.")
    for task_id in damaged:
        print(f"changed: {task_id}")
    return 1 if damaged else 0
