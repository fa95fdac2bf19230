"""The tokenizer contract: what every entry of TOKENIZERS is and refuses.

A tokenizer is a frozen dataclass of hyperparameters with pure methods; what it
learned lives only in the state, a pytree of arrays. The functions here guard
the doors of those methods and turn states into named arrays and back.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks

State = Any  # a pytree of arrays, its own class per tokenizer
MAX_CODE = 2**31 - 1  # codes are int32


@runtime_checkable
class Tokenizer(Protocol):
  """Fitted map between embeddings [N, D] and codes [N, L].

  `fit` refuses bad input; `encode` and `decode` are pure, may be called under
  `jax.jit`, and check values only outside of it. `encode` never trains.
  """

  # True: level l refines what levels < l left. False: tokens are parallel.
  hierarchical: ClassVar[bool]

  @property
  def codebook_sizes(self) -> tuple[int, ...]:
    """K of every level."""
    ...

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: State | None = None,
  ) -> tuple[State, "FitReport"]:
    """Learns a state from all rows; `init` warm-starts from an earlier one."""
    ...

  def encode(
    self, state: State, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Maps rows to codes, 0 <= codes[:, l] < codebook_sizes[l]."""
    ...

  def decode(
    self, state: State, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Maps codes to the rows that they stand for."""
    ...

  def abstract_state(self, embedding_dim: int) -> State:
    """Returns the state's tree of `jax.ShapeDtypeStruct` for that D."""
    ...


@dataclasses.dataclass(frozen=True)
class FitReport:
  """What a fit did, measured on the hard codes of every row that it read."""

  codes: np.ndarray  # int32 [N, L]; the codes of the fitted rows
  num_rows: int  # N
  utilization: tuple[float, ...]  # per level, share of codes in use
  dead_codes: tuple[int, ...]  # per level, codes that no row has
  perplexity: tuple[float, ...]  # per level, exp of the entropy in nats
  gini: tuple[float, ...]  # per level, of rows per code; 0 = balanced
  revived: tuple[int, ...]  # per level, codes re-seeded during the fit
  collision_rate: float  # share of rows whose codes another row has too
  mse: float  # mean over rows of |x - decode(codes)|^2
  relative_mse: float  # the same over that of predicting the mean row
  curves: Mapping[str, np.ndarray]  # e.g. "inertia/level_0" by iteration
  alarms: tuple[str, ...]  # one line each: usable but poor
  seconds: float  # wall time of the fit, compilation included
  # Relative MSE of networks without the codes between them, where known: the
  # ceiling that the codes are under.
  unquantized_relative_mse: float | None = None

  def to_dict(self) -> dict[str, Any]:
    """Returns everything but the codes, as JSON types."""
    fields = dataclasses.asdict(self)
    del fields["codes"]
    fields["curves"] = {
      k: np.asarray(v).tolist() for k, v in self.curves.items()
    }
    return {
      k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()
    }


def is_traced(array: Any) -> bool:
  """Says whether `array` has no value yet, being inside a transformation."""
  return isinstance(array, jax.core.Tracer)


def check_sizes(codebook_sizes: Sequence[int]) -> None:
  """Refuses codebook sizes that int32 codes cannot number.

  Args:
    codebook_sizes: K of every level.

  Raises:
    InputError: No level at all, or a size outside 1..2^31-1.
  """
  if not codebook_sizes:
    raise checks.InputError(
      "codebook_sizes=() names no level; want e.g. (256,)."
    )
  for level, size in enumerate(codebook_sizes):
    if not 1 <= size <= MAX_CODE:
      raise checks.InputError(
        f"codebook_sizes[{level}]={size} is outside 1..2^31-1, what int32 "
        "codes can number; use smaller codebooks and more levels."
      )


def mixed_radix_size(name: str, radices: Sequence[int]) -> int:
  """Returns the product of `radices`: how many values one token can take.

  Args:
    name: What the radices are called in the message.
    radices: Values per digit.

  Raises:
    InputError: The product does not fit in int32.
  """
  size = math.prod(radices)
  if not 1 <= size <= MAX_CODE:
    raise checks.InputError(
      f"{name}={tuple(radices)} makes {size} values a token, outside "
      "1..2^31-1 of an int32 code; use fewer bits a token and more tokens."
    )
  return size


def check_fit(
  x: Float[Array | np.ndarray, "N D"],
  codebook_sizes: Sequence[int] = (),
  *,
  init: State | None = None,
  template: State | None = None,
) -> None:
  """Guards `fit`: finite float32, enough rows for every codebook, not constant.

  Args:
    x: All embeddings.
    codebook_sizes: K of the levels that need K rows to start from.
    init: The warm start, if any.
    template: The abstract state that `init` has to match.

  Raises:
    InputError: Anything else, by name and value.
  """
  checks.check_matrix("embeddings", x)
  num_rows = x.shape[0]
  for level, size in enumerate(codebook_sizes):
    if num_rows < size:
      raise checks.InputError(
        f"Need N >= num_codes; got N={num_rows}, num_codes={size} at level "
        f"{level}; use smaller codebooks or more items."
      )
  if num_rows > 1 and not bool((x[1:] != x[:1]).any()):
    raise checks.InputError(
      f"All {num_rows} embeddings are equal, so no code can tell the items "
      "apart; check the texts or the embedder."
    )
  if init is not None:
    check_like(init, template)


def check_like(state: State, template: State) -> None:
  """Refuses a state that another configuration or embedding width made.

  Args:
    state: What is offered, e.g. as a warm start.
    template: The abstract state wanted.

  Raises:
    InputError: Trees, shapes or dtypes differ; the first difference by name.
  """
  have, want = _named_leaves(state), _named_leaves(template)
  if have.keys() != want.keys():
    odd = sorted(have.keys() ^ want.keys())
    raise checks.InputError(
      f"State does not fit this tokenizer: {', '.join(odd)} on one side only; "
      "use the configuration that made it."
    )
  for name, leaf in want.items():
    got = have[name]
    if got.shape != leaf.shape or got.dtype != leaf.dtype:
      raise checks.InputError(
        f"State does not fit this tokenizer: {name} is {got.dtype}"
        f"{list(got.shape)}, want {leaf.dtype}{list(leaf.shape)}; use the "
        "configuration and embedding width that made it."
      )


def check_rows(x: Float[Array | np.ndarray, "B D"], embedding_dim: int) -> None:
  """Guards `encode`: float32 rows of the fitted width, finite outside jit.

  Args:
    x: Rows to encode.
    embedding_dim: D that the state was fitted on.

  Raises:
    InputError: Another rank, width or dtype; NaN or infinity.
  """
  if np.ndim(x) != 2 or x.shape[1] != embedding_dim:
    raise checks.InputError(
      f"Rows to encode have shape {np.shape(x)}; the tokenizer was fitted on "
      f"width D={embedding_dim}. Use the same embedder, or fit again."
    )
  if x.dtype != np.float32:
    raise checks.InputError(
      f"Rows to encode must be float32, got {x.dtype}; cast with "
      "astype('float32')."
    )
  if not is_traced(x) and not bool(jnp.all(jnp.isfinite(x))):
    checks.check_finite("Rows to encode", np.asarray(x))


def check_codes(
  codes: Int[Array | np.ndarray, "B L"], codebook_sizes: Sequence[int]
) -> None:
  """Guards `decode`: int32 [B, L], in range outside jit.

  Args:
    codes: Codes to decode.
    codebook_sizes: K of every level.

  Raises:
    InputError: Another rank, number of levels or dtype; a code out of range.
  """
  if np.ndim(codes) != 2 or codes.shape[1] != len(codebook_sizes):
    raise checks.InputError(
      f"Codes have shape {np.shape(codes)}, want [B, L={len(codebook_sizes)}]."
    )
  if codes.dtype != np.int32:
    raise checks.InputError(
      f"Codes must be int32, got {codes.dtype}; cast with astype('int32')."
    )
  if is_traced(codes):
    return
  codes = np.asarray(codes)
  bad = (codes < 0) | (codes >= np.asarray(codebook_sizes)[None, :])
  if bad.any():
    row, level = (int(i[0]) for i in np.nonzero(bad))
    raise checks.InputError(
      f"Code {int(codes[row, level])} of row {row}, level {level} is outside "
      f"0..{codebook_sizes[level] - 1}; a SID's extra level is not for decode."
    )


def encode_in_chunks(
  tokenizer: Tokenizer,
  state: State,
  x: Float[np.ndarray, "N D"] | Float[Array, "N D"],
  *,
  chunk_size: int = 1 << 16,
) -> Int32[np.ndarray, "N L"]:
  """Encodes many rows, a chunk on the device at a time.

  Args:
    tokenizer: Any tokenizer.
    state: Its state.
    x: Rows, host or device; a memory map is read chunk by chunk.
    chunk_size: Rows per call of `encode`.

  Returns:
    Host codes of all rows.
  """
  parts, running = [], None
  for start in range(0, x.shape[0], chunk_size):
    # On the device at once: both the check and the codes read it there.
    rows = jnp.asarray(x[start : start + chunk_size])
    codes = tokenizer.encode(state, rows)
    # Fetched while the next chunk is read.
    if running is not None:
      parts.append(np.asarray(running))
    running = codes
  parts.append(np.asarray(running))
  return np.concatenate(parts)


def _named_leaves(state: State) -> dict[str, Any]:
  """The leaves of a state by path, e.g. "codebooks/0"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def state_to_arrays(state: State) -> dict[str, np.ndarray]:
  """Returns a state's leaves as host arrays named by their path.

  Args:
    state: Any tokenizer's state.
  """
  return {name: np.asarray(leaf) for name, leaf in _named_leaves(state).items()}


def state_from_arrays(
  template: State, arrays: Mapping[str, np.ndarray]
) -> State:
  """Rebuilds a state from what `state_to_arrays` returned.

  Args:
    template: `tokenizer.abstract_state(embedding_dim)`.
    arrays: Host arrays by path.

  Returns:
    A state of device arrays.

  Raises:
    InputError: A name, shape or dtype differs from the template.
  """
  arrays = dict(arrays)
  want = _named_leaves(template)
  if arrays.keys() != want.keys():
    odd = sorted(arrays.keys() ^ want.keys())
    raise checks.InputError(
      f"State does not fit this tokenizer: {', '.join(odd)} on one side only; "
      "use the configuration that made it."
    )
  leaves = [jnp.asarray(arrays[name]) for name in want]
  state = jax.tree.unflatten(jax.tree.structure(template), leaves)
  check_like(state, template)
  return state
