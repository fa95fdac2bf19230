"""A disk that is full while an artifact is written."""

import errno

import numpy as np
import pytest

from gr_jax.core import artifact


@pytest.mark.parametrize("writes_before_full", [0, 1])
def test_a_full_disk_leaves_the_older_artifact(
  tmp_path, monkeypatch, writes_before_full
):
  def save(value):
    arrays = {"a": np.full(4, value), "b": np.full(4, value)}
    return artifact.save(
      tmp_path / "thing", kind="thing", config={"v": value}, arrays=arrays
    )

  save(1)
  before = sorted(tmp_path.rglob("*"))
  usual, calls = np.save, iter(range(100))

  def full(*args, **kwargs):
    if next(calls) >= writes_before_full:
      raise OSError(errno.ENOSPC, "No space left on device")
    usual(*args, **kwargs)

  monkeypatch.setattr(artifact.np, "save", full)
  with pytest.raises(OSError, match="No space left on device"):
    save(2)
  assert sorted(tmp_path.rglob("*")) == before
  assert artifact.load(tmp_path / "thing", kind="thing").config == {"v": 1}
  monkeypatch.undo()
  assert save(2).config == {"v": 2}
