# SPDX-License-Identifier: Apache-2.0
"""The single header of the core, included by two files of one program."""
import os
import re
import subprocess
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


    def test_two_versions_of_it_meet_in_one_program(self):
        header = self.folder / "dllm_cache_all.hpp"
        run(sys.executable, ROOT / "packaging/single_header.py", header)
        text = header.read_text(encoding="utf-8")
        version = re.search(r"namespace dllm_cache::inline (\w+)", text).group(1)
        rows = "return static_cast<Index>(m_workspace->m_rows.size());"
        self.assertEqual(text.count(rows), 1)
        older = self.folder / "older"
        older.mkdir()
        # It counts one row more: were the two taken for one, both files would count alike.
        (older / "dllm_cache_all.hpp").write_text(
            text.replace(version, "v0_0").replace(rows, rows.replace(";", " + 1;")),
            encoding="utf-8")
        for name, folder in (("first", self.folder), ("second", older)):
            run(CXX, "-std=c++20", "-O0", f"-I{folder}", "-isystem", os.environ["DLLM_CACHE_EIGEN"],
                "-c", HERE / f"single/{name}.cpp", "-o", self.folder / f"{name}.o")
        run(CXX, self.folder / "first.o", self.folder / "second.o", "-o", self.folder / "program")
        found = subprocess.run([self.folder / "program"], capture_output=True, text=True, check=False)
        self.assertIn("8 and 9 rows", found.stdout)


if __name__ == "__main__":
    unittest.main()
