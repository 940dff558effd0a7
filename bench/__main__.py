"""``python -m bench [case …] [--quick] [--count N]``"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import time
import traceback

from bench.harness import Bench, environment
from bench.peers import MissingPeer
from bench.report import PAGE, case_names, save, write_page
from diptych.core.errors import nearest


def main() -> int:
    names = case_names()
    parser = argparse.ArgumentParser(prog="python -m bench", description=f"Cases: {', '.join(names)}. None named: all.")
    parser.add_argument("cases", nargs="*", metavar="case")
    parser.add_argument("--quick", action="store_true", help="few rounds and small sizes, to see that it works; nothing is written")
    parser.add_argument("--count", type=int, help="how many, for a case that can do with other numbers (index); nothing is written")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in names:
            parser.error(f"there is no case '{name}'{nearest(name, names)}")
    count = arguments.count
    failed = [name for name in arguments.cases or names if not one(name, arguments.quick, bool(arguments.cases), count)]
    if not arguments.quick and count is None:
        print(f"written: {PAGE}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def one(name: str, quick: bool, named: bool, count: int | None = None) -> bool:
    """Run one case and write what it found; False if it failed. The other cases are still worth having."""
    began = time.monotonic()
    bench, where = Bench(name, quick), environment()
    print(f"{name} …", flush=True)
    try:
        case = importlib.import_module(f"bench.cases.{name.replace('-', '_')}")
        if getattr(case, "SLOW", False) and not named:
            print("  slow: runs only if named")
            return True
        if count is None or count == getattr(case, "COUNT", None):
            count = None
            case.run(bench)
        elif "count" in inspect.signature(case.run).parameters:
            case.run(bench, count)
        else:
            print(f"  the case {name} has no --count", file=sys.stderr)
            return False
    except MissingPeer as missing:
        print(f"  {missing}", file=sys.stderr)
        return False
    except Exception:
        traceback.print_exc()
        return False
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if not quick and count is None:
        save(bench, {"about": inspect.cleandoc(case.__doc__ or "")}, where, f"python -m bench {name}")
        write_page(case_names())
    return True


if __name__ == "__main__":
    sys.exit(main())
