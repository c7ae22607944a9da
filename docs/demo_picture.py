#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what a terminal program shows at one moment as an SVG picture (docs/demo.svg).

  demo_picture.py --at 0.55 --out docs/demo.svg -- build/release/examples/dllm-demo OPTIONS

The program runs in a terminal emulated here; the picture is of the screen when the given part of
all that it writes has been read.
Needs docs/requirements.txt. Exit codes: 0 done, 1 the program failed, 2 a bad option.
"""
import argparse
import fcntl
import itertools
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pyte
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

# The emulator names colours as terminals did; rich has names of its own for two of them.
COLOURS = {"brown": "yellow", "brightbrown": "bright_yellow"}


def run(command, columns, rows):
    """All that the program writes to a terminal of this size."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    output = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the program has closed its end
            part = b""
        if not part:
            break
        output += part
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        sys.exit(f"demo_picture.py: {command[0]} failed:\n{output.decode(errors='replace')}")
    return output


def colour(name):
    if name == "default":
        return None
    if name in COLOURS:
        return COLOURS[name]
    if len(name) == 6 and all(c in "0123456789abcdef" for c in name):
        return "#" + name
    return name.replace("bright", "bright_") if name.startswith("bright") else name


def style(cell):
    words = [word for word, on in (("bold", cell.bold), ("italic", cell.italics),
                                   ("underline", cell.underscore), ("reverse", cell.reverse)) if on]
    if colour(cell.fg):
        words.append(colour(cell.fg))
    if colour(cell.bg):
        words.append("on " + colour(cell.bg))
    return " ".join(words)


def lines(screen):
    """The lines of the screen down to the last one that is not empty."""
    drawn = []
    for y in range(screen.lines):
        line = Text()
        cells = [screen.buffer[y][x] for x in range(screen.columns)]
        for look, group in itertools.groupby(cells, style):
            line.append("".join(cell.data for cell in group), look)
        line.rstrip()
        drawn.append(line)
    while drawn and not drawn[-1].plain:
        drawn.pop()
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    parser.add_argument("--at", type=float, default=1.0, help="part of the output that is read (1)")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--title", default="", help="of the window")
    parser.add_argument("command", nargs="+", help="the program, behind --")
    options = parser.parse_args()
    if not 0 < options.at <= 1:
        parser.error(f"--at must be in (0, 1], got {options.at}")
    output = run(options.command, options.columns, options.rows)
    screen = pyte.Screen(options.columns, options.rows)
    pyte.ByteStream(screen).feed(output[: round(len(output) * options.at)])
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=options.columns, file=nowhere, force_terminal=True,
                          color_system="truecolor", legacy_windows=False)
        for line in lines(screen):
            console.print(line, soft_wrap=True)
        # Without the fonts that rich would fetch from elsewhere: a picture needs no network.
        look = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        picture = console.export_svg(title=options.title, code_format=look)
    options.out.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
