"""main.py that computes a frozen encoder's embeddings anew in every step."""

import os
import pathlib
import runpy
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from supcon.jobs import fixed_embeddings  # noqa: E402

fixed_embeddings.MAX_BYTES = 0
runpy.run_path(str(_ROOT / 'main.py'), run_name='__main__')
