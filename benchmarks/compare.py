"""Compare a pytest-benchmark result with the committed baseline, by ratio to a yardstick.

python benchmarks/compare.py out/bench.json benchmarks/baseline.json            # exit 1 when slower
python benchmarks/compare.py --write out/bench.json benchmarks/baseline.json    # accept the new times
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

LIMIT = 1.6  # times the baseline's ratio; on a busy two-core machine repeats stayed within 1.1


def ratios(result: dict) -> dict[str, float]:
    """Best time of each benchmark over that of its yardstick."""
    return {b["name"]: b["stats"]["min"] / yardstick(b["extra_info"]) for b in result["benchmarks"]}


def yardstick(info: dict) -> float:
    """Seconds of the yardstick that the benchmark names."""
    return info["yardsticks_s"][info["yardstick"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--write", action="store_true", help="write the baseline instead of comparing with it")
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    now = ratios(result)
    if options.write:
        rounded = {name: float(f"{value:.3g}") for name, value in sorted(now.items())}
        options.baseline.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
        print(f"{options.baseline}: {len(rounded)} ratios written")
        return 0

    before = json.loads(options.baseline.read_text(encoding="utf-8"))
    times = {b["name"]: b["stats"]["min"] for b in result["benchmarks"]}
    print(f"{'benchmark':<42}{'best, ms':>10}{'ratio':>9}{'baseline':>10}{'change':>8}")
    failed = []
    for name in sorted(now.keys() | before.keys()):
        if name not in now:
            failed.append(f"{name}: in the baseline but was not run")
            continue
        change = now[name] / before[name] if name in before else None
        known = f"{before[name]:>10.3g}{change:>7.2f}x" if change is not None else f"{'new':>10}{'':>8}"
        print(f"{name.removeprefix('test_'):<42}{times[name] * 1e3:>10.3f}{now[name]:>9.3g}{known}")
        if change is not None and change > LIMIT:
            failed.append(f"{name}: {change:.2f} times its baseline; at most {LIMIT}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
