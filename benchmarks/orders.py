"""Write orders.md: the measured order of convergence of every registered solver. Takes seconds.

python benchmarks/orders.py
"""

from __future__ import annotations

from pathlib import Path

from skipstone.testing.orders import COARSE, FINE, FIRST_CLOCK, LAST_CLOCK, format_markdown, measure_orders

TEXT = f"""# Orders of convergence

Made by `python benchmarks/orders.py`; the tests hold the declared orders to these numbers.

The measured order is log2 of the ratio of the errors with {COARSE} and {FINE} equal steps of the half log-SNR from
{FIRST_CLOCK:g} to {LAST_CLOCK:g}, in float64, on exact scores: Gaussian data (closed-form solution) and a mixture of
three (Runge-Kutta). Stochastic solvers are measured with their noise set to zero, against twice as many steps, on the
mixture only: without noise they contract Gaussian data to a point.
Multistep solvers start at noise so loud that their first-order first step costs nothing.

`dpmpp(order=3, released=True)` has the coefficients of the authors' released code and of diffusers: second order, since
they give the second difference half of Taylor's weight. `dpmpp(order=3)` has the full weight.

"""

if __name__ == "__main__":
    page = TEXT + format_markdown(measure_orders()) + "\n"
    (Path(__file__).parent / "orders.md").write_text(page, encoding="utf-8")
    print(page)
