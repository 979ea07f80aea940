//! One process at a time fetches a file into the cache; the others wait, and find it there.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Between two looks at what the other does.
const INTERVAL: Duration = Duration::from_millis(200);
/// Looks in a row at which nothing more may have come: a minute. The other's own retries take less.
pub(super) const LOOKS: u32 = 300;
/// Looks for one line in the log.
const TOLD: u32 = 50;

/// What is done between two looks.
pub(super) fn pause() {
    sleep(INTERVAL);
}

/// Waits until nobody fetches the file of that place in the cache. Whoever fetches holds a lock beside it, as hf-hub makes it, and
/// what has come grows there; hf-hub itself waits five seconds for the lock and fails then.
///
/// # Errors
/// That the other stands still, or that the lock cannot be asked for.
pub(super) fn wait(blob: &Path, pause: &dyn Fn()) -> Result<(), String> {
    let lock_file = blob.with_extension("lock");
    let said = |e: std::io::Error| format!("{}: {e}", lock_file.display());
    if let Some(folder) = blob.parent() {
        fs::create_dir_all(folder).map_err(said)?;
    }
    let lock = File::create(&lock_file).map_err(said)?;
    let (mut bytes, mut still) = (0, 0);
    for look in 0u32.. {
        match lock.try_lock() {
            // It ends with this handle, and hf-hub takes it anew.
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(said(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        let come = fs::metadata(blob.with_extension("part")).map_or(0, |meta| meta.len());
        still = if come == bytes { still + 1 } else { 0 };
        bytes = come;
        if still > LOOKS {
            return Err(format!(
                "another process holds {} and fetches nothing; end it, or start again when it is done",
                lock_file.display()
            ));
        }
        if look.is_multiple_of(TOLD) {
            tracing::info!(
                lock = %lock_file.display(),
                bytes,
                "another process fetches the same file: waiting for it"
            );
        }
        pause();
    }
    Ok(())
}
