"""The report as HTML."""

import base64
import re

import nbformat
import pytest
from PIL import Image

from rgflow_core.errors import UserError
from study import page


def write(folder, *cells):
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    nbformat.write(notebook, folder / "n.ipynb")
    page.write_html(folder / "n.ipynb", folder / "n.html")
    return (folder / "n.html").read_text()


def test_page_is_one_file_with_equations(tmp_path):
    text = "# T\n\nwith $x^2$ and\n\n$$\\log p(x)$$\n"
    html = write(tmp_path, nbformat.v4.new_markdown_cell(text))
    assert html.count("<math") == 2
    assert "$" not in html
    assert "src=" not in html


def test_page_refuses_what_would_be_loaded(tmp_path):
    with pytest.raises(UserError, match="would load"):
        write(tmp_path, nbformat.v4.new_markdown_cell('<img src="http://example.invalid/a.png">'))
    assert not (tmp_path / "n.html").exists()


def test_pictures_of_markdown_are_part_of_the_page(tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    html = write(tmp_path, nbformat.v4.new_markdown_cell("![An alternative text](a.png)"))
    (found,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert base64.b64decode(found) == (tmp_path / "a.png").read_bytes()
    assert 'alt="An alternative text"' in html


def test_code_is_left_out_and_style_is_in(tmp_path):
    cell = nbformat.v4.new_code_cell("secret = 1", outputs=[])
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": "of $x$"})]
    html = write(tmp_path, cell)
    assert "secret" not in html
    assert html.count("<math") == 1
    assert (page.TEMPLATES / "page" / "page.css").read_text().splitlines()[0] in html
