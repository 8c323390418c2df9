"""``python -m nni_cssnas.bridge.nni_module nni.MODULE ...`` does what ``python -m nni.MODULE ...`` does, after this package.

So NNI loads less (:mod:`nni_cssnas.bridge.deferred`).
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
