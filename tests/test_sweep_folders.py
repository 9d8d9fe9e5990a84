"""What a sweep's folder must prove before it is believed, and how it grows."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.scale import chunks as chunking
from regdist.scale.seals import read_sealed, write_sealed
from regdist.scale.store import Store
from tests.test_refusals import process
from tests.test_sweep import same

AXES = {"x": np.linspace(0.1, 2, 10), "n": np.arange(3.0)}
MAPPED = 15_000  # bytes of budget of which the results take more than half
KEY = jax.random.key(3)


@jax.custom_batching.custom_vmap
def fellows(x):
    """A value that hangs on the others of the block, and on the place in it."""
    return x


@fellows.def_vmap
def _together(size, _, x):
    return x * jnp.arange(1.0, size + 1) + jnp.sum(x), True


def fn(x, n, key):
    wave = jnp.sin(x) * n.astype(float) + jax.random.normal(key)
    return {"wave": fellows(wave), "row": jnp.exp(-x * jnp.arange(40.0))}


def swept(out, axes=None, function=fn, **options):
    asked = {"block": 4, "key": KEY, "progress": False, **options}
    return rd.sweep(function, axes or AXES, out=out, **asked)


def files(out):
    return sorted((out / "chunks").iterdir())


@pytest.fixture(autouse=True)
def _each_block_is_a_file(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_SECONDS", 0.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A finished folder of nine blocks, and what it holds."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_SECONDS", 0.0)
        made = swept(folder / "out", budget=MAPPED)
        other = swept(folder / "other", function=lambda x, n, key: fn(x, n, key) | {"wave": x})
    swept(folder / "coarse")
    assert len(files(folder / "out")) == made.num // 4 + 2 == 9
    assert len(files(folder / "coarse")) == 2
    assert other.computed == made.computed == 30
    return folder, jax.tree.map(np.array, made.values)


@pytest.fixture
def out(written, tmp_path):
    shutil.copytree(written[0] / "out", tmp_path / "out")
    return tmp_path / "out"


def swapped(out, _):
    first, second, *_ = files(out)
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    return first, "other points than its name says"


def renamed(out, _):
    first, second, *_ = files(out)
    first.rename(second)
    return second, "other points than its name says"


def linked(out, _):
    first, second, *_ = files(out)
    second.unlink()
    second.symlink_to(first)
    return second, "other points than its name says"


def dangling(out, _):
    first, *_ = files(out)
    first.unlink()
    first.symlink_to(out / "nowhere")
    return first, "cannot be read"


def of_one_row(out, _):
    first, *_ = files(out)
    about, _ = read_sealed(first, "")
    about["arrays"] = [[dtype, [1, *shape[1:]]] for dtype, shape in about["arrays"]]
    write_sealed(first, about, [np.ones((1, 40)), np.ones(1)])
    return first, "other shapes or dtypes"


def beyond(out, _):
    last = files(out)[-1]
    name = re.sub(r"8-(0+)9", r"9-\g<1>8", last.name)
    last = last.rename(last.with_name(name.replace("00008.", "00010.")))
    return last, "beyond the grid"


def of_a_larger_grid(out, _):
    last = files(out)[-1]
    return last.rename(last.with_name(last.name.replace("3x10", "4x10"))), "beyond the grid"


def overlapping(out, written):
    coarse = files(written / "coarse")[-1]
    copied = out / "chunks" / coarse.name
    shutil.copy(coarse, copied)
    return copied, f"holds points that {files(out)[1].name} holds too"


def of_another_sweep(out, written):
    first = files(out)[0]
    shutil.copy(written / "other" / "chunks" / first.name, first)
    return first, "belongs to another sweep"


def cut_short(out, _):
    first = files(out)[0]
    first.write_bytes(first.read_bytes()[:-7])
    return first, "not as it was written"


def flipped(out, _):
    first = files(out)[0]
    held = bytearray(first.read_bytes())
    held[-5] ^= 1
    first.write_bytes(held)
    return first, "not as it was written"


def flipped_in_front(out, _):
    first = files(out)[0]
    held = first.read_bytes()
    first.write_bytes(held.replace(b'"blocks": [0', b'"blocks": [1', 1))
    return first, "not as it was written"


def emptied(out, _):
    first = files(out)[0]
    first.write_bytes(b"")
    return first, "broken, or cut short"


def alien(out, _):
    (out / "chunks" / "notes.txt").write_text("mine")
    return out / "chunks" / "notes.txt", "no file of this sweep"


def almost(out, _):
    first = files(out)[0]
    return first.rename(first.with_name(first.name.replace("-0", "-", 1))), "no file of this sweep"


DAMAGES = [
    swapped,
    renamed,
    linked,
    dangling,
    of_one_row,
    beyond,
    of_a_larger_grid,
    overlapping,
    of_another_sweep,
    cut_short,
    flipped,
    flipped_in_front,
    emptied,
    alien,
    almost,
]


@pytest.mark.parametrize("mapped", [False, True], ids=["held", "mapped"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda x: x.__name__)
def test_a_chunk_that_does_not_prove_itself_is_named_and_may_be_deleted(
    damage, mapped, out, written
):
    (out / "values.json").unlink()
    (out / "values-0.npy").unlink()
    path, words = damage(out, written[0])
    budget = MAPPED if mapped else 2**20
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} .*{words}") as refused:
        swept(out, budget=budget)
    assert "give another folder" in str(refused.value)
    assert ("delete that file" in str(refused.value)) or ("take it away" in str(refused.value))
    if not mapped:
        while path is not None:  # as told; some damages have spoiled a second file
            path.unlink()
            path = None
            try:
                made = swept(out)
            except ValueError as error:
                path = next(p for p in files(out) if str(p) in str(error))
        assert made.computed < made.num
        assert same(made.values, written[1])


def test_results_in_files_prove_themselves(out, written):
    values, sums = out / "values-0.npy", out / "values.json"
    held = values.read_bytes(), sums.read_bytes()
    values.write_bytes(held[0][:-1] + b"\x07")
    with pytest.raises(ValueError, match=f"{values} is not as it was .*: delete that file"):
        swept(out, budget=MAPPED)
    values.unlink()
    assert same(swept(out, budget=MAPPED).values, written[1])
    assert values.read_bytes() == held[0]
    sums.write_bytes(held[1].replace(b'"values-0.npy": "', b'"values-0.npy": "0'))
    with pytest.raises(ValueError, match=f"{sums} is not as it was .*: delete that file"):
        swept(out, budget=MAPPED)
    other = swept(out.with_name("other"), {**AXES, "n": np.arange(1.0, 4)}, budget=MAPPED)
    assert other.computed == 30
    for path in (values, sums):
        shutil.copy(out.with_name("other") / path.name, path)
    with pytest.raises(ValueError, match=f"{sums} belongs to another sweep"):
        swept(out, budget=MAPPED)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "broken, or cut short"),
        ('{"format": 2', "broken, or cut short"),
        ("[" * 100_000, "broken, or cut short"),
        ("[]", "holds no checksum"),
        ("{}", "holds no checksum"),
        ('{\n "block": 4,\n "format": 1,\n "fn": ["f", "0"]\n}\n', "older version of regdist"),
        ("edited", "not as it was written"),
    ],
)
def test_a_grid_that_does_not_prove_itself_is_refused(text, says, out):
    mark = out / "grid.json"
    edited = mark.read_text().replace('"length": 10', '"length": 11')
    assert edited != mark.read_text()
    mark.write_text(edited if text == "edited" else text)
    with pytest.raises(ValueError, match=f"{mark} .*{says}.* Give another folder, or remove"):
        swept(out)


def test_a_folder_without_chunks_or_grid_is_refused(out, tmp_path):
    shutil.rmtree(out / "chunks")
    with pytest.raises(ValueError, match=f"{out / 'chunks'} is missing: make an empty folder"):
        swept(out)
    (out / "chunks").mkdir()
    (out / "chunks" / ".nfs0123").write_text("the system's own")
    assert swept(out).computed == 30
    (out / "grid.json").unlink()
    with pytest.raises(ValueError, match="not a sweep's folder, and not empty"):
        swept(out)
    killed = tmp_path / "killed"  # between the first file and the second
    (killed / "chunks").mkdir(parents=True)
    (killed / f"grid.json.{0:032x}.part").write_text("{")
    (killed / "mine.part").write_text("")
    with pytest.raises(ValueError, match="not a sweep's folder, and not empty"):
        swept(killed)
    (killed / "mine.part").unlink()
    assert swept(killed).computed == 30
    assert not list(killed.glob("*.part"))


def test_a_result_with_an_empty_leaf(tmp_path):
    def empty(x):
        return {"none": jnp.zeros((0, 3)), "x": 2 * x * jnp.ones(20)}

    axes = {"x": np.arange(100.0)}
    for options in ({}, {"out": tmp_path / "held"}, {"out": tmp_path / "mapped", "budget": MAPPED}):
        for computed in (100, 0 if options else 100):
            made = rd.sweep(empty, axes, progress=False, **options)
            assert made.computed == computed
            assert made.values["none"].shape == (100, 0, 3)
            assert np.array_equal(made.values["x"][:, 7], 2 * axes["x"])


# growing


MORE = np.array([2.5, 2.6, 2.7])
GROWN = {
    "x": {"x": np.append(AXES["x"], MORE)},
    "n": {"n": np.arange(5.0)},
    "both": {"x": np.append(AXES["x"], MORE[:1]), "n": np.arange(4.0)},
}


def fresh(axes, made):
    return rd.sweep(fn, axes, key=KEY, block=made.sides, progress=False)


@pytest.mark.parametrize("mapped", [False, True], ids=["held", "mapped"])
@pytest.mark.parametrize("name", GROWN)
def test_a_longer_axis_computes_the_new_points_alone(name, mapped, out):
    axes = {**AXES, **GROWN[name]}
    options = {"budget": MAPPED} if mapped else {}
    before = {p: p.read_bytes() for p in files(out)}
    made = swept(out, axes, **options)
    num = len(axes["x"]) * len(axes["n"])
    assert (made.num, made.computed) == (num, num - 30)
    assert isinstance(made.values["wave"], np.memmap) == mapped
    assert made.sides == {"n": 1, "x": 4}
    assert same(made.values, fresh(axes, made).values)
    assert all(p.read_bytes() == held for p, held in before.items())
    again = swept(out, axes, block=None, **options)
    assert again.computed == 0
    assert same(made.values, again.values)
    with pytest.raises(ValueError, match=r"differs in axis [nx] \(\d+ values there, \d+ here\)"):
        swept(out)


class Killed(BaseException):
    pass


def killed_after(monkeypatch, count, call):
    """A call that ends before it has written another chunk."""
    write, left = Store.write, iter(range(count))

    def dies(*arguments):
        if next(left, None) is None:
            raise Killed
        write(*arguments)

    monkeypatch.setattr(Store, "write", dies)
    with pytest.raises(Killed):
        call()
    monkeypatch.setattr(Store, "write", write)


@pytest.mark.parametrize("mapped", [False, True], ids=["held", "mapped"])
def test_growing_goes_on_where_it_was_killed(mapped, tmp_path, monkeypatch):
    out, options = tmp_path / "out", {"budget": MAPPED} if mapped else {}
    twice = [{**AXES, **GROWN[name]} for name in ("n", "both")]
    twice[1]["n"] = np.arange(6.0)
    killed_after(monkeypatch, 5, lambda: swept(out, **options))
    assert len(files(out)) == 5
    for axes, blocks in zip(twice, (3, 4), strict=True):
        there = len(files(out))
        killed_after(monkeypatch, blocks, lambda axes=axes: swept(out, axes, **options))
        assert len(files(out)) == there + blocks
    made = swept(out, twice[1], **options)
    assert 0 < made.computed < 66 - 12 * 2
    assert same(made.values, fresh(twice[1], made).values)


def test_an_axis_that_is_a_tree_grows_by_whole_rows(tmp_path):
    a, b = np.arange(10.0).reshape(5, 2), np.arange(5.0)

    def call(a, b, **options):
        function = lambda x: x[0].sum() + x[1]  # noqa: E731
        return rd.sweep(function, {"x": (a, b)}, out=tmp_path, progress=False, **options)

    assert call(a[:3], b[:3]).computed == 3
    made = call(a, b)
    assert made.computed == 2
    assert np.array_equal(made.values, a.sum(1) + b)
    a[1, 1] += 1e-9
    with pytest.raises(ValueError, match=r"axis x \(5 values there, 5 here, .* begin"):
        call(a, b)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": AXES["x"][1:]}, r"axis x \(10 values there, 9 here\)"),
        (
            {"x": np.append(AXES["x"][:-1], MORE)},
            r"axis x \(10 values there, 12 here, which do not",
        ),
        ({"n": np.arange(3, dtype=np.float32)}, r"axis n \(float64 there, float32 here\)"),
        ({"n": np.arange(5.0) - 2, "x": AXES["x"][:5]}, "axis n .*, axis x "),
        ({"key": jax.random.key(4)}, "key"),
        ({"block": 5}, r"block \({'n': 1, 'x': 4} there, {'n': 1, 'x': 5} here\)"),
        ({"version": "2"}, r"version \(None there, 2 here\)"),
        ({"function": lambda x, n, key: {"wave": x, "row": x}}, "fn, results"),
    ],
)
def test_what_changed_otherwise_is_refused_by_name(change, says, out):
    before = {p: p.read_bytes() for p in out.rglob("*.*")}
    options = {k: v for k, v in change.items() if k not in AXES}
    with pytest.raises(ValueError, match=f"another sweep; it differs in .*{says}"):
        swept(out, {**AXES, **{k: v for k, v in change.items() if k in AXES}}, **options)
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == before


def test_other_axes_are_another_sweep(out):
    with pytest.raises(ValueError, match=r"axis m \(not there\), axis n \(not here\)"):
        swept(out, {"x": AXES["x"], "m": np.arange(3.0)}, lambda x, m, key: fn(x, m, key))


# functions that the program does not show


def outside(c):
    def function(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(lambda v: np.sin(v) * c, shape, x, vmap_method="sequential")

    return function


def printed(x):
    jax.debug.print("{x}", x=x)
    return x


def called(x):
    jax.debug.callback(lambda v: None, x)
    return x


def done(x):
    return jax.experimental.io_callback(lambda v: v, jax.ShapeDtypeStruct((), x.dtype), x)


def differentiated(x):
    f = jax.custom_jvp(outside(2.0))
    f.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    return f(x)


def reversed_(x):
    f = jax.custom_vjp(outside(2.0))
    f.defvjp(lambda x: (f(x), x), lambda x, g: (g,))
    return f(x)


def batched(x):
    f = jax.custom_batching.custom_vmap(lambda x: x)
    f.def_vmap(lambda size, given, x: (jax.lax.map(outside(2.0), x), True))
    return f(x)


def solved(x):
    return jax.lax.custom_linear_solve(outside(2.0), x, lambda _, b: b)


HIDDEN = {
    "pure": (outside(2.0), "pure_callback"),
    "print": (printed, "debug_"),
    "debug": (called, "debug_callback"),
    "io": (done, "io_callback"),
    "jit": (jax.jit(outside(2.0)), "pure_callback"),
    "scan": (lambda x: jax.lax.scan(lambda c, _: (outside(2.0)(c), c), x, None, 2)[0], "pure"),
    "cond": (lambda x: jax.lax.cond(True, outside(2.0), lambda v: v, x), "pure_callback"),
    "while": (lambda x: jax.lax.while_loop(lambda v: outside(2.0)(v) > 9, jnp.sin, x), "pure"),
    "fori": (lambda x: jax.lax.fori_loop(0, 3, lambda i, v: outside(2.0)(v), x), "pure_callback"),
    "checkpoint": (jax.checkpoint(outside(2.0)), "pure_callback"),
    "custom_jvp": (differentiated, "pure_callback"),
    "custom_vjp": (reversed_, "pure_callback"),
    "custom_vmap": (batched, "pure_callback"),
    "solve": (solved, "pure_callback"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_python_that_the_program_does_not_show_needs_a_version(name, tmp_path):
    hidden, primitive = HIDDEN[name]
    with pytest.raises(ValueError, match=rf"not in the compiled program \({primitive}.*version="):
        rd.sweep(lambda x: hidden(x), {"x": [1.0, 2.0]}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_tells_callbacks_apart(tmp_path):
    def call(c, **options):
        return rd.sweep(outside(c), {"x": [1.0, 2.0]}, progress=False, **options)

    assert np.allclose(call(2.0).values, 2 * np.sin([1.0, 2.0]), rtol=1e-15)
    made = call(2.0, out=tmp_path, version="1")
    again = call(2.0, out=tmp_path, version="1")
    assert (made.computed, again.computed) == (2, 0)
    with pytest.raises(ValueError, match=r"differs in version \(1 there, 2 here\)"):
        call(3.0, out=tmp_path, version="2")


def test_a_claim_with_a_callback_takes_a_version(tmp_path):
    def claim(beta):
        return outside(1.0)(beta) > 2

    def call(**options):
        generator = rd.testing.betas(0.1, 1.0)
        return rd.testing.falsify(
            claim, generator, 4, key=jax.random.key(0), out=tmp_path, progress=False, **options
        )

    with pytest.raises(ValueError, match="Name its version"):
        call()
    assert call(version="1").violations == 4


# numbers that are computed with as others

SINGLE = """
import json, warnings
import numpy as np
import regdist as rd
warnings.simplefilter("ignore")

def said(axis):
    try:
        return rd.sweep(lambda seed: seed, {"seed": axis}, progress=False).num
    except ValueError as error:
        return str(error)

axes = AXES
print(json.dumps([said(axis) for axis in axes]))
"""
REFUSED = {
    "np.array([2**31 + 5, 2**40])": "has 2147483653 at index 0, which int32 does not hold",
    "np.array([[1, 2], [3, -2**31 - 1]])": "has -2147483649 at index 1, 1, which int32",
    "[1, 2**31]": "has 2147483648 at index 1, which int32",
    "np.array([5, 2**32], np.uint64)": "has 4294967296 at index 1, which uint32",
    "np.array([1.0, 1e300])": "has 1e+300 at index 1, which float32 does not hold; it would be",
    "np.array([1.0, -1e-50])": "computed with as -0.0",
    "np.array([1e-40])": "has 1e-40 at index 0, which float32",  # processors take it for 0
    "np.array([1.0, 1e300j])": "at index 1, which complex64",
    "(np.ones(2), np.array([1, 2**40]))": "has 1099511627776 at index 1",
    "np.array([0.1, 0.5, 0.1 + 1e-12])": "index 0 and 2 that differ, and are the same in float32",
    "[0.1, 0.1 + 1e-12]": "index 0 and 1 that differ",
    "(np.array([0.1, 0.1 + 1e-12]), np.array([1, 1]))": "are the same in float32, int32",
    "np.array([2.0**24, 2.0**24 + 1])": "index 0 and 1 that differ",
}
TAKEN = [
    "np.array([1, 2**31 - 1, -2**31])",
    "np.array([2**32 - 1], np.uint64)",
    "np.array([0.1, 0.1, 0.5, -0.0, 0.0, np.inf, np.nan])",
    "(np.array([0.1, 0.1 + 1e-12]), np.array([1, 2]))",
    "(np.zeros((2, 0)), np.array([1.0, 2.0]))",
    "np.array([2.0**40, 2.0**40], np.float32)",
]


def test_values_that_32_bits_do_not_hold_are_refused():
    program = SINGLE.replace("AXES", f"[{', '.join([*REFUSED, *TAKEN])}]")
    said = json.loads(process(["-c", program], JAX_ENABLE_X64="0"))
    for words, answer in zip(REFUSED.values(), said, strict=False):
        assert str(answer).startswith("axis 'seed' has")
        assert words in answer
        assert 'jax.config.update("jax_enable_x64", True)' in answer
    assert said[len(REFUSED) :] == [3, 1, 7, 2, 2, 2]


def test_values_of_64_bits_are_kept_as_they_are():
    """The session computes with 64 bits."""
    for axis in (np.array([2**31 + 5, 2**40]), np.array([0.1, 0.1 + 1e-12, 1e300, 1e-50])):
        made = rd.sweep(lambda seed: seed, {"seed": axis}, progress=False)
        assert np.array_equal(made.values, axis)
