# SPDX-License-Identifier: Apache-2.0
"""Conan 2 recipe; packages the checkout it lies in. See packaging/README.md."""
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain
from conan.tools.files import copy

required_conan_version = ">=2.4"


class DllmCacheConan(ConanFile):
    name = "dllm_cache"
    version = "0.1.0"
    description = "Feature caches for masked diffusion language models"
    license = "Apache-2.0"
    topics = ("diffusion-language-model", "cache", "inference", "eigen", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_models": [True, False]}
    default_options = {"with_models": False}
    no_copy_source = True

    def export_sources(self):
        root = Path(self.recipe_folder).parent.parent
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "packaging/c_api/*"):
            copy(self, pattern, src=root, dst=self.export_sources_folder)

    def layout(self):
        self.folders.build = "build"
        self.folders.generators = "build/generators"

    def requirements(self):
        self.requires("eigen/[>=3.4.0 <6]")
        if self.options.with_models:
            self.requires("nlohmann_json/[^3.11]")

    def validate(self):
        if self.settings.get_safe("compiler.cppstd"):
            check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for what in ("TESTS", "BENCH", "EXAMPLES"):
            toolchain.cache_variables[f"DLLM_CACHE_BUILD_{what}"] = False
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", src=self.source_folder, dst=Path(self.package_folder) / "licenses")

    def package_id(self):
        # The files are the same for every setting; with_models only says what else is required.
        self.info.clear()

    def package_info(self):
        # CMake reads the package's own config file, which knows the same targets as an installation
        # without Conan and finds dependencies of Conan or of the system alike.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["share/cmake/dllm_cache"]
        # Everything else that Conan writes (pkg-config, Meson, ...) reads the components.
        core = self.cpp_info.components["core"]
        core.set_property("cmake_target_name", "dllm_cache::dllm_cache")
        core.set_property("pkg_config_name", "dllm_cache")
        core.requires = ["eigen::eigen"]
        core.builddirs = self.cpp_info.builddirs
        core.bindirs = core.libdirs = []
        if self.options.with_models:
            models = self.cpp_info.components["models"]
            models.set_property("cmake_target_name", "dllm_cache::models")
            models.set_property("pkg_config_name", "dllm_cache-models")
            models.requires = ["core", "nlohmann_json::nlohmann_json"]
            models.bindirs = models.libdirs = []
