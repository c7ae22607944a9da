# SPDX-License-Identifier: Apache-2.0
"""`conan create` without network, with Eigen and the JSON library of the system."""
import os
import unittest

from support import CXX, ROOT, InFolder, run

CONAN = ROOT / "packaging/conan"


class Conan(InFolder):
    def conan(self, *arguments):
        return run(os.environ["DLLM_CACHE_CONAN"], *arguments, CONAN_HOME=str(self.folder / "home"),
                   CXX=CXX)

    def test_create_builds_and_runs_the_test_package_with_and_without_models(self):
        self.conan("profile", "detect")
        for models in (False, True):
            output = self.conan(
                "create", CONAN, "--no-remote", "-pr:a", "default",
                "-pr:a", CONAN / "system_dependencies", "-o", f"dllm_cache/*:with_models={models}",
                "-c", f"tools.cmake.cmake_layout:test_folder={self.folder / 'test'}",
                "-c", "tools.cmake.cmaketoolchain:user_presets=",
                "-c", "tools.cmake.cmaketoolchain:generator=Ninja",
                "-c", "tools.build:cxxflags=['-O0']")
            self.assertIn("8 rows are in the pass", output)


if __name__ == "__main__":
    unittest.main()
