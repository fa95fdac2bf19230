"""A browsable tree of semantic IDs with item titles, as HTML."""

import dataclasses
import html

import numpy as np
from jaxtyping import Int

from gr_jax.evaluation.codebook_measures import CodebookRun, describe
from gr_jax.sids.vocabulary import SidVocabulary

_MAX_ITEMS = 20_000  # listed on a page
_NUM_FLAT_ITEMS = 12  # listed of a code where levels are parallel


def section(run: CodebookRun) -> str:
  """Returns the tree; a flat list of codes a level where those are parallel."""
  items = np.arange(run.codes.shape[0])
  note = ""
  if items.size > _MAX_ITEMS:
    places = np.linspace(0, items.size - 1, _MAX_ITEMS).astype(int)
    note = f" {_MAX_ITEMS:,} of {items.size:,} items are listed."
    items = items[places]
  tree = _Tree.create(run)
  if run.hierarchical:
    text = (
      "Open a code to see what it stands for: what at least half of its items "
      "are, then the codes of the next level, then the items."
    )
    body = tree.branch(items, 0, "")
  else:
    text = (
      "Levels are parallel: each code of each level, with what at least half "
      f"of its items are and up to {_NUM_FLAT_ITEMS} of them."
    )
    body = "".join(
      f"<details><summary>level {level}</summary>{tree.flat(items, level)}"
      "</details>"
      for level in range(run.codes.shape[1])
    )
  return f'<p>{text}{note}</p><div class="tree">{body}</div>'


def what(run: CodebookRun, members: Int[np.ndarray, "n"]) -> str:
  """Says what some items have in common; see `describe`."""
  return describe(
    [run.catalog.categories[i] for i in members],
    [run.catalog.titles[i] for i in members],
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Tree:
  """A run, and how its codes and its semantic IDs are written."""

  run: CodebookRun
  vocabulary: SidVocabulary  # of the tokenizer's codes
  sid_names: tuple[str, ...]  # of each item

  @classmethod
  def create(cls, run: CodebookRun) -> "_Tree":
    own = SidVocabulary(run.codebook_sizes)
    if run.sids is None:
      codes, layout = run.codes, own
    else:
      codes, layout = run.sids.codes, SidVocabulary.from_catalog(run.sids)
    tokens = layout.tokens_from_codes(codes)
    names = tuple(
      layout.readable(row[is_code])
      for row, is_code in zip(tokens, codes >= 0, strict=True)
    )
    return cls(run, own, names)

  def branch(self, items: np.ndarray, level: int, prefix: str) -> str:
    """The subtree of the items that share `prefix`, biggest codes first."""
    if level == self.run.codes.shape[1]:
      return self._items(items)
    parts = []
    for code, members in _by_size(self.run.codes[items, level], items):
      if members.size == 1 and level > 0:
        parts.append(self._items(members))
        continue
      name = prefix + self._code_name(level, code)
      below = self.branch(members, level + 1, name)
      parts.append(self._details(name, members, below))
    return "".join(parts)

  def flat(self, items: np.ndarray, level: int) -> str:
    """All codes of one level, biggest first, with some of their items."""
    return "".join(
      self._details(
        self._code_name(level, code),
        members,
        self._items(members[:_NUM_FLAT_ITEMS]),
      )
      for code, members in _by_size(self.run.codes[items, level], items)
    )

  def _details(self, name: str, members: np.ndarray, below: str) -> str:
    count = f"{members.size:,} item{'s' if members.size > 1 else ''}"
    return (
      f"<details><summary><code>{html.escape(name)}</code> {count} "
      f"<em>{html.escape(what(self.run, members))}</em></summary>"
      f"{below}</details>"
    )

  def _items(self, items: np.ndarray) -> str:
    catalog, lines = self.run.catalog, []
    for item in items.tolist():
      title = catalog.titles[item] or catalog.texts[item][:80]
      lines.append(
        f"<li><code>{html.escape(self.sid_names[item])}</code> "
        f"{html.escape(title)} "
        f"<small>{html.escape(catalog.categories[item])}</small></li>"
      )
    return f"<ul>{''.join(lines)}</ul>"

  def _code_name(self, level: int, code: int) -> str:
    token = self.vocabulary.level_offsets[level] + code
    return self.vocabulary.readable([token])


def _by_size(
  codes: np.ndarray, items: np.ndarray
) -> list[tuple[int, np.ndarray]]:
  """Groups items by code, the largest group first, ties by code."""
  order = np.argsort(codes, kind="stable")
  found, starts = np.unique(codes[order], return_index=True)
  groups = np.split(items[order], starts[1:])
  pairs = zip(found.tolist(), groups, strict=True)
  return sorted(pairs, key=lambda pair: -pair[1].size)
