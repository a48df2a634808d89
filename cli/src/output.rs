//! How results look: a table and JSON from the same struct.
//!
//! Owns: the shapes that consumers see ([`rows`], [`policy`]), their tables, lines for events ([`audit`]), the escaping of text from
//! elsewhere. Must not know: the network, the clock. The JSON names are a promise; those of events are [`proto::json`]'s.

pub mod audit;
pub mod drafts;
pub mod freezes;
pub mod incidents;
pub mod policy;
pub mod reports;
pub mod reviews;
pub mod rows;
mod text;

use text::exact;
pub use text::{View, escape};

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use proto::json::utc;
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

/// A result as one line of a table and one flat object.
pub trait Row: Serialize {
    /// The heads of the columns, without spaces.
    const HEADER: &'static [&'static str];

    /// One cell a column. Only the last may hold spaces, so that `awk` finds the others by number.
    fn cells(&self, view: &View) -> Vec<String>;
}

/// Prints a head and a line for each row, the columns two spaces apart. An empty cell is shown as `-`.
pub fn table<R: Row>(out: &mut dyn Write, rows: &[R], view: &View) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(R::HEADER);
    for row in rows {
        let filled = |cell: String| if cell.is_empty() { "-".to_owned() } else { escape(&cell) };
        table.add_row(row.cells(view).into_iter().map(filled));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// Prints one value as one line of JSON.
pub fn json<T: Serialize + ?Sized>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut *out, Plain(CompactFormatter)))
        .map_err(io::Error::from)?;
    writeln!(out)
}

/// Compact JSON in which no character can steer a terminal: JSON itself leaves DEL, the C1 controls and the marks that
/// reverse the direction of writing as they are.
struct Plain(CompactFormatter);

impl Formatter for Plain {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, steering) in fragment.char_indices().filter(|(_, char)| text::steers_terminals(*char)) {
            self.0.write_string_fragment(writer, &fragment[plain..at])?;
            for unit in steering.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + steering.len_utf8();
        }
        self.0.write_string_fragment(writer, &fragment[plain..])
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        self.0.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_cannot_steer_a_terminal() {
        let text = "a\u{1b}[31m\u{9b}31m\u{7f}\u{202e}\u{e0001}ä\"\n";
        let mut out = Vec::new();
        json(&mut out, text).expect("to memory");
        let line = String::from_utf8(out).expect("text");
        assert_eq!(line, "\"a\\u001b[31m\\u009b31m\\u007f\\u202e\\udb40\\udc01ä\\\"\\n\"\n");
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), text);
    }
}
