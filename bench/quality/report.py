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

SHOWN_NAMES = {"none": "`exact`: no cache", "balanced": "`balanced`: block-verify",
               "dual": "`fastest`: dual cache", "dllm-cache": "dLLM-Cache as published"}
NAMES = {"none": "none (uncached)", "dllm-cache": "dLLM-Cache as published",
         "balanced": "`balanced`: block-verify", "dual": "`fastest`: dual cache",
         "block-verify-7": "block-verify, response refreshed every 7 steps, no threshold"}
CRITERIA = {"cosine": "lowest cosine (the method)", "l2": "largest distance", "random": "random rows",
            "last-recomputed": "lowest cosine with the value at the last recomputation",
            "oracle": "oracle: largest change of the delta"}
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


def words_of(decoding):
    """What a decoding is called in tables."""
    return "one token a step" if decoding == "one" else decoding.replace("-", " ")


def option(name):
    """A column that shows an option of the policy."""
    def shown(_, result):
        value = result["settings"]["policy_options"][name]
        return value if isinstance(value, str) else f"{value:g}"
    return shown


def first_layer(_, result):
    """A column that says what becomes of layer 0."""
    fresh = result["settings"]["policy_options"]["refresh_first_layer"]
    return "recomputed" if fresh else "cached"


def policy_name(setting, _):
    """A column with the policy in words."""
    return NAMES.get(setting, setting)


def table(columns, rows):
    """A Markdown table."""
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
            *("| " + " | ".join(row) + " |" for row in rows)]


def answers_table(results, part, factors=(("policy", policy_name),)):
    """Accuracy, difference, agreement and cost of each run of a part."""
    columns = [*(title for title, _ in factors), "decoding", "questions", "right, % [95 %]",
               "difference, points [95 %]", "gained / lost", "same answer, %",
               "operations saved, same decoding", "operations saved"]
    rows = []
    for setting, decoding, result in of_part(results, part):
        low, high = result["intervals"]["exact_match"]
        paired = result.get("paired", {}) if setting != "none" else {}
        against = ([points(result), f"{paired['better']} / {paired['worse']}",
                    percent(result["agreement"])] if paired else ["", "", ""])
        rows.append([*(value(setting, result) for _, value in factors), words_of(decoding),
                     str(result["count"]),
                     f"{percent(result['exact_match'])} [{percent(low)}, {percent(high)}]", *against,
                     f"{uncached(result)['operations'] / result['operations']:.1f}x",
                     f"{saved(f'{part}/{setting}-{decoding}', results):.1f}x"])
    return table(columns, rows)


def short_answers_table(results):
    """What the README shows: the main settings in few columns."""
    columns = ["policy", "decoding", "questions", "right, %", "uncached, same questions, %",
               "difference, points [95 %]", "same answer, %", "operations saved"]
    rows = []
    for decoding in ("one", study.FAST):
        for setting, title in SHOWN_NAMES.items():
            name = next((name for part in ("main", "policies")
                         if (name := f"{part}/{setting}-{decoding}") in results), None)
            if not name:
                continue
            result = results[name]
            plain, against, same = "", "", ""
            if setting != "none":
                plain = percent(uncached(result)["exact_match"])
                against, same = points(result), percent(result["agreement"])
            rows.append([title, words_of(decoding), str(result["count"]),
                         percent(result["exact_match"]), plain, against, same,
                         f"{saved(name, results):.1f}x"])
    return table(columns, rows)


def tasks_table(results):
    """Right answers by task in the main part."""
    return table(["policy", "decoding", "from", "get", "json"],
                 [[policy_name(setting, result), words_of(decoding),
                   *(percent(result["tasks"][task]["exact_match"])
                     for task in ("from", "get", "json"))]
                  for setting, decoding, result in of_part(results, "main")])


def timing_table(results):
    """Seconds a question."""
    plain = results.get("timing/none-one")
    rows = []
    for setting, decoding, result in of_part(results, "timing"):
        seconds = result["seconds"] / result["count"]
        rows.append([policy_name(setting, result), words_of(decoding), f"{seconds:.3f}",
                     f"{plain['seconds'] / plain['count'] / seconds:.1f}x"])
    return table(["policy", "decoding", "seconds a question", "faster"], rows)


def short_table(results, part, factors):
    """Accuracy and cost of a sweep, one line a run and one column a factor."""
    return table([*(title for title, _ in factors), "right, %", "difference, points [95 %]",
                  "same answer, %", "operations saved"],
                 [[*(value(setting, result) for _, value in factors),
                   percent(result["exact_match"]), points(result),
                   percent(result.get("agreement", 1)),
                   f"{uncached(result)['operations'] / result['operations']:.1f}x"]
                  for setting, _, result in of_part(results, part)])


def correlation_table(results):
    """How the similarity of values goes with that of deltas."""
    changes = next((result["changes"] for _, _, result in of_part(results, "correlation")), None)
    if not changes:
        return []
    cells = ["–" if value is None else f"{value:.2f}" for value in changes["layers"]]
    return ["| layer | " + " | ".join(str(i) for i in range(len(cells))) + " | all |",
            "|---" * (len(cells) + 2) + "|",
            "| correlation | " + " | ".join(cells) + f" | {changes['all']:.2f} |"]


PROMPT = ("prompt interval", option("prompt_interval"))
RESPONSE = ("response interval", option("response_interval"))
RATIO = ("ratio", option("ratio"))
FIRST = ("layer 0", first_layer)
SIMILAR = ("similarity threshold", option("similarity_threshold"))
CRITERION = ("rows selected by", lambda setting, _: CRITERIA[setting.rsplit("-", 1)[0]])

SECTIONS = [
    ("The recommended policies", lambda r: answers_table(r, "main")),
    ("Right answers by task, %", tasks_table),
    ("Seconds", timing_table),
    ("Every policy", lambda r: answers_table(r, "policies")),
    ("Thresholds of parallel decoding", lambda r: answers_table(r, "thresholds")),
    ("block-verify without a similarity threshold, prompt interval 100",
     lambda r: short_table(r, "block", (RESPONSE, RATIO, FIRST))),
    ("What selects the rows, dLLM-Cache 100 / 7",
     lambda r: short_table(r, "criteria", (CRITERION, RATIO))),
    ("Correlation of the cosines of values and deltas", correlation_table),
    ("Share of rows, dLLM-Cache 100 / 7", lambda r: short_table(r, "ratio", (RATIO, FIRST))),
    ("Intervals of dLLM-Cache", lambda r: short_table(r, "grid", (PROMPT, RESPONSE, RATIO))),
    ("Similarity threshold alone: 100 / 7, ratio 0.5, active block verified like the rest",
     lambda r: short_table(r, "similar", (SIMILAR,))),
    ("block-verify 100 / 32, ratio 0.25: similarity threshold and layer 0",
     lambda r: answers_table(r, "left-alone", (SIMILAR, FIRST))),
]


def kind_of(setting, part):
    if setting in ("balanced", "block-verify-7") or part in ("block", "left-alone"):
        return "block"
    if setting in COLOURS:
        return setting
    return "dllm-cache" if part in ("grid", "ratio") else "other"


def draw_frontier(plt, results, path):
    """Exact match against operations, all runs of answers."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    names = {"none": "uncached", "dllm-cache": "dLLM-Cache, published", "block":
             "block-verify", "dual": "dual cache", "other": "other policies"}
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
    axis.set_xlabel("operations saved, against uncached with one token a step")
    axis.set_ylabel("right answers, %")
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
        label = "dLLM-Cache, layer 0 " + ("recomputed" if layers == "first" else "cached")
        curves.setdefault(label, []).append((float(ratio), 100 * result["exact_match"]))
    for setting, _, result in of_part(results, "block"):
        response, ratio, layers = setting.split("-")
        if response == "7":
            label = "block-verify, layer 0 " + ("recomputed" if layers == "first"
                                                else "cached")
            curves.setdefault(label, []).append((float(ratio), 100 * result["exact_match"]))
    if not curves:
        return
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for (label, dots), colour in zip(curves.items(), ("#d55e00", "#e69f00", "#009e73", "#56b4e9")):
        axis.plot(*zip(*sorted(dots)), "o-", label=label, color=colour, markersize=4)
    axis.set_xlabel("share of verified rows that are recomputed")
    axis.set_ylabel("right answers, %")
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
