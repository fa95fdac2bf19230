"""Settings: unknown keys, missing ones, bad values, one-line messages."""

import pytest

from configs import beauty, office, quickstart, sasrec, tiger, toys
from gr_jax import stages
from gr_jax.core.checks import InputError
from gr_jax.training import optimizer


def _refusal(change):
  config = quickstart.get_config("smoke").to_dict()
  change(config)
  with pytest.raises(InputError) as caught:
    stages.RunConfig.from_dict(config)
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.update(tokeniser={}), "Did you mean 'tokenizer'"),
    (lambda c: c.pop("model"), "lacks the section 'model'"),
    (lambda c: c.pop("seed"), "lacks an integer 'seed'"),
    (lambda c: c["task"].update(max_histori=3), "Did you mean 'max_history'"),
    (lambda c: c["model"].update(heads=3), "key in config section 'model'"),
    (lambda c: c["tokenizer"].update(name="rqvae"), "Did you mean 'rq_vae'"),
    (lambda c: c["tokenizer"].pop("name"), "lacks 'name'; known:"),
    (
      lambda c: c.update(
        tokenizer={"name": "vae", "quantizer": {"name": "kp"}}
      ),
      "Unknown tokenizer.quantizer 'kp'; known:",
    ),
    (
      lambda c: c.update(tokenizer={"name": "vae", "quantizer": "pq"}),
      "quantizer='pq' is not of type gr_jax.tokenizers.base.Tokenizer",
    ),
    (lambda c: c.update(data={"name": "folder"}), "lacks 'path'; set --config"),
    (lambda c: c["task"].update(max_history=0), "max_history must be 1"),
    (lambda c: c["task"].update(neighbor_share=1.0), "neighbor_share must lie"),
    (
      lambda c: c["task"].update(neighbor_temperature=0.0),
      "neighbor_temperature must exceed 0; got 0.0",
    ),
    (
      lambda c: c["task"].update(history_cut_rate=0.3),
      "history_cut_rate=0.3 cuts sequences; set task.augmentation='sequences'",
    ),
    (
      lambda c: (
        c["task"].update(neighbor_share=0.3),
        c["data"].update(loader="grain"),
      ),
      "task.neighbor_share=0.3 is drawn on the device; set it to 0, or",
    ),
    (
      lambda c: c["model"].update(direct_path=True),
      "needs model.name='rq_transformer', not 'encoder_decoder', and",
    ),
    (
      lambda c: c.update(
        model=c["model"] | {"name": "rq_transformer", "direct_path": True},
        collisions={"name": "sparse_id", "num_tokens": 2},
      ),
      "'sparse_id' with num_tokens=1, not SparseId(num_tokens=2",
    ),
    (
      lambda c: c["model"].update(direct_path="yes"),
      "model.direct_path must be True or False; got 'yes'",
    ),
    (
      lambda c: c.update(
        model=c["model"] | {"name": "rq_transformer", "direct_path": True},
        collisions={"name": "sparse_id"},
        decoding=c["decoding"] | {"constrained": False},
      ),
      "model.direct_path=True leads to items alone; set decoding.constrained",
    ),
    (
      lambda c: c["decoding"].update(ensemble=True),
      "decoding.ensemble=True needs several networks; set training.replicas",
    ),
    (lambda c: c["decoding"].update(beam_width=5), "beam_width=5 must be 20"),
    (
      lambda c: c["decoding"].update(level_widths=(80, 40)),
      "decoding.level_widths=(80, 40) must be 1 or more and end in",
    ),
    (
      lambda c: c["tokenizer"].update(codebook_sizes=(8.5,)),
      "'tokenizer': codebook_sizes=(8.5,) is not of type tuple[int, ...]",
    ),
    (
      lambda c: c["tokenizer"].update(codebook_sizes=256),
      "'tokenizer': codebook_sizes=256 is not of type tuple[int, ...]",
    ),
    (
      lambda c: c["optimizer"].update(learning_rate="1e-3"),
      "'optimizer': learning_rate='1e-3' is not of type float",
    ),
    (
      lambda c: c["decoding"].update(constrained=0),
      "'decoding': constrained=0 is not of type bool",
    ),
    (
      lambda c: c["hourglass"].update(drop_level=2),
      "hourglass.drop_level=2 must be a middle level of 3",
    ),
    (lambda c: c["validation"].update(beam_width=5), "validation.beam_width=5"),
    (lambda c: c["model"].update(dtype="float8"), "Unknown dtype 'float8'"),
    (
      lambda c: c["task"].update(augmentation="prefix"),
      "Unknown task.augmentation 'prefix'; known: none, prefixes, sequences",
    ),
    (
      lambda c: c["task"].update(augmentation="sequences"),
      "needs a network that reads items; set model.name to one of "
      "['rq_transformer', 'sasrec']",
    ),
    (
      lambda c: (
        c["task"].update(num_user_buckets=8),
        c["model"].update(name="rq_transformer"),
      ),
      "model.name='rq_transformer' reads items alone; set "
      "task.num_user_buckets=0",
    ),
    (
      lambda c: (
        c["task"].update(augmentation="sequences"),
        c["model"].update(name="sasrec"),
        c["data"].update(loader="seqio"),
      ),
      "is no seqio task; set data.loader to",
    ),
  ],
)
def test_bad_settings_are_refused_before_any_work(change, message):
  assert message in _refusal(change)


def test_widths_of_the_levels():
  config = quickstart.get_config("smoke").to_dict()
  assert stages.RunConfig.from_dict(config).decoding.widths() == 50
  assert stages.RunConfig.from_dict(config).decoding.widths(at_least=70) == 70
  config["decoding"]["level_widths"] = [80, 60, 50]
  decoding = stages.RunConfig.from_dict(config).decoding
  assert decoding.widths() == (80, 60, 50)
  assert decoding.widths(at_least=70) == (80, 70, 70)


@pytest.mark.parametrize(
  ("module", "args"),
  [
    (beauty, ("", "best", "cpu", "cpu_hour")),
    (toys, ("", "best", "cpu", "cpu_hour")),
    (office, ("", "cpu")),
    (sasrec, ("beauty", "toys")),
    (tiger, ("beauty", "toys")),
  ],
)
def test_every_experiment_builds(module, args):
  for arg in args:
    stages.RunConfig.from_dict(module.get_config(arg).to_dict())
  with pytest.raises(ValueError, match="Unknown .* 'x'; use"):
    module.get_config("x")


def test_tiger_has_the_paper_s_sizes():
  built = stages.RunConfig.from_dict(tiger.get_config("toys").to_dict())
  # Section 4.1: tokens of 4 x 256 codes and 2,000 users, widths, steps.
  network = built.generator(2 + 2_000 + 4 * 256)
  assert (network.num_heads, network.head_dim, network.mlp_dim) == (6, 64, 1024)
  assert (network.emb_dim, network.num_encoder_layers) == (128, 4)
  assert built.task.num_user_buckets == 2_000
  assert (built.training.batch_size, built.training.num_steps) == (256, 100_000)
  rate = optimizer.make_schedule(built.optimizer, built.training.num_steps)
  for step, want in ((1, 0.01), (10_000, 0.01), (40_000, 0.005)):
    assert float(rate(step)) == pytest.approx(want)


def test_sections_keep_what_was_asked_for():
  config = quickstart.get_config("smoke").to_dict()
  built = stages.RunConfig.from_dict(config)
  assert built.sections["tokenizer"]["codebook_sizes"] == [8, 8, 8]
  assert built.tokenizer.codebook_sizes == (8, 8, 8)
  assert stages.RunConfig.from_dict(built.sections) == built
