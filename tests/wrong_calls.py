"""The wrong calls of `wrong_calls.txt`, made one by one; run as a module it answers them all.

There a call stands on a line of its own, the words that must be in its answer below it, indented,
between bars; lines that begin with two dashes are headings. The session of the tests looks at types
before the package does, so that the calls are made in a process of their own.
"""

import contextlib
import io
import json
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A wrong call, the part of the library that it is made to, and the words of the answer."""

    part: str
    call: str
    words: tuple[str, ...]


def rows() -> list[Row]:
    """The rows of the table."""
    lines = iter(Path(__file__).with_suffix(".txt").read_text().splitlines())
    found, part = [], ""
    for line in lines:
        if line.startswith("-- "):
            part = line.removeprefix("-- ")
        elif line:
            found.append(Row(part, line, tuple(w.strip() for w in next(lines).split(" | "))))
    return found


class RefusedError(Exception):
    """What the command says."""


def command(*arguments: str) -> None:
    """The command, with an output folder that must stay away."""
    from regdist import cli

    said, out = io.StringIO(), Path(tempfile.mkdtemp()) / "out"
    given = [*arguments, "--out", str(out)] if len(arguments) > 1 else [*arguments]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(given)
        except SystemExit as stop:
            code = stop.code
    assert not out.exists()
    raise RefusedError(f"exit {code}: {' '.join(said.getvalue().split())}")


def names() -> dict[str, Any]:
    """What the calls are written with."""
    import jax
    import jax.numpy as jnp
    import optax

    import regdist as rd
    from regdist.methods.advantage import GroupRelative
    from regdist.methods.matching import Balance, Pairwise
    from regdist.methods.surrogate import Clip
    from regdist.methods.weight import SamplerRatio

    folder = Path(tempfile.mkdtemp())

    def file(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text)
        return path

    b, two = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3]), rd.bandit([1.0, 0.0])
    reg, m = rd.ReverseKL(0.1), rd.methods.grpo(beta=0.1)
    leaves, paid = [[0], [1, 0], [1, 1]], [0.4, 0.0, 1.0]
    lead, paid2 = jnp.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]]), jnp.array([[0.0, 0], [1, 0]])
    return {
        "rd": rd,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "M": rd.methods,
        "GroupRelative": GroupRelative,
        "Clip": Clip,
        "SamplerRatio": SamplerRatio,
        "Balance": Balance,
        "Pairwise": Pairwise,
        "command": command,
        "file": file,
        "b": b,
        "two": two,
        "reg": reg,
        "m": m,
        "p": b.log_ref,
        "probs": jnp.exp(b.log_ref),
        "t": rd.target(b, reg),
        "t2": rd.target(two, reg),
        "leaves": leaves,
        "paid": paid,
        "T": rd.tree(leaves, paid),
        "C": rd.tree(leaves, paid, chance={(1,): {0: 0.1, 1: 0.9}}),
        "D": rd.mdp(lead, paid2, 0.9),
        "lead": lead,
        "paid2": paid2,
        "N": rd.planning,
        "inf": float("inf"),
        "path": rd.run(m, b, 10),
        "key": jax.random.key(0),
        "makes": rd.testing.bandits(3),
        "feedback": rd.feedback.std_normalized(b, reg),
        "loss": lambda view: view.log_probs,
        "own": rd.record(type("Own", (), {}))(),
    }


def answer(call: str, given: dict[str, Any]) -> tuple[str, str, str]:
    """What a call is answered: the error's type, its text, and the file that raised it."""
    try:
        value = eval(call, given)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        return type(error).__name__, str(error), where
    return "nothing", f"it returned {str(value)[:60]}", ""


if __name__ == "__main__":
    given = names()
    print(json.dumps({row.call: answer(row.call, given) for row in rows()}))
