import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.embeddings import normalization
from gr_jax.embeddings.normalization import Normalization


def draw(seed, rows=200, width=6):
  """Correlated columns of unequal scale, far from the origin."""
  rng = np.random.default_rng(seed)
  mixed = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))
  return (mixed * np.arange(1, width + 1) + 50).astype(np.float32)


def test_every_kind_by_hand():
  x = np.array([[0.0, 4.0], [6.0, 4.0], [0.0, 12.0], [6.0, 12.0]], np.float32)
  want = {
    "none": x,
    "l2": x / np.array([[4.0], [np.sqrt(52)], [12.0], [np.sqrt(180)]]),
    "center": [[-3, -4], [3, -4], [-3, 4], [3, 4]],
    "standardize": [[-1, -1], [1, -1], [-1, 1], [1, 1]],
    # The second column varies most and comes first.
    "pca": [[-4, -3], [-4, 3], [4, -3], [4, 3]],
    "whiten": [[-1, -1], [-1, 1], [1, -1], [1, 1]],
  }
  assert set(want) == set(normalization.KINDS)
  for kind, rows in want.items():
    got = normalization.fit(x, kind=kind).apply(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, rows, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_hold_and_chunks_do_not_matter(seed, monkeypatch):
  x = draw(seed)
  whole = {
    k: normalization.fit(x, kind=k).apply(x) for k in normalization.KINDS
  }
  np.testing.assert_allclose(whole["center"].mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(whole["standardize"].std(0), 1, atol=1e-4)
  covariance = whole["whiten"].T @ whole["whiten"] / len(x)
  np.testing.assert_allclose(covariance, np.eye(6), atol=1e-3)
  variances = whole["pca"].var(0)
  assert np.all(np.diff(variances) <= 0)
  # A rotation keeps distances.
  np.testing.assert_allclose(
    np.linalg.norm(whole["pca"][0] - whole["pca"][1]),
    np.linalg.norm(x[0] - x[1]),
    rtol=1e-4,
  )
  monkeypatch.setattr(normalization, "_CHUNK_ROWS", 7)
  for kind, rows in whole.items():
    got = normalization.fit(x, kind=kind).apply(x)
    np.testing.assert_allclose(got, rows, atol=1e-3, err_msg=kind)


@pytest.mark.parametrize("kind", normalization.KINDS)
def test_new_rows_use_the_old_statistics(kind):
  x, new = draw(0), draw(1, rows=3)
  fitted = normalization.fit(x, kind=kind)
  back = Normalization.from_arrays(fitted.to_arrays())
  both = back.apply(np.concatenate([x, new]))
  np.testing.assert_allclose(both[-3:], fitted.apply(new), atol=1e-4)
  np.testing.assert_allclose(both[:-3], fitted.apply(x), atol=1e-4)


def test_width_can_be_reduced():
  x = draw(0)
  full = normalization.fit(x, kind="whiten").apply(x)
  two = normalization.fit(x, kind="whiten", output_dim=2).apply(x)
  np.testing.assert_allclose(two, full[:, :2], atol=1e-5)


def test_directions_without_variance_are_left_out():
  x = draw(0, width=3)
  flat = np.concatenate([x, x[:, :1], np.ones_like(x[:, :1])], axis=1)
  fitted = normalization.fit(flat, kind="whiten")
  assert fitted.apply(flat).shape == (200, 3)
  with pytest.raises(
    InputError,
    match=r"'whiten' finds 3 directions in 200 .* width 5; got output_dim=4",
  ):
    normalization.fit(flat, kind="whiten", output_dim=4)


def test_constant_columns_become_zero(caplog):
  x = draw(0)
  x[:, 2] = 7.0
  scaled = normalization.fit(x, kind="standardize").apply(x)
  np.testing.assert_array_equal(scaled[:, 2], 0)
  assert "1 of 6 embedding columns are constant" in caplog.text


@pytest.mark.parametrize(
  ("run", "message"),
  [
    (
      lambda x: normalization.fit(x, kind="whitten"),
      "Unknown normalization 'whitten'.*Did you mean 'whiten'",
    ),
    (
      lambda x: normalization.fit(x, kind="l2", output_dim=3),
      "output_dim=3 needs normalization='pca' or 'whiten'; got 'l2'",
    ),
    (
      lambda x: normalization.fit(x, kind="pca", output_dim=-1),
      "Need output_dim >= 0; got output_dim=-1",
    ),
    (
      lambda x: normalization.fit(x, kind="pca", output_dim=7),
      "finds 6 directions in 200 embeddings of width 6; got output_dim=7",
    ),
    (
      lambda x: normalization.fit(x * 0, kind="whiten"),
      "All 200 embeddings are equal",
    ),
    (
      lambda x: normalization.fit(x, kind="l2").apply(x * 0),
      "200 of 200 embeddings are zero, the first in row 0",
    ),
    (
      lambda x: normalization.fit(x, kind="center").apply(x[:, :4]),
      "width 4, the normalization was fitted on width 6",
    ),
  ],
)
def test_refusals(run, message):
  with pytest.raises(InputError, match=message):
    run(draw(0))


@pytest.mark.parametrize("seed", range(4))
def test_signs_of_directions_are_fixed(seed):
  directions = normalization.fit(draw(seed), kind="pca").projection
  largest = np.argmax(np.abs(directions), axis=0)
  assert np.all(directions[largest, np.arange(6)] > 0)
