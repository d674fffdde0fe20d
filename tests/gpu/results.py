"""What was found: kept in a JSON file as it comes, and shown beside the targets."""

import json
import os

# Rows that a target is set for: what must be at least, or at most, this.
TARGETS = {
    "client-rounds builtin": ("ratio", ">=", 8.0, "8x"),
    "tokens/s 7b": ("ratio", ">=", 2.0, "2x"),
    "share 7b": ("fleetune", ">=", 0.45, "45 %"),
    "memory 7b q4_0": ("fleetune", "<=", 12e9, "12 GB"),
}


class Results:
    """Rows by key. A comparison that was stopped goes on from its file."""

    def __init__(self, path, settings):
        self.path, self.rows, self.notes, self.settings = path, {}, [], settings
        if path and path.exists():
            found = json.loads(path.read_text())
            if found.get("settings") != settings:
                raise ValueError(f"{path} holds another comparison: name another file with --out")
            # What failed is tried again.
            self.rows = found["rows"]

    def has(self, key):
        return key in self.rows

    def add_checks(self, key, checks):
        checks = [check | {"passed": check["value"] <= check["tolerance"]} for check in checks]
        for check in checks:
            print(f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['value']:.2g} "
                  f"(at most {check['tolerance']:.2g})", flush=True)
        self.keep(key, {"checks": checks})

    def add_measure(self, key, unit, what, ours, theirs):
        """`theirs` are PyTorch's variants; the better one counts."""
        less = unit == "bytes"
        best = (min if less else max)(theirs, key=theirs.get, default=None)
        row = {"what": what, "unit": unit, "fleetune": ours, "pytorch": theirs, "best": best,
               "ratio": ours / theirs[best] if best else None}
        row |= judged(key, row)
        self.keep(key, row)
        print("measured:", " | ".join(cells(row)), flush=True)

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            print(text, flush=True)

    def fail(self, key, error):
        """Kept as a note alone, so that the next start tries again."""
        self.note(f"{key}: {error}")
        self.save()

    def keep(self, key, row):
        self.rows[key] = row
        self.save()

    def save(self):
        if self.path:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps({"settings": self.settings, "rows": self.rows, "notes": self.notes},
                                       indent=1))
            os.replace(part, self.path)

    def checks(self):
        return [check for row in self.rows.values() for check in row.get("checks", [])]

    def passed(self):
        return all(check["passed"] for check in self.checks())

    def table(self):
        lines = ["| what | unit | fleetune | PyTorch | ratio | target | |",
                 "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in self.rows.values() if "what" in row]
        missing = [key for key in TARGETS if key not in self.rows]
        lines += [f"| {key} | | | | | {TARGETS[key][3]} | not measured |" for key in missing]
        checks = self.checks()
        if checks:
            good = sum(check["passed"] for check in checks)
            lines += ["", f"{good} of {len(checks)} comparisons of results within their tolerances"]
        return "\n".join(lines + [""] * bool(self.notes) + self.notes)


def judged(key, row):
    """The target of a row and whether it is met."""
    if key not in TARGETS:
        return {"target": None, "met": None}
    field, relation, bound, text = TARGETS[key]
    value = row[field]
    met = value is not None and (value >= bound if relation == ">=" else value <= bound)
    return {"target": text, "met": met}


def cells(row):
    """A row of the table, as texts."""
    theirs = row["pytorch"].get(row["best"])
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    met = {None: "", True: "met", False: "missed"}[row["met"]]
    name = row["what"] if row["best"] is None else f"{row['what']} (PyTorch: {row['best']})"
    return [name, "GB" if row["unit"] == "bytes" else row["unit"], number(row["fleetune"], row["unit"]),
            "" if theirs is None else number(theirs, row["unit"]), ratio, row["target"] or "", met]


def number(value, unit):
    if unit == "bytes":
        return f"{value / 1e9:.2f}"
    return f"{value:.1%}" if unit.startswith("of ") else f"{value:.0f}"
