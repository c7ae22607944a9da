# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder share; CMakeLists.txt sets the environment variables."""
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONSUMER = HERE / "consumer"
LLADA = ROOT / "tests/golden/models/llada-tiny"
CMAKE = os.environ.get("DLLM_CACHE_CMAKE", "cmake")
CC = os.environ.get("CC", "cc")
CXX = os.environ.get("CXX", "c++")
BINARY_DIR = Path(os.environ.get("DLLM_CACHE_BINARY_DIR", ROOT / "build/release"))


def run(*command, fails=False, **variables):
    """Output of a command; an AssertionError that holds it where its success is not as expected."""
    done = subprocess.run([str(part) for part in command], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, **variables})
    if (done.returncode != 0) != fails:
        expected = "a failure" if fails else "success"
        raise AssertionError(f"expected {expected} of {command}, which printed:\n{done.stdout}")
    return done.stdout


class InFolder(unittest.TestCase):
    """A test with a folder of its own, removed at its end."""

    def setUp(self):
        place = tempfile.TemporaryDirectory(prefix="dllm-cache-")
        self.addCleanup(place.cleanup)
        self.folder = Path(place.name)

    def install(self):
        """Installs the project; answers the prefix."""
        run(CMAKE, "--install", BINARY_DIR, "--prefix", self.folder / "prefix")
        return self.folder / "prefix"

    def configure(self, *options, build="build", fails=False):
        """Configures the consumer, unoptimised: Eigen is slow to compile. Answers the output."""
        # Spaces instead of the line breaks that CMake puts into messages.
        return " ".join(run(CMAKE, "-G", "Ninja", "-S", CONSUMER, "-B", self.folder / build,
                            f"-DCMAKE_CXX_COMPILER={CXX}", "-DCMAKE_CXX_FLAGS=-O0 -Wall -Werror",
                            *options, fails=fails).split())

    def build(self, *targets, build="build"):
        run(CMAKE, "--build", self.folder / build, "--target", *(targets or ["all"]))

    def program(self, name, *arguments, build="build"):
        return run(self.folder / build / name, *arguments)
