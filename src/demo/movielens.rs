//! The demo's events: real film ratings of people that the demo's adapter was not trained on.
//!
//! MovieLens-100k as the RecBole project packs it: `ml-100k.inter` holds the ratings, `ml-100k.item` the films. Title,
//! genres and verb are spelt as in the adapter's training.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::load::{self, column_names};

/// The people held out of the adapter's training, in the order of its `split()`: all 943 user ids in the order of their
/// numbers, shuffled by Python's `random.Random(7).shuffle`, the first hundred.
pub const HELD_OUT: [u16; 100] = [
    99, 789, 117, 508, 489, 90, 403, 773, 680, 304, 161, 11, 738, 713, 45, 91, 896, 447, 209, 417,
    909, 132, 642, 603, 433, 886, 865, 763, 42, 807, 645, 70, 526, 242, 189, 822, 611, 656, 248,
    419, 559, 305, 695, 428, 331, 418, 219, 567, 142, 759, 774, 560, 82, 299, 861, 194, 198, 212,
    328, 688, 381, 400, 384, 939, 391, 423, 228, 903, 291, 640, 907, 76, 637, 741, 296, 455, 32,
    25, 436, 794, 385, 709, 369, 919, 892, 510, 893, 858, 144, 278, 397, 917, 726, 754, 383, 86,
    692, 904, 108, 772,
];

/// What an event line says of a film without a genre.
const NO_GENRE: &str = "other";

/// One rating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who rated.
    pub user: u16,
    /// When, in seconds since the Unix epoch.
    pub time_s: i64,
    /// What the rating says: loved, liked, shrugged at, disliked, hated.
    pub action: &'static str,
    /// What was rated.
    pub film: Arc<Film>,
}

/// What is known of a film.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Film {
    /// Its id in the data.
    pub id: String,
    /// Its title, the article in front.
    pub title: String,
    /// The year it came out.
    pub year: String,
    /// Its genres, joined by commas.
    pub genres: String,
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there, or cannot be read.
    #[error("{}: {reason}; run scripts/fetch-model.sh", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// A file does not hold what it should.
    #[error("{}, line {line}: {reason}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was wrong.
        reason: String,
    },
}

/// Where the data lies unless told otherwise: `ml-100k` in `LIMN_CACHE`, or else in `~/.cache/limn`. `None` where there is
/// no home either.
#[must_use]
pub fn default_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("LIMN_CACHE")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/limn")))
        .map(|cache| cache.join("ml-100k"))
}

/// The first `events_per_user` events of each of the first `users` of [`HELD_OUT`] (all hundred, if more are asked for),
/// in the order of time. Those of one person stay in the order that the adapter's training had them in.
///
/// # Errors
/// [`Error`], which names the file.
pub fn read(folder: &Path, users: usize, events_per_user: usize) -> Result<Vec<Event>, Error> {
    let text = |name: &str| {
        let file = folder.join(name);
        let mut text = String::new();
        match File::open(&file).and_then(|mut opened| opened.read_to_string(&mut text)) {
            Ok(_) => Ok((file, text)),
            Err(error) => Err(Error::Unreadable {
                file,
                reason: error.to_string(),
            }),
        }
    };
    let (item, items) = text("ml-100k.item")?;
    let (inter, ratings) = text("ml-100k.inter")?;
    let films = films(&items).map_err(|fault| fault.of(item))?;
    events(
        &ratings,
        &films,
        &HELD_OUT[..users.min(HELD_OUT.len())],
        events_per_user,
    )
    .map_err(|fault| fault.of(inter))
}

impl Event {
    /// The event's own id: a person rates a film once.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}:{}", self.user, self.film.id)
    }

    /// The line that the adapter knows of such an event.
    #[must_use]
    pub fn line(&self) -> String {
        let Film {
            title,
            year,
            genres,
            ..
        } = &*self.film;
        format!("- {} {title} ({year}; {genres})", self.action)
    }

    /// The event as it goes to the input topic, a JSON object: `user_id`, `id`, `time` in seconds, `action`, `item_id`,
    /// `item_title`, `year`, `genres`.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let user = self.user.to_string();
        json!({
            "user_id": user,
            "id": self.id(),
            "time": self.time_s,
            "action": self.action,
            "item_id": self.film.id,
            "item_title": self.film.title,
            "year": self.film.year,
            "genres": self.film.genres,
        })
        .to_string()
        .into_bytes()
    }

    /// The event as a row to be loaded.
    #[must_use]
    pub fn row(&self) -> load::Row {
        load::Row {
            file: Arc::from("ml-100k.inter"),
            line: 0,
            user: self.user.to_string().into(),
            time_ms: Some(self.time_s.saturating_mul(1000)),
            value: self.value(),
        }
    }
}

/// What is wrong, and in which line.
struct Fault(usize, String);

impl Fault {
    fn of(self, file: PathBuf) -> Error {
        let Self(line, reason) = self;
        Error::Malformed { file, line, reason }
    }
}

/// The rows of a tab-separated text: the cells of the columns asked for, with the line's number.
fn columns<'a, const N: usize>(
    text: &'a str,
    wanted: [&str; N],
) -> Result<impl Iterator<Item = Result<(usize, [&'a str; N]), Fault>>, Fault> {
    let mut lines = text.lines().enumerate();
    let first = lines.next().map_or("", |(_, line)| line);
    let names = column_names(first.split('\t')).map_err(|reason| Fault(1, reason))?;
    let mut at = [0; N];
    for (at, wanted) in at.iter_mut().zip(wanted) {
        *at = names
            .iter()
            .position(|name| name == wanted)
            .ok_or_else(|| Fault(1, format!("no column {wanted}")))?;
    }
    Ok(lines.map(move |(n, line)| {
        let cells: Vec<&str> = line.split('\t').collect();
        let mut row = [""; N];
        for (cell, at) in row.iter_mut().zip(at) {
            *cell = cells
                .get(at)
                .ok_or_else(|| Fault(n + 1, format!("no column {}", at + 1)))?;
        }
        Ok((n + 1, row))
    }))
}

fn films(text: &str) -> Result<HashMap<&str, Arc<Film>>, Fault> {
    let mut films = HashMap::new();
    for row in columns(text, ["item_id", "movie_title", "release_year", "class"])? {
        let (_, [id, movie_title, year, class]) = row?;
        let film = Film {
            id: id.to_owned(),
            title: title(movie_title),
            year: year.to_owned(),
            genres: genres(class),
        };
        films.insert(id, Arc::new(film));
    }
    Ok(films)
}

fn events(
    text: &str,
    films: &HashMap<&str, Arc<Film>>,
    users: &[u16],
    events_per_user: usize,
) -> Result<Vec<Event>, Fault> {
    let mut of_user: HashMap<u16, Vec<Event>> = users.iter().map(|u| (*u, Vec::new())).collect();
    for row in columns(text, ["user_id", "item_id", "rating", "timestamp"])? {
        let (line, [user, item, rating, time]) = row?;
        let bad = |what: &str, cell: &str| Fault(line, format!("{what} {cell:?}"));
        let user: u16 = user.parse().map_err(|_| bad("user", user))?;
        let Some(events) = of_user.get_mut(&user) else {
            continue;
        };
        events.push(Event {
            user,
            time_s: time.parse().map_err(|_| bad("timestamp", time))?,
            action: verb(rating).ok_or_else(|| bad("rating", rating))?,
            film: films
                .get(item)
                .cloned()
                .ok_or_else(|| bad("unknown film", item))?,
        });
    }
    let mut merged = Vec::new();
    for user in users {
        let mut events = of_user.remove(user).unwrap_or_default();
        // By time, then by the film's id as a text: so the training had them.
        events.sort_by(|a, b| (a.time_s, &a.film.id).cmp(&(b.time_s, &b.film.id)));
        events.truncate(events_per_user);
        merged.append(&mut events);
    }
    merged.sort_by_key(|event| event.time_s);
    Ok(merged)
}

fn verb(rating: &str) -> Option<&'static str> {
    Some(match rating {
        "5" => "loved",
        "4" => "liked",
        "3" => "shrugged at",
        "2" => "disliked",
        "1" => "hated",
        _ => return None,
    })
}

/// "English Patient, The" is "The English Patient"; `;` separates titles in a profile, so none is left within one.
fn title(listed: &str) -> String {
    const ARTICLES: [&str; 11] = [
        "The", "A", "An", "La", "Le", "L'", "Il", "Das", "Der", "Die", "Les",
    ];
    let title = match listed.rsplit_once(", ") {
        Some((rest, article)) if ARTICLES.contains(&article) => format!("{article} {rest}"),
        _ => listed.to_owned(),
    };
    title.replace(';', ",")
}

fn genres(class: &str) -> String {
    let genres: Vec<String> = class
        .split_whitespace()
        .filter(|genre| *genre != "unknown")
        .map(|genre| match genre.to_lowercase().as_str() {
            "children's" => "family".to_owned(),
            "film-noir" => "noir".to_owned(),
            "sci-fi" => "science fiction".to_owned(),
            other => other.to_owned(),
        })
        .collect();
    if genres.is_empty() {
        NO_GENRE.to_owned()
    } else {
        genres.join(", ")
    }
}

#[cfg(test)]
mod tests;
