//! Whether the system gives memory in huge pages (Linux).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Whether [`small`] does anything.
static SMALL: AtomicBool = AtomicBool::new(false);

/// Lets [`small`] do what it says. Whoever has a model in the process does without: its memory is better in huge pages.
pub fn allow_small() {
    SMALL.store(true, Ordering::Relaxed);
}

/// How many want small pages now, and whether these were asked for here.
static WANTED: Mutex<(usize, bool)> = Mutex::new((0, false));

/// New memory comes in small pages as long as this lives, if it may.
#[must_use]
pub struct SmallPages {
    counted: bool,
}

/// Has the system give memory in pages of 4 KiB and not in huge ones, whatever of the process is written to for the first time as long as
/// what is returned lives. mimalloc asks for huge
/// pages, which make a stream 5 % faster (`limn bench stream`, by turns); but all of such a page is cleared when its first byte is
/// written to, and of the memory that a restore comes by, much is written to only here and there.
pub fn small() -> SmallPages {
    let counted = SMALL.load(Ordering::Relaxed);
    if counted {
        let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.0 += 1;
        // Whoever runs the process may have asked for the same, and it stays so then.
        if wanted.0 == 1 && huge_pages() == Some(true) {
            wanted.1 = set_huge_pages(false);
        }
    }
    SmallPages { counted }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.0 = wanted.0.saturating_sub(1);
        if wanted.0 == 0 && wanted.1 {
            wanted.1 = !set_huge_pages(true);
        }
    }
}

/// What the arguments that are not used have to be, in the width that they are read in.
const NONE: libc::c_ulong = 0;

/// Whether the process may have huge pages; `None` where the system does not say.
fn huge_pages() -> Option<bool> {
    // SAFETY: it reads a flag of the process, and takes no pointers.
    match unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, NONE, NONE, NONE, NONE) } {
        0 => Some(true),
        1.. => Some(false),
        _ => None,
    }
}

/// Whether the system took it.
fn set_huge_pages(may: bool) -> bool {
    let not = libc::c_ulong::from(!may);
    // SAFETY: it sets a flag of the process, which pages have that are given to it later, and takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, not, NONE, NONE, NONE) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_small_as_long_as_anybody_wants_them_so() {
        // Nothing else in this process sets it, and tests may run where no huge pages are to be had at all.
        let before = huge_pages();
        allow_small();
        let one = small();
        let other = small();
        assert_eq!(huge_pages(), before.map(|_| false));
        drop(one);
        assert_eq!(huge_pages(), before.map(|_| false));
        drop(other);
        assert_eq!(huge_pages(), before);
    }
}
