#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copies marked parts of compiled files into README.md and docs/*.md, or checks that they are the same.

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
    language = "c" if file.endswith(".c") else "cpp"
    return f"<!-- {file} {tag} -->\n```{language}\n{textwrap.dedent(parts[1]).rstrip()}\n```"


differing = []
for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
    old = page.read_text(encoding="utf-8")
    new = re.sub(r"<!-- (\S+) (\S+) -->\n```(?:cpp|c)\n.*?```", quoted, old, flags=re.S)
    if new == old:
        continue
    differing.append(str(page.relative_to(ROOT)))
    if "--check" not in sys.argv:
        page.write_text(new, encoding="utf-8")
if differing and "--check" in sys.argv:
    sys.exit(f"quote_examples.py: {', '.join(differing)} differ from the files they quote: run cmake/quote_examples.py")
