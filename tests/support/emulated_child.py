"""A child of bench/device/device.py's check on an emulated GPU: python tests/support/emulated_child.py FAULTS KERNEL...

FAULTS is JSON: what is planted in the check of a kernel, "crash", "hang" or "wrong row".
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a program has its own folder there alone
os.environ["TRITON_INTERPRET"] = "1"  # read when a Triton kernel is defined

import torch
from support.gpu import cuda_works

from diverseevol_fast.ops import backends, check_child
from diverseevol_fast.ops.isolated import serve


def check(name: str, faults: dict[str, str]):
    """As bench/device/device.py's do_check."""
    fault, run = faults.get(name), backends.run
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(600)

    def wrong(backend, op, device, *given):
        found = run(backend, op, device, *given)
        if fault == "wrong row":  # a bound of the screen is a tenth too low: that of the farthest row
            given[3][given[3].argmax()] *= 0.9 if given[4] is None else 1.0
        return found

    backends.run = wrong
    verdict = check_child.checked(name, torch.device("cpu"), "small")
    backends.run = run
    yield asdict(verdict)


if __name__ == "__main__":
    with cuda_works(build=False):
        serve(sys.argv[2:], lambda name: check(name, json.loads(sys.argv[1])))
