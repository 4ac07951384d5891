"""Tables of a page."""

from jaxcodesign.figures import page_parts


def test_a_column_has_one_prefix_in_which_its_smallest_has_three_digits():
  rows = [{"s": 2.5e-3}, {"s": 4.2e-6}, {"s": 0.0}]
  column = page_parts.scaled(rows, "s", "s", "Time")
  assert column.title == "Time, µs"
  assert [column.show(column.value(row)) for row in rows] == [
    "2,500.00",
    "4.20",
    "0.00",
  ]
