"""The kernel of `core.nearest_kernel` for Hopper GPUs (H100, H200).

Written in Pallas for its Mosaic backend. One warpgroup of a program copies
blocks of codes into a ring on chip, the others multiply them with 64 rows each
and look for minima, so that products of some run beside minima of others. A
program takes rows again and again until none are left.

A squared distance is kept as the integer of its bits, whose lowest bits give
way to the number of the block of codes: one minimum a score finds both.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from gr_jax.core import nearest_kernel, pallas_gpu

_MOST_WIDTH = {1: 448, 2: 384}  # by parts: rows stay on chip
_FEWEST_CODES = 512
_GROUP_ROWS = 64  # of a warpgroup: one wgmma instruction's
_TILE = 128  # codes of one product
_FOLD = 64  # codes side by side that keep a best of their own
_NOTHING = (1 << 31) - 1
_COPY_REGISTERS = 40


class Tiles(NamedTuple):
  """How a program cuts up its work."""

  groups: int  # warpgroups that compute
  piece: int  # columns of codes in a slot of the ring
  codes: int  # codes in a slot
  slots: int
  registers: int  # a thread's that computes


def supports(num_codes: int, width: int, *, parts: int) -> bool:
  """Whether the device can, with rows that fit on chip, and faster."""
  # Few products of narrow rows in two parts: `nearest_kernel` is faster.
  is_small = parts == 2 and width <= 128 and num_codes < _FEWEST_CODES
  fits = width <= _MOST_WIDTH[parts] and not is_small
  return fits and pallas_gpu.is_hopper()


def suited(width: int, parts: int) -> Tiles:
  """Returns tiles for a width; measured in docs/balanced_kmeans.md."""
  if parts == 1:
    if width == 64:
      return Tiles(groups=3, piece=64, codes=256, slots=3, registers=152)
    if width == 128:
      return Tiles(groups=3, piece=128, codes=128, slots=4, registers=152)
    if width % 128 == 0:
      return Tiles(groups=2, piece=128, codes=128, slots=3, registers=224)
    return Tiles(groups=2, piece=64, codes=128, slots=6, registers=224)
  if width <= 128:
    return Tiles(groups=2, piece=64, codes=128, slots=3, registers=224)
  return Tiles(groups=1, piece=64, codes=128, slots=3, registers=232)


def best_two(
  x: jax.Array,
  codebook: jax.Array,
  shift: jax.Array,
  *,
  parts: int,
  tiles: Tiles | None = None,
  num_programs: int | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, ...]:
  """As `nearest_kernel.best_two`, but scores are squared distances.

  Args:
    x: Rows [N, D], as many as a program takes at once or more.
    codebook: float32 [K, D], shifted.
    shift: float32 [D], to be subtracted from rows.
    parts: bfloat16 numbers that stand for a float32: 1 or 2.
    tiles: Sizes, by default those that measured best.
    num_programs: Programs, by default one a processor.
    interpret: Runs in plain JAX, for tests without a GPU.

  Returns:
    The code [N] and the squared distance [N]; with two parts also the squared
    length of the shifted row [N] and the second smallest squared distance [N].
    Distances are cut off by `cut_off` of them.
  """
  from jax.experimental.pallas import mosaic_gpu as plgpu

  num_rows, width = x.shape
  columns = (0, -width % 64)
  tiles = suited(width + columns[1], parts) if tiles is None else tiles
  extra = (0, -codebook.shape[0] % tiles.codes)
  norms = jnp.sum(jnp.square(codebook), axis=-1)
  norms = jnp.pad(norms, extra, constant_values=jnp.inf)
  codes = jnp.pad(-2.0 * codebook, (extra, columns)).T
  codes = jnp.stack(nearest_kernel.split(codes)[:parts])  # [parts, D, K]
  if columns[1]:
    x, shift = jnp.pad(x, ((0, 0), columns)), jnp.pad(shift, columns)
  num_programs = num_programs or pallas_gpu.num_processors()
  kernel = _Kernel(plgpu, x, codes, tiles, num_programs, interpret)
  numbers = [jnp.int32, *[jnp.float32] * (1 if parts == 1 else 3)]
  run = plgpu.kernel(
    kernel.body,
    out_type=[jax.ShapeDtypeStruct((num_rows,), n) for n in numbers],
    scratch_types=[kernel.scratch()],
    grid=(kernel.num_programs,),
    grid_names=("program",),
    num_threads=tiles.groups + 1,
    thread_name="group",
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
    interpret=_interpreter(plgpu) if interpret else None,
  )
  return tuple(run(x, shift, norms, codes))


def cut_off(num_codes: int) -> float:
  """The share of a distance that the number of a block may take, at most."""
  # Twice as much as that: distances were rounded before they were cut.
  return 2.0 ** (_number_bits(num_codes) - 22)


def _number_bits(num_codes: int) -> int:
  return (-(-num_codes // _FOLD) - 1).bit_length()


def _interpreter(plgpu: Any) -> Any:
  """How to interpret a kernel; jax 0.10 has no public name for it."""
  if hasattr(plgpu, "InterpretGPUParams"):
    return plgpu.InterpretGPUParams()
  from jax._src.pallas.mosaic_gpu.interpret import params

  return params.InterpretGPUParams()


class _Kernel:
  """The kernel for given shapes."""

  def __init__(self, plgpu, x, codes, tiles, num_programs, interpret):
    self.plgpu, self.tiles, self.interpret = plgpu, tiles, interpret
    self.num_rows, self.width = x.shape
    self.parts, _, self.num_codes = codes.shape
    self.rows = tiles.groups * _GROUP_ROWS
    self.num_blocks = pl.cdiv(self.num_rows, self.rows)
    self.num_programs = min(num_programs, self.num_blocks)
    self.pieces = self.width // tiles.piece
    self.turns = self.num_codes // tiles.codes  # slots by codes of a block
    self.low_bits = (1 << _number_bits(self.num_codes)) - 1
    # Rows that fit stay in registers, or else on chip. The interpreter knows
    # the latter alone.
    small = self.pieces == 1 and self.parts * self.width <= 128
    self.in_registers = small and not interpret
    # Narrow rows are copied ahead of time.
    self.ahead = self.width == 64 and x.dtype in (jnp.float32, jnp.bfloat16)
    self.dtype = x.dtype

  def scratch(self) -> dict[str, Any]:
    """What is on chip."""
    plgpu, tiles = self.plgpu, self.tiles

    def tiled(shape, dtype):
      columns = 128 // jnp.dtype(dtype).itemsize
      transforms = (
        plgpu.TilingTransform((8, columns)),
        plgpu.SwizzleTransform(128),
      )
      return plgpu.SMEM(shape, dtype, transforms=transforms)

    def barriers(arrivals, count):
      return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)

    rows = (tiles.groups, self.pieces, self.parts, _GROUP_ROWS, tiles.piece)
    found = {
      "ring": tiled(
        (tiles.slots, self.parts, tiles.piece, tiles.codes), jnp.bfloat16
      ),
      "norms": plgpu.SMEM((tiles.slots, tiles.codes), jnp.float32),
      "full": barriers(2, tiles.slots),
      "empty": barriers(tiles.groups, tiles.slots),
    }
    if not self.in_registers:
      found["left"] = tiled(rows, jnp.bfloat16)
    if self.ahead:
      found["rows"] = tiled((2, self.rows, self.width), self.dtype)
      found["rows_full"] = barriers(1, 2)
      found["rows_empty"] = barriers(tiles.groups, 2)
    return found

  def body(self, x, shift, norms, codes, *rest) -> None:
    """One program: every warpgroup runs this."""
    *outputs, scratch = rest
    group, program = lax.axis_index("group"), lax.axis_index("program")
    # How many blocks of rows are this program's: every num_programs-th.
    blocks = (
      self.num_blocks - program + self.num_programs - 1
    ) // self.num_programs

    def first_row(block):
      # The last block starts early and writes some rows twice, the same.
      block = program + block * self.num_programs
      return jnp.minimum(block * self.rows, self.num_rows - self.rows)

    @pl.when(group < self.tiles.groups)
    def _():
      self.plgpu.set_max_registers(self.tiles.registers, action="increase")

      def one(block, _):
        first = first_row(block) + group * _GROUP_ROWS
        left, length = self._rows(x, shift, scratch, block, first, group)
        best = self._minima(scratch, left, length, block)
        self._write(outputs, pl.ds(first, _GROUP_ROWS), length, *best)
        return ()

      lax.fori_loop(0, blocks, one, ())

    @pl.when(group == self.tiles.groups)
    def _():
      self.plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
      self._copy(x, norms, codes, scratch, blocks, first_row)

  def _copy(self, x, norms, codes, scratch, blocks, first_row) -> None:
    """Keeps the ring, and the rows ahead, full."""
    copy, tiles = self.plgpu.copy_gmem_to_smem, self.tiles
    each = self.turns * self.pieces

    def one(at, _):
      slot, place = lax.rem(at, tiles.slots), lax.rem(at, each)
      if self.ahead:
        block = at // each
        side = lax.rem(block, 2)

        @pl.when(place == 0)
        def _():
          @pl.when(block >= 2)
          def _():
            self.plgpu.barrier_wait(scratch["rows_empty"].at[side])

          mine = pl.ds(first_row(block), self.rows)
          copy(
            x.at[mine], scratch["rows"].at[side], scratch["rows_full"].at[side]
          )

      @pl.when(at >= tiles.slots)
      def _():
        self.plgpu.barrier_wait(scratch["empty"].at[slot])

      turn, piece = place // self.pieces, lax.rem(place, self.pieces)
      those = pl.ds(turn * tiles.codes, tiles.codes)
      columns = pl.ds(piece * tiles.piece, tiles.piece)
      full = scratch["full"].at[slot]
      copy(norms.at[those], scratch["norms"].at[slot], full)
      copy(codes.at[:, columns, those], scratch["ring"].at[slot], full)
      return ()

    def drain(barriers, count, total):
      def one(at, _):
        self.plgpu.barrier_wait(barriers.at[lax.rem(at, count)])
        return ()

      lax.fori_loop(jnp.maximum(total, count), total + count, one, ())

    lax.fori_loop(0, blocks * each, one, ())
    drain(scratch["empty"], tiles.slots, blocks * each)
    if self.ahead:
      drain(scratch["rows_empty"], 2, blocks)

  def _rows(self, x, shift, scratch, block, first, group):
    """Shifted rows of a warpgroup as products want them, and their lengths."""
    layout, tiles = self.plgpu.Layout.WGMMA, self.tiles
    shape = (_GROUP_ROWS, tiles.piece)
    length = self._laid(jnp.zeros(_GROUP_ROWS, jnp.float32), layout.reduce(1))
    left = []
    if self.ahead:
      side = lax.rem(block, 2)
      self.plgpu.barrier_wait(scratch["rows_full"].at[side])
    for piece in range(self.pieces):
      columns = pl.ds(piece * tiles.piece, tiles.piece)
      if self.ahead:
        mine = pl.ds(group * _GROUP_ROWS, _GROUP_ROWS)
        rows = self._load(scratch["rows"].at[side, mine], layout)
      else:
        mine = pl.ds(first, _GROUP_ROWS)
        rows = self._load(x.at[mine, columns], layout)
      moved = self._load(shift.at[columns], layout.reduce(0))
      rows = rows.astype(jnp.float32) - lax.broadcast_in_dim(moved, shape, (1,))
      length = length + jnp.sum(rows * rows, axis=1)
      digits = nearest_kernel.split(rows)[: self.parts]
      if self.in_registers:
        left += digits
      else:
        for part, digit in enumerate(digits):
          scratch["left"][group, piece, part] = digit
    if self.ahead:
      self.plgpu.barrier_arrive(scratch["rows_empty"].at[side])
    if not self.in_registers:
      self.plgpu.commit_smem()
      left = scratch["left"].at[group]
    return left, length

  def _minima(self, scratch, left, length, block):
    """The smallest packed distances at each place, and second smallest."""
    plgpu, tiles, pieces = self.plgpu, self.tiles, self.pieces
    layout = plgpu.Layout.WGMMA
    shape = (_GROUP_ROWS, _TILE)
    far = lax.broadcast_in_dim(length, shape, (0,))
    pairs = [(0, 0), (0, 1), (1, 0)][: 1 if self.parts == 1 else 3]
    count = tiles.codes // _TILE
    assert pieces == 1 or count == 1  # a slot of some columns holds one tile

    def turn(turn, best):
      at = (block * self.turns + turn) * pieces
      slots = [lax.rem(at + piece, tiles.slots) for piece in range(pieces)]
      plgpu.barrier_wait(scratch["full"].at[slots[0]])
      for tile in range(count):
        those = pl.ds(tile * _TILE, _TILE)
        norms = self._load(
          scratch["norms"].at[slots[0], those], layout.reduce(0)
        )
        start = lax.broadcast_in_dim(norms, shape, (1,))
        start = start + far if self.parts == 1 else start

        def multiply(total, those=those):
          for piece in range(pieces):
            if piece > 0:
              plgpu.barrier_wait(scratch["full"].at[slots[piece]])
            for i, j in pairs:
              row = left[i] if self.in_registers else left.at[piece, i]
              right = scratch["ring"].at[slots[piece], j, :, those]
              plgpu.wgmma(total, row, right)
            if piece > 0:
              # All but the last products are done with their slot.
              plgpu.wgmma_wait(len(pairs))
              plgpu.barrier_arrive(scratch["empty"].at[slots[piece - 1]])

        score = self._accumulate(multiply, start)
        if tile == count - 1:
          plgpu.barrier_arrive(scratch["empty"].at[slots[-1]])
        score = score if self.parts == 1 else score + far
        bits = lax.bitcast_convert_type(score, jnp.int32)
        bits = bits & jnp.int32(~self.low_bits)
        for fold in range(_TILE // _FOLD):
          columns = slice(fold * _FOLD, (fold + 1) * _FOLD)
          number = (turn * count + tile) * (_TILE // _FOLD) + fold
          new = bits[:, columns] | number
          if self.parts > 1:
            second = jnp.minimum(best[1], jnp.maximum(best[0], new))
            best = jnp.minimum(best[0], new), second
          else:
            best = (jnp.minimum(best[0], new),)
      return best

    nothing = jnp.full((_GROUP_ROWS, _FOLD), _NOTHING, jnp.int32)
    start = (self._laid(nothing, layout),) * self.parts
    return lax.fori_loop(0, self.turns, turn, start)

  def _write(self, outputs, mine, length, best, second=None) -> None:
    """Reduces over places and writes what was found."""
    shape, low_bits = best.shape, jnp.int32(self.low_bits)
    low = jnp.min(best, axis=1)
    place = lax.broadcasted_iota(jnp.int32, shape, 1)
    place = self._laid(place, self.plgpu.Layout.WGMMA)
    is_low = best == lax.broadcast_in_dim(low, shape, (0,))
    found = jnp.min(jnp.where(is_low, place, jnp.int32(_FOLD)), axis=1)

    def distance(packed):
      return lax.bitcast_convert_type(packed & ~low_bits, jnp.float32)

    outputs[0][mine] = (low & low_bits) * _FOLD + found
    outputs[1][mine] = distance(low)
    if second is not None:
      is_found = place == lax.broadcast_in_dim(found, shape, (0,))
      others = jnp.where(is_found, second, best)
      outputs[2][mine] = length
      outputs[3][mine] = distance(jnp.min(others, axis=1))

  def _accumulate(self, multiply, start):
    """Adds products to `start`."""
    if self.interpret:

      def scoped(total):
        multiply(total)
        return total[...]

      kind = self.plgpu.ACC(start.shape, jnp.float32)
      return start + pl.run_scoped(scoped, kind)
    return pl.run_state(multiply)(self.plgpu.ACC.init(start))

  def _laid(self, x, layout):
    return x if self.interpret else self.plgpu.layout_cast(x, layout)

  def _load(self, ref, layout):
    """Reads an array; from the device's memory by any pattern."""
    if self.interpret:
      return ref[...]
    return _load(self.plgpu)(ref, layout=layout, optimized=False)


@functools.cache
def _load(plgpu: Any) -> Any:
  """`plgpu.load` of a whole reference: jax 0.10 wants an index of nothing."""
  import inspect

  index = inspect.signature(plgpu.load).parameters["idx"]
  if index.default is inspect.Parameter.empty:
    return lambda ref, **options: plgpu.load(ref, (), **options)
  return plgpu.load
