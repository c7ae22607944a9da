#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the results of study.py into Markdown tables and pictures.

Reads bench/quality/results/PART/NAME.json; what has not been run is left out. With --write the
tables go between the markers in bench/RESULTS.md and README.md, the pictures into
bench/quality/results.
"""
import argparse
import json
import pathlib

import study

SHOWN_NAMES = {"none": "`exact`: none", "dllm-cache": "dLLM-Cache as published, 100 / 7 / 0.25",
               "balanced": "`balanced`: dLLM-Cache, 100 / 32 / 0.25, active block recomputed, rows left "
                           "alone from 0.99",
               "dual": "`fastest`: dual cache"}
COLOURS = {"none": "#555555", "dllm-cache": "#d55e00", "block": "#009e73", "dual": "#0072b2",
           "other": "#cc79a7"}


def read_results(folder):
    """All results by name, PART/NAME-DECODING, in the order of the study."""
    results = {}
    for name in study.runs(1, 1, 1):
        path = folder / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text())
    return results


def split(name):
    """Part, setting and decoding of a run's name."""
    part, rest = name.split("/", 1)
    for decoding in study.DECODING:
        if rest.endswith("-" + decoding):
            return part, rest[:-len(decoding) - 1], decoding
    raise ValueError(name)


def of_part(results, part):
    """(setting, decoding, result) of the runs of one part."""
    for name, result in results.items():
        this, setting, decoding = split(name)
        if this == part:
            yield setting, decoding, result


def uncached(result):
    """The uncached run that it is compared with: itself where there is none."""
    return result.get("uncached", result)


def saved(name, results):
    """How many times fewer operations than uncached, one token a step, a question."""
    result = results[name]
    for part in (split(name)[0], "main", "policies"):
        plain = results.get(f"{part}/none-one")
        if plain:
            return plain["operations"] / plain["count"] * result["count"] / result["operations"]
    raise SystemExit("main/none-one or policies/none-one must be there")


def percent(share):
    return f"{100 * share:.1f}"


def points(result):
    """The paired difference to the uncached run in points, with its interval."""
    paired = result.get("paired")
    if not paired:
        return ""
    return (f"{100 * paired['difference']:+.1f} [{100 * paired['low']:+.1f}, "
            f"{100 * paired['high']:+.1f}]")


def answers_table(results, part):
    """Accuracy, difference, agreement and cost of each run of a part."""
    lines = ["| cache | decoding | questions | exact match, % [95 %] | points against uncached "
             "[95 %] | better / worse | same answer, % | fewer operations, same decoding | fewer "
             "than uncached one by one |",
             "|---|---|---|---|---|---|---|---|---|"]
    for setting, decoding, result in of_part(results, part):
        low, high = result["intervals"]["exact_match"]
        paired = result.get("paired", {}) if setting != "none" else {}
        against = (f"{points(result)} | {paired['better']} / {paired['worse']} "
                   f"| {percent(result['agreement'])}" if paired else " | | ")
        lines.append(
            f"| {setting} | {decoding.replace('-', ' ')} | {result['count']} "
            f"| {percent(result['exact_match'])} [{percent(low)}, {percent(high)}] "
            f"| {against} "
            f"| {uncached(result)['operations'] / result['operations']:.1f}x "
            f"| {saved(f'{part}/{setting}-{decoding}', results):.1f}x |")
    return lines


def short_answers_table(results):
    """What the README shows: the main settings in few columns."""
    lines = ["| policy | decoding | questions | exact match, % (uncached on the same) "
             "| points against uncached [95 %] | same answer, % "
             "| fewer operations than uncached one by one |",
             "|---|---|---|---|---|---|---|"]
    for decoding, words in (("one", "one token a step"), (study.FAST, "threshold 0.995")):
        for setting, title in SHOWN_NAMES.items():
            name = next((name for part in ("main", "policies")
                         if (name := f"{part}/{setting}-{decoding}") in results), None)
            if not name:
                continue
            result = results[name]
            plain, against, same = "", "", ""
            if setting != "none":
                plain = f" ({percent(uncached(result)['exact_match'])})"
                against, same = points(result), percent(result["agreement"])
            lines.append(f"| {title} | {words} | {result['count']} "
                         f"| {percent(result['exact_match'])}{plain} | {against} | {same} "
                         f"| {saved(name, results):.1f}x |")
    return lines


def tasks_table(results):
    """Exact match by task in the main part."""
    lines = ["| cache | decoding | from | get | json |", "|---|---|---|---|---|"]
    for setting, decoding, result in of_part(results, "main"):
        shares = " | ".join(percent(result["tasks"][task]["exact_match"])
                            for task in ("from", "get", "json"))
        lines.append(f"| {setting} | {decoding.replace('-', ' ')} | {shares} |")
    return lines


def timing_table(results):
    """Seconds a question."""
    lines = ["| cache | decoding | seconds a question | faster than uncached one by one |",
             "|---|---|---|---|"]
    plain = results.get("timing/none-one")
    for setting, decoding, result in of_part(results, "timing"):
        seconds = result["seconds"] / result["count"]
        lines.append(f"| {setting} | {decoding.replace('-', ' ')} | {seconds:.3f} "
                     f"| {plain['seconds'] / plain['count'] / seconds:.1f}x |")
    return lines


def short_table(results, part, title):
    """Accuracy and cost of a sweep, one line a run."""
    lines = [f"| {title} | exact match, % | points against uncached [95 %] | same answer, % "
             "| fewer operations |", "|---|---|---|---|---|"]
    for setting, _, result in of_part(results, part):
        lines.append(f"| {setting} | {percent(result['exact_match'])} | {points(result)} "
                     f"| {percent(result.get('agreement', 1))} "
                     f"| {uncached(result)['operations'] / result['operations']:.1f}x |")
    return lines


def correlation_table(results):
    """How the similarity of values goes with that of updates."""
    changes = next((result["changes"] for _, _, result in of_part(results, "correlation")), None)
    if not changes:
        return []
    cells = ["–" if value is None else f"{value:.2f}" for value in changes["layers"]]
    return ["| layer | " + " | ".join(str(i) for i in range(len(cells))) + " | all |",
            "|---" * (len(cells) + 2) + "|",
            "| correlation | " + " | ".join(cells) + f" | {changes['all']:.2f} |"]


SECTIONS = [
    ("Main settings", lambda r: answers_table(r, "main")),
    ("Exact match by task, %", tasks_table),
    ("Seconds", timing_table),
    ("Every policy", lambda r: answers_table(r, "policies")),
    ("Thresholds", lambda r: answers_table(r, "thresholds")),
    ("dLLM-Cache with the active block: K_r, ratio, layer 0 refreshed first or cached as all",
     lambda r: short_table(r, "block", "K_r - ratio - layer 0")),
    ("What selects the rows", lambda r: short_table(r, "criteria", "criterion - ratio")),
    ("Correlation of the cosines of values and updates", correlation_table),
    ("Share of rows", lambda r: short_table(r, "ratio", "ratio - layer 0")),
    ("Intervals", lambda r: short_table(r, "grid", "K_p - K_r - ratio")),
    ("Similarity threshold in place of a share, ratio 0.5 at most",
     lambda r: short_table(r, "similar", "left alone from")),
    ("Similarity threshold with the active block, K_r 32, ratio 0.25: left alone from - layer 0 "
     "refreshed first or cached as all", lambda r: answers_table(r, "left-alone")),
]


def kind_of(setting, part):
    if setting in ("balanced", "careful") or part in ("block", "left-alone"):
        return "block"
    if setting in COLOURS:
        return setting
    return "dllm-cache" if part in ("grid", "ratio") else "other"


def draw_frontier(plt, results, path):
    """Exact match against operations, all runs of answers."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    names = {"none": "uncached", "dllm-cache": "dLLM-Cache, published", "block":
             "dLLM-Cache with the active block", "dual": "dual cache", "other": "other policies"}
    seen = set()
    for name, result in results.items():
        part, setting, decoding = split(name)
        if part not in ("main", "policies", "grid", "block", "left-alone", "ratio",
                        "thresholds"):
            continue
        if part == "policies" and f"main/{setting}-{decoding}" in results:
            continue
        kind = kind_of(setting, part)
        one = decoding == "one"
        label = names[kind] if one and kind not in seen else None
        if one:
            seen.add(kind)
        axis.plot(saved(name, results), 100 * result["exact_match"], "o" if one else "^",
                  color=COLOURS[kind], markersize=8 if part == "main" else 4.5, label=label,
                  alpha=1 if part == "main" else 0.6)
    axis.plot([], [], "^", color="#999999", label="threshold decoding")
    axis.set_xscale("log")
    ticks = [1, 2, 3, 5, 8, 12, 20, 30]
    axis.set_xticks(ticks, [f"{t}x" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("fewer operations than uncached, one token a step")
    axis.set_ylabel("exact match, %")
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_ratio(plt, results, path):
    """Exact match against the share of rows, published and with the active block."""
    curves = {}
    for setting, _, result in of_part(results, "ratio"):
        ratio, layers = setting.rsplit("-", 1)
        label = "published, layer 0 " + ("refreshed" if layers == "first" else "cached")
        curves.setdefault(label, []).append((float(ratio), 100 * result["exact_match"]))
    for setting, _, result in of_part(results, "block"):
        response, ratio, layers = setting.split("-")
        if response == "7":
            label = "with the active block, layer 0 " + ("refreshed" if layers == "first"
                                                         else "cached")
            curves.setdefault(label, []).append((float(ratio), 100 * result["exact_match"]))
    if not curves:
        return
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for (label, dots), colour in zip(curves.items(), ("#d55e00", "#e69f00", "#009e73", "#56b4e9")):
        axis.plot(*zip(*sorted(dots)), "o-", label=label, color=colour, markersize=4)
    axis.set_xlabel("share of verified rows that are recomputed")
    axis.set_ylabel("exact match, %")
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.12, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def fill(path, name, lines):
    """Replaces what stands between the markers of that name."""
    text = path.read_text()
    begin, end = (f"<!-- bench/quality/report.py {name}{word} -->" for word in ("begin", "end"))
    if begin not in text or end not in text:
        raise SystemExit(f"{path}: the markers {begin} and {end} are missing")
    head, rest = text.split(begin)
    path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=study.RESULTS)
    parser.add_argument("--write", action="store_true", help="into the files, not to the screen")
    options = parser.parse_args()
    results = read_results(options.results)
    lines = []
    for title, table in SECTIONS:
        rows = table(results)
        if len(rows) > 2:
            lines += ([""] if lines else []) + [f"### {title}", "", *rows]
    if not options.write:
        print("\n".join(lines))
        return
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dllm-cache"  # same numbers, same picture
    import matplotlib.pyplot as plt
    draw_frontier(plt, results, options.results / "frontier.svg")
    draw_ratio(plt, results, options.results / "ratio.svg")
    fill(study.ROOT / "bench/RESULTS.md", "", lines)
    fill(study.ROOT / "README.md", "readme ", short_answers_table(results))


if __name__ == "__main__":
    main()
