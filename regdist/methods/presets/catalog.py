"""The catalog of presets: what each follows and takes, and the names of its variants."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import numpy as np

from regdist.methods.composition import Options, compose
from regdist.methods.method import Method
from regdist.numerics.records import Number, as_array, described

Maker = TypeVar("Maker", bound=Callable[..., Method])

PENALTIES: Mapping[str, Mapping[str, Any]] = {
    "k1": {"estimator": "k1"},
    "k2": {"estimator": "k2"},
    "k3": {"estimator": "k3"},
    "abs": {"estimator": "abs"},
    "full": {"estimator": "full"},
    "k3-ratio-corrected": {"estimator": "k3", "ratio_corrected": True},
    "k1-in-reward": {"estimator": "k1", "placement": "reward"},
    "k2-in-reward": {"estimator": "k2", "placement": "reward"},
    "k3-in-reward": {"estimator": "k3", "placement": "reward"},
}
"""Variants of every preset that takes a penalty: in the loss unless they say otherwise."""


@dataclass(frozen=True, eq=False)
class Preset:
    """One entry of the catalog.

    Attributes:
        name: of the function, as in `rd.methods`.
        function: the preset.
        summary: the first line of its docstring.
        papers: arXiv ids of what it follows, such as "2402.03300".
        code: the code that it follows, such as "TRL grpo_trainer"; empty where it follows a paper.
        unsourced: why there is neither; else empty.
        required: the parameters without a default.
        defaults: of all other parameters, those of `compose` that it takes included.
        variants: suffix -> options, so that "grpo/k2" is `grpo` with those of "k2".
        coefficient: the parameter that is the method's one coefficient; None where it has none
            until an estimator is given.
    """

    name: str
    function: Callable[..., Method]
    summary: str
    papers: tuple[str, ...]
    code: tuple[str, ...]
    unsourced: str
    required: tuple[str, ...]
    defaults: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    coefficient: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """What `named` knows it by: its own name, then its variants."""
        return (self.name, *(f"{self.name}/{suffix}" for suffix in self.variants))

    @property
    def own_defaults(self) -> Mapping[str, Any]:
        """The defaults that `compose` does not have, or has otherwise."""
        common = inspect.signature(compose).parameters
        return {k: v for k, v in self.defaults.items() if k not in common or v != common[k].default}

    def options(self, name: str) -> Mapping[str, Any]:
        """What one of `names` chooses: the options of its variant."""
        return self.variants.get(name.partition("/")[2], {})

    def coefficient_beside(self, options: Mapping[str, Any]) -> str | None:
        """The parameter that is the coefficient: beta too, once an estimator is given."""
        return self.coefficient or ("beta" if "estimator" in options else None)

    def missing(self, name: str) -> tuple[str, ...]:
        """What one of `names` needs beside a coefficient."""
        given = (self.coefficient, *self.options(name))
        return tuple(p for p in self.required if p not in given)


_PRESETS: dict[str, Preset] = {}


def preset(
    *,
    papers: tuple[str, ...] = (),
    code: tuple[str, ...] = (),
    unsourced: str = "",
    options: Options | None = None,
    averaging: str = "sum",
    ratio: str = "token",
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    coefficient: str | None = None,
) -> Callable[[Maker], Maker]:
    """Enters a preset into the catalog, and gives it its own defaults of the options.

    The function keeps its type; `help` shows every option that it takes, with its default here.

    Args:
        papers: arXiv ids.
        code: what it follows, as "project module.function".
        unsourced: why there is neither.
        options: defaults that differ from those of `compose`.
        averaging: of the steps of a sequence, as its source does by default.
        ratio: whether to the old policy of a step or of a sequence, likewise.
        variants: suffix -> arguments; those of a penalty are there by themselves.
        coefficient: if it is not called beta.
    """
    levels: Options = {"averaging": averaging, "ratio": ratio}
    own_defaults: Mapping[str, Any] = cast(Mapping[str, Any], {**levels, **(options or {})})

    def enter(function: Maker) -> Maker:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Method:
            _check_options(function.__name__, args, kwargs, shown)
            return function(*args, **{**taken, **kwargs})

        shown = _signature(function, own_defaults)
        checked.__signature__ = shown  # pyright: ignore[reportAttributeAccessIssue]
        taken = {k: v for k, v in own_defaults.items() if k in shown.parameters}
        parameters = shown.parameters.values()
        required = tuple(p.name for p in parameters if p.default is p.empty)
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        has_beta = "beta" in required or defaults.get("beta") is not None
        penalties = PENALTIES if "estimator" in defaults and not coefficient else {}
        _PRESETS[function.__name__] = Preset(
            name=function.__name__,
            function=checked,
            summary=(inspect.getdoc(function) or "").partition("\n")[0],
            papers=papers,
            code=code,
            unsourced=unsourced,
            required=required,
            defaults=MappingProxyType(defaults),
            variants=MappingProxyType({**(variants or {}), **penalties}),
            coefficient=coefficient or ("beta" if has_beta else None),
        )
        return cast(Maker, checked)

    return enter


def _check_options(
    name: str, args: tuple[Any, ...], given: Mapping[str, Any], known: inspect.Signature
) -> None:
    """Names the preset that was called, where Python would name what it calls."""
    for option in given:
        if option not in known.parameters:
            near = difflib.get_close_matches(option, known.parameters, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known.parameters)}"
            raise TypeError(f"rd.methods.{name} has no option {option!r}: {hint}")
    for option, value in (*zip(known.parameters, args, strict=False), *given.items()):
        default, where = known.parameters[option].default, f"{option} of rd.methods.{name}"
        if isinstance(default, bool):
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"{where} must be True or False; got {described(value)}")
        elif default is inspect.Parameter.empty or isinstance(default, int | float):
            as_array(where, value)


def _signature(
    function: Callable[..., Method], own_defaults: Mapping[str, Any]
) -> inspect.Signature:
    """The signature with every option spelled out, and its default: what `help` shows."""
    everything = inspect.signature(compose).parameters
    shown: dict[str, inspect.Parameter] = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is not p.VAR_KEYWORD:
            shown[p.name] = p.replace(annotation=p.empty)
            continue
        (options,) = get_args(p.annotation)
        taken = get_type_hints(options)
        for name, option in everything.items():
            if name in taken and name not in shown:
                default = own_defaults.get(name, option.default)
                shown[name] = inspect.Parameter(name, p.KEYWORD_ONLY, default=default)
    return inspect.Signature(list(shown.values()), return_annotation=Method)


def catalog() -> tuple[Preset, ...]:
    """Every preset, in the order of the files.

    Examples:
        >>> grpo = next(p for p in rd.methods.catalog() if p.name == "grpo")
        >>> grpo.papers, grpo.defaults["estimator"], grpo.names[:3]
        (('2402.03300',), 'k3', ('grpo', 'grpo/no-penalty', 'grpo/trl'))
    """
    return tuple(_PRESETS.values())


def entry_of(name: str) -> Preset:
    """The entry that a name belongs to, its own or a variant's.

    Raises:
        ValueError: an unknown name; the nearest ones are given.

    Examples:
        >>> entry_of("grpo/k2").name
        'grpo'
    """
    known = {n: p for p in catalog() for n in p.names}
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        listed = "rd.methods.catalog() and `regdist methods` list them"
        hint = f"did you mean {' or '.join(near)}?" if near else listed
        raise ValueError(f"no preset is called {name!r}: {hint}")
    return known[name]


def named(name: str, beta: Number | None = None, **arguments: Any) -> Method:
    """The method of a name of the catalog, at a coefficient.

    A name is a family of methods, one for each beta; one that has no coefficient (`reinforce`,
    `rloo`, `grpo/no-penalty`) is the same at every beta. With an estimator it has one (`rloo/k2`).

    Args:
        name: of a preset, or preset/variant.
        beta: the coefficient of its penalty, bonus or target; None for the preset's default.
        arguments: further ones of the preset, such as those that have no default.

    Raises:
        ValueError: an unknown name, or an argument that is missing.

    Examples:
        >>> rd.methods.named("grpo/k2", beta=0.2).penalties[0].estimator
        'k2'
    """
    entry = entry_of(name)
    options = {**entry.options(name), **arguments}
    coefficient = entry.coefficient_beside(options)
    if beta is not None and coefficient is not None:
        options.setdefault(coefficient, beta)
    missing = [p for p in entry.required if p not in options]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: give {missing[0]}=...")
    return entry.function(**options)
