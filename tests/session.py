"""The strict session, as a pytest plugin: it also covers doctests outside this folder."""

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
