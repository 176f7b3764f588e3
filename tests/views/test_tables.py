"""Tables as a reader sees them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from drainkit.views.session import Table


def test_a_table_reads_well_and_is_inert() -> None:
    """Numbers have separators and stand to the right, text to the left; no NaN; all is escaped."""
    table = Table(
        {
            "events": [12345, 7],
            "age": [1.5, np.nan],
            "symbol": ["<script>x</script>", None],
        },
        index=pd.Index(["<b>a</b>", "b"], name="group"),
    )
    shown = table._repr_html_()
    cells = re.findall(r"<td([^>]*)>(.*?)</td>", shown)
    assert [text for _, text in cells] == [
        "&lt;b&gt;a&lt;/b&gt;", "12,345", "1.50", "&lt;script&gt;x&lt;/script&gt;",
        "b", "7", "", "",
    ]  # fmt: skip
    assert [place for place, _ in cells[:4]] == ["", " class='n'", " class='n'", ""]
    assert table.loc["b", "events"] == 7
    assert "text-align:left" in shown
    assert "NaN" not in shown + pd.DataFrame()._repr_html_()
    assert "drained_ok" in Table({"audited": [1]}, ["drained_ok"])._repr_html_()


def test_a_table_without_rows_says_so() -> None:
    """A head over nothing looks broken."""
    table = Table({"bytes": []}, index=pd.Index([], name="file"))
    assert "<td colspan='2'>none</td>" in table._repr_html_()
