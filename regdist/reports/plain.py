"""Values as JSON has them."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(x: Any) -> Any:
    """Dictionaries, lists and numbers without NaN, which is None, or infinities, which are text.

    Complex numbers are pairs where they are not real.

    Examples:
        >>> plain({"k": (1.0, float("inf"), float("nan"))})
        {'k': [1.0, 'inf', None]}
    """
    if isinstance(x, Mapping):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [plain(v) for v in x]
    if isinstance(x, complex | np.complexfloating):
        return plain(x.real) if x.imag == 0 else [plain(x.real), plain(x.imag)]
    if isinstance(x, float | np.floating):
        return None if np.isnan(x) else float(x) if np.isfinite(x) else str(float(x))
    return x.item() if isinstance(x, np.generic) else x
