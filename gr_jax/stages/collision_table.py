"""Every collision policy on one set of codes, side by side."""

import dataclasses
import time

import jax
import numpy as np
from absl import logging
from jaxtyping import Int32

from gr_jax.core import checks, rng
from gr_jax.sids import groups, hourglass
from gr_jax.sids.collisions import POLICIES
from gr_jax.sids.resolution import CollisionContext
from gr_jax.stages import live_catalog, prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir

# Removed codes to try.
_TOP = (8, 32)


@dataclasses.dataclass(frozen=True)
class Row:
  """What one policy made of the codes; shares are of items."""

  policy: str
  collision_rate: float  # share their ID with another item
  independent_coding_rate: float  # alone on their ID
  largest_bucket: int
  num_moved: int
  seconds: float


def table(
  codes: Int32[np.ndarray, "N L"],
  codebook_sizes: tuple[int, ...],
  context: CollisionContext,
  *,
  key: jax.Array,
) -> list[Row]:
  """Runs every policy with its defaults; one that refuses is left out."""
  rows = []
  for name, policy in POLICIES.items():
    started = time.process_time()
    try:
      found = policy().resolve(
        codes, codebook_sizes, key=rng.stream(key, name), context=context
      )
    except checks.InputError as error:
      logging.warning("%s: %s", name, error)
      continue
    seconds = time.process_time() - started
    after = groups.group_rows(found.codes, found.codebook_sizes)
    shared = after.num_shared / codes.shape[0]
    rows.append(
      Row(name, shared, 1 - shared, after.largest, found.num_moved, seconds)
    )
  return rows


def synthetic_codes(
  num_items: int,
  generator: np.random.Generator,
  *,
  shared: float = 0.3,
  sizes: tuple[int, ...] = (256, 256, 256),
) -> Int32[np.ndarray, "N L"]:
  """Returns codes of which about a share collides, in groups of two to six."""
  num_copies = int(num_items * shared * 2 / 3)
  num_sources = max(1, num_copies // 2)
  codes = generator.integers(0, sizes, (num_items, len(sizes)), dtype=np.int32)
  source = generator.integers(0, num_sources, num_copies)
  codes[num_items - num_copies :] = codes[source]
  return codes[generator.permutation(num_items)]


def of_workdir(config: RunConfig, workdir: Workdir) -> str:
  """Returns the table of a tokenized run's codes as Markdown.

  Of all items that have codes: appended and removed ones, too.

  Raises:
    InputError: No tokenizer in the workdir.
  """
  stored = prepare.load_data(workdir)
  embeddings, embedded = prepare.load_embeddings(workdir, stored)
  tokenizer = semantic_ids.load_tokenizer(config, workdir, embeddings, embedded)
  if workdir.path("sids").exists():
    live = live_catalog.load(workdir, stored)
    embedded, tokenizer = live.with_appended(config, embedded, tokenizer)
  sizes = config.tokenizer.codebook_sizes
  rows = table(
    tokenizer.codes,
    sizes,
    semantic_ids.collision_context(
      config, tokenizer, embedded, tokenizer.codes
    ),
    key=jax.random.key(config.seed),
  )
  parts = [markdown(rows), _levels(tokenizer.codes, sizes)]
  if len(sizes) > 2:
    parts.append(_remedies(tokenizer.codes, sizes))
  return "\n".join(parts)


def of_synthetic(config: RunConfig, num_items: int) -> str:
  """Returns the table of synthetic codes; distances are random numbers."""
  generator = rng.numpy_generator(jax.random.key(config.seed), "synthetic")
  draws = rng.numpy_generator(jax.random.key(config.seed), "distances")
  context = CollisionContext(
    last_level_distances=lambda rows: draws.random((rows.size, 256), np.float32)
  )
  codes = synthetic_codes(num_items, generator)
  rows = table(codes, (256, 256, 256), context, key=jax.random.key(config.seed))
  return markdown(rows)


def markdown(rows: list[Row]) -> str:
  """Writes the rows as a table."""
  lines = [
    "| policy | collision rate | ICR | largest bucket | moved | CPU seconds |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
  ]
  lines += [
    f"| `{r.policy}` | {r.collision_rate:.4f} | "
    f"{r.independent_coding_rate:.4f} | {r.largest_bucket} | "
    f"{r.num_moved:,} | {r.seconds:.2f} |"
    for r in rows
  ]
  return "\n".join(lines) + "\n"


def _remedies(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: tuple[int, ...]
) -> str:
  """Writes what the hourglass's remedies cost in collisions."""
  lines = ["| `hourglass` | collision rate | largest bucket |"]
  lines.append("| --- | ---: | ---: |")
  for options in ({"drop_level": 1}, *({"remove_top_codes": n} for n in _TOP)):
    remedy = hourglass.Hourglass(**options)
    try:
      removed = remedy.removed_codes(codes, codebook_sizes)
    except checks.InputError as error:
      logging.warning("%s", error)
      continue
    found = groups.group_rows(*remedy.apply(codes, codebook_sizes, removed))
    name, value = next(iter(options.items()))
    lines.append(
      f"| `{name}={value}` | {found.num_shared / codes.shape[0]:.4f} | "
      f"{found.largest} |"
    )
  return "\n".join(lines) + "\n"


def _levels(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: tuple[int, ...]
) -> str:
  """Writes the hourglass figures of every level."""
  levels = hourglass.report(codes, codebook_sizes)
  names = list(levels[0])
  lines = ["| level | " + " | ".join(names) + " |"]
  lines.append("| ---: |" + " ---: |" * len(names))
  for level, values in enumerate(levels):
    cells = " | ".join(f"{values[name]:.4f}" for name in names)
    lines.append(f"| {level} | {cells} |")
  return "\n".join(lines) + "\n"
