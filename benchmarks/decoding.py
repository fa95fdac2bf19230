"""Times decoding: beam-search steps on given logits, then whole models.

  python benchmarks/decoding.py --output=decoding.json         # on one GPU
  python benchmarks/decoding.py --static_checkout=STATIC --t5x_checkout=T5X
  python benchmarks/decoding.py --tiny                         # seconds on CPU

Steps: random logits are given, so what is timed is the search alone: the
normalizer (log-softmax), the trie's mask, selection of the beams, and
bookkeeping, microseconds a level, the mean over an ID's levels. Each search
runs in one program over several sets of logits, each search waiting for the
one before; programs are started back to back, so that dispatch is hidden
(`dispatch_us` beside it). One request is compared with a search in NumPy.

Rows of a cell: ours constrained and free, variants of ours (docs/decoding.md),
STATIC (Su et al. 2026, github.com/youtube/static-constraint-decoding) with its
default of 30 candidates a beam and with enough to be exact, and T5X's free
beam search, each where a checkout is given; nothing of theirs is in this
project. Selection and normalizer are timed alone, too.

Whole model: T5 4 + 4 layers of width 128, 82 tokens in, 4 levels, beam 50,
beside Hugging Face's `generate` with a `prefix_allowed_tokens_fn`.

The most important cells come first; what --seconds leaves no time for is
listed as such. Programs are compiled without XLA's tuning of each fusion,
which takes minutes for some; the last variant of ours is compiled as usual.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import decoding_peers  # noqa: E402, the path comes first
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from gr_jax.decoding import beam_search, scoring, selection, trie  # noqa: E402
from gr_jax.decoding.extension import Tuning  # noqa: E402


@dataclasses.dataclass(frozen=True)
class CatalogSize:
  """A random catalog: N distinct IDs of L codes below V."""

  num_items: int
  num_codes: int
  num_levels: int
  skewed: bool = False  # Zipf-like codes, another order under every prefix

  @property
  def name(self) -> str:
    """For tables."""
    skewed = " skewed" if self.skewed else ""
    return (
      f"N {self.num_items:.0e} V {self.num_codes} L {self.num_levels}{skewed}"
    )


@dataclasses.dataclass(frozen=True)
class Layout:
  """All levels share the V tokens, as in STATIC's benchmark."""

  codebook_sizes: tuple[int, ...]
  append_eos: bool = False
  eos_id: int = 0

  @property
  def level_offsets(self) -> tuple[int, ...]:
    """First token of each level."""
    return (0,) * len(self.codebook_sizes)

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.codebook_sizes[0]


LARGE = CatalogSize(20_000_000, 2048, 8)
# (catalog, [(batch, beam)]), the most important first.
GRID = [
  (LARGE, [(2, 70), (64, 50), (64, 500), (16, 50)]),
  (CatalogSize(100_000, 256, 4), [(16, 50), (2, 70), (64, 50)]),
  (CatalogSize(1_000_000, 256, 4, True), [(16, 50), (2, 70), (64, 50)]),
]
REST = [
  (CatalogSize(20_000_000, 256, 8), [(16, 70), (2, 20), (64, 70), (64, 500)]),
  (CatalogSize(1_000_000, 2048, 4), [(2, 20), (64, 50), (16, 500)]),
  (CatalogSize(1_000_000, 256, 3), [(2, 70), (16, 70), (64, 70)]),
  (CatalogSize(100_000, 2048, 3), [(2, 70), (16, 20), (64, 70)]),
]
TINY_GRID = [
  (CatalogSize(2000, 64, 3), [(2, 5), (3, 20)]),
  (CatalogSize(500, 40, 4, True), [(2, 70)]),
]
# Variants of ours, timed in the first catalog's cells.
VARIANTS = {
  "no code groups": Tuning(group_first=False),
  "two-pass normalizer": Tuning(normalizer="two_pass"),
  "select by digits": Tuning(selection="digits"),
  "select by groups": Tuning(selection="groups"),
  "select by count": Tuning(selection="count"),
}
# XLA tries ways to compile each fusion of some programs for minutes; without
# that the first of these options it knows is used.
PLAIN_COMPILE = (
  {"xla_gpu_experimental_enable_fusion_autotuner": False},
  {"xla_gpu_autotune_level": 0},
  {},
)
TUNED_COMPILE = ({"xla_gpu_experimental_enable_fusion_autotuner": True}, {})
COMPILE_SECONDS = 30.0
MODEL_SECONDS = 50.0  # that a model's rows may take, compiling included
# Selection alone: (batch, candidates, beams) that the first cells meet.
SELECTIONS = [
  (2, 4480, 70), (2, 2240, 70), (64, 3200, 50), (64, 1600, 50),
  (64, 32000, 500), (64, 16000, 500), (64, 9000, 500), (16, 3200, 50),
  (16, 400, 50), (64, 500, 500),
]  # fmt: skip


def make_codes(size: CatalogSize) -> np.ndarray:
  """Returns distinct sorted IDs, [N, L]."""
  rng = np.random.default_rng(0)
  n, v, levels = size.num_items, size.num_codes, size.num_levels
  per_word = min(levels, int(63 // np.log2(v)))
  if size.skewed:
    chance = 1.0 / (np.arange(v) + 3.0) ** 1.15
    chance = np.cumsum(chance / chance.sum())
    key = np.zeros(n, np.int64)
    for _ in range(levels):
      rank = np.searchsorted(chance, rng.random(n)).clip(0, v - 1)
      key = key * v + (rank + (key * 2654435761 >> 7)) % v
    per_word = levels
    key = np.unique(key)
  else:
    # Sums of exponential gaps are sorted uniform numbers.
    gaps = rng.exponential(size=n + 1)
    key = np.cumsum(gaps)
    key = (key[:-1] / key[-1] * v**per_word).astype(np.int64)
    key = key[np.append(True, key[1:] > key[:-1])]
  codes = np.empty((len(key), levels), np.uint16 if v > 256 else np.uint8)
  for l in range(per_word - 1, -1, -1):
    codes[:, l] = key % v
    key //= v
  for l in range(per_word, levels):
    codes[:, l] = rng.integers(0, v, len(key))
  return codes


def chained(search: Callable[..., Any]) -> Callable[..., Any]:
  """Runs `search(index, logits, nudge)` on each set of logits, in turn.

  `search` returns any arrays, the first of them integers >= 0 [B, ...]. From
  those comes the nudge, a zero that the next search has to wait for.
  """
  inner = jax.jit(search)

  def run(index, logit_sets):
    nudge, results = jnp.zeros((), jnp.float32), []
    for logits in logit_sets:
      result = inner(index, logits, nudge)
      first = jax.tree.leaves(result)[0]
      nudge = jnp.minimum(jnp.min(first), 0).astype(jnp.float32)
      results.append(result)
    return results

  return run


def our_search(
  layout: Layout, batch: int, beam: int, tuning: Tuning, constrained: bool
) -> Callable[..., Any]:
  """Returns our search over given logits, for `chained`."""

  def search(tree, logits, nudge):
    def tokens_to_logits(tokens, cache, level):
      given = logits[level][:, : tokens.shape[1]]
      return (given + nudge if level == 0 else given), cache

    result = beam_search.beam_search(
      tokens_to_logits,
      {},
      tree,
      layout,
      batch_size=batch,
      beam_width=beam,
      constrained=constrained,
      tuning=tuning,
    )
    # A free search leaves the catalog: its codes come first, never negative.
    return result.codes, result.scores, result.item_index

  return search


def reference(
  codes: np.ndarray, logits: list[np.ndarray], beam: int, by_id: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Beam search in NumPy over sorted IDs; returns IDs [W, L], scores [W].

  Args:
    codes: Sorted IDs.
    logits: Per level [>= W, V], rows by place of the beam.
    beam: W.
    by_id: Whether beams keep the order of their IDs (ours) or of their
      scores (STATIC's); the result is best first either way.
  """
  low, high = np.array([0]), np.array([len(codes)])
  score = np.zeros(1)
  for l in range(codes.shape[1]):
    x = logits[l][: len(low)].astype(np.float64)
    top = x.max(1, keepdims=True)
    x = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    totals, lows, highs = [], [], []
    for place, (begin, end) in enumerate(zip(low, high, strict=True)):
      column = codes[begin:end, l]
      first = np.flatnonzero(np.append(True, column[1:] != column[:-1]))
      totals.append(score[place] + x[place, column[first]])
      lows.append(begin + first)
      highs.append(begin + np.append(first[1:], end - begin))
    totals, lows, highs = (np.concatenate(a) for a in (totals, lows, highs))
    chosen = np.argsort(-totals, kind="stable")[:beam]
    if by_id:
      chosen = np.sort(chosen)
    score, low, high = totals[chosen], lows[chosen], highs[chosen]
  order = np.argsort(-score, kind="stable")
  return codes[low[order]].astype(np.int64), score[order]


def time_calls(
  run: Callable[[], Any], units: int, tiny: bool
) -> dict[str, float]:
  """Times back-to-back calls; microseconds a unit, of which a call has many."""
  jax.block_until_ready(run())
  began = time.perf_counter()
  jax.block_until_ready(run())
  once = time.perf_counter() - began
  calls = 2 if tiny else int(np.clip(0.03 / once, 3, 100))
  times, dispatch = [], []
  for _ in range(3 if tiny else 7):
    began = time.perf_counter()
    results = [run() for _ in range(calls)]
    dispatch.append((time.perf_counter() - began) / (calls * units))
    jax.block_until_ready(results)
    times.append((time.perf_counter() - began) / (calls * units))
    del results
  return {
    "us": statistics.median(times) * 1e6,
    "spread_us": (max(times) - min(times)) * 1e6,
    "dispatch_us": statistics.median(dispatch) * 1e6,
  }


def make_logits(
  batch: int, beam: int, size: CatalogSize, num_sets: int
) -> list[list[jax.Array]]:
  """Random float32 logits, [B, 1, V] at the first level, then [B, W, V]."""
  make = jax.jit(
    lambda key, beams: (
      2.0 * jax.random.normal(key, (batch, beams, size.num_codes))
    ),
    static_argnums=1,
  )
  keys = jax.random.split(jax.random.key(1), num_sets * size.num_levels)
  keys = iter(keys)
  return [
    [make(next(keys), beam if l else 1) for l in range(size.num_levels)]
    for _ in range(num_sets)
  ]


class Report:
  """Results so far, on disk after each, and the time that is left."""

  def __init__(self, path: str, seconds: float):
    """Starts the clock."""
    self.path, self.end = path, time.monotonic() + seconds
    self.results: dict[str, Any] = {
      "device": jax.devices()[0].device_kind,
      "jax": jax.__version__,
      "steps": {}, "selection": {}, "normalizer": {}, "model": {},
      "not_run": [],
    }  # fmt: skip

  @property
  def left(self) -> float:
    """Seconds."""
    return self.end - time.monotonic()

  def add(self, section: str, name: str, value: dict[str, Any]) -> None:
    """Stores and prints a result."""
    self.results[section][name] = value
    print(f"{section} | {name} | {_line(value)}", flush=True)
    self.save()

  def skip(self, what: str) -> None:
    """Notes what is left out, and why."""
    self.results["not_run"].append(what)
    print(f"not run | {what}", flush=True)
    self.save()

  def save(self) -> None:
    """Writes the file, if one is wanted."""
    if self.path:
      text = json.dumps(self.results, indent=1)
      pathlib.Path(self.path).write_text(text + "\n")


def _line(value: dict[str, Any]) -> str:
  return "  ".join(
    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
    for k, v in value.items()
  )


def failure(error: BaseException) -> dict[str, str]:
  """One row's failure as a result: the others go on."""
  text = f"{type(error).__name__}: {error}".splitlines()[0]
  return {"failed": text[:300]}


def compile_all(
  report: Report,
  jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]],
  options: tuple[dict[str, Any], ...] = PLAIN_COMPILE,
) -> dict[str, Any]:
  """Compiles functions for their arguments, some at once; failures as such."""

  def compile_one(job):
    began = time.perf_counter()
    try:
      lowered = jax.jit(job[0]).lower(*job[1])
      for last, choice in enumerate(options, start=1):
        try:
          program = lowered.compile(compiler_options=choice)
        except Exception:
          if last == len(options):
            raise
        else:
          return program, time.perf_counter() - began
    except Exception as error:  # noqa: BLE001 (stands in the report)
      return failure(error), 0.0

  pool = concurrent.futures.ThreadPoolExecutor(4)
  futures = {name: pool.submit(compile_one, job) for name, job in jobs.items()}
  end = time.monotonic() + min(COMPILE_SECONDS + 3 * len(jobs), report.left)
  done = {}
  for name, future in futures.items():
    try:
      done[name] = future.result(timeout=max(0.1, end - time.monotonic()))
    except concurrent.futures.TimeoutError:
      done[name] = {"failed": "not compiled in time"}, 0.0
  pool.shutdown(wait=False, cancel_futures=True)
  return done


class Bench:
  """One catalog in our trie and, once `add_static` is done, in STATIC's."""

  def __init__(
    self, report: Report, size: CatalogSize, args: argparse.Namespace
  ):
    """Draws the catalog and builds our trie."""
    self.report, self.size, self.args = report, size, args
    began = time.perf_counter()
    self.codes = make_codes(size)
    made = time.perf_counter()
    self.layout = Layout((size.num_codes,) * size.num_levels)
    tree = trie.build_trie(self.codes, self.layout.codebook_sizes)
    value = {
      "items": len(self.codes), "make_s": made - began,
      "build_s": time.perf_counter() - made, "mb": tree.num_bytes / 1e6,
      "max_children": [int(level.max_children) for level in tree.levels],
    }  # fmt: skip
    report.add("steps", f"{size.name} | index", value)
    self.tree, self.static = jax.device_put(tree), None

  def add_static(self) -> None:
    """Builds STATIC's index, where there is a checkout."""
    name = f"{self.size.name} | STATIC index"
    if not self.args.static_checkout:
      return
    began = time.perf_counter()
    try:
      self.static = decoding_peers.Static(
        self.args.static_checkout, self.codes, self.size.num_codes
      )
    except Exception as error:  # noqa: BLE001 (stands in the report)
      self.report.add("steps", name, failure(error))
      return
    seconds = time.perf_counter() - began
    value = {"build_s": seconds, "mb": self.static.num_bytes / 1e6}
    self.report.add("steps", name, value)

  def row(self, batch: int, beam: int, name: str) -> Any:
    """Returns (search, index, order of the beams or None), None: no such."""

    def ours(tuning=Tuning(), constrained=True):  # noqa: B008, frozen
      search = our_search(self.layout, batch, beam, tuning, constrained)
      return search, self.tree, "id" if constrained else None

    if name.startswith("ours"):
      return ours(constrained="free" not in name)
    if name in VARIANTS:
      if name == "select by count" and batch * beam**2 > 10**7:
        return None  # n^2 comparisons a user
      return ours(VARIANTS[name])
    if name.startswith("STATIC"):
      if self.static is None or (name == "STATIC 30" and beam <= 30):
        return None
      exact = name == "STATIC exact"
      search = self.static.search(batch, beam, beam if exact else 30)
      return search, self.static.index, "score" if exact else None
    if name == "T5X free" and self.args.t5x_checkout:
      checkout, levels = self.args.t5x_checkout, self.size.num_levels
      search = decoding_peers.t5x_search(checkout, batch, beam, levels)
      return search, (), None
    return None

  def run(
    self,
    cells: list[tuple[int, int]],
    names: list[str],
    options: tuple[dict[str, Any], ...] = PLAIN_COMPILE,
  ) -> None:
    """Times rows of some cells."""
    size, jobs, rows = self.size, {}, {}
    for batch, beam in cells:
      num_sets = 1 if batch * beam * size.num_codes > 2**22 else 2
      logits = [
        [
          jax.ShapeDtypeStruct(
            (batch, beam if l else 1, size.num_codes), jnp.float32
          )
          for l in range(size.num_levels)
        ]
      ] * num_sets
      for name in names:
        made = self.row(batch, beam, name)
        if made is not None:
          full = f"{size.name} B {batch} W {beam} | {name}"
          jobs[full] = chained(made[0]), (made[1], logits)
          rows[full] = (batch, beam, num_sets), *made[1:]
    programs = compile_all(self.report, jobs, options)
    logits, current = None, None
    for full, (cell, index, order) in rows.items():
      program, compile_s = programs[full]
      if isinstance(program, dict):
        self.report.add("steps", full, program)
        continue
      if self.report.left < 3:
        self.report.skip(full)
        continue
      if cell != current:
        logits = None  # frees the last cell's
        batch, beam, num_sets = current = cell
        logits = make_logits(batch, beam, size, num_sets)
      try:
        value = time_calls(
          lambda p=program, i=index, x=logits: p(i, x),
          num_sets * size.num_levels,
          self.args.tiny,
        )
        if order is not None:
          value["equal_to_numpy"] = self._agreement(
            program(index, logits)[-1], logits[-1], beam, order == "id"
          )
      except Exception as error:  # noqa: BLE001 (stands in the report)
        value = failure(error)
      self.report.add("steps", full, value | {"compile_s": compile_s})

  def _agreement(self, result, logits, beam, by_id):
    """Share of the last request's IDs that stand where NumPy has them."""
    found = np.asarray(jax.tree.leaves(result)[0][-1])  # [W, L]
    sample = [np.asarray(level[-1]) for level in logits]
    want, _ = reference(self.codes, sample, beam, by_id)
    return float(np.mean(np.all(found[: len(want)] == want, axis=1)))


def micro_rows(
  report: Report,
  section: str,
  functions: dict[str, tuple[Callable[..., Any], tuple[int, ...]]],
  args: argparse.Namespace,
) -> None:
  """Times functions of one random array each, on several in a chain."""
  num_sets = 4

  def chain(function):
    def search(_, x, nudge):
      return function(x + nudge)

    return chained(search)

  jobs = {
    name: (
      chain(function),
      ((), [jax.ShapeDtypeStruct(shape, jnp.float32)] * num_sets),
    )
    for name, (function, shape) in functions.items()
  }
  programs = compile_all(report, jobs)
  for name, (_, shape) in functions.items():
    program, _ = programs[name]
    if isinstance(program, dict):
      report.add(section, name, program)
      continue
    if report.left < 3:
      report.skip(f"{section} {name}")
      continue
    keys = jax.random.split(jax.random.key(2), num_sets)
    inputs = [2.0 * jax.random.normal(key, shape) for key in keys]
    try:
      value = time_calls(
        lambda p=program, x=inputs: p((), x), num_sets, args.tiny
      )
    except Exception as error:  # noqa: BLE001 (stands in the report)
      value = failure(error)
    report.add(section, name, value)


def selections(tiny: bool) -> dict[str, Any]:
  """Ways to select k of n, alone, for `micro_rows`."""
  found = {}
  for batch, n, k in [(2, 96, 5)] if tiny else SELECTIONS:
    shape = f"B {batch} n {n} k {k}"
    if k == n:
      for method in ("auto", "sort"):
        found[f"{shape} | rank all, {method}"] = (
          lambda x, m=method: selection.best_first(x, method=m),
          (batch, n),
        )
      continue
    for method in selection.METHODS:
      if method == "count" and batch * n * n > 2e9:
        continue
      found[f"{shape} | {method}"] = (
        lambda x, k=k, m=method: selection.best_in_order(x, k, method=m),
        (batch, n),
      )
    found[f"{shape} | lax.top_k"] = (
      lambda x, k=k: jax.lax.top_k(x, k)[1],
      (batch, n),
    )
  return found


def normalizers(tiny: bool) -> dict[str, Any]:
  """Ways to normalize logits, alone, for `micro_rows`."""
  shapes = [(2, 5, 64)] if tiny else [(2, 70, 2048), (64, 50, 2048)]
  shapes += [] if tiny else [(64, 500, 2048)]
  found = {}
  for shape in shapes:
    for method in scoring.NORMALIZERS[1:]:

      def normalize(x, method=method):
        log_norm = scoring.log_normalizer(x, method=method)
        return jnp.zeros(x.shape[0], jnp.int32), log_norm

      found[f"{shape} | {method}"] = (normalize, shape)

    def group_maxima(x):
      grouped = x.reshape(*x.shape[:2], -1, 32)
      return jnp.zeros(x.shape[0], jnp.int32), jnp.max(grouped, axis=-1)

    found[f"{shape} | maxima of groups of 32"] = (group_maxima, shape)
  return found


def model_rows(report: Report, args: argparse.Namespace) -> None:
  """Times whole models: encoder, cross-attention keys, 4 levels."""
  rng = np.random.default_rng(0)
  num_items, num_codes = (50, 8) if args.tiny else (100_000, 256)
  codes = np.unique(rng.integers(0, num_codes, (num_items, 4)), axis=0)
  sizes = decoding_peers.MODEL_TINY if args.tiny else decoding_peers.MODEL
  beam = 5 if args.tiny else 50
  batches = (1, 2) if args.tiny else (1, 256)
  ours = decoding_peers.OurModel(sizes, codes.astype(np.int32), num_codes, beam)
  for name, constrained in (("ours", True), ("ours free", False)):
    if report.left < 20 and not args.tiny:
      report.skip(f"model {name}")
      continue
    for batch in batches:
      pool = concurrent.futures.ThreadPoolExecutor(1)
      timing = pool.submit(ours.time, batch, constrained, args.tiny)
      try:
        value = timing.result(timeout=min(MODEL_SECONDS, report.left))
      except concurrent.futures.TimeoutError:
        value = {"failed": "not compiled in time"}
      except Exception as error:  # noqa: BLE001 (stands in the report)
        value = failure(error)
      report.add("model", f"{name} B {batch} W {beam}", value)
  for batch in batches:
    name = f"Hugging Face generate B {batch} W {beam}"
    if report.left < 15 and not args.tiny:
      report.skip(f"model {name}")
      continue
    try:
      value = decoding_peers.hugging_face(sizes, ours, batch, beam, args.tiny)
    except ImportError as error:
      report.skip(f"model {name}: {error}")
      continue
    except Exception as error:  # noqa: BLE001 (stands in the report)
      value = failure(error)
    report.add("model", name, value)


def main() -> None:
  """Runs what the flags and the time allow."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output", default="", help="JSON file")
  parser.add_argument("--seconds", type=float, default=180, help="in all")
  parser.add_argument("--static_checkout", default="", help="folder of STATIC")
  parser.add_argument("--t5x_checkout", default="", help="folder of T5X")
  parser.add_argument("--sections", default="steps,model,micro")
  parser.add_argument("--tiny", action="store_true", help="a CPU smoke run")
  args = parser.parse_args()
  report = Report(args.output, args.seconds)
  for name in ("static", "t5x"):
    if not getattr(args, f"{name}_checkout"):
      report.skip(f"{name}: no --{name}_checkout")
  sections = args.sections.split(",")
  grid, large = TINY_GRID if args.tiny else GRID, None
  if "steps" in sections:
    for size, cells in grid:
      if report.left < 20 and not args.tiny:
        report.skip(f"steps {size.name}")
        continue
      bench = Bench(report, size, args)
      with concurrent.futures.ThreadPoolExecutor(1) as pool:
        static = pool.submit(bench.add_static)
        bench.run(cells, ["ours"])
        static.result()
      bench.run(cells, ["STATIC exact"])
      large = large or bench
  if "model" in sections:
    model_rows(report, args)
  if large is not None:
    cells = grid[0][1][:3]
    large.run(cells, ["ours free", "STATIC 30", "T5X free"])
    large.run(cells, list(VARIANTS))
  if "micro" in sections:
    micro_rows(report, "normalizer", normalizers(args.tiny), args)
    micro_rows(report, "selection", selections(args.tiny), args)
  if "steps" in sections and not args.tiny:
    for size, cells in REST:
      if report.left < 20 + size.num_items / 1e6:
        report.skip(f"steps {size.name}")
        continue
      bench = Bench(report, size, args)
      bench.add_static()
      bench.run(cells, ["ours", "ours free", "STATIC exact"])
  if large is not None:
    # As JAX compiles by default, last: what is given up goes on and disturbs.
    large.run(grid[0][1][:2], ["ours, tuned"], TUNED_COMPILE)
  print(f"{report.left:.0f} s left.", flush=True)
  # Compilations that were given up on would hold up an orderly exit.
  os._exit(0)


if __name__ == "__main__":
  main()
