"""Processes meet before JAX joins them; who is missing is named."""

import concurrent.futures
import socket

import pytest

from gr_jax import stages
from launch import rendezvous


def _port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _meet(ids, *, num_processes=3, timeout=5, hashes=None):
  """Returns what each process was told; "" lets it go on."""
  coordinator = f"127.0.0.1:{_port()}"

  def one(place, process_id):
    job = rendezvous.Job(coordinator, num_processes, process_id, timeout)
    try:
      rendezvous.meet(job, (hashes or {}).get(place, "same"))
    except stages.InputError as error:
      return str(error)
    return ""

  with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
    return list(pool.map(one, range(len(ids)), ids))


def test_all_present_go_on():
  assert _meet([2, 1, 0]) == ["", "", ""]


def test_a_missing_process_is_named_on_all_others():
  told = _meet([0, 2], timeout=1)
  assert told[0] == told[1]
  assert told[0].startswith("Process 1 of 3 did not come within 1 s")


def test_another_configuration_is_named_on_all():
  told = _meet([0, 1, 2], hashes={2: "other"})
  assert len(set(told)) == 1
  assert told[0].startswith("Process 2 of 3 has another configuration than")


def test_two_with_one_number_are_refused():
  told = _meet([0, 1, 1])
  assert told[0] == "Two processes say they are --process_id=1."
  assert set(told) == {told[0]}


def test_an_absent_first_process_is_named():
  (told,) = _meet([1], timeout=1)
  assert told.startswith("Process 0 did not answer at 127.0.0.1:")


def test_strangers_on_the_port_are_ignored():
  port = _port()
  job = rendezvous.Job(f"127.0.0.1:{port}", 2, 0, 10)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(rendezvous.meet, job, "same")
    stranger = None
    while stranger is None:
      try:
        stranger = socket.create_connection(("127.0.0.1", port), timeout=5)
      except OSError:
        continue
    with stranger:
      stranger.sendall(b"GET / HTTP/1.1\n")
    second = rendezvous.Job(f"127.0.0.1:{port}", 2, 1, 10)
    pool.submit(rendezvous.meet, second, "same").result()
    first.result()


@pytest.mark.parametrize(
  ("place", "message"),
  [
    (("localhost", 2, 0), "'localhost' must be HOST:PORT"),
    (("localhost:x", 2, 0), "must be HOST:PORT"),
    (("localhost:80", 2, 2), r"--process_id=2 must be in 0\.\.1"),
  ],
)
def test_places_that_do_not_exist(place, message):
  with pytest.raises(stages.InputError, match=message):
    rendezvous.Job(*place)
