//! Templates: an event's line, and the message around the lines.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::value::{Object, Value};
use minijinja::{Environment, context};
use serde::Serialize;

use super::Config;
use crate::codec::proto;

/// What a line's template may use: `user_id`, `id`, `time_ms`, `time` (RFC 3339), `action`, `item.id`, `item.title`,
/// `item.category`, `item.description`, `text`, `attributes.…`, `late`, `topic`, `partition`, `offset`.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// The event.
    pub interaction: &'a proto::Interaction,
    /// Event time in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Behind the watermark when read.
    pub late: bool,
    /// The input topic.
    pub topic: &'a str,
    /// The input partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

#[derive(Serialize)]
struct Fields<'a> {
    user_id: &'a str,
    id: &'a str,
    time_ms: i64,
    time: String,
    action: &'a str,
    item: Item<'a>,
    text: &'a str,
    attributes: &'a BTreeMap<String, String>,
    late: bool,
    topic: &'a str,
    partition: i32,
    offset: i64,
}

/// The same text under every name.
#[derive(Debug)]
struct Everywhere(&'static str);

impl Object for Everywhere {
    fn get_value(self: &Arc<Self>, _name: &Value) -> Option<Value> {
        Some(self.0.into())
    }
}

#[derive(Serialize, Default)]
struct Item<'a> {
    id: &'a str,
    title: &'a str,
    category: &'a str,
    description: &'a str,
}

/// A template that does not compile, or fails.
#[derive(Debug, thiserror::Error)]
#[error("template {key}: {reason}")]
pub struct TemplateError {
    /// The configuration's key.
    pub key: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

const EVENT: &str = "summary.event";
const MESSAGE: &str = "summary.message";

/// The compiled templates.
#[derive(Debug)]
pub struct Prompt {
    environment: Environment<'static>,
    empty_profile: String,
    wants_time: bool,
}

impl Prompt {
    /// Compiles the templates.
    ///
    /// # Errors
    /// [`TemplateError`] names the key and the place.
    pub fn new(config: &Config) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        for (key, source) in [(EVENT, &config.event), (MESSAGE, &config.message)] {
            environment
                .add_template_owned(key, source.clone())
                .map_err(failed(key))?;
        }
        let prompt = Self {
            environment,
            empty_profile: config.empty_profile.clone(),
            wants_time: config.event.contains("time"),
        };
        // Without the lines the model would be asked about nothing, without the profile it would begin anew each time.
        let probe = prompt.message("\u{1}profile", &["\u{1}line".to_owned()])?;
        for (wanted, name) in [("\u{1}profile", "profile"), ("\u{1}line", "events")] {
            if !probe.contains(wanted) {
                return Err(TemplateError {
                    key: MESSAGE,
                    reason: format!("does not use {{{{ {name} }}}}"),
                });
            }
        }
        Ok(prompt)
    }

    /// One event as one line: control characters and line breaks become spaces, so that no event can pass for two.
    ///
    /// # Errors
    /// [`TemplateError`] where the template fails.
    pub fn line(&self, line: &Line<'_>) -> Result<String, TemplateError> {
        let interaction = line.interaction;
        let item = interaction
            .item
            .as_ref()
            .map_or_else(Item::default, |i| Item {
                id: &i.id,
                title: &i.title,
                category: &i.category,
                description: &i.description,
            });
        let time = if self.wants_time {
            jiff::Timestamp::from_millisecond(line.time_ms)
                .map_or_else(|_| String::new(), |t| t.to_string())
        } else {
            String::new()
        };
        let fields = Fields {
            user_id: &interaction.user_id,
            id: &interaction.id,
            time_ms: line.time_ms,
            time,
            action: &interaction.action,
            item,
            text: &interaction.text,
            attributes: &interaction.attributes,
            late: line.late,
            topic: line.topic,
            partition: line.partition,
            offset: line.offset,
        };
        let rendered = self.render(EVENT, fields)?;
        Ok(one_line(rendered))
    }

    /// Tries the event template on a few made-up events: a number everywhere, a word everywhere, nothing anywhere.
    ///
    /// # Errors
    /// [`TemplateError`] where it fails on all of them: then it will on every event.
    pub fn probe(&self) -> Result<(), TemplateError> {
        let try_on = |text: &'static str| {
            let item =
                context! { id => text, title => text, category => text, description => text };
            let attributes = Value::from_object(Everywhere(text));
            let fields = context! {
                user_id => "user", id => text, time_ms => 1, time => "1970-01-01T00:00:00.001Z", action => text, item,
                text => text, attributes, late => false, topic => "topic", partition => 0, offset => 0,
            };
            self.render(EVENT, fields)
        };
        let last = try_on("1")
            .or_else(|_| try_on("word"))
            .or_else(|_| try_on(""));
        last.map(drop)
    }

    /// The message that asks for the new summary.
    ///
    /// # Errors
    /// [`TemplateError`] where the template fails.
    pub fn message(&self, profile: &str, lines: &[String]) -> Result<String, TemplateError> {
        let profile = if profile.is_empty() {
            &self.empty_profile
        } else {
            profile
        };
        let events = lines.join("\n");
        self.render(MESSAGE, context! { profile, events })
    }

    fn render(&self, key: &'static str, fields: impl Serialize) -> Result<String, TemplateError> {
        self.environment
            .get_template(key)
            .and_then(|template| template.render(fields))
            .map_err(failed(key))
    }
}

fn failed(key: &'static str) -> impl FnOnce(minijinja::Error) -> TemplateError {
    // The error's short form names kind and line; its long form would show the event's text.
    move |error| TemplateError {
        key,
        reason: match error.line() {
            Some(line) => format!("{} (line {line})", error.kind()),
            None => error.kind().to_string(),
        },
    }
}

fn one_line(text: String) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if text.contains(breaks) {
        text.replace(breaks, " ")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(event: &str, message: &str) -> Config {
        Config {
            instructions: String::new(),
            event: event.to_owned(),
            message: message.to_owned(),
            empty_profile: "Nothing is known yet.".to_owned(),
            max_tokens: 10,
            prompt_tokens: 100,
            max_events: 10,
            sampling: crate::engine::Sampling::Greedy,
            retries: 1,
            retry_sampling: crate::engine::Sampling::Greedy,
            backoff: std::time::Duration::from_millis(1),
            backoff_max: std::time::Duration::from_millis(2),
            answer_timeout: std::time::Duration::from_secs(60),
        }
    }

    const WHOLE: &str = "Profile so far: {{ profile }}\nSince then:\n{{ events }}";

    fn interaction(title: &str) -> proto::Interaction {
        proto::Interaction {
            action: "loved".to_owned(),
            item: Some(proto::Item {
                title: title.to_owned(),
                ..Default::default()
            }),
            attributes: [("year".to_owned(), "1996".to_owned())].into(),
            ..Default::default()
        }
    }

    fn line(interaction: &proto::Interaction) -> Line<'_> {
        Line {
            interaction,
            time_ms: 874_965_758_000,
            late: true,
            topic: "in",
            partition: 3,
            offset: 7,
        }
    }

    #[test]
    fn a_line_joins_what_its_template_names() {
        let template = "- {{ action }} {{ item.title }} ({{ attributes.year }}; {{ attributes.none }}) @{{ partition }}:{{ offset }} {{ time }}{% if late %} late{% endif %}";
        let prompt = Prompt::new(&config(template, WHOLE)).unwrap();
        let event = interaction("Fargo");
        assert_eq!(
            prompt.line(&line(&event)).unwrap(),
            "- loved Fargo (1996; ) @3:7 1997-09-22T22:02:38Z late"
        );
    }

    #[test]
    fn one_event_is_one_line_whatever_its_text_holds() {
        let prompt = Prompt::new(&config("- {{ item.title }}", WHOLE)).unwrap();
        let event = interaction("a\n- loved b\r\u{2028}\u{85}\u{1b}[2J{{ 7 }}");
        assert_eq!(
            prompt.line(&line(&event)).unwrap(),
            "- a - loved b    [2J{{ 7 }}"
        );
    }

    #[test]
    fn the_message_is_the_one_that_the_adapter_was_trained_on() {
        let prompt = Prompt::new(&config("x", WHOLE)).unwrap();
        let lines = ["- a".to_owned(), "- b".to_owned()];
        assert_eq!(
            prompt.message("", &lines).unwrap(),
            "Profile so far: Nothing is known yet.\nSince then:\n- a\n- b"
        );
        assert_eq!(
            prompt.message("Likes tea.", &lines[..1]).unwrap(),
            "Profile so far: Likes tea.\nSince then:\n- a"
        );
    }

    #[test]
    fn a_template_that_fails_on_every_event_is_told_from_one_that_fails_on_some() {
        let probe = |event: &str| Prompt::new(&config(event, WHOLE)).unwrap().probe();
        for some in [
            "- {{ attributes.price|int }}",
            "- {{ item.title or item.id }}{% if text %}: {{ text }}{% endif %} {{ time }} {{ late }}",
            "{% for word in attributes.tags|split(',') %}{{ word }}{% endfor %}",
            "x",
        ] {
            probe(some).unwrap();
        }
        let said = probe("- {{ attributes.a.b.c }}").unwrap_err().to_string();
        assert!(said.contains("summary.event"), "{said}");
        probe("- {{ action|nosuchfilter }}").unwrap_err();
    }

    #[test]
    fn a_wrong_template_is_named_by_its_key() {
        let broken = Prompt::new(&config("{{ action", WHOLE))
            .unwrap_err()
            .to_string();
        assert!(broken.contains("summary.event"), "{broken}");
        let deaf = Prompt::new(&config("x", "{{ profile }}"))
            .unwrap_err()
            .to_string();
        assert!(
            deaf.contains("summary.message") && deaf.contains("events"),
            "{deaf}"
        );
    }
}
