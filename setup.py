"""Builds the C++ extension with CMake and lists the packages; all else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake on the repository; a failed build is said and recorded, and the install goes on without it."""

    def build_extension(self, ext):
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        note = library.parent / "native_build.txt"  # `diverseevol env` shows it
        try:
            self._cmake(library)
        except (CompileError, OSError) as error:
            for stale in (library, ROOT / "diverseevol_fast" / library.name):
                stale.unlink(missing_ok=True)
            note.write_text(f"{error}\n", encoding="utf-8")
            if self.inplace or self.editable_mode:
                (ROOT / "diverseevol_fast" / note.name).write_text(f"{error}\n", encoding="utf-8")
            raise CompileError(
                f"the C++ kernels were not built ({error}); diverseevol_fast works without them, slower"
            ) from error
        for stale in (note, ROOT / "diverseevol_fast" / note.name):
            stale.unlink(missing_ok=True)

    def _cmake(self, library):
        import pybind11

        build = Path(self.build_temp).resolve() / "native"
        build.mkdir(parents=True, exist_ok=True)
        self._run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                  f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                  f"-DPython_EXECUTABLE={sys.executable}",
                  f"-DDEF_WERROR={os.environ.get('DEF_WERROR', 'OFF')}",
                  f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
                  f"-DDEF_LIBRARY_NAME={library.name}")  # fmt: skip
        self._run("cmake", "--build", build, "--parallel", str(os.cpu_count() or 1))

    def _run(self, *command):
        command = [str(part) for part in command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        sys.stdout.write(done.stdout)
        if done.returncode != 0:
            errors = [line.strip() for line in done.stdout.splitlines() if "error:" in line or "Error" in line]
            raise CompileError(errors[0] if errors else f"{command[0]} exited with {done.returncode}")


setup(
    packages=[
        "diverseevol_fast",
        "diverseevol_fast.ops",
        "diverseevol_fast.selection",
        "diverseevol_fast.triton_ops",
    ],
    # kernels/ itself must not become a package: it would shadow the `kernels` library that transformers imports.
    package_dir={"diverseevol_fast.triton_ops": "kernels/triton_ops"},
    ext_modules=[Extension("diverseevol_fast._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
