//! Bytes from any server into what reads its answers, for the fuzz targets: none may panic.

use reqwest::StatusCode;

use super::answered::Answered;
use super::refusal::{Refused, models, some};

/// A body: an answer's behind a 0, a list of models' behind a 1, and of a refusal behind what its status is above 300.
pub fn answer(bytes: &[u8]) {
    let Some((&of, body)) = bytes.split_first() else {
        return;
    };
    match of {
        0 => drop(Answered::read(body)),
        1 => {
            let told = some(&models(body));
            assert!(told.chars().all(|c| !c.is_control()), "{told:?}");
        }
        more => refusal(300 + u16::from(more), body),
    }
}

fn refusal(status: u16, body: &[u8]) {
    let Ok(status) = StatusCode::from_u16(status) else {
        return;
    };
    let refused = Refused::of(status, None, body);
    // What was sent may stand in the body, and is not told.
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.[](), ".contains(c);
    let said = refused.said.replace(&status.to_string(), "");
    assert!(said.len() < 256 && said.chars().all(plain), "{said:?}");
    let _ = refused.settled("model");
    let _ = refused.of_every_request();
}
