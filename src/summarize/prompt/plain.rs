//! A template that only puts fields between texts, as most do: it is written without the template engine, several
//! times as fast, and gives what that gives.

use std::fmt::Write as _;

use super::Line;

/// The template's parts in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plain<F>(Vec<Part<F>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part<F> {
    Text(String),
    Field(F),
}

/// What a template may ask for by a name.
pub(super) trait Named: Sized {
    fn of(name: &str) -> Option<Self>;
}

/// What an event's line may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    UserId,
    Id,
    TimeMs,
    Action,
    ItemId,
    ItemTitle,
    ItemCategory,
    ItemDescription,
    Text,
    Topic,
    Partition,
    Offset,
    Attribute(String),
}

/// What the message around the lines may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    Profile,
    Events,
}

impl Named for Asked {
    fn of(name: &str) -> Option<Self> {
        match name {
            "profile" => Some(Self::Profile),
            "events" => Some(Self::Events),
            _ => None,
        }
    }
}

impl Named for Field {
    fn of(name: &str) -> Option<Self> {
        if let Some(attribute) = name.strip_prefix("attributes.") {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let plain =
                attribute.chars().all(word) && !attribute.starts_with(|c: char| c.is_ascii_digit());
            return (plain && !attribute.is_empty()).then(|| Self::Attribute(attribute.to_owned()));
        }
        Some(match name {
            "user_id" => Self::UserId,
            "id" => Self::Id,
            "time_ms" => Self::TimeMs,
            "action" => Self::Action,
            "item.id" => Self::ItemId,
            "item.title" => Self::ItemTitle,
            "item.category" => Self::ItemCategory,
            "item.description" => Self::ItemDescription,
            "text" => Self::Text,
            "topic" => Self::Topic,
            "partition" => Self::Partition,
            "offset" => Self::Offset,
            _ => return None,
        })
    }
}

impl<F: Named> Plain<F> {
    /// `None` where the template asks for anything but fields.
    pub(super) fn parse(template: &str) -> Option<Self> {
        // The engine takes a last line break away.
        if template.ends_with('\n') || template.contains('\r') {
            return None;
        }
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            match rest.as_bytes().first() {
                Some(b'%' | b'#') => return None,
                Some(b'{') => {
                    let (name, behind) = rest[1..].split_once("}}")?;
                    let field = F::of(name.trim_matches([' ', '\t', '\n']))?;
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(Part::Field(field));
                    rest = behind;
                }
                _ => text.push('{'),
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Some(Self(parts))
    }
}

impl Plain<Asked> {
    /// The message with this profile and these lines of events.
    pub(super) fn message(&self, profile: &str, lines: &[String]) -> String {
        let inside = profile.len() + lines.iter().map(|line| line.len() + 1).sum::<usize>();
        let mut out = String::with_capacity(inside + 64);
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(Asked::Profile) => out.push_str(profile),
                Part::Field(Asked::Events) => {
                    for (at, line) in lines.iter().enumerate() {
                        if at > 0 {
                            out.push('\n');
                        }
                        out.push_str(line);
                    }
                }
            }
        }
        out
    }
}

impl Plain<Field> {
    /// An event's line.
    pub(super) fn line(&self, line: &Line) -> String {
        let (event, item) = (&line.interaction, line.interaction.item.as_ref());
        let mut out = String::with_capacity(64);
        for part in &self.0 {
            let text = match part {
                Part::Text(text) => text,
                Part::Field(field) => match field {
                    Field::UserId => &event.user_id,
                    Field::Id => &event.id,
                    Field::Action => &event.action,
                    Field::ItemId => item.map_or("", |i| &i.id),
                    Field::ItemTitle => item.map_or("", |i| &i.title),
                    Field::ItemCategory => item.map_or("", |i| &i.category),
                    Field::ItemDescription => item.map_or("", |i| &i.description),
                    Field::Text => &event.text,
                    Field::Topic => &line.topic,
                    Field::Attribute(name) => event.attributes.get(name).map_or("", |value| value),
                    // Writing to a string does not fail.
                    Field::TimeMs => {
                        let _ = write!(out, "{}", line.time_ms);
                        continue;
                    }
                    Field::Partition => {
                        let _ = write!(out, "{}", line.partition);
                        continue;
                    }
                    Field::Offset => {
                        let _ = write!(out, "{}", line.offset);
                        continue;
                    }
                },
            };
            out.push_str(text);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use minijinja::value::Value;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::proto;

    fn templates() -> impl Strategy<Value = String> {
        let field = prop::sample::select(vec![
            "user_id",
            "id",
            "time_ms",
            "action",
            "item.id",
            "item.title",
            "item.category",
            "item.description",
            "text",
            "topic",
            "partition",
            "offset",
            "attributes.a",
            "attributes.none",
            "attributes.items",
        ]);
        let field =
            (field, " {0,2}", "[ \n]{0,1}").prop_map(|(f, a, b)| format!("{{{{{a}{f}{b}}}}}"));
        let piece = prop_oneof![
            field,
            "[a-z }\n{é-]{0,6}",
            Just("{%".to_owned()),
            Just("{#".to_owned())
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    fn lines() -> impl Strategy<Value = Line> {
        let text = || ".{0,12}";
        let item = prop::option::of((text(), text(), text(), text()));
        let attributes = prop::collection::btree_map("a|items|b", text(), 0..3);
        let numbers = (any::<i64>(), any::<i32>(), any::<i64>());
        (text(), text(), text(), text(), item, attributes, numbers).prop_map(
            |(user_id, id, action, text, item, attributes, (time_ms, partition, offset))| Line {
                interaction: proto::Interaction {
                    user_id,
                    id,
                    time_ms,
                    action,
                    item: item.map(|(id, title, category, description)| proto::Item {
                        id,
                        title,
                        category,
                        description,
                    }),
                    text,
                    attributes,
                },
                time_ms,
                late: false,
                topic: "topic".into(),
                partition,
                offset,
            },
        )
    }

    proptest! {
        #[test]
        fn a_plain_template_gives_what_the_engine_gives(template in templates(), line in lines()) {
            if let Some(plain) = Plain::<Field>::parse(&template) {
                let environment = Environment::new();
                let expected = environment.render_str(&template, Value::from_object(line.clone()));
                prop_assert_eq!(Some(plain.line(&line)), expected.ok());
            }
        }

        #[test]
        fn a_plain_message_is_what_the_engine_makes_of_it(
            pieces in prop::collection::vec("[a-z }\n{é-]{0,6}|\\{\\{ ?profile\n?\\}\\}|\\{\\{events \\}\\}|\\{%|\\{#", 0..6),
            profile in ".{0,12}",
            lines in prop::collection::vec(".{0,12}", 0..4),
        ) {
            let template = pieces.concat();
            if let Some(plain) = Plain::<Asked>::parse(&template) {
                let events = lines.join("\n");
                let fields = minijinja::context! { profile => profile.clone(), events };
                let expected = Environment::new().render_str(&template, fields);
                prop_assert_eq!(Some(plain.message(&profile, &lines)), expected.ok());
            }
        }
    }

    #[test]
    fn what_asks_for_more_than_fields_is_left_to_the_engine() {
        for template in [
            "{{ item.title or item.id }}",
            "{% if text %}x{% endif %}",
            "{# no #}",
            "{{- text }}",
            "{{ text -}}",
            "{{ text|upper }}",
            "{{ 'x' }}",
            "{{ time }}",
            "{{ late }}",
            "{{ item.price }}",
            "{{ attributes.a.b }}",
            "{{ attributes['a'] }}",
            "{{ attributes }}",
            "{{ text",
            "x\n",
            "a\r\nb",
            "{{ attributes. a }}",
            "{{ }}",
        ] {
            assert_eq!(Plain::<Field>::parse(template), None, "{template}");
        }
        for template in [
            "{{ profile|upper }}",
            "{{ text }}",
            "{% if profile %}x{% endif %}",
        ] {
            assert_eq!(Plain::<Asked>::parse(template), None, "{template}");
        }
        assert!(Plain::<Asked>::parse("{{ profile }}\n{{ events }}").is_some());
        for template in [
            "",
            "x",
            "{ x }} {",
            "- {{ action }} {{item.title}} ({{ attributes.year }})",
        ] {
            assert!(Plain::<Field>::parse(template).is_some(), "{template}");
        }
    }
}
