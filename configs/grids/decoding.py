"""Beam widths, with the catalog's trie and without; exact scores, neighbors."""

from ml_collections import config_dict

from configs import grids


def _beams(width: int) -> grids.Cells:
  return {
    f"{name}_beam_{width}": {
      "decoding": {"constrained": constrained, "beam_width": width}
    }
    for name, constrained in (("constrained", True), ("free", False))
  }


CELLS = {
  **_beams(50),
  "beside_exact_and_neighbors": {
    "retrieval": {"num_users": 1_000, "beam_widths": (10, 50)}
  },
  **_beams(500),
  **_beams(20),
  **_beams(100),
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, decoding=CELLS)
