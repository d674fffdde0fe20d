"""Which crates a library's code is of: `sizes.py LIBRARY`, with symbols.

Counts functions and named data; what has no symbol (strings, tables, unwinding) is the rest.
"""

import collections
import os
import re
import shutil
import subprocess
import sys

C_PARTS = {"sqlite3": "SQLite (C)", "ZSTD": "zstd (C)", "HUF_": "zstd (C)", "FSE_": "zstd (C)", "ring_core": "ring (C)"}
PATH = re.compile(r"([a-z][a-z0-9_]*)(?:\[[0-9a-f]+\])?::")


def owner(name):
    for part, crate in C_PARTS.items():
        if part in name:
            return crate
    found = PATH.search(name)
    return found[1] if found else "other C, and what has no crate"


def main(library):
    nm = shutil.which("aarch64-linux-gnu-nm") or "nm"
    listed = subprocess.run([nm, "-C", "-S", library], capture_output=True, text=True, check=True)
    sizes = collections.Counter()
    for line in listed.stdout.splitlines():
        parts = line.split(maxsplit=3)
        if len(parts) == 4 and parts[2] in "tTrRdDwWV":
            sizes[owner(parts[3])] += int(parts[1], 16)
    for crate, size in sizes.most_common(20):
        print(f"{size / 1e6:7.2f} MB  {crate}")
    print(f"{sum(sizes.values()) / 1e6:7.2f} MB  in symbols, of {os.path.getsize(library) / 1e6:.1f} with them")


if __name__ == "__main__":
    main(sys.argv[1])
