"""Baselines: by hand, against plain Python, and against reference values."""

import collections
import json
import math
import pathlib

import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.data import Interactions, splits
from gr_jax.data.readers import folder
from gr_jax.evaluation import baselines, metrics

NUM_ITEMS = 6


def _interactions(*histories):
  return Interactions(
    user_ids=tuple(f"u{i}" for i in range(len(histories))),
    items=np.concatenate(histories).astype(np.int32),
    offsets=np.cumsum([0, *map(len, histories)]).astype(np.int64),
    times=None,
  )


@pytest.fixture
def small():
  # The last two items of each user are held out; only the others count.
  interactions = _interactions(
    [0, 1, 2, 3, 4], [0, 1, 3, 5, 2], [1, 2, 0, 4, 5]
  )
  return interactions, splits.leave_one_out(interactions)


def _scores(name, small, vectors=None):
  interactions, split = small
  scorer = baselines.BASELINES[name]().fit(
    interactions, split, num_items=NUM_ITEMS, vectors=vectors
  )
  histories = baselines.Histories.create(interactions, split.test)
  return np.asarray(scorer.score(histories), np.float64), scorer


def test_popularity_by_hand(small):
  scores, scorer = _scores("popularity", small)
  # Training parts: 0 1 2 | 0 1 3 | 1 2 0.
  np.testing.assert_array_equal(scores[0], [3, 3, 2, 1, 0, 0])
  # Ties by lowest item index.
  np.testing.assert_array_equal(scorer.tie_rank, [0, 1, 2, 3, 4, 5])


def test_markov_by_hand(small):
  scores, _ = _scores("markov", small)
  # Last items of the test histories: 3, 5 and 4; nothing follows them in
  # training, so all tie. Training transitions: 0-1 twice, 1-2 twice, 1-3, 2-0.
  np.testing.assert_array_equal(scores, np.zeros((3, NUM_ITEMS)))
  interactions = _interactions([0, 1, 2, 1, 4], [0, 1, 3, 1, 2])
  split = splits.leave_one_out(interactions)
  scores, _ = _scores("markov", (interactions, split))
  # After item 1 came 2 once and 3 once in training.
  np.testing.assert_allclose(scores[0] / scores[0].max(), [0, 0, 1, 1, 0, 0])


def test_text_neighbors_by_hand_leave_out_the_last_item(small):
  angles = np.deg2rad([0, 10, 50, 90, 100, 180])
  vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
  scores, _ = _scores("text_neighbors", small, vectors)
  # User 0's last item is 3, at 90 degrees: 4 (10 away), 2 (40), 1 (80).
  order = np.argsort(-scores[0], kind="stable")
  assert order[:3].tolist() == [4, 2, 1]
  assert scores[0, 3] == -np.inf


def test_item_knn_against_plain_python():
  draw = np.random.default_rng(0)
  histories = [
    draw.permutation(NUM_ITEMS)[: draw.integers(3, 7)] for _ in range(9)
  ]
  interactions = _interactions(*histories)
  split = splits.leave_one_out(interactions)
  scores, _ = _scores("item_knn", (interactions, split))
  users_of = collections.defaultdict(set)
  for user, history in enumerate(histories):
    for item in history[:-2]:
      users_of[int(item)].add(user)
  want = np.zeros((9, NUM_ITEMS))
  for user, history in enumerate(histories):
    for age, item in enumerate(reversed(history[:-1])):
      mine = users_of[int(item)]
      for other in range(NUM_ITEMS):
        both = mine & users_of[other]
        if other != item and both:
          cosine = len(both) / math.sqrt(len(mine) * len(users_of[other]))
          want[user, other] += 0.7**age * cosine
  np.testing.assert_allclose(scores, want, rtol=1e-6, atol=1e-9)


def test_fusion_adds_reciprocal_ranks(small):
  rng = np.random.default_rng(1)
  vectors = rng.normal(size=(NUM_ITEMS, 4)).astype(np.float32)
  fused, scorer = _scores("fusion", small, vectors)
  want = np.zeros_like(fused)
  for name in ("markov", "item_knn", "text_neighbors"):
    scores, _ = _scores(name, small, vectors)
    for row in range(3):
      order = sorted(
        range(NUM_ITEMS), key=lambda i: (-scores[row, i], scorer.tie_rank[i])
      )
      for rank, item in enumerate(order):
        # The last item itself, not a neighbor of its own, ranks last.
        want[row, item] += 1 / (60 + rank)
  np.testing.assert_allclose(fused, want, rtol=1e-6)


def test_ranks_break_ties_by_popularity_and_leave_out_minus_infinity():
  scores = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, -np.inf]])
  tie_rank = np.array([2, 1, 0], np.int32)
  ranks = baselines.ranks_of(scores, np.array([1, 2]), tie_rank)
  assert ranks.tolist() == [1, -1]
  best = baselines.top_items(scores, tie_rank, 3)
  assert best.tolist() == [[2, 1, 0], [1, 0, -1]]


def test_an_example_without_history_is_refused(small):
  interactions, split = small
  empty = splits.Examples(
    user_index=np.zeros(1, np.int32),
    history_start=np.zeros(1, np.int32),
    target_position=np.zeros(1, np.int32),
  )
  with pytest.raises(checks.InputError, match="1 examples have no history"):
    baselines.Histories.create(interactions, empty)
  with pytest.raises(checks.InputError, match="rank_offset=0.0 must exceed"):
    baselines.Fusion(rank_offset=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_real_data_gives_the_reference_values(real_data_dir, name):
  """Values computed elsewhere, by other code, on the same files."""
  root = pathlib.Path(real_data_dir) / name
  data = folder.read_folder(root)
  vectors = np.load(root / "embeddings.minilm.f16.npy").astype(np.float32)
  split = splits.leave_one_out(data.interactions)
  ranked = baselines.evaluate_all(
    data.interactions,
    split,
    split.test,
    num_items=data.catalog.num_items,
    vectors=vectors,
  )
  reference = json.loads((root / "baselines.json").read_text())
  names = {
    "popularity": "popularity",
    "item_knn": "itemknn_recency0.7",
    "markov": "markov1_last_item",
    "text_neighbors": "minilm_cosine_last_item",
    "fusion": "rrf(markov1,itemknn_recency,minilm_last)",
  }
  for own, other in names.items():
    for form, key in (
      ("nothing_removed", "all"),
      ("history_removed", "unseen"),
    ):
      if key not in reference[other]:
        continue
      got = metrics.summarize(getattr(ranked[own], form), list_size=50)
      # Ties of the fusion are broken otherwise there.
      atol = 4e-4 if own == "fusion" else 1.5e-5
      want = reference[other][key]
      np.testing.assert_allclose(got["recall@10"], want["R@10"], atol=atol)
      np.testing.assert_allclose(got["ndcg@10"], want["N@10"], atol=atol)
