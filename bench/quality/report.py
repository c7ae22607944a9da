#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the results of study.py into Markdown tables and pictures.

Reads bench/quality/results/PART/NAME.json; what has not been run is left out. With --write the
tables go between the markers in bench/RESULTS.md and README.md, the pictures into
bench/quality/results.
"""
import argparse
import collections
import json
import pathlib

import study

# By the name of a run: what tables call its policy, and the preset that it is.
NAMES = {"none": "none", "dllm-cache": "dLLM-Cache", "balanced": "block-verify",
         "block-verify-published-settings": "block-verify, dLLM-Cache's settings",
         "prefix": "prefix cache", "dual": "dual cache", "vicinity": "vicinity",
         "freecache": "FreeCache", "dkv": "dKV-Cache", "changed-rows": "changed rows",
         "elastic": "Elastic-Cache", "d2cache": "d2Cache", "sparse": "Sparse-dLLM", "dpad": "DPad",
         "streaming": "Streaming-dLLM", "window": "Window-Diffusion", "spa": "SPA-Cache",
         "dynamic": "Dynamic-dLLM", "entropy": "EntropyCache"}
# What a row and layer of it takes in memory (kv: width of keys and of values, d: of the hidden
# state), and when to take it.
CHOICE = {
    "none": ("none", "reference"),
    "balanced": ("2 kv + d of response rows", "nearly all answers kept, with every decoding rule"),
    "dual": ("2 kv", "short blocks in long responses; fewest operations"),
    "prefix": ("2 kv", "short responses after long prompts"),
    "vicinity": ("2 kv", "where the dual cache loses at the edges of blocks"),
    "dllm-cache": ("2 kv + d of response rows", "long prompts, one block; its tokens are published"),
    "freecache": ("2 kv", "long prompts: one full forward in all"),
    "dkv": ("2 kv", "decoding without blocks"),
    "changed-rows": ("2 kv", "the simplest rule without blocks"),
    "elastic": ("2 kv + d + query width", "one long block; refreshes only where attention drifted"),
    "d2cache": ("2 kv", "one long block, with its certainty prior"),
    "sparse": ("2 kv, of kept rows", "long prompts and long blocks: attention over fewer keys"),
    "dpad": ("2 kv, of rows that exist", "long responses in blocks"),
    "streaming": ("2 kv, of rows that exist", "the same, without chance"),
    "window": ("2 kv", "long responses without blocks"),
    "spa": ("2 kv + d + rank of response rows", "dLLM-Cache where deep layers change most"),
    "dynamic": ("2 kv + d of response rows", "decoding that moves from neighbour to neighbour"),
    "entropy": ("2 kv", "threshold decoding: sure tokens cost little")}
PRESETS = {"none": "exact", "balanced": "balanced", "dual": "fastest"}
CRITERIA = {"cosine": "lowest cosine", "l2": "largest distance (L2)", "random": "random rows",
            "last-recomputed": "lowest cosine to the last recomputed value",
            "oracle": "oracle: largest change of the delta"}
# By policy; all others have the last one.
COLOURS = {"none": "#555555", "dllm-cache": "#d55e00", "block-verify": "#009e73",
           "dual": "#0072b2", "other": "#cc79a7"}

# A run and what came of it; `setting` is its name without part and decoding.
Row = collections.namedtuple("Row", "name setting run result")


def read_results(folder):
    """All results by name, PART/NAME-DECODING, in the order of the study."""
    results = {}
    for name in study.runs(1, 1, 1):
        path = folder / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text())
    return results


def of_part(results, part):
    """The runs of one part."""
    table = study.runs(1, 1, 1)
    for name, result in results.items():
        run = table[name]
        if run.part == part:
            yield Row(name, name[len(part) + 1:-len(run.decoding) - 1], run, result)


def uncached(result):
    """The uncached run that it is compared with: itself where there is none."""
    return result.get("uncached", result)


def saved_by_cache(result):
    """How many times fewer operations than uncached with the same decoding."""
    return uncached(result)["operations"] / result["operations"]


def saved(row, results):
    """How many times fewer operations a question than uncached, one token a step."""
    for part in (row.run.part, "main", "policies"):
        plain = results.get(f"{part}/none-one")
        if plain:
            return (plain["operations"] / plain["count"] * row.result["count"]
                    / row.result["operations"])
    raise SystemExit("main/none-one or policies/none-one must be there")


def options_of(row):
    """Options of its policy: those that the run gives, and those that a preset stands for."""
    return {**row.result["settings"]["policy_options"], **row.run.options}


def option(key):
    return lambda row: options_of(row).get(key, "")


def layer_0(row):
    first = options_of(row).get("refresh_first_layer")
    return "" if first is None else "recomputed" if first in (True, "true") else "cached"


def active_block(row):
    block = options_of(row).get("recompute_block")
    return "" if block is None else "recomputed" if block in (True, "true") else "verified"


def decoding(row):
    return ("one token a step" if row.run.decoding == "one"
            else row.run.decoding.replace("-", " "))


# Columns that say what a run was, by their headers.
FACTORS = {"policy": lambda row: NAMES[row.setting],
           "preset": lambda row: PRESETS.get(row.setting, ""),
           "decoding": decoding,
           "questions": lambda row: row.result["count"],
           "prompt interval K_p": option("prompt_interval"),
           "response interval K_r": option("response_interval"),
           "ratio": option("ratio"),
           "similarity threshold": option("similarity_threshold"),
           "active block": active_block,
           "layer 0": layer_0,
           "rows taken": lambda row: CRITERIA[row.run.program_options[1]]}


def percent(share):
    return f"{100 * share:.1f}"


def points(result):
    """The paired difference to the uncached run in points, with its interval."""
    paired = result.get("paired")
    if not paired:
        return ""
    return (f"{100 * paired['difference']:+.1f} [{100 * paired['low']:+.1f}, "
            f"{100 * paired['high']:+.1f}]")


def make_table(headers, rows):
    """Markdown of cells that are there already; none where there are no rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(str(cell) for cell in cells) + " |" for cells in (headers, *rows)]
    return [lines[0], "|---" * len(headers) + "|", *lines[1:]]


def factors_of(row, factors):
    return [FACTORS[factor](row) for factor in factors]


def settings_table(results):
    """What the names of policies in the tables stand for."""
    factors = ("prompt interval K_p", "response interval K_r", "ratio", "similarity threshold",
               "active block", "layer 0")
    rows = [[*factors_of(row, ("policy", "preset")), f"`{row.result['settings']['policy']}`",
             *factors_of(row, factors)]
            for row in of_part(results, "policies") if row.run.decoding == "one"]
    return make_table(["policy", "preset", "`--policy`", *factors], rows)


def answers_table(results, part, factors=("policy",)):
    """Accuracy, difference, agreement and cost of each run of a part."""
    factors = (*factors, "decoding", "questions")
    rows = []
    for row in of_part(results, part):
        result = row.result
        low, high = result["intervals"]["exact_match"]
        against = ["", "", ""]
        if not row.run.is_uncached():
            paired = result["paired"]
            against = [points(result), f"{paired['better']} / {paired['worse']}",
                       percent(result["agreement"])]
        rows.append([*factors_of(row, factors),
                     f"{percent(result['exact_match'])} [{percent(low)}, {percent(high)}]",
                     *against, f"{saved_by_cache(result):.1f}x", f"{saved(row, results):.1f}x"])
    return make_table([*factors, "exact match, % [95 %]", "difference to uncached, points [95 %]",
                       "gained / lost", "same answer, %", "operations saved by the cache",
                       "operations saved in all"], rows)


def sweep_table(results, part, factors):
    """Accuracy and cost of a sweep, one line a run."""
    factors = (*factors, "questions")
    rows = [[*factors_of(row, factors), percent(row.result["exact_match"]), points(row.result),
             percent(row.result.get("agreement", 1)), f"{saved_by_cache(row.result):.1f}x"]
            for row in of_part(results, part)]
    return make_table([*factors, "exact match, %", "difference to uncached, points [95 %]",
                       "same answer, %", "operations saved"], rows)


def short_answers_table(results):
    """What the README shows: the main settings in few columns."""
    shown = {(row.run.decoding, row.setting): row for part in ("policies", "main")
             for row in of_part(results, part)}
    rows = []
    for key in ((words, setting) for words in ("one", study.FAST) for setting in study.SHOWN):
        if key not in shown:
            continue
        row = shown[key]
        plain, against, same = "", "", ""
        if not row.run.is_uncached():
            plain = f" ({percent(uncached(row.result)['exact_match'])})"
            against, same = points(row.result), percent(row.result["agreement"])
        rows.append([*factors_of(row, ("preset", "policy", "decoding", "questions")),
                     f"{percent(row.result['exact_match'])}{plain}", against, same,
                     f"{saved(row, results):.1f}x"])
    return ["Operations saved: how many times fewer than uncached decoding of one token a step.",
            "In parentheses: the uncached model on the same questions with the same decoding.",
            "dLLM-Cache has its published settings (prompt interval 100, response interval 7, "
            "ratio 0.25), block-verify its defaults.", "",
            *make_table(["preset", "policy", "decoding", "questions", "exact match, % (uncached)",
                         "difference to uncached, points [95 %]", "same answer, %",
                         "operations saved"], rows)]


def choice_table(results):
    """One table of all policies: what each saves, what it cost, when to take it."""
    shown = {}
    for row in of_part(results, "policies"):
        shown.setdefault(row.setting, {})[row.run.decoding] = row
    rows = []
    for setting, (memory, when) in CHOICE.items():
        if setting not in shown:
            continue
        one, fast = (shown[setting].get(words) for words in ("one", study.FAST))

        def cells(row):
            if row is None:
                return ["", ""]
            if row.run.is_uncached():
                return [f"{saved(row, results):.1f}x", "0"]
            return [f"{saved(row, results):.1f}x", f"{100 * row.result['paired']['difference']:+.1f}"]

        name = (one or fast).result["settings"]["policy"]
        preset = f" ({PRESETS[setting]})" if setting in PRESETS else ""
        rows.append([f"{NAMES[setting]}{preset}", f"`{name}`", *cells(one), *cells(fast),
                     percent((one or fast).result.get("agreement", 1)), memory, when])
    return make_table(["method", "`--policy`", "saves, one token a step", "right answers, points",
                       f"saves, {study.FAST.replace('-', ' ')}", "right answers, points",
                       "same answer, %", "memory a row and layer", "take it for"], rows)


def tasks_table(results):
    """Exact match by task in the main part."""
    tasks = ("from", "get", "json")
    rows = [[*factors_of(row, ("policy", "decoding")),
             *(percent(row.result["tasks"][task]["exact_match"]) for task in tasks)]
            for row in of_part(results, "main")]
    return make_table(["policy", "decoding", *(f"`>{task}`" for task in tasks)], rows)


def timing_table(results):
    """Seconds a question."""
    plain = results.get("timing/none-one")
    rows = []
    for row in of_part(results, "timing"):
        seconds = row.result["seconds"] / row.result["count"]
        rows.append([*factors_of(row, ("policy", "decoding")), f"{seconds:.3f}",
                     f"{plain['seconds'] / plain['count'] / seconds:.1f}x"])
    return make_table(["policy", "decoding", "seconds a question", "times faster"], rows)


def correlation_table(results):
    """How the similarity of values goes with that of deltas."""
    changes = next((row.result["changes"] for row in of_part(results, "correlation")), None)
    if not changes:
        return []
    cells = ["–" if value is None else f"{value:.2f}" for value in changes["layers"]]
    return make_table(["layer", *range(len(cells)), "all"],
                      [["correlation", *cells, f"{changes['all']:.2f}"]])


# Title, what to know before the table, table.
SECTIONS = [
    ("What the policies are",
     "An empty cell: the policy has no such option. Options that are not shown have their "
     "defaults.", settings_table),
    ("The presets, and dLLM-Cache as published", None, lambda r: answers_table(r, "main")),
    ("Exact match by kind of question, %", None, tasks_table),
    ("Seconds", "Times faster: than uncached decoding of one token a step.", timing_table),
    ("All policies", None, lambda r: answers_table(r, "policies")),
    ("Thresholds of parallel decoding", None, lambda r: answers_table(r, "thresholds")),
    ("block-verify: response interval, ratio and layer 0",
     "One token a step, prompt interval 100, no similarity threshold.",
     lambda r: sweep_table(r, "block", ("response interval K_r", "ratio", "layer 0"))),
    ("block-verify: similarity threshold and layer 0",
     "Prompt interval 100, response interval 32, ratio 0.25.",
     lambda r: answers_table(r, "left-alone", ("similarity threshold", "layer 0"))),
    ("block-verify: a fixed count of rows",
     "Prompt interval 100, response interval 32, layer 0 recomputed. With a threshold (`balanced`) "
     "the ratio is\nthe most that is recomputed, without one the share that always is.",
     lambda r: answers_table(r, "fixed", ("similarity threshold", "ratio"))),
    ("Verified block: a similarity threshold in place of a share",
     "block-verify that verifies the active block like the rest: dLLM-Cache with a threshold. "
     "One token a step,\nprompt interval 100, response interval 7, ratio 0.5, layer 0 recomputed.",
     lambda r: sweep_table(r, "similar", ("similarity threshold",))),
    ("dLLM-Cache: which rows are recomputed",
     "One token a step, prompt interval 100, response interval 7, layer 0 recomputed.",
     lambda r: sweep_table(r, "criteria", ("rows taken", "ratio"))),
    ("dLLM-Cache: correlation of the cosines of values and deltas",
     "One token a step, prompt interval 100, response interval 7, ratio 0.25.\n"
     "Layer 0 is recomputed, so nothing is verified there.", correlation_table),
    ("dLLM-Cache: share of rows recomputed, and layer 0",
     "One token a step, prompt interval 100, response interval 7.",
     lambda r: sweep_table(r, "ratio", ("ratio", "layer 0"))),
    ("dLLM-Cache: refresh intervals and ratio", "One token a step, layer 0 recomputed.",
     lambda r: sweep_table(r, "grid", ("prompt interval K_p", "response interval K_r", "ratio"))),
]


def kind_of(row):
    """The policy that a dot in a picture is coloured by; a preset's own."""
    policy = row.result["settings"]["policy"]
    return policy if policy in COLOURS else "other"


def draw_frontier(plt, results, path):
    """Exact match against operations, all runs of answers."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    names = {"none": "none (exact)", "dllm-cache": "dLLM-Cache",
             "block-verify": "block-verify (balanced and others)", "dual": "dual cache (fastest)",
             "other": "other policies"}
    seen = set()
    for part in ("main", "policies", "thresholds", "grid", "block", "ratio", "left-alone"):
        for row in of_part(results, part):
            if part == "policies" and f"main/{row.setting}-{row.run.decoding}" in results:
                continue
            kind = kind_of(row)
            one = row.run.decoding == "one"
            label = names[kind] if one and kind not in seen else None
            if one:
                seen.add(kind)
            axis.plot(saved(row, results), 100 * row.result["exact_match"], "o" if one else "^",
                      color=COLOURS[kind], markersize=8 if part == "main" else 4.5, label=label,
                      alpha=1 if part == "main" else 0.6)
    axis.plot([], [], "^", color="#999999", label="threshold decoding")
    axis.set_xscale("log")
    ticks = [1, 2, 3, 5, 8, 12, 20, 30]
    axis.set_xticks(ticks, [f"{t}x" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("operations saved (1x: uncached, one token a step)")
    axis.set_ylabel("exact match, %")
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_ratio(plt, results, path):
    """Exact match against the share of rows, of dLLM-Cache and block-verify."""
    curves = {}
    for part, policy in (("ratio", "dLLM-Cache"), ("block", "block-verify")):
        for row in of_part(results, part):
            if row.run.options["response_interval"] == 7:
                curves.setdefault(f"{policy}, layer 0 {layer_0(row)}", []).append(
                    (row.run.options["ratio"], 100 * row.result["exact_match"]))
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
    for title, note, table in SECTIONS:
        rows = table(results)
        if rows:
            before = [*note.split("\n"), ""] if note else []
            lines += ([""] if lines else []) + [f"### {title}", "", *before, *rows]
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
    fill(study.ROOT / "docs/choose-a-policy.md", "choice ", choice_table(results))


if __name__ == "__main__":
    main()
