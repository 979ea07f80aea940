//! Places where a test meddles with the process, named by the step that has just been done. Only builds with debug
//! assertions have them: a release build cannot be told to.

use std::time::Duration;

/// Names the step and what happens there: `STEP`, `STEP:N` (the N-th time that it is done), and behind it nothing or
/// `=die` (the process ends as by `kill -9`), `=die 5ms` (so long afterwards, while it goes on) or `=hold PATH` (it waits
/// there until there is a file of this name).
pub const VARIABLE: &str = "LIMN_FAILPOINT";

/// Names a file with the milliseconds that the wall clock is wrong by.
pub const CLOCK_VARIABLE: &str = "LIMN_CLOCK_ERROR";

/// What happens at a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(debug_assertions), allow(dead_code))]
enum Action {
    Die(Duration),
    Hold(std::path::PathBuf),
}

#[cfg_attr(not(debug_assertions), allow(dead_code))]
fn parse(text: &str) -> Option<(String, u64, Action)> {
    let (place, action) = text.split_once('=').unwrap_or((text, "die"));
    let (step, times) = match place.split_once(':') {
        Some((step, times)) => (step, times.parse().ok()?),
        None => (place, 1),
    };
    let action = match action.split_once(' ') {
        None if action == "die" => Action::Die(Duration::ZERO),
        Some(("die", after)) => Action::Die(humantime::parse_duration(after).ok()?),
        Some(("hold", path)) => Action::Hold(path.into()),
        _ => return None,
    };
    Some((step.to_owned(), times, action))
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::{Action, CLOCK_VARIABLE, VARIABLE, parse};

    /// Does here what the environment says, if it names this step.
    ///
    /// # Panics
    /// Where what the environment says makes no sense.
    pub fn pass(step: &str) {
        static ARMED: LazyLock<Option<(String, u64, Action)>> = LazyLock::new(|| {
            let text = std::env::var(VARIABLE).ok()?;
            Some(parse(&text).unwrap_or_else(|| panic!("{VARIABLE}: {text}")))
        });
        static PASSED: AtomicU64 = AtomicU64::new(0);
        let Some((armed, times, action)) = &*ARMED else {
            return;
        };
        if armed != step || PASSED.fetch_add(1, Ordering::SeqCst) + 1 != *times {
            return;
        }
        match action {
            Action::Die(Duration::ZERO) => std::process::abort(),
            Action::Die(after) => {
                let after = *after;
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    std::process::abort();
                });
            }
            Action::Hold(path) => {
                tracing::warn!(step, "held");
                while !path.exists() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// How far the wall clock is wrong, in milliseconds.
    #[must_use]
    pub fn clock_error_ms() -> i64 {
        static FILE: LazyLock<Option<std::ffi::OsString>> =
            LazyLock::new(|| std::env::var_os(CLOCK_VARIABLE));
        let read = |file| std::fs::read_to_string(file).ok()?.trim().parse().ok();
        FILE.as_ref().and_then(read).unwrap_or(0)
    }
}

#[cfg(debug_assertions)]
pub use armed::{clock_error_ms, pass};

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn pass(_step: &str) {}

/// None in a release build.
#[cfg(not(debug_assertions))]
#[inline]
#[must_use]
pub fn clock_error_ms() -> i64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_armed_by_its_name_its_time_and_what_happens() {
        let die = |ms| Action::Die(Duration::from_millis(ms));
        for (text, step, times, action) in [
            ("committed", "committed", 1, die(0)),
            ("committed:3", "committed", 3, die(0)),
            ("committed:3=die 5ms", "committed", 3, die(5)),
            (
                "held=hold /tmp/a b",
                "held",
                1,
                Action::Hold("/tmp/a b".into()),
            ),
        ] {
            assert_eq!(
                parse(text),
                Some((step.to_owned(), times, action)),
                "{text}"
            );
        }
        for text in ["a:b", "a=explode", "a=die soon"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
