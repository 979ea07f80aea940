//! What is read of a record, before it is known whether it is kept: texts are borrowed from the record where they can be.

use std::borrow::Cow;

use super::proto;

/// A name and its value.
pub(super) type Attribute<'a> = (Cow<'a, str>, Cow<'a, str>);

/// An interaction, field by field as [`proto::Interaction`] has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Read<'a> {
    pub(super) user_id: Cow<'a, str>,
    pub(super) id: Cow<'a, str>,
    pub(super) time_ms: i64,
    pub(super) action: Cow<'a, str>,
    pub(super) item: Item<'a>,
    pub(super) text: Cow<'a, str>,
    /// By name, each name once.
    pub(super) attributes: Vec<Attribute<'a>>,
}

/// An item; one without any text is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Item<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) title: Cow<'a, str>,
    pub(super) category: Cow<'a, str>,
    pub(super) description: Cow<'a, str>,
}

impl Read<'_> {
    /// Every text that has a limit, with what a rejection calls it.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let item = &self.item;
        let attributes = self.attributes.iter().flat_map(|(name, value)| {
            [
                ("an attribute's name", &**name),
                ("an attribute's value", &**value),
            ]
        });
        [
            ("id", &*self.id),
            ("action", &*self.action),
            ("text", &*self.text),
            ("item.id", &*item.id),
            ("item.title", &*item.title),
            ("item.category", &*item.category),
            ("item.description", &*item.description),
        ]
        .into_iter()
        .chain(attributes)
    }
}

impl From<proto::Interaction> for Read<'static> {
    fn from(read: proto::Interaction) -> Self {
        let item = read.item.unwrap_or_default();
        let attributes = read.attributes.into_iter();
        Self {
            user_id: read.user_id.into(),
            id: read.id.into(),
            time_ms: read.time_ms,
            action: read.action.into(),
            item: Item {
                id: item.id.into(),
                title: item.title.into(),
                category: item.category.into(),
                description: item.description.into(),
            },
            text: read.text.into(),
            attributes: attributes.map(|(n, v)| (n.into(), v.into())).collect(),
        }
    }
}

impl From<Read<'_>> for proto::Interaction {
    fn from(read: Read<'_>) -> Self {
        let item = proto::Item {
            id: read.item.id.into_owned(),
            title: read.item.title.into_owned(),
            category: read.item.category.into_owned(),
            description: read.item.description.into_owned(),
        };
        let attributes = read.attributes.into_iter();
        Self {
            user_id: read.user_id.into_owned(),
            id: read.id.into_owned(),
            time_ms: read.time_ms,
            action: read.action.into_owned(),
            item: (item != proto::Item::default()).then_some(item),
            text: read.text.into_owned(),
            attributes: attributes
                .map(|(n, v)| (n.into_owned(), v.into_owned()))
                .collect(),
        }
    }
}
