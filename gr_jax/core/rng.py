"""Named key streams; the only place that folds a string into a key."""

import zlib

import jax
import numpy as np


def stream(key: jax.Array, name: str) -> jax.Array:
  """Returns the key of a named stream of random numbers.

  A stream's numbers depend on the root key and its own name alone, so adding
  or reordering streams changes no other stream.

  Args:
    key: A typed key, scalar. It may be used for other names too.
    name: What the numbers are for, e.g. "dropout".

  Returns:
    A typed key, scalar.
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def numpy_generator(key: jax.Array, name: str) -> np.random.Generator:
  """Returns a host generator for the stream `name` of `key`.

  Args:
    key: A typed key, scalar.
    name: What the numbers are for, e.g. "synthetic_users".
  """
  words = np.asarray(jax.random.key_data(stream(key, name))).ravel()
  return np.random.default_rng([int(word) for word in words])
