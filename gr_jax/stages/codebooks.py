"""What a run's codes are worth: a page, a JSON file, runs side by side."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from gr_jax.core import checks, rng
from gr_jax.data import splits
from gr_jax.evaluation import codebook_measures, codebook_report
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import prepare, runs, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tokenizers import gradient_fit

PAGE, MEASURES = "codebooks.html", "codebooks.json"


def load_run(
  config: RunConfig, workdir: Workdir, *, name: str
) -> codebook_measures.CodebookRun:
  """Reads a tokenized workdir: the items that the tokenizer was fitted on.

  Hit rates compare with what users chose in the validation part, never with
  test items.

  Args:
    config: The run's settings.
    workdir: Where it lies.
    name: What to call it.

  Raises:
    InputError: It was not tokenized yet, or its parts do not belong together.
  """
  stored = prepare.load_data(workdir)
  embeddings, table = prepare.load_embeddings(workdir, stored)
  tokenizer = semantic_ids.load_tokenizer(config, workdir, embeddings, table)
  facts, sids = tokenizer.artifact.metadata, None
  if workdir.path("sids").exists():
    saved = workdir.load_child("sids", {"tokenizer": tokenizer.artifact})
    sids = SidCatalog.from_arrays(saved.arrays)
  validation = splits.leave_one_out(stored.interactions).validation
  return codebook_measures.CodebookRun(
    name=name,
    catalog=stored.catalog,
    vectors=table.vectors,
    codes=tokenizer.codes,
    codebook_sizes=config.tokenizer.codebook_sizes,
    decode=lambda codes: config.tokenizer.decode(
      tokenizer.state, jnp.asarray(codes)
    ),
    hierarchical=config.tokenizer.hierarchical,
    sids=sids,
    pairs=codebook_measures.next_item_pairs(stored.interactions, validation),
    seconds=facts["seconds"],
    alarms=facts["alarms"],
    curves={n: list(map(float, curve)) for n, curve in facts["curves"].items()},
    unquantized=facts.get("unquantized_relative_mse"),
  )


def report(
  config: RunConfig, workdir: Workdir, *, projection: str = "pca"
) -> pathlib.Path:
  """Writes the page and the measures of a tokenized run into its workdir.

  Args:
    config: The run's settings.
    workdir: Where it lies.
    projection: Of the map, one of `codebook_figures.PROJECTIONS`.

  Returns:
    The page's path.

  Raises:
    InputError: As `load_run`; unknown projection.
  """
  run = load_run(config, workdir, name=_name(workdir))
  measures = _measure(config, run)
  text = codebook_report.page(run, measures, projection=projection)
  path = workdir.root / PAGE
  _write(path, text)
  _write(workdir.root / MEASURES, _json(measures))
  logging.info("codebooks: wrote %s and %s.", path, MEASURES)
  return path


def compare_tokenizers(
  config: RunConfig,
  workdir: Workdir,
  sections: Mapping[str, Mapping[str, Any]],
) -> str:
  """Fits several tokenizers to the same embeddings; compares them.

  Args:
    config: Data, embeddings and all else; its tokenizer is not used.
    workdir: Gets a workdir for each tokenizer, and the comparison's page.
    sections: Tokenizer settings by the name of their workdir.

  Returns:
    The table as Markdown; fits by gradient are named with their steps.

  Raises:
    InputError: The data, or a tokenizer's settings, are refused.
  """
  configs = {
    name: RunConfig.from_dict({**config.sections, "tokenizer": dict(section)})
    for name, section in sections.items()
  }
  workdirs, names = [], []
  for name, each in configs.items():
    own = Workdir(workdir.root / name)
    runs.embed(each, own)
    runs.tokenize(each, own)
    workdirs.append(own)
    names.append(name + _steps(each, own))
  return compare(workdirs, workdir.root / PAGE, names=names)


def _steps(config: RunConfig, workdir: Workdir) -> str:
  """Says how many steps a fit by gradient took."""
  if not isinstance(config.tokenizer, gradient_fit.GradientOptions):
    return ""
  num_rows = prepare.load_data(workdir).catalog.num_items
  _, steps = gradient_fit.num_steps(config.tokenizer, num_rows)
  return f", {steps * config.tokenizer.num_epochs:,} steps"


def compare(
  workdirs: Sequence[Workdir],
  page: pathlib.Path,
  *,
  names: Sequence[str] = (),
) -> str:
  """Measures several runs and writes them side by side.

  Args:
    workdirs: Of tokenized runs.
    page: Where the HTML page goes; the measures lie beside it as JSON.
    names: What to call them, by default after their folders.

  Returns:
    The table as Markdown.

  Raises:
    InputError: As `load_run`; no run; a page that is no .html file.
  """
  if page.suffix != ".html":
    raise checks.InputError(
      f"The comparison is a page: name it *.html, not {str(page)!r}."
    )
  names = list(names) or [_name(workdir) for workdir in workdirs]
  if len(set(names)) < len(names):  # folders of one name in several places
    names = [str(workdir.root) for workdir in workdirs]
  measured = []
  for workdir, name in zip(workdirs, names, strict=True):
    config = workdir.read_config()
    measured.append(_measure(config, load_run(config, workdir, name=name)))
  text = codebook_report.comparison_markdown(measured)
  page.parent.mkdir(parents=True, exist_ok=True)
  _write(page, codebook_report.comparison_page(measured))
  _write(page.with_suffix(".json"), _json(measured))
  return text


def _name(workdir: Workdir) -> str:
  return workdir.root.resolve().name


def _measure(
  config: RunConfig, run: codebook_measures.CodebookRun
) -> dict[str, Any]:
  generator = rng.numpy_generator(jax.random.key(config.seed), "codebooks")
  return codebook_measures.measure(run, generator=generator)


def _json(value: Any) -> str:
  return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _write(path: pathlib.Path, text: str) -> None:
  path.write_text(text, encoding="utf-8")
