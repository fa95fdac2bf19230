"""FSQ: numbering is one-to-one, every code reachable, rounding idempotent."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.tokenizers import fsq


def test_numbering_by_hand():
  digits = jnp.array([[0, 0, 0], [7, 0, 0], [0, 1, 0], [7, 7, 3]])
  codes = fsq.digits_to_code(digits, (8, 8, 4))
  np.testing.assert_array_equal(codes, [0, 7, 8, 255])


@pytest.mark.parametrize("levels", [(2,), (8, 8, 4), (3, 5, 2, 4)])
def test_numbering_is_one_to_one(levels):
  everything = np.array(list(itertools.product(*map(range, levels))), np.int32)
  codes = np.asarray(fsq.digits_to_code(jnp.asarray(everything), levels))
  np.testing.assert_array_equal(np.sort(codes), np.arange(np.prod(levels)))
  back = fsq.code_to_digits(jnp.asarray(codes), levels)
  np.testing.assert_array_equal(back, everything)


@pytest.mark.parametrize("levels", [(2, 7), (8, 8, 4)])
def test_every_code_is_reachable_and_quantizing_twice_changes_nothing(levels):
  codes = jnp.arange(np.prod(levels), dtype=jnp.int32)
  digits = fsq.code_to_digits(codes, levels).astype(jnp.float32)
  top = np.array(levels, np.float32)[None] - 1
  # A real vector that the sigmoid maps onto the digits; the ends of the range
  # are only reached by rounding, from anything beyond.
  share = np.clip(np.asarray(digits) / top, 0.01, 0.99)
  z = jnp.asarray(np.log(share / (1 - share)))
  again = jnp.round(fsq.bound(z, levels)).astype(jnp.int32)
  np.testing.assert_array_equal(fsq.digits_to_code(again, levels), codes)


def test_rounding_passes_the_gradient():
  gradient = jax.grad(lambda x: jnp.sum(fsq.round_through(x) * 3.0))
  np.testing.assert_allclose(gradient(jnp.array([0.2, 1.7])), [3.0, 3.0])
  np.testing.assert_array_equal(
    fsq.round_through(jnp.array([0.2, 1.7])), [0, 2]
  )


def test_values_are_spread_evenly_over_the_unit_interval():
  values = fsq.to_unit(jnp.array([[0.0], [1.0], [2.0]]), (3,))
  np.testing.assert_allclose(values, [[-1], [0], [1]])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"levels": (8, 1)}, "levels of 2 or more"),
    ({"levels": (2**16, 2**15)}, "makes 2147483648 values a token"),
    ({"num_tokens": 0}, "num_tokens=0"),
  ],
)
def test_impossible_levels_are_refused(options, message):
  with pytest.raises(checks.InputError, match=message):
    fsq.FSQ(**options)
