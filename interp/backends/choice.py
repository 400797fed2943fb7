"""Choosing a backend by name; its library, and transformers, are imported only when it is asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from interp.backends.protocol import Backend

if TYPE_CHECKING:
    from interp.backends.nnsight import RemoteNNsightBackend

BackendName = Literal["hf", "nnsight", "transformer_lens"]
MakeBackend = Callable[[Any, Any], Backend]
"""From a model and its tokenizer."""


def backend_maker(name: str) -> MakeBackend:
    """What makes the backend of that name; its library is imported now, before a model is loaded in vain.

    Raises
    ------
    ValueError
        There is no backend of that name.
    ImportError
        The library it needs is not installed.
    """
    match name:
        case "hf":
            from interp.backends.hf import HFBackend

            return lambda model, _: HFBackend(model)
        case "nnsight":
            with _needs("nnsight", "nnsight>=0.8,<0.9"):
                from interp.backends.nnsight import NNsightBackend
            return lambda model, _: NNsightBackend(model)
        case "transformer_lens":
            with _needs("transformer_lens", "transformer-lens>=4.3,<5"):
                from interp.backends.transformer_lens import TransformerLensBackend
            return TransformerLensBackend
    raise ValueError(f"The backend is {name!r}; expected {', '.join(map(repr, get_args(BackendName)))}.")


def remote_backend_maker(name: str) -> "type[RemoteNNsightBackend]":
    """What makes the backend of that name for a model on NDIF, from its hub id and its tokenizer.

    Raises
    ------
    ValueError
        Only nnsight runs models on NDIF, or there is no key for it.
    ImportError
        nnsight is not installed.
    """
    backend_maker(name)
    if name != "nnsight":
        raise ValueError(f"remote=True runs a model on NDIF, which nnsight does: use backend='nnsight', not {name!r}.")
    from interp.backends.nnsight import RemoteNNsightBackend, check_key

    check_key()
    return RemoteNNsightBackend


@contextmanager
def _needs(library: str, requirement: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] != library:
            raise
        message = f"backend={library!r} needs {library}, which is not installed: pip install '{requirement}'"
        raise ImportError(message, name=library) from error
