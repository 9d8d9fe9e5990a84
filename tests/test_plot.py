import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import regdist as rd
from regdist import plot
from regdist.plots.figures import save

matplotlib.use("Agg")

TASK = rd.problems.two_modes()
TARGETS = {
    "reverse": rd.target(TASK.bandit, rd.ReverseKL(0.2)),
    "forward": rd.target(TASK.bandit, rd.ForwardKL(0.2)),
}


def draw(function, *arguments):
    with matplotlib.rc_context(plot.style()):
        axes = function(*arguments)
        axes.figure.canvas.draw()
    return axes


def test_saved_figures_hold_their_fonts_and_the_png_does_not_change(tmp_path):
    """Type 42: whole TrueType fonts, as printers want; matplotlib's own default is Type 3."""
    with matplotlib.rc_context(plot.style()):
        figure = Figure()
        plot.rank_curves(TASK.bandit, TARGETS, figure.subplots())
    save(figure, tmp_path / "curves")
    pdf = (tmp_path / "curves.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    figure.savefig(tmp_path / "plain.png")
    assert (tmp_path / "curves.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_rank_curves_show_the_sorted_law():
    axes = draw(plot.rank_curves, TASK.bandit, TARGETS)
    assert [line.get_label() for line in axes.lines] == ["reference", "reverse", "forward"]
    shown = np.asarray(axes.lines[1].get_ydata())
    assert np.allclose(shown, np.sort(TARGETS["reverse"].probs)[::-1], atol=1e-15)


def test_bars_have_the_masses():
    masks = [np.asarray(TASK.bandit.label) == i for i in (0, 1)]
    axes = draw(plot.mass_bars, TASK.bandit, TARGETS, ["old", "new"], masks)
    heights = [bar.get_height() for bar in axes.patches]
    want = [
        float(p[m].sum())
        for p in (np.exp(TASK.bandit.log_ref), TARGETS["reverse"].probs, TARGETS["forward"].probs)
        for m in masks
    ]
    assert np.allclose(heights, want)


def test_series_differ_without_color():
    betas = np.geomspace(0.1, 1, 7)
    axes = draw(plot.effective_number, betas, {"a": betas, "b": betas**2}, {"all": 3.0})
    a, b = axes.lines[:2]
    assert (a.get_linestyle(), a.get_marker()) != (b.get_linestyle(), b.get_marker())
    assert "beta" in axes.get_xlabel()


def test_convergence_draws_the_predicted_slope():
    regularizer = rd.ReverseKL(0.2)
    method, sgd = rd.methods.natural_policy_gradient(regularizer), optax.sgd(0.5)
    path = rd.run(method, TASK.bandit, 200, sgd)
    target = rd.target(TASK.bandit, regularizer)
    certificate = rd.certify(method, TASK.bandit, target, path, optimizer=sgd)
    axes = draw(plot.convergence, {"r": path}, {"r": target}, {"r": certificate})
    run_line, predicted, named = axes.lines
    slope = np.diff(np.log(predicted.get_ydata())) / np.diff(predicted.get_xdata())
    assert np.allclose(slope, -2 * certificate.pace.predicted)
    assert named.get_label() == "predicted rate"
    assert np.allclose(
        run_line.get_ydata()[0], rd.metrics.kl(TASK.bandit.log_ref, target.log_probs)
    )


def test_a_dotted_line_leads_to_where_a_plateau_ends():
    rare = rd.bandit([1.0, 0.0], [1e-4, 1 - 1e-4])
    method, target = (
        rd.methods.policy_gradient(rd.ReverseKL(0.2)),
        rd.target(rare, rd.ReverseKL(0.2)),
    )
    path = rd.run(method, rare, 100)
    certificate = rd.certify(method, rare, target, path)
    axes = draw(plot.convergence, {"r": path}, {"r": target}, {"r": certificate})
    plot.show_steps_to_go(axes, {"r": certificate})
    assert axes.get_xscale() == "symlog"
    assert np.isclose(axes.lines[-1].get_xdata()[0], 100 + certificate.remaining_steps)
