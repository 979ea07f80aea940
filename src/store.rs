//! The local sled folder: the view of the profiles, and the journal of finished model calls.
//!
//! Kafka is the truth. Whatever is found torn here is thrown away and built again from the profiles topic, so a fault of
//! the folder costs time and never a profile. sled is named in this room only.

mod journal;
mod view;

pub use journal::Journal;
pub use view::{Applied, Change, View, ViewBatch};

use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Version of the folder's layout. A newer one is refused by name; an older one is read.
const FORMAT: u32 = 1;
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
    /// A value does not match its checksum or cannot be read: the view must be rebuilt.
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
    db: sled::Db,
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
        let lock = lock(folder)?;
        check_format(folder)?;
        match Self::open_database(config) {
            Ok((db, view, journal)) => Ok(Self {
                view,
                journal,
                rebuilt: None,
                db,
                id_file: folder.join(ID_FILE),
                _lock: lock,
            }),
            Err(Error::Torn(why)) => {
                let path = folder.join(DATABASE);
                fs::remove_dir_all(&path).map_err(io_at(&path))?;
                let (db, view, journal) = Self::open_database(config)?;
                Ok(Self {
                    view,
                    journal,
                    rebuilt: Some(why),
                    db,
                    id_file: folder.join(ID_FILE),
                    _lock: lock,
                })
            }
            Err(other) => Err(other),
        }
    }

    fn open_database(config: &Config) -> Result<(sled::Db, View, Journal), Error> {
        let path = config.folder.join(DATABASE);
        // sled 0.34 can panic on a file that was cut off (spacejam/sled#1410): for us that is the same as an error.
        let opened = catch_unwind(AssertUnwindSafe(|| -> Result<_, Error> {
            let db = sled::Config::new()
                .path(&path)
                .cache_capacity(config.cache_bytes)
                .open()?;
            let view = View::new(db.open_tree("view")?, config.history);
            let journal = Journal::new(db.open_tree("journal")?, config.journal_entries)?;
            Ok((db, view, journal))
        }));
        match opened {
            Ok(Err(Error::Io { source, .. })) => Err(io_at(&path)(source)),
            Ok(result) => result,
            Err(panic) => {
                let said = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                Err(Error::Torn(
                    said.unwrap_or("sled panicked while opening").to_owned(),
                ))
            }
        }
    }

    /// A name that no other state folder has, and that this one keeps: the transactional producer is called by it.
    ///
    /// # Errors
    /// [`Error::Io`] where the operating system refuses.
    pub fn id(&self) -> Result<String, Error> {
        let path = &self.id_file;
        match fs::read_to_string(path) {
            Ok(id) if id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(id),
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
        self.db.flush()?;
        Ok(())
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK_FILE);
    let file = File::create(&path).map_err(io_at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
    }
}

fn check_format(folder: &Path) -> Result<(), Error> {
    let path = folder.join(FORMAT_FILE);
    match fs::read_to_string(&path) {
        Ok(found) => match found.trim().parse::<u32>() {
            Ok(number) if number <= FORMAT => Ok(()),
            _ => Err(Error::Newer {
                folder: folder.to_owned(),
                found: found.trim().chars().take(20).collect(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, format!("{FORMAT}\n")).map_err(io_at(&path))
        }
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// Puts a format byte and a checksum before a value. The key is part of the sum, so a value under a wrong key is noticed.
fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(payload.len() + 5);
    sealed.push(1);
    sealed.extend_from_slice(&checksum(key, payload).to_le_bytes());
    sealed.extend_from_slice(payload);
    sealed
}

/// The payload of a sealed value; `None` where it is torn.
fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (&format, rest) = sealed.split_first()?;
    let (sum, payload) = rest.split_first_chunk::<4>()?;
    (format == 1 && u32::from_le_bytes(*sum) == checksum(key, payload)).then_some(payload)
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        Config {
            folder: folder.to_owned(),
            cache_bytes: 1 << 20,
            history: 2,
            journal_entries: 3,
        }
    }

    fn one(user: &str, version: u64, payload: &str) -> ViewBatch {
        let mut batch = ViewBatch::default();
        batch.changes.push(Change {
            partition: 0,
            user: user.into(),
            state: Some((version, payload.as_bytes().to_vec())),
        });
        batch.positions.push((
            0,
            Applied {
                offset: i64::try_from(version).unwrap(),
                at_ms: 7,
            },
        ));
        batch
    }

    #[test]
    fn a_second_process_on_the_folder_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(&config(dir.path())).unwrap();
        let error = Store::open(&config(dir.path())).unwrap_err().to_string();
        assert!(
            error.contains("in use") && error.contains("store.folder"),
            "{error}"
        );
    }

    #[test]
    fn a_newer_folder_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FORMAT_FILE), "2\n").unwrap();
        let error = Store::open(&config(dir.path())).unwrap_err().to_string();
        assert!(error.contains("format 2"), "{error}");
    }

    #[test]
    fn a_folder_keeps_its_id_and_another_has_another() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = |dir: &Path| Store::open(&config(dir)).unwrap().id().unwrap();
        let first = id(one.path());
        assert_eq!(id(one.path()), first);
        assert_ne!(id(two.path()), first);
        fs::write(one.path().join(ID_FILE), "torn").unwrap();
        assert_eq!(id(one.path()).len(), 16);
    }

    #[test]
    fn what_was_applied_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Store::open(&config(dir.path())).unwrap();
            store.view.apply(&one("ann", 1, "likes tea")).unwrap();
            store.flush().unwrap();
        }
        let store = Store::open(&config(dir.path())).unwrap();
        assert_eq!(store.rebuilt, None);
        assert_eq!(
            store.view.get(0, "ann").unwrap().as_deref(),
            Some(&b"likes tea"[..])
        );
        assert_eq!(store.view.position(0).unwrap().unwrap().offset, 1);
    }

    #[test]
    fn noise_over_the_database_means_a_rebuild_that_says_why() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Store::open(&config(dir.path())).unwrap();
            store.view.apply(&one("ann", 1, "likes tea")).unwrap();
            store.flush().unwrap();
        }
        for entry in fs::read_dir(dir.path().join(DATABASE)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let noise: Vec<u8> = (0..fs::metadata(&path).unwrap().len())
                    .map(|i| (i * 37 % 251) as u8)
                    .collect();
                fs::write(&path, noise).unwrap();
            }
        }
        let store = Store::open(&config(dir.path())).unwrap();
        assert!(store.rebuilt.is_some());
        assert_eq!(store.view.get(0, "ann").unwrap(), None);
        assert!(store.view.position(0).unwrap().is_none());
        store.view.apply(&one("ann", 1, "likes tea")).unwrap();
    }

    #[test]
    fn a_sealed_value_is_bound_to_its_key_and_to_every_byte() {
        let sealed = seal(b"key", b"value");
        assert_eq!(unseal(b"key", &sealed), Some(&b"value"[..]));
        assert_eq!(unseal(b"other", &sealed), None);
        for i in 0..sealed.len() {
            let mut torn = sealed.clone();
            torn[i] ^= 0x10;
            assert_eq!(unseal(b"key", &torn), None, "byte {i}");
            assert_eq!(unseal(b"key", &sealed[..i]), None, "cut at {i}");
        }
    }
}
