"""The strict session: it covers the tests, the doctests of the package and the pages."""

import atexit
import os
import shutil
import tempfile

# What one worker has compiled the others read, and so do the processes that tests start. The
# first process of a session makes the folder and removes it; a worker finds it in its environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="regdist-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

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
