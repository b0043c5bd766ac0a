"""What the metrics mean, in a sentence each, and how to write them."""


def percent(value: float) -> str:
  return f'{100 * value:.2f}%'


def number(value: float) -> str:
  return f'{value:.4f}'


# (Name in supcon/evaluation/registry.py, title, form, meaning).
MEANINGS = (
  (
    'accuracy/top_1',
    'Top-1 accuracy',
    percent,
    'Share of images whose class has the largest logit.',
  ),
  *(
    (
      f'accuracy/top_{k}',
      f'Top-{k} accuracy',
      percent,
      f'Share of images whose class is among the {k} largest logits.',
    )
    for k in (2, 3, 5, 10)
  ),
  (
    'classes/macro_precision',
    'Mean precision',
    percent,
    'Of the images taken for a class, the share that is of it; mean over '
    'classes.',
  ),
  (
    'classes/macro_recall',
    'Mean recall',
    percent,
    'Of the images of a class, the share that is recognised; mean over '
    'classes.',
  ),
  (
    'classes/macro_f1',
    'Mean F1',
    percent,
    'Harmonic mean of precision and recall; mean over classes.',
  ),
  (
    'calibration/nll',
    'NLL',
    number,
    'Negative log-likelihood of the true class in nats; smaller is better, and '
    'being surely wrong is expensive.',
  ),
  (
    'calibration/ece',
    'ECE',
    number,
    'Expected calibration error: how far confidence is from accuracy, on '
    'average over 15 bins; 0 is best.',
  ),
  (
    'calibration/brier',
    'Brier score',
    number,
    'Squared error of the probabilities, summed over classes, 0 to 2; smaller '
    'is better.',
  ),
  (
    'calibration/temperature',
    'Temperature',
    number,
    'Dividing logits by it makes the probabilities of held-out training images '
    'best; above 1, the model was too confident.',
  ),
  *(
    (
      f'calibration/{name}_scaled',
      f'{title} after scaling',
      number,
      'The same with that temperature.',
    )
    for name, title in (
      ('nll', 'NLL'),
      ('ece', 'ECE'),
      ('brier', 'Brier score'),
    )
  ),
  (
    'geometry/alignment',
    'Alignment',
    number,
    'Mean squared distance between embeddings of the same class, 0 to 4; '
    'smaller is better.',
  ),
  (
    'geometry/uniformity',
    'Uniformity',
    number,
    'How evenly embeddings cover the sphere; smaller is better, and 0 means '
    'that all are the same.',
  ),
)

# The same of the summary of --mode=robustness.
OF_ROBUSTNESS = (
  (
    'clean_error',
    'Clean error',
    percent,
    'Share of the images without corruption that are taken for another class.',
  ),
  (
    'mean_error',
    'Mean error',
    percent,
    'The same for corrupted images; mean over corruptions and severities.',
  ),
  (
    'mean_ece',
    'Mean ECE',
    number,
    'Expected calibration error of corrupted images; mean over them.',
  ),
  (
    'mce',
    'mCE',
    percent,
    'Error of each corruption divided by that of AlexNet; mean over '
    'corruptions.',
  ),
  (
    'relative_mce',
    'Relative mCE',
    percent,
    'The same for what a corruption adds to the clean error.',
  ),
)
