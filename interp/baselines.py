"""Baselines: what a probe must beat to be about the activations: features that know the task, not what is made of it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from store.activations import ActivationStore
from store.layout import EMBED, layer_name

RANDOM, LENGTH, ORIGIN, BOTH, WORDS = (
    "random activations",
    "prompt length",
    "origin means",
    "length and origins",
    "words (TF-IDF)",
)
_RANDOM_DRAWS = 9
_WORDS = 4096

Features = Float[np.ndarray, "tasks d"]


def baseline_features(
    store: ActivationStore,
    task_ids: Sequence[str],
    *,
    origins: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    embeddings: Mapping[str, Mapping[str, Float[np.ndarray, " width"]]] | None = None,
    positions: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, list[Features]]:
    """Features of every baseline that can be had; of several variants, the one with the median R2 counts.

    Parameters
    ----------
    origins
        Origin of every task: origin means, alone and with the length.
    texts
        Text of every task: its words, weighted by how rare they are (TF-IDF). No label is used.
    embeddings
        By name, vectors of every task from elsewhere, such as `sentence_embeddings`.
    positions
        Where the stream before block 0 (or after it) is read, if the store has it: what the words are, before the model
        has thought about them.

    Raises
    ------
    KeyError
        A task has no origin, text or embedding.
    """
    lengths = store.frame()["n_tokens"].to_numpy(dtype=float)[store.slots(task_ids)]
    random = np.random.default_rng([seed, 2])
    found: dict[str, list[Features]] = {
        RANDOM: [random.standard_normal((len(task_ids), store.header.d_model)) for _ in range(_RANDOM_DRAWS)],
        LENGTH: [np.stack([lengths, np.log(lengths)], axis=1)],
    }
    if origins is not None:
        means = pd.get_dummies(pd.Series(_each(task_ids, origins, "origin"))).to_numpy(dtype=float)
        found[ORIGIN] = [means]
        found[BOTH] = [np.column_stack([found[LENGTH][0], means])]
    if texts is not None:
        found[WORDS] = [_words(_each(task_ids, texts, "text"))]
    for name, vectors in (embeddings or {}).items():
        found[name] = [np.stack(_each(task_ids, vectors, name))]
    first = next((layer for layer in (EMBED, 0) if layer in store.header.layers), None)
    if first is not None:
        for position in positions:
            found[f"{layer_name(first)}/{position}"] = [store.load(first, position, task_ids)]
    return found


def sentence_embeddings(
    texts: Mapping[str, str], model: str = "sentence-transformers/all-MiniLM-L6-v2"
) -> dict[str, Float[np.ndarray, " width"]]:
    """Vector of every text from a sentence-transformers model, as a baseline of what can be read off the words.

    Raises
    ------
    ImportError
        The extra is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("Text embeddings need sentence-transformers: pip install 'penchant[embeddings]'") from error
    vectors = SentenceTransformer(model).encode(list(texts.values()), normalize_embeddings=True)
    return dict(zip(texts, np.asarray(vectors, dtype=np.float32), strict=True))


def _words(texts: Sequence[str]) -> Features:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(max_features=_WORDS, sublinear_tf=True).fit_transform(texts).toarray()


def _each(task_ids: Sequence[str], values: Mapping, what: str) -> list:
    if missing := [task_id for task_id in task_ids if task_id not in values]:
        raise KeyError(f"No {what} is given for {len(missing)} tasks, such as {missing[0]!r}.")
    return [values[task_id] for task_id in task_ids]
