"""What a package shows when somebody looks into it."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any


def shown(names: Mapping[str, Any], modules: tuple[str, ...] = ()) -> list[str]:
    """The public names of a package: of its modules only those that are meant to be looked into.

    Examples:
        >>> shown({"kl": 1, "_draw": 2, "math": __import__("math")})
        ['kl']
    """
    return sorted(
        name
        for name, value in names.items()
        if not name.startswith("_") and (name in modules or not isinstance(value, ModuleType))
        if name != "shown"
    )
