"""The kernel, interpreted, against the plain form: the same codes."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import nearest, nearest_hopper, nearest_kernel, pallas_gpu


def case(kind, num_rows=300, num_codes=200, width=20):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(num_rows, width)).astype(np.float32)
  codes = (x[:num_codes] + rng.normal(size=(num_codes, width))) / 2
  if kind == "whole":  # ties: the lowest code wins
    x, codes = np.round(2 * x), np.round(2 * codes)
  if kind == "close":  # codes that bfloat16 cannot tell apart
    codes[num_codes // 2 :] = codes[: num_codes // 2] * (1 + 2**-14)
  return jnp.asarray(x, jnp.float32), jnp.asarray(codes, jnp.float32)


@pytest.mark.parametrize(
  ("kernel", "kind"),
  [
    (nearest_kernel, "normal"),
    (nearest_kernel, "whole"),
    (nearest_kernel, "close"),
    (nearest_hopper, "close"),
  ],
)
def test_float32_codes_are_the_plain_ones(kernel, kind):
  x, codebook = case(kind)
  found = nearest._nearest_fused(
    kernel, x, codebook, centered=False, precision="float32", interpret=True
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
    x,
    codebook,
    shift,
    again,
    find=nearest_kernel.best_two,
    cut_off=0.0,
    interpret=True,
  )
  assert called
  np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(
  ("kernel", "width"),
  [
    (nearest_kernel, 20),
    (nearest_kernel, 128),
    (nearest_kernel, 200),
    (nearest_hopper, 200),
  ],
)
def test_bfloat16_codes_of_whole_numbers_are_exact(kernel, width):
  x, codebook = case("whole", width=width)
  found = nearest._nearest_fused(
    kernel, x, codebook, centered=False, precision="bfloat16", interpret=True
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


@pytest.mark.parametrize("parts", [1, 2])
def test_a_program_takes_blocks_of_rows_again_and_again(parts):
  # More slots of codes than the ring holds, more blocks than programs.
  x, codebook = case("whole", num_rows=500, num_codes=300, width=64)
  found = nearest_hopper.best_two(
    x.astype(jnp.bfloat16),
    codebook,
    jnp.zeros(64),
    parts=parts,
    tiles=nearest_hopper.Tiles(2, 64, 128, slots=2, registers=224),
    num_programs=1,
    interpret=True,
  )
  distances = nearest.squared_distances(x, codebook, centered=False)
  np.testing.assert_array_equal(found[0], jnp.argmin(distances, axis=1))
  np.testing.assert_array_equal(found[1], jnp.min(distances, axis=1))
  if parts == 2:
    np.testing.assert_array_equal(found[2], jnp.sum(jnp.square(x), axis=1))
    np.testing.assert_array_equal(found[3], jnp.sort(distances, axis=1)[:, 1])


@pytest.mark.parametrize("width", [64, 120, 200, 384])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_kernel_for_hopper_lowers_without_one(width, parts):
  # Layouts of registers and of what is on chip are checked there.
  rows = jax.ShapeDtypeStruct((1000, width), jnp.float32)
  codes = jax.ShapeDtypeStruct((300, width), jnp.float32)
  shift = jax.ShapeDtypeStruct((width,), jnp.float32)
  find = jax.jit(functools.partial(nearest_hopper.best_two, parts=parts))
  traced = find.trace(rows, codes, shift)
  assert "mosaic" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
  ("capability", "kernels"),
  [("9.0", 2), ("10.0", 1), ("8.0", 1), ("7.5", 0), ("gfx942", 0)],
)
def test_devices_take_the_kernels_written_for_them(
  monkeypatch, capability, kernels
):
  size = (1 << 14, 128)
  assert nearest._kernel_for(*size, 64, parts=1) is None  # a CPU
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  best = (None, nearest_kernel, nearest_hopper)[kernels]
  assert nearest._kernel_for(1 << 14, 512, 64, parts=2) == best
  other = nearest_kernel if kernels else None
  assert nearest._kernel_for(1 << 14, 256, 64, parts=2) == other
  assert nearest._kernel_for(*size, 384, parts=1) == best
  only = nearest_hopper if kernels == 2 else None
  assert nearest._kernel_for(*size, 384, parts=2) == only
  assert nearest._kernel_for(*size, 1000, parts=1) is None
  assert nearest._kernel_for(1 << 13, 128, 64, parts=1) is None
  assert nearest._kernel_for(1 << 14, 64, 64, parts=1) is None
