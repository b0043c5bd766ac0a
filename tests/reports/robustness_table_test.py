"""Tests of the tables of errors under corruptions."""

from supcon.evaluation import robustness
from supcon.reports import robustness_table


def _measured(errors):
  return {key: {'error': e, 'ece': 0.125, 'n': 8} for key, e in errors.items()}


_CLEAN = {'error': 0.25, 'ece': 0.0625, 'n': 4}


def test_text_of_a_set_without_alexnet():
  measured = _measured({('fog', 1): 0.5, ('fog', 2): 0.75, ('saturate', 1): 1})
  measured['saturate', 2] = measured['saturate', 1]
  summary = robustness.summarize(measured, _CLEAN, is_imagenet_c=False)
  text = robustness_table.text(measured, {**summary, 'mce_note': 'no mCE'})
  assert [line.split() for line in text.splitlines()[1:6]] == [
    ['error', 'in', '%,', 'severity:', '1', '2', 'mean', 'ECE'],
    ['fog', '50.00', '75.00', '62.50', '12.50'],
    ['saturate', '*', '100.00', '100.00', '100.00', '12.50'],
    ['mean', 'error', '50.00', '75.00', '62.50'],
    ['mean', 'ECE', '12.50', '12.50', '12.50'],
  ]
  assert text.splitlines()[6:] == [
    '* not counted in any mean',
    'Clean images: error 25.00%, ECE 6.25%. Corrupted ones: mean error 62.50%, '
    'mean ECE 12.50%.',
    '(no mCE)',
  ]


def test_text_of_imagenet_c():
  alexnet = robustness.ALEXNET_ERRORS
  measured = _measured(
    {(c, s): e for c, e in alexnet.items() for s in range(5)}
  )
  clean = {**_CLEAN, 'error': robustness.ALEXNET_CLEAN_ERROR}
  summary = robustness.summarize(measured, clean, is_imagenet_c=True)
  text = robustness_table.text(measured, {**summary, 'mce_note': ''})
  (row,) = [line.split() for line in text.splitlines() if 'snow' in line]
  assert row == ['snow', *6 * ['86.68'], '12.50', '100.00']
  assert text.endswith('\nmCE 100.00%, relative mCE 100.00% (AlexNet: 100%).')


def test_csv_has_a_row_for_each_set():
  text = robustness_table.as_csv(_measured({('fog', 1): 0.5}), _CLEAN)
  assert text == (
    'corruption,severity,n,error,ece\n'
    'clean,0,4,0.25,0.0625\n'
    'fog,1,8,0.5,0.125\n'
  )
