"""Runs the extension's tests on a sanitized build of it: python tests/sanitize.py FOLDER_OF_THE_BUILD."""

import importlib.util
import sys
from pathlib import Path

import pytest

import diverseevol_fast

library = next(Path(sys.argv[1]).glob("_native*.so"))
spec = importlib.util.spec_from_file_location("diverseevol_fast._native", library)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = diverseevol_fast._native = module
spec.loader.exec_module(module)

here = Path(__file__).parent
files = [str(here / "ops" / "test_masked_mean_pool.py")]
files += [str(here / "selection" / f"test_{name}.py") for name in ("kcenter", "traversal", "stream", "host_rows")]
# Address space and peak memory mean nothing under AddressSanitizer; Triton's interpreter tests no C++.
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "not memory and not triton", *files]))
