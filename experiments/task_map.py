"""The map of tasks: their rows (activations, embeddings or words), the plane that they are laid in, and their neighbours.

A plane of two dimensions shows little of what the rows hold, so that neighbourhoods are counted among the rows themselves.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from experiments.imports import ForeignFileError
from experiments.imports.activations import read_npz
from store import ActivationStore, layer_name
from store.layout import layer_number

LEAST_TASKS = 5
_WORD_COMPONENTS = 50
_MOST_WORDS = 50_000
_ID_ARRAYS = ("task_id", "task_ids", "ids", "id")


class MapError(ValueError):
    """A map cannot be drawn; the message says of what, and the way out."""


@dataclass(frozen=True, eq=False)
class TaskRows:
    """What the tasks are near or far by.

    Attributes
    ----------
    ids
        Tasks that have a row, in the order of `rows`.
    rows
        Of unit length, so that Euclidean neighbours are those by cosine.
    said
        What they are of.
    """

    ids: list[str]
    rows: Float[np.ndarray, "tasks width"]
    said: str


def of_activations(
    store: ActivationStore, known: Sequence[str], layer: int | str | None = None, position: str | None = None
) -> TaskRows:
    """Rows of an activation store, its mean over the tasks taken away.

    Parameters
    ----------
    layer, position
        Default: the middle one of the layers in the store, and `task_mean` or else the first position with a row a task. They
        are fixed in advance: a layer picked by a label would show that label off.

    Raises
    ------
    KeyError, ValueError, MapError
        The store has no such layer or position, or rows of too few tasks.
    """
    whole = [each for each in store.header.positions if each not in store.by_token]
    if not whole:
        raise MapError(
            f"{store.name} has a row for every token; a map needs a position with one row a task, such as task_mean."
        )
    position = position or ("task_mean" if "task_mean" in whole else whole[0])
    if position in store.by_token:
        raise MapError(f"{position} of {store.name} has a row for every token; expected one of {', '.join(whole)}.")
    layers = sorted(store.header.layers)
    number = layers[len(layers) // 2] if layer is None else layer_number(layer)
    committed = {task for task, done in zip(store.task_ids, store.done, strict=True) if done}
    ids = [task for task in known if task in committed]
    check_enough(len(ids), f"{store.name} has activations of")
    rows = store.load(number, position, ids)
    said = f"{layer_name(number)} / {position} of {store.header.model.name}, less their mean over tasks"
    return TaskRows(ids, unit(rows - rows.mean(axis=0)), said)


def of_embeddings(source: str, known: Sequence[str], texts: Mapping[str, str]) -> TaskRows:
    """Rows of an `.npz` file with ids and one array, or those that a sentence-transformers model makes of the texts.

    Raises
    ------
    MapError, ForeignFileError
        The file has no ids, several arrays, or rows of too few tasks.
    ImportError
        The package sentence-transformers is not installed.
    """
    if source.endswith(".npz"):
        ids, rows = _read_embeddings(Path(source))
        place = {task: row for row, task in enumerate(ids)}
        kept = [task for task in known if task in place]
        check_enough(len(kept), f"{source} has rows of")
        found = rows[[place[task] for task in kept]]
        return TaskRows(kept, unit(found - found.mean(axis=0)), f"embeddings in {Path(source).name}, less their mean")
    kept = [task for task in known if task in texts]
    check_enough(len(kept), "There are texts of")
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{source!r} is no .npz file, and a model that embeds texts needs an extra: pip install 'penchant[embeddings]'."
        ) from error
    found = np.asarray(SentenceTransformer(source).encode([texts[task] for task in kept]), dtype=np.float32)
    return TaskRows(kept, unit(found - found.mean(axis=0)), f"embeddings of the texts by {source}, less their mean")


def _read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    if not path.is_file():
        raise ForeignFileError(f"There is no file {path}.")
    arrays = read_npz(path)
    name = next((each for each in _ID_ARRAYS if each in arrays), None)
    tables = [each for each, array in arrays.items() if array.ndim == 2]
    if name is None or len(tables) != 1:
        shapes = ", ".join(f"{each} {array.shape}" for each, array in arrays.items())
        raise ForeignFileError(f"{path} has the arrays {shapes}; expected task_id and one array of a row a task.")
    ids, rows = [str(each) for each in arrays[name]], arrays[tables[0]]
    if len(ids) != len(rows) or len(set(ids)) < len(ids):
        raise ForeignFileError(
            f"{path} has {len(ids)} ids ({len(set(ids))} different ones) and {len(rows)} rows; expected one id for each row."
        )
    if not np.issubdtype(rows.dtype, np.number) or not np.isfinite(rows).all():
        raise ForeignFileError(f"{tables[0]} of {path} holds {rows.dtype} that are not all finite numbers.")
    return ids, rows.astype(np.float32)


def of_words(known: Sequence[str], texts: Mapping[str, str], seed: int = 0) -> TaskRows:
    """Rows of the words in the texts: TF-IDF, and of that the strongest components (latent semantic analysis).

    Raises
    ------
    MapError
        Too few tasks have a text with a word in it.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    kept = [task for task in known if any(map(str.isalnum, texts.get(task, "")))]
    check_enough(len(kept), "There are texts of")
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", max_features=_MOST_WORDS)
    weights = vectorizer.fit_transform([texts[task] for task in kept])
    components = min(_WORD_COMPONENTS, len(kept) - 1, weights.shape[1] - 1)
    if components < 2:
        raise MapError(f"The texts of {len(kept)} tasks have {weights.shape[1]} different words; expected more for a map.")
    rows = TruncatedSVD(components, random_state=seed).fit_transform(weights)
    said = f"the words of the texts (TF-IDF of {weights.shape[1]:,} words, {components} components)"
    return TaskRows(kept, unit(rows.astype(np.float32)), said)


def check_enough(n: int, said: str) -> None:
    """Raise a MapError where a map would be of too few tasks."""
    if n < LEAST_TASKS:
        raise MapError(f"{said} {n} of the tasks; a map needs at least {LEAST_TASKS}.")


def unit(rows: Float[np.ndarray, "tasks width"]) -> Float[np.ndarray, "tasks width"]:
    """Rows of length one; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


# ---- the plane


def lay_out(
    rows: Float[np.ndarray, "tasks width"], reduce: Literal["umap", "pca"], *, neighbours: int, seed: int = 0
) -> tuple[Float[np.ndarray, "tasks 2"], str]:
    """Places in the plane, the same for the same seed, and how they came about.

    Raises
    ------
    ImportError
        The package umap-learn is not installed.
    """
    if reduce == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(2, random_state=seed)
        places = pca.fit_transform(rows)
        first, second = pca.explained_variance_ratio_
        return places, f"two principal components, with {100 * first:.0f} % and {100 * second:.0f} % of the variance"
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("A UMAP needs an extra: pip install 'penchant[explore]'. --reduce pca does without.") from error
    n_neighbors = min(neighbours, len(rows) - 1)
    start = "spectral" if len(rows) > 15 else "random"  # there is no spectrum to start from among so few
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")
        places = UMAP(n_neighbors=n_neighbors, metric="cosine", random_state=seed, n_jobs=1, init=start).fit_transform(rows)
    return np.asarray(places, dtype=float), f"UMAP (cosine, n_neighbors {n_neighbors}, min_dist 0.1, seed {seed})"


def nearest(rows: Float[np.ndarray, "tasks width"], k: int) -> Int[np.ndarray, "tasks k"]:
    """The `k` nearest other rows of every row, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=min(k, len(rows) - 1)).fit(rows).kneighbors(return_distance=False)


def kept_neighbours(rows: Float[np.ndarray, "tasks width"], places: Float[np.ndarray, "tasks 2"], k: int) -> float:
    """Share of the `k` nearest rows of a task that are among its `k` nearest in the plane."""
    both = zip(nearest(rows, k), nearest(places, k), strict=True)
    return float(np.mean([len(np.intersect1d(here, there)) / len(here) for here, there in both]))
