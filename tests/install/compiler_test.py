# SPDX-License-Identifier: Apache-2.0
"""What the compiler in CXX makes of the headers: both standards, Eigen's defaults, no exceptions."""
import os
import unittest

from support import CONSUMER, CXX, ROOT, InFolder, run

HEADERS = [f"-I{ROOT / 'include'}", "-isystem", os.environ["DLLM_CACHE_EIGEN"]]
OTHER_DEFAULTS = ["-DEIGEN_DEFAULT_DENSE_INDEX_TYPE=int", "-DEIGEN_DEFAULT_TO_ROW_MAJOR"]


class Compiler(InFolder):
    def compile(self, file, *options, fails=False):
        return run(CXX, "-O0", *HEADERS, *options, CONSUMER / file, fails=fails)

    def test_core_runs_in_both_standards(self):
        for standard in ("20", "2b"):
            program = self.folder / standard
            self.compile("core.cpp", f"-std=c++{standard}", "-o", program)
            self.assertIn("dllm_cache 0.", run(program))

    def test_models_compile_in_the_newer_standard(self):
        self.compile("models.cpp", "-std=c++2b", "-fsyntax-only")

    def test_core_does_the_same_where_a_program_changes_eigens_defaults(self):
        outputs = []
        for name, options in (("usual", []), ("changed", OTHER_DEFAULTS)):
            program = self.folder / name
            self.compile("core.cpp", "-std=c++20", "-Wall", "-Wextra", "-Werror", *options, "-o", program)
            outputs.append(run(program))
        self.assertEqual(*outputs)

    def test_models_compile_where_a_program_changes_eigens_defaults(self):
        self.compile("models.cpp", "-std=c++20", "-fsyntax-only", *OTHER_DEFAULTS)

    def test_no_exceptions_are_refused_with_a_reason(self):
        output = self.compile("core.cpp", "-std=c++20", "-fno-exceptions", "-fsyntax-only",
                              fails=True)
        self.assertIn("dllm_cache reports errors by exceptions: compile with exceptions", output)


if __name__ == "__main__":
    unittest.main()
