import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.cli.charts import bar, in_steps, sparkline

NUMBERS = st.integers(0, 10**15)


@pytest.mark.parametrize(
    ("value", "largest", "drawn"),
    [
        (0, 10, ""),
        (0, 0, ""),
        (10, 10, "████"),
        (5, 10, "██"),
        (1, 10, "▍"),
        (6, 10, "██▍"),
        (1, 10**15, "▏"),
        (11, 10, "████"),
    ],
)
def test_bars(value: int, largest: int, drawn: str) -> None:
    assert bar(value, largest, 4) == drawn


@given(value=NUMBERS, largest=NUMBERS, width=st.integers(1, 40))
def test_a_bar_fits_and_is_there_where_something_is(value: int, largest: int, width: int) -> None:
    drawn = bar(value, largest, width)
    assert len(drawn) <= width
    assert bool(drawn) == (value > 0 and largest > 0)
    assert bar(largest, largest, width) == ("█" * width if largest else "")


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([0, 0], "··"), ([1], "█"), ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"), ([0, 1, 10**15], "·▁█")],
)
def test_sparklines(values: list[int], drawn: str) -> None:
    assert sparkline(values) == drawn


@given(st.lists(NUMBERS))
def test_a_sparkline_has_a_character_for_each_value_and_keeps_their_order(values: list[int]) -> None:
    drawn = sparkline(values)
    assert len(drawn) == len(values)
    heights = ["·▁▂▃▄▅▆▇█".index(char) for char in drawn]
    assert sorted(heights) == [height for _, height in sorted(zip(values, heights, strict=True))]
    assert [height == 0 for height in heights] == [value == 0 for value in values]


@given(st.lists(NUMBERS), st.integers(1, 9))
def test_steps_lose_nothing(values: list[int], step: int) -> None:
    sums = in_steps(values, step)
    assert sum(sums) == sum(values)
    assert len(sums) == -(-len(values) // step)
    assert sums[-1:] == ([sum(values[-step:])] if values else [])
