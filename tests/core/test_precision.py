"""Dot products by parts: float32's digits from bfloat16 products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import lookup, precision

HIGHEST = jax.lax.Precision.HIGHEST


def rows(seed, num_rows, width=40):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(num_rows, width)) * np.exp(rng.normal(size=width))
  return x.astype(np.float32)


def test_three_parts_hold_a_float32():
  x = rows(0, 50)
  parts = precision.bfloat16_parts(jnp.asarray(x))
  whole = sum(np.asarray(p, np.float64) for p in parts)
  np.testing.assert_array_equal(whole.astype(np.float32), x)


@pytest.mark.parametrize(
  ("name", "form"),
  [
    ("float32", precision.dots_by_parts),
    ("float32", precision.row_dots),
    ("tfloat32", lambda a, b: precision.row_dots(a, b, "tfloat32")),
    ("bfloat16", lambda a, b: precision.row_dots(a, b, "bfloat16")),
  ],
)
def test_dots_are_as_near_as_their_unit(name, form):
  a, b = rows(1, 30), rows(2, 20)
  found = form(jnp.asarray(a), jnp.asarray(b))
  exact = a.astype(np.float64) @ b.astype(np.float64).T
  lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
  bound = 2 * precision.unit(name) + 2.0**-21
  assert (np.abs(found - exact) <= bound * lengths).all()
  assert found.dtype == jnp.float32


def test_sums_by_one_hot_are_float32_sums():
  x, ids = rows(3, 500), np.random.default_rng(0).integers(-1, 7, 500)
  found = lookup.one_hot_sum(
    jnp.asarray(ids), jnp.asarray(x), num_rows=7, precision=HIGHEST
  )
  expected = np.stack([x[ids == k].astype(np.float64).sum(0) for k in range(7)])
  scale = np.stack([np.abs(x[ids == k]).sum(0) for k in range(7)])
  assert (np.abs(found - expected) <= 2.0**-22 * scale).all()
