//! Whether a summary is in the form that the demo's adapter was trained to write.
//!
//! The form, as the adapter's teacher renders it: the sentences "Loves …", "Likes …", "Is of two minds about …",
//! "Dislikes …" over genres and "Favourites: …", "Let down by: …" over titles, in this order, each at most once. Each
//! sentence is looked for only where it may begin, so a title such as "When a Man Loves a Woman" is no sentence.

use std::collections::HashSet;

/// The genres that the demo's films have, as its events spell them.
pub const GENRES: [&str; 18] = [
    "action",
    "adventure",
    "animation",
    "comedy",
    "crime",
    "documentary",
    "drama",
    "family",
    "fantasy",
    "horror",
    "musical",
    "mystery",
    "noir",
    "romance",
    "science fiction",
    "thriller",
    "war",
    "western",
];

/// How a sentence over genres begins, and how many it may name.
const LEVELS: [(&str, usize); 4] = [
    ("Loves ", 4),
    ("Likes ", 5),
    ("Is of two minds about ", 3),
    ("Dislikes ", 4),
];
const FAVOURITES: (&str, usize) = ("Favourites: ", 3);
const LET_DOWN: (&str, usize) = ("Let down by: ", 2);

/// A profile taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Genres: loved, liked, neither, disliked.
    pub genres: [Vec<&'a str>; 4],
    /// Titles praised, the latest first.
    pub favourites: Vec<&'a str>,
    /// Titles that disappointed, the latest first.
    pub let_down: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    /// Takes a summary apart; `None` where it is not made of the sentences alone.
    #[must_use]
    pub fn parse(summary: &'a str) -> Option<Self> {
        let mut parts = Self::default();
        let mut rest = summary;
        for ((begin, _), genres) in LEVELS.iter().zip(&mut parts.genres) {
            let Some(sentence) = rest.strip_prefix(begin) else {
                continue;
            };
            let (list, after) = sentence.split_once('.')?;
            *genres = list.split(", ").flat_map(|g| g.split(" and ")).collect();
            rest = next_sentence(after)?;
        }
        if let Some(sentence) = rest.strip_prefix(FAVOURITES.0) {
            // A title may hold full stops: the sentence ends where the next begins, or at the end of all.
            let end = format!(". {}", LET_DOWN.0);
            let (titles, after) = match sentence.find(&end) {
                Some(at) => (&sentence[..at], &sentence[at + 2..]),
                None => (sentence.strip_suffix('.')?, ""),
            };
            parts.favourites = titles.split("; ").collect();
            rest = after;
        }
        if let Some(sentence) = rest.strip_prefix(LET_DOWN.0) {
            parts.let_down = sentence.strip_suffix('.')?.split("; ").collect();
            rest = "";
        }
        rest.is_empty().then_some(parts)
    }

    /// The summary of these parts.
    #[must_use]
    pub fn render(&self) -> String {
        let mut sentences = Vec::new();
        for ((begin, _), genres) in LEVELS.iter().zip(&self.genres) {
            if let Some((last, others)) = genres.split_last() {
                let and = if others.is_empty() { "" } else { " and " };
                sentences.push(format!("{begin}{}{and}{last}.", others.join(", ")));
            }
        }
        for ((begin, _), titles) in [(FAVOURITES, &self.favourites), (LET_DOWN, &self.let_down)] {
            if !titles.is_empty() {
                sentences.push(format!("{begin}{}.", titles.join("; ")));
            }
        }
        sentences.join(" ")
    }

    fn within_bounds(&self) -> bool {
        let genres: Vec<&str> = self.genres.iter().flatten().copied().collect();
        let known = genres.iter().all(|g| GENRES.contains(g));
        let capped = LEVELS
            .iter()
            .zip(&self.genres)
            .all(|((_, most), genres)| genres.len() <= *most);
        let titles_fit = [(FAVOURITES, &self.favourites), (LET_DOWN, &self.let_down)]
            .iter()
            .all(|((_, most), titles)| titles.len() <= *most && distinct(titles));
        let titles = self.favourites.iter().chain(&self.let_down);
        let plain = titles
            .clone()
            .all(|t| !t.trim().is_empty() && !t.contains(char::is_control));
        known && capped && titles_fit && plain && distinct(&genres)
    }
}

/// The text behind a sentence's full stop: nothing, or a space and the next sentence.
fn next_sentence(after: &str) -> Option<&str> {
    if after.is_empty() {
        return Some("");
    }
    after.strip_prefix(' ').filter(|next| !next.is_empty())
}

fn distinct(texts: &[&str]) -> bool {
    texts.iter().collect::<HashSet<_>>().len() == texts.len()
}

/// Whether a summary is in the adapter's form: at least one sentence, known genres, each once, and no list too long.
#[must_use]
pub fn in_form(summary: &str) -> bool {
    !summary.is_empty()
        && Parts::parse(summary)
            .is_some_and(|parts| parts.within_bounds() && parts.render() == summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the adapter's teacher writes them for real events.
    const TEACHER: [&str; 10] = [
        "Likes comedy, action, adventure, romance and drama. Is of two minds about science fiction, war and thriller. Favourites: The Empire Strikes Back. Let down by: Independence Day (ID4).",
        "Loves comedy, adventure and drama. Likes action, romance, war, family and musical. Is of two minds about science fiction and thriller. Favourites: The Wizard of Oz; One Flew Over the Cuckoo's Nest; The Empire Strikes Back. Let down by: Independence Day (ID4).",
        "Is of two minds about adventure, action and war.",
        "Likes action and drama. Is of two minds about crime, war and science fiction. Dislikes thriller, comedy, mystery and adventure. Favourites: Contact; Titanic. Let down by: Midnight in the Garden of Good and Evil; Spawn.",
        "Loves action and drama. Likes crime, adventure, romance, science fiction and war. Is of two minds about horror and thriller. Favourites: Star Wars; The Godfather.",
        "Loves romance, science fiction, comedy and drama. Favourites: Toy Story; Mighty Aphrodite; Mystery Science Theater 3000: The Movie.",
        "Likes comedy. Is of two minds about musical, adventure and family. Dislikes romance, action, mystery and thriller. Let down by: Conspiracy Theory.",
        "Likes action, drama, romance, comedy and western. Is of two minds about adventure, horror and mystery. Dislikes thriller, family and science fiction. Favourites: When a Man Loves a Woman. Let down by: Escape from L.A.; Jade.",
        "Likes thriller, comedy, romance, noir and mystery. Is of two minds about crime, action and adventure. Dislikes science fiction. Favourites: L.A. Confidential; The Love Bug; When a Man Loves a Woman. Let down by: Star Trek V: The Final Frontier; Naked in New York.",
        "Loves comedy. Favourites: When Harry Met Sally.... Let down by: S.F.W..",
    ];

    #[test]
    fn what_the_teacher_writes_is_in_form_and_survives_being_taken_apart() {
        for text in TEACHER {
            let parts = Parts::parse(text).expect(text);
            assert_eq!(parts.render(), text);
            assert!(in_form(text), "{text}");
        }
    }

    #[test]
    fn the_parts_are_told_apart() {
        let parts = Parts::parse(TEACHER[8]).unwrap();
        assert_eq!(
            parts.genres,
            [
                vec![],
                vec!["thriller", "comedy", "romance", "noir", "mystery"],
                vec!["crime", "action", "adventure"],
                vec!["science fiction"],
            ]
        );
        let favourites = [
            "L.A. Confidential",
            "The Love Bug",
            "When a Man Loves a Woman",
        ];
        assert_eq!(parts.favourites, favourites);
        let let_down = ["Star Trek V: The Final Frontier", "Naked in New York"];
        assert_eq!(parts.let_down, let_down);
    }

    #[test]
    fn what_is_not_the_form_is_refused() {
        for text in [
            "",
            "Nothing is known yet.",
            // Another order, twice the same sentence, something before, between or behind.
            "Likes drama. Loves comedy.",
            "Loves comedy. Loves drama.",
            "Profile: Loves comedy.",
            "Loves comedy. The person enjoys films. Likes drama.",
            "Loves comedy. ",
            "Loves comedy.Likes drama.",
            "Loves comedy.\nLikes drama.",
            // Repetition.
            "Loves comedy, drama and comedy.",
            "Loves comedy. Dislikes comedy.",
            "Loves comedy. Favourites: Fargo; Fargo.",
            // An invented genre, a misspelt list.
            "Loves comedy and heist.",
            "Loves Comedy.",
            "Loves comedy, drama.",
            "Loves comedy and drama and war.",
            "Loves .",
            // Too long a list.
            "Loves comedy, drama, war, crime and action.",
            "Likes comedy, drama, war, crime, horror and action.",
            "Is of two minds about comedy, drama, war and crime.",
            "Dislikes comedy, drama, war, crime and action.",
            "Loves war. Favourites: A; B; C; D.",
            "Loves war. Let down by: A; B; C.",
            // Cut off.
            "Loves comedy, dra",
            "Loves comedy. Favourites: The God",
            "Loves comedy. Favourites: Fargo. Let down by: Spa",
            "Loves comedy. Favourites: .",
            "Loves comedy. Favourites: Fargo; .",
            "Loves comedy. Favourites: Far\u{1b}[31mgo.",
        ] {
            assert!(!in_form(text), "{text:?}");
        }
    }
}
