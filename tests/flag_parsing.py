"""From command-line flags to hyper-parameters, as main.py does it."""

from absl import flags

import hparams_flags


def parse(arguments, load_facts=None):
  """Returns (RunOptions, HParams) of ['--flag=value', ...]; later ones win."""
  values = flags.FlagValues()
  hparams_flags.define(values)
  values(['main.py', *arguments])
  return hparams_flags.read(values, load_facts=load_facts)
