//! Text from events and models on its way to a terminal. It is hostile: nothing of it may move the cursor, set a colour,
//! name a window or turn the reading direction of what stands beside it.

use std::fmt::Write as _;

/// How a piece of text is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    /// As it comes.
    #[default]
    Plain,
    /// What was taken away.
    Removed,
    /// What was added.
    Added,
    /// What matters less.
    Dim,
    /// A heading.
    Bold,
}

impl Style {
    /// The text between the escape sequences of this style, or alone where there is to be no colour.
    #[must_use]
    pub fn paint(self, text: &str, color: bool) -> String {
        let code = match self {
            Self::Removed => "31",
            Self::Added => "32",
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Plain => "",
        };
        if color && !code.is_empty() && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Whether a character acts instead of showing: controls (C0, C1, delete), direction marks and overrides, other
/// invisible format characters, and tags. The joiners stay, which emoji and several scripts need.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text on one line, with what would act made visible: `␛` for an escape, `�` for what has no picture of its own.
#[must_use]
pub fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            '\u{7f}' => '\u{2421}',
            // Unicode has a picture of each of the first 32.
            c if c < ' ' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
            c if acts(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// JSON in which whatever would act stands as `\u…`: the same value, safe to print. JSON writers escape only the first
/// 32 characters.
#[must_use]
pub fn visible_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Sets pieces of text in lines of at most `width` columns, broken at spaces (or within a word that is too long), each line
/// behind `indent` spaces. Runs of spaces become one. The pieces must be [`visible`].
#[must_use]
pub fn wrap(pieces: &[(Style, String)], indent: usize, width: usize, color: bool) -> Vec<String> {
    let room = width.saturating_sub(indent).max(8);
    let mut lines: Vec<Vec<(Style, String)>> = vec![Vec::new()];
    let mut used = 0;
    for word in words(pieces) {
        let wide: usize = word.iter().map(|(_, text)| columns(text)).sum();
        if used > 0 {
            if used + 1 + wide > room {
                lines.push(Vec::new());
                used = 0;
            } else {
                // A space has a style only between two words of it.
                let before = lines.last().and_then(|line| line.last());
                let same = before.is_some_and(|(style, _)| *style == word[0].0);
                let style = if same { word[0].0 } else { Style::Plain };
                push(&mut lines, style, " ");
                used += 1;
            }
        }
        for (style, text) in &word {
            for c in text.chars() {
                let mut buffer = [0; 4];
                let c = &*c.encode_utf8(&mut buffer);
                if used + columns(c) > room {
                    lines.push(Vec::new());
                    used = 0;
                }
                push(&mut lines, *style, c);
                used += columns(c);
            }
        }
    }
    let set = |line: &Vec<(Style, String)>| {
        let painted = line.iter().map(|(style, text)| style.paint(text, color));
        " ".repeat(indent) + &painted.collect::<String>()
    };
    lines.iter().filter(|l| !l.is_empty()).map(set).collect()
}

/// Columns that a text takes on a terminal.
#[must_use]
pub fn columns(text: &str) -> usize {
    text.chars()
        .map(|c| console::measure_text_width(c.encode_utf8(&mut [0; 4])))
        .sum()
}

fn push(lines: &mut [Vec<(Style, String)>], style: Style, text: &str) {
    let Some(line) = lines.last_mut() else { return };
    match line.last_mut() {
        Some((last, so_far)) if *last == style => so_far.push_str(text),
        _ => line.push((style, text.to_owned())),
    }
}

/// What stands between spaces; a word may be set in several styles.
fn words(pieces: &[(Style, String)]) -> Vec<Vec<(Style, String)>> {
    let mut words = vec![Vec::new()];
    for (style, text) in pieces {
        for (n, part) in text.split(char::is_whitespace).enumerate() {
            if n > 0 {
                words.push(Vec::new());
            }
            if !part.is_empty() {
                push(&mut words, *style, part);
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "a\u{1b}[2Jb\u{7}\u{9b}31m\u{202e}c\u{2066}\u{200f}\u{7f}d\r\n\te\u{e0041}\u{ad}\u{feff}";

    #[test]
    fn what_would_act_is_shown_instead() {
        assert_eq!(
            visible(HOSTILE),
            "a␛[2Jb␇\u{fffd}31m\u{fffd}c\u{fffd}\u{fffd}␡d   e\u{fffd}\u{fffd}\u{fffd}"
        );
        let untouched = "Amélie — 千と千尋 👩‍👩‍👧 می‌خواهم";
        assert_eq!(visible(untouched), untouched);
    }

    #[test]
    fn json_keeps_its_value_and_holds_nothing_that_acts() {
        let json = serde_json::to_string(HOSTILE).unwrap();
        let shown = visible_json(&json);
        assert!(!shown.chars().any(acts), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), HOSTILE);
    }

    #[test]
    fn lines_are_broken_at_spaces_and_never_wider_than_asked() {
        let plain = |text: &str| vec![(Style::Plain, text.to_owned())];
        assert_eq!(
            wrap(&plain("one two  three four"), 2, 11, false),
            ["  one two", "  three", "  four"]
        );
        assert_eq!(
            wrap(&plain("abcdefghijklmnopqrst 千と千尋の神"), 2, 12, false),
            ["  abcdefghij", "  klmnopqrst", "  千と千尋の", "  神"]
        );
        assert!(wrap(&plain("  "), 2, 11, false).is_empty());
    }

    #[test]
    fn a_style_holds_over_spaces_and_is_closed_on_every_line() {
        let pieces = [
            (Style::Plain, "Loves ".to_owned()),
            (Style::Added, "war and peace".to_owned()),
            (Style::Plain, ".".to_owned()),
        ];
        assert_eq!(
            wrap(&pieces, 0, 14, true),
            [
                "Loves \u{1b}[32mwar and\u{1b}[0m",
                "\u{1b}[32mpeace\u{1b}[0m."
            ]
        );
        assert_eq!(wrap(&pieces, 0, 14, false), ["Loves war and", "peace."]);
    }
}
