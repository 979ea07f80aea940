//! How many tokens a prompt may have, and whether that is enough for any update at all.

use super::{Config, Error, Prompt};
use crate::engine::{self, Engine, Request};

/// What an update may hold besides the profile, for [`check`].
const SHORT_LINE: &str = "- one short event";

/// Whether an update of a user with the longest profile has room for an event: else every event would be given up.
///
/// # Errors
/// [`Error::Budget`] where it has not, [`Error::Template`], [`Error::Engine`].
pub fn check(config: &Config, engine: &dyn Engine) -> Result<(), Error> {
    let prompt = Prompt::new(config)?;
    let profile = longest(config.max_tokens, engine);
    let request = Request {
        system: config.instructions.clone(),
        user: prompt.message(&profile, &[SHORT_LINE.to_owned()])?,
        previous: profile,
        max_tokens: config.max_tokens,
        sampling: config.sampling,
    };
    let needed = match engine.prepare(request) {
        Ok(prepared) => prepared.prompt_tokens,
        Err(engine::Error::TooLong { tokens, .. }) => tokens,
        Err(error) => return Err(error.into()),
    };
    let budget = most(config, engine);
    if needed <= budget {
        return Ok(());
    }
    let given = config.prompt_tokens;
    Err(Error::Budget {
        given,
        answer: config.max_tokens,
        context: (budget < given).then(|| {
            let engine = engine.description();
            (engine.bound, engine.context_tokens, budget)
        }),
        needed,
    })
}

/// A text of about so many tokens, and not more.
fn longest(tokens: u32, engine: &dyn Engine) -> String {
    let mut words = tokens as usize;
    loop {
        let text = "word ".repeat(words);
        let counted = engine.count(&text);
        if counted <= tokens || words == 0 {
            return text;
        }
        words = (words - 1).min(words * tokens as usize / counted as usize);
    }
}

/// Most tokens that a prompt may have.
pub(super) fn most(config: &Config, engine: &dyn Engine) -> u32 {
    let context = engine.description().context_tokens;
    config
        .prompt_tokens
        .min(context.saturating_sub(config.max_tokens))
}
