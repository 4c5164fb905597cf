//! Rows, and whether the promises hold.

use std::fmt;
use std::time::Duration;

use serde_json::json;

use crate::paired::Ratios;

/// What was measured, in the order of measurement.
#[derive(Default)]
pub struct Table(Vec<Row>);

/// One measurement.
pub struct Row {
    /// What, in a few words.
    pub what: String,
    /// Emberbox.
    pub ours: String,
    /// What it is compared with, and how that did; empty where there is nothing to compare with.
    pub beside: String,
    /// The number that the promise is about.
    pub value: Number,
    /// The promise; `None` for a number that is only told.
    pub promise: Option<Bound>,
}

/// A number with its unit.
#[derive(Clone)]
pub enum Number {
    /// Ours ÷ theirs.
    Ratio(f64),
    /// The same, of many pairs.
    Paired(Ratios),
    /// Milliseconds.
    Ms(f64),
    /// MiB.
    MiB(f64),
    /// A count.
    Count(f64),
}

impl Number {
    fn value(&self) -> f64 {
        match self {
            Self::Ratio(v) | Self::Ms(v) | Self::MiB(v) | Self::Count(v) => *v,
            Self::Paired(ratios) => ratios.median(),
        }
    }

    /// Between which the middle half of what it is made of lies.
    fn spread(&self) -> Option<[f64; 2]> {
        match self {
            Self::Paired(ratios) => Some(ratios.quartiles()),
            _ => None,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(v) => write!(f, "{v:.2} ×"),
            Self::Paired(ratios) => ratios.fmt(f),
            Self::Ms(v) => write!(f, "{v:.1} ms"),
            Self::MiB(v) => write!(f, "{v:.2} MiB"),
            Self::Count(v) => write!(f, "{v:.0}"),
        }
    }
}

/// What is promised of a number.
#[derive(Clone, Copy)]
pub enum Bound {
    /// At most.
    AtMost(f64),
    /// Less than.
    Below(f64),
    /// At least.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(b) => write!(f, "≤ {b}"),
            Self::Below(b) => write!(f, "< {b}"),
            Self::AtLeast(b) => write!(f, "≥ {b}"),
        }
    }
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.promise {
            None => "",
            Some(bound) if bound.holds(self.value.value()) => "kept",
            Some(_) => "BROKEN",
        }
    }
}

impl Table {
    /// Adds a row, and says so at once: a run takes minutes.
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}: {} {}", row.what, row.value, row.verdict());
        self.0.push(row);
    }

    /// Whether every promise holds.
    pub fn kept(&self) -> bool {
        self.0.iter().all(|row| row.promise.is_none_or(|b| b.holds(row.value.value())))
    }

    /// As Markdown, which is what SPECIFICATION.md takes, or as JSON.
    pub fn print(&self, as_json: bool) {
        if as_json {
            let rows: Vec<_> = self
                .0
                .iter()
                .map(|r| {
                    json!({
                        "what": r.what, "emberbox": r.ours, "beside": r.beside, "value": r.value.value(),
                        "spread": r.value.spread(),
                        "promise": r.promise.map(|b| b.to_string()), "verdict": r.verdict(),
                    })
                })
                .collect();
            println!("{:#}", serde_json::Value::from(rows));
            return;
        }
        let heads = ["what", "Emberbox", "beside it", "measured", "promise", ""];
        let rows = self.0.iter().map(|r| {
            let promise = r.promise.map_or_else(String::new, |b| b.to_string());
            [r.what.clone(), r.ours.clone(), r.beside.clone(), r.value.to_string(), promise, r.verdict().into()]
        });
        let cells: Vec<[String; 6]> = std::iter::once(heads.map(String::from)).chain(rows).collect();
        let width = |column: usize| cells.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for (at, row) in cells.iter().enumerate() {
            let padded: Vec<String> = row.iter().zip(widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
            println!("| {} |", padded.join(" | "));
            if at == 0 {
                println!("| {} |", widths.map(|w| "-".repeat(w.max(3))).join(" | "));
            }
        }
    }
}

/// For a cell: µs below a millisecond, ms above.
pub fn time(time: Duration) -> String {
    match time.as_secs_f64() * 1e6 {
        us if us < 1000.0 => format!("{us:.0} µs"),
        us => format!("{:.1} ms", us / 1000.0),
    }
}
