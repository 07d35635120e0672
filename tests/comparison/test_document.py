"""Tables as Markdown and HTML."""

from captioning.comparison import document


def test_cells_are_escaped_in_both_forms():
    table = document.Table(["", "a|b"], [["x", "1 < 2"]], "title")
    assert "| x | 1 < 2 |" in document.markdown("t", [table]) and "a\\|b" in document.markdown("t", [table])
    assert "<td>1 &lt; 2</td>" in document.page("t", [table])
