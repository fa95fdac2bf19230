"""Times decoding: beam-search steps on given logits, then whole models.

  python benchmarks/decoding.py --output=decoding.json         # on one GPU
  python benchmarks/decoding.py --static_checkout=STATIC --t5x_checkout=T5X
  python benchmarks/decoding.py --tiny                         # seconds on CPU
  python benchmarks/decoding.py --cache=DIR --compile_only     # then, timed:
  python benchmarks/decoding.py --cache=DIR --seconds=70

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
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import decoding_peers  # noqa: E402, the path comes first
import decoding_steps  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from decoding_steps import CatalogSize, chained, time_calls  # noqa: E402

from gr_jax.decoding import trie  # noqa: E402
from gr_jax.decoding.extension import Tuning  # noqa: E402

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
  "select by groups": Tuning(selection="groups"),
  "select by sort": Tuning(selection="sort"),
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


class Report:
  """Results so far, on disk after each, and the time that is left."""

  def __init__(self, path: str, seconds: float, compile_only: bool):
    """Starts the clock."""
    self.path, self.end = path, time.monotonic() + seconds
    self.compile_only = compile_only
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

  pool = concurrent.futures.ThreadPoolExecutor(6)
  futures = {name: pool.submit(compile_one, job) for name, job in jobs.items()}
  patience = COMPILE_SECONDS * (1 + report.compile_only) + 3 * len(jobs)
  end = time.monotonic() + min(patience, report.left)
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
    self.layout = decoding_steps.Layout((size.num_codes,) * size.num_levels)
    self._folder = None
    if args.cache:
      self._folder = pathlib.Path(args.cache) / size.name.replace(" ", "_")
    kept = decoding_steps.load_arrays(self._folder, "trie")
    if kept is None:
      began = time.perf_counter()
      self.codes = decoding_steps.make_codes(size)
      made = time.perf_counter()
      tree = trie.build_trie(self.codes, self.layout.codebook_sizes)
      value = {
        "items": len(self.codes), "make_s": made - began,
        "build_s": time.perf_counter() - made, "mb": tree.num_bytes / 1e6,
        "max_children": [int(level.max_children) for level in tree.levels],
      }  # fmt: skip
      report.add("steps", f"{size.name} | index", value)
      arrays = {"codes": self.codes, **trie.to_arrays(tree)}
      decoding_steps.save_arrays(self._folder, "trie", arrays)
    else:
      self.codes = kept["codes"]
      tree = trie.from_arrays(kept)
    self.tree, self.static = self._place(tree), None

  def _place(self, arrays: Any) -> Any:
    """Moves arrays to the device, unless nothing shall run there."""
    return arrays if self.args.compile_only else jax.device_put(arrays)

  def add_static(self) -> None:
    """Builds STATIC's index, where there is a checkout."""
    name = f"{self.size.name} | STATIC index"
    if not self.args.static_checkout:
      return
    began = time.perf_counter()
    kept = decoding_steps.load_arrays(self._folder, "static")
    try:
      self.static = decoding_peers.Static(
        self.args.static_checkout, self.codes, self.size.num_codes, kept
      )
    except Exception as error:  # noqa: BLE001 (stands in the report)
      self.report.add("steps", name, failure(error))
      return
    if kept is None:
      seconds = time.perf_counter() - began
      value = {"build_s": seconds, "mb": self.static.num_bytes / 1e6}
      self.report.add("steps", name, value)
      arrays = self.static.to_arrays()
      decoding_steps.save_arrays(self._folder, "static", arrays)
    self.static.index = self._place(self.static.index)

  def row(self, batch: int, beam: int, name: str) -> Any:
    """Returns (search, index, order of the beams or None), None: no such."""

    def ours(tuning=Tuning(), constrained=True):  # noqa: B008, frozen
      search = decoding_steps.our_search(
        self.layout, batch, beam, tuning, constrained
      )
      return search, self.tree, "id" if constrained else None

    if name.startswith("ours"):
      return ours(constrained="free" not in name)
    if name in VARIANTS:
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
          shapes = decoding_steps.shapes_of(made[1])
          jobs[full] = chained(made[0]), (shapes, logits)
          rows[full] = (batch, beam, num_sets), *made[1:]
    programs = compile_all(self.report, jobs, options)
    logits, current = None, None
    for full, (cell, index, order) in rows.items():
      program, compile_s = programs[full]
      if self.args.compile_only and not isinstance(program, dict):
        program = {"compile_s": compile_s}
      if isinstance(program, dict):
        self.report.add("steps", full, program)
        continue
      if self.report.left < 3:
        self.report.skip(full)
        continue
      if cell != current:
        logits = None  # frees the last cell's
        batch, beam, num_sets = current = cell
        logits = decoding_steps.make_logits(batch, beam, size, num_sets)
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
    want, _ = decoding_steps.reference(self.codes, sample, beam, by_id)
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
    if isinstance(program, dict) or args.compile_only:
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
  if args.compile_only:
    return
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
  parser.add_argument("--sections", default="steps,model,variants,micro")
  parser.add_argument("--tiny", action="store_true", help="a CPU smoke run")
  parser.add_argument("--cache", default="", help="folder of programs, indices")
  parser.add_argument(
    "--compile_only",
    action="store_true",
    help="fill the cache; only the whole model runs, a few times",
  )
  args = parser.parse_args()
  if args.compile_only and not args.cache:
    parser.error("--compile_only needs --cache")
  if args.cache:
    jax.config.update("jax_compilation_cache_dir", f"{args.cache}/programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  report = Report(args.output, args.seconds, args.compile_only)
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
      bench.run(cells, ["ours"])
      bench.add_static()
      bench.run(cells, ["STATIC exact"])
      large = large or bench
  if "model" in sections:
    model_rows(report, args)
  if large is not None:
    cells = grid[0][1][:3]
    large.run(cells, ["ours free", "STATIC 30", "T5X free"])
  if "steps" in sections and not args.tiny:
    for size, cells in REST:
      if report.left < 20 + size.num_items / 1e6:
        report.skip(f"steps {size.name}")
        continue
      bench = Bench(report, size, args)
      bench.add_static()
      bench.run(cells, ["ours", "STATIC exact", "ours free"])
  if large is not None and "variants" in sections:
    large.run(grid[0][1][:3], list(VARIANTS))
  if "micro" in sections:
    micro_rows(
      report, "normalizer", decoding_steps.normalizers(args.tiny), args
    )
    micro_rows(report, "selection", decoding_steps.selections(args.tiny), args)
  if large is not None and not args.compile_only:
    # As JAX compiles by default, last: it runs candidates on the device even
    # while compiling, and what is given up goes on and disturbs.
    large.run(grid[0][1][:2], ["ours, tuned"], TUNED_COMPILE)
  print(f"{report.left:.0f} s left.", flush=True)
  # Compilations that were given up on would hold up an orderly exit.
  os._exit(0)


if __name__ == "__main__":
  main()
