use super::*;

const ROOM: Room = Room {
    tokens: 32,
    cheap: 32,
};

/// Letters stand for tokens.
fn tokens(text: &str) -> Vec<u32> {
    text.chars().map(u32::from).collect()
}

fn text(tokens: &[u32]) -> String {
    tokens.iter().filter_map(|&t| char::from_u32(t)).collect()
}

/// Drafts as far as there is a match.
fn eager() -> Policy {
    Policy {
        probability: 0.0,
        ..Policy::default()
    }
}

fn propose(previous: &str, prompt: &str, answer: &str) -> String {
    let mut drafter = Drafter::new(tokens(previous));
    let experience = Experience::new();
    text(&drafter.propose(
        &experience,
        &eager(),
        &tokens(prompt),
        &tokens(answer),
        ROOM,
    ))
}

/// Steps, proposed and accepted for an answer that is known, and what is drafted on the way.
fn write(
    drafter: &mut Drafter,
    experience: &mut Experience,
    answer: &[u32],
    policy: &Policy,
    room: Room,
) -> (usize, usize, usize) {
    let (mut steps, mut proposed, mut accepted, mut known) = (0, 0, 0, 0);
    while known < answer.len() {
        let draft = drafter.propose(experience, policy, &[], &answer[..known], room);
        let right = draft
            .iter()
            .zip(&answer[known..])
            .take_while(|(a, b)| a == b)
            .count();
        let chosen = (right + 1).min(answer.len() - known);
        let end = known + chosen;
        drafter.learn(experience, &answer[..end], &answer[known..end]);
        known = end;
        steps += 1;
        proposed += draft.len();
        accepted += right;
    }
    (steps, proposed, accepted)
}

#[test]
fn an_answer_begins_as_the_previous_summary() {
    assert_eq!(propose("Loves tea.", "", ""), "Loves tea.");
    assert_eq!(propose("", "", ""), "");
    assert_eq!(propose("", "events", ""), "");
}

#[test]
fn what_follows_the_longest_match_is_proposed() {
    // "ab" stands before 1, 2 and 3; only one of them stands behind "xab".
    assert_eq!(propose("ab1 xab2 ab3", "", "..xab"), "2 ab3");
    assert_eq!(propose("ab1", "", "zzz"), "");
}

#[test]
fn the_previous_summary_comes_first_then_the_events() {
    assert_eq!(propose("a1", "a2", "a"), "1");
    assert_eq!(propose("a1", "b2", "b"), "2");
    // A longer match in the events is better than a single token in the summary.
    assert_eq!(propose("a1", "cba2", "cba"), "2");
    // Behind the summary's end nothing is made up.
    assert_eq!(propose("tea", "", "tea"), "");
}

#[test]
fn of_equal_matches_the_nearest_behind_the_cursor_is_taken() {
    let mut drafter = Drafter::new(tokens("a,1 b,2 c,3 d,4"));
    let mut experience = Experience::new();
    let mut next = |answer: &str, chosen: &str| {
        let answer = tokens(answer);
        drafter.learn(&mut experience, &answer, &tokens(chosen));
        text(&drafter.propose(&experience, &eager(), &[], &answer, ROOM))
    };
    assert_eq!(next("a,1 b", "a,1 b"), ",2 c,3 d,4");
    // New words, then a comma: the one behind "b", not the first.
    assert_eq!(next("a,1 b and x,", " and x,"), "2 c,3 d,4");
}

#[test]
fn a_draft_ends_where_it_will_probably_be_rejected() {
    let mut experience = Experience::new();
    let mut drafter = Drafter::new(tokens(&"abcdefgh".repeat(8)));
    let mut length = |experience: &Experience, probability| {
        let policy = Policy {
            probability,
            ..Policy::default()
        };
        drafter.propose(experience, &policy, &[], &[], ROOM).len()
    };
    assert!(length(&experience, 0.5) < length(&experience, 0.1));
    assert_eq!(length(&experience, 0.99), 0);
    // All that was copied was right: drafts become as long as they may.
    for _ in 0..500 {
        experience.learn(Kind::Previous(LONGEST), true);
    }
    assert_eq!(length(&experience, 0.5), 32);
    for _ in 0..500 {
        experience.learn(Kind::Previous(LONGEST), false);
    }
    assert_eq!(length(&experience, 0.1), 0);
}

#[test]
fn a_kind_of_match_that_had_become_bad_becomes_good_again_without_being_drafted() {
    let summary: Vec<u32> = (1..200).collect();
    let strange: Vec<u32> = (0..200).map(|i| 1 + i * 7919 % 200).collect();
    let (mut experience, policy) = (Experience::new(), Policy::default());
    for _ in 0..20 {
        write(
            &mut Drafter::new(summary.clone()),
            &mut experience,
            &strange,
            &policy,
            ROOM,
        );
    }
    let bad = write(
        &mut Drafter::new(summary.clone()),
        &mut experience,
        &strange,
        &policy,
        ROOM,
    );
    assert!(bad.1 < 20, "still drafts what is always rejected: {bad:?}");
    for _ in 0..5 {
        write(
            &mut Drafter::new(summary.clone()),
            &mut experience,
            &summary,
            &policy,
            ROOM,
        );
    }
    let good = write(
        &mut Drafter::new(summary.clone()),
        &mut experience,
        &summary,
        &policy,
        ROOM,
    );
    assert!(
        good.0 < 20,
        "does not draft what is always accepted: {good:?}"
    );
}

#[test]
fn past_the_knee_only_what_is_likely_is_drafted_and_only_where_drafts_were_accepted() {
    let experience = Experience::new();
    let summary = tokens("abcdefghijklmnopqrstuvwxyz");
    let past = Room {
        tokens: 32,
        cheap: 0,
    };
    let mut drafter = Drafter::new(summary.clone());
    let policy = Policy::default();
    let free = drafter.propose(&experience, &policy, &[], &[], ROOM).len();
    let careful = drafter.propose(&experience, &policy, &[], &[], past).len();
    assert!(0 < careful && careful < free, "{careful} {free}");
    // The knee may lie within the draft.
    let half = Room {
        tokens: 32,
        cheap: careful + 2,
    };
    let within = drafter.propose(&experience, &policy, &[], &[], half).len();
    assert_eq!(within, careful + 2);
    // Rejected again and again, this request is past the knee not drafted for, whatever others are.
    let mut other = Experience::new();
    for n in 0..20 {
        let answer = [1000 + n, summary[0]];
        drafter.propose(&other, &policy, &[], &answer, ROOM);
        drafter.learn(&mut other, &[2000 + n], &[2000 + n]);
    }
    assert!(drafter.acceptance < policy.acceptance_past_knee);
    assert_eq!(
        drafter.propose(&experience, &policy, &[], &[], past).len(),
        0
    );
    assert!(
        !drafter
            .propose(&experience, &policy, &[], &[], ROOM)
            .is_empty()
    );
}

#[test]
fn the_phrases_of_other_answers_are_proposed_where_neither_summary_nor_events_have_the_words() {
    let mut experience = Experience::new();
    let mut drafter = Drafter::new(Vec::new());
    let mut next = |experience: &Experience, answer: &str| {
        text(&drafter.propose(experience, &eager(), &[], &tokens(answer), ROOM))
    };
    for _ in 0..3 {
        experience.read(&tokens("Is of two minds."));
    }
    assert_eq!(next(&experience, "Is "), "of two minds.");
    assert_eq!(next(&experience, "xy"), "");
    // What follows more often replaces what followed before.
    for _ in 0..10 {
        experience.read(&tokens("Is on."));
    }
    assert_eq!(next(&experience, "Is "), "on.");
    // Any number of answers takes the same memory.
    for n in 0..1000u32 {
        experience.read(&(n * 100..n * 100 + 90).collect::<Vec<_>>());
    }
}

#[test]
fn a_summary_that_mostly_repeats_takes_few_steps() {
    let previous: Vec<u32> = (0..300).map(|i| 1 + i * 7919 % 1009).collect();
    // Every thirtieth token is another.
    let answer: Vec<u32> = previous
        .iter()
        .enumerate()
        .map(|(i, &token)| if i % 30 == 29 { 5000 + token } else { token })
        .collect();
    let mut experience = Experience::new();
    let (steps, proposed, accepted) = write(
        &mut Drafter::new(previous),
        &mut experience,
        &answer,
        &Policy::default(),
        ROOM,
    );
    assert!(steps <= 300 * 4 / 10 / 2, "{steps} steps");
    assert!(accepted * 10 >= proposed * 4, "{accepted} of {proposed}");
}

#[test]
fn no_draft_is_longer_than_there_is_room() {
    let mut drafter = Drafter::new((0..100).collect());
    let experience = Experience::new();
    for most in [0, 1, 5] {
        let room = Room {
            tokens: most,
            cheap: 32,
        };
        assert_eq!(
            drafter.propose(&experience, &eager(), &[], &[], room).len(),
            most
        );
        let policy = Policy { most, ..eager() };
        assert_eq!(
            drafter.propose(&experience, &policy, &[], &[], ROOM).len(),
            most
        );
    }
}
