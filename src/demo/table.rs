//! What a demo came to, as a table, and what to try next.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};

use crate::text::{Style, columns, visible};

/// What a demo came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Users that have a profile.
    pub users: u64,
    /// Events folded.
    pub events: u64,
    /// Updates committed.
    pub updates: u64,
    /// Profile versions published.
    pub versions: u64,
    /// Model answers refused.
    pub refused: u64,
    /// Updates answered from the journal, without a model call.
    pub journal_hits: u64,
    /// Updates a second.
    pub updates_per_second: f64,
    /// Tokens written by the model a second.
    pub tokens_per_second: f64,
    /// How many of the updates are in the adapter's form, of how many; `None` where that is not asked.
    pub in_form: Option<(u64, u64)>,
    /// Most memory that the process held; `None` where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// How long it took.
    pub elapsed: Duration,
    /// Where the profiles lie.
    pub folder: PathBuf,
    /// How this program was called.
    pub program: String,
    /// A user whose profile is worth a look.
    pub example_user: Option<String>,
}

impl Summary {
    /// The table and what to try next, each line ended.
    pub(super) fn render(&self, color: bool) -> String {
        let count = |n: u64| HumanCount(n).to_string();
        let mut rows = vec![
            ("users", count(self.users)),
            ("events", count(self.events)),
            ("updates", count(self.updates)),
            ("profile versions", count(self.versions)),
            ("answers refused", count(self.refused)),
            ("from the journal", count(self.journal_hits)),
            ("updates/s", format!("{:.2}", self.updates_per_second)),
            ("tokens/s", format!("{:.1}", self.tokens_per_second)),
        ];
        if let Some((good, all)) = self.in_form {
            // Rounded down: 100 % is said of all alone.
            let percent = (good * 100).checked_div(all).unwrap_or(0);
            let share = format!("{percent} % ({} of {})", count(good), count(all));
            rows.push(("updates in form", share));
        }
        if let Some(bytes) = self.peak_memory_bytes {
            rows.push(("peak memory", HumanBytes(bytes).to_string()));
        }
        rows.push(("elapsed", duration(self.elapsed)));
        rows.push(("folder", visible(&self.folder.display().to_string())));
        let wide = rows.iter().map(|(name, _)| columns(name)).max();
        let mut out = String::from("\n");
        for (name, value) in rows {
            let gap = " ".repeat(wide.unwrap_or(0) - columns(name) + 2);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {}{gap}{value}", Style::Dim.paint(name, color));
        }
        let _ = writeln!(out, "\n{}", Style::Bold.paint("What to try next", color));
        let folder = quoted(&self.folder.display().to_string());
        let user = self.example_user.as_deref().map(quoted);
        let profile = user.map(|user| format!("profile {user} --history --folder {folder}"));
        for (command, what) in [
            (profile.as_deref(), "one profile with its history"),
            (Some("demo --users 100"), "more people"),
            (
                Some("check --config my.toml"),
                "your own Kafka: copy config/limn.toml, see the README",
            ),
        ] {
            if let Some(command) = command {
                let (program, what) = (quoted(&self.program), Style::Dim.paint(what, color));
                let _ = writeln!(out, "  {program} {command}\n      {what}");
            }
        }
        out
    }
}

/// A word as a POSIX shell takes it, and as a terminal may show it.
fn quoted(word: &str) -> String {
    let word = visible(word);
    let bare = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+,=".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(bare) {
        return word;
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A duration to the second, as in "1h 2m 3s".
pub(super) fn duration(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    if time < Duration::from_secs(10) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(whole).to_string()
}

/// Most memory that this process held so far; `None` where `/proc` does not tell.
#[must_use]
pub fn peak_memory_bytes() -> Option<u64> {
    high_water(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            users: 20,
            events: 2480,
            updates: 80,
            versions: 80,
            refused: 1,
            journal_hits: 0,
            updates_per_second: 1.234,
            tokens_per_second: 56.78,
            in_form: Some((19, 20)),
            peak_memory_bytes: Some(3 << 29),
            elapsed: Duration::from_millis(65_400),
            folder: PathBuf::from("/tmp/a demo"),
            program: "target/limn".to_owned(),
            example_user: Some("it's\u{1b}".to_owned()),
        }
    }

    #[test]
    fn the_table_lists_what_the_demo_came_to_and_what_to_try_next() {
        assert_eq!(
            summary().render(false),
            r"
  users             20
  events            2,480
  updates           80
  profile versions  80
  answers refused   1
  from the journal  0
  updates/s         1.23
  tokens/s          56.8
  updates in form   95 % (19 of 20)
  peak memory       1.50 GiB
  elapsed           1m 5s
  folder            /tmp/a demo

What to try next
  target/limn profile 'it'\''s␛' --history --folder '/tmp/a demo'
      one profile with its history
  target/limn demo --users 100
      more people
  target/limn check --config my.toml
      your own Kafka: copy config/limn.toml, see the README
"
        );
        let unknown = Summary {
            in_form: None,
            peak_memory_bytes: None,
            example_user: None,
            ..summary()
        }
        .render(false);
        for absent in ["in form", "memory", " profile '"] {
            assert!(!unknown.contains(absent), "{unknown}");
        }
    }

    #[test]
    fn peak_memory_is_read_from_proc() {
        assert_eq!(
            high_water("VmPeak:\t 9 kB\nVmHWM:\t    12 kB\n"),
            Some(12 << 10)
        );
        assert_eq!(high_water("VmPeak:\t 9 kB\n"), None);
        assert_eq!(high_water("VmHWM:\t lots kB\n"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory_bytes() > Some(1 << 20));
        }
    }
}
