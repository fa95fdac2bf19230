"""Mini-batch residual k-means, for catalogs larger than memory."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, nearest, progress, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import base, kmeans, reporting
from gr_jax.tokenizers.residual_kmeans import (
  CodebooksState,
  abstract_codebooks,
  decode_sum,
  encode_residual,
  residual_distances,
)

# Consecutive batches that are read and shuffled together: a memory map is read
# in long runs, and a batch still mixes rows that lie apart.
_BATCHES_PER_READ = 16
_SEED_ROWS_PER_CODE = 64
# Weight that rows of earlier passes keep. They were assigned to codes that
# have moved away since: on Beauty, forgetting half of them brings 10 passes
# from 1.6 % above Lloyd's inertia to 0.3 %.
_PASS_DECAY = 0.5


@functools.partial(jax.jit, static_argnames="split")
def update(
  state: kmeans.KMeansState,
  x: Float[Array, "B D"],
  *,
  earlier: tuple[jax.Array, ...] = (),
  split: RowSplit | None = None,
) -> kmeans.KMeansState:
  """Moves each code towards its rows of one batch (Sculley 2010, Algorithm 1).

  A code moves by 1 / (rows it ever had) for every row, in whatever order:
  c <- (n c + sum of its rows) / (n + number of its rows).

  Args:
    state: Before; `counts` are the rows that each code ever had.
    x: Batch.
    earlier: Codebooks of the levels before; their residuals are quantized.
    split: How the batch lies on several devices.
  """
  run = functools.partial(_update, split=split)
  if split is not None:
    run = split.run(run, takes_rows=(False, True, False))
  return run(state, x, earlier)


def _update(
  state: kmeans.KMeansState,
  x: jax.Array,
  earlier: tuple[jax.Array, ...],
  *,
  split: RowSplit | None,
) -> kmeans.KMeansState:
  """Implements `update` on one device's rows."""
  found = kmeans.measure(state.codebook, residuals(earlier, x), split)
  counts = state.counts + found.counts  # [K]
  moved = state.counts[:, None] * state.codebook + found.sums
  return kmeans.KMeansState(
    step=state.step + 1,
    codebook=jnp.where(
      counts[:, None] > 0,
      moved / jnp.maximum(counts, 1.0)[:, None],
      state.codebook,
    ),
    counts=counts,
    inertia=state.inertia + found.inertia,
  )


@jax.jit
def residuals(
  earlier: tuple[jax.Array, ...], x: Float[Array | np.ndarray, "B D"]
) -> Float[Array, "B D"]:
  """Returns what the levels fitted so far leave of a batch."""
  residual = jnp.asarray(x)
  for codebook in earlier:
    residual = residual - codebook[nearest.nearest_code(residual, codebook)]
  return residual


def read_batches(
  shards: Sequence[np.ndarray],
  batch_size: int,
  generator: np.random.Generator,
) -> Iterator[np.ndarray]:
  """Yields every row once, in batches, shuffled as far as reading allows.

  Runs of 16 batches of consecutive rows come in random order and are shuffled
  inside; the next run is read while the last one is used. Rows that do not
  fill a batch at the end of a run form a smaller one.

  Args:
    shards: float32 [N_i, D] each, in memory or memory maps.
    batch_size: Rows a batch.
    generator: Source of the order.
  """
  read = functools.partial(np.array, dtype=np.float32)
  for rows, chosen in _read(shards, batch_size, generator, read):
    yield rows[chosen]


def read_batches_to(
  mesh: Mesh | None,
  shards: Sequence[np.ndarray],
  batch_size: int,
  generator: np.random.Generator,
) -> Iterator[tuple[Float[Array, "M D"], RowSplit | None]]:
  """Yields the batches of `read_batches` on devices, which also shuffle them.

  Args:
    mesh: Devices that share each run and batch, every process reading its
      part of a run alone; None for the default device.
    shards: As for `read_batches`.
    batch_size: Rows a batch.
    generator: Source of the order.

  Yields:
    A batch and how it lies; on a mesh, rows of another batch fill parts up.
  """
  if mesh is None:

    def read(rows: np.ndarray) -> jax.Array:
      return jnp.asarray(np.array(rows, np.float32))

    for rows, chosen in _read(shards, batch_size, generator, read):
      yield _take(rows, chosen), None
    return

  def place(rows: np.ndarray) -> jax.Array:
    return RowSplit(mesh, len(rows)).place(rows)

  for rows, chosen in _read(shards, batch_size, generator, place):
    split = RowSplit(mesh, len(chosen))
    filled = np.zeros(split.part_size * mesh_lib.row_parts(mesh), np.int32)
    filled[: len(chosen)] = chosen
    yield _take(rows, split.copy(filled), mesh=mesh), split


def _read(
  shards: Sequence[np.ndarray],
  batch_size: int,
  generator: np.random.Generator,
  load: Callable[[np.ndarray], Any],
) -> Iterator[tuple[Any, Int32[np.ndarray, "B"]]]:
  """Yields runs, loaded in a thread, and which of their rows form a batch."""
  length = batch_size * _BATCHES_PER_READ
  runs = [
    (shard, start)
    for shard in range(len(shards))
    for start in range(0, shards[shard].shape[0], length)
  ]

  def rows_of(run: int) -> np.ndarray:
    shard, start = runs[run]
    return shards[shard][start : start + length]

  with futures.ThreadPoolExecutor(1) as pool:
    order = generator.permutation(len(runs)).tolist()
    waiting = pool.submit(load, rows_of(order[0]))
    for turn, run in enumerate(order):
      rows = waiting.result()
      if turn + 1 < len(runs):
        waiting = pool.submit(load, rows_of(order[turn + 1]))
      shuffled = generator.permutation(len(rows_of(run))).astype(np.int32)
      for start in range(0, len(shuffled), batch_size):
        yield rows, shuffled[start : start + batch_size]


@functools.partial(jax.jit, static_argnames="mesh")
def _take(
  rows: jax.Array, index: jax.Array, *, mesh: Mesh | None = None
) -> jax.Array:
  """Returns some rows, split over a mesh."""
  if mesh is None:
    return rows[index]
  where = mesh_lib.batch_sharding(mesh)
  return lax.with_sharding_constraint(rows[index], where)


def check_shards(shards: Sequence[np.ndarray], num_codes: int) -> None:
  """Guards `fit_shards` in one pass over the shards.

  Args:
    shards: Rows.
    num_codes: Most codes of any level.

  Raises:
    InputError: Unequal widths, another dtype, too few rows, NaN or infinity,
      all rows equal.
  """
  if not shards or not sum(shard.shape[0] for shard in shards):
    raise checks.InputError("No shards, or no rows in them.")
  first, varied = None, False
  for index, shard in enumerate(shards):
    if shard.ndim != 2 or not shard.shape[1] or shard.dtype != np.float32:
      raise checks.InputError(
        f"Shard {index} must be float32, got {shard.dtype}"
        f"{list(shard.shape)}; want [N, D], cast with astype('float32')."
      )
    if shard.shape[1] != shards[0].shape[1]:
      raise checks.InputError(
        f"Shard {index} has width {shard.shape[1]}, shard 0 has "
        f"{shards[0].shape[1]}; use one embedder for all."
      )
    for start in range(0, shard.shape[0], 1 << 16):
      rows = np.asarray(shard[start : start + (1 << 16)])
      checks.check_finite(f"embeddings (shard {index}, from {start})", rows)
      first = rows[:1] if first is None else first
      varied = varied or bool((rows != first).any())
  num_rows = sum(shard.shape[0] for shard in shards)
  if num_rows < num_codes:
    raise checks.InputError(
      f"Need N >= num_codes; got N={num_rows}, {num_codes=}; use smaller "
      "codebooks or more items."
    )
  if not varied:
    raise checks.InputError(
      f"All {num_rows} embeddings are equal, so no code can tell the items "
      "apart; check the texts or the embedder."
    )


def _reseed(
  state: kmeans.KMeansState,
  dead: np.ndarray,
  rows: np.ndarray,
  generator: np.random.Generator,
) -> tuple[kmeans.KMeansState, int]:
  """Moves codes that no row of a pass chose to rows of its last batch."""
  chosen = generator.permutation(len(rows))[: dead.sum()]
  if not len(chosen):
    return state, 0
  slots = np.flatnonzero(dead)[: len(chosen)]
  codebook, counts = np.array(state.codebook), np.array(state.counts)
  codebook[slots], counts[slots] = rows[chosen], 1.0
  return (
    state.replace(codebook=jnp.asarray(codebook), counts=jnp.asarray(counts)),
    len(chosen),
  )


@dataclasses.dataclass(frozen=True)
class Learned:
  """What the passes over the rows give."""

  state: CodebooksState
  curves: Mapping[str, np.ndarray]  # "inertia/level_0" by pass
  revived: tuple[int, ...]  # per level, codes re-seeded


@dataclasses.dataclass(frozen=True)
class MiniBatchResidualKMeans:
  """Residual mini-batch k-means (Sculley 2010; what GRID trains).

  Reads batches in a stream, level after level, so the catalog may lie in
  memory-mapped shards: see `fit_shards`.
  """

  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  batch_size: int = 4096
  num_passes: int = 10  # over all rows, per level

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    if self.batch_size < 1 or self.num_passes < 1:
      raise checks.InputError(
        f"Want batch_size >= 1 and num_passes >= 1; got {self.batch_size=}, "
        f"{self.num_passes=}."
      )

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: CodebooksState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[CodebooksState, base.FitReport]:
    """Fits on one array, which may be a memory map; see `fit_shards`."""
    rows = x if isinstance(x, np.ndarray) else np.asarray(x)
    return self.fit_shards([rows], key=key, init=init, mesh=mesh)

  def fit_shards(
    self,
    shards: Sequence[np.ndarray],
    *,
    key: jax.Array,
    init: CodebooksState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[CodebooksState, base.FitReport]:
    """Fits level after level, streaming batches from the shards.

    Args:
      shards: float32 [N_i, D] each, e.g. `np.load(path, mmap_mode="r")`.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share each batch; None for one.

    Returns:
      The codebooks; curves hold the inertia by pass of each level, measured
      while the codes still move.

    Raises:
      InputError: See `check_shards`.
    """
    started = time.monotonic()
    check_shards(shards, max(self.codebook_sizes))
    if init is not None:
      base.check_like(init, self.abstract_state(shards[0].shape[1]))
    learned = self.learn_shards(shards, key=key, init=init, mesh=mesh)
    return learned.state, reporting.fit_report(
      self,
      learned.state,
      list(shards),
      started=started,
      revived=learned.revived,
      curves=learned.curves,
    )

  def learn_shards(
    self,
    shards: Sequence[np.ndarray],
    *,
    key: jax.Array,
    init: CodebooksState | None = None,
    mesh: Mesh | None = None,
  ) -> Learned:
    """Does `fit_shards`' passes alone: no checks before, no report after."""
    generator = rng.numpy_generator(key, "batches")
    codebooks, curves, revived = [], {}, []
    total = len(self.codebook_sizes) * self.num_passes
    with progress.bar("mini-batch k-means", total=total, unit="pass") as done:
      for level, size in enumerate(self.codebook_sizes):
        earlier = tuple(codebooks)
        if init is not None:
          first = init.codebooks[level]
        else:
          sample = next(
            read_batches(
              shards,
              max(_SEED_ROWS_PER_CODE * size, self.batch_size),
              generator,
            )
          )
          sample = self._enough(sample, shards, size)
          first = kmeans.init(
            residuals(earlier, sample),
            num_codes=size,
            key=jax.random.fold_in(key, level),
          ).codebook
        state = kmeans.from_codebook(first)
        before = earlier
        if mesh is not None:
          before = RowSplit(mesh, 1).copy(earlier)
        inertias, reseeded = [], 0
        for number in range(self.num_passes):
          kept = state.counts * _PASS_DECAY
          state = state.replace(counts=kept, inertia=jnp.float32(0.0))
          for batch, split in read_batches_to(
            mesh, shards, self.batch_size, generator
          ):
            if split is not None:
              state = split.copy(state)
            state = update(state, batch, earlier=before, split=split)
          inertias.append(float(state.inertia))
          if number + 1 < self.num_passes:
            dead = np.asarray(state.counts == kept)
            if split is not None:
              batch = split.to_host(batch)
            rows = residuals(earlier, batch)
            state, count = _reseed(state, dead, np.asarray(rows), generator)
            reseeded += count
          done(1)
        codebooks.append(jnp.asarray(np.asarray(state.codebook)))
        curves[f"inertia/level_{level}"] = np.array(inertias)
        revived.append(reseeded)
    state = CodebooksState(codebooks=tuple(codebooks))
    return Learned(state, curves, tuple(revived))

  def _enough(
    self, sample: np.ndarray, shards: Sequence[np.ndarray], size: int
  ) -> np.ndarray:
    """Adds the first rows of all shards to a sample that is too small."""
    if len(sample) >= size:
      return sample
    rows = [np.asarray(shard[:size], np.float32) for shard in shards]
    return np.concatenate(rows)

  def encode(
    self, state: CodebooksState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the codes of rows, nearest code level by level."""
    base.check_rows(x, state.codebooks[0].shape[1])
    return encode_residual(state, x)

  def decode(
    self, state: CodebooksState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the sum of the chosen codes."""
    base.check_codes(codes, self.codebook_sizes)
    return decode_sum(state, codes)

  def last_level_distances(
    self,
    state: CodebooksState,
    x: Float[Array | np.ndarray, "B D"],
    codes: Int[Array | np.ndarray, "B L"],
  ) -> Float[Array, "B K"]:
    """Returns |r - c_k|^2 to the last level's codes; `codes` lead to r."""
    return residual_distances(state, x, codes)

  def abstract_state(self, embedding_dim: int) -> CodebooksState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return abstract_codebooks(self.codebook_sizes, embedding_dim)
