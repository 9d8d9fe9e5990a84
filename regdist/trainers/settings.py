"""What a configuration of a trainer sets: read from files, flags and pairs, over its defaults."""

import dataclasses
import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from regdist.numerics.records import described


def read(source: str | Path | Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """The settings of a configuration, nested names joined by dots.

    Args:
        source: a mapping; a file: YAML, JSON, or a script or text with `--name value` and
            `name=value` among its words; or such words themselves.

    Raises:
        ValueError: a file that is not there, is no mapping or cannot be read; a word that is no
            setting.
        TypeError: something else.

    Examples:
        >>> read(["--algo.kl.init_coef", "0.01", "--algo.kl.use_loss", "beta=0.1"])
        {'algo.kl.init_coef': 0.01, 'algo.kl.use_loss': True, 'beta': 0.1}
        >>> read({"loss_fn": {"ratio_clip_min": 0.2}})
        {'loss_fn.ratio_clip_min': 0.2}
    """
    if isinstance(source, Mapping):
        return _flat(source)
    if isinstance(source, str | Path):
        return _of_file(Path(source))
    if not isinstance(source, Iterable) or not all(isinstance(word, str) for word in source):
        raise TypeError(f"source must be a mapping, a file or words; got {described(source)}")
    return _of_words(list(source))


def _of_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".yaml", ".yml", ".json"):
        return _of_script(path, text)
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} must hold settings, name: value; got {type(found).__name__}")
    return _flat(found)


def _of_script(path: Path, text: str) -> dict[str, Any]:
    """The settings among the words of a script's commands, a line each but for continued ones."""
    found: dict[str, Any] = {}
    for line in text.replace("\\\n", " ").splitlines():
        try:
            found |= _of_words(shlex.split(line, comments=True), among_others=True)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error} in {line.strip()!r}") from error
    return found


def _flat(nested: Mapping[Any, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{before}{name}."))
        else:
            flat[f"{before}{name}"] = value
    return flat


def _is_setting(word: str) -> bool:
    return bool(re.match(r"^(--|\+{0,2})[A-Za-z_][\w.\-@]*=", word))


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _ends_values(word: str) -> bool:
    """Whether what follows a flag is no value of it: another one, or an operator of the shell."""
    return (
        word == "--"
        or bool(re.match(r"[|&;<>]|\d?>|\$@", word))
        or _is_flag(word)
        or _is_setting(word)
    )


def _of_words(words: list[str], among_others: bool = False) -> dict[str, Any]:
    """`name=value`, `--name value...` and `--name`; in a script other words are passed over."""
    found: dict[str, Any] = {}
    i = 0
    while i < len(words):
        word, i = words[i], i + 1
        if _is_setting(word):
            name, _, value = word.lstrip("-+").partition("=")
            if not (among_others and name.isupper()):  # a variable of the shell
                found[name] = parse(value)
        elif _is_flag(word):
            values = []
            while i < len(words) and not _ends_values(words[i]):
                values.append(parse(words[i]))
                i += 1
            name = word.removeprefix("--")
            found[name] = values[0] if len(values) == 1 else values or True
        elif not among_others:
            raise ValueError(f"write settings as name=value or --name value; got {word!r}")
    return found


def parse(text: str) -> Any:
    """A value as YAML has it, and 1e-3 as a number."""
    try:
        return float(text) if re.fullmatch(r"[-+]?\d[\d.]*[eE][-+]?\d+", text) else _yaml(text)
    except (ValueError, yaml.YAMLError):
        return text


def _yaml(text: str) -> Any:
    return yaml.safe_load(text) if text else text


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a trainer that decides what it optimizes.

    Attributes:
        default: the trainer's own.
        about: what it is here.
        words: what it may be, if it is a word.
        optional: whether a number may be left out: null.
    """

    default: Any
    about: str
    words: tuple[str, ...] = ()
    optional: bool = False


class Settings:
    """The values of the options of a trainer, and which of them have been asked for.

    Args:
        given: by the configuration.
        options: of the trainer, by name.
        defaults: what stands in place of the options' own, such as those of an installed release.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        options: Mapping[str, Option],
        defaults: Mapping[str, Any] | None = None,
    ):
        self.given, self.options = given, options
        self.defaults = {name: o.default for name, o in options.items()} | dict(defaults or {})
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """A value: None, True or False, a number, a word, or a list.

        Raises:
            ValueError: it is of another kind than the option, or an unknown word.
        """
        self.asked.add(name)
        return self._value(name)

    def _value(self, name: str) -> Any:
        option = self.options[name]
        value = self.given.get(name, self.defaults[name])
        if value is False and "off" in option.words:
            value = "off"  # which YAML takes for false
        if isinstance(value, str) and value not in option.words:
            value = self._plain(name, parse(value))
        if isinstance(option.default, bool) and not isinstance(value, bool) and not option.words:
            raise ValueError(f"{name} must be true or false; got {value!r}")
        counts = isinstance(option.default, int | float) and not isinstance(option.default, bool)
        counts &= not (option.optional and value is None)
        if counts and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number; got {value!r}")
        if option.words and value is not None and str(value) not in option.words:
            known = ", ".join(option.words)
            raise ValueError(f"{name} must be one of {known}; got {value!r}")
        return value

    def _plain(self, name: str, value: Any) -> Any:
        """A word; an interpolation is followed, where what it means is given."""
        if not isinstance(value, str) or not (link := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            if isinstance(value, str) and value.startswith("${"):
                raise ValueError(f"{name} is {value!r}: write the value that it stands for")
            return None if value in ("null", "None") else value
        target = link.group(1)
        if target in self.options:
            return self[target]
        if target in self.given:
            return self.given[target]
        raise ValueError(f"{name} is {value!r}, which is not in the configuration: write its value")

    def number(self, name: str) -> float | None:
        """A number, or None where the option is left out.

        Raises:
            ValueError: it is something else.
        """
        value = self[name]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, or left out; got {value!r}")
        return float(value)

    def count(self, name: str) -> int:
        """A positive whole number.

        Raises:
            ValueError: it is something else.
        """
        value = self.number(name)
        if value is None or value < 1 or value != int(value):
            raise ValueError(f"{name} must be a positive whole number; got {self[name]!r}")
        return int(value)

    def bounds(self, name: str) -> tuple[float, ...]:
        """One number, or two of them.

        Raises:
            ValueError: it is something else.
        """
        value = self[name]
        listed = list(value) if isinstance(value, list | tuple) else [value]
        if len(listed) not in (1, 2) or not all(type(x) in (int, float) for x in listed):
            raise ValueError(f"{name} must be one number or two; got {value!r}")
        return tuple(float(x) for x in listed)

    def idle(self) -> list[str]:
        """Options that are given, and were not asked for: they do nothing beside the others.

        Raises:
            ValueError: one of them could not have its value.
        """
        left = [name for name in self.given if name in self.options and name not in self.asked]
        for name in left:
            self._value(name)
        return left


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that differs in its last part alone, and there little; or ""."""
    before, _, last = name.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == before}
    found = difflib.get_close_matches(last, beside, n=1, cutoff=0.6)
    return beside[found[0]] if found else ""
