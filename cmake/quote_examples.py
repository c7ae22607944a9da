#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copies marked parts of compiled examples into README.md, or checks that they are the same.

usage: quote_examples.py [--check]
A marker `<!-- FILE TAG -->` is followed by a code block; the part stands in FILE between two lines `// [TAG]`.
"""
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def quoted(match):
    file, tag = match.group(1), match.group(2)
    parts = re.split(rf"^[ ]*// \[{tag}\]\n", (ROOT / file).read_text(encoding="utf-8"), flags=re.M)
    if len(parts) != 3:
        sys.exit(f"quote_examples.py: {file}: expected two lines // [{tag}]")
    return f"<!-- {file} {tag} -->\n```cpp\n{textwrap.dedent(parts[1]).rstrip()}\n```"


readme = ROOT / "README.md"
old = readme.read_text(encoding="utf-8")
new = re.sub(r"<!-- (\S+) (\S+) -->\n```cpp\n.*?```", quoted, old, flags=re.S)
if "--check" in sys.argv:
    if new != old:
        sys.exit("quote_examples.py: README.md differs from its examples: run cmake/quote_examples.py")
else:
    readme.write_text(new, encoding="utf-8")
