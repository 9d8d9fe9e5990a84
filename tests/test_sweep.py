import os
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

import regdist as rd

AXES = {"seed": np.arange(40), "beta": np.geomspace(1e-2, 1e2, 13)}
AS_USERS = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # bits are compiled

COMMON = """
import sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
import regdist as rd

AXES = {"seed": np.arange(40), "beta": np.geomspace(1e-2, 1e2, 13)}

def slow(seed, beta, key):
    def step(i, x):
        return jnp.sin(x) + jax.random.normal(jax.random.fold_in(key, i)) * jnp.exp(-x / beta)
    return {"last": jax.lax.fori_loop(0, STEPS, step, seed * 1.0), "seed": seed}

def sweep(**options):
    return rd.sweep(slow, AXES, key=jax.random.key(5), block=4, **options)

def save(made, path):
    np.savez(path, last=made.values["last"], seed=made.values["seed"])
"""


def script(body, steps=20):
    return COMMON.replace("STEPS", str(steps)) + body


def start(text, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        env={**os.environ, **AS_USERS, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*running, within=300):
    """Outputs of processes that must end well, on a machine that may be busy."""
    said = [p.communicate(timeout=within)[0] for p in running]
    for p, text in zip(running, said, strict=True):
        assert p.returncode == 0, text
    return said


def same(a, b):
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def entropy(seed, beta):
    bandit = rd.testing.bandits(7)(jax.random.key(seed))
    return rd.metrics.entropy(rd.target(bandit, rd.ReverseKL(beta)).log_probs)


def test_it_is_vmap_over_the_product():
    made = rd.sweep(entropy, AXES)
    one = jax.jit(jax.vmap(jax.vmap(entropy, (None, 0)), (0, None)))
    plain = one(*map(jnp.asarray, AXES.values()))
    assert made.values.shape == (40, 13)
    assert np.allclose(made.values, plain, rtol=1e-13, atol=1e-15)
    assert made.num == made.computed == 520
    assert "40" in str(made)
    assert "budget of 1 GiB" in str(made)


def test_chunks_and_the_order_of_axes_change_no_bit():
    text = """
def forward(seed, beta):
    return rd.target(rd.testing.bandits(7)(jax.random.key(seed)), rd.ForwardKL(beta)).log_probs
def drawn(seed, beta, key):
    bandit = rd.testing.bandits(5)(jax.random.key(seed))
    method = rd.methods.grpo(beta)
    return rd.run(method, bandit, 6, expectation=rd.Sampled(4), key=key).log_probs
from regdist.scale import chunks
usual = chunks.CHUNK_BYTES
for fn, key in ((forward, None), (drawn, jax.random.key(1))):
    chunks.CHUNK_BYTES = usual
    whole = rd.sweep(fn, AXES, key=key)
    chunks.CHUNK_BYTES = 1
    small = rd.sweep(fn, {k: AXES[k] for k in ("beta", "seed")}, key=key)
    assert small.chunk < whole.chunk
    assert np.swapaxes(small.values, 0, 1).tobytes() == whole.values.tobytes()
"""
    finish(start(script(text)))


def test_an_axis_may_be_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(100.0))
    made = rd.sweep(lambda x: 2 * x, {"x": np.load(tmp_path / "x.npy", mmap_mode="r")})
    assert np.array_equal(made.values, 2 * np.arange(100.0))


def test_the_key_of_a_point_is_folded_by_name():
    made = rd.sweep(
        lambda b, a, key: jax.random.key_data(key),
        {"b": np.arange(3), "a": np.arange(4)},
        key=jax.random.key(2),
    )
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2), 3), 1)
    assert np.array_equal(made.values[1, 3], jax.random.key_data(key))


def test_one_trace_and_trees_of_arrays_as_axes():
    traces = []
    bandits = jax.vmap(rd.testing.bandits(3))(jax.random.split(jax.random.key(0), 5))

    def fn(bandit, beta):
        traces.append(1)
        return {"p": rd.target(bandit, rd.ReverseKL(beta)).probs, "beta": beta}

    made = rd.sweep(fn, {"bandit": bandits, "beta": [0.1, 1.0]})
    assert len(traces) == 1
    assert made.values["p"].shape == (5, 2, 3)
    assert np.array_equal(made.values["beta"], np.tile([0.1, 1.0], (5, 1)))


def test_devices_change_no_bit():
    text = """
from jax.sharding import Mesh
def drawn(seed, beta, key):
    bandit = rd.testing.bandits(5)(jax.random.key(seed))
    law = rd.target(bandit, rd.ReverseKL(beta))
    path = rd.run(rd.methods.dr_grpo(beta=beta), bandit, 5, expectation=rd.Sampled(4), key=key)
    return law, path.log_probs
for fn in (slow, drawn):
    seen = []
    for n in (1, 2, 8) if fn is slow else (1, 2):
        mesh = Mesh(np.array(jax.devices()[:n]), ("x",))
        made = rd.sweep(fn, AXES, key=jax.random.key(5), mesh=mesh, block=16)
        assert made.devices == n
        seen.append([x.tobytes() for x in jax.tree.leaves(made.values)])
    assert all(x == seen[0] for x in seen)
"""
    finish(start(script(text), devices=8))


def test_a_killed_sweep_resumes_bit_for_bit(tmp_path):
    out = tmp_path / "out"
    text = script("save(sweep(out=sys.argv[1]), sys.argv[2])", steps=40_000)
    running = start(text, out, tmp_path / "never.npz")
    deadline = time.time() + 300
    while len(list(out.glob("chunks/*.chunk"))) < 2:
        assert time.time() < deadline
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("chunks/*.chunk")}
    next(out.glob("chunks/*.chunk")).with_name(f"x.chunk.{7:032x}.part").write_bytes(b"half")
    resumed = start(text, out, tmp_path / "resumed.npz", devices=2)
    unbroken = start(text, tmp_path / "other", tmp_path / "unbroken.npz")
    finish(resumed, unbroken)
    with np.load(tmp_path / "resumed.npz") as a, np.load(tmp_path / "unbroken.npz") as b:
        assert same(dict(a), dict(b))
    assert not list(out.glob("**/*.part"))
    assert all((out / "chunks" / n).stat().st_mtime_ns == t for n, t in finished.items())


def test_a_finished_folder_is_only_read(tmp_path):
    first = rd.sweep(entropy, AXES, out=tmp_path)
    again = rd.sweep(entropy, AXES, out=tmp_path)
    assert again.computed == 0
    assert same(first.values, again.values)
    with pytest.raises(ValueError, match="another sweep; it differs in axis beta"):
        rd.sweep(entropy, {**AXES, "beta": AXES["beta"] * 2}, out=tmp_path)
    scale = np.linspace(1, 2, 1000)
    other = tmp_path / "other"
    rd.sweep(lambda x: jnp.sum(x * jnp.asarray(scale)), {"x": [1.0]}, out=other)
    scale = np.linspace(1, 3, 1000)
    with pytest.raises(ValueError, match="differs in fn"):
        rd.sweep(lambda x: jnp.sum(x * jnp.asarray(scale)), {"x": [1.0]}, out=other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not a sweep's folder"):
        rd.sweep(lambda x: x, {"x": [1.0]}, out=tmp_path / "mine")


def test_results_over_budget_go_to_disk_or_are_refused(tmp_path, monkeypatch):
    def wide(x):
        return x + jnp.arange(1000.0)

    axes = {"x": np.arange(1000.0)}
    with pytest.raises(ValueError, match=r"a block of 125 points .* give a smaller block="):
        rd.sweep(wide, axes, budget=2**20, out=tmp_path / "large blocks")
    with pytest.raises(ValueError, match=r"results take 8,000,000 .* give out="):
        rd.sweep(wide, axes, budget=2**20)
    made = rd.sweep(wide, axes, budget=2**20, out=tmp_path / "out", block=16)
    assert made.planned_bytes <= 2**20
    assert isinstance(made.values, np.memmap)
    assert np.array_equal(made.values, np.add.outer(axes["x"], np.arange(1000.0)))
    again = rd.sweep(wide, axes, budget=2**20, out=tmp_path / "out", block=16)
    assert same(again.values, made.values)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"the results need .* where 100 are free"):
        rd.sweep(wide, axes, out=tmp_path / "full")


def test_a_large_grid_stays_within_its_plan():
    text = """
import resource
def fn(seed):
    bandit = rd.testing.bandits(128)(jax.random.key(seed))
    return rd.metrics.entropy(rd.target(bandit, rd.ReverseKL(0.1)).log_probs)
rd.sweep(fn, {"seed": np.arange(512)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = rd.sweep(fn, {"seed": np.arange(40_000)}, budget=2**25)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert made.planned_bytes <= 2**25
assert grown < 2**26, grown
"""
    finish(start(script(text)))


def test_progress_counts_points(tmp_path):
    def fn(seed, beta):
        return beta + seed.astype(float)

    with Progress(disable=True) as progress:
        rd.sweep(fn, AXES, progress=progress, out=tmp_path)
        rd.sweep(fn, AXES, progress=progress, out=tmp_path)
    assert [t.completed for t in progress.tasks] == [520, 520]
    assert [t.total for t in progress.tasks] == [520, 520]


def test_to_xarray():
    xarray = pytest.importorskip("xarray")
    made = rd.sweep(lambda x, y: {"a": x + y, "b": x * jnp.ones(2)}, {"x": [1.0, 2], "y": [3.0]})
    table = made.to_xarray()
    assert isinstance(table, xarray.Dataset)
    assert float(table.a.sel(x=2.0, y=3.0)) == 5
    assert table.b.dims == ("x", "y", "b_0")


@pytest.mark.parametrize(
    ("fn", "axes", "error", "says"),
    [
        (lambda x: x, {}, ValueError, "at least one axis"),
        (lambda x: x, {"x": []}, ValueError, "first length above 0"),
        (lambda x: x, {"x": 1.0}, ValueError, "belongs into fn"),
        (lambda x: x, {"x": (np.ones(2), np.ones(3))}, ValueError, "one common first length"),
        (lambda x: x, {"y": [1.0]}, TypeError, "must take the keywords y"),
        (lambda x: jax.random.key(0), {"x": [1.0]}, TypeError, "no random keys"),
    ],
)
def test_wrong_calls_say_what_to_do(fn, axes, error, says):
    with pytest.raises(error, match=says):
        rd.sweep(fn, axes)


def test_other_wrong_calls():
    with pytest.raises(TypeError, match="must take the keywords x, key"):
        rd.sweep(lambda x: x, {"x": [1.0]}, key=jax.random.key(0))
    with pytest.raises(TypeError, match="give seeds"):
        rd.sweep(lambda x: x, {"x": jax.random.split(jax.random.key(0))})
    with pytest.raises(ValueError, match="budget must be a positive"):
        rd.sweep(lambda x: x, {"x": [1.0]}, budget=0)


TWO = """
address, rank, out, to = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, int(rank), heartbeat_timeout_seconds=10)
made = sweep(out=out or None)
save(made, to)
"""

MAPPED = """
both = sweep(out=Path(to).parent / "mapped", budget=15_000)
assert isinstance(both.values["last"], np.memmap), both
assert both.planned_bytes <= 15_000
for name in ("last", "seed"):
    assert both.values[name].tobytes() == made.values[name].tobytes()
axes = {"seed": np.arange(43), "beta": np.append(AXES["beta"], [200.0, 300.0])}
grown = rd.sweep(slow, axes, key=jax.random.key(5), out=Path(to).parent / "mapped", budget=15_000)
assert 0 < grown.computed < 43 * 15 - 40 * 13
if rank == "0":
    alone = jax.make_mesh((2,), ("x",), devices=jax.local_devices())
    fresh = rd.sweep(slow, axes, key=jax.random.key(5), block=grown.sides, mesh=alone)
    for name in ("last", "seed"):
        assert grown.values[name].tobytes() == fresh.values[name].tobytes()
"""


def pair(text, out, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [start(text, address, i, out, folder / f"{i}.npz", devices=2) for i in range(2)]


def test_two_processes_get_what_one_gets(tmp_path):
    alone = start(script("save(sweep(), sys.argv[1])"), tmp_path / "alone.npz")
    finish(*pair(script(TWO + MAPPED), "", tmp_path), alone)
    with np.load(tmp_path / "alone.npz") as one:
        for i in range(2):
            with np.load(tmp_path / f"{i}.npz") as two:
                assert same(dict(one), dict(two))


def test_a_process_that_dies_stops_the_others_and_loses_nothing(tmp_path):
    out = tmp_path / "out"
    text = script(TWO, steps=20_000)
    running = pair(text, out, tmp_path)
    deadline = time.time() + 300
    while len(list(out.glob("chunks/*.chunk"))) < 4:
        assert time.time() < deadline
        assert running[0].poll() is None, running[0].communicate()[0]
        time.sleep(0.01)
    running[1].send_signal(signal.SIGKILL)
    running[1].communicate()
    said = running[0].communicate(timeout=300)[0]
    assert running[0].returncode != 0
    assert "gone" in said or "another task died" in said
    finished = {p: p.stat().st_mtime_ns for p in out.glob("chunks/*.chunk")}
    alone = start(script("save(sweep(), sys.argv[1])", steps=20_000), tmp_path / "alone.npz")
    finish(*pair(text, out, tmp_path), alone)
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    with np.load(tmp_path / "alone.npz") as a, np.load(tmp_path / "1.npz") as b:
        assert same(dict(a), dict(b))
