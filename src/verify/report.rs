//! What an account of the topics comes to.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// A way in which the topics can contradict the guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An event is folded into two versions, or into one of them twice.
    FoldedTwice,
    /// The input is said to be worked off, and an event is neither folded nor dead-lettered.
    NeverFolded,
    /// The group has committed an offset above an event that is neither folded nor dead-lettered: it is lost.
    CommittedAboveUnfolded,
    /// An event is folded, and stands among the dead letters too.
    FoldedAndDeadLettered,
    /// An event stands among the dead letters twice.
    DeadLetteredTwice,
    /// An event is folded into the profile of another user, or though nobody can tell whose it is.
    WrongUser,
    /// Of two events of a user, neither of them late, the one that was read later and happened no earlier is folded first.
    OutOfOrder,
    /// A user's versions are not 1, 2, 3 …: some are missing.
    VersionGap,
    /// A user's version comes again.
    VersionRepeated,
    /// A change event's `previous_version` is not the version before.
    PreviousVersion,
    /// A change event's `before` is not the `after` of the version before.
    Before,
    /// A state on the profiles topic is not what the change event of its version says, or the last is not the last change's.
    Profile,
    /// A state's fold marker leaves out what is folded, or has what is not.
    Marker,
    /// What was decided of an event (accepted, late, rejected) is otherwise after a restart.
    Fate,
    /// A change event or a dead letter names a record that the input does not have.
    NotInInput,
    /// A dead letter is not the record that it names.
    DeadLetter,
    /// A summary of the scripted engine does not list what its change events folded.
    Summary,
    /// A group's committed offset is above its last checkpoint's, though both are written at once.
    Checkpoint,
    /// A record stands in the wrong partition, or under the wrong key.
    Misplaced,
    /// A record of limn's own topics cannot be read.
    Unreadable,
}

impl Kind {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FoldedTwice => "folded_twice",
            Self::NeverFolded => "never_folded",
            Self::CommittedAboveUnfolded => "committed_above_unfolded",
            Self::FoldedAndDeadLettered => "folded_and_dead_lettered",
            Self::DeadLetteredTwice => "dead_lettered_twice",
            Self::WrongUser => "wrong_user",
            Self::OutOfOrder => "out_of_order",
            Self::VersionGap => "version_gap",
            Self::VersionRepeated => "version_repeated",
            Self::PreviousVersion => "previous_version_differs",
            Self::Before => "before_differs",
            Self::Profile => "profile_differs",
            Self::Marker => "marker_differs",
            Self::Fate => "fate_changed",
            Self::NotInInput => "not_in_input",
            Self::DeadLetter => "dead_letter_differs",
            Self::Summary => "summary_differs",
            Self::Checkpoint => "checkpoint_differs",
            Self::Misplaced => "misplaced",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How many places of one kind are told.
const TOLD: usize = 10;

/// What was found of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// How often.
    pub count: u64,
    /// Where, for the first of them. It may have user ids in it, which are hostile text.
    pub places: Vec<String>,
}

/// What was read, and what of it contradicts the guarantees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Records of the input.
    pub events: u64,
    /// Of these: folded.
    pub folded: u64,
    /// Of these: dead-lettered.
    pub dead_lettered: u64,
    /// Of these: neither yet, at or above the committed offset.
    pub waiting: u64,
    /// Of these: not to be told any more, because the record that would (a change event, a dead letter) is past its
    /// retention, or because the group may have begun behind them (`source.start = "latest"`).
    pub untold: u64,
    /// Change events.
    pub changes: u64,
    /// Users with a change event or a profile.
    pub users: u64,
    /// Records of the profiles topic.
    pub profiles: u64,
    /// Records of the checkpoints topic.
    pub checkpoints: u64,
    /// Users that were erased by a tombstone.
    pub erased: u64,
    /// Folded and dead-lettered events of other inputs, which are not looked at.
    pub foreign: u64,
    /// What is wrong.
    pub findings: BTreeMap<Kind, Found>,
}

impl Report {
    /// Whether nothing contradicts the guarantees.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn find(&mut self, kind: Kind, place: impl FnOnce() -> String) {
        let found = self.findings.entry(kind).or_default();
        found.count += 1;
        if found.places.len() < TOLD {
            found.places.push(place());
        }
    }
}
