//! Words, times and durations as tables show them.

use std::time::Duration;

use jiff::tz::TimeZone;
use proto::types::Timestamp;

/// Who looks at a table: when and where.
#[derive(Clone, Debug)]
pub struct View {
    /// The moment of printing, from which ages count.
    pub now: jiff::Timestamp,
    /// Of the times shown.
    pub zone: TimeZone,
}

impl View {
    pub(crate) fn now(&self) -> Timestamp {
        let now = self.now.as_millisecond().max(0);
        Timestamp::from_unix_ms(now).expect("jiff's time ends with the year 9999 as ours does")
    }

    /// `12:01:07`, with the date in front unless it is today.
    pub(crate) fn clock(&self, time: Timestamp) -> String {
        let local = moment(time).to_zoned(self.zone.clone());
        let today = self.now.to_zoned(self.zone.clone()).date();
        match local.date() == today {
            true => local.strftime("%H:%M:%S").to_string(),
            false => local.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        }
    }

    /// How long ago it was.
    pub(crate) fn since(&self, time: Timestamp) -> String {
        age(self.now().since(time))
    }

    /// How long it is until then.
    pub(crate) fn until(&self, time: Timestamp) -> String {
        age(time.since(self.now()))
    }
}

fn moment(time: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(time.unix_ms()).expect("a `Timestamp` lies in 1970 to 9999")
}

/// A duration to two units, rounded down: `42s`, `12m`, `3h05m`, `2d04h`.
fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes:02}m"),
        (days, hours, _) => format!("{days}d{hours:02}h"),
    }
}

/// A duration as somebody would type it, in one word: `1h30m`.
pub(super) fn exact(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// Makes text from elsewhere harmless for a terminal: what is not to be seen is shown by its code, a line feed as `\n`.
pub fn escape(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    // Quotes and backslashes are harmless and stay readable. The `a` keeps a combining mark at the start of a chunk.
    for chunk in text.split_inclusive(['\\', '"', '\'']) {
        let body = chunk.trim_end_matches(['\\', '"', '\'']);
        shown.extend(format!("a{body}").escape_debug().skip(1));
        shown.push_str(&chunk[body.len()..]);
    }
    shown
}

/// Controls that JSON would print raw: DEL, C1, and invisible marks of direction, joining and tagging.
pub(super) fn steers_terminals(char: char) -> bool {
    matches!(char, '\u{7f}'..='\u{9f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// At most `max` characters, the last one `…` if something was cut.
pub(super) fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max - 1).chain(['…']).collect(),
    }
}

/// A list as one word, cut where it grows unreadable: `db-1,db-2,db-3,+97`.
pub(super) fn words<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    const SHOWN_MAX: usize = 3;
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    let more = items.len().saturating_sub(SHOWN_MAX);
    match more {
        0 => items.join(","),
        _ => format!("{},+{more}", items[..SHOWN_MAX].join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        let cases = [
            ("plain, größer, ไทย, é", "plain, größer, ไทย, é"),
            (r#"C:\x "y" 'z'"#, r#"C:\x "y" 'z'"#),
            ("\u{1b}[2J\u{9b}2J\u{7}", r"\u{1b}[2J\u{9b}2J\u{7}"),
            ("a\r\nb\tc\0", r"a\r\nb\tc\0"),
            ("\u{202e}evil\u{2066}\u{feff}\u{200b}", r"\u{202e}evil\u{2066}\u{feff}\u{200b}"),
            ("e\u{301}'\u{301}", "e\u{301}'\u{301}"),
        ];
        for (text, expected) in cases {
            assert_eq!(escape(text), expected);
            assert!(!escape(text).chars().any(char::is_control));
        }
    }

    #[test]
    fn durations() {
        let shown = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(
            [0, 59, 60, 3599, 3600, 11_100, 90_000].map(shown),
            ["0s", "59s", "1m", "59m", "1h00m", "3h05m", "1d01h"]
        );
        assert_eq!(exact(Duration::from_secs(5400)), "1h30m");
    }

    #[test]
    fn lists_and_long_texts() {
        assert_eq!(words(["a", "b", "c"]), "a,b,c");
        assert_eq!(words(["a", "b", "c", "d"]), "a,b,c,+1");
        assert_eq!((cut("äbc", 3), cut("äbcd", 3)), ("äbc".to_owned(), "äb…".to_owned()));
    }

    #[test]
    fn clocks_show_the_date_of_other_days() {
        let view = View { now: "2026-11-22T10:00:00Z".parse().expect("a time"), zone: TimeZone::UTC };
        let at = |text: &str| {
            let time: jiff::Timestamp = text.parse().expect("a time");
            Timestamp::from_unix_ms(time.as_millisecond()).expect("in range")
        };
        assert_eq!(view.clock(at("2026-11-22T09:59:18.5Z")), "09:59:18");
        assert_eq!(view.clock(at("2026-11-21T09:59:18Z")), "2026-11-21T09:59:18");
        assert_eq!(view.since(at("2026-11-22T09:59:18Z")), "42s");
        assert_eq!(view.until(at("2026-11-22T09:59:18Z")), "0s");
        assert_eq!(proto::json::utc(at("2026-11-22T09:59:18Z")), "2026-11-22T09:59:18.000Z");
    }
}
