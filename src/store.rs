//! The local sled folder: the view of the profiles, and the journal of finished model calls.
//!
//! Kafka is the truth. Whatever is found torn here is thrown away and built again from the profiles topic, so a fault of
//! the folder costs time and never a profile. sled is named in this room only.

mod database;
pub mod entry;
mod gathered;
mod journal;
#[cfg(test)]
mod model;
mod packed;
#[cfg(test)]
mod tests;
mod view;

pub use journal::Journal;
pub use view::{Applied, Change, ReadBack, Restoring, View, ViewBatch};

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use database::Database;

/// Version of the folder's layout. A newer one is refused by name; an older one is read, and is of this one from then on: what
/// is written into it an older limn would take for damage, or not find. 2: a current state goes with its version. 3: what is read back in
/// great number is packed. 4: and compressed. 5: and found by an index. 6: states of their own are gathered. 7: an
/// index is shorter. 8: a state that begins with its user and version stands in a block without them beside it.
const FORMAT: u32 = 8;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const DATABASE: &str = "db";
const ID_FILE: &str = "id";

/// How the folder is kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder; made when it is missing.
    pub folder: PathBuf,
    /// Bytes of pages that sled may cache. What is resident can be a multiple of it (sled counts bytes on disk).
    pub cache_bytes: u64,
    /// Versions of each profile that are kept beside the current one.
    pub history: u64,
    /// Finished model calls that the journal keeps; the oldest go first.
    pub journal_entries: u64,
}

/// What went wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("state folder {path}: {source}")]
    Io {
        /// The file or folder that was used.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error(
        "state folder {0} is in use by another limn process: stop it, or give this one a folder of its own (store.folder)"
    )]
    InUse(PathBuf),
    /// The folder was written by a newer limn.
    #[error(
        "state folder {folder} has format {found}, this limn reads up to {FORMAT}: run a newer limn, or delete the folder (it is rebuilt from Kafka)"
    )]
    Newer {
        /// The folder.
        folder: PathBuf,
        /// The format found in it.
        found: String,
    },
    /// A folder that was to be looked into is none of limn's.
    #[error("{0} is no state folder of limn: name the one that store.folder says")]
    NoState(PathBuf),
    /// A value does not match its checksum or cannot be read: the database must be begun anew.
    #[error("state folder is torn: {0}")]
    Torn(String),
}

impl From<sled::Error> for Error {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(source) if !torn_kind(source.kind()) => Self::Io {
                path: DATABASE.into(),
                source,
            },
            other => Self::Torn(other.to_string()),
        }
    }
}

/// Reads that end too early, or find what cannot be, are damage; a full disk or a missing permission is not.
fn torn_kind(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}

/// The open folder, locked against other processes as long as this lives.
#[derive(Debug)]
pub struct Store {
    /// The profiles.
    pub view: View,
    /// Finished model calls.
    pub journal: Journal,
    /// Why the database was thrown away at this start; `None` where it was sound or new.
    pub rebuilt: Option<String>,
    database: Arc<Database>,
    id_file: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder, or makes it. A torn database is deleted and begun anew, and [`Store::rebuilt`] says why.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Newer`], or [`Error::Io`] where the operating system refuses.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let folder = &config.folder;
        fs::create_dir_all(folder).map_err(io_at(folder))?;
        let path = folder.join(LOCK_FILE);
        let lock = lock(folder, File::create(&path).map_err(io_at(&path))?)?;
        let path = folder.join(FORMAT_FILE);
        if format(folder)? != Some(FORMAT) {
            fs::write(&path, format!("{FORMAT}\n")).map_err(io_at(&path))?;
        }
        let (database, rebuilt) =
            Database::open_or_begin(&folder.join(DATABASE), config.cache_bytes)?;
        Ok(Self::of(config, Arc::new(database), rebuilt, lock))
    }

    /// Opens a folder to look into it. Nothing is made or repaired: what is no state folder stays as it is. (sled itself notes
    /// that it was opened, and a tree that an older limn did not have.)
    ///
    /// # Errors
    /// [`Error::NoState`] where it is none, [`Error::Torn`] where it is damaged, or as [`Store::open`].
    pub fn look(folder: &Path) -> Result<Self, Error> {
        let none = || Error::NoState(folder.to_owned());
        let path = folder.join(LOCK_FILE);
        let database = folder.join(DATABASE);
        if !path.is_file() || !database.is_dir() || format(folder)?.is_none() {
            return Err(none());
        }
        let lock = lock(folder, File::open(&path).map_err(io_at(&path))?)?;
        let config = Config {
            folder: folder.to_owned(),
            cache_bytes: 8 << 20,
            history: u64::MAX,
            journal_entries: u64::MAX,
        };
        let database = Arc::new(Database::open(&database, config.cache_bytes)?);
        let mut store = Self::of(&config, Arc::clone(&database), None, lock);
        if let Some(history) = store.view.noted_history()? {
            store.view = View::new(database, history);
        }
        Ok(store)
    }

    fn of(config: &Config, database: Arc<Database>, rebuilt: Option<String>, lock: File) -> Self {
        Self {
            view: View::new(Arc::clone(&database), config.history),
            journal: Journal::new(Arc::clone(&database), config.journal_entries),
            rebuilt,
            database,
            id_file: config.folder.join(ID_FILE),
            _lock: lock,
        }
    }

    /// Behind a fault: closes the database and opens it anew under those who use it. A torn one is deleted first, and
    /// the answer says why it was; what it held is read from Kafka again. Without a fault nothing is done. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] where the operating system refuses: a later call tries again.
    pub fn renew(&self) -> Result<Option<String>, Error> {
        self.database.renew()
    }

    /// The fault, where there was one since the database was opened, whoever met it.
    ///
    /// # Errors
    /// [`Error::Torn`] or [`Error::Io`].
    pub fn check(&self) -> Result<(), Error> {
        self.database.check()
    }

    /// A fault as a reader of profiles meets one.
    #[cfg(test)]
    pub(crate) fn break_for_tests(&self) {
        let broken = self
            .database
            .with(|_| -> Result<(), Error> { panic!("a test breaks the database") });
        assert!(broken.is_err());
    }

    /// A name that no other state folder has, and that this one keeps: the transactional producer is called by it.
    ///
    /// # Errors
    /// [`Error::Io`] where the operating system refuses.
    pub fn id(&self) -> Result<String, Error> {
        let path = &self.id_file;
        match fs::read(path) {
            Ok(id) if id.len() == 16 && id.iter().all(u8::is_ascii_hexdigit) => {
                Ok(String::from_utf8_lossy(&id).into_owned())
            }
            Ok(_) => self.new_id(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.new_id(),
            Err(source) => Err(io_at(path)(source)),
        }
    }

    fn new_id(&self) -> Result<String, Error> {
        // A generator seeded by the operating system is enough: the ids of one group's folders must differ.
        let id = format!("{:016x}", fastrand::u64(..));
        fs::write(&self.id_file, &id).map_err(io_at(&self.id_file))?;
        Ok(id)
    }

    /// Writes everything through to the disk. Nothing depends on it: what is lost is read from Kafka again.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses.
    pub fn flush(&self) -> Result<(), Error> {
        self.database.with(|trees| {
            trees.db.flush()?;
            Ok(())
        })
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

fn lock(folder: &Path, file: File) -> Result<File, Error> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_at(&folder.join(LOCK_FILE))(source)),
    }
}

/// The folder's format; `None` where none is written, or where what is written is no number: a start that was cut off, or damage.
fn format(folder: &Path) -> Result<Option<u32>, Error> {
    let path = folder.join(FORMAT_FILE);
    let found = match fs::read(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_at(&path)(source)),
    };
    match String::from_utf8_lossy(&found).trim().parse::<u32>() {
        Ok(number) if number > FORMAT => Err(Error::Newer {
            folder: folder.to_owned(),
            found: number.to_string(),
        }),
        number => Ok(number.ok()),
    }
}

/// Puts a format byte and a checksum before a value, which is its parts one behind another. The key is part of the sum, so a
/// value under a wrong key is noticed.
fn seal(format: u8, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + HEAD);
    sealed.extend_from_slice(&[0; HEAD]);
    parts.iter().for_each(|part| sealed.extend_from_slice(part));
    seal_in_place(format, key, &mut sealed);
    sealed
}

/// Bytes before a sealed value.
const HEAD: usize = 5;

/// As [`seal`], of a value that has [`HEAD`] bytes of room before it.
fn seal_in_place(format: u8, key: &[u8], sealed: &mut [u8]) {
    let sum = checksum(key, &sealed[HEAD..]);
    sealed[0] = format;
    sealed[1..HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// The payload of a value that was sealed in this format; `None` where it is torn, or of another.
fn unseal<'a>(format: u8, key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (&found, rest) = sealed.split_first()?;
    let (sum, payload) = rest.split_first_chunk::<4>()?;
    (found == format && u32::from_le_bytes(*sum) == checksum(key, payload)).then_some(payload)
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}
