//! Places where a test ends the process as `kill -9` would, named by the step that has just been done. Only builds with
//! debug assertions have them: a release build cannot be told to.

/// Names the step to die behind; `STEP:N` is the N-th time that it is done.
pub const VARIABLE: &str = "LIMN_FAILPOINT";

/// Dies here if the environment says so.
#[cfg(debug_assertions)]
pub fn pass(step: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        Some(match text.split_once(':') {
            Some((step, times)) => (step.to_owned(), times.parse().unwrap_or(1)),
            None => (text, 1),
        })
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);
    if let Some((armed, times)) = &*ARMED
        && armed == step
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *times
    {
        std::process::abort();
    }
}

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn pass(_step: &str) {}
