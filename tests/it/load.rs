//! `limn load` as a process.

use std::path::PathBuf;
use std::process::Output;

use crate::case::Case;

const JSON: &str = r#"{"user":"ann","time":1000000,"title":"tea"}
{"user":"bob","time":1001000}

{"user":"ann","time":1002000}
"#;
const CSV: &str = "user,time,title\ncid,1003000,\"tea, black\"\nann,1004000,\n";

fn file(case: &Case, name: &str, text: &str) -> PathBuf {
    let path = case.dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn load(case: &Case, files: &[PathBuf], options: &[&str]) -> Output {
    let mut limn = case.limn("load", "a");
    limn.args(options).args(files).output().unwrap()
}

/// Exit status, standard output, standard error.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The input's values, sorted.
fn values(case: &Case) -> Vec<String> {
    let records = case.broker.visible(&case.input).into_iter();
    let mut values: Vec<String> = records
        .map(|r| {
            let value: serde_json::Value =
                serde_json::from_str(r.value.as_deref().unwrap()).unwrap();
            assert_eq!(r.key.as_deref(), value["user"].as_str());
            value.to_string()
        })
        .collect();
    values.sort_unstable();
    values
}

#[test]
fn json_lines_and_csv_are_loaded_and_become_profiles() {
    let case = Case::new("history");
    let files = [file(&case, "a.jsonl", JSON), file(&case, "b.csv", CSV)];
    let (code, out, err) = said(&load(&case, &files, &[]));
    assert_eq!(code, Some(0), "{err}");
    let told: Vec<&str> = out.lines().collect();
    assert_eq!(told.len(), 2, "{out}");
    for (told, (name, rows)) in told.iter().zip([("a.jsonl", 3), ("b.csv", 2)]) {
        assert!(told.contains(&format!("{name}: {rows} rows in")), "{told}");
        assert!(told.ends_with(" 0 skipped"), "{told}");
    }
    assert_eq!(
        values(&case),
        [
            r#"{"time":"1003000","title":"tea, black","user":"cid"}"#,
            r#"{"time":"1004000","user":"ann"}"#,
            r#"{"time":1000000,"title":"tea","user":"ann"}"#,
            r#"{"time":1001000,"user":"bob"}"#,
            r#"{"time":1002000,"user":"ann"}"#,
        ]
    );
    // The stream takes them as its own: to the right partitions, and none is a dead letter.
    assert!(case.topics().status.success());
    case.run_to_the_end("a");
    let report = case.verify();
    assert_eq!((report.folded, report.dead_lettered), (5, 0));
}

#[test]
fn a_bad_line_ends_the_load_with_its_number_or_is_skipped() {
    let bad_json = JSON.replacen("\n\n", "\n\n{\"user\":\"tea and cakes\"\n", 1);
    let bad_csv = format!("{CSV}dan,1005000\neve,1006000,\n");
    for (name, text, line, before, rows) in [
        // The empty line counts as one.
        ("bad.jsonl", bad_json.as_str(), 4, 2, 3),
        ("bad.csv", bad_csv.as_str(), 4, 2, 3),
    ] {
        let case = Case::new("bad");
        let files = [file(&case, name, text), file(&case, "next.jsonl", JSON)];
        let (code, out, err) = said(&load(&case, &files, &[]));
        assert_eq!(code, Some(1), "{err}");
        assert!(out.is_empty(), "{out}");
        assert!(err.contains(&format!("{name}, line {line}: ")), "{err}");
        let told = format!("{before} records were sent and {before} of them are in the topic");
        assert!(err.contains(&told), "{err}");
        assert!(!err.contains("cakes"), "what people did is not told: {err}");
        // Nor was the file behind it begun.
        assert_eq!(values(&case).len(), before);
        let (code, out, err) = said(&load(&case, &files[..1], &["--skip-bad"]));
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(&format!("{name}: {rows} rows in")), "{out}");
        assert!(out.ends_with(" 1 skipped\n"), "{out}");
        assert_eq!(values(&case).len(), before + rows);
    }
}

#[test]
fn what_cannot_be_loaded_is_told_and_the_exit_status_says_so() {
    let case = Case::new("unloaded");
    let unnamed = file(&case, "history", JSON);
    for (files, options, code, wanted) in [
        (
            vec![case.dir.path().join("none.csv")],
            &[][..],
            1,
            "opening",
        ),
        (
            vec![unnamed.clone()],
            &[],
            1,
            "say --format jsonl, csv or tsv",
        ),
        (vec![], &[], 2, "<FILES>"),
        (
            vec![unnamed.clone()],
            &["--format", "xml"],
            2,
            "a format is jsonl, csv or tsv",
        ),
    ] {
        let (found, out, err) = said(&load(&case, &files, options));
        assert_eq!(found, Some(code), "{err}");
        assert!(out.is_empty() && err.contains(wanted), "{out}{err}");
    }
    assert!(values(&case).is_empty());
    let (code, _, err) = said(&load(&case, &[unnamed], &["--format", "jsonl"]));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(values(&case).len(), 3);
}
