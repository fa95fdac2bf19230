"""The kernel, interpreted, against the plain form: the same codes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import nearest, nearest_kernel, pallas_gpu


def case(kind, num_rows=300, num_codes=200, width=20):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(num_rows, width)).astype(np.float32)
  codes = (x[:num_codes] + rng.normal(size=(num_codes, width))) / 2
  if kind == "whole":  # ties: the lowest code wins
    x, codes = np.round(2 * x), np.round(2 * codes)
  if kind == "close":  # codes that bfloat16 cannot tell apart
    codes[num_codes // 2 :] = codes[: num_codes // 2] * (1 + 2**-14)
  return jnp.asarray(x, jnp.float32), jnp.asarray(codes, jnp.float32)


@pytest.mark.parametrize("kind", ["normal", "whole", "close"])
def test_float32_codes_are_the_plain_ones(kind):
  x, codebook = case(kind)
  found = nearest._nearest_fused(
    x, codebook, centered=False, precision="float32", interpret=True
  )
  plain = nearest.nearest(x, codebook, centered=False)
  np.testing.assert_array_equal(found.codes, plain.codes)
  np.testing.assert_allclose(
    found.squared_distance, plain.squared_distance, atol=1e-4
  )


def test_rows_too_close_to_call_are_computed_again():
  x, codebook = case("close")
  shift = jnp.zeros(x.shape[1:])
  _, best, length, second = nearest_kernel.best_two(
    x, codebook, shift, parts=2, interpret=True
  )
  assert (second >= best).all()
  np.testing.assert_allclose(length, np.square(x).sum(1), rtol=1e-5)
  plain = nearest.nearest_code(x, codebook, centered=False)
  called = []

  def again(rows, codes):
    called.append(rows.shape)
    return nearest.nearest_code(rows, codes, centered=False)

  found = nearest_kernel.codes_as_plain(
    x, codebook, shift, again, interpret=True
  )
  assert called
  np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("width", [20, 128, 200])
def test_bfloat16_codes_of_whole_numbers_are_exact(width):
  x, codebook = case("whole", width=width)
  found = nearest._nearest_fused(
    x, codebook, centered=False, precision="bfloat16", interpret=True
  )
  plain = nearest.nearest(x, codebook, centered=False)
  np.testing.assert_array_equal(found.codes, plain.codes)
  np.testing.assert_array_equal(found.squared_distance, plain.squared_distance)


def test_other_platforms_take_the_plain_form(monkeypatch):
  # Traced for a GPU, lowered for a CPU.
  monkeypatch.setattr(pallas_gpu, "is_known_device", lambda: True)
  x, codebook = case("normal", num_rows=1 << 14, num_codes=128, width=4)
  found = nearest.nearest_code(x, codebook, fused=True)
  np.testing.assert_array_equal(found, nearest.nearest_code(x, codebook))


@pytest.mark.parametrize(
  ("capability", "known"),
  [("9.0", True), ("8.0", True), ("7.5", False), ("gfx942", False)],
)
def test_devices_without_bfloat16_take_the_plain_form(
  monkeypatch, capability, known
):
  size = (1 << 14, 128, 64)
  assert not nearest_kernel.supports(*size, parts=1)  # a CPU
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert nearest_kernel.supports(*size, parts=2) == known
  assert not nearest_kernel.supports(1 << 14, 128, 384, parts=2)
  assert nearest_kernel.supports(1 << 14, 128, 384, parts=1) == known
