//! The open sled database: a panic inside it is an error, and after a fault it can be closed and opened anew in its place.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use super::{Error, io_at, journal, packed};

/// How long a database that is broken may take to close. One that hangs is left behind: nobody asks it any more.
const CLOSING: Duration = Duration::from_secs(5);

/// Blocks that are removed at once.
const REMOVED: usize = 16;

const POLL: Duration = Duration::from_millis(20);

/// About how many bytes of log it takes to write so many values of so many bytes: sled writes a page anew behind each tenth
/// change, with up to sixteen values in it.
pub(super) fn cost(values: usize, bytes: usize) -> usize {
    bytes.saturating_mul(3).saturating_add(values << 10)
}

/// Bytes of a segment of sled's log where a database is made; one that is there keeps what it has. Sixteen times what sled
/// makes by itself, so that they are waited for less often (see [`Database::write`]).
const SEGMENT_BYTES: usize = 8 << 20;

/// What sled holds of a folder.
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) db: sled::Db,
    pub(super) view: sled::Tree,
    pub(super) journal: sled::Tree,
    /// What was read back in great number (`packed.rs`), and which runs of it each partition has.
    pub(super) packed: sled::Tree,
    pub(super) runs: Mutex<BTreeMap<i32, packed::Runs>>,
    /// States that were written by themselves, many in a value (`gathered.rs`).
    pub(super) gathered: sled::Tree,
    /// The journal's numbers in use: from the oldest entry to the one before the end.
    pub(super) numbers: Mutex<Range<u64>>,
    /// Bytes of a segment of its log.
    segment_bytes: usize,
}

/// A database that its users share, and that can be begun anew under them.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    cache_bytes: u64,
    state: RwLock<State>,
    /// About how many bytes were written since nothing was under way.
    written: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// `None` only where opening anew has failed.
    trees: Option<Trees>,
    /// The first fault. sled answers nothing sound behind one, so nothing more is asked of it.
    fault: OnceLock<Fault>,
}

#[derive(Debug, Clone)]
enum Fault {
    Torn(String),
    Io(io::ErrorKind, String),
}

impl Fault {
    fn error(&self, path: &Path) -> Error {
        match self {
            Self::Torn(why) => Error::Torn(why.clone()),
            Self::Io(kind, said) => io_at(path)(io::Error::new(*kind, said.clone())),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(trees) = state.trees.take() {
            close(trees, &self.path);
        }
    }
}

impl Database {
    /// Opens it, or makes it.
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Self, Error> {
        Ok(Self::of(path, cache_bytes, open(path, cache_bytes)?))
    }

    /// As [`Database::open`]; a torn one is deleted and begun anew. Also says why, where that was so.
    pub(super) fn open_or_begin(
        path: &Path,
        cache_bytes: u64,
    ) -> Result<(Self, Option<String>), Error> {
        let (trees, torn) = open_or_begin(path, cache_bytes)?;
        Ok((Self::of(path, cache_bytes, trees), torn))
    }

    fn of(path: &Path, cache_bytes: u64, trees: Trees) -> Self {
        let state = State {
            trees: Some(trees),
            fault: OnceLock::new(),
        };
        Self {
            path: path.to_owned(),
            cache_bytes,
            state: RwLock::new(state),
            written: AtomicUsize::new(0),
        }
    }

    /// Uses the database. Damage can show at any place and time, and sled 0.34 panics at some of it (spacejam/sled#1410):
    /// for us that is the same as an error. Behind the first fault every use fails with it, until [`Database::renew`].
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Trees) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        self.used(&state, "using", work)
    }

    /// As [`Database::with`], for work that writes about so much together, as [`cost`] reckons it. What is more than
    /// [`Database::most`] goes in parts.
    ///
    /// sled 0.34 hangs for ever when all seven threads of its pool write log at a moment at which its file is to shrink:
    /// whoever begins a segment holds a lock until the file has shrunk, which the pool does, and every write ends behind
    /// that lock. (The pool would grow, but its count of idle threads runs below zero.) A segment that is full is one such
    /// write; sled's own flushing and a reader of a page that is not on the disk yet make one more each at a time. So behind
    /// each segment's worth all that is written is waited for, with nobody else at work.
    pub(super) fn write<T>(
        &self,
        cost: usize,
        work: impl FnOnce(&Trees) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let before = self.written.fetch_add(cost, Ordering::Relaxed);
            let most = state.trees.as_ref().map_or(0, |t| t.segment_bytes);
            if before == 0 || before.saturating_add(cost) <= most {
                // Counted and written under one lock: who holds it alone finds all of it written.
                return self.used(&state, "using", work);
            }
            self.written.fetch_sub(cost, Ordering::Relaxed);
            drop(state);
            self.settle()?;
        }
    }

    /// Removes what begins with this in a tree of blocks, from the end. Of a crash on the way some stays: it is done again then.
    pub(super) fn remove(
        &self,
        tree: impl Fn(&Trees) -> &sled::Tree,
        prefix: &[u8],
    ) -> Result<(), Error> {
        loop {
            let (keys, bytes) = self.with(|trees| {
                let (mut keys, mut bytes) = (Vec::new(), 0);
                for entry in tree(trees).scan_prefix(prefix).rev().take(REMOVED) {
                    let (key, sealed) = entry?;
                    keys.push(key.to_vec());
                    bytes += sealed.len();
                }
                Ok((keys, bytes))
            })?;
            if keys.is_empty() {
                return Ok(());
            }
            // What goes is written once more with what stays beside it.
            self.write(cost(keys.len(), bytes), |trees| {
                for key in &keys {
                    tree(trees).remove(key)?;
                }
                Ok(())
            })?;
        }
    }

    /// How much is written before it is waited for. Not to be asked while the database is used: a lock is not taken twice.
    pub(super) fn most(&self) -> usize {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let trees = state.trees.as_ref();
        trees.map_or(SEGMENT_BYTES, |t| t.segment_bytes)
    }

    /// Waits until nothing is being written.
    fn settle(&self) -> Result<(), Error> {
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Else somebody has just done so.
        if self.written.load(Ordering::Relaxed) > 0 {
            self.used(&state, "flushing", |trees| {
                trees.db.flush()?;
                Ok(())
            })?;
            self.written.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn used<T>(
        &self,
        state: &State,
        doing: &str,
        work: impl FnOnce(&Trees) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.sound(state)?;
        let Some(trees) = &state.trees else {
            return Err(Error::Torn("the database is closed".to_owned()));
        };
        let result = caught(doing, || work(trees));
        let fault = match &result {
            Err(Error::Torn(why)) => Fault::Torn(why.clone()),
            Err(Error::Io { source, .. }) => Fault::Io(source.kind(), source.to_string()),
            _ => return result,
        };
        // The first one stays.
        let _ = state.fault.set(fault);
        result
    }

    /// The fault, where there was one.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.sound(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn sound(&self, state: &State) -> Result<(), Error> {
        state
            .fault
            .get()
            .map_or(Ok(()), |fault| Err(fault.error(&self.path)))
    }

    /// Behind a fault: closes the database and opens it anew; what is torn is deleted first. Says why, where it was.
    /// Without a fault nothing is done. Blocks until nobody uses the database.
    pub(super) fn renew(&self) -> Result<Option<String>, Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let Some(fault) = state.fault.get().cloned() else {
            return Ok(None);
        };
        let closed = match state.trees.take() {
            Some(trees) => close(trees, &self.path),
            None => true,
        };
        // Until all of this has worked the fault stays, and the next call tries again.
        let torn = match fault {
            Fault::Torn(why) => Some(why),
            // What does not close cannot be opened again where it is.
            Fault::Io(_, why) => (!closed).then_some(why),
        };
        if torn.is_some() {
            delete(&self.path)?;
        }
        let (trees, found) = open_or_begin(&self.path, self.cache_bytes)?;
        *state = State {
            trees: Some(trees),
            fault: OnceLock::new(),
        };
        Ok(torn.or(found))
    }
}

fn open_or_begin(path: &Path, cache_bytes: u64) -> Result<(Trees, Option<String>), Error> {
    match open(path, cache_bytes) {
        Ok(trees) => Ok((trees, None)),
        Err(Error::Torn(why)) => {
            delete(path)?;
            Ok((open(path, cache_bytes)?, Some(why)))
        }
        Err(other) => Err(other),
    }
}

fn open(path: &Path, cache_bytes: u64) -> Result<Trees, Error> {
    let until = Instant::now() + CLOSING;
    let opened = loop {
        match try_open(path, cache_bytes) {
            // Nobody but this process may have it open, as the folder's own lock is held: what sled still writes in the
            // background, behind a database that was just closed.
            Err(Error::Io { source, .. })
                if source.to_string().contains("acquire lock") && Instant::now() < until =>
            {
                std::thread::sleep(POLL);
            }
            opened => break opened,
        }
    };
    match opened {
        Err(Error::Io { source, .. }) => Err(io_at(path)(source)),
        result => result,
    }
}

/// The segments that a database was made with: sled opens it with no others. It keeps them in a text beside its log.
fn segments(path: &Path) -> Option<usize> {
    let conf = fs::read(path.join("conf")).ok()?;
    let conf = String::from_utf8_lossy(&conf);
    let (_, rest) = conf.split_once("segment_size: ")?;
    let bytes: usize = rest.lines().next()?.trim().parse().ok()?;
    // Within what sled takes.
    (bytes.is_power_of_two() && (256..=1 << 24).contains(&bytes)).then_some(bytes)
}

fn try_open(path: &Path, cache_bytes: u64) -> Result<Trees, Error> {
    let segment_bytes = segments(path).unwrap_or(SEGMENT_BYTES);
    let db = caught("opening", || {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            .segment_size(segment_bytes);
        Ok(config.open()?)
    })?;
    let opened = caught("opening", || {
        let journal = db.open_tree("journal")?;
        let packed = db.open_tree("packed")?;
        Ok(Trees {
            runs: Mutex::new(packed::counts(&packed)?),
            packed,
            view: db.open_tree("view")?,
            gathered: db.open_tree("gathered")?,
            numbers: Mutex::new(journal::numbers(&journal)?),
            journal,
            db: db.clone(),
            segment_bytes,
        })
    });
    if opened.is_err() {
        close(db, path);
    }
    opened
}

/// Closes a database and says whether it is closed. sled writes at that and can fail or hang (it waits for ever for its
/// flushing thread, if that has panicked), so it does so on a thread of its own. And it goes on writing in the background:
/// it is closed only when its file is free, as what it wrote later would fall into the database that comes in its place.
fn close<T: Send + 'static>(open: T, path: &Path) -> bool {
    let until = Instant::now() + CLOSING;
    let (closed, wait) = mpsc::channel();
    let thread = std::thread::Builder::new().name("limn-close".to_owned());
    let spawned = thread.spawn(move || {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
        let _ = closed.send(());
    });
    let _ = spawned.is_ok() && wait.recv_timeout(CLOSING).is_ok();
    loop {
        let file = File::open(path.join("db"));
        if file.map_or(true, |f| {
            !matches!(f.try_lock(), Err(TryLockError::WouldBlock))
        }) {
            return true;
        }
        if Instant::now() >= until {
            tracing::warn!("a database that is broken does not close; it is left behind");
            return false;
        }
        std::thread::sleep(POLL);
    }
}

fn delete(path: &Path) -> Result<(), Error> {
    let deleted = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        result => result,
    };
    match deleted {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_at(path)(error)),
        _ => Ok(()),
    }
}

/// A panic as an error.
fn caught<T>(doing: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // Sound: what a panic leaves behind is not used again, but closed and deleted.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::Torn(format!(
            "sled panicked while {doing} it: {}",
            said.unwrap_or("no reason given")
        )))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;

    /// A database that lives as long as the folder that stands with it.
    pub(in crate::store) fn temporary() -> (Arc<Database>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        // With sled's own segments: they are full sooner.
        drop(sled::Config::new().path(&path).open().unwrap());
        let database = Database::open(&path, 1 << 20).unwrap();
        (Arc::new(database), folder)
    }

    fn put(database: &Database, value: &str) -> Result<(), Error> {
        database.with(|trees| {
            trees.view.insert("key", value)?;
            Ok(())
        })
    }

    fn get(database: &Database) -> Result<Option<Vec<u8>>, Error> {
        database.with(|trees| Ok(trees.view.get("key")?.map(|v| v.to_vec())))
    }

    #[test]
    fn a_panic_is_an_error_and_nothing_is_asked_behind_it_until_the_database_is_begun_anew() {
        let (database, _folder) = temporary();
        put(&database, "old").unwrap();
        assert_eq!(database.renew().unwrap(), None, "sound: nothing to do");
        let panicked = database.with(|_| -> Result<(), Error> { panic!("a page is gone") });
        let said = panicked.unwrap_err().to_string();
        assert!(
            said.contains("torn") && said.contains("a page is gone"),
            "{said}"
        );
        assert!(matches!(get(&database), Err(Error::Torn(_))));
        assert!(matches!(database.check(), Err(Error::Torn(_))));
        assert!(
            database
                .renew()
                .unwrap()
                .unwrap()
                .contains("a page is gone")
        );
        assert_eq!(get(&database).unwrap(), None);
        put(&database, "new").unwrap();
        assert_eq!(get(&database).unwrap().as_deref(), Some(&b"new"[..]));
    }

    #[test]
    fn a_full_disk_closes_the_database_and_opening_it_anew_keeps_what_it_holds() {
        let (database, _folder) = temporary();
        put(&database, "kept").unwrap();
        let full = || io_at(Path::new("db"))(io::ErrorKind::StorageFull.into());
        database
            .with(|_| -> Result<(), _> { Err(full()) })
            .unwrap_err();
        assert!(matches!(get(&database), Err(Error::Io { .. })));
        assert_eq!(database.renew().unwrap(), None);
        assert_eq!(get(&database).unwrap().as_deref(), Some(&b"kept"[..]));
    }

    #[test]
    fn no_more_than_a_segment_is_written_before_it_is_waited_for() {
        let (database, _folder) = temporary();
        let most = database.most();
        assert_eq!(most, 512 << 10);
        let value = "x".repeat(10_000);
        let written = || database.written.load(Ordering::Relaxed);
        let mut waited = 0;
        for n in 0..200u32 {
            let before = written();
            let put = |trees: &Trees| {
                trees.view.insert(n.to_be_bytes(), &*value)?;
                Ok(())
            };
            database.write(cost(1, value.len()), put).unwrap();
            assert!(written() <= most);
            waited += u32::from(written() < before);
        }
        // 16 of 31,024 bytes are a segment's worth.
        assert_eq!(waited, 12);
        // More than a segment at once is written all the same.
        let large = |_: &Trees| Ok(());
        database.write(2 * most, large).unwrap();
        assert_eq!(written(), 2 * most);
        database.write(1, large).unwrap();
        assert_eq!(written(), 1);
    }

    #[test]
    fn many_threads_that_write_and_remove_much_come_to_an_end() {
        let (database, _folder) = temporary();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let database = &database;
                scope.spawn(move || {
                    for n in 0..300u32 {
                        // Small and large by turns, and gone again: segments become free and the file shrinks.
                        let value = vec![thread; if n % 3 == 0 { 60_000 } else { 500 }];
                        let key = [&[thread][..], &(n % 10).to_be_bytes()].concat();
                        let work = |trees: &Trees| {
                            match n % 5 {
                                0 => drop(trees.view.remove(&key)?),
                                _ => drop(trees.view.insert(&key, value.as_slice())?),
                            }
                            Ok(())
                        };
                        database.write(cost(1, value.len()), work).unwrap();
                    }
                });
            }
        });
        database.check().unwrap();
    }
}
