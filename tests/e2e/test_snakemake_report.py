"""Snakemake's own report carries the figures of the page, with captions and categories, and Chromium draws them."""

import shutil

import pytest
from browsing import opened
from tiny_project import ROOT, snakemake

from stages.support.rules import PARTS

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    project = shutil.copytree(finished, tmp_path_factory.mktemp("report") / "project")
    done = snakemake(project, "--report", "report.html")
    assert done.returncode == 0, done.stderr
    return project / "report.html"


@pytest.mark.parametrize("part", PARTS)
def test_a_category_has_its_caption_and_its_figure_is_drawn(made, browser, part):
    caption = (ROOT / f"mergemoe/report/templates/captions/{part}.rst").read_text()
    with opened(browser, made) as window:
        page = window.page
        page.get_by_text(PARTS[part], exact=True).first.click()
        page.locator("a[iconname=information-circle]").click()
        page.get_by_text(caption.split()[0]).first.wait_for()
        assert " ".join(caption.split()) in " ".join(page.inner_text("body").split())
        page.locator("a[iconname=eye]").click()
        figure = page.frame_locator("iframe").locator(".plot svg.main-svg").first
        figure.wait_for()
        assert figure.bounding_box()["height"] > 50
