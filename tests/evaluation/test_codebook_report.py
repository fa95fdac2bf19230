"""Measures of codes, and the page that shows them."""

import html.parser
import json
import re

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import splits
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.interactions import Interactions
from gr_jax.evaluation import codebook_figures as figures
from gr_jax.evaluation import codebook_measures, codebook_report
from gr_jax.sids.sid_catalog import SidCatalog

BOOKS = [
  np.array([[8.0, 0, 0], [-8, 0, 0], [0, 8, 0]], np.float32),
  np.array([[0, 0, 4.0], [0, 0, -4]], np.float32),
]
# Item 5 shares the codes of item 0.
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [0, 0]], np.int32)


def _decode(codes):
  return sum(book[codes[:, level]] for level, book in enumerate(BOOKS))


def _run(**changes):
  num_items = CODES.shape[0]
  noise = np.random.default_rng(0).normal(size=(num_items, 3))
  fields = {
    "name": "small <run>",
    "catalog": ItemCatalog(
      item_ids=tuple(f"i{n}" for n in range(num_items)),
      texts=tuple(f"text {n}" for n in range(num_items)),
      titles=("<b>Rose & Co</b>", *(f"Title {n}" for n in range(1, 6))),
      categories=("A > B", "A > B", "A > C", "D", "", "A > B"),
    ),
    "vectors": (_decode(CODES) + 0.1 * noise).astype(np.float32),
    "codes": CODES,
    "codebook_sizes": (3, 2),
    "decode": _decode,
    "sids": SidCatalog(
      tuple(f"i{n}" for n in range(num_items)),
      np.append(CODES, [[0], [0], [0], [0], [0], [1]], axis=1).astype(np.int32),
      (3, 2, 2),
      num_semantic_levels=2,
    ),
    "pairs": (np.array([0, 1, 2, 3]), np.array([5, 0, 3, 2])),
    "seconds": 1.5,
    "alarms": ("Level 0: beware.",),
    "curves": {"inertia/level_0": [3.0, 2.0]},
  }
  return codebook_measures.CodebookRun(**(fields | changes))


def _measure(run):
  return codebook_measures.measure(run, generator=np.random.default_rng(1))


def test_measures_by_hand():
  got = _measure(_run())
  assert got["ids"]["collision_rate"] == pytest.approx(2 / 6)
  assert got["buckets"] == {1: 4, 2: 1}
  assert [level["distinct_paths"] for level in got["levels"]] == [3, 5]
  assert got["resolved"]["codebook_sizes"] == [3, 2, 2]
  assert got["resolved"]["distinct_ids"] == 6
  # Item 5 is item 0's nearest; 0 is the second of 1, after nothing else with
  # its first code but 5; 2 and 3 are each other's nearest.
  assert got["hit_rate"]["embedding"]["hit_rate@1"] >= 0.75
  assert got["hit_rate"]["chance"]["hit_rate@1"] == pytest.approx(1 / 5)
  assert got["reconstruction"]["relative_mse"] < 0.01
  assert json.loads(json.dumps(got))["levels"] == got["levels"]


def test_a_level_is_judged_with_later_levels_averaged_out():
  # Many items, so that the mean over donors is known: a partial sum.
  rng = np.random.default_rng(3)
  codes = np.stack(
    [rng.integers(3, size=4000), rng.integers(2, size=4000)], 1
  ).astype(np.int32)
  x = _decode(codes)
  run = _run(
    codes=codes, vectors=x, sids=None,
    catalog=ItemCatalog(
      tuple(map(str, range(4000))), ("t",) * 4000, ("t",) * 4000, ("",) * 4000
    ),
  )  # fmt: skip
  got = codebook_measures.reconstruction_by_level(
    run, np.arange(4000), np.random.default_rng(0)
  )
  total = np.square(x - x.mean(0)).sum()
  partial = BOOKS[0][codes[:, 0]] + BOOKS[1][codes[:, 1]].mean(0)
  want = [1.0, np.square(x - partial).sum() / total, 0.0]
  # Standard errors of 8 draws over 4,000 items are below 0.01.
  np.testing.assert_allclose(got, want, atol=0.03)


def test_large_catalogs_are_sampled(monkeypatch):
  monkeypatch.setattr(codebook_measures, "_MAX_ROWS", 4)
  monkeypatch.setattr(codebook_measures, "_MAX_PAIRS", 3)
  monkeypatch.setattr(codebook_measures, "_CHUNK", 4)  # 6 items: 4, then 2
  got = _measure(_run())
  assert got["reconstruction"]["num_rows"] == 4
  assert got["hit_rate"]["num_pairs"] == 3


def test_what_items_have_in_common():
  describe = codebook_measures.describe
  assert describe(["A > B", "A > B > C", "A > D", "A"], [""] * 4) == (
    "A > B (50 %)"
  )
  assert describe(["A", "B", "C"], ["Red shoe", "red shoe", "blue shoe"]) == (
    "shoe, blue"
  )


def test_pairs_are_what_came_before_and_the_target():
  interactions = Interactions(
    ("u", "v"),
    np.array([4, 2, 7, 1, 3, 5, 6], np.int32),
    np.array([0, 4, 7], np.int64),
  )
  examples = splits.leave_one_out(interactions).validation
  queries, targets = codebook_measures.next_item_pairs(interactions, examples)
  np.testing.assert_array_equal(queries, [2, 3])
  np.testing.assert_array_equal(targets, [7, 5])


class _Page(html.parser.HTMLParser):
  """Collects tags, addresses and text, and checks that tags close."""

  def __init__(self, text):
    super().__init__()
    self.open, self.addresses, self.words, self.tags = [], [], [], []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ("img", "meta"):
      self.open.append(tag)
    self.addresses += [v for k, v in attrs if k in ("src", "href")]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_the_page_is_whole_and_stands_alone(hierarchical):
  run = _run(hierarchical=hierarchical)
  text = codebook_report.page(run, _measure(run))
  page = _Page(text)
  assert all(a.startswith(("data:", "#")) for a in page.addresses)
  anchors = {a[1:] for a in page.addresses if a.startswith("#")}
  assert anchors == set(re.findall(r'<h2 id="(\w+)"', text))
  words = " ".join(page.words)
  for title in run.catalog.titles:
    assert title in words  # markup in titles is text, not markup
  assert "b" not in page.tags[page.tags.index("h2") :]
  assert "<a_0><b_0><c_1>" in words  # item 5's unique ID
  assert "Level 0: beware." in words
  assert ("parallel" in words) != hierarchical


def test_a_run_without_ids_or_pairs_has_a_page_too():
  run = _run(sids=None, pairs=None, curves={}, seconds=float("nan"))
  measures = _measure(run)
  assert measures["hit_rate"] is None
  assert measures["seconds"] is None
  page = _Page(codebook_report.page(run, measures))
  assert "<a_0><b_0>" in " ".join(page.words)
  assert "–" in codebook_report.comparison_markdown([measures])


def test_the_same_run_gives_the_same_page():
  run = _run()
  pages = [codebook_report.page(run, _measure(run)) for _ in range(2)]
  assert pages[0] == pages[1]


def test_comparison_marks_the_best():
  good = _measure(_run(name="good"))
  shuffled = CODES[[3, 4, 0, 1, 2, 5]]
  bad = _measure(_run(name="bad", codes=shuffled, sids=None))
  text = codebook_report.comparison_page([good, bad])
  _Page(text)
  rows = re.findall(r"<tr><td>(good|bad)</td>(.*?)</tr>", text)
  best = {name: cells.count('class="best"') for name, cells in rows}
  # Wins MSE, relative MSE and cosine; ties in fit time and collisions.
  assert best["good"] >= best["bad"] + 3
  table = codebook_report.comparison_markdown([good, bad]).splitlines()
  assert table[2].startswith("| good | 3×2 | 1.5 |")
  assert len({line.count("|") for line in table}) == 1


def test_what_networks_keep_without_codes_is_told():
  plain = _measure(_run(name="plain"))
  reduced = _measure(_run(name="reduced", unquantized=0.25))
  header, _, *rows = codebook_report.comparison_markdown(
    [plain, reduced]
  ).splitlines()
  column = header.split(" | ").index("relative MSE without codes")
  assert [row.split(" | ")[column] for row in rows] == ["–", "0.250"]
  assert "without" not in codebook_report.comparison_markdown([plain])
  page = codebook_report.page(_run(unquantized=0.25), reduced)
  assert "Without codes the networks leave 0.250 of the variance." in page


@pytest.mark.slow  # scikit-learn's manifold package loads for seconds
def test_tsne_map():
  run = _run()
  pca, tsne = (
    figures.item_map(
      run.vectors, run.codes[:, 0], {0: "zero"}, projection=projection
    )
    for projection in figures.PROJECTIONS
  )
  assert pca.startswith("data:image/png;base64,")
  assert pca != tsne


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: _run(codes=CODES[:5]),
      "Run 'small <run>' mixes catalogs of different sizes",
    ),
    (lambda: _run(codebook_sizes=(3,)), r"codes of 2 levels and codebook_s"),
    (lambda: codebook_report.comparison([]), "No run to compare"),
    (
      lambda: figures.item_map(
        np.ones((2, 2), np.float32), np.array([0, 1]), {}, projection="umap"
      ),
      "Unknown projection 'umap'",
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(InputError, match=message):
    call()
