#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the JSON of the benchmarks into Markdown tables and a picture of time per step.

Each argument is a file that a benchmark wrote with --benchmark_out; of repetitions the median
counts. With --readme the tables replace what stands between the markers in that file.
"""
import argparse
import json
import pathlib
import statistics


def read_medians(paths):
    """All benchmarks of the files by name: the median of every number over its repetitions."""
    runs, context = {}, {}
    for path in paths:
        content = json.loads(pathlib.Path(path).read_text())
        context.update(content["context"])
        for run in content["benchmarks"]:
            if run.get("run_type") == "aggregate":
                continue
            if run.get("error_occurred"):
                raise SystemExit(f"{path}: {run['name']}: {run['error_message']}")
            name = run.get("run_name", run["name"])
            for suffix in ("/iterations:1", "/real_time"):
                name = name.replace(suffix, "")
            runs.setdefault(name, []).append(run)
    medians = {}
    for name, repeated in runs.items():
        numbers = [key for key, value in repeated[0].items() if isinstance(value, (int, float))]
        medians[name] = {key: statistics.median(run[key] for run in repeated) for key in numbers}
        medians[name]["repeated"] = len(repeated)
    return medians, context


def generate_rows(medians):
    """Names (setting, precision, backend) and counters of the whole generations with dLLM-Cache."""
    for name, run in medians.items():
        if name.startswith("generate/") and "verify_s" in run:
            yield name.split("/")[1:], run


def generation_table(medians):
    """Seconds a step and ratios of whole generations."""
    lines = [
        "| setting | precision | backend | uncached step | cached step | faster | operations saved "
        "| peak | uncached step, share of peak | verified step, share of peak | features | runs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (setting, precision, backend), run in generate_rows(medians):
        lines.append(
            f"| {setting} | {precision} | {backend} | {run['uncached_s']:.3f} s "
            f"| {run['cached_s']:.3f} s | {run['wall_ratio']:.1f}x | {run['ops_ratio']:.1f}x "
            f"| {run['peak_gflops']:.0f} GFLOP/s | {run['uncached_peak_share']:.0%} "
            f"| {run['verify_peak_share']:.0%} | {run['cache_bytes'] / 2**20:.0f} MiB "
            f"| {run['repeated']} |")
    return lines


def layer_table(medians):
    """One layer's step at full width: milliseconds and the share outside the callbacks."""
    lines = ["| layer of | step | f32 | bf16 | outside the callbacks, f32 "
             "| outside the callbacks, bf16 |", "|---|---|---|---|---|---|"]
    for name, wide in medians.items():
        if not name.startswith("layer/") or not name.endswith("/f32"):
            continue
        _, kind, shape, _ = name.split("/")
        # bf16 is measured where the processor has products of it.
        narrow = medians.get(name[:-3] + "bf16")
        time, share = "-", "-"
        if narrow is not None:
            time, share = f"{narrow['real_time']:.1f} ms", f"{narrow['outside_share']:.1%}"
        lines.append(
            f"| {shape} | {kind.replace('_', ' ')} | {wide['real_time']:.1f} ms "
            f"| {time} | {wide['outside_share']:.1%} | {share} |")
    return lines


def selector_table(medians):
    """Bytes a second of the selector beside its baseline."""
    lines = ["| rows | width | selector | baseline | selector against baseline |",
             "|---|---|---|---|---|"]
    for name, run in medians.items():
        twin = medians.get(name.replace("BM_select/", "BM_select_raw/"))
        if not name.startswith("BM_select/") or twin is None:
            continue
        rows, width = (part.split(":")[1] for part in name.split("/")[1:3])
        fast, raw = run["bytes_per_second"] * 1e-9, twin["bytes_per_second"] * 1e-9
        lines.append(f"| {rows} | {width} | {fast:.0f} GB/s | {raw:.0f} GB/s | {fast / raw:.0%} |")
    return lines


# Title, what to know before the table, table.
SECTIONS = [
    ("Whole generations", "Operations saved: how many times fewer than uncached.",
     generation_table),
    ("One layer", "A step of one layer, and the share of it that is spent outside the layer's own "
     "callbacks.", layer_table),
    ("Selecting and storing values", "Bytes moved a second.", selector_table),
]


def draw_steps(medians, path):
    """Bars of seconds a step by kind of step, one panel a setting."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dllm-cache"  # the same picture from the same numbers
    import matplotlib.pyplot as plt
    kinds = [("uncached_s", "uncached", "#555555"), ("due_s", "response due", "#0072b2"),
             ("verify_s", "verified", "#e69f00"), ("cached_s", "cached, mean", "#009e73")]
    panels = {}
    for (setting, precision, backend), run in generate_rows(medians):
        panels.setdefault(setting, []).append((f"{precision}\n{backend}", run))
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.2), squeeze=False)
    for axis, (setting, bars) in zip(axes[0], panels.items()):
        for place, (key, label, colour) in enumerate(kinds):
            x = [i + 0.2 * (place - 1.5) for i in range(len(bars))]
            heights = [run[key] for _, run in bars]
            axis.bar(x, heights, 0.18, label=label, color=colour)
            for at, height in zip(x, heights):
                axis.text(at, height * 1.06, f"{height:.2g}", ha="center", fontsize=6)
        axis.set_yscale("log")
        axis.set_title(setting)
        axis.set_xticks(range(len(bars)), [name for name, _ in bars])
        axis.set_ylabel("seconds a step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=len(kinds),
                  fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def fill_readme(path, lines):
    """Replaces what stands between the markers of the report."""
    begin, end = "<!-- bench/report.py begin -->", "<!-- bench/report.py end -->"
    file = pathlib.Path(path)
    text = file.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{path}: the markers {begin} and {end} are missing")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    file.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="+", help="files written with --benchmark_out")
    parser.add_argument("--svg", help="where the picture goes")
    parser.add_argument("--readme", help="the file whose tables are replaced")
    options = parser.parse_args()
    medians, context = read_medians(options.json)
    lines = [f"{context['num_cpus']} processors. Every number is the median of its runs: five or "
             "more where nothing else is said."]
    for title, note, table in SECTIONS:
        rows = table(medians)
        if len(rows) > 2:
            lines += ["", f"### {title}", "", note, "", *rows]
    if options.readme:
        fill_readme(options.readme, lines)
    else:
        print("\n".join(lines))
    if options.svg:
        draw_steps(medians, options.svg)


if __name__ == "__main__":
    main()
