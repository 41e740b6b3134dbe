"""The report as HTML and PDF."""

import base64
import io
import os
import re
import shutil

import nbformat
import numpy as np
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


def test_pictures_keep_their_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "png")
    cell = nbformat.v4.new_code_cell()
    data = {"image/png": base64.b64encode(stored.getvalue()).decode()}
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    html = write(tmp_path, cell)
    assert "data:image/png" not in html
    (found,) = re.findall(r"data:image/webp;base64,([^\"]+)", html)
    with Image.open(io.BytesIO(base64.b64decode(found))) as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def test_tables_can_be_moved_sideways(tmp_path):
    html = write(tmp_path, nbformat.v4.new_markdown_cell("| a | b |\n|---|---|\n| 1 | 2 |\n"))
    assert re.search(r'<div class="table"[^>]*><table>.*</table></div>', html, re.DOTALL)


def test_without_a_browser_a_line_says_so_and_no_old_pdf_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "r.html").write_text("new")
    (tmp_path / "r.pdf").write_text("of an earlier page")
    assert page.print_pdf(tmp_path / "r.html") == "r.pdf: not written, no Chromium is installed"
    assert not (tmp_path / "r.pdf").exists()


def test_a_failing_browser_is_named(tmp_path, monkeypatch):
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\nexit 3\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "r.html").write_text("x")
    line = page.print_pdf(tmp_path / "r.html")
    assert line.startswith("r.pdf: not written, chromium failed: ")
    assert "exit status 3" in line
    assert not (tmp_path / "r.pdf").exists()


@pytest.mark.skipif(not any(map(shutil.which, page.BROWSERS)), reason="no Chromium is installed")
def test_pdf_is_printed(tmp_path):
    (tmp_path / "r.html").write_text("<!doctype html><title>T</title><p>text</p>")
    assert page.print_pdf(tmp_path / "r.html").startswith("r.pdf: printed by ")
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF-")
