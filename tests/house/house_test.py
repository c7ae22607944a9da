# SPDX-License-Identifier: Apache-2.0
"""The plan of the house: which folder may include which, one room for backends, and CI in step."""
import re
import subprocess
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^#include "([^"]+)"', re.M)

# Floors from the ground up: a header includes its own floor and those below. The core's plans and
# policies come before what needs Eigen.
LIBRARY = ["base", "core", "policies", "decoding", "checkpoint", "compute", "models"]
PROGRAMS = ["text", "options", "run", "measure", "show"]
# The definitions of Workspace and the class include each other, on purpose.
ACCEPTED = {("workspace.hpp", f"detail/workspace_{part}.hpp") for part in ("step", "store", "watch")}


def headers():
    """Headers of the library by their name below include/dllm_cache."""
    folder = ROOT / "include/dllm_cache"
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.hpp"))}


def floor(name):
    """Number of the floor of a header."""
    parts = name.split("/")
    if parts[0] == "models":
        return LIBRARY.index(parts[1] if len(parts) > 2 else "models")
    if parts[0] in ("base", "policies", "decoding"):
        return LIBRARY.index(parts[0])
    return LIBRARY.index("core")


def included(path):
    """Own headers that a file includes."""
    return [name[len("dllm_cache/"):] for name in INCLUDE.findall(path.read_text(encoding="utf-8"))
            if name.startswith("dllm_cache/")]


class House(unittest.TestCase):
    def test_no_header_of_the_library_includes_one_of_a_higher_floor(self):
        for name, path in headers().items():
            if name == "dllm_cache.hpp":  # the umbrella
                continue
            for other in included(path):
                with self.subTest(header=name, includes=other):
                    self.assertLessEqual(floor(other), floor(name))

    def test_headers_include_each_other_in_no_circle_but_the_accepted_one(self):
        graph = {name: included(path) for name, path in headers().items()}
        for a, b in ACCEPTED:
            graph[b].remove(a)
        done, open_ = set(), []

        def walk(name):
            if name in open_:
                self.fail("circle: " + " -> ".join([*open_[open_.index(name):], name]))
            if name in done:
                return
            open_.append(name)
            for other in graph[name]:
                walk(other)
            done.add(open_.pop())

        for name in graph:
            walk(name)

    def test_rooms_of_the_programs_know_those_before_them_alone(self):
        folder = ROOT / "examples/programs"
        for room in PROGRAMS:
            for path in sorted((folder / room).glob("*.?pp")):
                for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
                    if not name.startswith("programs/"):
                        continue
                    with self.subTest(file=path.name, includes=name):
                        other = name.split("/")[1]
                        self.assertLessEqual(PROGRAMS.index(other), PROGRAMS.index(room))

    def test_the_library_knows_neither_programs_nor_command_lines(self):
        for name, path in headers().items():
            text = path.read_text(encoding="utf-8")
            with self.subTest(header=name):
                self.assertNotRegex(text, r'#include ["<](programs|CLI|tests|bench)/')
                if floor(name) < LIBRARY.index("checkpoint"):
                    self.assertNotIn("nlohmann", text)

    def test_policies_and_the_c_interface_see_no_eigen(self):
        done = set()

        def reach(name):
            if name not in done:
                done.add(name)
                for other in included(headers()[name]):
                    reach(other)

        for name in headers():
            if name.startswith("policies/"):
                reach(name)
        for name in included(ROOT / "packaging/c_api/dllm_cache.cpp"):
            if name != "c_api.h":
                reach(name)
        for name in done:
            text = headers()[name].read_text(encoding="utf-8")
            for word in ("Eigen", "nlohmann"):
                self.assertNotIn(word, text, name)

    def test_the_header_for_c_stands_alone(self):
        text = (ROOT / "include/dllm_cache/c_api.h").read_text(encoding="utf-8")
        self.assertEqual(re.findall(r"^#include (.+)", text, re.M), ["<stddef.h>", "<stdint.h>"])
        declared = set(re.findall(r"^DLLM_API [^(]*?(dllm_\w+)\(", text, re.M))
        source = (ROOT / "packaging/c_api/dllm_cache.cpp").read_text(encoding="utf-8")
        self.assertEqual(set(re.findall(r"^\w[\w* ]*?(dllm_\w+)\(", source, re.M)) & declared, declared)
        tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/c_api").glob("*.c"))
        for name in declared:
            self.assertIn(name + "(", tests)

    def test_backends_are_chosen_in_one_room(self):
        for name, path in headers().items():
            if "DLLM_CACHE_HAS_" in path.read_text(encoding="utf-8"):
                self.assertTrue(name.startswith("models/compute/"), name)

    def test_no_header_is_longer_than_it_needs_to_be(self):
        for name, path in headers().items():
            self.assertLessEqual(len(path.read_text(encoding="utf-8").splitlines()), 330, name)

    def test_no_folder_is_included_as_plain_support(self):
        for folder in ("include", "tests", "bench", "examples"):
            for path in (ROOT / folder).rglob("*.?pp"):
                self.assertNotRegex(path.read_text(encoding="utf-8"), r'#include "support/', str(path))

    def test_the_workflow_has_the_compilers_of_the_test_command(self):
        text = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
        legs = subprocess.run(["bash", ROOT / "tests/run.sh", "--legs"], capture_output=True,
                              text=True, check=True).stdout.split()
        self.assertEqual(re.findall(r"compiler: ([\w+-]+)\}", text), legs)
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if "compiler: " not in line or "matrix" in line:
                continue
            with self.subTest(leg=line.strip()):
                self.assertRegex(lines[number - 1].strip(), r"^# ")  # what the leg is for
                here = "debian:12" in line
                self.assertEqual(lines[number - 1].strip().startswith("# Not run on Debian 12"),
                                 not here)
        self.assertIn("- run: bash tests/run.sh\n", text)


if __name__ == "__main__":
    unittest.main()
