"""Run by torchrun in tests: several command lines, one after the other, in the same processes. argv: JSON lists."""

import json
import sys

from diverseevol_fast._common import distributed
from diverseevol_fast.cli.main import main

with distributed.job():
    for command in map(json.loads, sys.argv[1:]):
        if status := main(command):
            sys.exit(status)
        distributed.barrier()  # the next one reads what the first process has written
