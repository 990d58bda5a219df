from simulations.table import table


def test_a_table_is_markdown_and_aligned() -> None:
    assert table([{"method": "gpsl", "steps": 391}, {"method": "fls", "steps": 1806.123}]) == (
        "| method | steps |\n|-------:|------:|\n|   gpsl |   391 |\n|    fls |  1806 |"
    )
