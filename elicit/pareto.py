"""Pareto fronts of two scores: who is beaten by nobody, how crowded a front is, and how much ground it covers.

Both scores are better the larger they are. A point that is not finite is on no front and covers nothing.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

Points = Float[np.ndarray, "points 2"]


def finite(points: Points) -> Bool[np.ndarray, " points"]:
    """Which points have both scores."""
    return np.isfinite(points[:, 0]) & np.isfinite(points[:, 1])


def front(points: Points) -> Bool[np.ndarray, " points"]:
    """Which points no other one dominates: is at least as good in both scores and better in one. Equal points stay together."""
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    known = finite(points)
    one, other = points[:, None], points[None]
    at_least = (one[..., 0] >= other[..., 0]) & (one[..., 1] >= other[..., 1])
    better = (one[..., 0] > other[..., 0]) | (one[..., 1] > other[..., 1])
    return known & ~np.any(at_least & better & known[:, None], axis=0)


def layers(points: Points) -> Int[np.ndarray, " points"]:
    """Number of the front that each point is on, 0 for the front of all, 1 for that of the rest, and so on; -1 for none."""
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    found = np.full(len(points), -1)
    left = np.flatnonzero(finite(points))
    number = 0
    while len(left):
        first = front(points[left])
        found[left[first]] = number
        left, number = left[~first], number + 1
    return found


def crowding(points: Points) -> Float[np.ndarray, " points"]:
    """Crowding distance of the points of one front: the gap between the neighbours on either side, as shares of the range.

    The ends of the front are infinitely far from the next.

    References
    ----------
    Deb, Pratap, Agarwal, Meyarivan (2002), A fast and elitist multiobjective genetic algorithm: NSGA-II, section III-B.
    """
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    distance = np.zeros(len(points))
    for values in points.T if len(points) else ():
        order = np.argsort(values, kind="stable")
        distance[order[[0, -1]]] = np.inf
        reach = values[order[-1]] - values[order[0]]
        if reach > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / reach
    return distance


def hypervolume(points: Points, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Area of what the points dominate and what dominates the reference, in the product of the scores' units."""
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    points = points[finite(points)] - reference
    points = points[(points > 0).all(axis=1)]
    area = height = 0.0
    for x, y in points[np.lexsort((-points[:, 1], -points[:, 0]))]:
        if y > height:
            area += x * (y - height)
            height = y
    return float(area)


def best_first(points: Points) -> Int[np.ndarray, " known"]:
    """Places of the points from the best to the worst, with the origin as the least that is wanted of both scores.

    Points above the origin in both scores come first, by the number of their front and then by crowding distance, the
    loneliest first. The others follow by how far they fall short in sum. Points that are not finite are left out.

    References
    ----------
    Deb et al. (2002), section VI (constrained domination).
    """
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    known = np.flatnonzero(finite(points))
    short = np.maximum(0.0, -points[known]).sum(axis=1)
    layer, lonely = np.zeros(len(known), dtype=int), np.zeros(len(known))
    above = np.flatnonzero(short == 0)
    layer[above] = layers(points[known[above]])
    for number in set(layer[above].tolist()):
        members = above[layer[above] == number]
        lonely[members] = crowding(points[known[members]])
    return known[np.lexsort((-lonely, layer, short))]
