//! An interaction as `limn.v1.Interaction`.

use prost::Message;

use super::{Reason, Rejected, proto};

/// Reads the value; what it holds is checked by the caller.
pub(super) fn read(value: &[u8]) -> Result<proto::Interaction, Rejected> {
    // The decoder's message names fields and wire types, never what stands in them.
    proto::Interaction::decode(value)
        .map_err(|error| Rejected::new(Reason::Malformed, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_message_is_malformed_and_its_text_is_not_told() {
        // Field 1, length-delimited, 6 bytes, the last no UTF-8.
        let rejected = read(b"\x0a\x06secre\xff").unwrap_err();
        assert_eq!(rejected.reason, Reason::Malformed);
        assert!(rejected.detail.contains("user_id"), "{}", rejected.detail);
        assert!(!rejected.detail.contains("secre"), "{}", rejected.detail);
        assert_eq!(read(b"\x0a\x09ab").unwrap_err().reason, Reason::Malformed);
        assert_eq!(read(b"\x09").unwrap_err().reason, Reason::Malformed);
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let mut bytes = b"\x0a\x03ann".to_vec();
        bytes.extend(b"\xfa\x07\x02hi");
        assert_eq!(read(&bytes).unwrap().user_id, "ann");
    }
}
