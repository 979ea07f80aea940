//! Models from a server on this machine that answers as the hub does.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde_json::json;

use super::super::super::made::{Made, logits, small};
use super::super::{Wanted, folder, gguf};
use super::*;
use server::{Server, Shelf};

mod server;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of a small model as they would lie on the hub, with some that nobody needs.
fn files(shards: usize) -> (Made, BTreeMap<String, Vec<u8>>) {
    let made = Made::new(small(), 21);
    let dir = tempfile::tempdir().unwrap();
    made.folder(dir.path(), shards, DType::F32);
    let mut files: BTreeMap<String, Vec<u8>> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    for more in [
        "README.md",
        "pytorch_model.bin",
        "onnx/model.onnx",
        ".gitattributes",
    ] {
        files.insert(more.to_owned(), vec![0; 10]);
    }
    (made, files)
}

fn shelf(shards: usize) -> (Made, Shelf) {
    let (made, files) = files(shards);
    (
        made,
        Shelf {
            files,
            ..Shelf::default()
        },
    )
}

fn wanted(model: &Path) -> Wanted<'_> {
    Wanted {
        model,
        adapter: None,
        tokenizer: None,
        thinking: false,
    }
}

const TOKENS: [u32; 4] = [1, 2, 3, 200];

#[test]
fn a_model_is_fetched_without_what_is_not_needed_and_not_fetched_again() {
    for shards in [1, 3] {
        let (made, shelf) = shelf(shards);
        let server = Server::new(shelf);
        let path = server.fetch("hf:someone/tiny").unwrap();
        let mut loaded = folder::load(&path, &wanted(&path)).unwrap();
        let truth = logits(&made.spec, &mut made.tensors.clone(), &TOKENS);
        assert_eq!(
            logits(&loaded.spec, loaded.tensors.as_mut(), &TOKENS),
            truth
        );
        let asked = server.asked();
        for other in ["README.md", "pytorch_model.bin", "onnx", ".gitattributes"] {
            assert!(
                !asked.iter().any(|request| request.contains(other)),
                "{asked:?}"
            );
        }
        assert!(
            asked
                .iter()
                .any(|request| request.starts_with("bytes model")),
            "{asked:?}"
        );
        // The layout that the hub's other tools share.
        let shared = server
            .cache
            .path()
            .join("hub/models--someone--tiny/snapshots")
            .join(COMMIT);
        assert_eq!(path, shared);
        assert_eq!(server.fetch("hf:someone/tiny").unwrap(), path);
        assert_eq!(server.asked(), [] as [&str; 0]);
        // Another name of the same commit: its list, no file.
        assert_eq!(server.fetch("hf:someone/tiny@v1").unwrap(), path);
        assert_eq!(server.asked(), ["list v1"]);
    }
}

#[test]
fn what_another_tool_left_out_of_the_cache_is_fetched() {
    for missing in [
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        let (_, shelf) = shelf(1);
        let server = Server::new(shelf);
        let path = server.fetch("hf:someone/tiny").unwrap();
        server.asked();
        fs::remove_file(path.join(missing)).unwrap();
        assert_eq!(server.fetch("hf:someone/tiny").unwrap(), path);
        assert!(folder::load(&path, &wanted(&path)).is_ok(), "{missing}");
        assert_eq!(server.asked()[0], "list main", "{missing}");
    }
}

#[test]
fn a_fetch_that_was_broken_off_goes_on_where_it_was() {
    let (_, mut shelf) = shelf(1);
    shelf.breaks = Mutex::new(Some(("model.safetensors", 1000)));
    let whole = shelf.files["model.safetensors"].clone();
    let server = Server::new(shelf);
    let path = server.fetch("hf:someone/tiny").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), whole);
    let asked = server.asked();
    let resumed = asked
        .iter()
        .filter_map(|r| r.strip_prefix("bytes model.safetensors "))
        .any(|range| {
            let (from, _) = range.split_once('-').unwrap();
            (1..=1000).contains(&from.parse::<usize>().unwrap())
        });
    assert!(resumed, "{asked:?}");
}

#[test]
fn a_file_that_never_comes_whole_is_named_and_not_kept() {
    let (_, mut shelf) = shelf(1);
    shelf.short = Some("model.safetensors");
    let server = Server::new(shelf);
    for _ in 0..2 {
        let error = server.refusal("hf:someone/tiny");
        assert!(
            error.contains("someone/tiny") && error.contains("model.safetensors"),
            "{error}"
        );
        assert!(error.contains("start again"), "{error}");
    }
}

#[test]
fn one_gguf_file_is_fetched_alone() {
    let made = Made::new(small(), 22);
    let dir = tempfile::tempdir().unwrap();
    made.gguf(&dir.path().join("m.gguf"), GgmlDType::Q8_0);
    let bytes = fs::read(dir.path().join("m.gguf")).unwrap();
    let files = BTreeMap::from([
        ("q/tiny-Q8_0.gguf".to_owned(), bytes.clone()),
        ("tiny-Q4_0.gguf".to_owned(), bytes),
    ]);
    let server = Server::new(Shelf {
        files,
        ..Shelf::default()
    });
    let path = server.fetch("hf:someone/tiny:q/tiny-Q8_0.gguf").unwrap();
    assert!(gguf::load(&path, &wanted(&path)).is_ok());
    assert!(
        !server
            .asked()
            .iter()
            .any(|request| request.contains("Q4_0"))
    );
    assert_eq!(
        server.fetch("hf:someone/tiny:q/tiny-Q8_0.gguf").unwrap(),
        path
    );
    assert_eq!(server.asked(), [] as [&str; 0]);
    let error = server.refusal("hf:someone/tiny");
    assert!(
        error.contains("name one of them") && error.contains("tiny-Q4_0.gguf"),
        "{error}"
    );
    let error = server.refusal("hf:someone/tiny:none.gguf");
    assert!(
        error.contains("none.gguf") && error.contains("no such file"),
        "{error}"
    );
}

#[test]
fn the_token_is_sent_and_its_lack_is_told() {
    let (_, mut shelf) = shelf(1);
    shelf.token = Some("secret-token");
    let server = Server::new(shelf);
    assert!(server.fetch("hf:someone/tiny").is_ok());
    let stranger = Hub::new(&|name| match name {
        "HF_ENDPOINT" => Some(server.endpoint.clone().into()),
        "HF_HOME" => Some(server.cache.path().join("other").into()),
        _ => None,
    });
    let id = Id::of(Path::new("hf:someone/tiny")).unwrap().unwrap();
    let error = stranger.unwrap().fetch(&id, true).unwrap_err().to_string();
    assert!(
        error.contains("401") && error.contains("HF_TOKEN"),
        "{error}"
    );
    // The token that the hub's own tool has left in the cache.
    fs::create_dir_all(server.cache.path().join("third")).unwrap();
    fs::write(server.cache.path().join("third/token"), "secret-token\n").unwrap();
    let third = Hub::new(&|name| match name {
        "HF_ENDPOINT" => Some(server.endpoint.clone().into()),
        "HF_HOME" => Some(server.cache.path().join("third").into()),
        _ => None,
    });
    assert!(third.unwrap().fetch(&id, true).is_ok());
}

#[test]
fn what_is_not_on_the_hub_is_an_error_with_repository_file_and_way_out() {
    let (_, shelf) = shelf(1);
    let server = Server::new(shelf);
    for id in ["hf:someone/else", "hf:someone/tiny@v9"] {
        let error = server.refusal(id);
        assert!(
            error.contains(id) && error.contains("is the name right"),
            "{error}"
        );
    }
    let (_, mut files) = files(1);
    files.remove("tokenizer.json");
    let server = Server::new(Shelf {
        files,
        ..Shelf::default()
    });
    let error = server.refusal("hf:someone/tiny");
    assert!(
        error.contains("tokenizer.json") && error.contains("no such file"),
        "{error}"
    );
    // With a tokenizer of one's own it is not needed.
    let id = Id::of(Path::new("hf:someone/tiny")).unwrap().unwrap();
    assert!(server.hub().fetch(&id, false).is_ok());
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hub = Hub::new(&|name| match name {
        "HF_ENDPOINT" => Some(format!("http://{closed}").into()),
        "HF_HOME" => Some(server.cache.path().join("empty").into()),
        _ => None,
    });
    let error = hub.unwrap().fetch(&id, true).unwrap_err().to_string();
    assert!(
        error.contains(&closed.to_string()) && error.contains("HF_ENDPOINT"),
        "{error}"
    );
    assert!(Hub::new(&|_| None).is_err_and(|e| e.to_string().contains("HF_HOME")));
}

#[test]
fn a_server_whose_headers_would_leave_the_cache_is_refused() {
    let (_, mut shelf) = shelf(1);
    shelf.etag = Some("../../../outside");
    let server = Server::new(shelf);
    let error = server.refusal("hf:someone/tiny");
    assert!(error.contains("headers cannot be"), "{error}");
    assert!(!server.cache.path().join("outside").exists());
    let (_, mut shelf) = self::shelf(2);
    let index = json!({"weight_map": {"model.norm.weight": "../../outside.safetensors"}});
    shelf.files.insert(
        "model.safetensors.index.json".to_owned(),
        index.to_string().into(),
    );
    let server = Server::new(shelf);
    let error = server.refusal("hf:someone/tiny");
    assert!(error.contains("is no name"), "{error}");
}

/// Another process in the middle of a file holds the lock; the place of the file in the cache.
fn another(server: &Server, name: &str) -> (fs::File, PathBuf) {
    let etag = blake3::hash(&server.shelf.files[name]).to_hex().to_string();
    let blobs = server.cache.path().join("hub/models--someone--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let blob = blobs.join(etag);
    let lock = fs::File::create(blob.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    (lock, blob)
}

#[test]
fn a_second_start_waits_while_the_first_makes_progress_and_takes_what_it_fetched() {
    let (_, shelf) = shelf(1);
    let server = Server::new(shelf);
    let bytes = server.shelf.files["model.safetensors"].clone();
    let (lock, blob) = another(&server, "model.safetensors");
    let snapshots = server
        .cache
        .path()
        .join("hub/models--someone--tiny/snapshots");
    let pointer = snapshots.join(COMMIT).join("model.safetensors");
    let (lock, looks) = (Mutex::new(Some(lock)), Mutex::new(0));
    let mut hub = server.hub();
    let whole = bytes.clone();
    // A byte for every hundred looks, longer in all than any stand-still is borne.
    hub.pause = Box::new(move || {
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        fs::write(blob.with_extension("part"), vec![0; *looks / 100]).unwrap();
        if *looks > 3 * turn::LOOKS as usize {
            fs::create_dir_all(pointer.parent().unwrap()).unwrap();
            fs::write(&pointer, &whole).unwrap();
            *lock.lock().unwrap() = None;
        }
    });
    let id = Id::of(Path::new("hf:someone/tiny")).unwrap().unwrap();
    let path = hub.fetch(&id, true).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), bytes);
    // Its size was asked for, not its bytes.
    let asked = server.asked();
    let fetched = format!("bytes model.safetensors 0-{}", bytes.len());
    assert!(!asked.contains(&fetched), "{asked:?}");
}

#[test]
fn a_second_start_does_not_wait_for_ever_for_a_first_that_stands_still() {
    let (_, shelf) = shelf(1);
    let server = Server::new(shelf);
    let (_lock, _) = another(&server, "model.safetensors");
    let mut hub = server.hub();
    hub.pause = Box::new(|| ());
    let id = Id::of(Path::new("hf:someone/tiny")).unwrap().unwrap();
    let error = hub.fetch(&id, true).unwrap_err().to_string();
    assert!(
        error.contains("another process holds")
            && error.contains("model.safetensors")
            && error.contains("end it"),
        "{error}"
    );
}
