"""The ends of the spectrum of a Jacobian that is known only through its products."""

from collections.abc import Callable
from typing import Any

import numpy as np

# A dense solve finds every eigenvalue, repeated ones too. It takes some 0.4 s at 256 actions, 4 s
# at 512 and 40 s at 1,024; the matrix-free one takes 0.1 to 0.2 s.
_DENSE = 256


def spectrum(
    product: Callable[[np.ndarray], np.ndarray],
    size: int,
    anchor: int | np.ndarray,
    count: int = 6,
) -> tuple[np.ndarray, complex | float]:
    """The slowest eigenvalues, nearest 0 first, and the one of largest modulus.

    Logits are taken relative to the action `anchor`, which removes the shift of all logits: an
    eigenvector of eigenvalue 0 that moves no policy; of several laws it has one for each entry. The
    columns of what is left scale like the probabilities, over hundreds of orders of magnitude, so
    they are divided by their size before anything is inverted, and the slow modes are the
    inverse's largest. Small tables are solved densely. Large ones are matrix-free: Arnoldi on the
    inverse, whose products GMRES solves; there a repeated eigenvalue may be listed once. Modes that
    double precision cannot resolve are left out.
    """
    held = np.broadcast_to(anchor, (size,))
    others = np.arange(size) != held
    if not np.any(others):
        return np.zeros(0), 0.0

    def reduced(v: np.ndarray) -> np.ndarray:
        full = np.zeros(size)
        full[others] = np.ravel(v)
        out = product(full).astype(float)
        return (out - out[held])[others]

    if size <= _DENSE:
        dense = np.stack([reduced(column) for column in np.eye(int(others.sum()))], axis=1)
        scale = np.abs(dense).max(axis=0)
        scale[scale == 0] = 1
        fast = np.linalg.eigvals(dense)
        try:
            inverse = np.linalg.inv(dense / scale) / scale[:, None]
        except np.linalg.LinAlgError:
            inverse = np.zeros((0, 0))
        slow_inverse = np.linalg.eigvals(inverse)
    else:
        slow_inverse, fast = _krylov(product, reduced, others, count)
    # Each side resolves what is not lost in the rounding of its own largest: below 1e-10 of it an
    # eigenvalue keeps less than six of sixteen digits.
    slow = 1 / slow_inverse[np.abs(slow_inverse) > 1e-10 * np.abs(slow_inverse).max(initial=0)]
    fast = fast[np.abs(fast) >= 1e-10 * np.abs(fast).max()]
    # What the slow side has too is not listed twice; both are good to 1e-6, the tolerance below.
    seen = np.abs(slow).max(initial=0) * (1 + 1e-5)
    both = np.append(slow, fast[np.abs(fast) > seen]) if slow.size else fast
    ordered = _real_if_close(both[np.argsort(np.abs(both))])
    return ordered[:count], ordered[-1].item()


def _krylov(
    product: Callable[[np.ndarray], np.ndarray],
    reduced: Callable[[np.ndarray], np.ndarray],
    others: np.ndarray,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    import scipy.sparse.linalg

    sparse: Any = scipy.sparse.linalg

    n = int(others.sum())
    random = np.random.default_rng(0)
    # Hutchinson's estimate of the diagonal, to a factor: it only scales the columns.
    signs = random.choice([-1.0, 1.0], size=(8, len(others)))
    scale = np.abs(np.mean([s * product(s) for s in signs], axis=0))[others]
    if not np.any(scale):
        return np.zeros(0), np.zeros(1)
    scale = np.maximum(scale, np.min(scale[scale > 0]))
    start = random.normal(size=n)
    scaled = sparse.LinearOperator((n, n), matvec=lambda y: reduced(y / scale), dtype=float)

    def solve(b: np.ndarray) -> np.ndarray:
        y, _ = sparse.gmres(scaled, np.ravel(b), rtol=1e-10, atol=0.0, restart=80, maxiter=5)
        return y / scale

    def largest(matvec: Callable[[np.ndarray], np.ndarray], k: int) -> np.ndarray:
        operator = sparse.LinearOperator((n, n), matvec=matvec, dtype=float)
        try:
            return sparse.eigs(
                operator, k, which="LM", v0=start, tol=1e-6, return_eigenvectors=False
            )
        except sparse.ArpackNoConvergence as partly:
            return partly.eigenvalues

    return largest(solve, count), largest(reduced, 1)


def _real_if_close(values: np.ndarray) -> np.ndarray:
    tiny = np.abs(np.imag(values)) <= 1e-6 * np.abs(values)
    return np.real(values) if np.all(tiny) else values
