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
    fs::write(dir.path().join(FORMAT_FILE), "9\n").unwrap();
    let error = Store::open(&config(dir.path())).unwrap_err().to_string();
    assert!(error.contains("format 9"), "{error}");
}

#[test]
fn an_older_folder_is_read_with_the_segments_that_it_was_made_with_and_refused_by_an_older_limn_then()
 {
    let dir = tempfile::tempdir().unwrap();
    let conf = || {
        let conf = fs::read(dir.path().join(DATABASE).join("conf")).unwrap();
        String::from_utf8_lossy(&conf).into_owned()
    };
    // As format 1 made it.
    fs::write(dir.path().join(FORMAT_FILE), "1\n").unwrap();
    let database = sled::Config::new().path(dir.path().join(DATABASE));
    drop(database.open().unwrap());
    assert!(conf().contains("segment_size: 524288"));
    for _ in 0..2 {
        let store = Store::open(&config(dir.path())).unwrap();
        assert_eq!(store.rebuilt, None);
        assert_eq!(
            fs::read_to_string(dir.path().join(FORMAT_FILE)).unwrap(),
            "8\n"
        );
        store.journal.put(&[1; 32], b"kept").unwrap();
    }
    // Where the number is torn, the database is not.
    fs::write(dir.path().join(FORMAT_FILE), "").unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    assert_eq!(
        store.journal.get(&[1; 32]).unwrap().as_deref(),
        Some(&b"kept"[..])
    );
    drop(store);
    assert!(Store::look(dir.path()).is_ok());
    assert!(conf().contains("segment_size: 524288"));
    fs::remove_dir_all(dir.path().join(DATABASE)).unwrap();
    drop(Store::open(&config(dir.path())).unwrap());
    assert!(conf().contains("segment_size: 8388608"));
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
    let sealed = seal(1, b"key", &[b"value"]);
    assert_eq!(unseal(1, b"key", &sealed), Some(&b"value"[..]));
    assert_eq!(unseal(1, b"other", &sealed), None);
    for i in 0..sealed.len() {
        let mut torn = sealed.clone();
        torn[i] ^= 0x10;
        assert_eq!(unseal(1, b"key", &torn), None, "byte {i}");
        assert_eq!(unseal(1, b"key", &sealed[..i]), None, "cut at {i}");
    }
}

#[test]
fn a_format_that_is_no_number_is_damage_and_not_a_newer_limn() {
    let dir = tempfile::tempdir().unwrap();
    for torn in [&b""[..], b"\xff\xfe", b"1x\n"] {
        fs::write(dir.path().join(FORMAT_FILE), torn).unwrap();
        fs::write(dir.path().join(ID_FILE), b"\xff\xfe").unwrap();
        let store = Store::open(&config(dir.path())).unwrap();
        assert_eq!(store.id().unwrap().len(), 16);
        assert_eq!(fs::read(dir.path().join(FORMAT_FILE)).unwrap(), b"8\n");
    }
}

#[test]
fn looking_into_a_folder_shows_no_more_versions_than_its_service_does() {
    let dir = tempfile::tempdir().unwrap();
    let versions = |store: &Store| store.view.versions(0, "ann").unwrap();
    let expected = ["v4", "v5", "v6"].map(|v| v.as_bytes().to_vec());
    {
        let store = Store::open(&config(dir.path())).unwrap();
        store.view.note_history().unwrap();
        for piece in [[1, 2], [3, 4]] {
            let changes = piece.map(|v| one("ann", v, &format!("v{v}")).changes.remove(0));
            let at = Applied {
                offset: 4,
                at_ms: 7,
            };
            let read = changes.into_iter().collect();
            store.view.restored(0, &read, at).unwrap();
        }
        for v in [5, 6] {
            store.view.apply(&one("ann", v, &format!("v{v}"))).unwrap();
        }
        assert_eq!(versions(&store), expected);
    }
    assert_eq!(versions(&Store::look(dir.path()).unwrap()), expected);
}

#[test]
fn looking_into_a_folder_makes_deletes_and_repairs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let look = || Store::look(dir.path()).map(drop).unwrap_err().to_string();
    // Somebody else's.
    fs::create_dir(dir.path().join(DATABASE)).unwrap();
    fs::write(dir.path().join(DATABASE).join("precious"), b"x").unwrap();
    assert!(look().contains("no state folder of limn"));
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(dir.path()), [DATABASE]);
    assert_eq!(names(&dir.path().join(DATABASE)), ["precious"]);
    fs::remove_dir_all(dir.path().join(DATABASE)).unwrap();
    // Our own.
    {
        let store = Store::open(&config(dir.path())).unwrap();
        store.view.apply(&one("ann", 1, "likes tea")).unwrap();
        assert!(look().contains("in use"));
    }
    {
        let store = Store::look(dir.path()).unwrap();
        assert!(store.view.get(0, "ann").unwrap().is_some());
    }
    let database = dir.path().join(DATABASE).join("db");
    let length = usize::try_from(fs::metadata(&database).unwrap().len()).unwrap();
    fs::write(&database, vec![0xa5; length]).unwrap();
    for name in names(&dir.path().join(DATABASE)) {
        if name != "db" {
            let path = dir.path().join(DATABASE).join(name);
            if path.is_file() {
                fs::write(path, vec![0xa5; 100]).unwrap();
            }
        }
    }
    assert!(look().contains("torn"), "{}", look());
    assert_eq!(fs::read(&database).unwrap(), vec![0xa5; length]);
}

/// Users of the folder that is damaged, and how many batches it was written with.
const USERS: u64 = 120;
const BATCHES: u64 = 60;

/// What a batch writes: a third of the users.
fn batch(number: u64) -> ViewBatch {
    let mut batch = ViewBatch::default();
    for user in (0..USERS).filter(|u| (u + number).is_multiple_of(3)) {
        batch.changes.push(Change {
            partition: 0,
            user: format!("user{user}").into(),
            state: Some((number, state(user, number))),
        });
    }
    let offset = i64::try_from(number).unwrap();
    batch.positions.push((0, Applied { offset, at_ms: 7 }));
    batch.checkpoints.push((0, offset, vec![7; 50]));
    batch
}

fn state(user: u64, number: u64) -> Vec<u8> {
    format!("user{user} at {number}: {}", "likes tea. ".repeat(100)).into_bytes()
}

/// What was read back before the first batch, packed, and not touched since.
fn restored(store: &Store) -> Result<(), Error> {
    let changes = (USERS..2 * USERS).map(|user| Change {
        partition: 0,
        user: format!("user{user}").into(),
        state: Some((1, state(user, 0))),
    });
    let at = Applied {
        offset: 0,
        at_ms: 7,
    };
    store.view.restored(0, &changes.collect(), at)
}

/// The view as it is after so many batches.
fn is_after(store: &Store, batches: u64) -> Result<bool, Error> {
    for user in USERS..2 * USERS {
        if store.view.get(0, &format!("user{user}"))? != Some(state(user, 0)) {
            return Ok(false);
        }
    }
    for user in 0..USERS {
        let last = (1..=batches).rev().find(|n| (user + n).is_multiple_of(3));
        let kept = store.view.get(0, &format!("user{user}"))?;
        if kept != last.map(|number| state(user, number)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let mut all = Vec::new();
    files(from, &mut all);
    for path in all {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

/// As the service uses it: reads the position, catches up from there, and reads and writes on. Behind a fault it begins
/// anew. Returns whether the view was begun anew.
fn serve(store: &Store, seed: u64) -> bool {
    let mut renewed = false;
    let work = || -> Result<(), Error> {
        let from = match store.view.position(0)? {
            Some(at) => u64::try_from(at.offset).unwrap(),
            None => {
                store.view.clear(0)?;
                restored(store)?;
                0
            }
        };
        store.view.checkpoint(0)?;
        // Damage that nothing tells of would be a profile of an older version under a newer position.
        assert!(
            is_after(store, from)?,
            "seed {seed}: silently wrong at {from}"
        );
        for number in from + 1..=BATCHES + 10 {
            store.view.apply(&batch(number))?;
            store
                .journal
                .put(&[u8::try_from(number).unwrap(); 32], b"x")?;
        }
        store.flush()?;
        assert!(is_after(store, BATCHES + 10)?);
        store.view.versions(0, "user1")?;
        store.view.states(0).try_for_each(|state| state.map(drop))
    };
    for _ in 0..4 {
        match work() {
            Ok(()) => return renewed,
            Err(Error::Torn(_) | Error::Io { .. }) => {
                store.renew().unwrap();
                renewed = true;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    panic!("seed {seed}: it does not come to an end");
}

#[test]
fn a_folder_that_is_damaged_anywhere_is_begun_anew_without_a_hand() {
    let dir = tempfile::tempdir().unwrap();
    let config = |folder: &Path| Config {
        // Small, so that pages are read from the disk when they are asked for.
        cache_bytes: 1 << 10,
        ..config(folder)
    };
    // Opened several times: sled then has a snapshot, and opens without a look at most of its pages.
    let whole = dir.path().join("whole");
    for part in 0..4 {
        let store = Store::open(&config(&whole)).unwrap();
        if part == 0 {
            restored(&store).unwrap();
        }
        for number in part * BATCHES / 4 + 1..=(part + 1) * BATCHES / 4 {
            store.view.apply(&batch(number)).unwrap();
            let hash = [u8::try_from(number).unwrap(); 32];
            store.journal.put(&hash, &[1; 300]).unwrap();
        }
    }
    drop(Store::open(&config(&whole)).unwrap());
    let (mut at_open, mut later) = (0, 0);
    for seed in 0..SEEDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = dir.path().join(format!("seed{seed}"));
        copy(&whole, &folder);
        // Before the start, or while it is in use.
        let opened = (seed % 2 == 1).then(|| Store::open(&config(&folder)).unwrap());
        let mut all = Vec::new();
        files(&folder.join(DATABASE), &mut all);
        all.sort();
        // Mostly the log of all pages; sometimes the snapshot and sled's own configuration.
        let log = folder.join(DATABASE).join("db");
        let path = match random.u8(..6) {
            0 => random.choice(&all).unwrap().clone(),
            _ => log,
        };
        let mut bytes = fs::read(&path).unwrap();
        let some = |random: &mut fastrand::Rng, most| random.usize(1..=most);
        match random.u8(..6) {
            // Cut off.
            0 => bytes.truncate(random.usize(..bytes.len())),
            // A stretch overwritten.
            1 | 2 => {
                let at = random.usize(..bytes.len());
                let end = (at + some(&mut random, 5000)).min(bytes.len());
                bytes[at..end].fill(random.u8(..));
            }
            // Single bytes here and there.
            _ => {
                for _ in 0..some(&mut random, 200) {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
            }
        }
        fs::write(&path, bytes).unwrap();
        let store = opened.unwrap_or_else(|| Store::open(&config(&folder)).unwrap());
        at_open += u32::from(store.rebuilt.is_some());
        later += u32::from(serve(&store, seed));
        drop(store);
        let store = Store::open(&config(&folder)).unwrap();
        // What nobody asked for while it was open shows now.
        serve(&store, seed);
        assert!(is_after(&store, BATCHES + 10).unwrap(), "seed {seed}");
        drop(store);
        fs::remove_dir_all(&folder).unwrap();
    }
    // Else the damage was not what this is about.
    assert!(at_open > 0 && later > 0, "{at_open} {later}");
}

/// How many folders are damaged.
const SEEDS: u64 = 60;
