"""The runner notices what it has to notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.snippets import Block, Story, blocks, kind_of_server, same_output

PAGE = """\
<!-- server: embedded -->
# A page

```python
x = 20
print(x + 1)
```

It prints:

```text
21
```

<!-- not run: needs another machine -->

```sh
false
```

1. In a list:

   ```sql
   SELECT 1
   ```

```json
{}
```
"""


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "page.md", tmp_path, {"PATH": "/usr/bin:/bin", "WORD": "heard"}, None)


def test_blocks_are_found_with_language_line_output_and_reason() -> None:
    assert blocks(PAGE) == [
        Block("python", "x = 20\nprint(x + 1)\n", 5, None, "21\n"),
        Block("sh", "false\n", 18, "needs another machine", None),
        Block("sql", "SELECT 1\n", 24, None, None),
        Block("json", "{}\n", 28, None, None),
    ]
    assert kind_of_server(PAGE) == "embedded"
    assert kind_of_server("# Nothing said") == "database"


def test_python_blocks_share_names_and_may_await(story: Story) -> None:
    story.run(Block("python", "import asyncio, os\nx = os.environ['WORD']", 1, None, None))
    assert story.run(Block("python", "await asyncio.sleep(0)\nprint(x)", 1, None, None)) == "heard\n"


def test_a_failing_shell_block_is_an_error_wherever_it_fails(story: Story) -> None:
    assert story.run(Block("sh", "echo $WORD\n", 1, None, None)) == "heard\n"
    with pytest.raises(AssertionError, match="exit code 1"):
        story.run(Block("sh", "false\necho not reached\n", 1, None, None))


def test_python_errors_have_the_line_number_of_the_page(story: Story) -> None:
    with pytest.raises(SyntaxError) as caught:
        story.run(Block("python", "x = = 1\n", 41, None, None))
    assert caught.value.lineno == 41


def test_sql_blocks_print_a_table(database: str, tmp_path: Path) -> None:
    story = Story(tmp_path / "page.md", tmp_path, {}, database)
    printed = story.run(Block("sql", "SELECT 1 AS one, NULL AS nothing; SELECT 'x' AS word", 1, None, None))
    assert same_output("one nothing\n1\nword\nx", printed)


@pytest.mark.parametrize(
    ("promised", "printed", "same"),
    [
        ("1 2", "1   2\n", True),
        ("┃ topic ┃ n ┃\n│ a │ 1 │", "topic | n\n------+---\na | 1", True),
        ("took … s", "took 1.25 s", True),
        ("took … s", "took 1.25 ms", False),
        ("1", "2", False),
        ("a", "a b", False),
    ],
)
def test_output_is_compared_by_its_words(promised: str, printed: str, same: bool) -> None:
    assert same_output(promised, printed) is same
