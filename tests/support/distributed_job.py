"""Run by torchrun in tests: several command lines, one after the other, in the same processes. argv: JSON lists."""

import json
import os
import sys
from pathlib import Path

from diverseevol_fast._common import distributed
from diverseevol_fast.cli.main import main

with distributed.job():
    for command in map(json.loads, sys.argv[1:]):
        if status := main(command):
            sys.exit(status)
        distributed.barrier()  # the next one reads what the first process has written

names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
if os.environ["WORLD_SIZE"] != "1" and (left := [name for name in names if "gloo" in name]):
    sys.exit(f"expected the job to have ended its threads, got {left}: one that outlives the interpreter aborts it")
