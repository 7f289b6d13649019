"""The report: its numbers are those of audit.json, it stands alone, and it is written whole or not at all."""

import copy
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib.style
import numpy as np
import pytest
import torch
from torch.distributions import Poisson

import posthoc_metric as pm
from posthoc_metric.diagnostics import share_off_data
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.examples import digits, digits_vae
from posthoc_metric.report import pair_statistics, write_report, writer
from posthoc_metric.report.figures import frames, geodesics, maps, profile
from posthoc_metric.report.page import readable, render
from posthoc_metric.report.pairs import fisher_rao_family

FILES = {
    "report.html",
    "audit.json",
    "geodesics.npz",
    "maps.png",
    "geodesics.png",
    "frames.png",
    "profile.png",
    "audit.png",
}


class Page(HTMLParser):
    """What a browser would load from elsewhere, and the numbers with their places."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.numbers, self.texts, self._open = [], [], [], None
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.sources += [attributes[name] for name in ("src", "href", "srcset") if name in attributes]
        if tag == "data":
            self._open = attributes

    def handle_data(self, text):
        if self._open is not None:
            self.numbers.append((self._open["data-path"], self._open["value"], self._open["data-style"], text))
            self._open = None
        self.texts.append(text)


@pytest.fixture(scope="module", autouse=True)
def _small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "DPI", 50)
        yield


@pytest.fixture(scope="module")
def job():
    """A small repair of the shipped decoder, with geodesics before and after and its audit."""
    module, encoder = digits_vae()
    data = digits().data[:500]
    latents = encoder(data).double()
    repaired = pm.repair(pm.Decoder(module, latent_dim=2), latents, data)
    start, end = latents[:4], latents[4:8]
    before = repaired.decoder_metric.geodesic(start, end)
    return repaired, before, repaired.geodesic(start, end), repaired.audit(points=24, pairs=2)


@pytest.fixture(scope="module")
def written(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "report"
    facts = write_report(out, *job, image_shape=(8, 8), title="A <title>", settings={"source": "digits & more"})
    return out, facts


@pytest.fixture(scope="module")
def page(written):
    return Page((written[0] / "report.html").read_text(encoding="utf-8"))


def lookup(facts, path):
    for key in path.split("."):
        facts = facts[int(key)] if isinstance(facts, list) else facts[key]
    return facts


class TestPage:
    def test_every_file_is_there(self, written):
        assert {path.name for path in written[0].iterdir()} == FILES

    def test_every_number_is_that_of_audit_json(self, written, page):
        facts = json.loads((written[0] / "audit.json").read_text(encoding="utf-8"))
        assert facts == written[1]
        assert len(page.numbers) > 40
        for path, value, style, text in page.numbers:
            found = lookup(facts, path)
            assert text == readable(found, style)
            if isinstance(found, (int, float)):
                assert float(value) == found

    def test_every_criterion_has_its_three_numbers_and_verdict(self, written, page):
        paths = {path for path, *_ in page.numbers}
        for index, row in enumerate(written[1]["criteria"]):
            assert {f"criteria.{index}.{name}" for name in ("before", "after", "bound")} <= paths
            assert row["description"] in "".join(page.texts)
        words = [text for text in page.texts if text in ("Pass", "Fail", "Not judged")]
        expected = {True: "Pass", False: "Fail", None: "Not judged"}
        assert words == [expected[row["passed"]] for row in written[1]["criteria"]]

    @pytest.mark.parametrize("data", [True, False])
    def test_the_published_repair_is_shown_where_it_was_measured(self, written, data):
        facts = {**written[1], "criteria": [dict(row) for row in written[1]["criteria"]]}
        assert any(row["published"] is not None for row in facts["criteria"])
        for row in facts["criteria"]:
            row["published"] = row["published"] if data else None
        page = render(facts, [], "x")
        assert ("RBF as published" in page) == ("over the\n  data’s mean variance" in page) == data

    def test_a_pair_of_long_numbers_breaks_before_its_arrow(self, written):
        text = (written[0] / "report.html").read_text(encoding="utf-8")
        assert text.count('<wbr><span class="arrow">→</span>') == text.count('class="arrow"') == 3

    def test_nothing_is_loaded_from_elsewhere(self, written, page):
        assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
        assert "script" not in page.tags and "link" not in page.tags
        assert not re.search(r"url\(|@import|https?://", (written[0] / "report.html").read_text(encoding="utf-8"))

    def test_what_the_user_wrote_is_escaped(self, written):
        text = (written[0] / "report.html").read_text(encoding="utf-8")
        assert "A &lt;title&gt;" in text and "digits &amp; more" in text

    def test_statuses_carry_their_advice(self, written, page):
        text = "".join(page.texts)
        for side in ("before", "after"):
            statuses = written[1]["geodesics"][side]["statuses"]
            assert sum(status["pairs"] for status in statuses) == 4
            # what is code there is set as code here, without its backticks
            assert all(status["advice"].replace("`", "") in text for status in statuses)
        assert "`" not in text

    def test_it_reads_well_in_dark_and_narrow(self, written):
        text = (written[0] / "report.html").read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text and "width=device-width" in text


class TestFiles:
    def test_curves_are_those_of_the_solutions(self, job, written):
        _, before, after, _ = job
        with np.load(written[0] / "geodesics.npz") as arrays:
            assert np.array_equal(arrays["after_points"], after.points)
            assert np.array_equal(arrays["before_length"], before.length)
            assert arrays["after_status"].tolist() == [status.name for status in after.status]

    def test_statistics_are_of_the_given_curves(self, job):
        repaired, before, after, _ = job
        found = pair_statistics(repaired, before, after)
        assert found.pairs == 4
        assert found.after.median_length == pytest.approx(float(np.median(after.length)))
        assert found.after.median_length != float(after.length.median())  # the lower of the middle two
        assert found.before.converged == int(before.converged.sum())
        assert 0 <= found.after.off_data_mean <= 1

    def test_page_and_picture_have_one_share_of_the_same_curves(self, job):
        """The page's was once of the nodes, the picture's of points at constant speed."""
        repaired, before, after, _ = job
        found = pair_statistics(repaired, before, after)
        drawn = geodesics(repaired, before, after, found).figure
        shares = [text.get_text() for ax in drawn.axes for text in ax.texts if "of the length" in text.get_text()]
        assert [share.partition(" of")[0] for share in shares] == [
            readable(side.off_data_mean, "percent") for side in (found.before, found.after)
        ]
        fine = share_off_data(before(torch.linspace(0, 1, 1025, dtype=torch.float64)), repaired.geometry)
        assert torch.allclose(found.before.off_data, fine, atol=0.01)

    @pytest.mark.parametrize(
        ("before", "said"),
        [(2.0, "The decoder's own falls, which makes"), (0.0, "own does not fall either."), (math.nan, "further out.")],
    )
    def test_the_caption_says_whether_the_decoder_falls(self, job, before, said):
        audit = job[3]
        rows = tuple(replace(row, before=before) if row.name == "persistence" else row for row in audit.criteria)
        caption = profile(replace(audit, criteria=rows)).caption
        assert said in caption and caption.count("The decoder's own") == (not math.isnan(before))

    def test_what_lies_off_the_data_is_not_called_empty_space(self, job, page):
        """Held-out latents themselves do, by what it means."""
        geometry = job[0].geometry
        assert bool((geometry.offset(geometry.calibration) > 0).any())
        text = " ".join(page.texts)
        assert text.count("off the data, further from the training latents than 95 % of those held out") == 2

    @pytest.mark.parametrize(("most", "said"), [(math.inf, "and the dashed one offset 1"), (0.9, "beyond the picture")])
    def test_the_caption_has_no_line_that_is_not_drawn(self, job, most, said):
        near = copy.copy(job[0])
        near.geometry = SimpleNamespace(
            latents=job[0].geometry.latents, offset=lambda z: job[0].geometry.offset(z).clamp(max=most)
        )
        picture = maps(near)
        drawn = [len(ax.collections) for ax in picture.figure.axes[:4]]
        assert said in picture.caption and drawn == 4 * [3 if most > 1 else 2]  # the dots and every line

    @pytest.mark.parametrize("observe", [None, lambda x: x])
    def test_lengths_of_distributions_have_their_own_unit(self, job, written, observe):
        weights = torch.eye(2, 6)
        make = lambda z: Poisson((2 + torch.tanh(z @ weights.to(z))).exp())  # noqa: E731
        decoder = pm.Decoder(make, output=pm.fisher_rao, latent_dim=2, observe=observe)
        assert fisher_rao_family(decoder) == "Poisson"
        repaired = copy.copy(job[0])
        repaired.decoder = decoder
        assert writer._settings(repaired)["metric"] == "Fisher-Rao, of Poisson distributions"
        assert pair_statistics(repaired, job[1], job[2]).unit == "units of the Fisher-Rao metric"
        text = (written[0] / "report.html").read_text(encoding="utf-8")
        assert "in units of the decoder output" in text and written[1]["settings"]["metric"].startswith("Euclidean")

    def test_written_again_it_replaces_and_keeps_what_is_not_its_own(self, job, tmp_path):
        (tmp_path / "mine.txt").write_text("keep")
        (tmp_path / "audit.json").write_text("old")
        write_report(tmp_path, *job)
        assert (tmp_path / "mine.txt").read_text() == "keep"
        assert json.loads((tmp_path / "audit.json").read_text())["geodesics"]["pairs"] == 4
        assert not (tmp_path / "frames.png").exists()

    @pytest.mark.parametrize("style", ["dark_background", {"text.usetex": True, "font.size": 30}])
    def test_the_callers_style_is_not_the_pages(self, job, written, tmp_path, style):
        repaired, before, after, audit = job
        with matplotlib.style.context(style):
            kept = dict(matplotlib.rcParams)
            write_report(tmp_path / "styled", repaired, before, after, audit, image_shape=(8, 8))
            assert dict(matplotlib.rcParams) == kept
        for name in ("maps.png", "geodesics.png", "frames.png", "profile.png", "audit.png"):
            assert (tmp_path / "styled" / name).read_bytes() == (written[0] / name).read_bytes()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("drawing failed")])
    def test_an_error_half_way_leaves_nothing_behind(self, job, tmp_path, monkeypatch, error):
        def stop(*args):
            raise error

        monkeypatch.setattr(writer, "pictures", stop)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            write_report(tmp_path / "new" / "out", *job)
        assert list(tmp_path.iterdir()) == []

    def test_a_wrong_image_shape_is_refused_before_anything_is_written(self, job, tmp_path):
        for shape in ((8, 9), (64,), (4, 4, 4), (-8, -8)):
            with pytest.raises(InvalidArgumentError, match="`image_shape` must be"):
                write_report(tmp_path / "out", *job, image_shape=shape)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("first", "shape"), [(True, (6, 5, 3)), (True, (3, 6, 5)), (False, (6, 5, 3))])
    def test_colours_are_where_the_decoder_puts_them(self, job, tmp_path, monkeypatch, first, shape):
        """Convolutions give (3, h, w), whose pictures were once cut out of it as (h, w, 3)."""
        _, _, _, audit = job
        weights = torch.randn(2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def decode(z):
            grey = torch.sigmoid(z @ weights.to(z)).view(-1, 6, 5)
            return torch.stack([grey, grey / 2, 0 * grey], dim=1 if first else 3)

        drawn = []
        monkeypatch.setattr("posthoc_metric.plots.draw_frames", lambda axes, images, **_: drawn.append(images))
        latents = torch.randn(120, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        repaired = pm.repair(pm.Decoder(decode, latent_dim=2), latents)
        after = repaired.geodesic(latents[:1], latents[1:2])
        write_report(tmp_path / "out", repaired, after, after, audit, image_shape=shape)
        grey = torch.sigmoid(latents[:1] @ weights).view(6, 5, 1).numpy()
        assert np.allclose(drawn[0][0], grey * [1, 0.5, 0], atol=1e-6)

    def test_settings_may_be_numpys_numbers(self, job, tmp_path):
        settings = {"rate": np.float32(0.5), "epochs": np.int64(300), "augmented": True}
        facts = write_report(tmp_path / "out", *job, settings=settings)
        assert facts["settings"].items() >= {"rate": 0.5, "epochs": 300}.items()
        assert "<dt>augmented</dt><dd>True</dd>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    def test_settings_that_json_cannot_hold_are_refused_before_anything_is_drawn(self, job, tmp_path, monkeypatch):
        monkeypatch.setattr(writer, "pictures", None)
        with pytest.raises(InvalidArgumentError, match="`settings`.*'checkpoint' is .*Path.*str"):
            write_report(tmp_path / "out", *job, settings={"checkpoint": tmp_path})

    def test_without_a_curve_there_are_no_frames(self, job, tmp_path):
        repaired, _, _, audit = job
        none = repaired.geometry.latents[:0]
        solutions = repaired.decoder_metric.geodesic(none, none), repaired.geodesic(none, none)
        write_report(tmp_path / "out", repaired, *solutions, audit, image_shape=(8, 8))
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"frames.png"}

    def test_a_pair_without_a_curve_leaves_the_others_their_numbers(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(2, 16, generator=generator, dtype=torch.float64)
        latents = torch.randn(120, 2, generator=generator, dtype=torch.float64)
        lost = torch.tensor([20.0, 20.0], dtype=torch.float64)

        def decode(z):
            hole = ((z - lost.to(z)).norm(dim=1, keepdim=True) < 1).to(z)
            return torch.tanh(z @ weights.to(z)) / (1 - hole)

        repaired = pm.repair(pm.Decoder(decode, latent_dim=2), latents)
        start, end = latents[:4], torch.cat([lost[None], latents[5:8]])
        solutions = repaired.decoder_metric.geodesic(start, end), repaired.geodesic(start, end)
        found, others = (
            pair_statistics(repaired, *solutions),
            pair_statistics(
                repaired, *(metric.geodesic(start[1:], end[1:]) for metric in (repaired.decoder_metric, repaired))
            ),
        )
        assert [status.name for status in solutions[1].status] == ["NOT_FINITE"] + 3 * ["CONVERGED"]
        assert found.straight_off_data_mean == others.straight_off_data_mean
        assert found.after.off_data_mean == others.after.off_data_mean
        write_report(tmp_path / "out", repaired, *solutions, repaired.audit(points=24, pairs=2), image_shape=(4, 4))
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES

    @pytest.mark.parametrize(("shift", "share"), [(0.0, ""), (-0.5, "[3-9].% of the values lie outside .* cut to it")])
    def test_values_that_no_image_has_are_told_of(self, job, shift, share):
        """Of a decoder that ends in tanh half of its picture would be black without a word."""
        repaired = copy.copy(job[0])
        module, _ = digits_vae()
        repaired.decoder = pm.Decoder(lambda z: module(z) + shift, latent_dim=2)
        caption = frames(repaired, job[1], job[2], (8, 8)).caption
        assert re.search(share, caption) if share else "outside [0, 1]" not in caption

    def test_solutions_of_other_pairs_are_refused(self, job, tmp_path):
        repaired, before, after, audit = job
        fewer = repaired.geodesic(after.points[:1, 0], after.points[:1, -1])
        with pytest.raises(InvalidArgumentError, match="same pairs"):
            write_report(tmp_path / "out", repaired, before, fewer, audit)


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.CalibrationWarning")
def test_more_than_two_dimensions_are_said_to_be_cut(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 6, generator=generator)
    latents = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    repaired = pm.repair(pm.Decoder(lambda z: torch.tanh(z @ weights.to(z)), latent_dim=3), latents)
    start, end = latents[:2], latents[2:4]
    solutions = repaired.decoder_metric.geodesic(start, end), repaired.geodesic(start, end)
    write_report(tmp_path / "out", repaired, *solutions, repaired.audit(points=24, pairs=2))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The picture shows the plane through latents" in text and "3-dimensional space" in text


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (None, "number", "–"),
        ("Infinity", "number", "∞"),
        (0.0, "number", "0"),
        (1797, "number", "1\u202f797"),
        (0.99, "number", "0.99"),
        (89.54, "number", "89.5"),
        (1000.0, "number", "1\u202f000"),
        (-2.5, "number", "−2.5"),
        (12576.4, "number", "12\u202f576"),
        (1.84e-4, "number", "1.84 × 10⁻⁴"),
        (0.999999, "number", "1"),
        (99999.9, "number", "1 × 10⁵"),
        (9.999e-5, "number", "1 × 10⁻⁴"),
        (0.2046, "percent", "20.5 %"),
        (0.0, "percent", "0 %"),
        (1.0, "percent", "100 %"),
    ],
)
def test_numbers_read_in_three_digits(value, style, text):
    assert readable(value, style) == text
