//! What the logs have of the events: nothing.

use std::collections::BTreeSet;

use crate::case::{Case, PARTITIONS, home};

/// Stands in every event, and nowhere else.
const MARKER: &str = "xylophonist";

#[test]
fn at_no_level_has_the_log_a_word_of_an_event() {
    let mut case = Case::new("quiet");
    // An event with `silent` is not in the answer, which is then empty and refused.
    let event = "- {{ text }}{% if attributes.price %}{{ attributes.price|int }}{% endif %}{% if not attributes.silent %} @{{ partition }}:{{ offset }}{% endif %}";
    case.replaced = vec![(
        r#"event = "- @{{ partition }}:{{ offset }}""#,
        format!(r#"event = "{event}""#),
    )];
    assert!(case.topics().status.success());
    let accepted = format!(r#"{{"user":"ann","time":1000000,"text":"{MARKER}"}}"#);
    let events = [
        ("ann", accepted.clone()),
        (
            "ann",
            format!(r#"{{"user":"ann","time":1000000,"text":"{MARKER}""#),
        ),
        ("ann", format!(r#"{{"user":"ann","time":"{MARKER}"}}"#)),
        ("ann", format!(r#"{{"time":1000000,"text":"{MARKER}"}}"#)),
        (
            "ann",
            format!(r#"{{"user":"{}","time":1000000}}"#, MARKER.repeat(100)),
        ),
        (
            "ann",
            format!(
                r#"{{"user":"ann","time":1000000,"text":"{}"}}"#,
                MARKER.repeat(2000)
            ),
        ),
        (
            "ann",
            format!(r#"{{"user":"ann","time":99999999999999,"text":"{MARKER}"}}"#),
        ),
        (
            "ann",
            format!(r#"{{"user":"ann","time":1000000,"price":"{MARKER}"}}"#),
        ),
        (
            "bob",
            format!(r#"{{"user":"bob","time":1000000,"text":"{MARKER}","silent":"yes"}}"#),
        ),
        // In the partition of somebody else.
        ("", accepted),
    ];
    for (user, value) in &events {
        let partition = match *user {
            "" => (home("ann") + 1) % PARTITIONS,
            user => home(user),
        };
        case.broker.produce(&case.input, partition, user, value);
    }
    let output = case
        .limn("run", "a")
        .arg("--until-end")
        .env("RUST_LOG", "limn=trace,warn")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|all| String::from_utf8_lossy(&all).into_owned());
    assert!(output.status.success(), "{said:?}");
    let dead = case.read("dead");
    let reasons: BTreeSet<&str> = dead
        .iter()
        .map(|letter| letter.headers["limn-reason"].as_str())
        .collect();
    let wanted = [
        "future",
        "malformed",
        "no_user",
        "refused",
        "template",
        "text_too_long",
        "user_too_long",
        "wrong_partition",
    ];
    assert_eq!(reasons, BTreeSet::from(wanted), "{said:?}");
    assert_eq!(dead.len(), events.len() - 1);
    assert_eq!(case.read("changes").len(), 1, "the accepted one");
    assert!(said[1].contains("partition restored"), "{said:?}");
    for said in said {
        assert!(!said.contains(MARKER), "{said}");
    }
}
