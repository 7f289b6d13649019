"""Pictures: what is drawn, on which scale, and that nothing global is touched."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure

from posthoc_metric import plots
from posthoc_metric.diagnostics import Audit, Criterion, Shell, ShellRow, Statistics
from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.metric import FunctionMetric


def cloud(dim, count=200):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bowl():
    """log volume ‖z‖², condition number 2."""
    scale = torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64))
    return FunctionMetric(lambda z: torch.exp(z.square().sum(1))[:, None, None] * scale.to(z), 2)


def axes(rows=1, columns=1):
    return Figure().subplots(rows, columns)


def row(name, offset, level, condition):
    values = Statistics(level - 1, level, level + 1, condition / 2, condition, 0.1, 1.0, 1.0)
    points = torch.zeros(1, 2)
    return ShellRow(Shell(name, offset, points), {"decoder": values, "repaired": values})


AUDIT = Audit(
    criteria=(
        Criterion("inflation", "a", 0.0, float("nan"), 50.0, 25.0, "at least", True),
        Criterion("persistence", "b", 5.0, 7.0, 0.5, 0.05, "at most", False),
        Criterion("smoothness", "c", float("nan"), float("nan"), 2.0, float("nan"), "at most", None, "no data"),
    ),
    shells=(row("data", -0.1, 0.0, 2.0), row("offset 1", 1.0, 3.0, float("inf")), row("gaps", 0.2, 9.0, 4.0)),
    faithfulness=None,
    radius=1.0,
)


class TestPlanes:
    def test_two_dimensions_are_shown_as_they_are(self):
        latents = cloud(2)
        plane = plots.latent_plane(latents)
        assert plane.title == "" and np.allclose(plane.project(latents), latents)
        left, right, bottom, top = plane.window
        assert right - left == pytest.approx(top - bottom)
        assert left < latents[:, 0].min() and top > latents[:, 1].max()

    def test_the_grid_is_rows_upwards_and_columns_to_the_right(self):
        plane = plots.latent_plane(cloud(2))
        grid = plane.grid(4).reshape(4, 4, 2)
        x, y = plane.ticks(4)
        assert np.allclose(grid[0, :, 0], x) and np.allclose(grid[:, 0, 1], y)

    @pytest.mark.parametrize("dim", [3, 20])
    def test_more_dimensions_are_cut_through_three_latents(self, dim):
        latents = cloud(dim)
        plane = plots.latent_plane(latents)
        assert f"of a {dim}-dimensional space" in plane.title
        flat = torch.as_tensor(plane.project(plane.anchors))
        assert torch.allclose(plane.origin + flat @ torch.stack([plane.first, plane.second]), plane.anchors)
        assert all((latents == anchor).all(1).any() for anchor in plane.anchors)

    def test_three_chosen_points(self):
        chosen = torch.eye(5, dtype=torch.float64)[:3]
        plane = plots.latent_plane(cloud(5), through=chosen)
        assert torch.equal(plane.anchors, chosen) and "three chosen points" in plane.title

    def test_points_on_a_line_make_no_plane(self):
        line = torch.arange(3.0)[:, None] * torch.ones(1, 4)
        with pytest.raises(InvalidArgumentError, match="not on one line"):
            plots.latent_plane(cloud(4), through=line)

    @pytest.mark.parametrize("distinct", [1, 2, 9])
    def test_latents_on_a_line_are_cut_by_a_plane_through_it(self, distinct):
        latents = torch.arange(9)[:, None].remainder(distinct) * torch.ones(1, 3).double()
        plane = plots.latent_plane(latents)
        axes = torch.stack([plane.first, plane.second])
        assert torch.allclose(axes @ axes.T, torch.eye(2).double())
        flat = torch.as_tensor(plane.project(latents))
        assert torch.allclose(plane.origin + flat @ axes, latents) and plane.window[0] < plane.window[1]

    def test_a_bad_seed_and_latents_of_another_width_are_refused(self):
        with pytest.raises(InvalidArgumentError, match="`seed` must"):
            plots.latent_plane(cloud(3), seed=-1)
        for latents in (cloud(3), cloud(2)[0]):
            with pytest.raises(InvalidArgumentError, match=r"must be \(B, 2\), as those of its plane"):
                plots.latent_plane(cloud(2)).project(latents)

    def test_two_points_make_no_plane(self):
        with pytest.raises(InvalidArgumentError, match="three points"):
            plots.latent_plane(cloud(4), through=torch.eye(4)[:2])

    def test_one_dimension_has_no_map(self):
        with pytest.raises(InvalidArgumentError, match="at least 2 columns"):
            plots.latent_plane(cloud(1))

    def test_principal_plane_says_how_much_it_shows(self):
        latents = cloud(4) * torch.tensor([3.0, 2.0, 0.1, 0.1])
        plane = plots.principal_plane(latents)
        assert "two principal components, 100%" in plane.title
        assert abs(float(plane.first[0])) > 0.9

    @pytest.mark.parametrize(("scale", "shown"), [(1.0, "93%"), (1e-200, "93%"), (0.0, "none")])
    def test_principal_plane_of_latents_that_hardly_differ(self, scale, shown):
        latents = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 2, 0], [0, 0, 1.75]], dtype=torch.float64)
        plane = plots.principal_plane(scale * latents)
        assert f"components, {shown} of the variance" in plane.title
        assert plane.window[0] < plane.window[1]

    @pytest.mark.parametrize("count", [0, 1])
    def test_a_point_makes_no_principal_plane(self, count):
        with pytest.raises(InvalidArgumentError, match=f"at least 2 points to span a plane; got {count}"):
            plots.principal_plane(cloud(4, count))


class TestFields:
    def test_values_stand_where_their_points_are(self):
        plane = plots.latent_plane(cloud(2))
        field = plots.evaluate(bowl(), plane, "log_volume", 5)
        x, y = plane.ticks(5)
        assert np.allclose(field, x[None, :] ** 2 + y[:, None] ** 2)
        assert np.allclose(plots.evaluate(bowl(), plane, "condition_number", 3), 2)

    def test_an_unknown_quantity_is_refused(self):
        with pytest.raises(InvalidArgumentError, match="log_volume, condition_number"):
            plots.evaluate(bowl(), plots.latent_plane(cloud(2)), "volume")

    def test_one_scale_covers_both_fields(self):
        norm = plots.shared_norm([np.zeros((3, 3)), np.full((3, 3), 4.0)])
        assert (norm.vmin, norm.vmax) == (0.0, 4.0)

    def test_condition_numbers_have_a_logarithmic_scale_from_one_to_the_ceiling(self):
        norm = plots.shared_norm([np.array([[2.0, 1e9]])], "condition_number", ceiling=1e3)
        assert isinstance(norm, LogNorm) and (norm.vmin, norm.vmax) == (1.0, 1e3)

    @pytest.mark.parametrize("ceiling", [0.5, 1.0, float("nan")])
    def test_a_ceiling_below_the_scale_is_refused(self, ceiling):
        with pytest.raises(InvalidArgumentError, match="`ceiling` must be above 1"):
            plots.shared_norm([np.full((2, 2), 3.0)], "condition_number", ceiling=ceiling)

    @pytest.mark.parametrize("ceiling", [1.5, 8.0, 60.0, 1e3])
    def test_a_short_scale_of_condition_numbers_has_several_ticks(self, ceiling):
        ax, field = axes(), np.array([[1.0, 1e4], [1e4, 1e4]])
        norm = plots.shared_norm([field], "condition_number", ceiling=ceiling)
        plots.draw_field(ax, field, plots.latent_plane(cloud(2)), quantity="condition_number", norm=norm)
        bar = plots.colour_bar(ax.images[0], [ax], "condition_number")
        seen = [tick for tick in bar.get_yticks() if 1 <= tick <= ceiling]
        assert 3 <= len(seen) <= 12
        assert bar.yaxis.get_major_formatter().format_ticks(seen) == [f"{tick:g}" for tick in seen]

    def test_a_field_without_finite_values_has_no_scale(self):
        with pytest.raises(InvalidArgumentError, match="finite"):
            plots.shared_norm([np.full((2, 2), np.inf)])

    def test_what_does_not_fit_a_field_is_refused(self):
        plane, field = plots.latent_plane(cloud(2)), np.eye(4)
        for offset in (np.eye(3), np.zeros(4), np.zeros((0, 0))):
            with pytest.raises(InvalidArgumentError, match=r"`offset` must be \(4, 4\)"):
                plots.draw_field(axes(), field, plane, offset=offset)
        with pytest.raises(InvalidArgumentError, match="`plane` must be what latent_plane"):
            plots.draw_field(axes(), field, None)
        with pytest.raises(InvalidArgumentError, match="`field` must"):
            plots.draw_field(axes(), [[1.0, 2.0], [3.0]], plane)
        assert plots.shared_norm([torch.zeros(2, 2), [[0.0, 4.0]]]).vmax > 3

    def test_singular_places_take_the_end_of_the_scale(self):
        plane, ax = plots.latent_plane(cloud(2)), axes()
        field = np.array([[0.0, 1.0], [-np.inf, 2.0]])
        assert plots.draw_field(ax, field, plane, norm=plots.shared_norm([field])) is ax
        shown = np.asarray(ax.images[0].get_array())
        assert np.isfinite(shown).all() and shown[1, 0] == ax.images[0].norm.vmin

    def test_no_value_is_no_end_of_the_scale(self):
        ax, field = axes(), np.array([[0.0, np.nan], [np.inf, 2.0]])
        plots.draw_field(ax, torch.from_numpy(field), plots.latent_plane(cloud(2)))
        shown, image = ax.images[0].get_array(), ax.images[0]
        assert shown.mask.tolist() == [[False, True], [False, False]] and shown[1, 0] == image.norm.vmax
        assert to_hex(image.cmap.get_bad()) == plots.FAINT

    def test_the_map_shows_data_edge_and_units(self):
        plane, (left, right) = plots.latent_plane(cloud(2)), axes(1, 2)
        field = plots.evaluate(bowl(), plane, resolution=20)
        offset = np.linspace(-1, 3, 400).reshape(20, 20)
        for ax in (left, right):
            plots.draw_field(ax, field, plane, latents=cloud(2), offset=offset, norm=plots.shared_norm([field]))
        assert len(left.collections) == 3  # dots and two contour lines
        assert left.images[0].norm.vmax == right.images[0].norm.vmax
        bar = plots.colour_bar(right.images[0], [left, right])
        assert "½ log det M" in bar.get_ylabel() and "nats" in bar.get_ylabel()


class TestCurves:
    def test_pieces_off_the_data_are_drawn_apart(self):
        ax, plane = axes(), plots.latent_plane(cloud(2))
        curves = torch.zeros(2, 5, 2, dtype=torch.float64)
        curves[:, :, 0] = torch.arange(5.0)
        offset = np.full((2, 5), -1.0)
        offset[1, 2:] = 1.0
        assert plots.draw_curves(ax, curves, offset, plane) is ax
        on, off = ax.collections[:2]
        assert len(on.get_segments()) == 6 and len(off.get_segments()) == 2
        assert on.get_linewidth()[0] < off.get_linewidth()[0]

    def test_frames_off_the_data_have_a_thick_border(self):
        row_of_axes = axes(1, 3)
        plots.draw_frames(row_of_axes, np.zeros((3, 2, 2)), label="x", off_data=[False, True, False])
        widths = [ax.spines["left"].get_linewidth() for ax in row_of_axes]
        assert widths[1] > widths[0] == widths[2]
        assert row_of_axes[0].get_ylabel() == "x"
        picture = row_of_axes[0].images[0]  # photographs would look inverted with 1 as black
        assert picture.to_rgba(np.array([[0.0, 1.0]]))[0, :, 0].tolist() == [0, 1]

    def test_curves_may_be_nested_lists_over_ground_that_is_known_in_part(self):
        ax, plane = axes(), plots.latent_plane(cloud(2))
        region = np.array([[np.nan, -1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
        plots.draw_curves(ax, [[[0, 0], [1, 1]]], [[-1, -1]], plane, region=region)
        assert len(ax.collections[0].get_paths()) == 1  # the ground

    def test_curves_and_ground_of_another_shape_are_refused(self):
        ax, plane = axes(), plots.latent_plane(cloud(2))
        with pytest.raises(InvalidArgumentError, match=r"beside `curves` \(B, T, 2\); got shapes"):
            plots.draw_curves(ax, np.zeros((1, 4, 3)), np.zeros((1, 4)), plane)
        with pytest.raises(InvalidArgumentError, match="`region` must be a square"):
            plots.draw_curves(ax, np.zeros((1, 4, 2)), np.zeros((1, 4)), plane, region=np.zeros((2, 3)))
        with pytest.raises(InvalidArgumentError, match="r at least 2"):
            plots.draw_curves(ax, np.zeros((1, 4, 2)), np.zeros((1, 4)), plane, region=np.zeros((1, 1)))
        with pytest.raises(InvalidArgumentError, match="T is at least 1"):
            plots.draw_curves(ax, np.zeros((3, 0, 2)), np.zeros((3, 0)), plane)

    @pytest.mark.parametrize(
        ("count", "images", "off_data", "said"),
        [
            (3, (2, 2, 2), (), "`axes` must be as many as `images`; got 3 and 2"),
            (3, (3, 2, 2), [1], "`off_data` must say it of every one of 3 images"),
            (0, (0, 2, 2), (), "`images` must be .* one at least"),
            (3, (3, 2), (), "`images` must be"),
            (3, (3, 2, 2, 2), (), "`images` must be"),
        ],
    )
    def test_frames_that_do_not_fit_are_refused(self, count, images, off_data, said):
        row_of_axes = list(axes(1, 3))[:count]
        with pytest.raises(InvalidArgumentError, match=said):
            plots.draw_frames(row_of_axes, np.zeros(images), label="x", off_data=off_data)


class TestAuditPictures:
    def test_log_volume_has_a_line_a_metric_and_no_gaps_shell(self):
        ax = plots.log_volume_by_offset(AUDIT)
        assert [list(line.get_ydata()) for line in ax.lines] == [[0, 3], [0, 3]]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["data", "1"]
        assert len(ax.collections) == 2
        assert len({line.get_marker() for line in ax.lines}) == 2

    def test_the_line_breaks_where_the_metric_is_singular(self):
        ax = plots.condition_by_offset(AUDIT, axes())
        assert ax.get_yscale() == "log"
        assert np.isnan(ax.lines[0].get_ydata()[1])

    @pytest.mark.parametrize("conditions", [(2.0, 4.0), (3.0, 3.3), (25.0, 30.0), (7.0, 300.0)])
    def test_condition_numbers_of_less_than_a_decade_have_several_ticks(self, conditions):
        rows = tuple(row(f"offset {i}", i, 0.0, value) for i, value in enumerate(conditions))
        ax = plots.condition_by_offset(replace(AUDIT, shells=rows))
        low, high = ax.get_ylim()
        seen = [tick for tick in ax.get_yticks() if low <= tick <= high]
        assert 3 <= len(seen) <= 10
        assert ax.yaxis.get_major_formatter().format_ticks(seen) == [f"{tick:g}" for tick in seen]

    def test_the_audit_itself_can_be_plotted(self):
        ax = axes()
        assert AUDIT.plot(ax=ax) is ax

    def test_panel_places_what_is_met_on_the_right(self):
        ax = plots.audit_panel(AUDIT)
        drawn = [line for line in ax.lines if len(line.get_xdata())]  # not for the legend alone
        placed = {(round(float(line.get_ydata()[0])), line.get_marker()): float(line.get_xdata()[0]) for line in drawn}
        after = {y: x for (y, _), x in placed.items() if x > -4}
        assert after[2] == pytest.approx(np.log10(2))  # 50 where at least 25 is asked
        assert after[1] == pytest.approx(-1)  # 0.5 where at most 0.05 is allowed
        assert any("no data" in text.get_text() for text in ax.texts)
        assert [text.get_text() for text in ax.get_yticklabels()] == ["smoothness", "persistence", "inflation"]

    def test_a_long_reason_stays_within_the_axes_and_leaves_them_their_width(self):
        """It once took two fifths of the picture, and was cut at its edge all the same."""
        reason = "the published baseline has no residuals to fit: the data are the decoder's own"
        widths = []
        for said in ("no data", reason):
            ax = plots.audit_panel(
                replace(AUDIT, criteria=(*AUDIT.criteria[:2], replace(AUDIT.criteria[2], reason=said)))
            )
            ax.figure.draw_without_rendering()
            text, frame = ax.texts[-1].get_window_extent(), ax.get_window_extent()
            assert frame.x0 <= text.x0 and text.x1 <= frame.x1
            widths.append(frame.width)
        assert widths[0] == pytest.approx(widths[1])

    def test_a_decoder_that_never_leaves_the_data_is_shown(self):
        rows = (replace(AUDIT.criteria[1], name="faithfulness", before=0.0),
                replace(AUDIT.criteria[1], name="fidelity, median", before=0.0))  # fmt: skip
        ax = plots.audit_panel(replace(AUDIT, criteria=rows))
        decoder = [line for line in ax.lines if line.get_marker() == plots.TRACES["decoder"].marker]
        before = [float(line.get_xdata()[0]) for line in decoder if len(line.get_xdata())]
        assert np.isnan(before[0]) and before[1] == 4.0  # from the bottom: against itself, and at the edge


def test_pyplot_and_settings_are_left_alone():
    settings, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    plots.audit_panel(AUDIT)
    plots.log_volume_by_offset(AUDIT)
    plots.draw_field(axes(), np.eye(4), plots.latent_plane(cloud(2)))
    assert pyplot.get_fignums() == open_figures
    assert dict(matplotlib.rcParams) == settings
