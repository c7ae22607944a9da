#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the core (all headers of dllm_cache::dllm_cache) as one header; needs Eigen alone.
"""
import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include"
OWN = re.compile(r'#include "(dllm_cache/[^"]+)"')
SYSTEM = re.compile(r"#include <[^>]+>")
LICENSE = "// SPDX-License-Identifier: Apache-2.0"
HEAD = """{license}
// dllm_cache {version}: {description}.
// The core in one file, made by packaging/single_header.py; needs Eigen 3.4 or 5 and C++20.
// Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
#ifndef DLLM_CACHE_ALL_HPP
#define DLLM_CACHE_ALL_HPP
"""


def project():
    """Version and description as CMakeLists.txt has them."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.search(r'project\(dllm_cache VERSION (\S+).*?DESCRIPTION "([^"]+)"', text, re.S).groups()


def core_headers():
    """The umbrella first, then every header that it leaves to be included by name."""
    folder = INCLUDE / "dllm_cache"
    rest = [path for part in (".", "base", "policies", "decoding") for path in sorted((folder / part).glob("*.hpp"))]
    return [str(path.relative_to(INCLUDE)) for path in [folder / "dllm_cache.hpp", *rest]]


def expand(header, seen, system, lines):
    """Appends the lines of a header after those of the headers it includes, each header once."""
    if header in seen:
        return
    seen.add(header)
    body, depth = [], 0
    for line in (INCLUDE / header).read_text(encoding="utf-8").splitlines():
        if own := OWN.match(line):
            if depth:
                sys.exit(f"single_header.py: {header}: an include of our own under #if: {line}")
            if body and any(body):
                lines += marked(header, body)
                body = []
            expand(own.group(1), seen, system, lines)
        elif SYSTEM.match(line) and depth == 0:
            system.add(SYSTEM.match(line).group(0))
        elif line not in ("#pragma once", LICENSE):
            depth += bool(re.match(r"#\s*if", line)) - bool(re.match(r"#\s*endif", line))
            body.append(line)
    lines += marked(header, body)


def marked(header, body):
    """The lines with the header's name above; nothing where all are empty."""
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(body)).strip("\n")
    return ["", f"// {header}", *text.split("\n")] if text else []


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, help="default: %(default)s",
                        default=ROOT / "build/single/dllm_cache_all.hpp")
    output = parser.parse_args().output
    seen, system, lines = set(), set(), []
    for header in core_headers():
        expand(header, seen, system, lines)
    version, description = project()
    head = HEAD.format(license=LICENSE, version=version, description=description)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A guard rather than #pragma once: copies of one file in two folders are then one header.
    parts = [head, *sorted(system), *lines, "", "#endif  // DLLM_CACHE_ALL_HPP", ""]
    output.write_text("\n".join(parts), encoding="utf-8")
    print(f"{output}: {len(seen)} headers, {len(lines)} lines")


if __name__ == "__main__":
    main()
