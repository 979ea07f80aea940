//! A state folder that goes wrong: nothing in it is the truth.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::load::Events;
use super::run::Run;
use crate::broker::eventually;
use crate::case::Instance;

/// Some work done with the folder, and the instance killed.
fn used(run: &mut Run<'_>) -> PathBuf {
    run.load(Events::default());
    run.start("a");
    run.works();
    run.kill("a");
    run.case.folder("a").join("db").join("db")
}

fn goes_on(run: &mut Run<'_>) {
    run.start("a");
    run.works();
    run.stop("a");
    run.start("a");
    run.works();
}

/// While it is in use, and between two starts.
pub fn deleted(run: &mut Run<'_>) {
    used(run);
    run.start("a");
    run.works();
    fs::remove_dir_all(run.case.folder("a")).unwrap();
    run.works();
    run.kill("a");
    let _ = fs::remove_dir_all(run.case.folder("a"));
    goes_on(run);
}

pub fn cut(run: &mut Run<'_>) {
    let file = used(run);
    let length = fs::metadata(&file).unwrap().len();
    let to = run.rng.u64(0..length);
    let database = fs::OpenOptions::new().write(true).open(&file).unwrap();
    database.set_len(to).unwrap();
    goes_on(run);
}

pub fn noise(run: &mut Run<'_>) {
    let file = used(run);
    let mut bytes = fs::read(&file).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) + 1;
    let from = run.rng.usize(0..used);
    let to = run.rng.usize(from..used) + 1;
    for byte in &mut bytes[from..to] {
        *byte = run.rng.u8(..);
    }
    fs::write(&file, bytes).unwrap();
    goes_on(run);
}

/// An instance whose folder is a small disk of its own, gone when it ends. `then` is done before limn is begun.
fn on_a_disk(run: &Run<'_>, mebibytes: u32, then: &str) -> Instance {
    let folder = run.case.folder("a");
    fs::create_dir_all(&folder).unwrap();
    let limn = run.case.limn("run", "a");
    let log = run.case.new_log("a");
    let script = format!(
        "mount -t tmpfs -o size={mebibytes}m none \"$1\" && {{ {then}; }} && shift && exec \"$@\""
    );
    let child = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(&folder)
        .arg(limn.get_program())
        .args(limn.get_args())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("util-linux' unshare");
    Instance(child)
}

/// It must not start, say why, and lose nothing: with a database that is there already, and with none.
pub fn read_only(run: &mut Run<'_>) {
    used(run);
    let folder = run.case.folder("a");
    fs::rename(&folder, folder.with_extension("before")).unwrap();
    let remount = "mount -o remount,ro none \"$1\"";
    let copied = format!("cp -a \"$1.before/.\" \"$1\" && {remount}");
    for then in [&copied, remount] {
        let instance = on_a_disk(run, 256, then);
        run.add("a", instance);
        let code = run.ended("a");
        let said = run.case.log("a");
        assert_eq!(code, Some(1), "{said}");
        let named = said.contains(&*folder.to_string_lossy());
        assert!(named && said.contains("Read-only"), "{said}");
    }
    goes_on(run);
}

/// It waits until there is room again.
pub fn full(run: &mut Run<'_>) {
    run.load(Events::default());
    let instance = on_a_disk(run, 64, ":");
    run.add("a", instance);
    run.works();
    // The disk as the process sees it.
    let folder = run.case.folder("a");
    let inside = PathBuf::from(format!("/proc/{}/root{}", run.pid("a"), folder.display()));
    let filler = inside.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    // To the last byte.
    for piece in [1 << 16, 1] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    // Open, it would keep its room when it is removed.
    drop(file);
    // The engine's answers, the view: sooner or later something must be written. What room the database has left in its
    // file is used up first.
    run.feed(Events {
        batch: 60,
        users: 4000,
        ..Events::default()
    });
    eventually("the disk to be noticed", || {
        run.case.log("a").contains("No space left").then_some(())
    });
    fs::remove_file(&filler).unwrap();
    run.works();
}
