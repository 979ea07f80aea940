//! Templates: an event's line, and the message around the lines.

mod plain;

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, Value};
use minijinja::{Environment, context};
use serde::Serialize;

use super::Config;
use crate::codec::proto;
use plain::{Asked, Field, Plain};

/// What a line's template may use: `user_id`, `id`, `time_ms`, `time` (RFC 3339), `action`, `item.id`, `item.title`,
/// `item.category`, `item.description`, `text`, `attributes.…`, `late`, `topic`, `partition`, `offset`.
#[derive(Debug, Clone)]
pub struct Line {
    /// The event; nothing of it is asked for where [`Prompt::reads_events`] is false.
    pub interaction: proto::Interaction,
    /// Event time in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Behind the watermark when read.
    pub late: bool,
    /// The input topic.
    pub topic: Arc<str>,
    /// The input partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

/// Names that a line's template may use besides those of the event itself.
const PLACE: [&str; 6] = ["time_ms", "time", "late", "topic", "partition", "offset"];

/// Fields are made only when the template asks for them.
impl Object for Line {
    fn get_value(self: &Arc<Self>, name: &Value) -> Option<Value> {
        let event = &self.interaction;
        Some(match name.as_str()? {
            "user_id" => (&*event.user_id).into(),
            "id" => (&*event.id).into(),
            "time_ms" => self.time_ms.into(),
            "time" => jiff::Timestamp::from_millisecond(self.time_ms)
                .map_or_else(|_| String::new(), |t| t.to_string())
                .into(),
            "action" => (&*event.action).into(),
            "item" => Value::from_object(Item(Arc::clone(self))),
            "text" => (&*event.text).into(),
            "attributes" => Value::from_object(Attributes(Arc::clone(self))),
            "late" => self.late.into(),
            "topic" => (&*self.topic).into(),
            "partition" => self.partition.into(),
            "offset" => self.offset.into(),
            _ => return None,
        })
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&[
            "user_id",
            "id",
            "time_ms",
            "time",
            "action",
            "item",
            "text",
            "attributes",
            "late",
            "topic",
            "partition",
            "offset",
        ])
    }
}

/// A line's item; without one, its texts are empty.
#[derive(Debug)]
struct Item(Arc<Line>);

impl Object for Item {
    fn get_value(self: &Arc<Self>, name: &Value) -> Option<Value> {
        let item = self.0.interaction.item.as_ref();
        let text = match name.as_str()? {
            "id" => item.map(|i| &i.id),
            "title" => item.map(|i| &i.title),
            "category" => item.map(|i| &i.category),
            "description" => item.map(|i| &i.description),
            _ => return None,
        };
        Some(text.map_or("", |text| text).into())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["category", "description", "id", "title"])
    }
}

/// A line's attributes by name.
#[derive(Debug)]
struct Attributes(Arc<Line>);

impl Object for Attributes {
    fn get_value(self: &Arc<Self>, name: &Value) -> Option<Value> {
        let value = self.0.interaction.attributes.get(name.as_str()?)?;
        Some((&**value).into())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names = self.0.interaction.attributes.keys();
        Enumerator::Values(names.map(|name| (&**name).into()).collect())
    }
}

/// The same text under every name.
#[derive(Debug)]
struct Everywhere(&'static str);

impl Object for Everywhere {
    fn get_value(self: &Arc<Self>, _name: &Value) -> Option<Value> {
        Some(self.0.into())
    }
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
    plain_line: Option<Plain<Field>>,
    plain_message: Option<Plain<Asked>>,
    reads_events: bool,
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
        let used = (environment.get_template(EVENT))
            .map_err(failed(EVENT))?
            .undeclared_variables(false);
        // What a template assigns to a name of its own, or takes from another template, is not told among what it uses.
        let reads_events =
            config.event.contains("{%") || !used.iter().all(|name| PLACE.contains(&name.as_str()));
        let prompt = Self {
            environment,
            empty_profile: config.empty_profile.clone(),
            plain_line: Plain::parse(&config.event),
            plain_message: Plain::parse(&config.message),
            reads_events,
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

    /// Whether the event template asks for more of an event than its time and place.
    #[must_use]
    pub fn reads_events(&self) -> bool {
        self.reads_events
    }

    /// One event as one line: control characters and line breaks become spaces, so that no event can pass for two.
    ///
    /// # Errors
    /// [`TemplateError`] where the template fails.
    pub fn line(&self, line: Line) -> Result<String, TemplateError> {
        let rendered = match &self.plain_line {
            Some(plain) => plain.line(&line),
            None => self.render(EVENT, Value::from_object(line))?,
        };
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
        if let Some(plain) = &self.plain_message {
            return Ok(plain.message(profile, lines));
        }
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
    if text.bytes().all(|b| (b' '..0x7f).contains(&b)) {
        return text;
    }
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

    fn line(interaction: proto::Interaction) -> Line {
        Line {
            interaction,
            time_ms: 874_965_758_000,
            late: true,
            topic: "in".into(),
            partition: 3,
            offset: 7,
        }
    }

    #[test]
    fn a_line_joins_what_its_template_names() {
        let template = "- {{ action }} {{ item.title }} ({{ attributes.year }}; {{ attributes.none }}) @{{ partition }}:{{ offset }} {{ time }}{% if late %} late{% endif %}";
        let prompt = Prompt::new(&config(template, WHOLE)).unwrap();
        let event = interaction("Fargo");
        assert!(prompt.reads_events());
        assert_eq!(
            prompt.line(line(event)).unwrap(),
            "- loved Fargo (1996; ) @3:7 1997-09-22T22:02:38Z late"
        );
    }

    #[test]
    fn a_template_may_go_through_attributes_and_items_and_ask_for_what_is_not_there() {
        let template = "{% for name, value in attributes|items %}{{ name }}={{ value }};{% endfor %}{% for part in item %}{{ part }}={{ item[part] }};{% endfor %}{{ item.price }}{{ attributes.x or 'none' }}";
        let prompt = Prompt::new(&config(template, WHOLE)).unwrap();
        let mut event = interaction("Heat");
        event.attributes.insert("a".to_owned(), "b".to_owned());
        assert_eq!(
            prompt.line(line(event)).unwrap(),
            "a=b;year=1996;category=;description=;id=;title=Heat;none"
        );
        let nothing = prompt.line(line(proto::Interaction::default())).unwrap();
        assert_eq!(nothing, "category=;description=;id=;title=;none");
    }

    #[test]
    fn an_event_is_not_read_for_a_line_of_its_time_and_place() {
        let reads = |event: &str| Prompt::new(&config(event, WHOLE)).unwrap().reads_events();
        assert!(!reads(
            "- @{{ partition }}:{{ offset }} {{ time }} {{ time_ms }} {{ late }} {{ topic }}"
        ));
        assert!(!reads("x"));
        for event in [
            "{{ user_id }}",
            "{{ item.title }}",
            "{% if attributes.a %}x{% endif %}",
            "{{ text|upper }}",
            "{% set text = text|upper %}- {{ text }}",
            "{% with action = action|trim %}{{ action }}{% endwith %}",
            "{% set text %}{{ text }}{% endset %}{{ text }}",
            "{% include 'summary.message' %}",
        ] {
            assert!(reads(event), "{event}");
        }
    }

    #[test]
    fn one_event_is_one_line_whatever_its_text_holds() {
        let prompt = Prompt::new(&config("- {{ item.title }}", WHOLE)).unwrap();
        let event = interaction("a\n- loved b\r\u{2028}\u{85}\u{1b}[2J{{ 7 }}");
        assert_eq!(
            prompt.line(line(event)).unwrap(),
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
