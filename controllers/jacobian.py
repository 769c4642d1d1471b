"""What the control law needs of a Jacobian: an exact null-space projector and the wrench behind joint torques.

Both come from one pivoted QR factorisation of the transposed Jacobian, with a rank tolerance: a damped pseudo-inverse
is not a projector (it leaks null-space torque into the task), a truncated one is exact at any rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controllers.jit import kernel

Array = NDArray[np.float64]

RANK_TOLERANCE = 1e-6  # rows shorter than this share of the longest do not count


class RowSpace(NamedTuple):
    """``jac[order] = triangle.T @ basis`` with orthonormal ``basis`` rows, the first ``rank`` of which are used."""

    basis: Array  # (6, dof)
    triangle: Array  # (6, 6) upper triangular
    order: NDArray[np.int64]  # (6,) pivots
    rank: int


@kernel
def row_space(jac: Array) -> RowSpace:
    """Factor a Jacobian (6, dof) by modified Gram-Schmidt with row pivoting, each row orthogonalised twice."""
    rows, dof = jac.shape
    basis = jac.copy()
    triangle = np.zeros((rows, rows))
    order = np.arange(rows)
    rank = 0
    largest = 0.0
    for k in range(rows):
        pivot, longest = k, -1.0
        for i in range(k, rows):
            norm = 0.0
            for j in range(dof):
                norm += basis[i, j] * basis[i, j]
            if norm > longest:
                pivot, longest = i, norm
        longest = math.sqrt(longest)
        if k == 0:
            largest = longest
        if longest <= RANK_TOLERANCE * largest or longest == 0.0:
            break
        if pivot != k:
            order[k], order[pivot] = order[pivot], order[k]
            for j in range(dof):
                basis[k, j], basis[pivot, j] = basis[pivot, j], basis[k, j]
            for j in range(k):
                triangle[j, k], triangle[j, pivot] = triangle[j, pivot], triangle[j, k]
        for j in range(k):  # second pass against the rows already taken
            dot = 0.0
            for c in range(dof):
                dot += basis[j, c] * basis[k, c]
            triangle[j, k] += dot
            for c in range(dof):
                basis[k, c] -= dot * basis[j, c]
        norm = 0.0
        for c in range(dof):
            norm += basis[k, c] * basis[k, c]
        norm = math.sqrt(norm)
        triangle[k, k] = norm
        for c in range(dof):
            basis[k, c] /= norm
        for i in range(k + 1, rows):
            dot = 0.0
            for c in range(dof):
                dot += basis[k, c] * basis[i, c]
            triangle[k, i] = dot
            for c in range(dof):
                basis[i, c] -= dot * basis[k, c]
        rank = k + 1
    return RowSpace(basis, triangle, order, rank)


@kernel
def project_null(space: RowSpace, tau_nm: Array) -> Array:
    """The part of joint torques (dof,) that no tcp wrench could balance: ``(I - J^T (J^T)^+) tau``."""
    out = tau_nm.copy()
    for _ in range(2):
        for k in range(space.rank):
            dot = 0.0
            for j in range(len(out)):
                dot += space.basis[k, j] * out[j]
            for j in range(len(out)):
                out[j] -= dot * space.basis[k, j]
    return out


@kernel
def wrench_of(space: RowSpace, tau_nm: Array) -> Array:
    """The wrench (6,) N, Nm at the tcp that explains joint torques best: least squares of ``J^T F = tau``.

    Directions the arm cannot feel (a lost rank) are zero.
    """
    out = np.zeros(6)
    solved = np.zeros(6)
    for k in range(space.rank - 1, -1, -1):
        value = 0.0
        for j in range(len(tau_nm)):
            value += space.basis[k, j] * tau_nm[j]
        for i in range(k + 1, space.rank):
            value -= space.triangle[k, i] * solved[i]
        solved[k] = value / space.triangle[k, k]
        out[space.order[k]] = solved[k]
    return out
