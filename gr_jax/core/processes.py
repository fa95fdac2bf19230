"""The processes of a job: who writes, what all must agree on.

A job is one process, or several that `jax.distributed.initialize` joined.
With one process every function here returns at once. All others must be
called by every process of the job, in the same order.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from gr_jax.core import checks


def count() -> int:
  """Returns how many processes the job has."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this is process 0, which alone writes artifacts and reports."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Returns when every process is here.

  Args:
    name: What is waited for; must be the same everywhere.
  """
  if count() > 1:
    multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  if count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def first_decides(flag: bool) -> bool:
  """Returns process 0's flag on every process."""
  if count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.int32(flag))[0])


def check_same(name: str, value: str) -> None:
  """Refuses a job whose processes hold different things.

  Args:
    name: What is compared, for the message.
    value: Its description or hash.

  Raises:
    InputError: Some process differs from process 0; raised on all.
  """
  if count() == 1:
    return
  digest = hashlib.sha256(value.encode()).digest()
  digests = multihost_utils.process_allgather(
    np.frombuffer(digest, np.uint8)
  )  # [processes, 32]
  others = np.flatnonzero((digests != digests[:1]).any(axis=1))
  if others.size:
    raise checks.InputError(
      f"Process {', '.join(map(str, others))} of {count()} holds another "
      f"{name} than process 0; start all with the same flags on one shared "
      "--workdir and the same files."
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Makes bad input that one process sees an error on all of them.

  Otherwise the others would wait for it in their next collective.

  Raises:
    InputError: This process's own, or one that names who refused.
  """
  own = None
  try:
    yield
  except checks.InputError as error:
    own = error
  if count() > 1:
    flags = multihost_utils.process_allgather(np.int32(own is not None))
    if own is None and flags.any():
      who = ", ".join(map(str, np.flatnonzero(flags)))
      raise checks.InputError(
        f"Process {who} of {count()} refused its input; its log says why."
      )
  if own is not None:
    raise own
