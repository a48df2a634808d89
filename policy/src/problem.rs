//! What is wrong with the files of a policy.
//!
//! Owns: the shape of a problem, and where in a text something stands. Must not know: what files mean.

use std::fmt::{self, Display};

/// One thing that is wrong: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file's path in the policy's folder.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: usize,
    /// In characters, from 1; 0: the file as a whole.
    pub column: usize,
    /// What is wrong, the value included.
    pub text: String,
    /// The next step.
    pub help: String,
}

impl Display for Problem {
    /// `FILE:LINE:COLUMN: TEXT; HELP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, text, help } = self;
        match line {
            0 => write!(f, "{file}: {text}; {help}"),
            _ => write!(f, "{file}:{line}:{column}: {text}; {help}"),
        }
    }
}

/// Line and column of a byte of `text`, from 1. What lies beyond the end is the end.
pub(crate) fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.char_indices().take_while(|(at, _)| *at < byte);
    let (mut line, mut column) = (1, 1);
    for (_, char) in before {
        (line, column) = if char == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    (line, column)
}

/// Quotes what came from a file: escaped, and cut where it grows unreadable.
pub(crate) fn quote(value: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let shown: String = value.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    let dots = if value.chars().nth(SHOWN_MAX).is_some() { "…" } else { "" };
    format!("`{shown}{dots}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let text = "aä\nb";
        assert_eq!(
            [0, 1, 3, 4, 5, 99].map(|at| position(text, at)),
            [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 2)]
        );
    }
}
