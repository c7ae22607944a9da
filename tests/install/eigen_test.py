# SPDX-License-Identifier: Apache-2.0
"""Machines with other versions of Eigen: version files as its own build writes them, before this machine's headers."""
import os
import unittest

from support import CMAKE, CONSUMER, CXX, ROOT, InFolder, run


class Versions(InFolder):
    def setUp(self):
        super().setUp()
        # Read once the compiler is found: from then on this machine's own Eigen is not to be.
        self.hide = self.folder / "hide.cmake"
        self.hide.write_text("set(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH OFF)\n"
                             "set(CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH OFF)\n", encoding="utf-8")
        self.ways = {"subdirectory": ["-DWAY=subdirectory", f"-DSOURCE={ROOT}"], "package": []}

    def eigen(self, version):
        """A folder where Eigen of a version is installed."""
        place = self.folder / f"eigen-{version}"
        package = place / "share/eigen3/cmake"
        package.mkdir(parents=True)
        (package / "Eigen3Config.cmake").write_text(
            "add_library(Eigen3::Eigen INTERFACE IMPORTED)\n"
            "set_target_properties(Eigen3::Eigen PROPERTIES INTERFACE_INCLUDE_DIRECTORIES"
            f" \"{os.environ['DLLM_CACHE_EIGEN']}\")\n", encoding="utf-8")
        script = self.folder / "version.cmake"
        script.write_text(
            "include(CMakePackageConfigHelpers)\n"
            f"write_basic_package_version_file({package}/Eigen3ConfigVersion.cmake VERSION {version}\n"
            "  COMPATIBILITY SameMajorVersion ARCH_INDEPENDENT)\n", encoding="utf-8")
        run(CMAKE, "-P", script)
        return place

    def both_ways(self, name, places, *options, fails=False):
        """Configures the consumer as a parent project and with the installed package; answers what was printed."""
        prefix = ";".join(str(place) for place in [self.folder / "prefix", *places])
        for way, how in self.ways.items():
            output = self.configure(f"-DCMAKE_PREFIX_PATH={prefix}", *how, *options,
                                    f"-DCMAKE_PROJECT_consumer_INCLUDE={self.hide}",
                                    build=f"{name}-{way}", fails=fails)
            cache = (self.folder / f"{name}-{way}/CMakeCache.txt").read_text(encoding="utf-8")
            yield output, next(line.split("=", 1)[1] for line in cache.splitlines()
                               if line.startswith("Eigen3_DIR:"))

    def test_eigen_3_4_and_5_are_accepted_by_the_project_and_its_package(self):
        self.install()
        for version in ("3.4.0", "5.0.1"):
            place = self.eigen(version)
            for _, found in self.both_ways(version, [place]):
                self.assertTrue(found.startswith(str(place)), found)
        for _, found in self.both_ways("dir", [], f"-DEigen3_DIR={place}/share/eigen3/cmake"):
            self.assertTrue(found.startswith(str(place)), found)

    def test_the_first_in_search_order_that_can_be_used_is_taken(self):
        self.install()
        places = [self.eigen(version) for version in ("3.3.9", "6.0.0", "5.0.1", "3.4.0")]
        for _, found in self.both_ways("first", places):
            self.assertTrue(found.startswith(str(places[2])), found)

    def test_other_versions_are_refused_with_what_was_found_and_what_is_accepted(self):
        self.install()
        places = [self.eigen(version) for version in ("3.3.9", "6.0.0")]
        for output, _ in self.both_ways("other", places, fails=True):
            self.assertIn("dllm_cache needs Eigen 3.4 or 5, found 3.3.9", output)
            self.assertIn("6.0.0", output)
        for output, _ in self.both_ways("none", [], fails=True):
            self.assertIn("dllm_cache needs Eigen 3.4 or 5, found none", output)


class Headers(InFolder):
    def test_core_runs_on_the_headers_of_eigen_5(self):
        program = self.folder / "core"
        run(CXX, "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}",
            "-isystem", os.environ["DLLM_CACHE_EIGEN_5"], CONSUMER / "core.cpp", "-o", program)
        self.assertIn("dllm_cache 0.", run(program))


if __name__ == "__main__":
    unittest.main()
