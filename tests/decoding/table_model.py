"""A random model through the decoding interface, and brute force over it."""

import dataclasses

import jax.numpy as jnp
import numpy as np

BUCKETS = 4099


@dataclasses.dataclass(frozen=True)
class Layout:
  """Token layout of the tests: pad, EOS, a few others, then the levels."""

  codebook_sizes: tuple[int, ...]
  append_eos: bool = False
  num_others: int = 3

  eos_id = 1

  @property
  def level_offsets(self):
    starts = np.cumsum((2 + self.num_others, *self.codebook_sizes))
    return tuple(int(s) for s in starts[:-1])

  @property
  def vocab_size(self):
    return 2 + self.num_others + sum(self.codebook_sizes)


class TableModel:
  """Logits read from a random table at a hash of the whole prefix."""

  def __init__(self, layout, batch_size, seed, padding=0, scale=2.0):
    rng = np.random.default_rng(seed)
    self.layout = layout
    size = layout.vocab_size + padding
    self.table = (rng.standard_normal((BUCKETS, size)) * scale).astype(
      np.float32
    )
    self.start = rng.integers(0, BUCKETS, (batch_size, 1)).astype(np.int32)
    self.calls = []

  def cache(self):
    return {"hash": jnp.asarray(self.start)}

  def __call__(self, tokens, cache, level):
    self.calls.append((level, tokens.shape))
    state = (cache["hash"] * 31 + tokens * 17 + level * 101) % BUCKETS
    return jnp.asarray(self.table)[state], {"hash": state}

  def log_probs(self, request, codes):
    """float64 [V] after each of `codes`, walked from the start."""
    state = int(self.start[request, 0]) * 31 % BUCKETS
    for level, code in enumerate(codes):
      token = code + self.layout.level_offsets[level]
      state = (state * 31 + token * 17 + (level + 1) * 101) % BUCKETS
    logits = self.table[state].astype(np.float64)
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def random_codes(rng, num_items, sizes, variable=False, distinct=True):
  """int32 [N, L] in random order; -1 after the end where `variable`."""
  rows = set()
  rows_list = []
  for _ in range(num_items * 20):
    row = [int(rng.integers(0, k)) for k in sizes]
    if variable:
      length = int(rng.integers(1, len(sizes) + 1))
      row[length:] = [-1] * (len(sizes) - length)
    if tuple(row) not in rows or not distinct:
      rows.add(tuple(row))
      rows_list.append(row)
    if len(rows_list) == num_items:
      break
  return np.array(rows_list, np.int32)


def strip(row):
  return tuple(int(c) for c in row if c >= 0)


def sort_key(codes, num_levels):
  """An ID sorts before its extensions."""
  return tuple(codes) + (-1,) * (num_levels - len(codes))


def brute_beam_search(model, request, codes, widths, constrained=True):
  """Plain beam search: a list of (score, codes, ended), best first."""
  layout = model.layout
  sizes = layout.codebook_sizes
  ids = {strip(row) for row in codes}
  variable = any(len(i) < len(sizes) for i in ids)
  prefixes = {i[:l] for i in ids for l in range(len(i) + 1)}
  beams = [(0.0, (), False)]
  for level, size in enumerate(sizes):
    candidates = []
    for score, prefix, ended in beams:
      if ended:
        candidates.append((score, prefix, True))
        continue
      log_probs = model.log_probs(request, prefix)
      if variable and level > 0 and (prefix in ids or not constrained):
        candidates.append((score + log_probs[layout.eos_id], prefix, True))
      for code in range(size):
        longer = (*prefix, code)
        if constrained and longer not in prefixes:
          continue
        token = layout.level_offsets[level] + code
        candidates.append((score + log_probs[token], longer, False))
    candidates.sort(key=lambda c: (-c[0], sort_key(c[1], len(sizes))))
    beams = candidates[: widths[level]]
  if layout.append_eos:
    beams = [
      (s if e else s + model.log_probs(request, p)[layout.eos_id], p, True)
      for s, p, e in beams
    ]
    beams.sort(key=lambda c: (-c[0], sort_key(c[1], len(sizes))))
  return beams


def item_log_likelihood(model, request, row):
  """float64 log p of one item's ID."""
  codes, total = strip(row), 0.0
  for level, code in enumerate(codes):
    token = model.layout.level_offsets[level] + code
    total += model.log_probs(request, codes[:level])[token]
  if model.layout.append_eos:
    total += model.log_probs(request, codes)[model.layout.eos_id]
  return total
