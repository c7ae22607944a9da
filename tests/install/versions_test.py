# SPDX-License-Identifier: Apache-2.0
"""The version is written in several files: they must agree."""
import json
import re
import unittest

from support import ROOT


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def numbers(version):
    return tuple(int(part) for part in version.split("."))


class Versions(unittest.TestCase):
    version = re.search(r"project\(dllm_cache VERSION (\S+)", read("CMakeLists.txt")).group(1)

    def test_headers_and_packages_have_the_version_of_the_project(self):
        found = {
            "version.hpp": re.search(r'version = "([^"]+)"', read("include/dllm_cache/version.hpp")),
            "conanfile.py": re.search(r'^    version = "([^"]+)"',
                                      read("packaging/conan/conanfile.py"), re.M),
        }
        versions = {name: match and match.group(1) for name, match in found.items()}
        versions["vcpkg.json"] = json.loads(read("packaging/vcpkg/vcpkg.json"))["version"]
        self.assertEqual(versions, dict.fromkeys(versions, self.version))

    def test_every_header_is_in_the_inline_namespace_of_the_version(self):
        namespace = "v" + "_".join(self.version.split(".")[:2])
        for path in sorted((ROOT / "include").rglob("*.hpp")):
            opened = re.findall(r"^namespace dllm_cache(\S*(?: \w+)?)", path.read_text(encoding="utf-8"), re.M)
            for name in opened:
                with self.subTest(header=path.name):
                    self.assertTrue(name.startswith(f"::inline {namespace}"), name)

    def test_changelog_ends_at_the_version_or_before_it_where_more_is_unreleased(self):
        headings = re.findall(r"^## \[?([\w.]+)", read("CHANGELOG.md"), re.M)
        released = [heading for heading in headings if heading[0].isdigit()]
        if not released:
            return
        if headings[0] == "Unreleased":
            self.assertLessEqual(numbers(released[0]), numbers(self.version))
        else:
            self.assertEqual(released[0], self.version)


if __name__ == "__main__":
    unittest.main()
