"""Does a linear flow contract, whatever its errors are? n is of coordinates."""

from typing import Any

import numpy as np
import scipy.linalg

from regdist.runs.dynamics import Dynamics

_SAFETY = 8.0  # times the first-order error of an eigenvalue


def slope_errors(flow: Dynamics, m: np.ndarray) -> np.ndarray:
    """How far the entries of `slopes` may be off, shape [n, n].

    Each is a derivative less that of the mean, which all entries of a column share: where it
    cancels it is seen in the others of the column.
    """
    others = np.abs(m - np.diag(np.diag(m))).max(axis=0)
    return flow.slope_error * (np.abs(m) + others)


def contracting_form(weighed: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """-diag(p) m of the coordinates that are not held, its symmetric part of diagonal 1."""
    form = -weighed[np.ix_(keep, keep)]
    diagonal = np.diag(form)
    if np.any(diagonal <= 0) or not np.all(np.isfinite(form)):
        return np.full_like(form, np.nan)
    size = np.sqrt(diagonal)
    return form / size[:, None] / size  # the product of two sizes may underflow


def contracts(weighed: np.ndarray, keep: np.ndarray, error: np.ndarray) -> bool:
    """Whether sum p x^2 (natural) or sum x^2 (softmax) falls along the linear flow.

    Both do if the symmetric part of diag(p) m is negative definite but for the shift of all
    logits, of a tree of those of each state. Once its diagonal is 1 its eigenvalues do not hang on
    the scales of p. Of parameters it is x F x, and F m, with the Fisher matrix F.

    Args:
        weighed: diag(p) m, where m are the slopes of the gains.
        keep: the coordinates that are not held.
        error: of its entries.
    """
    form = contracting_form(weighed, keep)
    if np.any(np.isnan(form)):
        return False
    size = np.sqrt(-np.diag(weighed)[keep])
    off = error[np.ix_(keep, keep)] / size[:, None] / size
    least = np.linalg.eigvalsh((form + form.T) / 2)[0]
    return bool(least > np.linalg.norm(off + off.T) / 2 + 64 * len(weighed) * np.finfo(float).eps)


def eigenvalues(matrix: np.ndarray, error: np.ndarray) -> tuple[Any, np.ndarray]:
    """Eigenvalues, and to first order how far errors of the entries and of the solver move them."""
    balanced, (scale, _) = scipy.linalg.matrix_balance(matrix, permute=False, separate=True)
    error = error * scale[None] / scale[:, None]
    solved: Any = scipy.linalg.eig(balanced, left=True)
    values, left, right = solved
    overlap = np.abs(np.sum(left.conj() * right, axis=0))
    overlap = np.maximum(overlap, np.finfo(float).tiny)
    entries = np.sum(np.abs(left) * (error @ np.abs(right)), axis=0) / overlap
    rest = balanced @ right - values * right
    solver = np.abs(np.sum(left.conj() * rest, axis=0)) / overlap
    return values, _SAFETY * (entries + solver)
