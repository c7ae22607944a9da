# SPDX-License-Identifier: Apache-2.0
"""Builds and runs a user of the package that was just made."""
import os

from conan import ConanFile
from conan.tools.build import can_run
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout


class DllmCacheTestConan(ConanFile):
    settings = "os", "arch", "compiler", "build_type"

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        self.requires(self.tested_reference_str)

    def generate(self):
        with_models = self.dependencies["dllm_cache"].options.with_models
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["WITH_MODELS"] = str(with_models) == "True"
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def test(self):
        if can_run(self):
            self.run(os.path.join(self.cpp.build.bindir, "test_package"), env="conanrun")
