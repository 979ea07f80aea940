use super::*;
use std::collections::HashSet;

/// What the adapter's `teacher.py` prints for the first events of user 86.
const LINES_OF_86: [&str; 23] = [
    "- liked Kolya (1996; comedy)",
    "- liked The Full Monty (1997; comedy)",
    "- shrugged at The English Patient (1996; drama, romance, war)",
    "- shrugged at Everyone Says I Love You (1996; comedy, musical, romance)",
    "- disliked Conspiracy Theory (1997; action, mystery, romance, thriller)",
    "- shrugged at Fly Away Home (1996; adventure, family)",
    "- disliked The Peacemaker (1997; action, thriller, war)",
    "- shrugged at Scream (1996; horror, thriller)",
    "- liked Cop Land (1997; crime, drama, mystery)",
    "- disliked Money Talks (1997; action, comedy)",
    "- liked One Night Stand (1997; drama)",
    "- shrugged at Air Force One (1997; action, thriller)",
    "- hated Bean (1997; comedy)",
    "- loved Contact (1997; drama, science fiction)",
    "- shrugged at Evita (1996; drama, musical)",
    "- shrugged at Love Jones (1997; romance)",
    "- liked George of the Jungle (1997; family, comedy)",
    "- shrugged at G.I. Jane (1997; action, drama, war)",
    "- loved Hugo Pool (1997; romance)",
    "- loved Welcome To Sarajevo (1997; drama, war)",
    "- loved The Tango Lesson (1997; romance)",
    "- loved Gattaca (1997; drama, science fiction, thriller)",
    "- loved Rocket Man (1997; comedy)",
];

/// CRC-32 of what it prints for the first 24 events of each of the hundred, each line ended by a line break.
const ALL_LINES: u32 = 0x8c92_6e33;

fn cached(users: usize) -> Vec<Event> {
    let folder = default_folder().expect("neither LIMN_CACHE nor HOME is set");
    read(&folder, users, 24).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_lines_are_those_that_the_adapter_was_trained_on() {
    let events = cached(100);
    let of = |user| {
        events
            .iter()
            .filter(move |e| e.user == user)
            .map(Event::line)
    };
    assert_eq!(of(86).collect::<Vec<_>>(), LINES_OF_86);
    let mut crc = crc32fast::Hasher::new();
    for line in HELD_OUT.iter().flat_map(|user| of(*user)) {
        crc.update(line.as_bytes());
        crc.update(b"\n");
    }
    assert_eq!((events.len(), crc.finalize()), (2376, ALL_LINES));
}

#[test]
fn events_are_in_the_order_of_time_and_of_the_users_asked_for() {
    let events = cached(20);
    assert!(events.is_sorted_by_key(|e| e.time_s));
    let users: HashSet<u16> = events.iter().map(|e| e.user).collect();
    assert_eq!(users, HELD_OUT[..20].iter().copied().collect());
    let ids: HashSet<String> = events.iter().map(Event::id).collect();
    assert_eq!(ids.len(), events.len());
    assert_eq!(HELD_OUT.iter().collect::<HashSet<_>>().len(), 100);
}

const ITEM: &str = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
10\tEnglish Patient, The\t1996\tDrama Romance War
9\tEnfer, L'\t1994\tFilm-Noir Sci-Fi Children's
2\tMonty; or, A, B\t1971\tunknown
";

#[test]
fn titles_genres_and_verbs_are_spelt_as_the_events_need_them() {
    // The ids of one instant are ordered as texts: 10 before 9.
    let inter = "item_id:token\tuser_id:token\trating:float\ttimestamp:float
9\t99\t1\t200
10\t99\t5\t200
2\t99\t3\t300
10\t7\t5\t1
9\t789\t2\t250
10\t789\t4\t900
10\t99\t4\t901
";
    let films = films(ITEM).ok().unwrap();
    let events = events(inter, &films, &[99, 789], 3).ok().unwrap();
    let lines: Vec<_> = events.iter().map(|e| (e.user, e.line())).collect();
    let line = |user, text: &str| (user, text.to_owned());
    assert_eq!(
        lines,
        [
            line(
                99,
                "- loved The English Patient (1996; drama, romance, war)"
            ),
            line(99, "- hated L' Enfer (1994; noir, science fiction, family)"),
            line(
                789,
                "- disliked L' Enfer (1994; noir, science fiction, family)"
            ),
            line(99, "- shrugged at Monty, or, A, B (1971; other)"),
            line(
                789,
                "- liked The English Patient (1996; drama, romance, war)"
            ),
        ]
    );
    let row = events[0].row();
    assert_eq!((&*row.user, row.time_ms), ("99", Some(200_000)));
    let value: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
    assert_eq!(
        value,
        json!({
            "user_id": "99", "id": "99:10", "time": 200, "action": "loved", "item_id": "10",
            "item_title": "The English Patient", "year": "1996", "genres": "drama, romance, war",
        })
    );
}

#[test]
fn data_that_is_missing_or_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let told = || read(folder.path(), 1, 24).unwrap_err().to_string();
    let missing = told();
    assert!(missing.contains("ml-100k.item"), "{missing}");
    assert!(missing.ends_with("run scripts/fetch-model.sh"), "{missing}");
    std::fs::write(folder.path().join("ml-100k.item"), ITEM).unwrap();
    for (inter, fault) in [
        ("99\t11\n", "line 2: no column 3"),
        ("99\t10\t5\tsoon\n", "line 2: timestamp \"soon\""),
        ("99\t10\t6\t1\n", "line 2: rating \"6\""),
        ("99\t11\t5\t1\n", "line 2: unknown film \"11\""),
        ("1000000\t11\t5\t1\n", "line 2: user \"1000000\""),
    ] {
        let head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";
        let file = folder.path().join("ml-100k.inter");
        std::fs::write(file, format!("{head}{inter}")).unwrap();
        assert!(told().ends_with(fault), "{}", told());
    }
    std::fs::write(folder.path().join("ml-100k.inter"), "user_id\titem_id\n").unwrap();
    assert!(told().ends_with("line 1: no column rating"), "{}", told());
}
