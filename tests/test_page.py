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


def test_page_is_one_file_with_equations_pictures_and_style_and_without_code(tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    text = "# T\n\nwith $x^2$ and\n\n$$\\log p(x)$$\n\n![An alternative text](a.png)"
    code = nbformat.v4.new_code_cell("secret = 1", outputs=[])
    code.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": "of $x$"})]
    html = write(tmp_path, nbformat.v4.new_markdown_cell(text), code)
    assert html.count("<math") == 3
    assert "$" not in html
    (picture,) = re.findall(r'src="([^"]+)"', html)
    assert base64.b64decode(picture.split(";base64,")[1]) == (tmp_path / "a.png").read_bytes()
    assert 'alt="An alternative text"' in html
    assert "secret" not in html
    assert (page.TEMPLATES / "page" / "page.css").read_text().splitlines()[0] in html


def test_page_refuses_what_would_be_loaded(tmp_path):
    with pytest.raises(UserError, match="would load"):
        write(tmp_path, nbformat.v4.new_markdown_cell('<img src="http://example.invalid/a.png">'))
    assert not (tmp_path / "n.html").exists()
