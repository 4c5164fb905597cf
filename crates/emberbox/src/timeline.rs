//! Draws the timeline of an invocation as rows of bars, in 80 columns.

use serde::{Deserialize, Serialize};

/// One mark of the `X-Emberbox-Timeline` header.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Mark {
    /// What was reached, e.g. `sandbox_created`.
    pub step: String,
    /// Microseconds since the request was received.
    pub us: u64,
    /// A word on how; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Columns of the bars.
const WIDTH: usize = 28;
/// Columns of a step and its note; a longer note gets a line of its own.
const STEP: usize = 28;

/// One row for each mark: when it was reached, how long that took since the mark before, and a bar of that stretch.
pub fn draw(marks: &[Mark]) -> String {
    let mut marks = marks.to_vec();
    marks.sort_by_key(|m| m.us);
    let total = marks.last().map_or(0, |m| m.us).max(1);
    let mut out = format!("{:<STEP$} {:>9} {:>9}\n", "step", "at", "took");
    let mut before = 0;
    for mark in &marks {
        let mut step = mark.step.replace('_', " ");
        let mut below = String::new();
        if step.len() + mark.note.chars().count() + 3 <= STEP {
            if !mark.note.is_empty() {
                step = format!("{step} ({})", mark.note);
            }
        } else if !mark.note.is_empty() {
            below = format!("  {}\n", mark.note);
        }
        let (bar, at, took) = (bar(before, mark.us, total), show(mark.us), show(mark.us - before));
        out.push_str(format!("{step:<STEP$} {at:>9} {took:>9}  {bar}").trim_end());
        out.push('\n');
        out.push_str(&below);
        before = mark.us;
    }
    out
}

/// The columns from `from` to `to` of `total`, at least one wide.
fn bar(from: u64, to: u64, total: u64) -> String {
    let column = |us: u64| (us as f64 / total as f64 * WIDTH as f64).round() as usize;
    let start = column(from).min(WIDTH - 1);
    let end = column(to).clamp(start + 1, WIDTH);
    let glyph = if column(to) > column(from) { "█" } else { "▏" };
    format!("{}{}", " ".repeat(start), glyph.repeat(end - start))
}

/// Three significant digits or so, in the unit that fits.
pub fn show(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(step: &str, us: u64, note: &str) -> Mark {
        Mark { step: step.into(), us, note: note.into() }
    }

    #[test]
    fn draws_a_cold_start() {
        let marks = [
            mark("received", 0, ""),
            mark("placed", 40, "worker host-1, the only one"),
            mark("sandbox_created", 5_000, "pool"),
            mark("init_done", 90_000, ""),
            mark("assigned", 90_040, "cold"),
            mark("answered", 100_000, ""),
        ];
        let expected = "\
step                                at      took
received                          0 µs      0 µs  ▏
placed                           40 µs     40 µs  ▏
  worker host-1, the only one
sandbox created (pool)         5.00 ms   4.96 ms  █
init done                      90.0 ms   85.0 ms   ████████████████████████
assigned (cold)                90.0 ms     40 µs                           ▏
answered                        100 ms   9.96 ms                           ███
";
        assert_eq!(draw(&marks), expected);
    }

    proptest::proptest! {
        /// Whatever a server sends.
        #[test]
        fn never_panics(times in proptest::collection::vec(proptest::num::u64::ANY, 0..12), note in ".{0,40}") {
            let marks: Vec<Mark> = times.iter().map(|us| mark("sandbox_created", *us, &note)).collect();
            draw(&marks);
        }

        #[test]
        fn realistic_timelines_fit(times in proptest::collection::vec(0..900_000_000_u64, 0..12)) {
            let marks: Vec<Mark> = times.iter().map(|us| mark("runtime_started", *us, "warm")).collect();
            assert!(draw(&marks).lines().all(|line| line.chars().count() <= 80));
        }
    }

    #[test]
    fn an_empty_timeline_is_a_head() {
        assert_eq!(draw(&[]).lines().count(), 1);
    }
}
