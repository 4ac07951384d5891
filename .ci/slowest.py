"""Where the seconds of a test run went: the 20 slowest tests, the sum of each folder.

python slowest.py REPORT.xml ...     what pytest wrote with --junitxml
"""

import collections
import sys
import xml.etree.ElementTree as ElementTree


def main(paths: list[str]) -> None:
  """Prints both, of all reports together."""
  tests, folders = [], collections.Counter()
  for path in paths:
    for case in ElementTree.parse(path).iter("testcase"):
      seconds, where = float(case.get("time", 0)), case.get("classname", "")
      tests.append((seconds, f"{where}::{case.get('name')}"))
      parts = where.split(".")
      folders[".".join(parts[:3] if len(parts) > 3 else parts[:2])] += seconds
  print(f"{len(tests):,} tests, {sum(folders.values()):,.0f} s; the 20 slowest:")
  for seconds, name in sorted(tests, reverse=True)[:20]:
    print(f"{seconds:8.1f} s  {name}")
  print("by folder:")
  for name, seconds in folders.most_common():
    print(f"{seconds:8.0f} s  {name}")


if __name__ == "__main__":
  main(sys.argv[1:])
