# SPDX-License-Identifier: Apache-2.0
"""Answers of the selection rule in exact arithmetic: writes vectors.json, or --check says whether
it is as this file says. The rule is described in docs/selection-rule.md; Python's standard library
is all that is needed."""
import json
import math
import struct
import sys
from fractions import Fraction
from pathlib import Path

FILE = Path(__file__).with_name("vectors.json")
NAN, INF = math.nan, math.inf


def float32(x):
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(INF, x)


def bfloat16(x):
    if math.isnan(x) or math.isinf(x):
        return x
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    bits += 0x7FFF + (bits >> 16 & 1)  # to nearest, ties to even
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]


def float16(x):
    try:
        return struct.unpack("<e", struct.pack("<e", x))[0]
    except OverflowError:
        return math.copysign(INF, x)


ROUND = {"float32": float32, "bfloat16": bfloat16, "float16": float16}
LEAST = Fraction(1, 10**16)


def dot(a, b):
    """Exact; None where it is NaN, as a sum with NaN or infinity is for the rule's purpose."""
    if any(not math.isfinite(x) for x in (*a, *b)):
        return None
    return sum((Fraction(x) * Fraction(y) for x, y in zip(a, b)), Fraction(0))


def signed_square(fresh, cached):
    """Signed square of the cosine, or None for NaN."""
    product = dot(fresh, cached)
    if product is None:
        return None
    return product * abs(product) / (max(dot(fresh, fresh), LEAST) * max(dot(cached, cached), LEAST))


def answer(case):
    rounding = ROUND[case["stored"]]
    fresh = [[rounding(float32(x)) for x in row] for row in case["fresh"]]
    cached = [[rounding(float32(x)) for x in row] for row in case["cached"]]
    squares = [signed_square(a, b) for a, b in zip(fresh, cached)]
    order = sorted(range(len(squares)),
                   key=lambda row: (squares[row] is not None, squares[row] or 0, row))
    threshold = case["threshold"]
    bound = None if threshold is None else Fraction(threshold) * abs(Fraction(threshold))
    chosen = [row for row in order[:case["count"]]
              if bound is None or squares[row] is None or squares[row] < bound]
    similarity = [None if s is None else math.copysign(math.sqrt(abs(s)), s) for s in squares]
    return {"stored_values": fresh, "similarity": similarity, "selected": sorted(chosen)}


def case(name, why, fresh, cached, count, threshold=None, stored="float32"):
    return {"name": name, "why": why, "stored": stored, "fresh": fresh, "cached": cached,
            "count": count, "threshold": threshold}


def wave(rows, cols, phase):
    """Numbers in sixteenths, so that products and sums are exact in float32."""
    return [[((7 * r + 3 * c + phase * (r + 1)) % 23 - 11) / 16 for c in range(cols)]
            for r in range(rows)]


ONE = float32(1 + 2**-9)  # rounds to 1 in bfloat16
CASES = [
    case("least similar first", "the two rows that turned most",
         [[1, 0], [1, 1], [0, 1], [3, 1]], [[1, 0], [1, 0], [1, 0], [1, 0]], 2),
    case("length does not matter", "a row that grew a thousandfold is as it was",
         [[1000, 2000], [1, 3]], [[1, 2], [1, 2]], 1),
    case("opposite is less similar than perpendicular", "the sign counts",
         [[0, 1], [-1, 0], [1, 0]], [[1, 0], [1, 0], [1, 0]], 1),
    case("ties go to the lower row", "four equal rows, two places",
         [[0, 1], [0, 2], [0, 3], [0, 4]], [[1, 0], [1, 0], [1, 0], [1, 0]], 2),
    case("ties behind a less similar row", "the third is taken first, then the lowest of the rest",
         [[1, 1], [1, 1], [-1, 0], [1, 1]], [[1, 0], [1, 0], [1, 0], [1, 0]], 2),
    case("a row of zeros scores 0", "also where nothing changed: its direction is not known",
         [[0, 0], [1, 0], [0, 0], [1, 0]], [[1, 0], [0, 0], [0, 0], [1, 0]], 3),
    case("zeros rank before similar and behind opposite rows", "0 lies between",
         [[-1, 0], [0, 0], [1, 1]], [[1, 0], [1, 0], [1, 0]], 2),
    case("tiny rows count as larger than they are", "squares below 1e-16 count as 1e-16",
         [[2**-30, 0], [2**-20, 0], [2**-28, 2**-28]], [[2**-30, 0], [2**-20, 0], [1, 1]], 2),
    case("NaN goes first", "in fresh or cached values, ties to the lower row",
         [[-1, 0], [NAN, 0], [1, 0], [1, 1]], [[1, 0], [1, 0], [NAN, 1], [1, 0]], 2),
    case("NaN before opposite rows", "one place", [[-1, 0], [1, NAN]], [[1, 0], [1, 0]], 1),
    case("infinity is NaN", "infinite sums have no cosine",
         [[-1, 0], [INF, 0], [1, 0]], [[1, 0], [1, 0], [1, -INF]], 2),
    case("NaN is below every threshold", "it is recomputed", [[NAN, 0], [1, 0]], [[1, 0], [1, 0]], 2,
         threshold=-1.0),
    case("as similar as the threshold is left alone", "unchanged rows score exactly 1",
         [[3, 4], [1, 2], [5, 0]], [[3, 4], [2, 1], [5, 0]], 3, threshold=1.0),
    case("more similar than the threshold is left alone", "0.6 is above 0.5, 0 is not",
         [[3, 4], [0, 1], [1, 0]], [[1, 0], [1, 0], [1, 0]], 3, threshold=0.5),
    case("the threshold comes after the count", "it takes rows away and brings in no others",
         [[1, 1], [3, 1], [9, 1], [99, 1]], [[1, 0], [1, 0], [1, 0], [1, 0]], 2, threshold=0.9),
    case("a negative threshold", "a cosine in [-1, 1]",
         [[-1, 0], [-1, 3], [0, 1]], [[1, 0], [1, 0], [1, 0]], 3, threshold=-0.5),
    case("without a threshold unchanged rows are selected", "as many as the plan says",
         [[1, 2], [3, 4]], [[1, 2], [3, 4]], 2),
    case("nothing is selected", "a count of 0", [[0, 1], [1, 0]], [[1, 0], [1, 0]], 0),
    case("all are selected", "a count of all rows", [[0, 1], [1, 0]], [[1, 0], [1, 0]], 2),
    case("one row of one number", "the smallest there is", [[-2]], [[3]], 1),
    case("one row left alone", "the same with a threshold", [[2]], [[3]], 1, threshold=0.99),
    case("no rows", "nothing verified", [], [], 0),
    case("an odd width", "33 numbers", wave(5, 33, 1), wave(5, 33, 2), 2),
    case("an even width", "64 numbers", wave(7, 64, 3), wave(7, 64, 5), 3, threshold=0.4),
    case("fresh values are rounded before they are compared",
         "row 0 differs by less than bfloat16 tells, row 1 by one place in it",
         [[ONE, 1], [1.0078125, 1]], [[1, 1], [1, 1]], 2, threshold=1.0, stored="bfloat16"),
    case("the same in float32", "both differ", [[ONE, 1], [1.0078125, 1]], [[1, 1], [1, 1]], 2,
         threshold=1.0),
    case("bfloat16 rounds ties to even", "1 + 2^-8 becomes 1, 1 + 3 * 2^-8 becomes 1 + 2^-6",
         [[1 + 2**-8, 1], [1 + 3 * 2**-8, 1]], [[1, 1], [1.015625, 1]], 2, threshold=1.0,
         stored="bfloat16"),
    case("float16 overflows to infinity", "which has no cosine",
         [[70000, 1], [-1, 0]], [[1, 1], [1, 0]], 1, stored="float16"),
    case("float16 loses small numbers", "2^-26 becomes 0", [[2**-26, 1], [1, 1]], [[0, 1], [0, 1]],
         2, threshold=1.0, stored="float16"),
    case("wide rows in bfloat16", "40 numbers", wave(6, 40, 2), wave(6, 40, 7), 3,
         stored="bfloat16"),
]


def plain(value):
    """JSON has no NaN and no infinities."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def main():
    cases = [plain({**one, **answer(one)}) for one in CASES]
    text = "[\n" + ",\n".join(json.dumps(one) for one in cases) + "\n]\n"
    if sys.argv[1:] == ["--check"]:
        return 0 if FILE.read_text(encoding="utf-8") == text else f"{FILE} is not as {__file__} says"
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
