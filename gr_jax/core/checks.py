"""Host-side checks at the door: every refusal of input is an InputError.

None of these may run under `jax.jit`: they read values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import jax
import numpy as np


class InputError(ValueError):
  """Input that a user can mend: one line naming the value and the remedy.

  Mains print it without a traceback and exit with status 2; any other
  exception is a defect of this library and keeps its traceback.
  """


def check_known(name: str, known: Iterable[str], what: str) -> None:
  """Refuses a name that is not in `known`, suggesting the closest one.

  Args:
    name: The name that was asked for.
    known: All names that exist.
    what: What is being named, e.g. "tokenizer".

  Raises:
    InputError: `name` is not known.
  """
  known = sorted(known)
  if name in known:
    return
  close = difflib.get_close_matches(str(name), known, n=1)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  raise InputError(f"Unknown {what} {name!r}; known: {', '.join(known)}.{hint}")


def check_at_least(
  least: int, **options: int | float | tuple[int, ...]
) -> None:
  """Refuses numbers below a bound, and NaN.

  Args:
    least: The smallest number accepted.
    **options: Numbers, or tuples of them, by name.

  Raises:
    InputError: Some number is smaller.
  """
  for name, value in options.items():
    if not np.min(np.asarray(value, float), initial=np.inf) >= least:
      raise InputError(f"{name}={value}; want >= {least}.")


def check_finite(name: str, array: np.ndarray | jax.Array) -> None:
  """Refuses NaN and infinity, naming the first bad row and the count.

  Args:
    name: What the array is called in the message.
    array: Any float array of rank >= 1, host or device.

  Raises:
    InputError: Some value is NaN or infinite.
  """
  array = np.asarray(array)
  bad = ~np.isfinite(array)
  if not bad.any():
    return
  rows = np.unique(np.nonzero(bad)[0])
  raise InputError(
    f"{name} holds {int(bad.sum())} NaN or infinite values in {rows.size} "
    f"rows, the first in row {int(rows[0])}; recompute or drop those rows."
  )


def check_matrix(
  name: str, x: np.ndarray | jax.Array, *, min_rows: int = 1
) -> None:
  """Refuses anything but a finite float32 matrix of at least `min_rows` rows.

  Args:
    name: What the array is called in the message.
    x: The candidate, host or device.
    min_rows: Fewest rows accepted.

  Raises:
    InputError: Wrong rank, dtype, too few rows or columns, NaN, infinity.
  """
  if np.ndim(x) != 2 or np.shape(x)[1] == 0:
    raise InputError(f"{name} must be a matrix [N, D]; got {np.shape(x)}.")
  if np.dtype(x.dtype) != np.float32:
    raise InputError(
      f"{name} must be float32, got {x.dtype}; cast with astype('float32')."
    )
  if np.shape(x)[0] < min_rows:
    raise InputError(
      f"{name} needs at least {min_rows} rows; got {np.shape(x)[0]}."
    )
  check_finite(name, x)
