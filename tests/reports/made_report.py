"""A report of made outputs, for tests of what is drawn and written of it."""

import numpy as np

from supcon.reports import report_drawings
from supcon.reports import report_facts
from supcon.reports import report_page
from tests.evaluation import made

# Names that are dangerous in HTML, in formulas and in file names.
CLASS_NAMES = ('<b>bold</b>', '$x_1$ & "y"', "it's\n", '猫 ' * 12)


def report(has_classifier=True, tsne=True, **changes):
  """Returns (report, evaluation, index, held_out) with four classes."""
  evaluation = made.outputs(
    120, skill=1.5, class_names=CLASS_NAMES, ids=[f'<i>{n}' for n in range(120)]
  )
  index = made.outputs(150, seed=1, skill=1.5, class_names=CLASS_NAMES)
  held_out = made.outputs(80, seed=2, skill=1.5, class_names=CLASS_NAMES)
  found = report_facts.measure(evaluation, index, held_out, has_classifier)
  if not tsne:
    found['map']['tsne'] = None
  whole = {
    'made': '2026-11-28T00:00:00+00:00',
    'notes': ['A <note>.'],
    'run': {
      'title': 'folder <pets>, RESNET_V1 18',
      'model_dir': '/runs/a b',
      'checkpoint': '/runs/a b/model.ckpt-30',
      'fingerprint': 'f',
      'step': 30,
      'total_steps': 40,
      'steps_per_epoch': 4.0,
      'stages': [
        {
          'number': number,
          'epochs': 5,
          'first_step': 20 * number - 20,
          'last_step': 20 * number,
          'optimizer': 'ADAM',
          'losses': '1 x contrastive',
        }
        for number in (1, 2)
      ],
      'data_name': 'folder <pets>',
      'dataset': 'folder',
      'train_split': 'train',
      'num_train_examples': 1150,
      'num_index_examples': 150,
      'eval_split': 'val',
      'num_eval_examples': 120,
      'class_names': list(CLASS_NAMES),
      'encoder': 'RESNET_V1 18, width 1',
      'versions': {'TensorFlow': '2.21.0'},
      'commit': None,
      'changed': [{'flag': 'seed', 'value': '3', 'default': '0'}],
      'compact': 'bs=4',
    },
    'curves': {
      'train': {'loss': [(0.0, 2.0), (5.0, 1.0), (7.5, 0.5)]},
      'eval': {'loss': [(0.0, 2.5), (5.0, 1.5)]},
    },
    'scaling': 'Fitted on 80 images.',
    'robustness': [],
    'files': [
      ('Checkpoint', '../model.ckpt-30.index'),
      ('Odd', '../a b?.html'),
    ],
    **found,
    **changes,
  }
  return whole, evaluation, index, held_out


def thumbnails(part, positions):
  """Returns images whose color tells the part and the position."""
  images = np.zeros([len(positions), 8, 8, 3], np.uint8)
  images[..., 0] = 255 * (part == 'index')
  images[..., 1] = np.reshape(positions, [-1, 1, 1]) % 256
  return images


def page(report):
  """Returns the page of a report."""
  return report_page.make(
    report,
    report_drawings.draw(report),
    report_drawings.pictures(report, thumbnails),
  )
