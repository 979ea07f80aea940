//! Finished model calls as the journal keeps them, and back.

use crate::codec::{self, proto};
use crate::engine::{Finish, Output};

/// A model's answer as the journal keeps it.
pub(super) fn call(output: &Output) -> proto::ModelCall {
    let finish = match output.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Loop => "loop",
    };
    proto::ModelCall {
        format: codec::FORMAT,
        text: output.text.clone(),
        finish: finish.to_owned(),
        prompt_tokens: output.prompt_tokens,
        cached_tokens: output.cached_tokens,
        output_tokens: output.output_tokens,
        seconds: output.seconds,
    }
}

/// A journal entry as the model's answer; one that cannot be read counts as a call never made.
pub(super) fn finished(bytes: &[u8]) -> Option<Output> {
    let call = codec::decode_call(bytes).ok()?;
    let finish = match call.finish.as_str() {
        "stop" => Finish::Stop,
        "length" => Finish::Length,
        "loop" => Finish::Loop,
        _ => return None,
    };
    Some(Output {
        text: call.text,
        finish,
        prompt_tokens: call.prompt_tokens,
        cached_tokens: call.cached_tokens,
        output_tokens: call.output_tokens,
        seconds: call.seconds,
    })
}
