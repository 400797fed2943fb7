"""One decomposition of a symmetric matrix K that solves (K + alpha I) x = b for every alpha: what all ridge fits share.

In numpy, K = Q T Q' with T tridiagonal, a third of the way to eigenvalues and enough: T + alpha I is solved in linear time.
On a GPU, K = V diag(v) V'. Arrays are numpy's or torch's, as `Place` says.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController

Array = Any
"""A numpy array, or a torch tensor on a device."""
Precision = Literal["float32", "float64"]


_ALONE = 1024
"""Matrices up to this size are decomposed by one thread. Several are little faster (3 and 5 ms at 576 x 576, on two cores), and
where another process has one of the cores they wait for each other at every column (2 s)."""


@dataclass(frozen=True)
class Place:
    """Where a fit is computed, and how precisely.

    Attributes
    ----------
    dtype
        `float64`, or `float32`: half the time, and no penalty below `Shifted.floor` can be told from rounding.
    device
        `numpy`, or the name of a torch device.
    """

    dtype: Precision
    device: str

    @classmethod
    def of(cls, dtype: Precision = "float64", device: str = "auto") -> Self:
        """Check the two; `auto` is a GPU where there is one, and numpy otherwise.

        Raises
        ------
        ValueError
            The dtype is neither of the two.
        """
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'float64'.")
        if device == "auto":
            import torch

            device = "cuda" if torch.cuda.is_available() else "numpy"
        return cls(dtype, device)

    def put(self, array: np.ndarray) -> Array:
        """Bring an array here."""
        here = np.ascontiguousarray(array, dtype=self.dtype)
        if self.device == "numpy":
            return here
        import torch

        return torch.from_numpy(here).to(self.device)

    def get(self, array: Array) -> Float[np.ndarray, "..."]:
        """Bring an array back, as float64."""
        return np.asarray(array if self.device == "numpy" else array.cpu().numpy(), dtype=np.float64)

    def mean(self, array: Array) -> Float[np.ndarray, "..."]:
        """Mean over rows, accumulated in float64."""
        if self.device == "numpy":
            return array.mean(axis=0, dtype=np.float64)
        import torch

        return self.get(array.mean(0, dtype=torch.float64))

    def decompose(self, matrix: Array) -> "Shifted":
        """Decompose a symmetric positive semi-definite matrix, which is overwritten.

        Measured on two cores of an AMD EPYC (Zen 5), seconds of one thread in float64 (float32) at 1600 x 1600: dsytrd 0.14
        (0.08), with Q formed 0.28 (0.15); eigh by divide and conquer 0.47 (0.25), numpy's 0.57 (0.53), torch's 0.65 (0.32),
        relatively robust representations twice that; Cholesky and inverse of one alpha alone 0.09 (0.05).
        """
        return Tridiagonal.of(matrix) if self.device == "numpy" and len(matrix) > 1 else Eigen.of(matrix)


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """K = Q T Q' by Householder reflections (LAPACK's sytrd).

    Attributes
    ----------
    reflectors, factors
        Of Q, which is formed only where it is asked for.
    diagonal, off_diagonal
        Of T.
    """

    reflectors: Float[np.ndarray, "n_less_1 n_less_1"]
    factors: Float[np.ndarray, " n_less_1"]
    diagonal: Float[np.ndarray, " n"]
    off_diagonal: Float[np.ndarray, " n_less_1"]

    @classmethod
    def of(cls, matrix: Float[np.ndarray, "n n"]) -> Self:
        """Decompose; `matrix` is overwritten."""
        (reduce,) = lapack.get_lapack_funcs(("sytrd",), (matrix,))
        with _threads(len(matrix)):
            packed, diagonal, off_diagonal, factors, _ = reduce(matrix.T, lower=1, lwork=64 * len(matrix), overwrite_a=1)
        return cls(np.asfortranarray(packed[1:, :-1]), factors, diagonal, off_diagonal)

    @cached_property
    def floor(self) -> float:
        """Least alpha that can be told from the rounding of K; a smaller one is raised to it."""
        beside = np.abs(self.off_diagonal)
        norm = np.max(np.abs(self.diagonal) + np.append(beside, 0) + np.append(0, beside))
        return float(4 * np.finfo(self.diagonal.dtype).eps * norm)

    @cached_property
    def vectors(self) -> Float[np.ndarray, "n n"]:
        """Q."""
        (form,) = lapack.get_lapack_funcs(("orgqr",), (self.reflectors,))
        whole = np.zeros((len(self.diagonal),) * 2, dtype=self.diagonal.dtype, order="F")
        whole[0, 0] = 1
        with _threads(len(whole)):
            whole[1:, 1:] = form(self.reflectors, self.factors, lwork=64 * len(self.diagonal))[0]
        return whole

    def rotate(self, columns: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
        """Q' times columns."""
        return self._times(columns, "T")

    def back(self, columns: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
        """Q times columns."""
        return self._times(columns, "N")

    def solve(self, rotated: Float[np.ndarray, "n t"], alphas: Float[np.ndarray, " a"]) -> Float[np.ndarray, "n a*t"]:
        """(T + alpha I)^-1 times columns, for one alpha after the other."""
        factor, substitute = lapack.get_lapack_funcs(("pttrf", "pttrs"), (self.diagonal,))
        width = rotated.shape[1]
        solved = np.empty((len(self.diagonal), len(alphas) * width), dtype=self.diagonal.dtype, order="F")
        for number, alpha in enumerate(alphas):
            pivots, steps, _ = factor(self.diagonal + alpha, self.off_diagonal)
            solved[:, number * width : (number + 1) * width] = substitute(pivots, steps, rotated)[0]
        return solved

    def quadratic(self, rotated: Float[np.ndarray, "n m"], alphas: Float[np.ndarray, " a"]) -> Float[np.ndarray, "a m"]:
        """The form b' (T + alpha I)^-1 b of every column b.

        With T + alpha I = L D L', that is the sum of the squares of L^-1 b over D: a recurrence down the rows, here for all
        alphas and columns at once.
        """
        (factor,) = lapack.get_lapack_funcs(("pttrf",), (self.diagonal,))
        factors = [factor(self.diagonal + alpha, self.off_diagonal) for alpha in alphas]
        weights = 1 / np.stack([pivots for pivots, _, _ in factors], axis=1)[:, :, None]
        steps = np.stack([each for _, each, _ in factors], axis=1)[:, :, None]
        solved = np.zeros((len(alphas), rotated.shape[1]), dtype=self.diagonal.dtype)
        square, total = np.empty_like(solved), np.zeros_like(solved)
        for number, row in enumerate(rotated):
            if number:
                solved *= -steps[number - 1]
            solved += row
            np.multiply(solved, solved, out=square)
            square *= weights[number]
            total += square
        return total

    def _times(self, columns: Float[np.ndarray, "n t"], transposed: Literal["N", "T"]) -> Float[np.ndarray, "n t"]:
        if "vectors" in self.__dict__:  # formed already, and a product is faster than reflections
            return (self.vectors.T if transposed == "T" else self.vectors) @ columns
        (reflect,) = lapack.get_lapack_funcs(("ormqr",), (self.reflectors,))
        result = np.array(columns, order="F")
        work = 64 * max(result.shape)
        result[1:] = reflect("L", transposed, self.reflectors, self.factors, np.asfortranarray(columns[1:]), work)[0]
        return result


@dataclass(frozen=True, eq=False)
class Eigen:
    """K = V diag(v) V', in torch or numpy; the interface of `Tridiagonal`."""

    values: Array
    vectors: Array

    @classmethod
    def of(cls, matrix: Array) -> Self:
        """Decompose."""
        if isinstance(matrix, np.ndarray):
            values, vectors = np.linalg.eigh(matrix)
        else:
            import torch

            values, vectors = torch.linalg.eigh(matrix)
        return cls(values.clip(min=0), vectors)

    @property
    def floor(self) -> float:
        """Least alpha that can be told from the rounding of K; a smaller one is raised to it."""
        return float(4 * np.finfo(str(self.values.dtype).removeprefix("torch.")).eps * self.values.max())

    def rotate(self, columns: Array) -> Array:
        """V' times columns."""
        return self.vectors.T @ columns

    def back(self, columns: Array) -> Array:
        """V times columns."""
        return self.vectors @ columns

    def solve(self, rotated: Array, alphas: Array) -> Array:
        """(diag(v) + alpha I)^-1 times columns, for one alpha after the other."""
        return (rotated[:, None, :] / (self.values[:, None] + alphas)[:, :, None]).reshape(len(rotated), -1)

    def quadratic(self, rotated: Array, alphas: Array) -> Array:
        """The form b' (diag(v) + alpha I)^-1 b of every column b."""
        return (1 / (self.values + alphas[:, None])) @ rotated**2


Shifted = Tridiagonal | Eigen


def _threads(size: int) -> AbstractContextManager[Any]:
    return _controller().limit(limits=1, user_api="blas") if size <= _ALONE else nullcontext()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
