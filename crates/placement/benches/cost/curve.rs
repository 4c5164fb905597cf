//! Times by the number of workers, as a picture; both axes are logarithmic.

use std::fmt::Write as _;
use std::time::Duration;

/// Where the picture's plane is, in its units.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 510.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 310.0;
/// What the axes show: workers, and nanoseconds.
const FEWEST: f64 = 100.0;
const MOST: f64 = 30_000.0;
const SHORTEST: f64 = 100.0;
const LONGEST: f64 = 1e7;

pub struct Curve {
    pub name: &'static str,
    pub colour: &'static str,
    pub points: Vec<Point>,
}

pub struct Point {
    pub workers: usize,
    pub time: Duration,
}

fn x(workers: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * (workers / FEWEST).ln() / (MOST / FEWEST).ln()
}

fn y(ns: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * (ns.clamp(SHORTEST, LONGEST) / SHORTEST).ln() / (LONGEST / SHORTEST).ln()
}

/// The last curve is compared with the logarithm.
pub fn draw(curves: &[Curve]) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 680 360\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#444\">\n\
         <title>Time of one decision of Placement by number of workers</title>\n\
         <rect width=\"680\" height=\"360\" fill=\"#fff\"/>\n\
         <text x=\"70\" y=\"22\" font-size=\"14\">Time of one decision, by number of workers (both axes logarithmic)</text>\n",
    );
    let mut add = |line: String| {
        svg.push_str(&line);
        svg.push('\n');
    };
    for (ns, name) in [(1e2, "0.1 µs"), (1e3, "1 µs"), (1e4, "10 µs"), (1e5, "100 µs"), (1e6, "1 ms"), (1e7, "10 ms")]
    {
        let y = y(ns);
        add(format!(
            "<path d=\"M{LEFT} {y:.0}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"62\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>",
            y + 4.0
        ));
    }
    for (workers, name) in
        [(100, "100"), (300, "300"), (1000, "1,000"), (3000, "3,000"), (10_000, "10,000"), (30_000, "30,000")]
    {
        add(format!("<text x=\"{:.0}\" y=\"330\" text-anchor=\"middle\">{name}</text>", x(f64::from(workers))));
    }
    if let Some(first) = curves.last().and_then(|curve| curve.points.first()) {
        // As if the time grew by the logarithm of the number of workers from the first point on.
        let ns = |workers: f64| first.time.as_nanos() as f64 * workers.ln() / (first.workers as f64).ln();
        let mut path = String::new();
        let mut workers = first.workers as f64;
        while workers <= MOST {
            // Writing to a text cannot fail.
            let _ = write!(path, "{}{:.0} {:.0}", if path.is_empty() { 'M' } else { 'L' }, x(workers), y(ns(workers)));
            workers *= 1.2;
        }
        add(format!("<path d=\"{path}\" fill=\"none\" stroke=\"#157\" stroke-dasharray=\"3 3\"/>"));
        add(format!(
            "<text x=\"{:.0}\" y=\"{:.0}\" fill=\"#157\">the logarithm</text>",
            RIGHT + 10.0,
            y(ns(MOST)) + 8.0
        ));
    }
    for Curve { name, colour, points } in curves {
        let mut path = String::new();
        for Point { workers, time } in points {
            let (x, y) = (x(*workers as f64), y(time.as_nanos() as f64));
            let _ = write!(path, "{}{x:.0} {y:.0}", if path.is_empty() { 'M' } else { 'L' });
            add(format!("<circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"3\" fill=\"{colour}\"/>"));
        }
        add(format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"));
        if let Some(last) = points.last() {
            let (x, y) = (x(last.workers as f64), y(last.time.as_nanos() as f64));
            add(format!("<text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{name}</text>", x + 10.0, y + 2.0));
        }
    }
    svg.push_str("<text x=\"70\" y=\"352\" font-size=\"11\">cargo bench -p placement</text></svg>\n");
    svg
}
