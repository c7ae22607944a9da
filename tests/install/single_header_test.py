# SPDX-License-Identifier: Apache-2.0
"""The single header of the core, included by two files of one program."""
import os
import sys
import unittest

from support import CXX, HERE, ROOT, InFolder, run


class SingleHeader(InFolder):
    def test_two_files_that_include_it_make_one_program(self):
        header = self.folder / "dllm_cache_all.hpp"
        run(sys.executable, ROOT / "packaging/single_header.py", header)
        self.assertNotIn('#include "', header.read_text(encoding="utf-8"))
        run(CXX, "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{self.folder}", "-isystem",
            os.environ["DLLM_CACHE_EIGEN"], HERE / "single/first.cpp", HERE / "single/second.cpp",
            "-o", self.folder / "program")
        self.assertIn("8 and 8 rows", run(self.folder / "program"))


if __name__ == "__main__":
    unittest.main()
