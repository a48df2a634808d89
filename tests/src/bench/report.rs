//! What came of a benchmark: as a table, as JSON, and in the documentation.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::machine::Machine;
use super::series::Spread;

/// A promise about a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The value is at most this.
    AtMost(f64),
    /// The value is at least this.
    AtLeast(f64),
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
}

/// One line.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is measured, with its unit.
    pub what: String,
    /// Under which circumstances.
    pub with: String,
    /// What was measured.
    pub value: Spread,
    /// Compared with something else: the table says with what.
    pub ratio: Option<Spread>,
    /// What it should be.
    pub target: Option<Target>,
}

impl Row {
    /// A figure with nothing to compare it with.
    pub fn new(what: impl Into<String>, with: impl Into<String>, value: Spread) -> Self {
        Self { what: what.into(), with: with.into(), value, ratio: None, target: None }
    }

    /// Whether the promise is kept, by the medians.
    fn holds(&self) -> Option<bool> {
        let ratio = self.ratio.map(|ratio| ratio.median);
        Some(match self.target? {
            Target::AtMost(most) => self.value.median <= most,
            Target::AtLeast(least) => self.value.median >= least,
            Target::RatioAtLeast(least) => ratio? >= least,
            Target::RatioAtMost(most) => ratio? <= most,
        })
    }

    fn cells(&self) -> [String; 7] {
        let between =
            |spread: Spread, show: fn(f64) -> String| format!("{} – {}", show(spread.low), show(spread.high));
        let target = self.target.map(|target| match target {
            Target::AtMost(most) => format!("≤ {}", number(most)),
            Target::AtLeast(least) => format!("≥ {}", number(least)),
            Target::RatioAtLeast(least) => format!("ratio ≥ {least:.2}"),
            Target::RatioAtMost(most) => format!("ratio ≤ {most:.2}"),
        });
        let verdict = match self.holds() {
            Some(true) => " ok",
            Some(false) => " MISSED",
            None => "",
        };
        [
            self.what.clone(),
            self.with.clone(),
            number(self.value.median),
            between(self.value, number),
            self.ratio.map(|ratio| ratio_text(ratio.median)).unwrap_or_default(),
            self.ratio.map(|ratio| between(ratio, ratio_text)).unwrap_or_default(),
            format!("{}{verdict}", target.unwrap_or_default()),
        ]
    }

    fn json(&self) -> Value {
        let spread =
            |spread: Spread| json!({"median": spread.median, "low": spread.low, "high": spread.high});
        let target = self.target.map(|target| match target {
            Target::AtMost(most) => json!({"value_at_most": most}),
            Target::AtLeast(least) => json!({"value_at_least": least}),
            Target::RatioAtLeast(least) => json!({"ratio_at_least": least}),
            Target::RatioAtMost(most) => json!({"ratio_at_most": most}),
        });
        json!({
            "what": self.what,
            "with": self.with,
            "value": spread(self.value),
            "ratio": self.ratio.map(spread),
            "target": target,
            "holds": self.holds(),
        })
    }
}

/// As many digits as say something.
fn number(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 1000.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

fn ratio_text(ratio: f64) -> String {
    format!("{ratio:.3}")
}

const HEADS: [&str; 7] = ["what", "with", "median", "middle half", "ratio", "middle half", "target"];

/// A part of the report.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it is about, and what the ratios compare with.
    pub title: String,
    /// Its lines.
    pub rows: Vec<Row>,
}

/// The whole.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where it was measured.
    pub machine: Machine,
    /// How much was measured.
    pub effort: String,
    /// What came of it.
    pub tables: Vec<Table>,
}

impl Report {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.machine, self.effort);
        for table in &self.tables {
            let cells: Vec<[String; 7]> =
                [HEADS.map(str::to_owned)].into_iter().chain(table.rows.iter().map(Row::cells)).collect();
            let width =
                |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            text += &format!("\n{}\n", table.title);
            for row in &cells {
                let aligned = row.iter().enumerate().map(|(column, cell)| match column {
                    0 | 1 | 6 => format!("{cell:<width$}", width = width(column)),
                    _ => format!("{cell:>width$}", width = width(column)),
                });
                text += &format!("  {}\n", aligned.collect::<Vec<_>>().join("  ").trim_end());
            }
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let tables = self.tables.iter().map(|table| {
            json!({"title": table.title, "rows": table.rows.iter().map(Row::json).collect::<Vec<_>>()})
        });
        json!({
            "machine": self.machine.to_string(),
            "effort": self.effort,
            "tables": tables.collect::<Vec<_>>(),
        })
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String; 7]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("{}\n\n{}\n", self.machine, self.effort);
        for table in &self.tables {
            text += &format!("\n### {}\n\n{}", table.title, line(&HEADS.map(str::to_owned)));
            text += "|---|---|--:|--:|--:|--:|---|\n";
            text.extend(table.rows.iter().map(|row| line(&row.cells())));
        }
        text
    }

    /// Puts the figures of the benchmark `name` between its two markers of a file; what is around them stays.
    pub fn write(&self, name: &str, path: &Path) -> Result<()> {
        let begin = &format!("<!-- begin: cargo xtask bench {name} --write -->\n");
        let end = &format!("<!-- end: cargo xtask bench {name} --write -->");
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parts = text
            .split_once(begin.as_str())
            .and_then(|(before, rest)| Some((before, rest.split_once(end.as_str())?.1)));
        let (before, after) =
            parts.with_context(|| format!("{} has not the two markers {begin}{end}", path.display()))?;
        let text = format!("{before}{begin}\n{}\n{end}{after}", self.markdown());
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Tells whoever waits how far it is.
pub fn progress(text: &str) {
    let _ = writeln!(io::stderr(), "{text} …");
}

/// Tells what went wrong, and did not stop the rest.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_what_they_say() {
        let shown = [0.123, 12.34, 999.96, 1000.0, 1_234_567.0].map(number);
        assert_eq!(shown, ["0.12", "12.3", "1000.0", "1,000", "1,234,567"]);
    }

    #[test]
    fn medians_keep_promises() {
        let spread = |median| Spread { low: 0.0, median, high: 9.0 };
        let row = |target, ratio| Row {
            ratio: Some(spread(ratio)),
            target: Some(target),
            ..Row::new("w", "w", spread(30.0))
        };
        assert_eq!(row(Target::AtMost(30.0), 1.0).holds(), Some(true));
        assert_eq!(row(Target::AtLeast(31.0), 1.0).holds(), Some(false));
        assert_eq!(row(Target::RatioAtLeast(0.98), 0.97).holds(), Some(false));
        assert_eq!(Row::new("w", "w", spread(1.0)).holds(), None);
    }
}
