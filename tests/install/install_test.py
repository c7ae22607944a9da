# SPDX-License-Identifier: Apache-2.0
"""Each way to use the library from another project."""
import os
import shutil
import unittest

from support import CC, CMAKE, CONSUMER, CXX, LLADA, ROOT, InFolder, run

BACKEND = "oneDNN" if os.environ.get("DLLM_CACHE_HAS_ONEDNN") == "1" else "Eigen"
NO_JSON = "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"
NO_ONEDNN = "-DCMAKE_DISABLE_FIND_PACKAGE_OneDNN=ON"


class FindPackage(InFolder):
    def setUp(self):
        super().setUp()
        self.prefix = self.install()

    def configure(self, *options, **how):
        return super().configure(f"-DCMAKE_PREFIX_PATH={self.prefix}", *options, **how)

    def test_every_header_is_installed(self):
        def headers(root):
            return sorted(str(path.relative_to(root)) for path in root.rglob("*.h*"))

        self.assertEqual(headers(self.prefix / "include"), headers(ROOT / "include"))

    def test_core_and_models(self):
        self.configure("-DCOMPONENTS=models", "-DMODELS=ON")
        self.build()
        self.assertIn("dllm_cache 0.", self.program("core"))
        self.assertIn(f"backend {BACKEND}, 480 logits", self.program("models", LLADA))

    def test_models_on_eigen_where_onednn_is_missing(self):
        self.configure("-DMODELS=ON", NO_ONEDNN)
        self.build("models")
        self.assertIn("backend Eigen, 480 logits", self.program("models", LLADA))

    def test_core_where_the_json_library_is_missing(self):
        for options in ([], ["-DCOMPONENTS=core"]):
            self.configure(NO_JSON, *options)
        self.build()
        self.assertIn("dllm_cache 0.", self.program("core"))

    def test_core_component_alone_brings_no_models(self):
        self.configure("-DCOMPONENTS=core")

    def test_models_asked_for_without_the_json_library_are_refused(self):
        output = self.configure(NO_JSON, "-DCOMPONENTS=models", fails=True)
        self.assertIn("component models: needs nlohmann_json 3.11 or newer", output)

    def test_an_unknown_component_is_refused(self):
        output = self.configure("-DCOMPONENTS=core;modles", fails=True)
        self.assertIn("component modles: not known, there are core and models", output)

    def test_other_minor_versions_are_refused(self):
        for version in ("99", "1.0", "0.2", "0.0"):
            output = self.configure(f"-DVERSION={version}", build=version, fails=True)
            self.assertIn(f'compatible with requested version "{version}"', output)
        self.configure("-DVERSION=0.1", build="right")


class Source(InFolder):
    """The source tree inside of another project."""

    def prepare(self, way, *options):
        self.configure(f"-DWAY={way}", f"-DSOURCE={ROOT}", *options)

    def targets(self):
        return run(CMAKE, "--build", self.folder / "build", "--target", "help")

    def test_add_subdirectory(self):
        self.prepare("subdirectory", "-DMODELS=ON")
        self.build()
        self.assertIn("dllm_cache 0.", self.program("core"))
        self.assertIn(f"backend {BACKEND}, 480 logits", self.program("models", LLADA))

    def test_fetch_content(self):
        self.prepare("fetch")
        self.build("core")
        self.assertIn("dllm_cache 0.", self.program("core"))

    def test_tests_examples_and_benchmarks_are_not_built(self):
        self.prepare("subdirectory")
        for program in ("core_tests", "quickstart", "bench_core"):
            self.assertNotIn(program, self.targets())

    def test_installed_with_the_other_project_only_when_asked_for(self):
        for option, installed in (("OFF", False), ("ON", True), (None, False)):
            build = f"build-{option}"
            self.configure("-DWAY=subdirectory", f"-DSOURCE={ROOT}", build=build,
                           *([f"-DDLLM_CACHE_INSTALL={option}"] if option else []))
            prefix = self.folder / f"prefix-{option}"
            run(CMAKE, "--install", self.folder / build, "--prefix", prefix)
            self.assertEqual((prefix / "include/dllm_cache/dllm_cache.hpp").exists(), installed)


class CInterface(InFolder):
    """The header in C99, beside the one source file, which needs no Eigen."""

    def test_c_program_on_an_installation(self):
        prefix = self.install()
        include, program = f"-I{prefix / 'include'}", self.folder / "program"
        run(CXX, "-std=c++20", "-O0", "-Wall", "-Werror", include, "-c", "-o", self.folder / "c_api.o",
            prefix / "share/cmake/dllm_cache/c_api/dllm_cache.cpp")
        run(CC, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", include, "-c",
            "-o", self.folder / "main.o", CONSUMER / "plans.c")
        run(CXX, self.folder / "main.o", self.folder / "c_api.o", "-o", program)
        self.assertIn("dllm_cache 0.", run(program))

    def test_target_of_the_source_tree_is_built_for_those_who_link_it(self):
        self.configure("-DWAY=subdirectory", f"-DSOURCE={ROOT}", "-DC_INTERFACE=ON")
        self.build("plans")
        self.assertIn("dllm_cache 0.", self.program("plans"))


class PkgConfig(InFolder):
    def test_flags_compile_the_core_after_the_installation_was_moved(self):
        moved = shutil.move(self.install(), self.folder / "moved")
        flags = run("pkg-config", "--cflags", "dllm_cache >= 0.1",
                    PKG_CONFIG_PATH=str(moved / "share/pkgconfig")).split()
        run(CXX, "-std=c++20", "-O0", *flags, CONSUMER / "core.cpp", "-o", self.folder / "core")
        self.assertIn("dllm_cache 0.", run(self.folder / "core"))


if __name__ == "__main__":
    unittest.main()
