"""The strict session: it covers the tests, the doctests of the package and the pages."""

import atexit
import gc
import os
import shutil
import tempfile
import threading
from importlib import metadata
from pathlib import Path

# What one worker has compiled the others read, and so do the processes that tests start. The
# first process of a session makes the folder and removes it; a worker finds it in its environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="regdist-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Most of a session is compilation, and it takes a quarter of the time without LLVM's optimizations
# and XLA's fusion emitters. As users compile: REGDIST_TESTS_OPTIMIZED=1, which `.ci/run` sets for
# the tests that judge the last digits. An unknown flag ends the process; 0.6 to 0.10 know this one.
if "REGDIST_TESTS_OPTIMIZED" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # a tenth of the time of small programs
    known = tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)
    if known and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
        flags += " --xla_cpu_parallel_codegen_split_count=1"  # the workers have the cores already
        os.environ["XLA_FLAGS"] = flags.strip()

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile("regdist", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("regdist")


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    import regdist as rd

    doctest_namespace.update(rd=rd, jax=jax, jnp=jax.numpy)


# Every compiled program holds some memory maps, of which Linux gives a process 65,530; beyond, LLVM
# ends it. A third of them leaves room for the largest file of tests.
_MOST_MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _few_maps():
    """Forgets compiled programs between files, where there are many; the disk still has them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_collection_finish():
    """What the imports left stays: looking through it again and again cost a thirtieth of all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    if "REGDIST_TESTS_OPTIMIZED" not in os.environ:
        _share_context()


def _share_context():
    """One MLIR context a thread: jax makes one for every program, a tenth of a session's time."""
    try:
        from jax._src.interpreters import mlir

        make = mlir.make_ir_context
    except (ImportError, AttributeError):  # a part of jax that may move
        return
    kept = threading.local()

    def shared():
        if not hasattr(kept, "context"):
            kept.context = make()
        return kept.context

    mlir.make_ir_context = shared


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Pages and notebooks first, for they are long; then what goes to a worker together.

    A worker compiles once for all tests of a file, and for all tests of a member of a registry
    (their `name`), whichever files they are in.
    """
    items.sort(key=lambda item: item.path.suffix == ".py" and item.path.stem != "test_notebooks")
    for item in items:
        if item.path.stem == "test_notebooks" or item.get_closest_marker("xdist_group"):
            continue
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        group = name if isinstance(name, str) else str(item.path.relative_to(item.config.rootpath))
        item.add_marker(pytest.mark.xdist_group(group))
