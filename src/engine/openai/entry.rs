//! Bytes from any server into what reads its answers, for the fuzz targets: none may panic.

use reqwest::StatusCode;

use super::answered::Answered;
use super::refusal::{Refused, models, some};

/// A body: of a successful answer, of a list of models, and of a refusal, whose status its first two bytes make.
pub fn answer(bytes: &[u8]) {
    let _ = Answered::read(bytes);
    let told = some(&models(bytes));
    assert!(told.chars().all(|c| !c.is_control()), "{told:?}");
    let Some((status, body)) = bytes.split_first_chunk() else {
        return;
    };
    let status = 400 + u16::from_le_bytes(*status) % 200;
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
