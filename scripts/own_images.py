"""Chooses how to train on a directory of images, for scripts/own_images.sh.

  python scripts/own_images.py DIR [FLAGS of main.py]

It prints the chosen flags, one per line, and prints on standard error what it
has found and why it chose them. If flags or names are wrong, it instead prints
a line for each mistake, all at once, and ends with status 2. main.py looks for
images that cannot be decoded.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags  # noqa: E402
from absl import logging  # noqa: E402

import hparams_flags  # noqa: E402
from supcon.compute import installation  # noqa: E402
from supcon.config import path_names  # noqa: E402
from supcon.config import recipes  # noqa: E402
from supcon.config import safe_text  # noqa: E402
from supcon.runs import terminal  # noqa: E402

_USAGE = (
  'usage: scripts/own_images.sh DIR [FLAGS], where DIR holds a folder of images'
  ' for each class, DIR/CLASS/*.png, or DIR/train/CLASS/*.png and'
  ' DIR/val/CLASS/*.png'
)


def main(argv):
  """Prints flags or mistakes; returns the exit code."""
  if len(argv) < 2 or argv[1].startswith('-'):
    return _refuse([_USAGE])
  data_dir, arguments = argv[1], argv[2:]
  mistakes, values = [], flags.FlagValues()
  hparams_flags.define(values)
  flags.DEFINE_integer('verbosity', 0, '', flag_values=values)
  try:
    rest = values([argv[0], *arguments])[1:]
    mistakes += [f'{a!r} is no flag; give --name=value.' for a in rest]
  except flags.Error as error:
    mistakes.append(hparams_flags.explain_parsing(error))
  given = {}
  if values.is_parsed():
    given = {
      name: values[name].value for name in values if values[name].present
    }

  installation.load()  # Late, as it takes seconds.
  from supcon.data.sources import datasets
  from supcon.data.sources import orientation
  from supcon.data.sources import survey

  try:
    data_dir = path_names.expanded(data_dir)
    layout = survey.layout_of(
      data_dir, given.get('train_split', ''), given.get('eval_split', '')
    )
    if isinstance(layout, str):
      mistakes.append(layout)
    else:
      mistakes += survey.mistakes_in(data_dir, layout)
  except ValueError as error:  # An unreadable name.
    mistakes.append(str(error))
  if mistakes:
    return _refuse(mistakes)

  try:
    dataset = datasets.load(
      'folder',
      data_dir,
      max_train_examples=given.get('num_images', 0),
      train_split=layout.train,
      eval_split=layout.evaluation,
      max_eval_examples=given.get('num_eval_images', 0),
    )
    images = survey.look_at(dataset.train)
    facing = orientation.of_split(dataset.train)
  except ValueError as error:
    return _refuse([str(error)])
  recipe = recipes.choose(
    recipes.Facts(
      class_sizes=survey.class_sizes(dataset),
      num_eval=dataset.num_eval_examples,
      sides=images.sides,
      is_grey=images.is_grey,
      flips=not facing.matters,
      orientation=facing.finding(),
      num_cores=_num_cores(),
      num_gpus=_num_gpus(given),
    ),
    given,
  )
  chosen = {
    'data_dir': data_dir,
    'train_split': layout.train,
    'eval_split': layout.evaluation,
    **recipe.flags,
  }
  chosen = [
    f'--{name}={value}' for name, value in chosen.items() if name not in given
  ]
  # Print the chosen flags only if they are valid together with the given ones.
  if mistake := _mistake_in([*chosen, *arguments]):
    return _refuse([mistake])
  for line in recipe.reasons:
    _say(line)
  if layout.is_parted:
    _say(
      'evaluated on a fifth of each class, the same one every time '
      f'(--eval_split={layout.evaluation}), which is not trained on; put '
      'images into val/CLASS to choose them yourself'
    )
  print('\n'.join(chosen))
  return 0


def _num_cores():
  """Returns the number of CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _num_gpus(given):
  import tensorflow as tf

  with terminal.hidden_stderr():  # Hides output of CUDA.
    found = len(tf.config.list_physical_devices('GPU'))
  wanted = given.get('num_gpus', -1)
  return found if wanted < 0 else min(found, wanted)


def _mistake_in(arguments):
  """Returns what is wrong with a combination of flags; '' if nothing."""
  values = flags.FlagValues()
  hparams_flags.define(values)
  flags.DEFINE_integer('verbosity', 0, '', flag_values=values)
  try:
    values(['', *arguments])
    _, params = hparams_flags.read(values)
    params.check()
  except (ValueError, flags.Error) as error:
    return str(error)
  return ''


def _refuse(mistakes):
  for mistake in mistakes:
    _say(f'error: {mistake}')
  return 2


def _say(line):
  print(f'own_images: {safe_text.one_line(line)}', file=sys.stderr)


if __name__ == '__main__':
  logging.set_verbosity(logging.ERROR)  # Findings are printed in other words.
  sys.exit(main(sys.argv))
