//! The open sled database: a panic inside it is an error, and after a fault it can be closed and opened anew in its place.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use super::{Error, io_at, journal};

/// How long a database that is broken may take to close. One that hangs is left behind: nobody asks it any more.
const CLOSING: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);

/// What sled holds of a folder.
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) db: sled::Db,
    pub(super) view: sled::Tree,
    pub(super) journal: sled::Tree,
    /// The journal's numbers in use: from the oldest entry to the one before the end.
    pub(super) numbers: Mutex<Range<u64>>,
}

/// A database that its users share, and that can be begun anew under them.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    cache_bytes: u64,
    state: RwLock<State>,
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
        }
    }

    /// Uses the database. Damage can show at any place and time, and sled 0.34 panics at some of it (spacejam/sled#1410):
    /// for us that is the same as an error. Behind the first fault every use fails with it, until [`Database::renew`].
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Trees) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        self.sound(&state)?;
        let Some(trees) = &state.trees else {
            return Err(Error::Torn("the database is closed".to_owned()));
        };
        let result = caught("using", || work(trees));
        match &result {
            Err(Error::Torn(why)) => drop(state.fault.set(Fault::Torn(why.clone()))),
            Err(Error::Io { source, .. }) => {
                let _ = state
                    .fault
                    .set(Fault::Io(source.kind(), source.to_string()));
            }
            _ => {}
        }
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

fn try_open(path: &Path, cache_bytes: u64) -> Result<Trees, Error> {
    let db = caught("opening", || {
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes);
        Ok(config.open()?)
    })?;
    let opened = caught("opening", || {
        let journal = db.open_tree("journal")?;
        Ok(Trees {
            view: db.open_tree("view")?,
            numbers: Mutex::new(journal::numbers(&journal)?),
            journal,
            db: db.clone(),
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
        let database = Database::open(&folder.path().join("db"), 1 << 20).unwrap();
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
}
