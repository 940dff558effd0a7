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
from diptych.errors import nearest


def main() -> int:
    names = case_names()
    parser = argparse.ArgumentParser(prog="python -m bench", description=f"Cases: {', '.join(names)}. None named: all.")
    parser.add_argument("cases", nargs="*", metavar="case")
    parser.add_argument("--quick", action="store_true", help="few rounds and small sizes, to see that it works; nothing is written")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in names:
            parser.error(f"there is no case '{name}'{nearest(name, names)}")
    failed = []
    for name in arguments.cases or names:
        began = time.monotonic()
        print(f"{name} …", flush=True)
        case = importlib.import_module(f"bench.cases.{name.replace('-', '_')}")
        bench, where = Bench(name, arguments.quick), environment()
        try:
            case.run(bench)
        except MissingPeer as missing:
            print(f"  {missing}", file=sys.stderr)
            failed.append(name)
            continue
        except Exception:  # the other cases are still worth having
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
        if not arguments.quick:
            save(bench, {"about": inspect.cleandoc(case.__doc__ or "")}, where, f"python -m bench {name}")
            write_page(names)
    if not arguments.quick:
        print(f"written: {PAGE}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
