"""``python -m bench [case …] [--quick]``"""

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
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in names:
            parser.error(f"there is no case '{name}'{nearest(name, names)}")
    failed = [name for name in arguments.cases or names if not one(name, arguments.quick, bool(arguments.cases))]
    if not arguments.quick:
        print(f"written: {PAGE}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def one(name: str, quick: bool, named: bool) -> bool:
    """Run one case and write what it found; False if it failed. The other cases are still worth having."""
    began = time.monotonic()
    bench, where = Bench(name, quick), environment()
    print(f"{name} …", flush=True)
    try:
        case = importlib.import_module(f"bench.cases.{name.replace('-', '_')}")
        if getattr(case, "SLOW", False) and not named:
            print("  slow: runs only if named")
            return True
        case.run(bench)
    except MissingPeer as missing:
        print(f"  {missing}", file=sys.stderr)
        return False
    except Exception:
        traceback.print_exc()
        return False
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if not quick:
        save(bench, {"about": inspect.cleandoc(case.__doc__ or "")}, where, f"python -m bench {name}")
        write_page(case_names())
    return True


if __name__ == "__main__":
    sys.exit(main())
