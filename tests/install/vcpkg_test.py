# SPDX-License-Identifier: Apache-2.0
"""The vcpkg port, run by functions that stand in for vcpkg's (vcpkg_functions.cmake)."""
import unittest

from support import CMAKE, HERE, ROOT, InFolder, run


class VcpkgPort(InFolder):
    def port(self, features):
        run(CMAKE, f"-DPORTFILE={ROOT / 'packaging/vcpkg/portfile.cmake'}", f"-DWORK={self.folder}",
            f"-DFEATURES={features}", "-P", HERE / "vcpkg_functions.cmake")
        return self.folder / "packages"

    def test_feature_models_gives_a_package_with_models(self):
        package = self.port("core;models")
        self.configure(f"-DCMAKE_PREFIX_PATH={package}", "-DCOMPONENTS=models", build="consumer")
        for name in ("copyright", "usage"):
            self.assertTrue((package / "share/dllm-cache" / name).is_file(), name)

    def test_without_the_feature_the_package_has_no_models(self):
        package = self.port("core")
        self.configure(f"-DCMAKE_PREFIX_PATH={package}", "-DCOMPONENTS=core", build="consumer")
        output = self.configure(f"-DCMAKE_PREFIX_PATH={package}", "-DCOMPONENTS=models",
                                build="models", fails=True)
        self.assertIn("component models: dllm_cache was installed without its models", output)


if __name__ == "__main__":
    unittest.main()
