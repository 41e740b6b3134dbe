"""Compare results with the committed reference: ``python -m study.reference check ...``."""

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import read_json, refusing_damage, write_json
from study import tables

# By notebook, absolute and relative. Same weights, pictures and noise: what differs between
# machines is rounding, and what rounding does to a training.
TOLERANCES = {
    "01_data": (1e-6, 1e-6),
    "02_training": (0.1, 0.05),
    "03_bpd_evaluation": (2e-3, 0.01),
    "04_sparsity": (2e-2, 0.02),
    "05_receptive_fields": (1.0, 0.02),
    "06_latent_space": (0.02, 0.02),
}
# Durations, what depends on files that we do not ship or on other settings, and what rounding can
# lead elsewhere: searches, and which samples explode.
_LEFT_OUT = {"seconds", "restoration", "exploded", "fid", "settings", "noise_spread", "p", "curve"}


def numbers(results: dict) -> dict[str, float]:
    """Path -> value of every number of ``results.json`` that can be compared."""
    found: dict[str, float] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in _LEFT_OUT:
                    walk(f"{path}/{key}", inner)
        elif isinstance(value, list):
            for k, inner in enumerate(value):
                walk(f"{path}/{k}", inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path] = value

    for name, content in results.items():
        if name != "profile":
            walk(name, content["numbers"])
    return found


def compare(results: dict, reference: dict[str, float]) -> list[dict]:
    """Rows of ``number``, ``here``, ``reference``, ``tolerance`` and ``verdict``."""
    here, rows = numbers(results), []
    for path in sorted(here.keys() | reference.keys()):
        known = [v for k, v in TOLERANCES.items() if path.startswith(k)]
        if not known:
            raise UserError(f"{path}: no such number in the study; TOLERANCES has none for it")
        absolute, relative = known[0]
        mine, wanted = here.get(path), reference.get(path)
        if mine is None or wanted is None:
            tolerance, verdict = None, "missing here" if mine is None else "not in the reference"
        else:
            tolerance = absolute + relative * abs(wanted)
            verdict = "agrees" if abs(mine - wanted) <= tolerance else "DEVIATES"
        rows.append(
            {"number": path, "here": mine, "reference": wanted}
            | {"tolerance": tolerance, "verdict": verdict}
        )
    return rows


def main() -> None:
    parser = cli.Parser("Compare results with the reference, or make them the reference.")
    parser.add_argument("what", choices=("check", "write"))
    parser.add_argument("results", help="results.json")
    parser.add_argument("reference", help="reference.json")
    parser.add_argument("table", nargs="?", help="CSV to write, every number with its verdict")
    args = parser.parse_args()
    with refusing_damage(args.results, "results of the study"):
        results = read_json(args.results)
        found = numbers(results)
        if not found:
            raise UserError(f"{args.results}: holds no numbers; make reproduce makes them")
    if args.what == "write":
        write_json(args.reference, found)
        print(f"Done: {args.reference}")
        return
    with refusing_damage(args.reference, "a reference of the study"):
        rows = compare(results, read_json(args.reference))
    if args.table:
        tables.write_csv(args.table, rows)
    bad = [row for row in rows if row["verdict"] != "agrees"]
    for row in bad:
        print("{verdict}: {number}: {here}, reference {reference} ± {tolerance}".format(**row))
    print(f"{len(rows) - len(bad)} of {len(rows)} numbers agree with {args.reference}")
    if bad:
        raise UserError(
            f"{len(bad)} numbers are not those of {args.reference}"
            + (f"; all of them: {args.table}" if args.table else "")
            + "; after a change that is meant: make reference"
        )


if __name__ == "__main__":
    cli.run(main)
