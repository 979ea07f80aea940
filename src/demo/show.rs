//! What `limn demo` shows while it runs: how far it is, and each profile change as it is committed.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::table::{Summary, duration};
use crate::codec;
use crate::codec::proto::edit::Kind;
use crate::codec::proto::{Edit, ProfileChange};
use crate::text::{Style, visible, visible_json, wrap};

/// How often a progress line is written where there is no terminal to draw on.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Columns where no terminal tells.
const WIDTH: usize = 100;
/// The fullness of the bar is counted in thousandths.
const FULL: u64 = 1000;

/// What a change is printed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For people.
    Human,
    /// A JSON object a line, and nothing else on the output.
    Json,
}

/// How far the demo is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Events read.
    pub events_read: u64,
    /// Events there are; `None` where that is not known.
    pub events_total: Option<u64>,
    /// Windows closed.
    pub windows_closed: u64,
    /// Updates committed.
    pub updates_done: u64,
    /// Updates that wait for the model, or for their commit.
    pub updates_waiting: u64,
    /// Updates a second.
    pub updates_per_second: f64,
    /// How long it will still take; `None` where that is not known yet.
    pub time_left: Option<Duration>,
}

impl Progress {
    fn counts(&self) -> String {
        let total = self.events_total.map(|n| format!("/{n}"));
        format!(
            "{}{} events read, {} windows closed, {} updates ({} waiting), {:.2}/s",
            self.events_read,
            total.unwrap_or_default(),
            self.windows_closed,
            self.updates_done,
            self.updates_waiting,
            self.updates_per_second,
        )
    }

    fn left(&self) -> String {
        self.time_left
            .map(|left| format!("{} left", duration(left)))
            .unwrap_or_default()
    }

    /// How much of the updates is done, in thousandths. Those of events not read yet are taken to be as many for each event
    /// as those known.
    fn share(&self) -> u64 {
        let known = u128::from(self.updates_done) + u128::from(self.updates_waiting);
        let read = u128::from(self.events_read.max(1));
        let total = self.events_total.map_or(read, u128::from).max(read);
        let done = u128::from(self.updates_done) * read * u128::from(FULL);
        let share = done.checked_div(known * total).unwrap_or(0);
        u64::try_from(share).map_or(FULL, |share| share.min(FULL))
    }
}

/// Shows a demo: changes on the output, progress on the standard error.
pub struct Show<W> {
    mode: Mode,
    color: bool,
    width: Option<usize>,
    out: W,
    log: Box<dyn Write + Send>,
    bar: Option<ProgressBar>,
    line_due: Instant,
}

impl<W: Write> Show<W> {
    /// `terminal`: the output and the standard error are both one, so that a bar may be drawn below what is printed.
    /// Colours are used there unless `NO_COLOR` is set or the terminal is dumb.
    #[must_use]
    pub fn new(mode: Mode, terminal: bool, out: W) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        let mut show = Self::with(mode, out, Box::new(io::stderr()));
        if terminal && !dumb {
            show.color = set("NO_COLOR").is_none();
            show.bar = Some(bar());
        }
        show.width = (!terminal).then_some(WIDTH);
        show
    }

    fn with(mode: Mode, out: W, log: Box<dyn Write + Send>) -> Self {
        Self {
            mode,
            color: false,
            width: Some(WIDTH),
            out,
            log,
            bar: None,
            line_due: Instant::now(),
        }
    }

    /// Shows how far the demo is: at once on a terminal, every few seconds in a pipe.
    ///
    /// # Errors
    /// What writing to the standard error says.
    pub fn progress(&mut self, progress: &Progress) -> io::Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_prefix(progress.left());
            bar.set_message(progress.counts());
            bar.set_position(progress.share());
            return Ok(());
        }
        let now = Instant::now();
        if now < self.line_due {
            return Ok(());
        }
        self.line_due = now + LINE_EVERY;
        let left = progress.left();
        let comma = if left.is_empty() { "" } else { ", " };
        writeln!(self.log, "{}{comma}{left}", progress.counts())
    }

    /// Prints a change that was committed.
    ///
    /// # Errors
    /// What writing to the output says; a closed pipe among it.
    pub fn change(&mut self, change: &ProfileChange) -> io::Result<()> {
        let text = match self.mode {
            Mode::Json => visible_json(&codec::change_json(change)) + "\n",
            Mode::Human => {
                // Asked anew each time: a window may be made wider.
                let width = self.width.unwrap_or_else(|| {
                    console::Term::stdout()
                        .size_checked()
                        .map_or(WIDTH, |(_, columns)| usize::from(columns))
                });
                human(change, width, self.color)
            }
        };
        self.print(&text)
    }

    /// Ends the progress and prints what the demo came to; beside the standard error's lines where the output is JSON.
    ///
    /// # Errors
    /// What writing says.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let text = summary.render(self.color);
        match self.mode {
            Mode::Human => self.print(&text),
            Mode::Json => self.log.write_all(text.as_bytes()),
        }
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        let out = &mut self.out;
        let mut write = || out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(FULL), ProgressDrawTarget::stderr());
    // The template is a constant; were it wrong, the bar would look otherwise.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3} %  {prefix}\n{wide_msg}")
    {
        bar.set_style(style);
    }
    bar
}

/// A change for people: a line that says whose and which, and the profile with what was taken away and added.
fn human(change: &ProfileChange, width: usize, color: bool) -> String {
    let user = format!("user {}", visible(&change.user_id));
    let mut out = Style::Bold.paint(&user, color);
    out += &format!("  version {}", change.version);
    let mut facts = Vec::new();
    if let Some(window) = &change.window {
        let s = if window.events == 1 { "" } else { "s" };
        facts.push(format!("{} event{s}", window.events));
        if window.late_events > 0 {
            facts.push(format!("{} late", window.late_events));
        }
    }
    match &change.usage {
        Some(usage) if usage.journal => facts.push("from the journal".to_owned()),
        Some(usage) if usage.calls > 1 => facts.push(format!("{} model calls", usage.calls)),
        _ => {}
    }
    if !facts.is_empty() {
        let facts = format!("  ({})", facts.join(", "));
        out += &Style::Dim.paint(&facts, color);
    }
    out.push('\n');
    for line in wrap(&pieces(change, color), 4, width, color) {
        out += &line;
        out.push('\n');
    }
    out
}

/// The profile's text in pieces. With colours a removed piece begins with `-` and an added one with `+`; without, they stand
/// between `[-` and `-]`, `{+` and `+}`, so that their ends show too.
fn pieces(change: &ProfileChange, color: bool) -> Vec<(Style, String)> {
    if change.before == change.after {
        return vec![(Style::Dim, "(unchanged)".to_owned())];
    }
    let whole = [
        (Kind::Removed, change.before.as_str()),
        (Kind::Added, change.after.as_str()),
    ];
    let edits = if change.edits.is_empty() {
        whole.to_vec()
    } else {
        let kind = |e: &Edit| Kind::try_from(e.kind).unwrap_or(Kind::Unspecified);
        change
            .edits
            .iter()
            .map(|e| (kind(e), e.text.as_str()))
            .collect()
    };
    let mut pieces = Vec::new();
    let mut marked_before = false;
    for (kind, text) in edits {
        let text = visible(text);
        let (style, open, close) = match kind {
            Kind::Removed if color => (Style::Removed, "-", ""),
            Kind::Removed => (Style::Removed, "[-", "-]"),
            Kind::Added if color => (Style::Added, "+", ""),
            Kind::Added => (Style::Added, "{+", "+}"),
            Kind::Kept | Kind::Unspecified => (Style::Plain, "", ""),
        };
        let core = text.trim();
        if core.is_empty() {
            // Space alone is not worth a mark; it still parts the words beside it.
            pieces.push((Style::Plain, text));
            continue;
        }
        let marked = !open.is_empty();
        // The marks go inside the spaces, and two marked pieces never touch.
        let lead = if text.starts_with(char::is_whitespace) || (marked && marked_before) {
            " "
        } else {
            ""
        };
        let trail = if text.ends_with(char::is_whitespace) {
            " "
        } else {
            ""
        };
        pieces.push((Style::Plain, lead.to_owned()));
        pieces.push((style, format!("{open}{core}{close}")));
        pieces.push((Style::Plain, trail.to_owned()));
        marked_before = marked;
    }
    pieces
}

#[cfg(test)]
mod tests;
