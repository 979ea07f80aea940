use super::*;
use crate::codec::proto::{Usage, Window};
use std::sync::{Arc, Mutex};

fn change(edits: &[(Kind, &str)]) -> ProfileChange {
    let of = |not: Kind| {
        edits
            .iter()
            .filter(|(kind, _)| *kind != not)
            .map(|(_, text)| *text)
            .collect::<String>()
    };
    ProfileChange {
        format: 1,
        user_id: "405".to_owned(),
        version: 3,
        previous_version: 2,
        before: of(Kind::Added),
        after: of(Kind::Removed),
        edits: edits
            .iter()
            .map(|(kind, text)| Edit {
                kind: (*kind).into(),
                text: (*text).to_owned(),
            })
            .collect(),
        window: Some(Window {
            events: 6,
            late_events: 1,
            ..Window::default()
        }),
        ..ProfileChange::default()
    }
}

fn usual() -> ProfileChange {
    change(&[
        (Kind::Kept, "Loves "),
        (Kind::Removed, "drama"),
        (Kind::Added, "comedy"),
        (Kind::Kept, " and war"),
        (Kind::Added, ". Favourites: Fargo"),
        (Kind::Kept, "."),
        (Kind::Removed, " Dislikes noir."),
    ])
}

fn hostile() -> ProfileChange {
    let mut change = change(&[
        (Kind::Kept, "Loves \u{1b}]0;title\u{7}"),
        (Kind::Added, "\u{202e}war\u{9b}2J\r\n"),
        (Kind::Removed, "\u{7f}drama\u{2028}"),
    ]);
    change.user_id = "ann\u{1b}[31m\n".to_owned();
    change
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn shown(mode: Mode, color: bool, change: &ProfileChange) -> String {
    let out = Log::default();
    let mut show = Show::with(mode, out.clone(), Box::new(io::sink()));
    show.color = color;
    show.change(change).unwrap();
    out.text()
}

#[test]
fn in_a_pipe_a_change_is_plain_and_shows_where_its_parts_begin_and_end() {
    assert_eq!(
        shown(Mode::Human, false, &usual()),
        "user 405  version 3  (6 events, 1 late)\n    Loves [-drama-] {+comedy+} and war{+. Favourites: Fargo+}. [-Dislikes noir.-]\n"
    );
}

#[test]
fn on_a_terminal_what_was_taken_away_is_red_and_what_was_added_is_green() {
    let text = shown(Mode::Human, true, &usual());
    for part in [
        "\u{1b}[31m-drama\u{1b}[0m",
        "\u{1b}[32m+comedy\u{1b}[0m",
        "\u{1b}[32m+. Favourites: Fargo\u{1b}[0m",
        "\u{1b}[31m-Dislikes noir.\u{1b}[0m",
        "\u{1b}[1muser 405\u{1b}[0m",
    ] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    assert_eq!(
        console::strip_ansi_codes(&text),
        "user 405  version 3  (6 events, 1 late)\n    Loves -drama +comedy and war+. Favourites: Fargo. -Dislikes noir.\n"
    );
}

#[test]
fn hostile_text_never_reaches_the_terminal_as_it_is() {
    let plain = shown(Mode::Human, false, &hostile());
    assert_eq!(
        plain,
        "user ann␛[31m   version 3  (6 events, 1 late)\n    Loves ␛]0;title␇{+\u{fffd}war\u{fffd}2J+} [-␡drama-]\n"
    );
    // With colours, the only escapes are the ones that this room writes.
    let colored = shown(Mode::Human, true, &hostile());
    let mut rest = colored.clone();
    for own in ["0", "1", "2", "31", "32"] {
        rest = rest.replace(&format!("\u{1b}[{own}m"), "");
    }
    let acts = |c: char| c != '\n' && c.is_control();
    assert!(
        !rest.contains(acts) && !rest.contains('\u{202e}'),
        "{rest:?}"
    );
}

#[test]
fn long_profiles_are_wrapped_to_the_width() {
    let out = Log::default();
    let mut show = Show::with(Mode::Human, out.clone(), Box::new(io::sink()));
    show.width = Some(40);
    show.change(&usual()).unwrap();
    let text = out.text();
    assert!(text.lines().count() > 3, "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 40), "{text}");
}

#[test]
fn a_change_without_edits_shows_both_texts_and_one_without_a_change_says_so() {
    let mut whole = usual();
    whole.edits.clear();
    whole.before = String::new();
    whole.after = "Loves war.".to_owned();
    whole.window = None;
    whole.usage = Some(Usage {
        journal: true,
        ..Usage::default()
    });
    let expected = "user 405  version 3  (from the journal)\n    {+Loves war.+}\n";
    assert_eq!(shown(Mode::Human, false, &whole), expected);
    whole.before = whole.after.clone();
    assert!(shown(Mode::Human, false, &whole).ends_with("    (unchanged)\n"));
}

#[test]
fn as_json_each_change_is_one_line_that_reads_back_and_nothing_else_is_on_the_output() {
    let (out, log) = (Log::default(), Log::default());
    let mut show = Show::with(Mode::Json, out.clone(), Box::new(log.clone()));
    let changes = [usual(), hostile()];
    for change in &changes {
        show.change(change).unwrap();
        show.progress(&Progress::default()).unwrap();
    }
    show.summary(&Summary::default()).unwrap();
    let text = out.text();
    let read: Vec<ProfileChange> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read, changes);
    assert!(!text.contains(|c: char| c != '\n' && c.is_control()));
    assert!(log.text().contains("What to try next"));
}

#[test]
fn in_a_pipe_progress_is_a_line_every_few_seconds() {
    let log = Log::default();
    let mut show = Show::with(Mode::Human, io::sink(), Box::new(log.clone()));
    let progress = Progress {
        events_read: 1200,
        events_total: Some(2400),
        windows_closed: 180,
        updates_done: 95,
        updates_waiting: 12,
        updates_per_second: 1.5,
        time_left: Some(Duration::from_secs(125)),
    };
    for _ in 0..3 {
        show.progress(&progress).unwrap();
    }
    let line =
        "1200/2400 events read, 180 windows closed, 95 updates (12 waiting), 1.50/s, 2m 5s left\n";
    assert_eq!(log.text(), line);
    show.line_due = Instant::now();
    show.progress(&Progress::default()).unwrap();
    let next = "0 events read, 0 windows closed, 0 updates (0 waiting), 0.00/s\n";
    assert_eq!(log.text(), [line, next].concat());
}

#[test]
fn the_bar_counts_updates_and_those_that_the_unread_events_will_make() {
    let share = |events_read, events_total, updates_done, updates_waiting| {
        Progress {
            events_read,
            events_total,
            updates_done,
            updates_waiting,
            ..Progress::default()
        }
        .share()
    };
    assert_eq!(share(0, Some(100), 0, 0), 0);
    assert_eq!(share(50, Some(100), 5, 5), 250);
    assert_eq!(share(100, Some(100), 10, 0), 1000);
    assert_eq!(share(100, None, 5, 15), 250);
    // More read than there should be.
    assert_eq!(share(200, Some(100), 10, 0), 1000);
}

#[test]
fn with_a_bar_changes_go_to_the_output_all_the_same() {
    let out = Log::default();
    let mut show = Show::with(Mode::Human, out.clone(), Box::new(io::sink()));
    show.bar = Some(bar());
    if let Some(bar) = &show.bar {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    show.progress(&Progress::default()).unwrap();
    show.change(&usual()).unwrap();
    show.summary(&Summary::default()).unwrap();
    let text = out.text();
    assert!(
        text.starts_with("user 405") && text.ends_with("README\n"),
        "{text}"
    );
    assert!(show.bar.is_none());
}
