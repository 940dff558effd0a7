"""An index of a folder of pictures, searched by words and by a picture; run it again and only new pictures are read.

python examples/jobs/search_your_pictures.py --data folder:my/photos "a dog on a beach"
"""

import argparse
from pathlib import Path

import diptych as dp
from diptych.index.index import Index, Query

if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", default=["a red bird"])
    parser.add_argument("--data", default="openmoji:all", help="pictures")
    parser.add_argument("--limit", type=int, default=300, help="at most so many")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/pictures.index"))
    given = parser.parse_args()

    model = dp.load("conse")
    if given.out.exists():
        index = Index.open(given.out, model, "conse")
    else:
        index = Index.create(given.out, given.data, model, "conse", limit=given.limit)
    with index:
        changes = index.update(model)
        print(f"{len(index)} pictures, {changes.new} of them new")
        answer = index.search(Query(tuple(given.words)), model, n=5)
        for hit in answer.hits:
            print(f"  {hit.score:.3f}  {hit.picture.name}")
    print(f"in a browser: diptych serve {given.out}")
