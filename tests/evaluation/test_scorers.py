"""Lists of the best scores."""

import numpy as np

from gr_jax.evaluation import scorers


def test_ties_at_the_end_of_a_list_go_to_the_popular():
  scorer = scorers.Scorer(
    np.array([2, 0, 1, 3], np.int32), scorers.Constant(np.zeros(4))
  )
  scores = np.array([[1.0, 1, 1, 1], [0, 2, -np.inf, 0]])
  assert scorer.best_items(scores, 2).tolist() == [[2, 0], [0, 2]]
  assert scorer.best_items(scores, 4)[1].tolist() == [0, 2, 3, -1]
