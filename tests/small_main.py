"""main.py with an encoder of two convolutions, for runs that take seconds.

Rounding does not grow in so shallow a network: whoever computes the same gets
the same weights, to float32.
"""

import os
import pathlib
import runpy
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from supcon.models import resnet  # noqa: E402
from tests.tpu import cases  # noqa: E402

resnet.Encoder = cases.SmallEncoder
runpy.run_path(str(_ROOT / 'main.py'), run_name='__main__')
