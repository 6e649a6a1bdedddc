"""Builds the C++ extension with CMake and finds the packages; all else is in pyproject.toml."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake on the repository; a failed build is said and recorded, and the install goes on without it."""

    def build_extension(self, ext):
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("DEF_CUDA", "auto")
        if cuda not in ("auto", "on", "off"):
            raise RuntimeError(f"DEF_CUDA: expected auto, on or off, got {cuda!r}")
        notes = {}  # `diverseevol env` shows them
        if cuda == "auto" and not gpu_answers():
            cuda = "off"
            notes["cuda_build.txt"] = "no NVIDIA driver answers here; DEF_CUDA=on builds them anyway"
        try:
            try:
                self._cmake(library, cuda)
            except CompileError as error:
                if cuda == "on":  # a CompileError would be taken for what the install can go on without
                    raise RuntimeError(f"DEF_CUDA=on: {error}") from error
                if cuda == "off":
                    raise
                self.warn(f"the CUDA kernels were not built ({error}); DEF_CUDA=off does without them")
                notes["cuda_build.txt"] = error
                self._cmake(library, "off")
        except (CompileError, OSError) as error:
            notes["native_build.txt"] = error
            for folder in self._folders(library.parent):
                (folder / library.name).unlink(missing_ok=True)  # of an earlier build
        self._note(library.parent, notes)
        if "native_build.txt" in notes:
            raise CompileError(
                f"the C++ kernels were not built ({notes['native_build.txt']}); diverseevol_fast works without them, "
                "slower"
            ) from notes["native_build.txt"]

    def _folders(self, folder):
        """Where the library is: in this folder, and in the checkout when it is used from there."""
        return {folder, ROOT / "diverseevol_fast"} if self.inplace or self.editable_mode else {folder}

    def _note(self, folder, notes):
        """Says beside the library why something was not built."""
        for name in ("native_build.txt", "cuda_build.txt"):
            for place in self._folders(folder):
                if name in notes:
                    (place / name).write_text(f"{notes[name]}\n", encoding="utf-8")
                else:
                    (place / name).unlink(missing_ok=True)

    def _cmake(self, library, cuda):
        import pybind11

        build = Path(self.build_temp).resolve() / "native"
        build.mkdir(parents=True, exist_ok=True)
        architectures = os.environ.get("DEF_CUDA_ARCHS")
        ninja = shutil.which("ninja")  # a cached path may be that of a build environment that is gone
        self._run(
            "cmake",
            "-S",
            ROOT,
            "-B",
            build,
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
            f"-DDEF_WERROR={os.environ.get('DEF_WERROR', 'OFF')}",
            f"-DDEF_CUDA={cuda}",
            f"-DDEF_CUDA_ARCHS={architectures}" if architectures else "-UDEF_CUDA_ARCHS",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
            f"-DDEF_LIBRARY_NAME={library.name}",
        )
        self._run("cmake", "--build", build, "--parallel", str(os.cpu_count() or 1))

    def _run(self, *command):
        command = [str(part) for part in command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        sys.stdout.write(done.stdout)
        if done.returncode != 0:
            raise CompileError(first_error(done.stdout) or f"{command[0]} exited with {done.returncode}")


def gpu_answers():
    """Whether an NVIDIA driver is here and has a GPU; asked of the driver's library, which containers have too."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def first_error(output):
    """The first line of a build's output that says what is wrong; CMake says it after a line that says where."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for place, line in enumerate(lines):
        if line.startswith("CMake Error"):
            return " ".join(lines[place : place + 2])
        if "error:" in line:
            return line
    return None


setup(
    packages=[*find_packages(include=["diverseevol_fast", "diverseevol_fast.*"]), "diverseevol_fast.triton_ops"],
    # kernels/ itself must not become a package: it would shadow the `kernels` library that transformers imports.
    package_dir={"diverseevol_fast.triton_ops": "kernels/triton_ops"},
    include_package_data=False,  # MANIFEST.in is the source distribution's; a package's own data is listed here
    package_data={
        "diverseevol_fast": ["py.typed"],
        "diverseevol_fast.demo": ["words.json"],
        "diverseevol_fast.evaluate.report": ["templates/*.html.j2"],
        "diverseevol_fast.ops": ["preference.json"],
    },
    ext_modules=[Extension("diverseevol_fast._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
