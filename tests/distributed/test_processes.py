"""What processes agree on, by two real ones."""

import numpy as np

from gr_jax.core import processes

SCRIPT = """
import json, pathlib, sys
import jax
import numpy as np
from gr_jax.core import mesh, processes
from gr_jax.core.checks import InputError

coordinator, count, me = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.distributed.initialize(coordinator, count, me)

def refusal(call):
  try:
    call()
  except InputError as error:
    return str(error)
  return "nothing"

def read():
  with processes.together():
    if me == 1:
      raise InputError("no such file")

lines = [
  str(processes.any_of(me == 1)),
  str(processes.any_of(False)),
  str(processes.first_decides(me == 1)),
  refusal(lambda: processes.check_same("seed", "1")),
  refusal(lambda: processes.check_same("data set", str(me))),
  refusal(read),
  refusal(lambda: mesh.make_mesh(jax.devices(), model=3)),
]
grid = mesh.make_mesh(jax.devices(), data=2, model=2)
x = mesh.place(np.arange(8.0), mesh.batch_sharding(grid))
lines.append(str(not x.is_fully_addressable and mesh.to_host({"x": x})["x"]))
processes.wait("end")
pathlib.Path(sys.argv[4]).write_text(json.dumps(lines))
"""


def test_two_processes_agree_or_refuse_alike(results_of):
  lines = results_of(SCRIPT, num_processes=2, devices=2)
  for of_process in lines:
    assert of_process[:4] == ["True", "False", "False", "nothing"]
    assert of_process[4].startswith("Process 1 of 2 holds another data set")
    assert of_process[6].startswith("mesh model=3 does not divide the 4 dev")
    assert of_process[7] == str(np.arange(8.0))
  assert lines[0][5] == ("Process 1 of 2 refused its input; its log says why.")
  assert lines[1][5] == "no such file"


def test_one_process_agrees_with_itself():
  assert processes.any_of(True)
  assert not processes.any_of(False)
  assert processes.first_decides(True)
  assert processes.is_first()
  processes.check_same("anything", "a")
  processes.wait("nobody")
